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

Weights. Where loading is to count, a batch's model must be on the device from its start to its end,
its pages are taken from the start of its LOAD on, a device has so many pages, and one LOAD at a
time. Two more prices per bucket weaken this as above: of a page, and of the copy lane. A model is
there from time to time; the stretches of one model, put together over all devices, cost what the
price of pages has gathered in them, M(end) - M(begin of the LOAD), and a LOAD each: no more than
what the devices really spend. So the path gets two states, with and without the weights: a batch
may enter (pay the cheapest LOAD that ends by its start, less M(begin of it)), or leave (pay M(its
end)), or both, or stay. That the batches between lie inside the stretch is not asked for, and
whatever is there at the beginning costs no LOAD: both only raise the bound. Classes of one model
share its stretches in proportion to their requests.
"""

from typing import NamedTuple

import numpy as np

from loadtest.bound.instance import Instance
from loadtest.bound.priced import Floats, Priced

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


class Proven(NamedTuple):
    """`most` requests at the most can be served in time; a schedule that serves `found` exists.

    `found` is 0 where weights have to be loaded: no schedule is looked for then.
    """

    most: int
    found: int
    iterations: int


def upper_bound(
    instance: Instance, *, iterations: int = 60, bucket_ns: int | None = None
) -> Proven:
    """The lowest bound that so many steps find; fewer steps give a higher one, never a wrong one.

    `bucket_ns` defaults to the shortest batch: the wider, the more may overlap within a bucket;
    half as wide is 1 % lower at most where measured, and takes twice the time.
    """
    if instance.num_requests == 0:
        return Proven(0, 0, 0)
    return _descend(Priced(instance, bucket_ns), iterations)


def _descend(priced: Priced, iterations: int) -> Proven:
    """Subgradient steps of Polyak's length towards an aim that comes closer from step to step."""
    best, best_prices, found = float("inf"), priced.uniform(0.0), 0
    starts = [priced.uniform(share) for share in STARTS]
    direction = np.zeros(len(best_prices))
    narrowing = (LAST_AIM / FIRST_AIM) ** (1.0 / max(1, iterations - len(starts)))
    prices, aim, done = starts[0], FIRST_AIM, 0
    for done in range(1, iterations + 1):
        value, excess, served = priced.value_at(prices)
        found = max(found, served)
        if value < best:
            best, best_prices = value, prices
        if _floor(best) - found <= CLOSE * best:
            break
        if done < len(starts):
            prices = starts[done]
            continue
        if done == len(starts) and value > best:  # begin from the best of the uniform ones
            prices = best_prices
            value, excess, served = priced.value_at(prices)
        excess[(excess < 0.0) & (prices <= 0.0)] = 0.0
        direction = INERTIA * direction + (1.0 - INERTIA) * excess
        square = max(_square(direction), (1.0 - INERTIA) * _square(excess))
        if square == 0.0:
            break
        prices = np.maximum(prices + (value - best + aim * best) / square * direction, 0.0)
        aim *= narrowing
    return Proven(_floor(best), found, done)


def _square(vector: Floats) -> float:
    return float(vector @ vector)


def _floor(value: float) -> int:
    """The count below, with room for the rounding of a sum of so many numbers."""
    return int(value * (1.0 + 1e-12) + 1e-6)
