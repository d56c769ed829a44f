"""Searches over a space whose scores are known; configurations of a host; probes."""

import json
import random
import sys
from pathlib import Path

import pytest

from loadtest.planning.peak import cut, demand_of
from loadtest.planning.plan import shortened
from loadtest.planning.question import of_trace
from loadtest.planning.region_search import (
    ROUND,
    STRATEGIES,
    Config,
    Space,
    best_of,
    cost_to_reach,
)
from loadtest.planning.tune_command import main
from loadtest.planning.tuning import Host, Probe, Simulated, space_of
from loadtest.profiles import linear
from loadtest.scenario_setup import Devices, Models, Profile

SPACE = Space(
    {"workers": tuple(range(12)), "batch": tuple(range(12)), "policy": ("good", "bad", "worse")}
)


def hill(config: Config, share: float) -> float:
    """A broad hill around (9, 3) with the good policy; few requests say almost as much."""
    workers, batch, policy = config
    lost = {"good": 0.0, "bad": 0.15, "worse": 0.3}[str(policy)]
    away = abs(int(workers) - 9) + abs(int(batch) - 3)
    wrong = 0.01 * ((int(workers) * 7 + int(batch) * 3) % 5 - 2) * (1 - share)
    return max(0.0, 1 - 0.04 * away - lost) + wrong


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_finds_the_best_at_last_and_counts_what_it_costs(name: str) -> None:
    tried = list(STRATEGIES[name](SPACE, hill, random.Random(1)))
    best = best_of(tried)
    assert best is not None
    if name == "halving":  # it may have sorted it out
        assert best.score > 0.9
    else:
        assert best.config == (9, 3, "good")
    if name in ("grid", "random"):
        assert tried[-1].cost == len(SPACE.configs)
    assert {t.config for t in tried} == set(SPACE.configs)
    assert tried[-1].cost == pytest.approx(sum(t.share for t in tried))


def test_neighbours_scores_save_most_of_the_evaluations() -> None:
    def mean_cost(name: str) -> float:
        costs = [
            cost_to_reach(STRATEGIES[name](SPACE, hill, random.Random(seed)), 0.94)
            for seed in range(20)
        ]
        return sum(costs) / len(costs)

    assert mean_cost("region") < mean_cost("random") / 3
    assert mean_cost("region") < mean_cost("halving")


def test_what_the_first_requests_have_lied_about_is_found_all_the_same() -> None:
    def lying(config: Config, share: float) -> float:
        return 0.3 if config == (9, 3, "good") and share < 1 else hill(config, share)

    tried = list(STRATEGIES["region"](SPACE, lying, random.Random(1)))
    best = best_of(tried)
    assert best is not None
    assert best.config == (9, 3, "good")
    assert sum(t.share == 1.0 for t in tried) == len(SPACE.configs)  # none twice, none left out


def test_the_same_seed_tries_the_same() -> None:
    runs = [list(STRATEGIES["region"](SPACE, hill, random.Random(7))) for _ in range(2)]
    assert runs[0] == runs[1]
    assert [t.share for t in runs[0][:ROUND]] == [1 / 9] * ROUND


def test_a_space_has_no_more_cores_than_the_host() -> None:
    space = space_of(Host(cores=8, weights_mb=100), batches=(1, 4), policies=("edf",))
    pairs = {(w, t) for w, t, _, _ in space.configs}
    assert all(int(w) * int(t) <= 8 for w, t in pairs)
    assert {(1, 8), (2, 4), (3, 2), (6, 1), (8, 1)} <= pairs
    apart = space.distances[space.configs.index((1, 1, 1, "edf"))]
    assert apart[space.configs.index((1, 1, 1, "edf"))] == 0
    assert apart[space.configs.index((1, 1, 4, "edf"))] == 1
    with pytest.raises(ValueError, match="no configuration"):
        space_of(Host(cores=2, weights_mb=1), workers=(4,))


def test_threads_shorten_an_execution_by_the_share_that_they_have() -> None:
    spec = linear(first_ms=100, each_ms=10, load_ms=1, weights_mb=1)("m")
    host = Host(cores=4, weights_mb=1, parallel_share=0.8)
    [two] = host.models([spec], threads=2, max_batch=4)
    assert two.batch_sizes == (1, 2, 4)
    assert two.profile.shapes[0].exec_ns == {1: 60_000_000, 2: 66_000_000, 4: 78_000_000}
    measured = linear(first_ms=70, each_ms=7, load_ms=1, weights_mb=1)("m")
    [own] = Host(cores=4, weights_mb=1, measured={2: [measured]}).models([spec], 2, 1)
    assert own.profile.shapes[0].exec_ns == {1: 70_000_000}


