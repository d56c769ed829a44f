"""The Lagrangian bound: what a clairvoyant scheduler could serve in time at most.

The problem. A batch is a model, some of its requests, a start no earlier than any of their
releases, and an end no later than any of their deadlines. Choose batches so that each request is in
at most one and never more than G run at once; count the requests.

The relaxation. "Never more than G at once" is weakened to: in each bucket of time, the batches
together use at most its capacity (G x width, less outages). With a price >= 0 per bucket for that,
whatever is chosen,

    served <= sum over its batches of (rows - price of the batch's time) + sum of price x capacity,

as the right side adds price x what is left of each bucket, which is not negative. The first sum
falls apart into models, where the best choice is a longest path. So *every* price vector gives an
upper bound; the ascent in `upper_bound` only looks for a low one, and may stop at any time. A count
being an integer, the bound is rounded down.

The path, for requests of one class (one model, one SLO), whose releases and deadlines are in the
same order:

    V(i) = max(V(i+1), max over n of [n - min over starts s of price(s, s + l(n)) + V(i+n)])

with release(i+n-1) <= s <= deadline(i) - l(n). Is it enough to look at runs of consecutive
requests? Put the batches of a class in order of their starts and call i < j an inversion if i's
batch stands behind j's. Exchanging the two lessens the inversions; j fits where i was, and i fits
where j was if it is due after the end of j's batch. So take a schedule of these batches with the
fewest inversions: where one is left, j's batch ends after i's, which started later: it is longer,
has more rows, and i's lies inside it. That takes two devices. And if then i < j < k with i, k in
batch A and j in another B, then B is that longer one, and all of it lies between i and k: all of B
is due after i, and whatever in B stood behind k would make an inversion with k that could be
undone, as k is due after j. A request that is not served and lies inside a run replaces its last.
Hence: on one device, batches are runs. On several, a batch of n is a run, or it is split around
whole batches of n + 1 rows or more, so that its first and last request are at least 2n apart (the
textbook's "consecutive without loss of generality" is wrong here by this case). Each part of k rows
is charged its share: it is worth k - (k / n) x price(s, s + l(n)), with s such that the request
n + 1 places behind it is released too (or, for a later part, the one before is not yet due).

Mixed SLOs. Batches may hold requests of several classes of a model; splitting the model into
classes that never share would forbid what the system can do and would bound nothing. Instead, again
each class's part is charged its share: k rows in a batch of n >= k, started at s, are worth
k - (k / n) x price(s, s + l(n)). The parts of a real batch together are worth what it is, exactly,
and within a class the exchange above still holds (it keeps every batch's start and size; a part
can now be split around fewer rows, so that its own class counts among the others where two devices
are). So the sum of the classes' best paths is no less than any real schedule. n is limited to what
requests outside the part could bring: those whose windows let them run in such a batch at all.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtest.bound import kernels
from loadtest.bound.instance import Instance

# Steps aim this share of the bound below it at first, and so much of that in the end. A wide aim
# goes fast where all prices are wrong, a narrow one settles.
FIRST_AIM = 0.1
LAST_AIM = 0.0005
# Of the direction of a step, the share that is the last one's: the prices of neighbouring buckets
# compensate each other, and plain steps go to and fro between them.
INERTIA = 0.7
# Uniform prices to begin with, as shares of what a nanosecond is worth in the best full batch.
STARTS = (0.0, 0.5, 0.9)
# Stop once the best schedule found is this close to the bound.
CLOSE = 1e-4
MAX_BUCKETS = 200_000


class Proven(NamedTuple):
    """`most` requests at the most can be served in time; a schedule that serves `found` exists."""

    most: int
    found: int
    iterations: int


def upper_bound(
    instance: Instance, *, iterations: int = 60, bucket_ns: int | None = None
) -> Proven:
    """The lowest bound that so many steps find; fewer steps give a higher one, never a wrong one.

    `bucket_ns` defaults to the shortest batch: the wider, the more may overlap within a bucket; half
    as wide is 1 % lower at most where measured, and takes twice the time.
    """
    problem = _Problem(instance, bucket_ns)
    if problem.num_requests == 0:
        return Proven(0, 0, 0)
    return _descend(problem, iterations)


class _Problem:
    """The instance as flat arrays, times counted from the first release."""

    def __init__(self, instance: Instance, bucket_ns: int | None) -> None:
        classes = [one for one in instance.classes if one.release_ns]
        self.num_requests = sum(len(one.release_ns) for one in classes)
        if not classes:
            return
        origin_ns = min(one.release_ns[0] for one in classes)
        end_ns = max(one.deadline_ns[-1] for one in classes)
        names = sorted({one.model for one in classes})
        number_of = {name: number for number, name in enumerate(names)}
        rows = [len(instance.tables[name]) - 1 for name in names]
        self.max_rows_of = np.array(rows, dtype=np.int64)
        self.tables = np.zeros((len(names), max(rows) + 1), dtype=np.int64)
        for number, name in enumerate(names):
            self.tables[number, : rows[number] + 1] = instance.tables[name]
        self.table_of = np.array([number_of[one.model] for one in classes], dtype=np.int64)
        sizes = [0] + [len(one.release_ns) for one in classes]
        self.class_begin = np.cumsum(np.array(sizes, dtype=np.int64))
        self.release = _joined([one.release_ns for one in classes]) - origin_ns
        self.deadline = _joined([one.deadline_ns for one in classes]) - origin_ns
        self.family_begin = np.searchsorted(self.table_of, self.table_of, side="left")
        self.family_end = np.searchsorted(self.table_of, self.table_of, side="right")
        shortest_ns = int(self.tables[:, 1].min())
        least_ns = -(-(max(end_ns - origin_ns, 1)) // MAX_BUCKETS)
        self.width = max(bucket_ns or shortest_ns, least_ns, 1)
        num_buckets = max(end_ns - origin_ns, 0) // self.width + 2
        self.num_devices = instance.num_devices
        self.capacity = np.full(num_buckets, float(self.width * instance.num_devices))
        for outage in instance.outages:
            start = min(max(outage.from_ns - origin_ns, 0), num_buckets * self.width)
            end = min(max(outage.until_ns - origin_ns, 0), num_buckets * self.width)
            kernels.add_use(self.capacity, self.width, start, end, -1.0)
        self.capacity = np.maximum(self.capacity, 0.0)
        self.columns = np.zeros((self.num_requests, 5), dtype=np.int64)
        self.most_per_ns = max(
            n / table[n] for table in instance.tables.values() for n in range(1, len(table))
        )

    def value_at(self, prices: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], int]:
        """(bound under these prices, time used per bucket, requests its batches really serve)."""
        used = np.zeros(len(prices))
        total, num_columns = kernels.best_batches(
            prices,
            self.width,
            self.release,
            self.deadline,
            self.class_begin,
            self.family_begin,
            self.family_end,
            self.table_of,
            self.max_rows_of,
            self.tables,
            self.num_devices > 1,
            used,
            self.columns,
        )
        chosen = self.columns[:num_columns]
        found = kernels.play(
            chosen,
            np.argsort(chosen[:, kernels.START], kind="stable"),
            self.release,
            self.deadline,
            self.table_of,
            self.tables,
            self.num_devices,
        )
        return total + float(prices @ self.capacity), used, found


def _descend(problem: _Problem, iterations: int) -> Proven:
    """Subgradient steps of Polyak's length towards an aim that comes closer from step to step.

    Prices are stepped per bucket in units of requests for the whole bucket, so that the steps do
    not depend on its width.
    """
    capacity = problem.capacity
    per_bucket = np.maximum(capacity, problem.width)
    num_buckets = len(capacity)
    full_batches = problem.most_per_ns * float(capacity.max())
    best, best_prices, found = float("inf"), np.zeros(num_buckets), 0
    starts = [np.full(num_buckets, share * full_batches) for share in STARTS]
    direction = np.zeros(num_buckets)
    narrowing = (LAST_AIM / FIRST_AIM) ** (1.0 / max(1, iterations - len(starts)))
    aim, done = FIRST_AIM, 0
    prices = starts[0]
    for done in range(1, iterations + 1):
        value, used, served = problem.value_at(prices / per_bucket)
        found = max(found, served)
        if value < best:
            best, best_prices = value, prices
        if _floor(best) - found <= CLOSE * best:
            break
        if done < len(starts):
            prices = starts[done]
            continue
        if done == len(starts) and value > best:
            prices = best_prices  # begin from the best of the uniform ones
            value, used, served = problem.value_at(prices / per_bucket)
        excess = (used - capacity) / per_bucket
        excess[(excess < 0.0) & (prices <= 0.0)] = 0.0
        direction = INERTIA * direction + (1.0 - INERTIA) * excess
        square = max(float(direction @ direction), (1.0 - INERTIA) * float(excess @ excess))
        if square == 0.0:
            break
        prices = np.maximum(prices + (value - best + aim * best) / square * direction, 0.0)
        aim *= narrowing
    return Proven(_floor(best), found, done)


def _floor(value: float) -> int:
    """The count below, with room for the rounding of a sum of so many numbers."""
    return int(value * (1.0 + 1e-12) + 1e-6)


def _joined(parts: list[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.concatenate([np.array(part, dtype=np.int64) for part in parts])
