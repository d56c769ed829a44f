"""A follower: asks the leader for jobs while its host is idle, runs them, delivers the results.

Owns the process that runs and the folder of what is not delivered yet. Nothing is decided here: a
lease that is void is a job for somebody else, so what runs is stopped; a leader that does not
answer is asked again, for as long as it takes.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Protocol

import msgspec

from loadtest.analysis.cell import Cell
from loadtest.driver.results_db import FILE_NAME, ResultsDatabase
from loadtest.job_queue.client import LeaderClient, LeaderRefused, LeaderUnreachable
from loadtest.job_queue.host import MAX_BUSY
from loadtest.job_queue.messages import Assignment, Beat, End, Labels
from loadtest.job_queue.queue_tables import BEAT_S
from loadtest.processes import bound_to_parent

# Of SIGTERM before SIGKILL: a run stops its servers and keeps what it has.
STOP_S = 20.0
# A driver exits so if it kept part of the results only.
PARTIAL_EXIT = 3
ROWS_IN_A_BODY = 100
TAIL_CHARACTERS = 2000

RESULTS = "results"
_ASSIGNMENT, _SPEC, _LOG, _ENDED = "assignment.json", "job.yaml", "run.log", "ended.json"

Run = Callable[[Path, Path, IO[bytes]], "Process"]
RowsOf = Callable[[Path], Iterable[Cell]]


class Process(Protocol):
    """What subprocess.Popen is."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Busy(Protocol):
    def busy(self) -> float: ...


class _Ended(msgspec.Struct, frozen=True):
    state: str
    message: str


class Follower:
    """One host. `step` says how long to wait before the next one."""

    def __init__(
        self,
        leader: LeaderClient,
        *,
        name: str,
        instance: str,
        folder: Path,
        labels: Labels,
        host: Busy,
        run: Run,
        rows_of: RowsOf,
        say: Callable[[str], None],
        max_busy: float = MAX_BUSY,
    ) -> None:
        self._leader = leader
        self._name = name
        self._instance = instance
        self._folder = folder
        self._labels = labels
        self._host = host
        self._run = run
        self._rows_of = rows_of
        self._say = say
        self._max_busy = max_busy
        self._running: tuple[Assignment, Path, Process] | None = None
        self._is_reached = True
        folder.mkdir(parents=True, exist_ok=True)

    def step(self) -> float:
        """Deliver what can be delivered, tell the leader that this host is there, do as told.

        Seconds until the next step.
        """
        try:
            wait_s = self._step()
        except LeaderUnreachable as error:
            if self._is_reached:
                self._say(f"{error}; asking again")
            self._is_reached = False
            return BEAT_S
        except LeaderRefused as error:
            self.stop()
            raise error
        if not self._is_reached:
            self._say(f"{self._leader.name} answers again")
        self._is_reached = True
        return wait_s

    def stop(self) -> None:
        """End what runs; the leader hears that it is to be run again, if it can be reached."""
        if self._running is None:
            return
        assignment, folder, process = self._running
        _end(process)
        self._running = None
        _write(folder / _ENDED, _Ended("lost", f"{self._name} was stopped"))
        try:
            self._deliver(assignment, folder)
        except (LeaderUnreachable, LeaderRefused) as error:
            self._say(f"{error}; the leader will find out that {assignment.name} is lost")

    def _step(self) -> float:
        self._reap()
        self._deliver_all()
        busy = self._host.busy()
        running = self._running
        told = self._leader.beat(
            self._name,
            Beat(
                instance=self._instance,
                labels=self._labels,
                is_idle=running is None and busy <= self._max_busy,
                busy=0.0 if running else busy,
                lease=None if running is None else running[0].lease,
            ),
        )
        if told.stop and running is not None:
            self._drop(f"{running[0].name} is no longer ours: stopped")
        elif told.run is not None:
            self._start(told.run)
        return told.beat_in_s

    def _start(self, assignment: Assignment) -> None:
        folder = self._folder / f"{assignment.job_id}-{assignment.lease[:8]}"
        folder.mkdir(parents=True)
        (folder / _SPEC).write_text(assignment.spec, encoding="utf-8")
        _write(folder / _ASSIGNMENT, assignment)
        try:
            with (folder / _LOG).open("wb") as log:
                process = self._run(folder / _SPEC, folder, log)
        except OSError as error:
            _write(folder / _ENDED, _Ended("failed", f"it cannot be started: {error}"))
            return
        self._running = assignment, folder, process
        self._say(
            f"runs {assignment.name} ({assignment.job_id}), about {assignment.estimated_s:.0f} s"
        )

    def _reap(self) -> None:
        """Has what runs ended?"""
        if self._running is None:
            return
        assignment, folder, process = self._running
        code = process.poll()
        if code is None:
            return
        _end(process)
        self._running = None
        state = {0: "done", PARTIAL_EXIT: "partial"}.get(code, "failed")
        message = "" if state == "done" else f"exit code {code}: {_tail(folder / _LOG)}"
        _write(folder / _ENDED, _Ended(state, message))
        self._say(f"{assignment.name} is {state}")

    def _drop(self, why: str) -> None:
        assert self._running is not None
        _, folder, process = self._running
        _end(process)
        self._running = None
        shutil.rmtree(folder, ignore_errors=True)
        self._say(why)

    def _deliver_all(self) -> None:
        """Also what an earlier process of this follower has left: whole, or lost with it."""
        current = None if self._running is None else self._running[1]
        for file in sorted(self._folder.glob(f"*/{_ASSIGNMENT}")):
            if file.parent == current:
                continue
            assignment = msgspec.json.decode(file.read_bytes(), type=Assignment)
            if not (file.parent / _ENDED).exists():
                _write(file.parent / _ENDED, _Ended("lost", f"{self._name} was killed"))
            self._deliver(assignment, file.parent)

    def _deliver(self, assignment: Assignment, folder: Path) -> None:
        """Rows first: a job that has ended has all of its results at the leader."""
        ended = msgspec.json.decode((folder / _ENDED).read_bytes(), type=_Ended)
        try:
            rows: list[Cell] = []
            # Of a job that is run again, what was measured comes again, too.
            for row in self._rows_of(folder) if ended.state != "lost" else ():
                rows.append(row)
                if len(rows) == ROWS_IN_A_BODY:
                    self._leader.add_rows(assignment.job_id, assignment.lease, rows)
                    rows = []
            if rows:
                self._leader.add_rows(assignment.job_id, assignment.lease, rows)
            end = msgspec.convert(
                {"lease": assignment.lease, "state": ended.state, "message": ended.message}, End
            )
            self._leader.end(assignment.job_id, end)
        except LeaderRefused as error:
            if error.status not in (404, 409):
                raise
            self._say(f"results of {assignment.name} are not wanted: {error}")
        shutil.rmtree(folder)


