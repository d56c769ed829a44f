"""What clients that wait for their answers can be served at most: a rate, not a number of requests.

Owns the ceiling of closed loops, whose arrivals depend on the answers, so that there is no instance
to bound. Must never be mistaken for what can be served of given requests: it knows rates only.

The argument. In the long run let y(g, n) be the good requests per second of group g that are served
in batches of n rows. A request uses a device for l(n) / n, as its batch is shared by n at the most,
and there are G devices; and from its being asked to the next one its client is busy for at least
before + l(n) + after + think, and a group has so many clients:

    sum over g, n of y(g, n) l(n) / n <= G
    sum over n of y(g, n) (before + l(n) + after + think) <= clients(g)     for each g

n is limited to batches that an SLO allows: before + l(n) + after <= slo. The greatest sum of y
under these is the ceiling; what is refused in between costs nothing here. With a price p >= 0 per
device and second the groups fall apart, and p G + sum of clients(g) x max over n of
max(0, 1 - p l(n) / n) / cycle(g, n) bounds it for every p; it is convex in p, and its least value
is the ceiling. A group without a number of clients has as many as one likes, so that p must be so
high that no batch of it pays.

In a window of T seconds up to (T + slo) / T of it can be good, as what arrives at the end may be
served after it.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from scheduler.spec import SECOND_NS

# Each leaves two thirds of the interval: these are down to rounding.
STEPS = 80


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """Clients of one model, all alike; `clients` None for as many as one likes.

    `table[n]` is the least time of a batch of n rows, index 0 unused; `before_ns` is the least time
    from asking to the start on a device, `after_ns` from the end there to the answer at the client,
    `think_ns` from there to the next request. `slo_ns` is the longest, where they are mixed.
    `max_rows` are all who can share a batch, where they are fewer than the table has rows.
    """

    table: tuple[int, ...]
    slo_ns: int
    clients: int | None = None
    before_ns: int = 0
    after_ns: int = 0
    think_ns: int = 0
    max_rows: int | None = None


def ceiling(loops: Sequence[Loop], *, num_devices: int) -> float:
    """The most good requests per second that so many devices can serve in the long run."""
    groups = [_Group(loop, count) for loop, count in Counter(loops).items()]
    most = max((group.most_per_device for group in groups), default=0.0)
    least = max((g.most_per_device for g in groups if g.clients is None), default=0.0)
    low, high = least, max(most, least)  # at `most` no batch pays
    for _ in range(STEPS):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if _bound_at(left, groups, num_devices) <= _bound_at(right, groups, num_devices):
            high = right
        else:
            low = left
    return min(_bound_at(price, groups, num_devices) for price in (least, low, high, most))


class _Group:
    """What a row costs in each batch that the SLO allows: seconds of a device, and of a client."""

    def __init__(self, loop: Loop, count: int) -> None:
        away_ns = loop.before_ns + loop.after_ns
        self.clients = None if loop.clients is None else loop.clients * count
        self.ways = [
            (
                loop.table[rows] / rows / SECOND_NS,
                (away_ns + loop.table[rows] + loop.think_ns) / SECOND_NS,
            )
            for rows in range(1, len(loop.table))
            if away_ns + loop.table[rows] <= loop.slo_ns
            and (loop.max_rows is None or rows <= loop.max_rows)
        ]
        self.most_per_device = max((1.0 / device_s for device_s, _ in self.ways), default=0.0)


def _bound_at(price: float, groups: Sequence[_Group], num_devices: int) -> float:
    """`price`: requests per device and second, no less than any group without limit has at best."""
    total = price * num_devices
    for group in groups:
        if group.clients is not None:
            best = max(((1.0 - price * d) / c for d, c in group.ways), default=0.0)
            total += group.clients * max(0.0, best)
    return total
