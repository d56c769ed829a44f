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

# Uniform prices to begin with, as shares of what a nanosecond is worth in the best full batch.
UNIFORM = (0.0, 0.25, 0.5, 0.75, 1.0)
# Then steps on prices that are equal over an eighth of the time, then over 64 buckets, of so many
# steps each: what is wrong everywhere is soon put right. The rest is for single buckets.
COARSE = (8, 64)
COARSE_STEPS = 10
# Steps aim this share of the bound below it at first, and so much of that in the end. A wide aim
# goes fast where all prices are wrong, a narrow one settles.
FIRST_AIM, LAST_AIM = 0.05, 0.0005
LAST_COARSE_AIM = 0.003
# Of the direction of a step, the share that is the last one's: the prices of neighbouring buckets
# compensate each other, and plain steps go to and fro between them.
INERTIA = 0.7
# Stop after so many steps on single buckets without this gain, or this close to a schedule.
PATIENCE = 35
CLOSE = 1e-4


class Proven(NamedTuple):
    """`most` requests at the most can be served in time; a schedule that serves `found` exists.

    `found` is 0 where weights have to be loaded or devices are away: no schedule is looked for.
    """

    most: int
    found: int
    iterations: int


def upper_bound(
    instance: Instance, *, iterations: int = 80, bucket_ns: int | None = None
) -> Proven:
    """The lowest bound that so many steps find; fewer steps give a higher one, never a wrong one.

    `bucket_ns` defaults to the shortest batch, or to a sixteenth of the shortest window where that
    is more. The wider, the more may overlap within a bucket: half as wide is 1 % lower at most
    where measured, and takes twice the time.
    """
    if instance.num_requests == 0:
        return Proven(0, 0, 0)
    priced = Priced(instance, bucket_ns)
    descent = _Descent(priced, iterations)
    for share in UNIFORM:
        descent.value_at(priced.uniform(share))
    eighth = max(1, priced.num_buckets // COARSE[0])
    descent.step(eighth, COARSE_STEPS, FIRST_AIM, LAST_COARSE_AIM)
    descent.step(min(COARSE[1], eighth), COARSE_STEPS, FIRST_AIM / 2, LAST_COARSE_AIM)
    descent.step(1, iterations, FIRST_AIM, LAST_AIM)
    proven = min(priced.value_at(prices)[0] for prices in (priced.uniform(0.0), descent.prices))
    return Proven(_floor(proven), descent.found, descent.done)


class _Descent:
    """Subgradient steps of Polyak's length towards an aim that comes closer from step to step.

    On drafts of the bound: where prices make a good draft, they make a good bound.
    """

    def __init__(self, priced: Priced, iterations: int) -> None:
        self._priced = priced
        self._iterations = iterations
        self.prices = priced.uniform(0.0)
        self.best = float("inf")
        self.found = priced.found_greedily()
        self.done = 0

    @property
    def is_over(self) -> bool:
        is_close = self.best < float("inf") and _floor(self.best) - self.found <= CLOSE * self.best
        return is_close or (self.done > 0 and self.done >= self._iterations)

    def value_at(self, prices: Floats) -> tuple[float, Floats]:
        """The draft under these prices, and by how much its batches use too much of each."""
        if self.is_over:
            return self.best, np.zeros(len(prices))
        value, excess, served = self._priced.value_at(prices, is_draft=True)
        self.done += 1
        self.found = max(self.found, served)
        if value < self.best:
            self.best, self.prices = value, prices
        return value, excess

    def step(self, block: int, steps: int, first_aim: float, last_aim: float) -> None:
        """So many steps from the best prices on, or what is left of them; prices change equally
        over `block` buckets.
        """
        steps = min(steps, self._iterations - self.done)
        if self.is_over or steps < 1:
            return
        prices, aim = self.prices, first_aim
        narrowing = (last_aim / first_aim) ** (1.0 / steps)
        direction = np.zeros(len(prices))
        gained_at, gained = self.done, self.best
        value, excess = self.value_at(prices)
        for _ in range(steps - 1):
            if self.is_over or (block == 1 and self.done - gained_at > PATIENCE):
                return
            excess = self._priced.evened(excess, block)
            excess[(excess < 0.0) & (prices <= 0.0)] = 0.0
            direction = INERTIA * direction + (1.0 - INERTIA) * excess
            square = max(_square(direction), (1.0 - INERTIA) * _square(excess))
            if square == 0.0:
                return
            to_go = min(value - self.best, aim * self.best) + aim * self.best
            prices = np.maximum(prices + to_go / square * direction, 0.0)
            value, excess = self.value_at(prices)
            aim *= narrowing
            if self.best < gained * (1.0 - CLOSE):
                gained_at, gained = self.done, self.best


def _square(vector: Floats) -> float:
    return float(vector @ vector)


def _floor(value: float) -> int:
    """The count below, with room for the rounding of a sum of so many numbers."""
    return int(value * (1.0 + 1e-12) + 1e-6)
