"""Plans of small workloads: of every kind of source, and what is said where there is none."""

import json
from pathlib import Path

import msgspec
import pytest

from loadtest.planning.peak import WARMUP_S, cheapest_ns, cut, demand_of, warmup_s_of
from loadtest.planning.plan import Limits, Plan, make_plan
from loadtest.planning.plan_command import main
from loadtest.planning.plan_report import percent
from loadtest.planning.question import Question, of_recording, of_scenario, of_trace
from loadtest.profiles import linear
from loadtest.scenario import ScenarioError
from loadtest.scenario_setup import Devices, Models, Profile
from tests.loadtest.recorded_day import day, written

LINE = Profile(first_ms=10, each_ms=10, load_ms=5, weights_mb=100)
SCENARIO = """
name: small
duration_s: 3
models:
  - {name: m, count: 4, profile: {first_ms: 10, each_ms: 10, load_ms: 5, weights_mb: 100}}
devices: [{pages: 100}]
workload:
  - {kind: poisson, models: "m*", slo_ms: "${slo}", rate_per_s: 150}
variables: {slo: [100, 200]}
"""


def trace(path: Path, rows: list[str], header: str = "at_s,model,slo_ms") -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def steady(path: Path, *, rate_per_s: int = 150, seconds: int = 3) -> str:
    """Evenly, of one model that does a hundred a second on a device."""
    rows = [f"{i / rate_per_s:.6f},m,100" for i in range(rate_per_s * seconds)]
    return trace(path, rows)


def question(path: str, **more: float) -> Question:
    return of_trace(
        path,
        models=[Models(name="m", profile=LINE)],
        slo_ms=None,
        policy=None,
        devices=Devices(pages=100),
        **more,  # type: ignore[arg-type]
    )


def test_a_steady_load_of_one_and_a_half_devices_needs_two(tmp_path: Path) -> None:
    plan = make_plan(question(steady(tmp_path / "t.csv")), target=0.99)
    assert plan.demand is not None
    assert plan.demand.played_load == pytest.approx(1.5, rel=0.01)
    assert (plan.sizes.devices, plan.sizes.fails) == (2, 1)
    assert plan.sizes.pages == 6  # 100 MB in pages of 16 MiB
    [one] = [point for point in plan.sizes.curve if point.devices == 1]
    assert one.attained == pytest.approx(0.67, abs=0.05)
    assert one.busy > 0.95


def test_the_same_plan_is_made_by_processes(tmp_path: Path) -> None:
    asked = question(steady(tmp_path / "t.csv", rate_per_s=50, seconds=2))
    here = make_plan(asked, target=0.99, seeds=(1, 2))
    there = make_plan(asked, target=0.99, seeds=(1, 2), limits=Limits(jobs=2))
    assert here.sizes.devices == there.sizes.devices == 1
    assert here.sizes.pages == there.sizes.pages
    assert here.sizes.curve[0].attained == there.sizes.curve[0].attained


def test_of_a_long_trace_the_busiest_stretch_is_played_with_a_warm_up(tmp_path: Path) -> None:
    rows = [f"{i / 10:.2f},m,100" for i in range(200)]
    rows += [f"{20 + i / 90:.4f},m,100" for i in range(360)]  # seconds 20 to 24
    rows += [f"{24 + i / 10:.2f},m,100" for i in range(100)]
    asked = question(trace(tmp_path / "t.csv", rows))
    demand = demand_of(asked, max_requests=365)
    assert (demand.begin_s, demand.end_s, demand.num_played) == (20.0, 24.0, 360)
    assert demand.num_requests == 660
    assert demand.peak_load == pytest.approx(0.9)
    assert not demand.is_whole
    assert warmup_s_of(demand) == WARMUP_S
    asks = list(cut(asked, demand, 1))
    assert len(asks) == 360 + 30
    assert asks[30].at_ns == pytest.approx(WARMUP_S * 1e9, abs=1e6)
    plan = make_plan(asked, target=0.99, limits=Limits(max_requests=365))
    assert any("busiest 4 s of 34 s" in sentence for sentence in plan.cannot_know)


