"""A configuration of this host measured live: `remontoir serve` under the load of a job.

Owns how a job's server is told a configuration, and what of its rows is a score. What is sent and
counted is the driver's (loadtest/driver).
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import yaml

from loadtest.analysis.cell import Cell
from loadtest.driver import bare_loop
from loadtest.driver.figures import MissingHdr, new_histogram
from loadtest.driver.job import Job, JobModel
from loadtest.driver.job_file import Case, JobError, JobFile
from loadtest.driver.job_target import Remontoir
from loadtest.driver.model_files import ModelFile, model_files
from loadtest.driver.registry import Registry
from loadtest.driver.results_db import ResultsDatabase, ResultsError
from loadtest.driver.run import Progress, Summary, run_job
from loadtest.driver.targets import cpus_of
from loadtest.planning.region_search import Config

# With fewer requests, chance sorts out good configurations: a share of 90 % is known to 6 points.
FEW_REQUESTS = 100
RESULTS = "bench-results"
TRIED = ("workers", "intra_op_threads")

Measure = Callable[..., Summary]  # as run_job


class Live:
    """Scores by measuring: the share of a job's requests that were in time, by the client's clock,
    over its repeats. A share of the requests is that share of the job's time. Whole runs are kept
    in `results` as any benchmark's are; shorter ones are forgotten.
    """

    def __init__(
        self,
        job: JobFile,
        results: ResultsDatabase,
        *,
        folder: Path,
        progress: Progress,
        measure: Measure = run_job,
    ) -> None:
        """`folder` is for models, what was compiled, and logs. Raises JobError for a job with
        several loads, or of a server that is not ours to start.
        """
        self._job = job
        self._results = results
        self._folder = folder
        self._progress = progress
        self._measure = measure
        self._num_measured = 0
        self._loops: dict[str, bare_loop.BareLoop] = {}
        self._target = _checked_target(job)
        first = job.cases[0]
        self._files = model_files(
            first.job,
            folder=folder / "models",
            job_folder=Path(job.folder),
            registry=lambda: Registry(results),
        )
        # Once, and not for every configuration: all are to be asked the same.
        self._entries = bare_loop.resolved(first.job.workload, first.multiples, self._loop_of)

    def __call__(self, config: Config, share: float) -> float:
        """Raises RuntimeError where not even the first can be measured, or results not be kept."""
        if share == 1.0:
            return self._score(config, share, self._results)
        with tempfile.TemporaryDirectory(prefix="remontoir-tune-") as directory:
            forgotten = ResultsDatabase(directory)
            try:
                return self._score(config, share, forgotten)
            finally:
                forgotten.close()

    def _score(self, config: Config, share: float, database: ResultsDatabase) -> float:
        workers, threads, max_batch, policy = config
        words = f"workers={workers}, threads={threads}, max_batch={max_batch}, policy={policy}"
        cells: list[Cell] = []
        said: list[str] = []
        progress = Progress(
            say=said.append,
            step=lambda text: self._progress.step(f"{words}: {text}"),
            done=lambda _, found: cells.extend(found),
            asked_to_stop=self._progress.asked_to_stop,
        )
        try:
            self._measure(
                self._configured(config, share),
                database,
                folder=self._folder / f"batch-{max_batch}",
                progress=progress,
            )
        except (ResultsError, OSError) as error:
            raise RuntimeError(f"{words}: {error}") from error
        sent = sum(cell.sent for cell in cells)
        why = "; ".join({*said, *(cell.partial for cell in cells if cell.partial)})
        is_whole = sent > 0 and not any(cell.partial for cell in cells)
        if not is_whole and not self._num_measured:
            why = why or "no request was sent"
            raise RuntimeError(f"{words}: nothing could be measured: {why}")
        if not is_whole:
            self._progress.say(f"{words}: counts as nothing in time: {why}")
            return 0.0
        if not self._num_measured and share < 1.0 and sent < FEW_REQUESTS:
            self._progress.say(
                f"{share:.0%} of the job's time has only {sent} requests, so that chance may sort "
                "out what is good: a longer duration_s is surer"
            )
        self._num_measured += 1
        return sum(cell.good for cell in cells) / sent

    def _configured(self, config: Config, share: float) -> JobFile:
        workers, threads, max_batch, policy = config
        serve = {**self._target.serve, "workers": int(workers), "intra_op_threads": int(threads)}
        target = msgspec.structs.replace(
            self._target,
            policy=str(policy),
            serve=serve,
            labels={**self._target.labels, "max_batch": int(max_batch)},
        )
        models = tuple(self._limited(model, int(max_batch)) for model in self._models)

        def of(case: Case) -> Case:
            duration_s = case.job.duration_s * share
            job: Job = msgspec.structs.replace(
                case.job, target=target, models=models, workload=self._entries,
                duration_s=duration_s,
            )  # fmt: skip
            return msgspec.structs.replace(case, job=job, multiples=())

        # Not the file's own digest: `bench run --resume` would take these for its measurements.
        digest = hashlib.sha256(f"{self._job.digest} {config}".encode()).hexdigest()
        return msgspec.structs.replace(
            self._job,
            name=f"{self._job.name}, tuned",
            digest=digest,
            cases=tuple(map(of, self._job.cases)),
        )

    @property
    def _models(self) -> tuple[JobModel, ...]:
        return self._job.cases[0].job.models

    def _limited(self, model: JobModel, max_batch: int) -> JobModel:
        """The model as one of a repository, with its own settings and no larger batches."""
        file: ModelFile = self._files[model.name]
        directory = self._folder / f"batch-{max_batch}" / "limited" / model.name
        link = directory / "1" / "model.onnx"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(file.path.resolve())
        beside = file.path.parent.parent / "config.yaml"
        own = yaml.safe_load(beside.read_text("utf-8")) if beside.exists() else None
        settings = {**(own or {}), "max_batch_size": max_batch}
        (directory / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        return JobModel(
            name=model.name, path=str(link.absolute()), batch=model.batch, shapes=file.shapes
        )

    def _loop_of(self, name: str) -> bare_loop.BareLoop:
        if name not in self._files:
            raise bare_loop.NoCapacity(f"multiples need one model, which {name!r} is not")
        if name not in self._loops:
            self._progress.step(f"bare loop of {name}")
            model = next(model for model in self._models if model.name == name)
            cpus = sorted(cpus_of(self._target.cpus) & os.sched_getaffinity(0))
            self._loops[name] = bare_loop.measure(model, self._files[name], cpus=cpus)
        return self._loops[name]


@contextmanager
def live(job: JobFile, place: str, progress: Progress) -> Iterator[Live]:
    """Keeps whole runs in the results at `place`. Raises RuntimeError where that cannot be."""
    try:
        new_histogram()  # or the library is missing, which is said before anything is measured
        results = ResultsDatabase(place)
    except (MissingHdr, ResultsError) as error:
        raise RuntimeError(str(error)) from error
    try:
        folder = (results.folder or Path(RESULTS)) / "tune"
        yield Live(job, results, folder=folder, progress=progress)
    finally:
        results.close()


def num_cores_of(job: JobFile) -> int:
    """CPUs that the job's server has. Raises JobError where the job starts none of ours."""
    return len(cpus_of(_checked_target(job).cpus))


def _checked_target(job: JobFile) -> Remontoir:
    names = sorted({case.name for case in job.cases})
    if len(names) > 1:
        raise JobError(
            f"{job.path}: variables make {len(names)} loads of it ({'; '.join(names):.120}), and "
            "tune measures one: leave each variable one value"
        )
    target = job.cases[0].job.target
    if not isinstance(target, Remontoir) or target.url is not None:
        raise JobError(
            f"{job.path}: target: tune starts `remontoir serve` anew for every configuration: it "
            "takes kind remontoir, without a url"
        )
    usable = os.sched_getaffinity(0)
    if not cpus_of(target.cpus) <= usable:
        raise JobError(
            f"{job.path}: target.cpus {target.cpus}: this process may use {sorted(usable)}"
        )
    for name in target.serve:
        if name.replace("-", "_") in TRIED:
            raise JobError(f"{job.path}: target.serve.{name}: that is what tune tries")
    return target
