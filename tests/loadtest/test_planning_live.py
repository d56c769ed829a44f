"""A host that is tuned live: what a job's server is told, and which number comes of its rows."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from loadtest import graphs
from loadtest.driver.job_file import JobError, JobFile, parse
from loadtest.driver.results_db import ResultsDatabase, ResultsError
from loadtest.driver.run import Progress, Summary
from loadtest.planning.live import Live, num_cores_of
from loadtest.planning.tune_command import main
from tests.loadtest.analysis_cells import a_cell

CPU = min(os.sched_getaffinity(0))
JOB = f"""\
job: day
target: {{kind: remontoir, cpus: "{CPU}", serve: {{cache_mb: 64}}, labels: {{rack: 7}}}}
models: [{{name: m, path: models/m/1/model.onnx}}]
workload: [{{kind: poisson, models: m, rate_per_s: 100, slo_ms: 50}}]
duration_s: 9
repeats: 2
"""
CONFIG = (2, 1, 4, "edf")


class Measured:
    """In place of a server under load: notes the job, and has rows of so many good of 200."""

    def __init__(self, *good: int, partial: str = "", failure: str = "", sent: int = 200) -> None:
        self.jobs: list[JobFile] = []
        self.folders: list[Path] = []
        self.good = list(good)
        self.partial, self.failure, self.sent = partial, failure, sent

    def __call__(
        self, job: JobFile, database: ResultsDatabase, *, folder: Path, progress: Progress
    ) -> Summary:
        self.jobs.append(job)
        self.folders.append(folder)
        if self.failure:
            progress.say(self.failure)
            return Summary(run_id="r", failed=1)
        for case in job.cases:
            cell = a_cell(
                run_id=job.digest, repeat=case.repeat, sent=self.sent, good=self.good.pop(0),
                late=0, refused=0, partial=self.partial,
            )  # fmt: skip
            database.add([cell])
            progress.done(case, [cell])
        return Summary(run_id="r", measured=len(job.cases))


@pytest.fixture
def results(tmp_path: Path) -> Iterator[ResultsDatabase]:
    model = tmp_path / "models" / "m" / "1" / "model.onnx"
    model.parent.mkdir(parents=True)
    onnx.save(graphs.mlp(sizes=(8, 8, 2), seed=1), model)
    (tmp_path / "models" / "m" / "config.yaml").write_text("default_slo_ms: 7\n")
    database = ResultsDatabase(tmp_path / "results")
    yield database
    database.close()


def live(
    results: ResultsDatabase, measure: Any, text: str = JOB, said: list[str] | None = None
) -> Live:
    folder = results.folder
    assert folder is not None
    return Live(
        parse(text, str(folder.parent / "job.yaml")),
        results,
        folder=folder / "tune",
        progress=Progress(
            say=([] if said is None else said).append, step=lambda _: None, done=lambda *_: None
        ),
        measure=measure,
    )


def test_a_server_is_told_the_configuration_and_scored_over_the_repeats(
    results: ResultsDatabase,
) -> None:
    measured = Measured(200, 100)
    assert live(results, measured)(CONFIG, 1 / 3) == 0.75
    [job] = measured.jobs
    assert [case.repeat for case in job.cases] == [0, 1]
    case = job.cases[0]
    assert case.job.duration_s == 3.0
    assert dict(case.config) == {
        "target": "remontoir", "policy": "edf", "device": "cpu", "cache_mb": "64", "workers": "2",
        "intra_op_threads": "1", "protocol": "infer-binary", "rack": "7", "max_batch": "4",
    }  # fmt: skip
    [model] = case.job.models
    assert model.path is not None
    path = Path(model.path)
    settings = yaml.safe_load((path.parent.parent / "config.yaml").read_text())
    assert settings == {"default_slo_ms": 7, "max_batch_size": 4}
    onnx.load(path)


def test_largest_batches_have_folders_of_their_own(results: ResultsDatabase) -> None:
    measured = Measured(1, 1, 1, 1)
    score = live(results, measured)
    score((1, 1, 1, "edf"), 1.0)
    score((1, 1, 16, "edf"), 1.0)
    assert [folder.name for folder in measured.folders] == ["batch-1", "batch-16"]


def test_whole_runs_are_kept_and_no_others(results: ResultsDatabase) -> None:
    job = parse(JOB, "job.yaml")
    score = live(results, Measured(200, 200, 150, 150))
    assert score(CONFIG, 1 / 9) == 1.0
    assert list(results.cells()) == []
    assert score(CONFIG, 1.0) == 0.75
    assert len(list(results.cells())) == 2
    # `bench run --resume` of the same file must not take them for its own
    assert results.last_run(job.digest) is None


def test_all_configurations_are_asked_the_same(results: ResultsDatabase) -> None:
    text = JOB.replace("rate_per_s: 100", "rate_per_s: 0.5 x capacity")
    measured = Measured(1, 1, 1, 1)
    score = live(results, measured, text)
    score((1, 1, 1, "edf"), 1.0)
    score((1, 1, 4, "fifo"), 1.0)
    [first], [second] = (job.cases[0].job.workload for job in measured.jobs)
    assert first == second
    assert first.rate_per_s > 100  # of a tiny model, as measured here
    assert all(case.multiples == () for job in measured.jobs for case in job.cases)


def test_a_first_that_cannot_be_measured_ends_it_and_a_later_one_counts_as_nothing(
    results: ResultsDatabase,
) -> None:
    with pytest.raises(RuntimeError) as refused:
        live(results, Measured(failure="as it is: no such model"))(CONFIG, 1.0)
    words = "workers=2, threads=1, max_batch=4, policy=edf"
    assert str(refused.value) == f"{words}: nothing could be measured: as it is: no such model"
    measured, said = Measured(200, 200), list[str]()
    score = live(results, measured, said=said)
    score(CONFIG, 1.0)
    measured.good, measured.partial = [10, 0], "the server ended with -9"
    assert score(CONFIG, 1 / 3) == 0.0
    assert said == [f"{words}: counts as nothing in time: the server ended with -9"]


def test_a_disk_that_is_full_ends_it(results: ResultsDatabase) -> None:
    def full(*_: object, **__: object) -> Summary:
        raise ResultsError("results has 3.0 MB free")

    with pytest.raises(RuntimeError, match=r"policy=edf: results has 3\.0 MB free"):
        live(results, full)(CONFIG, 1.0)


def test_a_rung_of_few_requests_is_said_once(results: ResultsDatabase) -> None:
    said: list[str] = []
    score = live(results, Measured(20, 20, 20, 20, sent=20), said=said)
    score(CONFIG, 1 / 9)
    score((1, 1, 1, "edf"), 1 / 9)
    [text] = said
    assert text.startswith("11% of the job's time has only 40 requests")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("job: day", "job: day\nvariables: {n: [1, 2]}", "job.yaml: variables make 2 loads of it"),
        (f'cpus: "{CPU}", serve: {{cache_mb: 64}}', 'url: "http://x:1"', "without a url"),
        ("cache_mb: 64", "workers: 2", "target.serve.workers: that is what tune tries"),
        ("cache_mb: 64", "intra-op-threads: 2", "that is what tune tries"),
        (f'cpus: "{CPU}"', 'cpus: "4095"', "target.cpus 4095: this process may use"),
    ],
)
def test_a_job_that_tune_cannot_measure_says_why(old: str, new: str, words: str) -> None:
    text = JOB.replace(old, new)
    if "variables" in new:
        text = text.replace("rate_per_s: 100", 'rate_per_s: "${n}"')
    with pytest.raises(JobError) as refused:
        num_cores_of(parse(text, "job.yaml"))
    assert words in str(refused.value)


def test_a_host_has_the_cores_of_the_jobs_server() -> None:
    assert num_cores_of(parse(JOB, "job.yaml")) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--probe", "true"], "--probe and --job: only one of them measures"),
        (["example"], "--job measures by itself: source example would not be looked at"),
        (["--slo-ms", "5"], "--job measures by itself: slo-ms 5.0 would not be looked at"),
        (["--cores", "9"], "--cores 9: job.yaml gives its server 1"),
        (["--workers", "2"], "no configuration is left"),
    ],
)
def test_the_command_says_what_does_not_go_with_a_job(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    with pytest.raises(SystemExit) as ended:
        main(["--job", str(tmp_path / "job.yaml"), *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert words in said
    assert said.count("\n") == 1
