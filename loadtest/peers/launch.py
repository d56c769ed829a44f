"""A peer's server, started on the server's core, and stopped with everything that it has started.

Owns the processes. Some peers start daemons that leave the process group, so all that a server has
started is known by a mark in its environment.
"""

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from loadtest import servers
from loadtest.machine import SERVER_CPU
from loadtest.peers.peer import SERVERS, Peer, Tuning, config_json
from loadtest.server_use import Use, use_of
from loadtest.servers import Server

MARK = "REMONTOIR_PEER_RUN"
START_TIMEOUT_S = 240.0  # TorchServe and Ray Serve take a quarter of that on one busy core
GONE_TIMEOUT_S = 10.0


@contextlib.contextmanager
def launched(
    peer: Peer,
    python: Path,
    tuning: Tuning,
    *,
    scratch: Path,
    log_dir: Path,
    cpus: str = str(SERVER_CPU),
) -> Iterator["Running"]:
    """Ready: it answers on its port. Raises ServerError."""
    port = servers.free_ports(5)
    scratch.mkdir(parents=True, exist_ok=True)
    started = peer.start(python, port, scratch, tuning)
    for name, text in started.files.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    mark = uuid.uuid4().hex
    environ = {
        "PYTHONPATH": str(SERVERS),
        "PEER_CONFIG": config_json(tuning, port=port, scratch=scratch),
        "OMP_NUM_THREADS": "1",
        MARK: mark,
        **started.environ,
    }
    try:
        with servers.program(
            peer.name,
            started.command,
            port=port,
            cpus=cpus,
            log_dir=log_dir,
            ready_path=started.ready_path,
            environ=environ,
            start_timeout_s=START_TIMEOUT_S,
            cwd=scratch,
        ) as server:
            yield Running(server, mark)
    finally:
        _end(mark)


class Running:
    """A server and all its processes: those with the mark, or without one all it has started."""

    def __init__(self, server: Server, mark: str | None) -> None:
        self.server = server
        self._mark = mark

    @property
    def is_alive(self) -> bool:
        return self.server.process.poll() is None

    def pids(self) -> list[int]:
        """All that have the mark; those that its server has started, without."""
        return [] if self._mark is None else _marked(self._mark)

    def use(self) -> Use:
        return use_of(self.server.process.pid, *self.pids())


def _marked(mark: str) -> list[int]:
    found = []
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # ended, or another user's
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _end(mark: str) -> None:
    give_up_s = time.monotonic() + GONE_TIMEOUT_S
    while (pids := _marked(mark)) and time.monotonic() < give_up_s:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
