"""The supervisor over puppet processes in hand-driven time, and over a few real ones."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from gateway.workers.supervisor import (
    CompileError,
    Process,
    Supervisor,
    WorkerExit,
    run_compile,
    spawn_process,
)
from scheduler.spec import MILLISECOND_NS, SECOND_NS
from tests.gateway.doubles import ManualClock, model_spec

LIMIT_S = 30  # a guard: nothing here takes a tenth of it


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run_in_loop(story: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(story, LIMIT_S))

    return run_in_loop


async def settle() -> None:
    """Lets everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


class PuppetProcess:
    """A process that ends when told to; how it takes signals is up to the test."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.pid = pid
        self.command = list(command)
        self.signals: list[str] = []
        self.obeys_terminate = True
        self._exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(self, exit_code: int) -> None:
        self._exit_code.set_result(exit_code)

    async def wait(self) -> int:
        return await asyncio.shield(self._exit_code)

    def terminate(self) -> None:
        self.signals.append("TERM")
        if self.obeys_terminate:
            self.end(0)

    def kill(self) -> None:
        self.signals.append("KILL")
        self.end(-9)


class Nursery:
    """A supervisor of puppets; `naps` are the restarts' delays, which last until `wake`."""

    def __init__(self, num_workers: int = 1) -> None:
        self.clock = ManualClock()
        self.processes: list[PuppetProcess] = []
        self.naps: list[float] = []
        self.exits: list[WorkerExit] = []
        self.spawn_error: OSError | None = None
        self.obeys_terminate = True
        self.can_spawn = asyncio.Event()
        self.can_spawn.set()
        self._alarm = asyncio.Event()
        self.supervisor = Supervisor(
            num_workers,
            lambda index: ["worker", str(index)],
            on_exit=self.exits.append,
            spawn=self._spawn,
            clock=self.clock,
            sleep=self._sleep,
        )

    async def _spawn(self, command: Sequence[str], env: Mapping[str, str] | None) -> Process:
        if self.spawn_error is not None:
            raise self.spawn_error
        await self.can_spawn.wait()
        process = PuppetProcess(100 + len(self.processes), command)
        process.obeys_terminate = self.obeys_terminate
        self.processes.append(process)
        return process

    async def _sleep(self, delay_s: float) -> None:
        self.naps.append(delay_s)
        await self._alarm.wait()

    async def wake(self) -> None:
        self._alarm.set()
        await settle()
        self._alarm.clear()

    async def crash(self, exit_code: int = 1, *, after_ns: int = 0) -> None:
        self.clock.advance(after_ns)
        self.processes[-1].end(exit_code)
        await settle()


def test_each_worker_is_started_with_its_own_command() -> None:
    async def story() -> None:
        nursery = Nursery(3)
        nursery.supervisor.start()
        await settle()
        assert [process.command for process in nursery.processes] == [
            ["worker", "0"],
            ["worker", "1"],
            ["worker", "2"],
        ]
        assert nursery.supervisor.pids == {0: 100, 1: 101, 2: 102}
        await nursery.supervisor.stop(grace_s=5)
        assert nursery.supervisor.pids == {}

    asyncio.run(story())


def test_a_crash_loop_is_met_with_growing_patience() -> None:
    async def story() -> None:
        nursery = Nursery()
        nursery.supervisor.start()
        await settle()
        for _ in range(8):
            await nursery.crash(-9, after_ns=300 * MILLISECOND_NS)
            await nursery.wake()
        assert nursery.naps == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        assert nursery.supervisor.num_restarts == 8
        assert nursery.exits[1] == WorkerExit(
            0, -9, 300 * MILLISECOND_NS, restart_delay_ns=200 * MILLISECOND_NS
        )
        await nursery.supervisor.stop(grace_s=5)

    asyncio.run(story())


def test_patience_is_forgotten_once_a_worker_lived_ten_seconds() -> None:
    async def story() -> None:
        nursery = Nursery()
        nursery.supervisor.start()
        await settle()
        for lived_ns in (0, 0, 10 * SECOND_NS - 1, 10 * SECOND_NS, 0):
            await nursery.crash(after_ns=lived_ns)
            await nursery.wake()
        assert nursery.naps == [0.1, 0.2, 0.4, 0.1, 0.2]
        await nursery.supervisor.stop(grace_s=5)

    asyncio.run(story())


