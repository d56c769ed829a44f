"""The synthetic kinds have the figures that their fields say, with fixed seeds."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from loadtest.workloads import (
    Ask,
    Diurnal,
    Gamma,
    OnOff,
    OpenEntry,
    Poisson,
    Spread,
    open_loop,
)

MODELS = [f"m{i}" for i in range(4)]


def play(entry: OpenEntry, duration_s: float, models: Sequence[str] = MODELS) -> list[Ask]:
    return list(open_loop([entry], duration_s=duration_s, seed=11, models=models))


def cv_of_gaps(asks: Sequence[Ask]) -> float:
    gaps = [later.at_ns - earlier.at_ns for earlier, later in pairwise(asks)]
    return pstdev(gaps) / fmean(gaps)


def counts_per(length_s: float, asks: Sequence[Ask], duration_s: float) -> list[int]:
    counts = Counter(int(ask.at_ns / 1e9 / length_s) for ask in asks)
    return [counts[index] for index in range(int(duration_s / length_s))]


def test_poisson_has_its_rate_and_memoryless_gaps() -> None:
    asks = play(Poisson(models="m*", slo_ms=1, rate_per_s=500), 40)
    assert len(asks) == pytest.approx(20_000, abs=4 * math.sqrt(20_000))
    assert cv_of_gaps(asks) == pytest.approx(1, abs=0.03)
    shares = Counter(ask.model for ask in asks)
    assert [shares[model] / len(asks) for model in MODELS] == pytest.approx([0.25] * 4, abs=0.015)


def test_skew_is_zipfs_exponent() -> None:
    asks = play(Poisson(models="m*", slo_ms=1, rate_per_s=500, skew=1), 40)
    shares = Counter(ask.model for ask in asks)
    expected = [12 / 25, 6 / 25, 4 / 25, 3 / 25]
    assert [shares[model] / len(asks) for model in MODELS] == pytest.approx(expected, abs=0.015)


def test_skew_shares_the_rate_of_bursts_too() -> None:
    for entry in (
        Gamma(models="m*", slo_ms=1, rate_per_s=500, cv=2, skew=1),
        OnOff(models="m*", slo_ms=1, rate_per_s=500, on_s=0.1, off_s=0.1, skew=1),
    ):
        asks = play(entry, 40)
        shares = Counter(ask.model for ask in asks)
        expected = [12 / 25, 6 / 25, 4 / 25, 3 / 25]
        assert [shares[m] / len(asks) for m in MODELS] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_gamma_has_its_rate_and_its_cv(cv: float) -> None:
    asks = play(Gamma(models="m0", slo_ms=1, rate_per_s=1000, cv=cv), 40)
    assert len(asks) == pytest.approx(40_000, abs=4 * cv * math.sqrt(40_000))
    assert cv_of_gaps(asks) == pytest.approx(cv, rel=0.06)


def test_gamma_is_in_its_steady_state_from_the_start() -> None:
    # Beginning with a whole gap would add (cv² - 1) / 2 = 7.5 requests to each stream.
    models = [f"m{i}" for i in range(2000)]
    asks = play(Gamma(models="m*", slo_ms=1, rate_per_s=2000, cv=4), 2, models)
    assert len(asks) == pytest.approx(4000, rel=0.15)


def test_each_models_own_gamma_gaps_have_the_cv() -> None:
    asks = play(Gamma(models="m*", slo_ms=1, rate_per_s=1000, cv=3), 40)
    for model in MODELS:
        assert cv_of_gaps([ask for ask in asks if ask.model == model]) == pytest.approx(3, rel=0.1)


def test_on_off_has_its_mean_rate_its_bursts_and_its_silences() -> None:
    entry = OnOff(models="m0", slo_ms=1, rate_per_s=500, on_s=0.5, off_s=1.5)
    asks = play(entry, 400)
    # About 200 bursts of 1,000: standard deviation of the total about 8 %.
    assert len(asks) == pytest.approx(200_000, rel=0.2)
    gaps_s = [(later.at_ns - earlier.at_ns) / 1e9 for earlier, later in pairwise(asks)]
    inside = [gap for gap in gaps_s if gap < 0.01]
    silences = [gap for gap in gaps_s if gap >= 0.01]
    assert fmean(inside) == pytest.approx(1 / 2000, rel=0.02)
    assert fmean(silences) == pytest.approx(1.5, rel=0.2)
    assert sum(inside) / len(silences) == pytest.approx(0.5, rel=0.2)


def test_on_off_is_in_its_steady_state_from_the_start() -> None:
    models = [f"m{i}" for i in range(1000)]
    entry = OnOff(models="m*", slo_ms=1, rate_per_s=20_000, on_s=1, off_s=3)
    per_tenth = counts_per(0.1, play(entry, 1, models), 1)
    assert all(count == pytest.approx(2000, rel=0.2) for count in per_tenth)


def test_diurnal_follows_its_sinusoid() -> None:
    entry = Diurnal(models="m*", slo_ms=1, rate_per_s=1000, amplitude=0.8, period_s=20)
    asks = play(entry, 40)
    assert len(asks) == pytest.approx(40_000, abs=4 * math.sqrt(40_000))
    for second, count in enumerate(counts_per(1, asks, 40)):
        expected = 1000 * (1 + 0.8 * math.sin(2 * math.pi * (second + 0.5) / 20))
        assert count == pytest.approx(expected, abs=5 * math.sqrt(expected) + 10)


def test_spread_asks_one_more_model_each_second_at_the_same_total_rate() -> None:
    asks = play(Spread(models="m*", slo_ms=100, rate_per_s=1000), 6)
    for second, count in enumerate(counts_per(1, asks, 6)):
        assert count == pytest.approx(1000, abs=4 * math.sqrt(1000))
        shares = Counter(ask.model for ask in asks if ask.at_ns // 1_000_000_000 == second)
        num_asked = min(4, second + 1)
        assert set(shares) == set(MODELS[:num_asked])
        for model in MODELS[:num_asked]:
            assert shares[model] == pytest.approx(count / num_asked, abs=100)
