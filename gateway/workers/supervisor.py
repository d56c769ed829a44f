"""The gateway's own child processes: workers that are kept alive, and the compile that precedes.

It owns the processes and their restarts. It must never leave one behind, whatever ends the event
loop, and never know what a worker does: it sees exit codes. Children get a session of their own, so
that a terminal's Ctrl-C reaches the gateway only, which then stops them in order.
"""

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from scheduler.spec import MILLISECOND_NS, SECOND_NS, ModelSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A crash is answered at once, a crash loop by patience: 0.1, 0.2, 0.4 ... 5 s.
MIN_RESTART_DELAY_NS = 100 * MILLISECOND_NS
MAX_RESTART_DELAY_NS = 5 * SECOND_NS
# Who lived this long did start: its next crash is a new story.
SETTLED_AFTER_NS = 10 * SECOND_NS
EXIT_REFUSED = 3  # the gateway refused the worker: it would be refused again


class CompileError(Exception):
    """The models could not be compiled. `exit_code` is 2 where the directory is unusable."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Process(Protocol):
    """What is needed of an asyncio subprocess."""

    @property
    def pid(self) -> int: ...
    async def wait(self) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


Spawn = Callable[[Sequence[str], Mapping[str, str] | None], Awaitable[Process]]


class WorkerExit(msgspec.Struct, frozen=True):
    """A worker process ended by itself. Negative exit codes are signals, None: it never started.

    `restart_delay_ns` is None where it is not started again.
    """

    index: int
    exit_code: int | None
    lived_ns: int
    restart_delay_ns: int | None


async def spawn_process(command: Sequence[str], env: Mapping[str, str] | None) -> Process:
    """Starts a child that inherits stdout and stderr. Raises OSError."""
    return await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, env=env, start_new_session=True
    )


class Supervisor:
    """Keeps `num_workers` processes alive from `start` to `stop`.

    `command(index)` is the command line of worker `index`; `env` replaces the environment, None
    inherits it. `on_exit` hears of every end that `stop` did not ask for.
    """

    def __init__(
        self,
        num_workers: int,
        command: Callable[[int], Sequence[str]],
        *,
        env: Mapping[str, str] | None = None,
        on_exit: Callable[[WorkerExit], None] = lambda _: None,
        spawn: Spawn = spawn_process,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._num_workers = num_workers
        self._command = command
        self._env = env
        self._on_exit = on_exit
        self._spawn = spawn
        self._clock = clock
        self._sleep = sleep
        self._is_stopping = False
        self._is_out_of_patience = False
        self._tasks: list[asyncio.Task[None]] = []
        self._processes: dict[int, Process] = {}  # all and only live ones, by index
        self._waiting: dict[int, asyncio.Task[None]] = {}  # those that wait to restart, by index
        self.num_restarts = 0
        self.refused: set[int] = set()  # indexes of workers that are not started again

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of the live workers, by index."""
        return {index: process.pid for index, process in self._processes.items()}

    def start(self) -> None:
        """Starts all workers, on the running event loop."""
        for index in range(self._num_workers):
            self._tasks.append(asyncio.create_task(self._keep_alive(index)))

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to all, SIGKILL after `grace_s` to who is left; returns when none is."""
        self._is_stopping = True
        for task in list(self._waiting.values()):
            task.cancel()
        for process in list(self._processes.values()):
            _signal(process.terminate)
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=grace_s)
        finally:
            # Also when we are cancelled ourselves: then nobody waits, but nobody survives either.
            self._is_out_of_patience = True
            for index, process in list(self._processes.items()):
                logger.warning("worker %d did not stop in %.1f s: killed", index, grace_s)
                _signal(process.kill)
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _keep_alive(self, index: int) -> None:
        delay_ns = MIN_RESTART_DELAY_NS
        while not self._is_stopping:
            started_ns = self._clock()
            exit_code = await self._run_once(index)
            lived_ns = self._clock() - started_ns
            if self._is_stopping:
                return
            if exit_code == EXIT_REFUSED:
                logger.error("worker %d was refused, see its log; it is not restarted", index)
                self.refused.add(index)
                self._on_exit(WorkerExit(index, exit_code, lived_ns, None))
                return
            if lived_ns >= SETTLED_AFTER_NS:
                delay_ns = MIN_RESTART_DELAY_NS
            logger.warning(
                "worker %d ended with code %s after %.1f s; restarting in %.1f s",
                index,
                exit_code,
                lived_ns / SECOND_NS,
                delay_ns / SECOND_NS,
            )
            self._on_exit(WorkerExit(index, exit_code, lived_ns, delay_ns))
            if not await self._wait_to_restart(index, delay_ns):
                return
            self.num_restarts += 1
            delay_ns = min(2 * delay_ns, MAX_RESTART_DELAY_NS)

    async def _run_once(self, index: int) -> int | None:
        """One life of the worker; its exit code, or None if it could not be started."""
        command = self._command(index)
        try:
            process = await self._spawn(command, self._env)
        except OSError as error:
            logger.error("cannot start worker %d (%s): %s", index, shlex.join(command), error)
            return None
        self._processes[index] = process
        if self._is_stopping:  # asked to stop while it was being started
            _signal(process.kill if self._is_out_of_patience else process.terminate)
        try:
            return await process.wait()
        except asyncio.CancelledError:  # the event loop ends without `stop`
            _signal(process.kill)
            raise
        finally:
            del self._processes[index]

    async def _wait_to_restart(self, index: int, delay_ns: int) -> bool:
        """False if the supervisor stops meanwhile."""

        async def sleep() -> None:
            await self._sleep(delay_ns / SECOND_NS)

        task = self._waiting[index] = asyncio.create_task(sleep())
        try:
            await asyncio.wait({task})
        finally:
            del self._waiting[index]
            task.cancel()
        return not self._is_stopping


async def run_compile(
    command: Sequence[str],
    catalogue: Path,
    *,
    env: Mapping[str, str] | None = None,
    spawn: Spawn = spawn_process,
) -> list[ModelSpec]:
    """Runs `python -m gpuworker compile … --catalog-out <catalogue>` and reads what it wrote.

    Its progress bar and its complaints go to our stderr. Raises CompileError.
    """
    await _run_to_its_end(command, what="compiling", env=env, spawn=spawn)
    return _read(catalogue, list[ModelSpec])


async def run_devices(
    command: Sequence[str],
    file: Path,
    *,
    env: Mapping[str, str] | None = None,
    spawn: Spawn = spawn_process,
) -> list[str]:
    """Runs `python -m gpuworker devices … --out <file>` and reads the names, at least one.

    Its complaints go to our stderr. Raises CompileError.
    """
    await _run_to_its_end(command, what="looking for devices", env=env, spawn=spawn)
    return _read(file, list[str])


async def _run_to_its_end(
    command: Sequence[str], *, what: str, env: Mapping[str, str] | None, spawn: Spawn
) -> None:
    try:
        process = await spawn(command, env)
    except OSError as error:
        raise CompileError(f"cannot run {shlex.join(command)}: {error}", exit_code=1) from error
    try:
        exit_code = await process.wait()
    except asyncio.CancelledError:
        _signal(process.terminate)
        await process.wait()
        raise
    if exit_code == 2:
        raise CompileError(f"{what} cannot go on: see the line above", exit_code=2)
    if exit_code != 0:
        ending = f"exit code {exit_code}" if exit_code > 0 else f"signal {-exit_code}"
        raise CompileError(f"{what} ended with {ending}: {shlex.join(command)}", exit_code=1)


def _read(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CompileError(f"{file}: {error}", exit_code=1) from error


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended just now: nothing to stop
        send()
