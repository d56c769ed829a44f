"""One worker process for each GPU of a machine, and the weights in pinned memory that they share.

Owns the processes and their restarts, and the one memfd that all of them inherit. It never touches
a GPU itself, so that none of their faults can be its own.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Protocol

from gpuworker.config import ConfigError
from gpuworker.devices.host import DeviceError
from gpuworker.devices.host_store import share
from gpuworker.health import Board

_log = logging.getLogger("gpuworker")

# As the gateway restarts its own workers: a crash is answered at once, a crash loop by patience.
MIN_RESTART_DELAY_S, MAX_RESTART_DELAY_S = 0.1, 5.0
# Who lived this long did start: its next crash is a new story.
SETTLED_AFTER_S = 10.0
# If every one of them ended this often without having lived that long, none will start.
MAX_FAILED_STARTS = 4
# Not started again: it was told to stop, its settings are wrong, or the gateway refuses it.
EXIT_USAGE = 2
FINAL = (0, EXIT_USAGE, 3)
# Between looks whether someone has ended: much shorter than it takes a worker to start.
POLL_S = 0.1


class Child(Protocol):
    """What is needed of a subprocess."""

    def poll(self) -> int | None: ...
    def send_signal(self, number: int) -> None: ...


Spawn = Callable[[Sequence[str], int], Child]


class _Worker:
    """One GPU's. `restart_at_s` is set while it waits to be started again."""

    def __init__(self, device: str, command: Sequence[str]) -> None:
        self.device = device
        self.command = command
        self.child: Child | None = None
        self.started_s = 0.0
        self.restart_at_s: float | None = 0.0
        self.delay_s = MIN_RESTART_DELAY_S
        self.num_failed_starts = 0
        self.has_served = False
        self.exit_code: int | None = None  # once it is not started again


class Launcher:
    """`spawn(command, descriptor)` starts a child that inherits the descriptor."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        descriptor: int,
        *,
        spawn: Spawn,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._workers = [_Worker(device, command) for device, command in commands.items()]
        self._descriptor = descriptor
        self._spawn = spawn
        self._clock = clock
        self._sleep = sleep
        self._is_stopping = False

    def stop(self) -> None:
        """Tell all to stop; nobody is started again. May be called by a signal handler.

        By SIGTERM, whatever we were told by: workers leave a terminal's Ctrl-C to their parent.
        """
        self._is_stopping = True
        for worker in self._workers:
            if worker.child is not None:
                worker.child.send_signal(signal.SIGTERM)

    def run(self) -> int:
        """Until none is left; the exit code of the first that did not end well, else 0."""
        while True:
            now = self._clock()
            for worker in self._workers:
                self._look_at(worker, now)
            running = [worker for worker in self._workers if worker.exit_code is None]
            if not running:
                return next((w.exit_code for w in self._workers if w.exit_code), 0)
            if all(worker.num_failed_starts >= MAX_FAILED_STARTS for worker in running):
                _log.error("no GPU's worker starts, see the lines above")
                self.stop()
                return 1
            self._sleep(POLL_S)

    def _look_at(self, worker: _Worker, now: float) -> None:
        if worker.child is not None:
            code = worker.child.poll()
            if code is not None:
                worker.child = None
                self._on_exit(worker, code, now)
        elif self._is_stopping and worker.exit_code is None:
            worker.exit_code = 0  # it was waiting to be started again
        if (
            worker.child is None
            and worker.exit_code is None
            and worker.restart_at_s is not None
            and now >= worker.restart_at_s
        ):
            worker.restart_at_s = None
            worker.started_s = now
            worker.child = self._spawn(worker.command, self._descriptor)
            if self._is_stopping:  # asked to stop while it was being started
                worker.child.send_signal(signal.SIGTERM)

    def _on_exit(self, worker: _Worker, code: int, now: float) -> None:
        lived_s = now - worker.started_s
        worker.has_served |= lived_s >= SETTLED_AFTER_S and code != EXIT_USAGE
        # It is not the settings that are wrong where it has served with them: its card is gone,
        # and may come back.
        is_final = code in FINAL and not (code == EXIT_USAGE and worker.has_served)
        if is_final or self._is_stopping:
            worker.exit_code = max(code, 0)
            if code in FINAL[1:]:
                _log.error("%s: its worker ended with code %d, and stays so", worker.device, code)
            return
        if lived_s >= SETTLED_AFTER_S:
            worker.delay_s, worker.num_failed_starts = MIN_RESTART_DELAY_S, 0
        else:
            worker.num_failed_starts += 1
        _log.warning(
            "%s: its worker ended with code %d after %.1f s; restarting in %.1f s",
            worker.device,
            code,
            lived_s,
            worker.delay_s,
        )
        worker.restart_at_s = now + worker.delay_s
        worker.delay_s = min(2 * worker.delay_s, MAX_RESTART_DELAY_S)


def run_all(
    devices: Sequence[str],
    common: Sequence[str],
    *,
    name: str,
    weights_bytes: Mapping[str, int],
    board: Board | None = None,
) -> int:
    """Serve on all of these until stopped. `common` are the flags that all of them are given; on
    `board` each says how it is.

    Raises ConfigError where the weights of all models do not fit into the machine's memory.
    """
    try:
        descriptor = share(weights_bytes)
    except DeviceError as error:
        raise ConfigError(f"--device all: {error}") from error
    program = [
        sys.executable,
        *(["-P"] if getattr(sys.flags, "safe_path", False) else []),
        "-m",
        "gpuworker",
        "run",
    ]
    commands = {
        device: [
            *(*program, *common, "--device", device, "--name", f"{name}-{device.replace(':', '')}"),
            *("--host-store", str(descriptor), "--die-with-parent", str(os.getpid())),
            *([] if board is None else ["--health-board", f"{board.file}:{slot}:{len(devices)}"]),
        ]
        for slot, device in enumerate(devices)
    }

    def spawn(command: Sequence[str], inherited: int) -> Child:
        files = (inherited,) if board is None else (inherited, board.file)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=files)

    launcher = Launcher(commands, descriptor, spawn=spawn)

    def stop(_number: int, _frame: FrameType | None) -> None:
        launcher.stop()

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    try:
        return launcher.run()
    finally:
        os.close(descriptor)
