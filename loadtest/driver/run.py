"""A job from its first measurement to its last row: what `remontoir bench run` does.

Owns the order: a server for all measurements that need the same one, a row on the disk after each,
and what is left out, said. A measurement that fails ends nothing but itself.
"""

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import msgspec

from loadtest.analysis.cell import Cell
from loadtest.driver import bare_loop, client_stages, crew, peer_target, targets
from loadtest.driver.ceiling import KnownCeilings
from loadtest.driver.job import Job
from loadtest.driver.job_file import Case, JobError, JobFile, own_file, server_key
from loadtest.driver.job_target import AnyTarget, PeerServer
from loadtest.driver.limits import Limits
from loadtest.driver.model_files import ModelFile, model_files, repository
from loadtest.driver.plans import Planned, planned
from loadtest.driver.registry import Registry
from loadtest.driver.results_db import ResultsDatabase
from loadtest.driver.rows import Facts, rows_of
from loadtest.driver.settling import settle
from loadtest.machine import describe
from loadtest.peers.environments import MissingPeer
from loadtest.server_use import rss_bytes_of
from loadtest.servers import ServerError
from loadtest.workloads import WorkloadEntry

# ValueError is JobError, InputError, NoCapacity, and what workloads refuse with; OSError a disk.
EXPECTED = (
    ValueError, OSError, targets.TargetError, crew.DriverError, client_stages.MissingPillow,
    ServerError, MissingPeer,
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
        self._limits = Limits(
            given_per_s=given_ceiling,
            known=ceilings or KnownCeilings(),
            log_dir=folder / "logs",
            say=progress.say,
            step=progress.step,
        )
        self._loops: dict[tuple[str, int, str], bare_loop.BareLoop] = {}
        self._summary = Summary(run_id=run_id)
        self._failed: set[int] = set()  # ids of cases, which the job holds
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
                    self._fail(cases, error)
                    break
        return self._summary

    def _is_done(self, case: Case) -> bool:
        is_done = (case.name, case.repeat) in self._whole
        self._summary.skipped += is_done
        return is_done

    def _fail(self, cases: list[Case], error: Exception) -> None:
        """All of them that have not failed already, for one reason."""
        failed = [case for case in cases if id(case) not in self._failed]
        self._failed |= {id(case) for case in failed}
        self._summary.failed += len(failed)
        more = f" and {len(failed) - 1} more measurements" if len(failed) > 1 else ""
        self._progress.say(f"{failed[0].name}{more}: {error}")

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
        workloads = {id(case): numbers for case in cases if (numbers := self._numbers(case, files))}
        cases = [case for case in cases if id(case) in workloads]
        if not cases:
            return []
        loops = {}
        if isinstance(job.target, PeerServer):
            peer_target.check(job.target, files)
            loops = {name: self._loop_of(job, files, name) for name in files}
        self._progress.step("starting the server" if job.target.url is None else "asking")
        with targets.running(
            job.target,
            repository=repository(files, self._folder / "models"),
            files=files,
            loops=loops,
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
                    ceiling_per_s = self._limits.check(case, plan, cpus)
                    if number and not self._is_settled(case, plan, server):
                        return cases[number:]
                    self._measure(case, plan, server, files, ceiling_per_s)
                except EXPECTED as error:
                    self._fail([case], error)
        return []

    def _is_settled(self, case: Case, plan: Planned, server: targets.Running) -> bool:
        """False where a server of ours has to be begun anew."""
        self._progress.step(f"{case.name}, repeat {case.repeat + 1}: waiting for an idle server")
        if settle(plan.plan):
            return True
        is_ours = server.server is not None
        what = "it is begun anew" if is_ours else "what is measured next has that in it"
        self._progress.say(f"the server is still busy with the measurement before; {what}")
        return not is_ours

    def _numbers(self, case: Case, files: dict[str, ModelFile]) -> tuple[WorkloadEntry, ...] | None:
        """None where there are none, as was said: that one fails, and no other."""
        try:
            return bare_loop.resolved(
                [self._with_file(entry) for entry in case.job.workload],
                case.multiples,
                lambda name: self._loop_of(case.job, files, name),
            )
        except EXPECTED as error:
            self._fail([case], error)
            return None

    def _with_file(self, entry: WorkloadEntry) -> WorkloadEntry:
        """Its file is found from where the job's file is, as models are."""
        file = own_file(entry)
        if file is None:
            return entry
        path = Path(self._job.folder) / Path(file).expanduser()
        return msgspec.structs.replace(entry, file=str(path))

    def _loop_of(self, job: Job, files: dict[str, ModelFile], name: str) -> bare_loop.BareLoop:
        """Measured once. Raises NoCapacity, InputError."""
        if name not in files:
            raise bare_loop.NoCapacity(
                f"multiples need one model whose file is here, which {name!r} is not"
            )
        model = next(model for model in job.models if model.name == name)
        key = (files[name].sha256, model.batch, job.target.cpus)
        if key not in self._loops:
            self._progress.step(f"bare loop of {name}")
            cpus = sorted(targets.cpus_of(job.target.cpus) & os.sched_getaffinity(0))
            self._loops[key] = bare_loop.measure(model, files[name], cpus=cpus)
        return self._loops[key]

    def _measure(
        self,
        case: Case,
        plan: Planned,
        server: targets.Running,
        files: dict[str, ModelFile],
        ceiling_per_s: float | None,
    ) -> None:
        self._progress.step(f"{case.name}, repeat {case.repeat + 1}")
        watched = _Watched(server)
        started_at = _now()
        load_average = os.getloadavg()[0]
        shift = crew.run(
            plan.plan,
            on_start=watched.start,
            watch=watched.look,
            asked_to_stop=self._progress.asked_to_stop,
        )
        cpu_s, rss_bytes = watched.end()
        partial = "; ".join(filter(None, (server.why_dead(), shift.stopped))) or server.why_gone()
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
            ceiling_per_s=ceiling_per_s,
            machine=self._machine,
            load_average=load_average,
        )
        cells = rows_of(case, plan, shift, facts, files)
        # first, so that whoever is told can save what a database refuses
        self._progress.done(case, cells)
        self._database.add(cells)
        self._summary.measured += 1
        self._summary.partial += bool(partial)

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


class _Watched:
    """A server's process while there is load; the largest of what it was seen to hold."""

    def __init__(self, server: targets.Running) -> None:
        self._server = server
        self._begin = server.use()
        self._rss_bytes = 0
        self._looks = 0

    def start(self) -> None:
        self._begin = self._server.use()

    def look(self) -> None:
        """Called four times a second, on the driver's core: a look each second will do."""
        self._looks += 1
        if self._begin is not None and self._looks % 4 == 0:
            self._rss_bytes = max(self._rss_bytes, rss_bytes_of(self._begin.pids))

    def end(self) -> tuple[float | None, int | None]:
        end = self._server.use()
        if end is None or self._begin is None:
            return None, None
        cpu_s = end.cpu_s - self._begin.cpu_s
        # one that has died meanwhile took its account with it
        return max(0.0, cpu_s), max(self._rss_bytes, end.rss_bytes, self._begin.rss_bytes)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
