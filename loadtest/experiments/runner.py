"""All jobs in processes, with one bar over all of them; what is done is kept and not done again.

Owns the folder of records and the order of jobs: measurements of cost first, alone on the machine;
then seed by seed, so that a run that is broken off has something of everything.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from loadtest.experiments.jobs import Job, Record
from loadtest.experiments.pace import Pace
from loadtest.experiments.perform import perform
from loadtest.experiments.pure import use_pure_core
from scheduler import build


class Store:
    """Records as files, and the pictures of runs beside them."""

    def __init__(self, out_dir: Path) -> None:
        self._records = out_dir / "records"
        self.pictures = out_dir / "pictures"
        self._records.mkdir(parents=True, exist_ok=True)
        self.pictures.mkdir(parents=True, exist_ok=True)

    def read(self, job: Job, core: str) -> Record | None:
        path = self._path(job, core)
        return msgspec.json.decode(path.read_bytes(), type=Record) if path.exists() else None

    def write(self, job: Job, record: Record) -> None:
        content = msgspec.json.encode(record)
        path = self._path(job, record.core)
        partly = path.with_suffix(".partly")
        partly.write_bytes(content)
        os.replace(partly, path)

    def _path(self, job: Job, core: str) -> Path:
        is_pure = core != build.describe()
        return self._records / f"{job.stem}{'-pure' if is_pure else ''}.json"


class _Task(NamedTuple):
    """A job for one of the cores that there are."""

    job: Job
    is_pure: bool

    @property
    def core(self) -> str:
        return PURE if self.is_pure else build.describe()


PURE = "pure Python core"
LINE_EVERY_S = 10.0
MAX_BROKEN = 3  # times in a row that a process is killed before any job of it is done


class Runner:
    """Does jobs and shows how far it is. `resumes`: records from an earlier time are taken."""

    def __init__(self, store: Store, *, num_jobs: int, resumes: bool, console: Console) -> None:
        self._store = store
        self._num_jobs = num_jobs
        self._resumes = resumes
        self._console = console
        self._pace = Pace()

    def do(
        self, jobs: Sequence[Job], more: Callable[[Sequence[Record]], Sequence[Job]]
    ) -> list[Record]:
        """All of these, then those that `more` makes of their records."""
        with self._bar() as bar:
            alone = [job for job in jobs if job.kind == "cost"]
            others = [job for job in jobs if job.kind != "cost"]
            records = self._batch(_tasks(alone), 1, bar, waiting=others)
            records += self._batch(_tasks(others), self._num_jobs, bar)
            records += self._batch(_tasks(more(records)), self._num_jobs, bar)
        return records

    def _batch(
        self, tasks: Sequence[_Task], num_jobs: int, bar: "_Bar", waiting: Iterable[Job] = ()
    ) -> list[Record]:
        found: dict[int, Record] = {}
        todo: list[tuple[int, _Task]] = []
        for number, task in enumerate(tasks):
            known = self._store.read(task.job, task.core) if self._resumes else None
            if known is None:
                todo.append((number, task))
            else:
                found[number] = known
                self._pace.heard(task.job, known.wall_s)
        waiting_jobs = list(waiting)
        for is_pure in (False, True):
            left = {number: task for number, task in todo if task.is_pure == is_pure}
            num_broken = 0
            while left:
                num_before = len(left)
                bar.plan(self._pace, [*_jobs_of(left), *waiting_jobs], num_jobs)
                try:
                    for number, record in self._in_processes(left, num_jobs, is_pure):
                        found[number] = record
                        task = left.pop(number)
                        self._store.write(task.job, record)
                        self._pace.heard(task.job, record.wall_s)
                        bar.done(self._pace, task.job, [*_jobs_of(left), *waiting_jobs], num_jobs)
                except BrokenProcessPool:  # somebody killed a process, or memory ran out
                    num_broken = 1 if len(left) < num_before else num_broken + 1
                    if num_broken == MAX_BROKEN:
                        raise
                    bar.say("a process was killed; what it was at is done again")
        return [found[number] for number in range(len(tasks))]

    def _in_processes(
        self, tasks: Mapping[int, _Task], num_jobs: int, is_pure: bool
    ) -> Iterator[tuple[int, Record]]:
        """(number, record) as they are done. Raises BrokenProcessPool if a process was killed."""
        with self._pool(num_jobs, is_pure) as pool:
            running: dict[Future[Record], int] = {
                pool.submit(perform, task.job, str(self._store.pictures)): number
                for number, task in tasks.items()
            }
            try:
                for done in as_completed(running):
                    yield running[done], done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _pool(self, num_jobs: int, is_pure: bool) -> ProcessPoolExecutor:
        # spawn: a fork would take the bar's thread half along, and the compiled core
        context = multiprocessing.get_context("spawn")
        initializer = use_pure_core if is_pure else None
        return ProcessPoolExecutor(num_jobs, mp_context=context, initializer=initializer)

    def _bar(self) -> "_Bar":
        return _Bar(self._console)


class _Bar:
    """A bar over the seconds of all jobs, as far as they can be told, with the time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[job]}", justify="left"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._console = console
        self._num_done = 0
        self._spoke_s = time.monotonic()
        self._task = self._progress.add_task("", total=1, job="starting", left="")

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def plan(self, pace: Pace, left: Sequence[Job], num_jobs: int) -> None:
        self._show(pace, left, num_jobs, "")

    def done(self, pace: Pace, job: Job, left: Sequence[Job], num_jobs: int) -> None:
        self._num_done += 1
        self._show(pace, left, num_jobs, job.name)
        is_last = not left
        if not self._console.is_terminal and (is_last or self._may_speak()):
            text = pace.left_text(left, num_jobs)
            self._console.print(
                f"{self._num_done} of {self._num_done + len(left)}, {text}: {job.name}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def _may_speak(self) -> bool:
        """Where there is no terminal, a line is enough for so many seconds."""
        now_s = time.monotonic()
        if now_s < self._spoke_s + LINE_EVERY_S:
            return False
        self._spoke_s = now_s
        return True

    def say(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False)

    def _show(self, pace: Pace, left: Sequence[Job], num_jobs: int, name: str) -> None:
        self._progress.update(
            self._task,
            completed=self._num_done,
            total=max(1, self._num_done + len(left)),
            job=name[:60],
            left=pace.left_text(left, num_jobs),
        )


def _jobs_of(tasks: Mapping[int, _Task]) -> list[Job]:
    return [task.job for task in tasks.values()]


def _tasks(jobs: Sequence[Job]) -> list[_Task]:
    """Seed by seed. Costs are measured of the pure core too, where this one is compiled: of one
    seed, since they are measured alone on the machine.
    """
    ordered = sorted(jobs, key=lambda job: job.case.seed)
    tasks = [_Task(job, is_pure=False) for job in ordered]
    if build.IS_COMPILED:
        costs = [job for job in ordered if job.kind == "cost"]
        tasks += [_Task(job, True) for job in costs if job.case.seed == costs[0].case.seed]
    return tasks
