"""Searches for the best of many configurations, each of which costs something to try.

Owns the space, the strategies and their count of what was tried. Nothing is played here: a score
comes from a function, be it a simulator or a live probe.

`region` reuses the scores of neighbours, as RRL does ("Swift machine learning model serving
scheduling: a region based reinforcement learning approach", SC 2019): near configurations score
alike, so that an untried one is foreseen from those around it. What is promising is tried on a
ninth of the requests first, then on a third, then on all (successive halving, Jamieson and
Talwalkar, AISTATS 2016). It is a search, no learning agent.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Value = int | str
Config = tuple[Value, ...]
# (configuration, share of the requests) → score, more is better
Score = Callable[[Config, float], float]

RUNGS = (1 / 9, 1 / 3, 1.0)
KEPT = 3  # of so many, one goes on to the next rung
NEIGHBOURS = 5
ROUND = 9  # configurations begun in a round of halving and of region
EXPLORED = 3  # of a region's round, drawn without looking at neighbours
# Policies and other words have no order: two of them are as far apart as half of a scale.
WORDS_APART = 0.5
NEAR = 0.05  # added to a distance, so that one neighbour close by is not all


class Tried(NamedTuple):
    """One evaluation. `cost` is what all until now have cost, in whole runs."""

    config: Config
    share: float
    score: float
    cost: float


class Space:
    """The product of the dimensions' values, without what `allows` forbids."""

    def __init__(
        self,
        dimensions: Mapping[str, Sequence[Value]],
        allows: Callable[[Mapping[str, Value]], bool] = lambda _: True,
    ) -> None:
        """Raises ValueError where nothing is left."""
        self.names = tuple(dimensions)
        self._values = [tuple(values) for values in dimensions.values()]
        self.configs: list[Config] = [
            config
            for config in product(*self._values)
            if allows(dict(zip(self.names, config, strict=True)))
        ]
        if not self.configs:
            raise ValueError("no configuration is left to try")

    def named(self, config: Config) -> dict[str, Value]:
        return dict(zip(self.names, config, strict=True))

    @cached_property
    def distances(self) -> Floats:
        """Between any two of `configs`: numbers by their places in their scale, words by whether
        they are the same; summed over the dimensions.
        """
        number = len(self.configs)
        total = np.zeros((number, number))
        for values, column in zip(self._values, zip(*self.configs, strict=True), strict=True):
            places = np.array([values.index(value) for value in column], dtype=float)
            apart = np.abs(places[:, None] - places[None, :])
            if isinstance(values[0], str):
                total += WORDS_APART * (apart > 0)
            elif len(values) > 1:
                total += apart / (len(values) - 1)
        return total


Strategy = Callable[[Space, Score, random.Random], Iterator[Tried]]


def grid(space: Space, score: Score, chance: random.Random) -> Iterator[Tried]:
    """All in order, the last dimension the fastest."""
    del chance
    yield from _whole(space.configs, score)


def at_random(space: Space, score: Score, chance: random.Random) -> Iterator[Tried]:
    """All, in an order of chance."""
    yield from _whole(chance.sample(space.configs, len(space.configs)), score)


def halving(space: Space, score: Score, chance: random.Random) -> Iterator[Tried]:
    """Rounds of successive halving on configurations drawn by chance."""
    left = chance.sample(space.configs, len(space.configs))
    ladder = _Ladder(score)
    while left:
        begun, left = left[:ROUND], left[ROUND:]
        yield from ladder.climb(begun)


def region(space: Space, score: Score, chance: random.Random) -> Iterator[Tried]:
    """As halving, but what is begun is what its neighbours speak for, and a few by chance; and what
    a rung has sorted out is not lost: the best of that is tried on all requests in each round,
    since the first requests may have lied.
    """
    left = chance.sample(space.configs, len(space.configs))
    ladder = _Ladder(score)
    while left:
        num_explored = EXPLORED if ladder.known else ROUND
        begun, left = left[:num_explored], left[num_explored:]
        if ladder.known:
            foreseen = dict(zip(space.configs, _foreseen(space, ladder.known), strict=True))
            left.sort(key=lambda config: -foreseen[config])
            begun += left[: ROUND - num_explored]
            left = left[ROUND - num_explored :]
            chance.shuffle(left)
        yield from ladder.climb(begun)
        yield from ladder.finish_best()
    while ladder.has_unfinished:
        yield from ladder.finish_best()


STRATEGIES: dict[str, Strategy] = {
    "grid": grid,
    "random": at_random,
    "halving": halving,
    "region": region,
}


def best_of(tried: Sequence[Tried]) -> Tried | None:
    """Of those tried on all requests the best, the first of equals."""
    return max((t for t in tried if t.share == 1.0), key=lambda t: t.score, default=None)


def cost_to_reach(tried: Iterator[Tried], score: float) -> float:
    """What it costs until one that was tried on all requests has this score."""
    for one in tried:
        if one.share == 1.0 and one.score >= score:
            return one.cost
    return math.inf


def _whole(configs: Sequence[Config], score: Score) -> Iterator[Tried]:
    for number, config in enumerate(configs, start=1):
        yield Tried(config, 1.0, score(config, 1.0), float(number))


class _Ladder:
    """Rungs of more and more requests, and what is known of every configuration by its highest."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self._cost = 0.0
        self.known: dict[Config, float] = {}
        self._unfinished: dict[Config, None] = {}  # all and only known, not tried on all requests

    @property
    def has_unfinished(self) -> bool:
        return bool(self._unfinished)

    def finish_best(self) -> Iterator[Tried]:
        """Of those that were sorted out the best so far, on all requests."""
        if self._unfinished:
            yield self._try(max(self._unfinished, key=self.known.__getitem__), 1.0)

    def climb(self, configs: Sequence[Config]) -> Iterator[Tried]:
        """A third of those goes on from each rung to the next; one at least."""
        going = list(configs)
        for share in RUNGS:
            for config in going:
                yield self._try(config, share)
            going.sort(key=lambda config: -self.known[config])
            going = going[: max(1, len(going) // KEPT)]

    def _try(self, config: Config, share: float) -> Tried:
        self._cost += share
        found = self._score(config, share)
        self.known[config] = found
        if share < 1.0:
            self._unfinished[config] = None
        else:
            self._unfinished.pop(config, None)
        return Tried(config, share, found, self._cost)


def _foreseen(space: Space, known: Mapping[Config, float]) -> Floats:
    """For every configuration the mean of the nearest known, weighted by how near they are."""
    index = [i for i, config in enumerate(space.configs) if config in known]
    scores = np.array([known[space.configs[i]] for i in index])
    distances = space.distances[:, index]
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    weights = 1 / (NEAR + np.take_along_axis(distances, nearest, axis=1))
    foreseen: Floats = (weights * scores[nearest]).sum(axis=1) / weights.sum(axis=1)
    return foreseen
