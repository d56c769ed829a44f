"""What all workloads keep: order, seeds, the window of time, names of models, SLOs."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import msgspec
import pytest

from loadtest.workloads import (
    Ask,
    AzureFunctions,
    AzureLlm,
    Closed,
    Diurnal,
    Gamma,
    OnOff,
    OpenEntry,
    Poisson,
    ServeGen,
    SloShare,
    Spread,
    WorkloadEntry,
    closed_loops,
    open_loop,
)

MODELS = [f"resnet{i}" for i in range(8)]
FAST = Poisson(name="fast", models="resnet0", slo_ms=10, rate_per_s=100)
SLOW = Poisson(name="slow", models="resnet1", slo_ms=20, rate_per_s=10)

EVERY_KIND: dict[str, OpenEntry] = {
    "poisson": Poisson(models="resnet*", slo_ms=10, rate_per_s=300),
    "gamma": Gamma(models="resnet*", slo_ms=10, rate_per_s=300, cv=4),
    "on-off": OnOff(models="resnet*", slo_ms=10, rate_per_s=300, on_s=0.2, off_s=0.3),
    "diurnal": Diurnal(models="resnet*", slo_ms=10, rate_per_s=300, amplitude=0.5, period_s=2),
    "spread": Spread(models="resnet*", slo_ms=10, rate_per_s=300),
    "azure-functions": AzureFunctions(
        models="resnet*",
        slo_ms=10,
        file="azure2019_100fn_min480_959.csv.gz",
        scale_to_rate_per_s=300,
    ),
    "azure-llm": AzureLlm(
        models="resnet*", slo_ms=10, file="azure_llm2023_code.csv.gz", scale_to_rate_per_s=300
    ),
    "servegen": ServeGen(
        models="resnet*",
        slo_ms=10,
        file="servegen_mm_image_client_windows.csv.gz",
        scale_to_rate_per_s=300,
    ),
}


def play(
    *entries: WorkloadEntry,
    duration_s: float = 5,
    seed: int = 5,
    models: Sequence[str] | None = MODELS,
) -> list[Ask]:
    return list(open_loop(entries, duration_s=duration_s, seed=seed, models=models))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_same_seed_gives_the_same_requests_and_another_others(kind: str) -> None:
    entry = EVERY_KIND[kind]
    asks = play(entry)
    assert len(asks) > 100
    assert asks == play(entry)
    assert asks != play(entry, seed=6)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_stream_does_not_change_when_another_is_added(kind: str) -> None:
    entry = EVERY_KIND[kind]
    together = play(entry, FAST, EVERY_KIND["gamma"])
    assert [ask for ask in together if ask.stream == 0] == play(entry)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_named_stream_does_not_change_when_it_moves(kind: str) -> None:
    entry = msgspec.structs.replace(EVERY_KIND[kind], name="mine")
    moved = [ask for ask in play(FAST, entry) if ask.stream == 1]
    assert [ask._replace(stream=0) for ask in moved] == play(entry)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_requests_are_in_time_order_and_inside_their_window(kind: str) -> None:
    entry = msgspec.structs.replace(EVERY_KIND[kind], start_s=1.5, stop_s=4.0, tenant="t")
    asks = play(entry, FAST)
    assert asks == sorted(asks)
    mine = [ask for ask in asks if ask.stream == 0]
    assert mine[0].at_ns >= 1_500_000_000
    assert mine[-1].at_ns < 4_000_000_000
    assert {ask.tenant for ask in mine} == {"t"}
    assert {ask.slo_ns for ask in mine} == {10_000_000}
    assert {ask.model for ask in mine} <= set(MODELS)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_stream_is_the_same_from_another_start(kind: str) -> None:
    entry = EVERY_KIND[kind]
    later = play(msgspec.structs.replace(entry, start_s=1.0), duration_s=4)
    soon = play(entry, duration_s=3)
    assert [ask.model for ask in later] == [ask.model for ask in soon]
    # Within a nanosecond or two: instants are sums of seconds.
    assert all(
        abs(a.at_ns - 1_000_000_000 - b.at_ns) <= 2 for a, b in zip(later, soon, strict=True)
    )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_nothing_comes_of_a_stream_that_starts_after_the_run(kind: str) -> None:
    assert play(msgspec.structs.replace(EVERY_KIND[kind], start_s=5.0)) == []


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_mix_of_slos_leaves_the_arrivals_as_they_were(kind: str) -> None:
    entry = EVERY_KIND[kind]
    mix = (SloShare(slo_ms=10, weight=3), SloShare(slo_ms=40, weight=1))
    asks = play(msgspec.structs.replace(entry, slo_ms=mix))
    assert [(ask.at_ns, ask.model) for ask in asks] == [
        (ask.at_ns, ask.model) for ask in play(entry)
    ]
    slos = Counter(ask.slo_ns for ask in asks)
    assert set(slos) == {10_000_000, 40_000_000}
    assert slos[40_000_000] / len(asks) == pytest.approx(0.25, abs=0.05)


def test_a_mix_of_one_is_constant() -> None:
    entry = msgspec.structs.replace(FAST, slo_ms=(SloShare(slo_ms=2.5, weight=7),))
    assert {ask.slo_ns for ask in play(entry)} == {2_500_000}


def test_the_instants_of_a_seed_are_these() -> None:
    # Measurements of before are repeated with the instants of before.
    entry = Poisson(name="cnn", models="cnn", slo_ms=5, rate_per_s=97.3)
    asks = play(entry, duration_s=20, seed=7, models=None)
    assert [ask.at_ns for ask in asks[:4]] == [14737613, 18033776, 18455210, 19611321]
    assert len(asks) == 2042


def test_requests_are_made_when_they_are_asked_for() -> None:
    endless = open_loop([FAST, SLOW], duration_s=1e12, seed=1, models=MODELS)
    assert len(list(islice(endless, 1000))) == 1000


def test_a_glob_names_models_in_the_order_of_the_list() -> None:
    entry = Spread(models="net?", slo_ms=10, rate_per_s=200, step_s=2)
    asks = play(entry, duration_s=4, models=["net9", "other", "net1"])
    assert {ask.model for ask in asks if ask.at_ns < 2_000_000_000} == {"net9"}
    assert {ask.model for ask in asks} == {"net9", "net1"}


def test_a_name_is_a_name_even_where_it_reads_as_a_glob() -> None:
    entry = msgspec.structs.replace(FAST, models="a[1]")
    assert {ask.model for ask in play(entry, models=["a1", "a[1]"])} == {"a[1]"}
    assert {ask.model for ask in play(entry, models=None)} == {"a[1]"}


def test_a_glob_that_matches_nothing_is_refused_before_the_first_request() -> None:
    entry = msgspec.structs.replace(FAST, models="vgg*")
    with pytest.raises(
        ValueError, match=r"poisson 'fast': models 'vgg\*' matches none of 8: resnet0, "
    ):
        open_loop([entry], duration_s=1, seed=1, models=MODELS)


def test_equal_names_are_refused() -> None:
    with pytest.raises(ValueError, match="poisson 'fast': name 'fast' is given twice"):
        open_loop([FAST, FAST], duration_s=1, seed=1, models=MODELS)


def test_closed_loops_are_passed_over_and_open_loops_are_no_closed_loops() -> None:
    closed = Closed(models="resnet0", slo_ms=10)
    assert {ask.stream for ask in play(closed, FAST)} == {1}
    assert list(closed_loops([FAST, closed], duration_s=1, seed=1, models=MODELS)) == [1]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"rate_per_s": 0}, "poisson 'busy': rate_per_s 0.0 is not positive"),
        ({"rate_per_s": float("inf")}, "rate_per_s inf is no finite number"),
        ({"skew": -1}, "skew -1.0 is negative"),
        ({"skew": float("nan")}, "skew nan is no finite number"),
        ({"slo_ms": 0}, "slo_ms 0.0 is not positive"),
        ({"slo_ms": []}, "slo_ms is an empty mix"),
        ({"slo_ms": [{"slo_ms": 1, "weight": 0}]}, "weight 0.0 is not positive"),
        ({"start_s": -1}, "start_s -1.0 is negative"),
        ({"start_s": 2, "stop_s": 2}, "stop_s 2.0 is not after start_s 2.0"),
        ({"models": ""}, "poisson 'busy': models names nothing"),
        ({"cv": 4}, "unknown field `cv`"),
        ({"kind": "gamma"}, "missing required field `cv`"),
        ({"kind": "gamma", "cv": 0}, "gamma 'busy': cv 0.0 is not positive"),
        ({"kind": "on-off", "on_s": 1, "off_s": 0}, "off_s 0.0 is not positive"),
        ({"kind": "diurnal", "amplitude": 1.1, "period_s": 1}, "amplitude 1.1 is not in 0"),
        ({"kind": "diurnal", "amplitude": 1, "period_s": 0}, "period_s 0.0 is not positive"),
        ({"kind": "spread", "step_s": 0}, "step_s 0.0 is not positive"),
        ({"kind": "spread", "skew": 1}, "unknown field `skew`"),
        ({"kind": "uniform"}, "Invalid value 'uniform'"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(fields: dict[str, object], error: str) -> None:
    entry = {"kind": "poisson", "name": "busy", "models": "m", "slo_ms": 1, "rate_per_s": 1}
    with pytest.raises(msgspec.ValidationError, match=error):
        msgspec.convert({**entry, **fields}, WorkloadEntry)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"kind": "closed-loop", "clients": 0}, "closed-loop of 'm': clients 0 is not positive"),
        ({"kind": "closed-loop", "think_ms": 0}, "think_ms 0.0 is not positive"),
        ({"kind": "closed-loop", "requests": 0}, "requests 0 is not positive"),
        ({"kind": "closed-loop", "rate_per_s": 5}, "unknown field `rate_per_s`"),
        ({"kind": "azure-llm", "file": "f", "scale": 0}, "scale 0.0 is not positive"),
        ({"kind": "azure-llm", "file": "f", "skew": -1}, "skew -1.0 is negative"),
        (
            {"kind": "servegen", "file": "f", "scale": 2, "scale_to_rate_per_s": 5},
            "scale 2.0 stands beside scale_to_rate_per_s",
        ),
        ({"kind": "servegen", "file": "f", "window_s": 0}, "window_s 0.0 is not positive"),
        ({"kind": "azure-functions", "file": "f", "split": -1}, "split -1 is negative"),
        ({"kind": "azure-functions", "file": "f", "minute_s": 0}, "minute_s 0.0 is not"),
    ],
)
def test_so_is_one_without_a_rate(fields: dict[str, object], error: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=error):
        msgspec.convert({"models": "m", "slo_ms": 1, **fields}, WorkloadEntry)