def test_a_worker_that_leaves_politely_is_started_again_too() -> None:
    async def story() -> None:
        nursery = Nursery()
        nursery.supervisor.start()
        await settle()
        await nursery.crash(0)
        await nursery.wake()
        assert len(nursery.processes) == 2
        await nursery.supervisor.stop(grace_s=5)

    asyncio.run(story())


def test_a_refused_worker_is_not_started_again() -> None:
    async def story() -> None:
        nursery = Nursery(2)
        nursery.supervisor.start()
        await settle()
        await nursery.crash(3, after_ns=5)
        await nursery.wake()
        assert nursery.exits == [WorkerExit(1, 3, 5, restart_delay_ns=None)]
        assert nursery.supervisor.refused == {1}
        assert nursery.supervisor.pids == {0: 100}
        await nursery.supervisor.stop(grace_s=5)

    asyncio.run(story())


def test_a_worker_that_cannot_be_started_is_tried_again() -> None:
    async def story() -> None:
        nursery = Nursery()
        nursery.spawn_error = OSError(12, "Cannot allocate memory")
        nursery.supervisor.start()
        await settle()
        assert nursery.exits == [WorkerExit(0, None, 0, restart_delay_ns=100 * MILLISECOND_NS)]
        nursery.spawn_error = None
        await nursery.wake()
        assert nursery.supervisor.pids == {0: 100}
        await nursery.supervisor.stop(grace_s=5)

    asyncio.run(story())


def test_stopping_waits_for_no_restart() -> None:
    async def story() -> None:
        nursery = Nursery()
        nursery.supervisor.start()
        await settle()
        await nursery.crash()
        assert nursery.naps == [0.1]
        await nursery.supervisor.stop(grace_s=5)
        assert len(nursery.processes) == 1

    asyncio.run(story())


def test_who_does_not_stop_in_time_is_killed() -> None:
    async def story() -> None:
        nursery = Nursery(2)
        nursery.supervisor.start()
        await settle()
        nursery.processes[1].obeys_terminate = False
        await nursery.supervisor.stop(grace_s=0.001)
        assert [process.signals for process in nursery.processes] == [["TERM"], ["TERM", "KILL"]]
        assert nursery.exits == [], "these ends were asked for"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("grace_s", "signals"),
    [(LIMIT_S, ["TERM"]), (0.001, ["KILL"])],
    ids=["in time", "after the grace"],
)
def test_a_worker_whose_start_was_under_way_is_stopped_too(
    grace_s: float, signals: list[str]
) -> None:
    async def story() -> None:
        nursery = Nursery()
        nursery.can_spawn.clear()
        nursery.supervisor.start()
        await settle()
        stop = asyncio.ensure_future(nursery.supervisor.stop(grace_s))
        await until(lambda: nursery.supervisor._is_out_of_patience or grace_s > 1)
        await settle()
        nursery.can_spawn.set()
        await stop
        assert [process.signals for process in nursery.processes] == [signals]

    asyncio.run(story())


def test_nobody_survives_a_stop_that_is_itself_cut_short() -> None:
    async def story() -> None:
        nursery = Nursery()
        nursery.obeys_terminate = False
        nursery.supervisor.start()
        await settle()
        stop = asyncio.ensure_future(nursery.supervisor.stop(grace_s=5))
        await settle()
        stop.cancel()
        await settle()
        assert nursery.processes[0].signals == ["TERM", "KILL"]

    asyncio.run(story())


def test_nobody_survives_an_event_loop_that_ends_without_stop() -> None:
    processes: list[PuppetProcess] = []

    async def story() -> None:
        nursery = Nursery()
        nursery.supervisor.start()
        await settle()
        processes.extend(nursery.processes)

    asyncio.run(story())
    assert [process.signals for process in processes] == [["KILL"]]


# Real processes

SLEEPER = "import time; time.sleep(1000)"
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "open(sys.argv[1], 'w').close(); time.sleep(1000)"
)


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", code, *arguments]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(is_true: Callable[[], object]) -> None:
    while not is_true():  # noqa: ASYNC110  # what it waits for happens in another process
        await asyncio.sleep(0.001)


