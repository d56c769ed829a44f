"""Arrivals as data: who asks for what, and when.

Owns the randomness of a run: the same seed gives the same arrivals, and a stream's arrivals do not
change when another stream is added. It never sends anything.
"""

import heapq
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scheduler.spec import SECOND_NS


class Stream(NamedTuple):
    """Requests of one kind: an independent Poisson process."""

    name: str
    rate_per_s: float


class Arrival(NamedTuple):
    """`at_ns` counts from the start of the run; `stream` is the position in the list of streams."""

    at_ns: int
    stream: int


def poisson(streams: Sequence[Stream], *, duration_s: float, seed: int) -> list[Arrival]:
    """All arrivals of a run, in time order."""
    sources = [
        _poisson_stream(stream, index, duration_s, random.Random(f"{seed}/{stream.name}"))
        for index, stream in enumerate(streams)
    ]
    return list(heapq.merge(*sources))


def _poisson_stream(
    stream: Stream, index: int, duration_s: float, chance: random.Random
) -> Iterator[Arrival]:
    if stream.rate_per_s <= 0:
        raise ValueError(f"stream {stream.name}: rate {stream.rate_per_s}/s is not positive")
    at_s = chance.expovariate(stream.rate_per_s)
    while at_s < duration_s:
        yield Arrival(int(at_s * SECOND_NS), index)
        at_s += chance.expovariate(stream.rate_per_s)
