"""Servers under test, started as a user would start them, and stopped whatever happens.

Owns their processes, ports and logs. A server is its own process group, on the cores it is given.
"""

import contextlib
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtest.machine import SERVER_CPU, on_cpus
from loadtest.processes import bound_to_parent
from loadtest.server_use import use_of

START_TIMEOUT_S = 180.0  # compiling on one core included
STOP_TIMEOUT_S = 15.0
LOG_LINES_SHOWN = 15


class ServerError(Exception):
    """The server did not start, or died. The message has the end of its log."""


class Server:
    """A running server on 127.0.0.1."""

    def __init__(self, name: str, port: int, command: str, process: "subprocess.Popen[bytes]"):
        self.name = name
        self.port = port
        self.command = command
        self.process = process

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path: str, timeout_s: float = 5.0) -> tuple[int, bytes]:
        """Status and body. Raises OSError where nobody answers."""
        return self._request("GET", path, timeout_s)

    def put(self, path: str) -> None:
        """Raises ServerError where the answer is not 200."""
        status, body = self._request("PUT", path, 5.0)
        if status != 200:
            raise ServerError(f"{self.name}: PUT {path} answered {status}: {body[:300]!r}")

    def cpu_s(self) -> float:
        """Seconds of CPU that the server and its processes have used so far."""
        return use_of(self.process.pid).cpu_s

    def post_to(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of a POST without one. Raises OSError where nobody answers."""
        return self._request("POST", path, timeout_s)

    def _request(self, method: str, path: str, timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def get_json(self, path: str) -> Any:
        status, body = self.get(path)
        if status != 200:
            raise ServerError(f"{self.name}: GET {path} answered {status}: {body[:300]!r}")
        return msgspec.json.decode(body)

    def post(self, request: bytes, timeout_s: float = 30.0) -> bytes:
        """A ready-made request, for trying one out. The whole reply; the connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            parts = []
            while part := connection.recv(1 << 20):
                parts.append(part)
        return b"".join(parts)


@contextlib.contextmanager
def remontoir(
    models: Path,
    *,
    cache_dir: Path,
    log_dir: Path,
    cpus: str = str(SERVER_CPU),
    flags: Sequence[str] = (),
    environ: Mapping[str, str] = {},  # a Mapping: nobody can change it
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[Server]:
    """Gateway and worker on the given cores, ready."""
    port = free_port()
    # it is started in another directory
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(models.resolve())]
    command += [
        "--cache-dir",
        str(cache_dir.resolve()),
        "--port",
        str(port),
        "--drain-s",
        "0",
        *flags,
    ]
    with program(
        "remontoir",
        command,
        port=port,
        cpus=cpus,
        log_dir=log_dir,
        ready_path="/readyz",
        environ=environ,
        start_timeout_s=start_timeout_s,
    ) as server:
        yield server


@contextlib.contextmanager
def emulated(
    name: str, *, port: int, log_dir: Path, cpus: str, flags: Sequence[str]
) -> Iterator[Server]:
    """A gateway with emulated devices, as `flags` say, ready."""
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port), "--drain-s", "0"]
    with program(
        name, [*command, *flags], port=port, cpus=cpus, log_dir=log_dir, ready_path="/readyz"
    ) as server:
        yield server


@contextlib.contextmanager
def asgi(
    name: str,
    application: str,
    *,
    log_dir: Path,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """An ASGI application on uvicorn, one process, on the server's core."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", application, "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    cpus = str(SERVER_CPU)
    with program(
        name,
        command,
        port=port,
        cpus=cpus,
        log_dir=log_dir,
        ready_path="/ready",
        environ=environ or {},
    ) as server:
        yield server


def free_port() -> int:
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of so many in a row: some servers want to be told several."""
    while True:
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError, OverflowError):
            first = probes.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            for more in range(1, count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port + more))
            return port


@contextlib.contextmanager
def program(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    cpus: str,
    log_dir: Path,
    ready_path: str,
    environ: Mapping[str, str] = {},  # a Mapping: nobody can change it
    start_timeout_s: float = START_TIMEOUT_S,
    cwd: Path = Path(__file__).parent.parent,
) -> Iterator[Server]:
    """Any server that listens on 127.0.0.1:port, on the given cores; ready when it answers 200 on
    `ready_path`. It is told to stop if this process is killed. Raises ServerError.
    """
    pinned = on_cpus(cpus, list(command))
    log_dir.mkdir(parents=True, exist_ok=True)
    log_path = log_dir / f"{name}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            bound_to_parent(pinned),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environ},
            cwd=cwd,
            start_new_session=True,
        )
    server = Server(name, port, shlex.join(pinned), process)
    try:
        _wait_until_ready(server, ready_path, log_path, start_timeout_s)
        yield server
        if process.poll() is not None:
            raise ServerError(f"{name} ended with {process.returncode}\n{_tail(log_path)}")
    finally:
        _stop(process)


def _wait_until_ready(server: Server, path: str, log_path: Path, timeout_s: float) -> None:
    give_up_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_s:
        if server.process.poll() is not None:
            code = server.process.returncode
            raise ServerError(f"{server.name} ended with {code}\n{_tail(log_path)}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            if server.get(path, timeout_s=1.0)[0] == 200:
                return
        time.sleep(0.05)
    raise ServerError(f"{server.name} was not ready in {timeout_s:.0f} s\n{_tail(log_path)}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to the server; SIGKILL to what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log_path: Path) -> str:
    lines = log_path.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES_SHOWN:])