def test_a_killed_process_is_replaced_and_stop_leaves_none(run: Any) -> None:
    async def story() -> None:
        supervisor = Supervisor(2, lambda _: python(SLEEPER), sleep=lambda _: asyncio.sleep(0))
        supervisor.start()
        await until(lambda: len(supervisor.pids) == 2)
        victim = supervisor.pids[1]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: supervisor.pids.get(1, victim) != victim)
        pids = list(supervisor.pids.values())
        await supervisor.stop(grace_s=LIMIT_S)
        assert [pid for pid in [victim, *pids] if is_alive(pid)] == []

    run(story())


def test_a_process_deaf_to_sigterm_is_killed(run: Any, tmp_path: Path) -> None:
    async def story() -> None:
        ready = tmp_path / "ready"
        supervisor = Supervisor(1, lambda _: python(STUBBORN, str(ready)))
        supervisor.start()
        await until(ready.exists)
        (pid,) = supervisor.pids.values()
        await supervisor.stop(grace_s=0.01)
        assert not is_alive(pid)

    run(story())


def test_a_command_that_does_not_exist_is_tried_again(run: Any, tmp_path: Path) -> None:
    async def story() -> None:
        exits: list[WorkerExit] = []
        supervisor = Supervisor(
            1,
            lambda _: [str(tmp_path / "no-such-program")],
            on_exit=exits.append,
            sleep=lambda _: asyncio.sleep(0),
        )
        supervisor.start()
        await until(lambda: len(exits) > 1)
        await supervisor.stop(grace_s=1)
        assert {exit.exit_code for exit in exits} == {None}

    run(story())


def test_a_terminals_interrupt_does_not_reach_the_children(run: Any) -> None:
    async def story() -> None:
        process = await spawn_process(python(SLEEPER), None)
        assert os.getsid(process.pid) == process.pid
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    run(story())


# Compiling


def compiler(code: str, catalogue: Path) -> list[str]:
    return python(f"import sys; {code}", str(catalogue))


def test_compiling_returns_the_catalogue(run: Any, tmp_path: Path) -> None:
    specs = [model_spec("resnet"), model_spec("vgg", unavailable_reason="not ONNX")]
    catalogue = tmp_path / "catalogue.json"
    written = msgspec.json.encode(specs)
    code = f"open(sys.argv[1], 'wb').write({written!r})"

    async def story() -> None:
        assert await run_compile(compiler(code, catalogue), catalogue) == specs

    run(story())


@pytest.mark.parametrize(
    ("code", "message", "exit_code"),
    [
        ("sys.exit(2)", "compiling cannot go on: see the line above", 2),
        ("sys.exit(1)", "compiling ended with exit code 1: ", 1),
        ("import os; os.kill(os.getpid(), 9)", "compiling ended with signal 9: ", 1),
        ("pass", "No such file or directory", 1),
        ("open(sys.argv[1], 'w').write('[{]')", "JSON is malformed", 1),
        ("open(sys.argv[1], 'w').write('[{}]')", "missing required field", 1),
    ],
)
def test_compiling_that_fails_says_how(
    tmp_path: Path, code: str, message: str, exit_code: int
) -> None:
    catalogue = tmp_path / "catalogue.json"

    async def story() -> None:
        with pytest.raises(CompileError) as caught:
            await run_compile(compiler(code, catalogue), catalogue)
        assert message in str(caught.value)
        assert caught.value.exit_code == exit_code

    asyncio.run(story())


def test_a_compiler_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    async def story() -> None:
        command = [str(tmp_path / "no-such-program"), "compile"]
        with pytest.raises(CompileError, match=r"cannot run .*no-such-program compile: "):
            await run_compile(command, tmp_path / "catalogue.json")

    asyncio.run(story())


def test_giving_up_on_compiling_ends_the_compiler(run: Any, tmp_path: Path) -> None:
    async def story() -> None:
        started: list[Process] = []

        async def spawn(command: Sequence[str], env: Mapping[str, str] | None) -> Process:
            process = await spawn_process(command, env)
            started.append(process)
            return process

        compiling = asyncio.ensure_future(
            run_compile(python(SLEEPER), tmp_path / "catalogue.json", spawn=spawn)
        )
        await until(lambda: started)
        compiling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await compiling
        assert not is_alive(started[0].pid)

    run(story())