def test_the_cheapest_batch_is_one_that_the_slo_allows() -> None:
    spec = linear(first_ms=10, each_ms=2, load_ms=1, weights_mb=1)("m")
    assert cheapest_ns(spec, 40_000_000) == 40_000_000 / 16
    assert cheapest_ns(spec, 13_000_000) == 12_000_000 / 2
    assert cheapest_ns(spec, 1_000_000) == 10_000_000  # none does: that of one


def test_a_scenario_is_planned_with_its_variables_chosen(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    with pytest.raises(ScenarioError, match="for one setting, these are 2"):
        of_scenario(str(path), values={}, policy=None)
    asked = of_scenario(str(path), values={"slo": [200]}, policy=None)
    plan = make_plan(asked, target=0.95)
    assert plan.sizes.devices == 2
    assert plan.weights_mb == 4 * 6 * 16


def test_a_recording_has_all_that_a_plan_needs(tmp_path: Path) -> None:
    path = tmp_path / "day.rec"
    written(path, day())
    asked = of_recording(str(path), catalogue=tmp_path / "c.json", slo_ms=None, policy=None)
    plan = make_plan(asked, target=0.5)
    assert plan.policy == "remontoir"
    assert plan.demand is not None
    assert plan.demand.num_requests > 5
    assert plan.sizes.devices is not None


def test_the_command_writes_curves_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = tmp_path / "c.json"
    maker = linear(first_ms=10, each_ms=10, load_ms=5, weights_mb=100)
    catalogue.write_bytes(msgspec.json.encode([maker("m")]))
    path = steady(tmp_path / "t.csv", rate_per_s=50, seconds=2)
    arguments = ["--trace", path, "--catalogue", str(catalogue), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "Plan: 1 device with 96 MiB of cache each attain 99.0%" in printed
    assert "What this cannot know:" in printed
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["plan.json", "plan.png", "plan.svg"]
    msgspec.json.decode((tmp_path / "out" / "plan.json").read_bytes(), type=Plan)
    with pytest.raises(SystemExit) as ended:
        main(
            [*arguments[:4], "--json", "--target", "1", "--max-devices", "1", "--rate-per-s", "900"]
        )
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["sizes"]["devices"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "what is to be planned for?"),
        (["--trace", "nowhere.csv", "--profile", "v100/resnet50_v2"], "cannot be read"),
        (["--trace", "{csv}"], "which models are asked?"),
        (["--trace", "{csv}", "--profile", "v100/resnet50_v3"], "near it: resnet50_v2"),
        (["--trace", "{csv}", "--profile", "v100/resnet50_v2"], "none of which is among"),
        (["--trace", "{bare}", "--profile", "v100/resnet50_v2"], "not all of its requests have"),
        (["--trace", "{odd}", "--profile", "v100/resnet50_v2"], "a trace has a column at_s"),
        (["--trace", "{csv}", "--target", "99"], "--target 99 is not in 0 ... 1"),
        (["--trace", "{csv}", "--max-devices", "0"], "--max-devices 0 is not positive"),
        (["--trace", "{csv}", "--policy", "best"], "no policy is called 'best'"),
        (["--trace", "{csv}", "--scale", "2", "--rate-per-s", "3"], "only one of them"),
        (["example", "--slo-ms", "3"], "--slo-ms: a scenario says that itself"),
        (["--trace", "{back}", "--profile", "v100/resnet50_v2"], "is before the 1 of the line"),
        (
            [
                "--trace",
                "{any}",
                "--slo-ms",
                "9",
                "--profile",
                "v100/resnet50_v2",
                "--device-mb",
                "64",
            ],
            "the largest model needs 112 MiB of weights, a device holds 64 MiB",
        ),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_in_a_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "csv": trace(tmp_path / "t.csv", ["0,m,10", "1,m,10"]),
        "bare": trace(tmp_path / "b.csv", ["0,m", "1,m"], "at_s,model"),
        "odd": trace(tmp_path / "o.csv", ["0,m"], "when,who"),
        "back": trace(tmp_path / "x.csv", ["1,m,10", "0,m,10"]),
        "any": trace(tmp_path / "a.csv", ["0", "1"], "at_s"),
    }
    with pytest.raises(SystemExit) as ended:
        main([text.format(**files) for text in arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_share_is_told_from_all() -> None:
    assert [percent(share) for share in (0, 0.5, 0.9996, 0.99999, 1)] == [
        "0.0%", "50.0%", "99.96%", "99.999%", "100.0%",
    ]  # fmt: skip
