"""Arrival processes: seconds from the start of a stream, each with the model it asks.

Owns the mathematics of the synthetic kinds. Every process is in its steady state from the first
instant: a gamma gap or a burst may have begun before.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from typing import TypeAlias

from loadtest.workloads.choice import model_chooser, zipf_shares
from loadtest.workloads.entries import Diurnal, Gamma, OnOff, Poisson, Spread

# The source of chance of one purpose: f("models") is another one than f("").
Chances: TypeAlias = Callable[[str], random.Random]
Arrivals: TypeAlias = Iterator[tuple[float, str]]  # seconds, model


def poisson(entry: Poisson, models: Sequence[str], span_s: float, chances: Chances) -> Arrivals:
    """One process for all models, each request drawing its own: as many processes, merged."""
    times = poisson_times(entry.rate_per_s, span_s, chances(""))
    return with_models(times, models, entry.skew, chances)


def gamma(entry: Gamma, models: Sequence[str], span_s: float, chances: Chances) -> Arrivals:
    shape = 1 / entry.cv**2
    return merge(
        *(
            _gamma_of_model(model, entry.rate_per_s * share, shape, span_s, chances(model))
            for model, share in zip(models, zipf_shares(len(models), entry.skew), strict=True)
        )
    )


def on_off(entry: OnOff, models: Sequence[str], span_s: float, chances: Chances) -> Arrivals:
    return merge(
        *(
            _bursts_of_model(model, entry, entry.rate_per_s * share, span_s, chances(model))
            for model, share in zip(models, zipf_shares(len(models), entry.skew), strict=True)
        )
    )


def diurnal(entry: Diurnal, models: Sequence[str], span_s: float, chances: Chances) -> Arrivals:
    return with_models(_sinusoidal(entry, span_s, chances("")), models, entry.skew, chances)


def spread(entry: Spread, models: Sequence[str], span_s: float, chances: Chances) -> Arrivals:
    uniform = chances("models").random
    num_models = len(models)
    for at_s in poisson_times(entry.rate_per_s, span_s, chances("")):
        num_asked = min(num_models, 1 + int(at_s / entry.step_s))
        yield at_s, models[int(uniform() * num_asked)]


def poisson_times(rate_per_s: float, span_s: float, chance: random.Random) -> Iterator[float]:
    gap = chance.expovariate
    at_s = gap(rate_per_s)
    while at_s < span_s:
        yield at_s
        at_s += gap(rate_per_s)


def with_models(
    times: Iterator[float], models: Sequence[str], skew: float, chances: Chances
) -> Arrivals:
    """Every instant with a model drawn for it."""
    choose = model_chooser(models, skew, chances("models"))
    if choose is None:
        model = models[0]
        return ((at_s, model) for at_s in times)
    return ((at_s, choose()) for at_s in times)


def gamma_residual(shape: float, chance: random.Random) -> float:
    """What is left of the gamma gap (of mean 1) that a random instant falls into.

    Long gaps catch more instants: the gap is length-biased, and the instant uniform in it.
    """
    return chance.random() * chance.gammavariate(shape + 1, 1 / shape)


def _gamma_of_model(
    model: str, rate_per_s: float, shape: float, span_s: float, chance: random.Random
) -> Arrivals:
    gap = chance.gammavariate
    scale_s = 1 / (shape * rate_per_s)
    at_s = gamma_residual(shape, chance) / rate_per_s
    while at_s < span_s:
        yield at_s, model
        at_s += gap(shape, scale_s)


def _bursts_of_model(
    model: str, entry: OnOff, rate_per_s: float, span_s: float, chance: random.Random
) -> Arrivals:
    share_on = entry.on_s / (entry.on_s + entry.off_s)
    burst_rate_per_s = rate_per_s / share_on
    duration = chance.expovariate
    at_s = 0.0 if chance.random() < share_on else duration(1 / entry.off_s)
    while at_s < span_s:
        end_s = min(span_s, at_s + duration(1 / entry.on_s))
        at_s += duration(burst_rate_per_s)
        while at_s < end_s:
            yield at_s, model
            at_s += duration(burst_rate_per_s)
        at_s = end_s + duration(1 / entry.off_s)


def _sinusoidal(entry: Diurnal, span_s: float, chance: random.Random) -> Iterator[float]:
    """Thinning: candidates at the highest rate, each kept with the share that its instant has."""
    highest = 1 + entry.amplitude
    per_s = 2 * math.pi / entry.period_s
    uniform = chance.random
    for at_s in poisson_times(entry.rate_per_s * highest, span_s, chance):
        if uniform() * highest < 1 + entry.amplitude * math.sin(per_s * at_s):
            yield at_s
