"""`remontoir bench recommend`: which configurations for a model and an SLO, and how sure that is.

Owns the prediction of goodput where it was not measured: other SLOs, and configurations of which
only neighbours were. It is a Gaussian process (Rasmussen and Williams, 2006, chapter 2) over the
SLO's logarithm and a configuration's values, so that it says how far it may be off; and goodput
never falls with a longer SLO, which bounds it by what was measured on either side.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from loadtest.analysis.cell import Line
from loadtest.analysis.prices import SECONDS_PER_HOUR, Prices

Array = npt.NDArray[np.float64]
Config = tuple[tuple[str, str], ...]

TOP = 3
INTERVAL = 0.90
DRAWS = 4_000
# Goodput is compared by ratio, but for what is next to none: below this share of the most.
FLOOR = 0.02
# Single measurements differ by some per cent on a quiet machine (docs/measurements).
LEAST_NOISE = 0.02
# n^3 in this many: half a second.
MAX_SAMPLES = 400


class NothingKnown(ValueError):
    """Results do not have what is asked for. The message says what they have."""


class Sample(NamedTuple):
    """One configuration at one SLO: the most goodput over the rates that were offered. `noise` is
    its relative standard deviation over the repeats, None for one.
    """

    config: Config
    slo_ms: float
    goodput_per_s: float
    noise: float | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`low` to `high` holds the truth in nine of ten cases. `is_best` is the chance that no other
    of the choices does better, `loses` the share of the best one's goodput that is expected to be
    lost by this one: the regret.
    """

    config: Config
    goodput_per_s: float
    low_per_s: float
    high_per_s: float
    is_best: float
    is_measured: bool
    loses: float = 0.0
    usd_per_1000: float | None = None

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.config) or "as it comes"


class _Reach(NamedTuple):
    """How far a measurement says something about others, as the kernel's parameters."""

    slo_octaves: float
    value_octaves: float
    other_word: float  # correlation with a configuration that differs in one word
    own: float  # share of the variance that is a configuration's own


_REACHES = tuple(
    _Reach(*found)
    for found in itertools.product((0.7, 1.5, 3.0), (1.0, 2.5), (0.3, 0.6, 0.9), (0.1, 0.4))
)


def samples_of(
    lines: Iterable[Line], model: str, *, rate_per_s: float | None = None, attainment: float = 0.0
) -> list[Sample]:
    """What was measured of a model: per configuration and SLO the most goodput over all rates, or
    at one. Lines with less `attainment` count as nothing served. Raises NothingKnown.
    """
    all_lines = list(lines)
    own = [line for line in all_lines if line.first.model == model]
    if not own:
        known = ", ".join(sorted({line.first.model for line in all_lines})) or "none"
        raise NothingKnown(f"no results of model {model!r}; there are results of: {known}")
    if rate_per_s is not None:
        rates = sorted({line.first.rate_per_s for line in own})
        own = [line for line in own if math.isclose(line.first.rate_per_s, rate_per_s)]
        if not own:
            listed = ", ".join(f"{rate:g}" for rate in rates)
            raise NothingKnown(
                f"{model} was not measured at {rate_per_s:g} requests/s, but at {listed}"
            )
    best: dict[tuple[Config, float], Sample] = {}
    for line in own:
        values = [cell.goodput_per_s for cell in line.cells]
        kept = fmean(values) if line.attainment >= attainment else 0.0
        noise = stdev(values) / fmean(values) if len(values) > 1 and fmean(values) > 0 else None
        key = (line.first.config, line.first.slo_ms)
        if key not in best or kept > best[key].goodput_per_s:
            best[key] = Sample(*key, kept, noise)
    return list(best.values())


def recommend(
    samples: Sequence[Sample],
    slo_ms: float,
    *,
    among: Collection[Config] | None = None,
    seed: int = 0,
) -> list[Choice]:
    """Configurations for that SLO, the most goodput first: all, or those `among` which is chosen,
    predicted from all. Raises NothingKnown.
    """
    if slo_ms <= 0:
        raise NothingKnown(f"an SLO is above 0 ms, not {slo_ms:g}")
    if not any(sample.goodput_per_s > 0 for sample in samples):
        raise NothingKnown("nothing was served in time by any configuration that was measured")
    samples = _nearest(samples, slo_ms)
    configs = sorted({sample.config for sample in samples})
    mean, covariance, scale = _predict(samples, configs, slo_ms)
    lows, highs = _bounds(samples, configs, slo_ms)

    chance = np.random.default_rng(seed)
    draws = chance.multivariate_normal(mean, covariance, DRAWS, method="eigh")
    # out of logarithms, inside what was measured on either side
    draws = np.clip(scale * (np.exp(draws) - FLOOR), lows, highs)
    if among is not None:
        kept = [index for index, config in enumerate(configs) if config in among]
        draws, configs = draws[:, kept], [configs[index] for index in kept]
    # where bounds make several equal, each has its part of being the best
    most = draws.max(axis=1, keepdims=True)
    tops = draws >= most
    is_best = (tops / tops.sum(axis=1, keepdims=True)).mean(axis=0)
    loses = np.where(most > 0, 1 - draws / np.maximum(most, np.finfo(float).tiny), 0).mean(axis=0)
    # The mean of draws, not the draw of a mean: a bound that cuts off the upper half counts.
    goodput = draws.mean(axis=0)
    low, high = np.quantile(draws, ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2), axis=0)
    measured = {sample.config for sample in samples if math.isclose(sample.slo_ms, slo_ms)}
    choices = [
        Choice(
            config=config,
            goodput_per_s=float(goodput[index]),
            low_per_s=float(low[index]),
            high_per_s=float(high[index]),
            is_best=float(is_best[index]),
            loses=float(loses[index]),
            is_measured=config in measured,
        )
        for index, config in enumerate(configs)
    ]
    return sorted(choices, key=lambda choice: (-choice.goodput_per_s, choice.config))


