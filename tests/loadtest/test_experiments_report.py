"""Every experiment's section, from records that are made up: what it claims follows from them."""

import re
from functools import cache
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from loadtest.experiments.__main__ import main
from loadtest.experiments.jobs import Experiment, Job, Length, Record, runs, shortened
from loadtest.experiments.page import Section
from loadtest.experiments.records import Records
from loadtest.experiments.registry import EXPERIMENTS, find
from loadtest.experiments.runner import Runner, Store
from loadtest.results import Group

ASKED = 10_000
SERIES = (
    "attained",
    *("major_goodput", "major_attained", "minor_goodput", "minor_attained", "loads"),
)


def made_up(job: Job, share: float) -> Record:
    """Of ASKED requests in every stream and window this share was good; the bound is all."""
    case = job.case
    group = Group(
        name="run",
        requests=ASKED,
        good=round(ASKED * share),
        late=0,
        rejected=0,
        expired=round(ASKED * (1 - share)),
        failed=0,
        cancelled=0,
        open=0,
        goodput_per_s=923.0 * share,
        attainment=share,
        latency_p50_ms=5.0,
        latency_p99_ms=9.0,
        latency_p999_ms=9.5,
        refusal_p50_ms=None,
        refusal_p99_ms=None,
        mean_batch=2.0,
        cold=1,
        reasons={},
        loads_per_s=1.0,
        exec_ms_per_good=2.0,
    )
    record = Record(
        experiment=job.experiment,
        kind=job.kind,
        scenario=case.scenario,
        policy=case.policy,
        seed=case.seed,
        values=case.values,
        warmup_s=case.setup.warmup_s,
        duration_s=case.duration_s,
        core="pure Python core",
        wall_s=1.0,
        cpu_s=1.0,
    )
    if job.kind == "bound":
        from_s = case.setup.warmup_s if job.from_s is None else job.from_s
        figures = {
            "from_s": from_s,
            "until_s": from_s + 1,
            "asked": 2.0 * ASKED,
            "most": 2.0 * ASKED,
            "found": 1.9 * ASKED,
            "counts_loads": 0.0,
            "closed_per_s": 925.0,
            "goodput_per_s": 925.0,
        }
        return msgspec.structs.replace(record, figures=figures)
    figures = {"window_good": 2.0 * ASKED * share, "window_asked": 2.0 * ASKED}
    return msgspec.structs.replace(
        record,
        num_requests=ASKED,
        num_events=3 * ASKED,
        handle_ns=30_000 * ASKED,
        group=group if job.kind == "run" else None,
        streams={0: group, 1: group} if job.kind == "run" else {},
        figures={**figures, **_windows_of(job, share)},
        series={"at_s": [1.0, 2.0], **{key: [share, share] for key in SERIES}},
        words={"expired, its weights were being loaded": 3},
    )


@cache
def _starts_of(number: str) -> frozenset[float | None]:
    return frozenset(other.from_s for other in find(number).jobs(Length.QUICK))


def _windows_of(job: Job, share: float) -> dict[str, float]:
    return {
        f"good_{stream}_from_{at_s:.3f}": ASKED * share
        for at_s in _starts_of(job.experiment)
        if at_s is not None
        for stream in (0, 1)
    }


def written(experiment: Experiment, tmp_path: Path, *, ours: float, others: float) -> Section:
    def record_of(job: Job) -> Record:
        return made_up(job, ours if job.case.policy == "remontoir" else others)

    records = [record_of(job) for job in experiment.jobs(Length.QUICK)]
    if experiment.more_jobs is not None:
        records += [record_of(job) for job in experiment.more_jobs(Records(records), Length.QUICK)]
    section = Section(
        experiment.number, experiment.title, page_dir=tmp_path, pictures="p", runs_dir=tmp_path
    )
    experiment.write(Records(records), section)
    return section


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.number)
def test_where_ours_has_all_every_target_is_met(experiment: Experiment, tmp_path: Path) -> None:
    section = written(experiment, tmp_path, ours=1.0, others=0.5)
    assert section.verdicts
    assert [verdict.word for verdict in section.verdicts] == ["met"] * len(section.verdicts)
    assert not re.search(r"\bnan\b", section.text)


@pytest.mark.parametrize(
    "experiment", [e for e in EXPERIMENTS if e.number != "6.6"], ids=lambda e: e.number
)
def test_where_ours_has_little_no_target_is_met(experiment: Experiment, tmp_path: Path) -> None:
    section = written(experiment, tmp_path, ours=0.2, others=0.5)
    assert [verdict.word for verdict in section.verdicts] == ["not met"] * len(section.verdicts)


def test_a_cost_that_grows_with_the_devices_is_not_called_flat(tmp_path: Path) -> None:
    experiment = find("6.6")
    records = [made_up(job, 1.0) for job in experiment.jobs(Length.QUICK)]
    grown = [
        msgspec.structs.replace(r, handle_ns=int(r.handle_ns * r.values["num_devices"]))  # type: ignore[operator]
        for r in records
    ]
    section = Section("6.6", "", page_dir=tmp_path, pictures="p", runs_dir=tmp_path)
    experiment.write(Records(grown), section)
    words = {verdict.what.split(" (")[0]: verdict.word for verdict in section.verdicts}
    assert words == {
        "cost per event is flat in GPUs": "not met",
        "cost per event is flat in models": "met",
    }


def test_the_sixth_section_says_what_both_workloads_had_when_the_major_one_missed(
    tmp_path: Path,
) -> None:
    section = written(find("6.2"), tmp_path, ours=0.8, others=0.5)
    assert "Of both workloads together ours has 80.0 to 80.0 % of the bound." in section.text


# --- doing jobs


def a_job() -> Job:
    found = find("6.3").jobs(Length.QUICK)
    [job] = [j for j in found if j.kind == "run" and j.case.policy == "remontoir"][:1]
    return runs("6.3", [shortened(job.case)])[0]


def test_what_was_done_is_kept_and_not_done_again(tmp_path: Path) -> None:
    job = a_job()
    console = Console(quiet=True)
    store = Store(tmp_path)
    [first] = Runner(store, num_jobs=1, resumes=True, console=console).do([job], lambda _: [])
    assert first.group is not None
    [again] = Runner(store, num_jobs=1, resumes=True, console=console).do([job], lambda _: [])
    assert again == first


def test_an_unknown_experiment_is_a_question_that_makes_no_sense(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--only", "5.9"]) == 2
    assert "no experiment '5.9'; there are 6.1, 6.2" in capsys.readouterr().err


def test_the_list_plays_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--verbose", "--quick", "--only", "6.6"]) == 0
    assert "cost 66-scale" in capsys.readouterr().out