class FolderInUse(Exception):
    """Another follower works in this folder; the message names it."""


def claim(folder: Path) -> tuple[str, IO[str]]:
    """The folder's own name for the leader, kept over restarts, and a lock to hold. Raises
    FolderInUse.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "instance").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise FolderInUse(f"another follower works in {folder}: give --folder") from error
    lock.seek(0)
    instance = lock.read().strip()
    if not instance:
        instance = secrets.token_hex(16)
        lock.write(instance)
        lock.flush()
    return instance, lock


def follow(
    follower: Follower,
    *,
    sleep: Callable[[float], None] = time.sleep,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Until told to stop, by SIGTERM, SIGINT or `goes_on`."""
    try:
        while goes_on():
            sleep(follower.step())
    finally:
        follower.stop()


def run_program(command: Sequence[str]) -> Run:
    """Starts a job as a process group of its own. `command` gets the spec and the folder.

    It is told to stop if the follower is killed: nobody would want its results, and the next job on
    this host would be measured beside it.
    """

    def run(spec: Path, folder: Path, log: IO[bytes]) -> Process:
        whole = [*command, str(spec), "--results", str(folder / RESULTS)]
        return _Group(bound_to_parent(whole), log)

    return run


class _Group(subprocess.Popen[bytes]):
    """A process with everything it starts: servers and drivers end with it."""

    def __init__(self, command: Sequence[str], log: IO[bytes]) -> None:
        super().__init__(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _end(process: Process) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            print(f"it did not stop within {STOP_S:.0f} s, and is killed", file=sys.stderr)
    process.kill()  # and whatever it has left behind
    process.wait()


def _write(path: Path, value: object) -> None:
    """Whole or not at all."""
    written = path.with_suffix(".new")
    written.write_bytes(msgspec.json.encode(value))
    written.replace(path)


def _tail(path: Path) -> str:
    text = path.read_bytes()[-TAIL_CHARACTERS:].decode("utf-8", "replace")
    # PostgreSQL takes no NUL in a text: the leader could never keep the job's end
    return " ".join(text.replace("\0", " ").split()) or "it said nothing"


def rows_of_results(folder: Path) -> Iterable[Cell]:
    """What a driver has kept in `results`; nothing if it did not come that far."""
    if not (folder / RESULTS / FILE_NAME).exists():
        return
    results = ResultsDatabase(folder / RESULTS)
    try:
        yield from results.cells()
    finally:
        results.close()
