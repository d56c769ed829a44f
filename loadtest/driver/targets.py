"""A job's server: found at its URL, or started on its cores and stopped whatever happens.

Owns where it is and which process it is. What is sent to it is protocols.py's.
"""

import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec

from loadtest import servers
from loadtest.driver import peer_target
from loadtest.driver.bare_loop import BareLoop
from loadtest.driver.job_target import AnyTarget, PeerServer, Remontoir, Spoken
from loadtest.driver.model_files import ModelFile
from loadtest.driver.peer_target import Started
from loadtest.peers.environments import MissingPeer
from loadtest.server_use import Use, use_of

HEALTH_TIMEOUT_S = 5.0

_VARIABLE = re.compile(r"\{env:(\w+)\}")


class TargetError(Exception):
    """The server cannot be asked. The message names it, and has the end of its log."""


class Running(NamedTuple):
    """A server that can be asked, as `target` says. `pid` is None where nobody knows its process,
    `more_pids` finds others of it; `cold_start_ms` is from its start until it was ready, if the
    job started it.
    """

    host: str
    port: int
    is_tls: bool
    target: Spoken
    pid: int | None
    cold_start_ms: float | None = None
    server: servers.Server | None = None
    more_pids: Callable[[], Iterable[int]] = tuple

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    def metadata(self, model: str) -> Any:
        """GET /v2/models/NAME. Raises TargetError."""
        scheme = "https" if self.is_tls else "http"
        url = f"{scheme}://{self.name}{self.target.prefix}/v2/models/{model}"
        try:
            reply = httpx.get(url, timeout=HEALTH_TIMEOUT_S, headers=self.target.headers)
            if reply.status_code != 200:
                raise TargetError(f"{url} answered {reply.status_code}: {reply.text[:200]}")
            return reply.json()
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise TargetError(f"{url}: {error}") from error

    def why_dead(self) -> str:
        """Why a server that the job started is gone, or nothing."""
        code = None if self.server is None else self.server.process.poll()
        return "" if code is None else f"the server ended with {code}"

    def why_gone(self) -> str:
        """Why nobody listens there any more, or nothing. One that does not accept at once may have
        too much to do, which is no reason.
        """
        try:
            socket.create_connection((self.host, self.port), HEALTH_TIMEOUT_S).close()
        except TimeoutError:
            return ""
        except OSError as error:
            return f"nobody listens at {self.name} any more: {error.strerror or error}"
        return ""

    def use(self) -> Use | None:
        """CPU time and memory of all its processes so far."""
        return None if self.pid is None else use_of(self.pid, *self.more_pids())


@contextlib.contextmanager
def running(
    target: AnyTarget,
    *,
    repository: Path,
    files: Mapping[str, ModelFile],
    loops: Mapping[str, BareLoop],
    cache_dir: Path,
    log_dir: Path,
) -> Iterator[Running]:
    """`loops` are needed for a peer alone. Raises TargetError where it does not start. One that
    dies later raises nothing here.
    """
    target = _with_environment(target)
    if not isinstance(target, PeerServer) and target.url is not None:
        parts = urlsplit(target.url)
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        yield Running(parts.hostname or "", port, is_tls, target, target.pid)
        return
    begin_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(
                peer_target.started(target, files, loops, log_dir=log_dir)
                if isinstance(target, PeerServer)
                else _started(target, repository, cache_dir=cache_dir, log_dir=log_dir)
            )
        except (servers.ServerError, MissingPeer, OSError) as error:
            raise TargetError(str(error)) from error
        server = started.server
        try:
            yield Running(
                host="127.0.0.1",
                port=server.port,
                is_tls=False,
                target=started.target,
                pid=server.process.pid,
                cold_start_ms=(time.monotonic() - begin_s) * 1000,
                server=server,
                more_pids=started.more_pids,
            )
        finally:
            with contextlib.suppress(servers.ServerError):  # rows say already that it has died
                stack.close()


@contextlib.contextmanager
def _started(
    target: Spoken, repository: Path, *, cache_dir: Path, log_dir: Path
) -> Iterator[Started]:
    if isinstance(target, Remontoir):
        flags = ["--policy", target.policy, "--device", target.device]
        for name, value in target.serve.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                flags.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                flags += [flag, str(value)]
        with servers.remontoir(
            repository, cache_dir=cache_dir, log_dir=log_dir, cpus=target.cpus, flags=flags
        ) as server:
            yield Started(server, target)
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
        yield Started(server, target)


def _with_environment(target: AnyTarget) -> AnyTarget:
    """Its headers with the variables that they name. Raises TargetError."""

    def value_of(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise TargetError(f"target.headers: the environment has no variable {found[1]}")
        return os.environ[found[1]]

    headers = {name: _VARIABLE.sub(value_of, value) for name, value in target.headers.items()}
    return msgspec.structs.replace(target, headers=headers) if headers else target


def cpus_of(text: str) -> set[int]:
    """taskset's words as numbers: 0,2-3."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