def test_a_simulated_host_prefers_what_its_load_needs(tmp_path: Path) -> None:
    """Thirty a second of 50 ms each are too much for one worker, alone or with threads that do not
    help; two do it, and so does one with batches.
    """
    trace = tmp_path / "t.csv"
    trace.write_text("at_s,model,slo_ms\n" + "".join(f"{i / 30:.4f},m,300\n" for i in range(90)))
    asked = of_trace(
        str(trace),
        models=[
            Models(name="m", profile=Profile(first_ms=50, each_ms=5, load_ms=5, weights_mb=50))
        ],
        slo_ms=None,
        policy=None,
        devices=Devices(pages=100),
    )
    demand = demand_of(asked, max_requests=1000)
    score = Simulated(
        shortened(asked, demand),
        {1: list(cut(asked, demand, 1))},
        Host(cores=4, weights_mb=1600, parallel_share=0.0),
        tmp_path,
    )
    assert score((1, 1, 1, "remontoir"), 1.0) < 0.8
    assert score((1, 4, 1, "remontoir"), 1.0) == score((1, 1, 1, "remontoir"), 1.0)
    assert score((2, 1, 1, "remontoir"), 1.0) > 0.97
    assert score((1, 1, 16, "remontoir"), 1.0) > 0.97
    assert score((1, 1, 16, "remontoir"), 1 / 3) > 0.9
    assert score.num_played == 5  # what was asked twice was played once


def test_a_probe_is_told_the_configuration_and_says_a_score() -> None:
    words = (
        "import os; e = os.environ; print('measuring'); "
        "print(int(e['TUNE_WORKERS']) * 2 + float(e['TUNE_SHARE']))"
    )
    probe = Probe(f'{sys.executable} -c "{words}"', ("workers", "policy"))
    assert probe((3, "edf"), 1.0) == 7.0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("exit 3", "ended with 3 for {'workers': 1}"),
        ("echo fast", "its last line is no number: 'fast'"),
        ("true", "its last line is no number: ''"),
        ("echo nan", "no number: 'nan'"),
    ],
)
def test_a_probe_that_does_not_say_a_number_is_named(command: str, words: str) -> None:
    with pytest.raises(RuntimeError) as refused:
        Probe(command, ("workers",))((1,), 1.0)
    assert words in str(refused.value)


def tuned(
    arguments: list[str], capsys: pytest.CaptureFixture[str], *, code: int | None = None
) -> str:
    """What the command prints; with a code, what it says on stderr as it ends."""
    if code is None:
        main(arguments)
        return capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    return capsys.readouterr().err


def test_the_command_tries_a_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("at_s\n" + "".join(f"{i / 1200:.5f}\n" for i in range(1200)))
    printed = tuned(
        [
            "--trace", str(trace), "--slo-ms", "30", "--profile", "v100/resnet50_v2",
            "--cores", "2", "--threads", "1", "--batches", "1,8", "--policy", "remontoir",
            "--search", "grid", "--json",
        ],
        capsys,
    )  # fmt: skip
    rows = json.loads(printed)
    assert len(rows) == 4
    assert (rows[0]["workers"], rows[0]["max_batch"]) == (2, 8)
    assert rows[0]["score"] > rows[-1]["score"]
    assert (rows[-1]["workers"], rows[-1]["max_batch"]) == (1, 1)


def test_a_ninth_of_the_requests_is_of_those_that_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The busiest stretch of a trace begins late in it: what comes before is no part of a rung."""
    trace = tmp_path / "t.csv"
    times = [i / 50 for i in range(400)] + [8 + i / 200 for i in range(400)]
    trace.write_text("at_s\n" + "".join(f"{at_s:.4f}\n" for at_s in times))
    printed = tuned(
        [
            "--trace", str(trace), "--slo-ms", "100", "--profile", "v100/resnet50_v2",
            "--max-requests", "401", "--cores", "4", "--policy", "remontoir", "--json",
            "--evaluations", "3",
        ],
        capsys,
    )  # fmt: skip
    rows = json.loads(printed)
    assert any(row["share"] < 1 for row in rows)
    assert min(row["score"] for row in rows) > 0.9  # a device does it; none can score nothing


def test_the_command_asks_a_probe(capsys: pytest.CaptureFixture[str]) -> None:
    probe = "echo $((TUNE_WORKERS * 10 - TUNE_MAX_BATCH))"
    arguments = ["--probe", probe, "--cores", "2", "--threads", "1", "--policy", "edf"]
    printed = tuned([*arguments, "--batches", "1,4", "--evaluations", "50"], capsys)
    assert "4 of 4 configurations were tried" in printed
    first = next(line for line in printed.splitlines() if " edf " in line)
    assert first.split() == ["2", "1", "1", "edf", "19", "100%"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cores", "0"], "--cores 0 is not positive"),
        (["--workers", "2,x"], "--workers takes numbers from 1 on, as in 1,2,4; not '2,x'"),
        (["--parallel-share", "2"], "--parallel-share 2 is not in 0 ... 1"),
        (["--policy", "best"], "no policy is called 'best'"),
        (["--measured", "two=x.json"], "--measured takes THREADS=FILE, not 'two=x.json'"),
        (["--measured", "2=nowhere.json"], "--measured nowhere.json: No such file"),
        (["--probe", "true", "--trace", "t.csv"], "t.csv would not be looked at"),
        (["example", "--set", "slo_ms=25"], "tune needs open ones"),
        (["--cores", "2", "--workers", "4", "example"], "no configuration is left"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_a_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tuned(arguments, capsys, code=2)
    assert words in said
    assert said.count("\n") == 1
