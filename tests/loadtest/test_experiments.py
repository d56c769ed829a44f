"""The experiments' own code: which jobs, which records, which words. No scenario is played long."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from loadtest.experiments import azure, azure_load, compared
from loadtest.experiments.__main__ import main
from loadtest.experiments.beaten import beaten_text
from loadtest.experiments.jobs import Job, Length, Record, bounds, cases, runs, shortened
from loadtest.experiments.pace import Pace
from loadtest.experiments.page import Section, table_text
from loadtest.experiments.perform import perform
from loadtest.experiments.records import (
    Records,
    attainment,
    bound_attainment,
    share_of_bound,
    spread,
    text_of,
)
from loadtest.experiments.registry import EXPERIMENTS, find
from loadtest.experiments.report import write_report
from loadtest.results import Group, Table, Tables
from loadtest.scenario import Case, Value
from loadtest.stage import models_of
from loadtest.workloads import open_loop


def a_group(good: int, asked: int) -> Group:
    return Group(
        name="run",
        requests=asked,
        good=good,
        late=0,
        rejected=asked - good,
        expired=0,
        failed=0,
        cancelled=0,
        open=0,
        goodput_per_s=float(good),
        attainment=good / asked,
        latency_p50_ms=5.0,
        latency_p99_ms=9.0,
        latency_p999_ms=9.5,
        refusal_p50_ms=None,
        refusal_p99_ms=None,
        mean_batch=2.0,
        cold=0,
        reasons={},
    )


def a_record(
    scenario: str = "63-how-low",
    *,
    policy: str = "remontoir",
    seed: int = 1,
    good: int = 90,
    asked: int = 100,
    kind: str = "run",
    figures: dict[str, float] | None = None,
    **values: Value,
) -> Record:
    return Record(
        experiment="6.3",
        kind=kind,  # type: ignore[arg-type]
        scenario=scenario,
        policy=policy,
        seed=seed,
        values=values,
        warmup_s=1.0,
        duration_s=9.0,
        core="pure Python core",
        wall_s=2.0,
        cpu_s=2.0,
        group=a_group(good, asked) if kind == "run" else None,
        figures=figures or {},
    )


def a_case(**values: Value) -> Case:
    [case] = cases(
        "63-how-low",
        Length.QUICK,
        policies=["remontoir"],
        variables={
            "num_models": [12],
            "rate_per_s": [600],
            "slo_ms": [22.022],
            **{name: [value] for name, value in values.items()},
        },
    )
    return case


def a_section(tmp_path: Path) -> Section:
    return Section("6.3", "Title", page_dir=tmp_path, pictures="page", runs_dir=tmp_path / "runs")


# --- what is played


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.number)
def test_every_experiment_has_ours_at_three_seeds_and_other_policies(experiment):  # type: ignore[no-untyped-def]
    jobs = experiment.jobs(Length.DEFAULT)
    runs_of_ours = [j for j in jobs if j.kind != "bound" and j.case.policy == "remontoir"]
    if experiment.number != "6.6":
        others = {j.case.policy.split(":")[0] for j in jobs if j.kind == "run"} - {"remontoir"}
        assert "clockwork" in others
    assert {job.case.seed for job in runs_of_ours} == {1, 2, 3}
    assert len({job.stem for job in jobs}) == len(jobs)


def test_a_quick_run_is_one_seed_and_a_part_of_the_time():
    whole = cases("80-mixed-sizes", Length.DEFAULT)
    quick = cases("80-mixed-sizes", Length.QUICK)
    assert {case.seed for case in quick} == {1}
    assert quick[0].duration_s < whole[0].duration_s
    assert quick[0].setup.warmup_s < quick[0].duration_s


def test_a_run_of_two_seconds_is_shortened_to_one_after_as_much_warm_up():
    case = shortened(a_case())
    assert case.duration_s - case.setup.warmup_s == pytest.approx(1.0)
    assert case.setup.warmup_s <= 1.0


def test_bounds_are_one_for_each_setting_whatever_the_policy():
    played = cases("85-noise", Length.DEFAULT)
    assert len(played) > 50
    [job] = bounds("8", played, without=("exec_noise", "spikes"))
    assert (job.kind, job.case.seed, job.case.policy) == ("bound", 1, "")


def test_records_of_another_length_or_kind_have_other_files():
    [job] = runs("6.3", [a_case()])
    longer = msgspec.structs.replace(job, case=msgspec.structs.replace(job.case, duration_s=5.0))
    stems = {job.stem, longer.stem, msgspec.structs.replace(job, kind="bound").stem}
    assert len(stems) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "argument --jobs: '0' is no number of runs, from 1 on"),
        (["--jobs", "two"], "argument --jobs: 'two' is no number of runs, from 1 on"),
        (["--verbose"], "--verbose goes with --list"),
    ],
)
def test_what_was_asked_wrongly_is_said_before_anything_is_played(arguments, message, capsys):  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list_is_a_line_for_each_scenario_or_for_each_job(capsys):  # type: ignore[no-untyped-def]
    jobs = find("6.1").jobs(Length.QUICK)
    played = [job for job in jobs if job.kind != "bound"]
    assert main(["--list", "--quick", "--only", "6.1"]) == 0
    first, second, total, later = capsys.readouterr().out.splitlines()
    assert sorted([first.split()[:2], second.split()[:2]]) == [
        ["6.1", "61-compared"], ["6.1", "61-sweep"],
    ]  # fmt: skip
    seconds = sum(job.case.duration_s for job in played)
    assert total.split() == [
        "all", str(len(played)), "runs", str(len(jobs) - len(played)), "bounds",
        f"{seconds:,.0f}", "virtual", "s",
    ]  # fmt: skip
    assert later == "Of 6.1 there will be more, which depends on what these find."
    assert main(["--list", "--verbose", "--quick", "--only", "6.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("virtual s  ")[1] for line in lines[:-2]] == [job.name for job in jobs]


# --- records and their words


def test_three_seeds_have_an_interval_and_two_have_none():
    assert text_of(spread([1.0, 2.0, 3.0])) == "2.0 ± 2.5"
    assert text_of(spread([1.0, 2.0])) == "1.5"
    assert text_of(spread([None])) == "-"


def test_a_run_is_compared_with_the_bound_of_its_own_values_and_seed():
    good = {"window_good": 45.0}
    records = Records(
        [
            a_record(figures=good, slo_ms=10),
            a_record(figures=good, slo_ms=10, seed=2),
            a_record(kind="bound", figures={"most": 50.0, "asked": 60.0}, slo_ms=10),
            a_record(kind="bound", figures={"most": 90.0, "asked": 100.0}, slo_ms=25),
        ]
    )
    first, second, *_ = records
    assert share_of_bound(records)(first) == pytest.approx(0.9)
    assert share_of_bound(records)(second) is None
    assert bound_attainment(records.at(slo_ms=10)) == pytest.approx(50 / 60)


def test_records_are_chosen_by_what_they_are_of():
    records = Records(
        [a_record(slo_ms=10), a_record(slo_ms=25), a_record(policy="fifo", slo_ms=10, good=10)]
    )
    assert len(records.at(slo_ms=10)) == 2
    found = records.where(policy="fifo").spread(attainment)
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert records.numbers_of("slo_ms") == [10, 25]


def test_the_sweeps_best_point_is_played_again_at_every_slo():
    swept = [
        a_record(
            compared.SWEEP,
            policy=f"clockwork:schedule_ahead_ms={ahead},margin_ms=1",
            good=good,
            slo_ms=slo,
            schedule_ahead_ms=ahead,
            margin_ms=1,
        )
        for slo, ahead, good in ((10, 2, 50), (10, 5, 30), (25, 2, 60), (25, 5, 70))
    ]
    found = compared.more_jobs(Records(swept), Length.DEFAULT)
    chosen = {(job.case.values["slo_ms"], job.case.policy) for job in found}
    assert chosen == {
        (10, "clockwork:schedule_ahead_ms=2,margin_ms=1"),
        (25, "clockwork:schedule_ahead_ms=5,margin_ms=1"),
    }
    assert len(found) == 6


def test_pace_takes_the_narrowest_class_that_is_known():
    fast, slow, other = (
        Job(
            experiment="6.3", case=msgspec.structs.replace(a_case(), policy=policy, duration_s=10.0)
        )
        for policy in ("remontoir", "fifo", "edf")
    )
    pace = Pace()
    pace.heard(fast, 2.0)
    pace.heard(slow, 6.0)
    assert pace.seconds_of(fast) == pytest.approx(2.0)
    assert pace.seconds_of(other) == pytest.approx(4.0)  # both of its scenario
    assert pace.left_text([fast] * 60, 2) == "1:00 left"


# --- the page


def test_a_table_says_which_row_has_another_length():
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        table_text(("a", "b"), [("only one",)])


def test_verdicts_are_one_list_and_say_met_not_met_or_not_measured(tmp_path):  # type: ignore[no-untyped-def]
    section = a_section(tmp_path)
    section.verdict("first", True, "1")
    section.verdict("second", False, "")
    section.verdict("third", None, "")
    assert section.text.endswith(
        "- **met**: first — 1\n- **not met**: second\n- **not measured**: third"
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.number)
def test_a_section_without_any_record_claims_nothing(experiment, tmp_path):  # type: ignore[no-untyped-def]
    section = a_section(tmp_path)
    experiment.write(Records([]), section)
    assert all(verdict.is_met is None for verdict in section.verdicts)
    assert not re.search(r"\bnan\b", section.text)


def test_a_job_done_and_written_up(tmp_path):  # type: ignore[no-untyped-def]
    case = shortened(a_case())
    jobs = [*runs("6.3", [case], is_bounded=True), *bounds("6.3", [case])]
    records = [perform(job, str(tmp_path)) for job in jobs]
    run, bound = records
    assert run.group is not None
    assert run.figures["window_asked"] == bound.figures["asked"]
    assert run.figures["window_good"] <= bound.figures["most"]
    page = tmp_path / "page.md"
    write_report(
        page,
        [find("6.3")],
        records,
        pictures_dir=tmp_path,
        length=Length.QUICK,
        command="python -m loadtest.experiments --quick",
        took_s=60.0,
    )
    text = page.read_text()
    assert "`python -m loadtest.experiments --quick`" in text
    assert "| upper bound |" in text
    for picture in re.findall(r"\((page/[\w.-]+\.png)\)", text):
        assert (tmp_path / picture).stat().st_size > 1000


def test_settings_where_another_policy_had_more_are_listed_beyond_the_intervals():
    def three(policy: str, goods: tuple[int, int, int], slo_ms: int) -> list[Record]:
        return [
            a_record(policy=policy, seed=seed, good=good, slo_ms=slo_ms)
            for seed, good in enumerate(goods, 1)
        ]

    records = [
        *three("remontoir", (50, 51, 52), 10),
        *three("fifo", (60, 61, 62), 10),
        *three("remontoir", (50, 51, 52), 25),
        *three("fifo", (51, 52, 53), 25),
    ]
    text = beaten_text(records)
    assert "In 1 of 2 settings" in text
    assert "| 63-how-low | slo_ms 10 | `fifo` | 61.0 ± 2.5 | 51.0 ± 2.5 | +19.6 % |" in text
    assert "In none of 1 settings" in beaten_text(records[6:])
    assert beaten_text([]) == ""


def test_a_number_that_no_experiment_has_is_refused():
    with pytest.raises(LookupError, match=r"9\.9"):
        find("9.9")


# --- Azure


def test_the_scale_makes_sixty_percent_of_execution_at_batch_8():
    [bare] = cases("65-azure", Length.DEFAULT, policies=["remontoir"], seeds=[1])
    scale = azure_load.scale_of(bare)
    [case] = cases(
        "65-azure",
        Length.DEFAULT,
        policies=["remontoir"],
        seeds=[1],
        variables={"scale": [scale]},
    )
    models = models_of(case.setup)
    exec_ns = {m.name: m.profile.shapes[0].exec_ns[8] / 8 for m in models}
    span_s = 60.0  # seven minutes of the hour, which differ
    busy_ns = sum(
        exec_ns[ask.model]
        for ask in open_loop(
            case.setup.workload, duration_s=span_s, seed=1, models=[m.name for m in models]
        )
    )
    assert busy_ns / (6 * span_s * 1e9) == pytest.approx(0.6, rel=0.3)


def test_misses_are_told_apart_by_the_loads_of_their_model():
    requests = Table(
        {
            "model": np.array([0, 0, 1, 1]),
            "arrival_ns": np.array([10, 500, 10, 10]),
            "answered_ns": np.array([90, 590, 90, 20]),
            "outcome": np.array([1, 1, 0, 0]),
            "is_good": np.array([False, False, False, True]),
        },
        {"model": ("a", "b"), "outcome": ("served", "expired")},
    )
    actions = Table(
        {
            "kind": np.array([0, 1]),
            "model": np.array([0, 1]),
            "sent_ns": np.array([50, 20]),
            "end_ns": np.array([120, 60]),
        },
        {"kind": ("load", "infer"), "model": ("a", "b")},
    )
    causes = azure.causes_of_misses(Tables(requests, actions, actions), (0, 1000))
    assert causes == {
        "expired, its weights were being loaded": 1,
        "expired, its weights were not being loaded": 1,
        "late, its weights were not being loaded": 1,
    }


# --- the pure core beside a compiled one


def test_with_the_hook_the_core_is_read_from_its_sources():
    program = (
        "from loadtest.experiments.pure import use_pure_core\n"
        "use_pure_core()\n"
        "import numpy, scheduler.scheduler\n"
        "from scheduler.build import IS_COMPILED\n"
        "print(IS_COMPILED, scheduler.scheduler.__file__.endswith('.py'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_the_hook_comes_too_late_once_the_core_is_imported():
    from loadtest.experiments.pure import use_pure_core

    with pytest.raises(RuntimeError, match="the core is chosen already"):
        use_pure_core()
