"""The bound of a scenario's run, and the command that prints it."""

from pathlib import Path
from typing import Any

import pytest

from loadtest.bound.__main__ import main
from loadtest.bound.instance import batch_times
from loadtest.bound.of_case import asks_of, bound_of
from loadtest.profiles import linear
from loadtest.scenario import Case
from loadtest.scenario_setup import Crash, Devices, Models, Profile, Setup
from loadtest.simulate import run
from loadtest.workloads import Closed, Poisson, SloShare, WorkloadEntry

LINE = Profile(first_ms=4, each_ms=1, load_ms=10, weights_mb=60)  # 4 pages of 16 MiB
STEADY = Poisson(models="m*", slo_ms=30.0, rate_per_s=400.0, name="steady")
MIXED = Poisson(
    models="m*",
    slo_ms=(SloShare(slo_ms=10.0, weight=1.0), SloShare(slo_ms=30.0, weight=1.0)),
    rate_per_s=400.0,
)
CLIENTS = Closed(models="m0", slo_ms=50.0, clients=3, think_ms=2.0, name="clients")


def case(*workload: WorkloadEntry, seed: int = 1, num_models: int = 2, **options: Any) -> Case:
    options.setdefault("devices", (Devices(resident="fit"),))
    options.setdefault("duration_s", 1.0)
    setup = Setup(
        models=(Models(name="m", count=num_models, profile=LINE, max_batch=4),),
        workload=workload,
        **options,
    )
    return Case(scenario="test", setup=setup, seed=seed, duration_s=setup.duration_s)


def exec_ms(times: tuple[int, ...]) -> list[float]:
    return [time / 1e6 for time in times]


def test_batch_times_are_those_of_compiled_sizes_where_batches_are_padded() -> None:
    options: dict[str, Any] = {"first_ms": 4, "each_ms": 1, "load_ms": 10, "weights_mb": 60}
    padding = linear(**options, max_batch=4, runs_exact_batch=False)("m")
    assert exec_ms(batch_times(padding)) == [0, 4, 5, 7, 7]
    exact = linear(**options, max_batch=4, runs_exact_batch=True)("m")
    assert exec_ms(batch_times(exact)) == [0, 4, 5, 6, 7]


def test_no_run_passes_the_bound_of_its_requests() -> None:
    for entry in (STEADY, MIXED):
        overloaded = case(entry, warmup_s=0.25)
        played = run(overloaded)
        assert played.summary is not None
        bound = bound_of(overloaded)
        assert bound.is_whole
        assert bound.num_requests == played.summary.run.requests
        good = round(played.summary.run.goodput_per_s * 0.75)
        assert 0.5 * bound.most < good <= bound.most
        assert bound.found <= bound.most <= bound.num_requests
        assert bound.goodput_per_s == pytest.approx(bound.most / 0.75)
        assert bound.attainment == pytest.approx(bound.most / bound.num_requests)


def test_a_window_of_requests_says_that_it_is_one() -> None:
    part = bound_of(case(STEADY, warmup_s=0.25), max_requests=50)
    assert (part.num_requests, part.is_whole, part.from_s) == (50, False, 0.25)
    assert part.from_s < part.until_s < 0.6
    later = bound_of(case(STEADY, warmup_s=0.25), max_requests=50, from_s=0.5)
    assert later.from_s == 0.5
    first = asks_of(case(STEADY), begin_s=0.5, max_requests=50)[0][0]
    assert first.at_ns >= 500_000_000


def test_more_iterations_never_raise_the_bound() -> None:
    overloaded = case(STEADY)
    assert bound_of(overloaded, iterations=60).most <= bound_of(overloaded, iterations=5).most


def test_weights_that_do_not_fit_lower_it() -> None:
    roomy = bound_of(case(STEADY, num_models=40, devices=(Devices(pages=160),)))
    tight = bound_of(case(STEADY, num_models=40, devices=(Devices(pages=8),)), iterations=150)
    assert not roomy.counts_loads
    assert tight.counts_loads
    assert tight.gap is None
    # Two models are there, and one more every 10 ms: about a hundred requests, few in batches.
    assert tight.most < 0.75 * roomy.most


def test_a_device_that_is_down_serves_nothing() -> None:
    whole = bound_of(case(STEADY))
    down = Crash(worker=0, at_s=0.25, down_s=0.5)
    broken = bound_of(case(STEADY, faults=(down,)))
    assert 0.4 * whole.most < broken.most < 0.7 * whole.most
    assert broken.gap is None


def test_closed_loops_have_a_ceiling_beside_the_bound_of_the_others() -> None:
    closed = bound_of(case(CLIENTS))
    # A client is away for 2.2 ms between two executions. Pairs of 5 ms would leave the three
    # clients idle at times, threes (7 ms, padded to four rows) the device: x rows in pairs and y in
    # threes a second use up both, 2.5 x + 7 / 3 y = 1000 and 7.2 x + 9.2 y = 3000.
    assert closed.closed_per_s == pytest.approx(354.84 + 48.39, abs=0.01)
    assert (closed.num_requests, closed.attainment) == (0, None)
    assert closed.goodput_per_s == closed.closed_per_s
    both = bound_of(case(CLIENTS, STEADY))
    # A device does no more than 4 rows in 7 ms, for whomever.
    assert both.goodput_per_s == pytest.approx(4000 / 7, rel=1e-6)
    assert both.attainment is not None


SCENARIO = """
name: tiny
seeds: [1, 2]
policies: [remontoir, fifo]
variables: {slo_ms: [10, 30]}
duration_s: 1
models: [{name: m, count: 2, profile: {first_ms: 4, each_ms: 1, load_ms: 10, weights_mb: 60}}]
devices: [{resident: all, exec_noise: 0.01}]
workload:
  - {kind: poisson, models: "m*", slo_ms: "${slo_ms}", rate_per_s: 300}
  - {kind: closed-loop, models: m0, slo_ms: 50, clients: 2}
"""


def test_the_command_has_a_row_for_each_run_but_one_for_all_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(SCENARIO)
    main([str(path), "--window", "100", "--set", "slo_ms=10,20,30", "--iterations", "5"])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "(a part)" in line]
    assert len(rows) == 3 * 2
    assert "│ 20     │ 1    │      100 │" in printed
    assert "--window and --from-s choose" in printed
    assert "closed/s is their ceiling" in printed
    assert "Durations are the profiles' own" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "missing.yaml: No such file"),
        (["{path}", "--set", "speed=1"], "no variable 'speed'"),
        (["{path}", "--set", "slo_ms"], "--set takes NAME=VALUE"),
        (["{path}", "--window", "0"], "0 is less than 1"),
    ],
)
def test_what_was_asked_wrongly_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(SCENARIO)
    with pytest.raises(SystemExit) as ended:
        main([argument.format(path=path) for argument in arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
