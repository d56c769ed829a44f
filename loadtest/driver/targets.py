"""A job's server: found at its URL, or started on its cores and stopped whatever happens.

Owns where it is and which process it is. What is sent to it is protocols.py's.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from loadtest import servers
from loadtest.driver.job import AnyTarget, Remontoir

HEALTH_TIMEOUT_S = 5.0


class TargetError(Exception):
    """The server cannot be asked. The message names it, and has the end of its log."""


class Running(NamedTuple):
    """A server that can be asked. `pid` is None where nobody knows its process; `cold_start_ms` is
    from its start until it was ready, if the job started it.
    """

    host: str
    port: int
    is_tls: bool
    pid: int | None
    cold_start_ms: float | None = None
    server: servers.Server | None = None

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    def metadata(self, model: str) -> Any:
        """GET /v2/models/NAME. Raises TargetError."""
        scheme = "https" if self.is_tls else "http"
        url = f"{scheme}://{self.name}/v2/models/{model}"
        try:
            reply = httpx.get(url, timeout=HEALTH_TIMEOUT_S)
            if reply.status_code != 200:
                raise TargetError(f"{url} answered {reply.status_code}: {reply.text[:200]}")
            return reply.json()
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise TargetError(f"{url}: {error}") from error

    def why_dead(self) -> str:
        """Why a server that the job started is gone, or nothing."""
        code = None if self.server is None else self.server.process.poll()
        return "" if code is None else f"the server ended with {code}"


@contextlib.contextmanager
def running(
    target: AnyTarget, *, repository: Path, cache_dir: Path, log_dir: Path
) -> Iterator[Running]:
    """Raises TargetError where it does not start. One that dies later raises nothing here."""
    if target.url is not None:
        parts = urlsplit(target.url)
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        yield Running(parts.hostname or "", port, is_tls, target.pid)
        return
    begin_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(
                _started(target, repository=repository, cache_dir=cache_dir, log_dir=log_dir)
            )
        except (servers.ServerError, OSError) as error:
            raise TargetError(str(error)) from error
        cold_start_ms = (time.monotonic() - begin_s) * 1000
        try:
            yield Running(
                "127.0.0.1", server.port, False, server.process.pid, cold_start_ms, server
            )
        finally:
            with contextlib.suppress(servers.ServerError):  # rows say already that it has died
                stack.close()


@contextlib.contextmanager
def _started(
    target: AnyTarget, *, repository: Path, cache_dir: Path, log_dir: Path
) -> Iterator[servers.Server]:
    if isinstance(target, Remontoir):
        flags = ["--policy", target.policy, "--device", target.device]
        for name, value in target.serve.items():
            flag = f"--{name.replace('_', '-')}"
            flags += [flag] if value is True else [flag, str(value)]
        with servers.remontoir(
            repository, cache_dir=cache_dir, log_dir=log_dir, cpus=target.cpus, flags=flags
        ) as server:
            yield server
        return
    port = servers.free_port()
    words = {"{port}": str(port), "{models}": str(repository.resolve()), "{python}": sys.executable}

    def filled(text: str) -> str:
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    command = [filled(text) for text in target.start]
    environ = {name: filled(value) for name, value in target.environ.items()}
    with servers.program(
        Path(command[0]).name,
        command,
        port=port,
        cpus=target.cpus,
        log_dir=log_dir,
        ready_path=target.ready,
        environ=environ,
    ) as server:
        yield server


def cpus_of(text: str) -> set[int]:
    """taskset's words as numbers: 0,2-3."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
