"""A case from its workload to its tables, and the command around it."""

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from loadtest import simulate_command
from loadtest.bound.of_case import bound_of
from loadtest.bound_share import of_bound
from loadtest.results import OfBound, read
from loadtest.scenario import Case, ScenarioError, load
from loadtest.scenario_setup import Crash, Devices, Models, Profile, Setup, SpikeTimes
from loadtest.simulate import Run, run, window_of
from loadtest.simulate_command import main
from loadtest.simulate_table import Line, print_lines
from loadtest.workloads import Closed, Poisson, WorkloadEntry
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
)
from scheduler.spec import MILLISECOND_NS, SECOND_NS

LINE = Profile(first_ms=4, each_ms=1, load_ms=10, weights_mb=60)
STEADY = Poisson(models="m*", slo_ms=50.0, rate_per_s=200.0, name="steady")
CLIENTS = Closed(models="m*", slo_ms=50.0, clients=3, think_ms=2.0, name="clients")
ONE = ("--policy", "fifo", "--set", "slo_ms=40")  # run of the example
EXAMPLE = Path("loadtest/scenarios/example.yaml")


def case(
    *workload: WorkloadEntry,
    seed: int = 1,
    policy: str = "remontoir",
    num_devices: int = 1,
    **options: Any,
) -> Case:
    devices = Devices(count=num_devices, resident="all", exec_noise=0.02, jitter_ms=0.05)
    setup = Setup(
        duration_s=1.0,
        models=(Models(name="m", profile=LINE, count=2),),
        devices=(devices,),
        workload=workload,
        **options,
    )
    return Case(scenario="test", setup=setup, seed=seed, policy=policy, duration_s=1.0)


def test_a_run_answers_all_that_its_workload_asks() -> None:
    result = run(case(STEADY, CLIENTS, warmup_s=0.2))
    assert result.tables is not None
    assert result.summary is not None
    requests = result.tables.requests
    assert len(requests) == result.num_requests > 300
    assert not requests.has("outcome", "open").any()
    assert sorted(set(requests["stream"])) == [0, 1]
    assert sorted(set(requests.texts("model"))) == ["m0", "m1"]
    assert (requests["arrival_ns"] < SECOND_NS).all()
    assert (requests["slo_ns"] == 50 * MILLISECOND_NS).all()
    in_window = (requests["arrival_ns"] >= 0.2 * SECOND_NS).sum()
    assert result.summary.run.requests == in_window < result.num_requests
    assert result.summary.run.attainment is not None
    assert result.summary.run.attainment > 0.9
    assert result.summary.handle_us is not None
    assert result.num_events > 0
    assert 0 < result.handle_wall_ns < result.wall_ns
    assert result.anomalies == {}


def test_pages_and_lanes_are_looked_at_every_so_often() -> None:
    result = run(case(STEADY, sample_ms=250.0))
    assert result.tables is not None
    assert list(result.tables.devices["at_ns"] / 1e6) == [0, 250, 500, 750, 1000]
    assert set(result.tables.devices["pages_resident"]) == {8}


