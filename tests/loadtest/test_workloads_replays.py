"""Replays agree with their files: loadtest/data's, and small ones written here."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean, pstdev

import pytest

from loadtest.workloads import Ask, AzureFunctions, AzureLlm, OpenEntry, ServeGen, open_loop
from loadtest.workloads.replays import models_of_functions
from loadtest.workloads.trace_files import client_windows, gaps_s, minute_counts

HUNDRED = "azure2019_100fn_min480_959.csv.gz"
FIVE_HUNDRED = "azure2019_500fn_min480_959.csv.gz"
THOUSAND = "azure2019_1000fn_day_A.csv.gz"
CODE = "azure_llm2023_code.csv.gz"
IMAGES = "servegen_mm_image_client_windows.csv.gz"
DEEPSEEK = "servegen_deepseek_r1_client_windows.csv.gz"
MODELS = [f"m{i}" for i in range(12)]


def play(entry: OpenEntry, duration_s: float, models: Sequence[str] = MODELS) -> list[Ask]:
    return list(open_loop([entry], duration_s=duration_s, seed=11, models=models))


def near(expected: float) -> object:
    """A Poisson count of this mean, within five standard deviations."""
    return pytest.approx(expected, abs=5 * math.sqrt(expected))


def written(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_azure_totals_per_minute_are_the_files() -> None:
    asks = play(AzureFunctions(models="m*", slo_ms=1, file=FIVE_HUNDRED), 600)
    per_minute = Counter(ask.at_ns // 60_000_000_000 for ask in asks)
    functions = minute_counts(FIVE_HUNDRED)
    for minute in range(10):
        assert per_minute[minute] == near(sum(counts[minute] for counts in functions))


def test_azure_scale_multiplies_the_counts() -> None:
    asks = play(AzureFunctions(models="m*", slo_ms=1, file=HUNDRED, scale=20), 120)
    functions = minute_counts(HUNDRED)
    assert len(asks) == near(20 * sum(counts[0] + counts[1] for counts in functions))


def test_azure_can_be_scaled_to_the_mean_rate_of_what_is_replayed() -> None:
    for first_minute, minute_s in ((0, 60.0), (700, 0.1), (1439, 6.0)):
        entry = AzureFunctions(
            models="m*",
            slo_ms=1,
            file=THOUSAND,
            scale_to_rate_per_s=1000,
            first_minute=first_minute,
            minute_s=minute_s,
        )
        assert len(play(entry, 20)) == near(20_000)


def test_azure_gaps_go_on_from_one_minute_into_the_next() -> None:
    # One request a minute: gaps that began anew with each would be too few.
    entry = AzureFunctions(
        models="m*", slo_ms=1, file=HUNDRED, scale_to_rate_per_s=1000, minute_s=0.001
    )
    assert len(play(entry, 5)) == near(5000)


def test_azure_begins_at_a_minute_lasts_as_said_and_wraps_round(tmp_path: Path) -> None:
    file = written(tmp_path / "counts.csv", "HashFunction,1,2,3", "f,600,0,60000")
    entry = AzureFunctions(models="m*", slo_ms=1, file=file, first_minute=1, minute_s=2)
    per_minute = Counter(ask.at_ns // 2_000_000_000 for ask in play(entry, 10))
    assert [per_minute[i] for i in range(5)] == [0, near(2000), near(20), 0, near(2000)]


def test_azure_functions_in_a_row_by_load_share_a_model_as_clockwork_had_it() -> None:
    homes = models_of_functions(10, ["a", "b", "c", "d"], 0, Random(1))
    assert [home for (home,) in homes] == [
        *([homes[0][0]] * 3),
        *([homes[3][0]] * 2),
        *([homes[5][0]] * 3),
        *([homes[8][0]] * 2),
    ]
    assert {home for (home,) in homes} == {"a", "b", "c", "d"}
    assert homes != models_of_functions(10, ["a", "b", "c", "d"], 0, Random(2))


def test_azure_functions_are_in_the_order_of_their_load(tmp_path: Path) -> None:
    rows = ("a,1,2", "b,600,0", "c,30,40", "d,500,200")
    file = written(tmp_path / "counts.csv", "HashFunction,1,2", *rows)
    assert [sum(counts) for counts in minute_counts(file)] == [700, 600, 70, 3]
    # So the first two share a model, and the last two.
    asks = play(AzureFunctions(models="m*", slo_ms=1, file=file), 120, ["m0", "m1"])
    assert sorted(Counter(ask.model for ask in asks).values()) == [near(73), near(1300)]


def test_servegen_clients_take_turns_on_the_models_by_their_load(tmp_path: Path) -> None:
    header = "client,window_start_s,rate_rps,iat_cv,iat_family,param1,param2"
    rows = [f"{rate},0,{rate},1,Exponential,1,1" for rate in (1, 100, 10, 1000)]
    file = written(tmp_path / "windows.csv", header, *rows)
    asks = play(ServeGen(models="m*", slo_ms=1, file=file), 10, ["m0", "m1"])
    assert sorted(Counter(ask.model for ask in asks).values()) == [near(1010), near(10_100)]


def test_azure_split_four_gives_a_function_four_or_five_models_of_its_own() -> None:
    models = [f"r{i}" for i in range(4026)]
    homes = models_of_functions(1000, models, 4, Random(1))
    assert Counter(map(len, homes)) == {4: 974, 5: 26}
    assert sorted(model for home in homes for model in home) == sorted(models)


@pytest.mark.parametrize(("num_models", "sizes"), [(10, {4}), (900, {5}), (3, {3})])
def test_azure_split_holds_with_fewer_and_more_models(num_models: int, sizes: set[int]) -> None:
    models = [f"r{i}" for i in range(num_models)]
    assert {len(home) for home in models_of_functions(100, models, 4, Random(1))} == sizes


def test_azure_a_function_asks_its_models_evenly_and_no_other(tmp_path: Path) -> None:
    file = written(tmp_path / "counts.csv", "HashFunction,1", "big,60000", "small,6000")
    asks = play(AzureFunctions(models="m*", slo_ms=1, file=file, split=4), 20)
    counts = sorted(Counter(ask.model for ask in asks).values())
    # Split between 4 and 5 models: 12 models for 2 functions are more than 5 each.
    assert counts == [near(400)] * 5 + [near(4000)] * 5


def test_llm_gaps_are_the_files_from_the_first_row_on() -> None:
    asks = play(AzureLlm(models="m*", slo_ms=1, file=CODE), 60)
    # 18:17:03.9799600, 18:17:04.0319600, 18:17:04.0781490
    assert [ask.at_ns for ask in asks[:3]] == [
        0,
        pytest.approx(52e6, abs=2),
        pytest.approx(98_189_000, abs=2),
    ]
    gaps = gaps_s(CODE)
    assert [(b.at_ns - a.at_ns) / 1e9 for a, b in pairwise(asks)] == pytest.approx(
        gaps[: len(asks) - 1], abs=1e-8
    )
    assert len({ask.model for ask in asks}) == 12


def test_llm_is_scaled_in_time_and_wraps_round() -> None:
    num_rows = len(gaps_s(CODE))
    assert num_rows == 8819
    asks = play(AzureLlm(models="m*", slo_ms=1, file=CODE, scale_to_rate_per_s=num_rows), 2)
    assert len(asks) == pytest.approx(2 * num_rows, abs=1)
    assert asks[num_rows].at_ns == pytest.approx(1_000_000_000, abs=10)
    gaps = [b.at_ns - a.at_ns for a, b in pairwise(asks)]
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(13.15, rel=0.01)
    doubled = play(AzureLlm(models="m*", slo_ms=1, file=CODE, scale=2), 60)
    plain = play(AzureLlm(models="m*", slo_ms=1, file=CODE), 120)
    assert len(doubled) == len(plain)


def test_servegen_windows_have_their_rates() -> None:
    clients = client_windows(IMAGES)
    assert len(clients) == 35
    asks = play(ServeGen(models="m*", slo_ms=1, file=IMAGES, scale=20, window_s=60), 600)
    for hundred in range(10):
        expected = 20 * 60 * sum(w[hundred].rate_per_s for w in clients if hundred in w)
        count = sum(1 for ask in asks if ask.at_ns // 60_000_000_000 == hundred)
        assert count == pytest.approx(expected, rel=0.1)


def test_servegen_is_scaled_to_the_mean_rate_of_what_is_replayed() -> None:
    entry = ServeGen(models="m*", slo_ms=1, file=DEEPSEEK, scale_to_rate_per_s=1000, window_s=1)
    assert len(play(entry, 40)) == pytest.approx(40_000, rel=0.03)


def test_servegen_gaps_go_on_from_one_window_into_the_next(tmp_path: Path) -> None:
    header = "client,window_start_s,rate_rps,iat_cv,iat_family,param1,param2"
    rows = [f"a,{600 * i},{100 + i},1,Gamma,1,1" for i in range(50)]
    file = written(tmp_path / "windows.csv", header, *rows)
    entry = ServeGen(models="m*", slo_ms=1, file=file, scale_to_rate_per_s=1000, window_s=0.001)
    assert len(play(entry, 5)) == near(5000)


@pytest.mark.parametrize(
    ("family", "shape", "cv"),
    [
        ("Gamma", 0.25, 2.0),
        ("Gamma", 4.0, 0.5),
        ("Weibull", 0.5, math.sqrt(5)),
        ("Weibull", 1.0, 1.0),
        ("Exponential", 9.0, 1.0),
    ],
)
def test_servegen_gaps_have_the_windows_rate_and_distribution(
    tmp_path: Path, family: str, shape: float, cv: float
) -> None:
    header = "client,window_start_s,rate_rps,iat_cv,iat_family,param1,param2"
    rows = [f"0,{600 * i},{rate},0,{family},{shape},0" for i, rate in enumerate((100, 300))]
    file = written(tmp_path / "windows.csv", header, *rows)
    asks = play(ServeGen(models="m*", slo_ms=1, file=file, window_s=200), 400)
    assert len({ask.model for ask in asks}) == 1
    halves = [ask for ask in asks if ask.at_ns < 200e9], [ask for ask in asks if ask.at_ns >= 200e9]
    for half, rate_per_s in zip(halves, (100, 300), strict=True):
        gaps = [b.at_ns - a.at_ns for a, b in pairwise(half)]
        assert fmean(gaps) == pytest.approx(1e9 / rate_per_s, rel=0.06)
        assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.07)


def test_servegen_is_silent_in_windows_that_the_file_leaves_out(tmp_path: Path) -> None:
    header = "client,window_start_s,rate_rps,iat_cv,iat_family,param1,param2"
    rows = ("a,600,50,1,Weibull,1,1", "b,1800,1,1,Gamma,1,1")
    file = written(tmp_path / "windows.csv", header, *rows)
    asks = play(ServeGen(models="m*", slo_ms=1, file=file, window_s=10), 50)
    of_a = Counter(ask.at_ns // 10_000_000_000 for ask in asks if ask.model == asks[0].model)
    # Four windows, then round again: 600 s is the second.
    assert of_a == {1: near(500)}
    assert len({ask.model for ask in asks}) == 2


def test_servegen_is_in_its_steady_state_from_the_start(tmp_path: Path) -> None:
    header = "client,window_start_s,rate_rps,iat_cv,iat_family,param1,param2"
    for family, shape in (("Gamma", 0.1), ("Weibull", 0.4)):
        rows = [f"{client},0,1,0,{family},{shape},0" for client in range(2000)]
        file = written(tmp_path / f"{family}.csv", header, *rows)
        assert len(play(ServeGen(models="m*", slo_ms=1, file=file), 2)) == pytest.approx(
            4000, rel=0.15
        )


def test_every_file_of_the_package_is_read_whole() -> None:
    assert sum(map(sum, minute_counts(HUNDRED))) == 339_657
    assert sum(map(sum, minute_counts(FIVE_HUNDRED))) == 3_037_902
    assert sum(map(sum, minute_counts(THOUSAND))) == 11_639_447
    assert [len(minute_counts(file)[0]) for file in (HUNDRED, THOUSAND)] == [480, 1440]
    assert sum(map(len, client_windows(IMAGES))) == 2094
    assert sum(map(len, client_windows(DEEPSEEK))) == 3111


AZURE = AzureFunctions(name="az", models="m*", slo_ms=1, file=HUNDRED)
GENERATED = ServeGen(name="sg", models="m*", slo_ms=1, file=IMAGES)
CODES = AzureLlm(name="llm", models="m*", slo_ms=1, file=CODE)


@pytest.mark.parametrize(
    ("entry", "lines", "error"),
    [
        (AZURE, ["F,1", "f,many"], "azure-functions 'az': file .*bad.csv, line 2: .*'many'"),
        (AZURE, ["F,1,2", "f,1,2", "g,1"], "azure-functions 'az': file .*, line 3"),
        (AZURE, ["F,one", "f,1"], "has no function with minutes"),
        (AZURE, ["F,1"], "has no function with minutes"),
        (CODES, ["T", "1"], "azure-llm 'llm': file .*line 2: no TIMESTAMP"),
        (CODES, ["TIMESTAMP", "2023-01-01 00:00:00"], "no two rows of different times"),
        (
            CODES,
            ["TIMESTAMP", "2023-01-01 00:00:01.5", "2023-01-01 00:00:01.4999999"],
            "line 3: 2023-01-01 00:00:01.4999999 is before",
        ),
        (GENERATED, ["client", "a"], "servegen 'sg': file .*, line 2: .*iat_family"),
        (GENERATED, ["client,window_start_s"], "has no client"),
        (
            GENERATED,
            ["client,window_start_s,rate_rps,iat_family,param1", "a,0,1,Pareto,1"],
            "iat_family Pareto is not",
        ),
        (
            GENERATED,
            ["client,window_start_s,rate_rps,iat_family,param1", "a,0,1,Gamma,0"],
            "param1 0.0 are not both positive",
        ),
    ],
)
def test_a_file_that_is_no_trace_is_refused_before_the_first_request(
    tmp_path: Path, entry: OpenEntry, lines: list[str], error: str
) -> None:
    file = written(tmp_path / "bad.csv", *lines)
    bad = type(entry)(name=entry.name, models="m*", slo_ms=1, file=file)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=error):
        open_loop([bad], duration_s=1, seed=1, models=MODELS)


def test_a_file_that_is_not_there_is_named_with_those_that_are() -> None:
    entry = AzureLlm(models="m*", slo_ms=1, file="azure_llm2024.csv")
    with pytest.raises(ValueError, match=r"file azure_llm2024.csv is not .*, azure_llm2023_code"):
        open_loop([entry], duration_s=1, seed=1, models=MODELS)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(b"\x1f\x8b")
    entry = AzureLlm(models="m*", slo_ms=1, file=str(path))
    with pytest.raises(ValueError, match=r"cut\.csv\.gz cannot be read"):
        open_loop([entry], duration_s=1, seed=1, models=MODELS)


def test_minutes_that_are_not_in_the_file_or_empty_are_refused(tmp_path: Path) -> None:
    beyond = AzureFunctions(models="m*", slo_ms=1, file=HUNDRED, first_minute=480)
    with pytest.raises(ValueError, match="first_minute 480 is not among 480 minutes"):
        open_loop([beyond], duration_s=1, seed=1, models=MODELS)
    file = written(tmp_path / "counts.csv", "HashFunction,1,2", "f,0,5")
    empty = AzureFunctions(models="m*", slo_ms=1, file=file, scale_to_rate_per_s=5)
    with pytest.raises(ValueError, match=r"no request in the 30.0 s that are replayed"):
        open_loop([empty], duration_s=30, seed=1, models=MODELS)
