"""A job from its first measurement to its last row: what `remontoir bench run` does.

Owns the order: a server for all measurements that need the same one, a row on the disk after each,
and what is left out, said. A measurement that fails ends nothing but itself.
"""

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import groupby, islice
from pathlib import Path

import msgspec

from loadtest.analysis.cell import Cell
from loadtest.driver import bare_loop, ceiling, client_stages, crew, targets
from loadtest.driver.ceiling import Ceiling, KnownCeilings
from loadtest.driver.inputs import InputError
from loadtest.driver.job import AnyTarget
from loadtest.driver.job_file import Case, JobError, JobFile, server_key
from loadtest.driver.model_files import ModelFile, model_files, repository
from loadtest.driver.plans import Planned, planned
from loadtest.driver.registry import Registry
from loadtest.driver.results_db import ResultsDatabase
from loadtest.driver.rows import Facts, rows_of
from loadtest.driver.server_use import rss_bytes_of, use_of
from loadtest.machine import describe
from loadtest.servers import ServerError
from loadtest.workloads import WorkloadEntry, open_loop

EXPECTED = (
    JobError, InputError, targets.TargetError, crew.DriverError, bare_loop.NoCapacity,
    client_stages.MissingPillow, ServerError,
)  # fmt: skip


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What a run says while it goes on. `say` gets lines, `step` what is done at the moment, `done`
    the rows of a measurement; `asked_to_stop` is asked four times a second.
    """

    say: Callable[[str], None]
    step: Callable[[str], None]
    done: Callable[[Case, list[Cell]], None]
    asked_to_stop: Callable[[], bool] = lambda: False


class Summary(msgspec.Struct, kw_only=True):
    """Measurements by how they ended; `skipped` were there from an earlier run."""

    run_id: str
    measured: int = 0
    skipped: int = 0
    partial: int = 0
    failed: int = 0


def run_job(
    job: JobFile,
    database: ResultsDatabase,
    *,
    folder: Path,
    progress: Progress,
    resume: bool = False,
    given_ceiling: float | None = None,
    ceilings: KnownCeilings | None = None,
) -> Summary:
    """Measure every case of a job; `folder` is for models and logs. `resume` goes on with the last
    run of the same file. `given_ceiling` is in requests per second, instead of a measured one.

    Raises ResultsError where rows cannot be kept, JobError where the driver has no core.
    """
    run_id = (database.last_run(job.digest) if resume else None) or secrets.token_hex(8)
    return _Run(job, database, folder, progress, run_id, given_ceiling, ceilings).run()


class _Run:
    def __init__(
        self,
        job: JobFile,
        database: ResultsDatabase,
        folder: Path,
        progress: Progress,
        run_id: str,
        given_ceiling: float | None,
        ceilings: KnownCeilings | None,
    ) -> None:
        self._job = job
        self._database = database
        self._folder = folder
        self._progress = progress
        self._given_ceiling = given_ceiling
        self._ceilings = ceilings or KnownCeilings()
        self._loops: dict[tuple[str, int, str], bare_loop.BareLoop] = {}
        self._too_busy_for: set[int] = set()  # sizes of requests
        self._summary = Summary(run_id=run_id)
        self._machine = describe()
        # all and only measurements of this run that are whole
        self._whole = {
            (cell.point, cell.repeat) for cell in database.cells(run_id=run_id) if not cell.partial
        }

    def run(self) -> Summary:
        for _, same in groupby(self._job.cases, key=lambda case: server_key(case.job)):
            cases = [case for case in same if not self._is_done(case)]
            while cases and not self._progress.asked_to_stop():
                try:
                    cases = self._with_server(cases)
                except EXPECTED as error:
                    self._fail(cases[0], error, len(cases))
                    break
        return self._summary

    def _is_done(self, case: Case) -> bool:
        is_done = (case.name, case.repeat) in self._whole
        self._summary.skipped += is_done
        return is_done

    def _fail(self, case: Case, error: Exception, number: int) -> None:
        self._summary.failed += number
        self._progress.say(f"{case.name}: {error}")

    def _with_server(self, cases: list[Case]) -> list[Case]:
        """Measures them; what is left is for a new server, after this one has died."""
        job = cases[0].job
        files = model_files(
            job,
            folder=self._folder / "models",
            job_folder=Path(self._job.folder),
            registry=lambda: Registry(self._database),
        )
        cpus = self._client_cpus(job.target)
        # before the server is there: two of them on one core would each have half of it
        workloads = {id(case): self._numbers(case, files) for case in cases}
        self._progress.step("starting the server" if job.target.url is None else "asking")
        with targets.running(
            job.target,
            repository=repository(files, self._folder / "models"),
            cache_dir=self._folder / "compiled",
            log_dir=self._folder / "logs",
        ) as server:
            for number, case in enumerate(cases):
                if self._progress.asked_to_stop():
                    return []
                self._database.check_room()
                if number and server.why_dead():  # the one before says so in its rows
                    return cases[number:]
                try:
                    plan = planned(case, workloads[id(case)], files=files, server=server, cpus=cpus)
                    highest = self._checked_ceiling(case, plan, cpus)
                    self._measure(case, plan, server, files, highest)
                except EXPECTED as error:
                    self._fail(case, error, 1)
        return []

    def _numbers(self, case: Case, files: dict[str, ModelFile]) -> tuple[WorkloadEntry, ...]:
        models = {model.name: model for model in case.job.models}

        def loop_of(name: str) -> bare_loop.BareLoop:
            if name not in files:
                raise bare_loop.NoCapacity(
                    f"multiples need one model whose file is here, which {name!r} is not"
                )
            key = (files[name].sha256, models[name].batch, case.job.target.cpus)
            if key not in self._loops:
                self._progress.step(f"bare loop of {name}")
                self._loops[key] = bare_loop.measure(
                    models[name],
                    files[name],
                    cpus=sorted(targets.cpus_of(case.job.target.cpus) & os.sched_getaffinity(0)),
                )
            return self._loops[key]

        return bare_loop.resolved(case.job.workload, case.multiples, loop_of)

    def _measure(
        self,
        case: Case,
        plan: Planned,
        server: targets.Running,
        files: dict[str, ModelFile],
        highest: Ceiling | None,
    ) -> None:
        self._progress.step(f"{case.name}, repeat {case.repeat + 1}")
        watched = _Watched(server.pid)
        started_at = _now()
        load_average = os.getloadavg()[0]
        shift = crew.run(
            plan.plan,
            on_start=watched.start,
            watch=watched.look,
            asked_to_stop=self._progress.asked_to_stop,
        )
        cpu_s, rss_bytes = watched.end()
        partial = "; ".join(filter(None, (server.why_dead(), shift.stopped)))
        facts = Facts(
            job=self._job.name,
            job_hash=self._job.digest,
            run_id=self._summary.run_id,
            started_at=started_at,
            ended_at=_now(),
            partial=partial,
            server_cpu_s=cpu_s,
            server_rss_bytes=rss_bytes,
            cold_start_ms=server.cold_start_ms,
            ceiling_per_s=self._given_ceiling if highest is None else highest.rate_per_s,
            machine=self._machine,
            load_average=load_average,
        )
        cells = rows_of(case, plan, shift, facts, files)
        self._database.add(cells)
        self._summary.measured += 1
        self._summary.partial += bool(partial)
        self._progress.done(case, cells)

    def _client_cpus(self, target: AnyTarget) -> tuple[int, ...]:
        """Those that the server has not. Raises JobError."""
        usable = os.sched_getaffinity(0)
        if target.url is not None:
            return tuple(sorted(usable))
        taken = targets.cpus_of(target.cpus)
        if not taken <= usable:
            raise JobError(f"target: cpus {target.cpus}: this process may use {sorted(usable)}")
        if not usable - taken:
            raise JobError(
                f"target: cpus {target.cpus} leaves the driver none of {sorted(usable)}: what it "
                "measured would be itself"
            )
        return tuple(sorted(usable - taken))

    def _checked_ceiling(self, case: Case, plan: Planned, cpus: tuple[int, ...]) -> Ceiling | None:
        """Raises JobError for a rate that this driver cannot send."""
        largest = max(len(text) for group in plan.plan.groups for text in group.requests)
        size, processes = ceiling.rounded_bytes(largest), case.job.processes
        found = None
        rate_per_s = self._given_ceiling
        if rate_per_s is None:
            found = self._ceilings.find(size, processes, cpus)
            if found is None:
                found = self._measured_ceiling(case, size, processes, cpus)
            rate_per_s = ceiling.MOST_RATE if found is None else found.rate_per_s
        duration_s = case.job.duration_s
        most = int(rate_per_s * duration_s)
        arrivals = open_loop(
            plan.plan.entries, duration_s=duration_s, seed=case.seed, models=plan.plan.models
        )
        declared = sum(getattr(entry, "rate_per_s", 0.0) for entry in plan.plan.entries)
        if declared > rate_per_s or sum(1 for _ in islice(arrivals, most + 1)) > most:
            asked = f"{declared:,.0f}" if declared > rate_per_s else f"more than {rate_per_s:,.0f}"
            raise JobError(
                f"{asked} requests/s are asked for; with {processes} process(es) on CPU(s) "
                f"{', '.join(map(str, cpus))} this driver keeps its schedule up to "
                f"{rate_per_s:,.0f}/s for requests of up to {size:,} bytes (remontoir bench "
                "ceiling). More `processes`, on more cores, send more"
            )
        return found

    def _measured_ceiling(
        self, case: Case, size: int, processes: int, cpus: tuple[int, ...]
    ) -> Ceiling | None:
        """None where it cannot be known now: each row has the driver's own error all the same."""
        if size in self._too_busy_for:
            return None
        self._progress.say(f"the driver's ceiling for requests of {size:,} bytes: not known yet")
        try:
            found = ceiling.measure(
                request_bytes=size,
                processes=processes,
                server_cpus=case.job.target.cpus if case.job.target.url is None else str(cpus[0]),
                client_cpus=cpus,
                log_dir=self._folder / "logs",
                on_step=lambda text: self._progress.step(f"ceiling: {text}"),
            )
        except ceiling.TooBusy as error:
            self._too_busy_for.add(size)
            self._progress.say(f"... {error}; rates up to {ceiling.MOST_RATE:,.0f}/s are tried")
            return None
        self._ceilings.keep(found)
        self._progress.say(
            f"... it is {found.rate_per_s:,.0f}/s, sent within {found.error_p99_ms:.2f} ms (p99)"
        )
        return found


class _Watched:
    """A server's process while there is load; the largest of what it was seen to hold."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._begin = self._end = None if pid is None else use_of(pid)
        self._rss_bytes = 0
        self._looks = 0

    def start(self) -> None:
        if self._pid is not None:
            self._begin = use_of(self._pid)

    def look(self) -> None:
        """Called four times a second, on the driver's core: a look each second will do."""
        self._looks += 1
        if self._begin is not None and self._looks % 4 == 0:
            self._rss_bytes = max(self._rss_bytes, rss_bytes_of(self._begin.pids))

    def end(self) -> tuple[float | None, int | None]:
        if self._pid is None or self._begin is None:
            return None, None
        end = use_of(self._pid)
        cpu_s = end.cpu_s - self._begin.cpu_s
        # one that has died meanwhile took its account with it
        return max(0.0, cpu_s), max(self._rss_bytes, end.rss_bytes, self._begin.rss_bytes)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