def test_a_run_says_which_it_is() -> None:
    meta = run(case(STEADY, seed=4, policy="fifo", warmup_s=0.5)).meta
    assert (meta.scenario, meta.policy, meta.seed, meta.case) == ("test", "fifo", 4, {})
    assert (meta.window_begin_ns, meta.window_end_ns) == (SECOND_NS // 2, SECOND_NS)
    assert window_of(case(STEADY)) == (0, SECOND_NS)


def test_clients_of_a_closed_loop_ask_again_when_their_answer_is_there() -> None:
    result = run(case(CLIENTS, client_delay_ms=1.0))
    assert result.tables is not None
    requests = result.tables.requests
    first, asked = 6, requests["arrival_ns"]
    assert (asked[:first] == MILLISECOND_NS).all()  # the way to the gateway
    # Each later request comes 2 ms of thinking and 1 ms of way after the answer at a client.
    answers = set((requests["answered_ns"] + 3 * MILLISECOND_NS).tolist())
    assert set(asked[first:].tolist()) <= answers
    assert len(requests) > 100


def log_of(of: Case) -> bytes:
    file = io.BytesIO()
    run(of, log=file)
    return file.getvalue()


def test_the_decision_log_is_the_same_to_the_byte_for_a_seed() -> None:
    log = log_of(case(STEADY, CLIENTS))
    assert log == log_of(case(STEADY, CLIENTS))
    assert log != log_of(case(STEADY, CLIENTS, seed=2))
    assert log != log_of(case(STEADY, CLIENTS, policy="fifo"))


def test_watching_does_not_change_what_is_decided() -> None:
    plain, watched = io.BytesIO(), io.BytesIO()
    run(case(STEADY, CLIENTS), log=plain, collects=False)
    instants: list[int] = []
    events: list[Event] = []
    run(
        case(STEADY, CLIENTS, sample_ms=10.0),
        log=watched,
        progress=instants.append,
        observer=lambda _now, event, _commands: events.append(event),
    )
    assert watched.getvalue() == plain.getvalue()
    assert instants == [i * 10 * MILLISECOND_NS for i in range(101)]
    assert len(events) == watched.getvalue().count(b"\n")


def test_a_line_of_the_log_is_an_event_and_what_was_decided() -> None:
    seen: list[tuple[int, Event, list[Command]]] = []
    file = io.BytesIO()
    of = case(STEADY, CLIENTS)
    run(of, log=file, observer=lambda now, event, commands: seen.append((now, event, commands)))
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert len(lines) == len(seen)
    assert lines[0][:2] == [0, "WorkerJoined"]
    assert lines[0][2]["worker_id"] == "w0"
    assert (lines[0][2]["num_models"], lines[0][2]["resident"]) == (2, ["m0", "m1"])
    for (at_ns, kind, _, commands), (now, event, decided) in zip(lines, seen, strict=True):
        assert (at_ns, kind) == (now, type(event).__name__)
        for line, command in zip(commands, decided, strict=True):
            if isinstance(command, Reply):
                assert line[:3] == ["Reply", command.request_id, type(command.outcome).__name__]
            else:
                assert line[:2] == ["Send", command.worker_id]
                assert line[2][1] == command.action.action_id
    kinds = {type(event) for _, event, _ in seen}
    assert {RequestArrived, RequestsArrived, ActionFinished} <= kinds


def test_outliers_are_counted_also_those_of_a_worker_that_is_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every twentieth execution on w0 takes 40 ms more, until it is lost; none on w1."""
    spikes = SpikeTimes(probability=0.05, min_ms=40.0, max_ms=40.0)
    setup = Setup(
        duration_s=4.0,
        models=(Models(name="m", profile=LINE),),
        devices=(Devices(resident="all", spikes=spikes), Devices(resident="all")),
        faults=(Crash(worker=0, at_s=3.0, detect_ms=10.0),),
        workload=(STEADY,),
    )
    played = run(Case(scenario="test", setup=setup, duration_s=4.0))
    assert played.summary is not None
    assert 0 < played.num_outliers == played.summary.outliers < 50
    calm = run(case(STEADY))
    assert calm.summary is not None
    assert calm.num_outliers == calm.summary.outliers == 0
    lines = [
        Line(case=of.case, summary=of.summary, num_requests=1, wall_us=1.0, anomalies={})
        for of in (played, calm)
        if of.summary is not None
    ]
    print_lines(Console(width=120), lines)
    first, second = capsys.readouterr().out.splitlines()[-3:-1]
    assert (first.split()[-1], second.split()[-1]) == (str(played.num_outliers), "0")
    print_lines(Console(width=120), lines[1:])
    assert "outliers" not in capsys.readouterr().out


def test_without_a_collector_only_the_work_is_counted() -> None:
    result = run(case(STEADY), collects=False)
    assert result.tables is None
    assert result.summary is None
    assert result.num_requests > 100


def test_no_answer_is_lost_when_a_worker_is() -> None:
    scenario = load(EXAMPLE)
    [of] = scenario.expand(policies=["remontoir"], variables={"slo_ms": [50]})
    lost: list[int] = []

    def watch(_now: int, event: Event, commands: list[Command]) -> None:
        if type(event).__name__ == "WorkerLost":
            lost.append(sum(isinstance(c, Reply) for c in commands))
        assert all(isinstance(c, Send | Reply) for c in commands)

    result = run(of, observer=watch)
    assert len(lost) == 1
    assert result.tables is not None
    assert not result.tables.requests.has("outcome", "open").any()
    workers = set(result.tables.requests.texts("worker"))
    assert {"w0", "w0.1"} <= workers


def share_of_bound(of: Run) -> float:
    found = of_bound(of)
    assert found is not None
    assert found.share is not None
    return found.share


def test_a_run_has_a_share_of_the_bound() -> None:
    easy = run(case(STEADY, warmup_s=0.2, client_delay_ms=0.5))
    assert easy.summary is not None
    assert easy.summary.run.attainment == share_of_bound(easy) == 1.0
    hard_workload = Poisson(models="m*", slo_ms=20.0, rate_per_s=2000.0)
    # The other of two devices is away the whole time, so half the rate is too much for the bound.
    away = (Crash(worker=1, at_s=0.0, detect_ms=0.0),)
    hard = run(case(hard_workload, faults=away, num_devices=2))
    assert hard.summary is not None
    assert hard.summary.run.attainment is not None
    assert hard.summary.run.attainment + 0.05 < share_of_bound(hard) <= 1.0
    assert of_bound(run(case(STEADY), collects=False)) is None


def test_the_share_is_of_what_remontoir_bound_says_where_weights_do_not_fit() -> None:
    """40 models of 4 pages each on a device with 20: a clairvoyant has to load them, too."""
    setup = Setup(
        duration_s=1.0,
        models=(Models(name="m", profile=LINE, count=40),),
        devices=(Devices(pages=20),),
        workload=(STEADY,),
    )
    played = run(Case(scenario="test", setup=setup, duration_s=1.0))
    bound = bound_of(played.case)
    assert bound.counts_loads
    assert bound.most < bound.num_requests
    assert played.summary is not None
    assert share_of_bound(played) == played.summary.run.good / bound.most


def test_closed_loops_have_a_share_of_the_goodput_that_they_can_have() -> None:
    clients = run(case(CLIENTS, warmup_s=0.2))
    both = run(case(CLIENTS, STEADY, warmup_s=0.2))
    for played in (clients, both):
        assert played.summary is not None
        ceiling_per_s = bound_of(played.case).goodput_per_s
        goodput_per_s = played.summary.run.goodput_per_s
        assert share_of_bound(played) == pytest.approx(goodput_per_s / ceiling_per_s)
        assert 0.5 < share_of_bound(played) < 1.05


def test_nothing_that_could_be_served_has_no_share() -> None:
    hopeless = Poisson(models="m*", slo_ms=1.0, rate_per_s=50.0)
    found = of_bound(run(case(hopeless)))
    assert found is not None
    assert (found.share, found.goodput_per_s) == (None, 0.0)


# ---------------------------------------------------------------------- the command


def test_the_example_runs_and_shows_a_row_per_run(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(EXAMPLE), "--duration-s", "1.5", "--seed", "1", "--seed", "2"])
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if "remontoir" in line or "fifo" in line]
    assert len(rows) == 8
    for heading in ("slo_ms", "goodput", "attained", "p99", "batch"):
        assert heading in text


def test_the_share_of_the_bound_is_a_column_when_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "open.yaml"
    path.write_text(
        "{name: open, duration_s: 1, models: [{name: m, profile: v100/resnet50_v2}],"
        " devices: [{resident: all}],"
        " workload: [{kind: poisson, models: m, slo_ms: 50, rate_per_s: 100}]}"
    )
    main([str(path), "--bound"])
    shown = capsys.readouterr().out
    assert "bound" in shown
    assert "With --bound" not in shown
    main([str(path), "--bound", "--out", str(tmp_path / "out"), "--plot"])
    assert "100.0%" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/policy=remontoir,seed=1/summary.json").read_bytes())
    assert summary["of_bound"]["share"] == 1.0
    assert "of bound (%)" in (tmp_path / "out/index.html").read_text("utf-8")
    main([str(path)])
    shown = capsys.readouterr().out
    assert "With --bound: the percentage of what any scheduler could have served." in shown
    assert shown.count("bound") == 1


def test_the_example_has_a_share_and_says_of_what(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(EXAMPLE), *ONE, "--duration-s", "1.2", "--bound"])
    shown = capsys.readouterr().out
    [row] = [line for line in shown.splitlines() if "fifo" in line]
    assert row.split()[-1].endswith("%")
    assert "of bound: with closed loops it is of the goodput that devices" in shown


def test_what_a_share_of_the_bound_is_not_of_is_said() -> None:
    screen = io.StringIO()
    played = run(case(Poisson(models="m*", slo_ms=1.0, rate_per_s=50.0)))
    assert played.summary is not None
    none = OfBound(share=None, goodput_per_s=0.0, from_s=0.0, until_s=0.5, is_whole=False)
    line = Line(
        case=played.case,
        summary=msgspec.structs.replace(played.summary, of_bound=none),
        num_requests=50,
        wall_us=1.0,
        anomalies={},
    )
    print_lines(Console(file=screen, width=120), [line], shows_bound=True)
    assert "of bound: over the first 20,000 counted requests of a run." in screen.getvalue()
    assert "-: nothing could have been served." in screen.getvalue()


def test_tables_are_written_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    only = ("--set", "slo_ms=40", "--policy", "remontoir", "--duration-s", "1.5")
    main(["example", *only, "--out", str(out), "--format", "sqlite"])
    folder = out / "slo_ms=40,policy=remontoir,seed=1"
    tables, meta = read(folder)
    assert meta.case == {"slo_ms": 40}
    assert len(tables.requests) > 100
    summary = json.loads((folder / "summary.json").read_bytes())
    assert summary["run"]["requests"] < len(tables.requests)
    assert str(folder) in capsys.readouterr().out.replace("\n", "")


def test_pictures_are_of_the_runs_of_this_call_and_older_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An --out that is there already: another format and length, then another setting."""
    only = ("example", "--policy", "fifo", "--out", str(tmp_path))
    main([*only, "--set", "slo_ms=40", "--duration-s", "1.5"])
    main([*only, "--set", "slo_ms=40", "--duration-s", "1.2", "--format", "sqlite", "--plot"])
    assert "other runs" not in capsys.readouterr().err
    tables, _ = read(tmp_path / "slo_ms=40,policy=fifo,seed=1")
    assert tables.requests["arrival_ns"].max() < 1.2 * SECOND_NS
    main([*only, "--set", "slo_ms=30", "--duration-s", "1.2", "--plot"])
    said = capsys.readouterr().err
    assert f"{tmp_path}: 6 pictures there of other runs: busy-lanes-fifo-slo_ms-40-seed-1" in said
    assert "slo_ms-30" not in said


def test_the_lanes_that_are_drawn_may_be_chosen(tmp_path: Path) -> None:
    main(["example", *ONE, "--duration-s", "1.2", "--out", str(tmp_path), "--plot"])
    assert "1000 to 1100 ms." in (tmp_path / "index.html").read_text("utf-8")
    chosen = ("--lanes", "0.5:0.75")
    main(["example", *ONE, "--duration-s", "1.2", "--out", str(tmp_path), "--plot", *chosen])
    assert "500 to 750 ms." in (tmp_path / "index.html").read_text("utf-8")


def test_a_narrow_terminal_cuts_no_figure() -> None:
    screen = io.StringIO()
    options = simulate_command._parser().parse_args([str(EXAMPLE), *ONE, "--duration-s", "1.2"])
    lines = simulate_command.simulate(options, Console(file=io.StringIO()))
    print_lines(Console(file=screen, width=80), lines)
    assert "…" not in screen.getvalue()
    assert f"{lines[0].summary.run.attainment:.3%}" in screen.getvalue()


def test_processes_give_the_rows_that_one_gives(capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*more: str) -> list[list[str]]:
        main([str(EXAMPLE), "--policy", "remontoir", "--duration-s", "1.2", *more])
        lines = [line for line in capsys.readouterr().out.splitlines() if "remontoir" in line]
        return [line.split()[:-1] for line in lines]  # the last column is wall time

    assert rows("--jobs", "2") == rows()


def test_the_log_of_one_run_goes_to_a_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    only = ("--set", "slo_ms=40", "--policy", "fifo", "--duration-s", "1.2")
    for path in (first, second):
        main([str(EXAMPLE), *only, "--log", str(path)])
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().count(b"\n") > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: No such file or directory"),
        ([str(EXAMPLE), "--set", "slo_ms"], "--set takes NAME=VALUE or NAME=VALUE,VALUE"),
        ([str(EXAMPLE), "--set", "slo_ms={"], "--set slo_ms: '{' is no value that YAML knows"),
        ([str(EXAMPLE), "--jobs", "0"], "--jobs 0: at least one run at a time"),
        ([str(EXAMPLE), "--set", "slo=3"], "no variable 'slo'; there are slo_ms"),
        ([str(EXAMPLE), "--policy", "best"], "no policy is called 'best'"),
        ([str(EXAMPLE), "--plot"], "--plot needs --out DIR"),
        ([str(EXAMPLE), "--lanes", "1:2"], "--lanes needs --plot"),
        ([str(EXAMPLE), "--lanes", "2:1"], "FROM:TO in seconds of the run, as in 3.9:4.3, not '2"),
        ([str(EXAMPLE), "--lanes", "2"], "FROM:TO in seconds of the run, as in 3.9:4.3, not '2'"),
        (
            [str(EXAMPLE), "--plot", "--out", "out", "--lanes", "5:6"],
            "--lanes begins at 5 s, slo_ms=25,policy=remontoir,seed=1 ends at 5 s",
        ),
        ([str(EXAMPLE), "--log", "x"], "--log takes one run, this is 4: choose with --policy"),
        ([str(EXAMPLE), "--out", "/dev/null/x"], "--out /dev/null/x: Not a directory"),
        ([str(EXAMPLE), *ONE, "--log", "/dev/null/x"], "--log /dev/null/x: Not a directory"),
        ([str(EXAMPLE), "--duration-s", "0.5"], "warmup_s 1 does not end before the run"),
    ],
)
def test_the_command_says_what_it_was_asked_wrongly(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("arguments", "library"),
    [(["--bound"], "numba"), (["--plot"], "matplotlib"), (["--out", "."], "pyarrow")],
)
def test_a_missing_library_is_named_before_anything_is_played(
    arguments: list[str], library: str
) -> None:
    options = simulate_command._parser().parse_args([str(EXAMPLE), *arguments])
    with pytest.raises(RuntimeError, match=rf' needs {library}: pip install "remontoir\[simulate'):
        simulate_command._check_leavings(options, find=lambda _: None)


def test_a_fault_after_the_end_of_a_run_is_spoken_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([str(EXAMPLE), *ONE, "--set", "slo_ms=30,40", "--duration-s", "3.5"])
    assert capsys.readouterr().err == (
        f"{EXAMPLE}: faults: the crash at 4 s comes after the end of the run, at 3.5 s\n"
    )
    main([str(EXAMPLE), *ONE])
    assert capsys.readouterr().err == ""


def test_what_cannot_be_built_is_refused_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(EXAMPLE.read_text("utf-8").replace("v100/resnet50_v2", "v100/resnet51"))
    options = simulate_command._parser().parse_args([str(path)])
    with pytest.raises(ScenarioError, match=r"wrong\.yaml: v100/resnet51 is not one of"):
        simulate_command.simulate(options, Console(stderr=True))


def test_a_bar_moves_over_the_virtual_seconds_of_all_runs() -> None:
    cases = load(EXAMPLE).expand(duration_s=1.5)[:2]
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with simulate_command._bar(console, cases) as report_of:
        for number in range(2):
            report = report_of(number)
            for at_ms in (0, 100, 1000, 1500):
                report(at_ms * MILLISECOND_NS)
    assert "3 of 3 virtual s" in screen.getvalue()