def with_costs(choices: Iterable[Choice], lines: Iterable[Line], prices: Prices) -> list[Choice]:
    """What 1,000 requests in time cost, where the table knows the device."""
    devices = {line.first.config: line.first for line in lines}
    found = []
    for choice in choices:
        cell = devices[choice.config]
        price = prices.of(cell.device)
        usd = None
        if price is not None and choice.goodput_per_s > 0:
            hours = 1000 / choice.goodput_per_s / SECONDS_PER_HOUR
            usd = cell.devices * price.usd_per_hour * hours
        found.append(msgspec.structs.replace(choice, usd_per_1000=usd))
    return found


def _nearest(samples: Sequence[Sample], slo_ms: float) -> list[Sample]:
    """As many as can be solved for, the nearest SLOs first."""
    ordered = sorted(samples, key=lambda s: (abs(math.log2(s.slo_ms / slo_ms)), s.config))
    return ordered[:MAX_SAMPLES]


def _predict(
    samples: Sequence[Sample], configs: Sequence[Config], slo_ms: float
) -> tuple[Array, Array, float]:
    """Mean and covariance of log(goodput / scale + FLOOR) at the SLO, by configuration."""
    scale = max(sample.goodput_per_s for sample in samples)
    values = np.log(np.array([s.goodput_per_s / scale for s in samples]) + FLOOR)
    centre = float(values.mean())
    variance = max(float(values.var()), 1e-4)
    spoken = [s.noise for s in samples if s.noise is not None]
    usual = max(LEAST_NOISE, fmean(spoken)) if spoken else LEAST_NOISE
    noise = np.array([max(LEAST_NOISE, usual if s.noise is None else s.noise) for s in samples])
    given = [(sample.config, sample.slo_ms) for sample in samples]
    asked = [(config, slo_ms) for config in configs]
    among = _apart(given, given)
    residual = values - centre
    best_score, best = -math.inf, None
    for reach in _REACHES:
        kernel = variance * among.kernel(reach) + np.diag(noise**2)
        factor = np.linalg.cholesky(kernel)
        solved = np.linalg.solve(factor, residual)
        score = -0.5 * float(solved @ solved) - float(np.log(np.diag(factor)).sum())
        if score > best_score:
            best_score, best = score, (reach, factor, solved)
    assert best is not None  # there is at least one reach
    reach, factor, solved = best
    across = np.linalg.solve(factor, variance * _apart(given, asked).kernel(reach))
    mean: Array = centre + across.T @ solved
    covariance: Array = variance * _apart(asked, asked).kernel(reach) - across.T @ across
    return mean, (covariance + covariance.T) / 2, scale


class _Apart(NamedTuple):
    """How far samples lie from each other, by row of the one and of the other: squared octaves of
    the SLO and of numeric values, words that differ, whether the configuration is the same.
    """

    slo: Array
    values: Array
    words: Array
    same: Array

    def kernel(self, reach: _Reach) -> Array:
        """Correlations."""
        alike = np.exp(-0.5 * self.values / reach.value_octaves**2)
        alike *= reach.other_word**self.words
        slo = np.exp(-0.5 * self.slo / reach.slo_octaves**2)
        found: Array = slo * ((1 - reach.own) * alike + reach.own * self.same)
        return found


def _apart(ones: Sequence[tuple[Config, float]], others: Sequence[tuple[Config, float]]) -> _Apart:
    """Of (configuration, SLO) pairs. A key counts as numeric if it is a number everywhere."""
    configs = list(dict.fromkeys(config for config, _ in (*ones, *others)))
    maps = [dict(config) for config in configs]
    keys = sorted({key for found in maps for key in found})
    values = np.zeros((len(configs), len(configs)))
    words = np.zeros_like(values)
    for key in keys:
        texts = [found.get(key) for found in maps]
        numbers = [number for text in texts if (number := _number(text)) is not None]
        if len(numbers) == len(texts):
            octaves = np.log2(np.array(numbers))
            values += (octaves[:, None] - octaves[None, :]) ** 2
        else:
            column = np.array([text or "" for text in texts])
            words += column[:, None] != column[None, :]
    places = {config: place for place, config in enumerate(configs)}
    rows = np.array([places[config] for config, _ in ones])
    columns = np.array([places[config] for config, _ in others])
    at = np.ix_(rows, columns)
    one = np.log2(np.array([slo for _, slo in ones]))
    other = np.log2(np.array([slo for _, slo in others]))
    same: Array = (rows[:, None] == columns[None, :]).astype(float)
    return _Apart((one[:, None] - other[None, :]) ** 2, values[at], words[at], same)


def _number(text: str | None) -> float | None:
    """Of a value above 0; None for a word."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value > 0 and math.isfinite(value) else None


def _bounds(
    samples: Sequence[Sample], configs: Sequence[Config], slo_ms: float
) -> tuple[Array, Array]:
    """By configuration: the most of its own at shorter SLOs, the least of it at longer ones. A
    band of two deviations keeps noise from binding.
    """
    lows, highs = [], []
    for config in configs:
        own = [sample for sample in samples if sample.config == config]
        slack = {s: 2 * max(LEAST_NOISE, s.noise or 0.0) for s in own}
        below = [s.goodput_per_s * (1 - slack[s]) for s in own if s.slo_ms <= slo_ms]
        above = [s.goodput_per_s * (1 + slack[s]) for s in own if s.slo_ms >= slo_ms]
        low = max(below, default=0.0)
        lows.append(low)
        highs.append(max(low, min(above, default=math.inf)))
    return np.array(lows), np.array(highs)
