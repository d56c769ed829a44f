"""`remontoir serve`: settings in, a serving process out, and its orderly end.

Owns signals (SIGHUP has the tenants file read again), and what a person reads while it starts and
stops. It leaves nothing behind, however
it ends: no process, no socket file, no shared memory.

Start: HTTP first, so that a taken port is known before minutes of compiling and /readyz can say
"starting"; compile; start workers; serve when the first has joined. Stop: /readyz says no for
`drain_s`, then requests are refused, those admitted are answered, workers end, the process ends.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from gateway import rereading
from gateway.assembly import Assembly
from gateway.command import announce, host_process
from gateway.command.host_process import ServeError
from gateway.config import MEBIBYTE, GatewayConfig
from gateway.tenants.tenants_file import Tenants
from gateway.variants.groups_file import Groups
from scheduler.spec import SECOND_NS

logger = logging.getLogger(__name__)


def run(config: GatewayConfig, *, log_level: str, console: Console) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises ServeError."""
    begin_ns = time.monotonic_ns()
    host_process.start_logging(log_level, config.log_format)
    host_process.emulation_of(config)
    host_process.check_models_dir(config)
    host_process.policy_of(config)
    tenants = host_process.tenants_of(config)
    groups = host_process.groups_of(config)
    host_process.raise_open_files_limit()
    host_process.answer_first()
    with (
        host_process.listen(
            config.host, config.port, for_anybody=config.insecure or tenants is not None
        ) as listener,
        host_process.private_directory() as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        try:
            runner.run(
                _live(config, tenants, groups, listener, directory, log_level, console, begin_ns)
            )
        except asyncio.CancelledError:
            raise ServeError("ended at once, as asked a second time", exit_code=130) from None


async def _live(
    config: GatewayConfig,
    tenants: Tenants | None,
    groups: Groups,
    listener: socket.socket,
    directory: Path,
    log_level: str,
    console: Console,
    begin_ns: int,
) -> None:
    """The whole life: start, serve, drain, stop. A second signal skips what is left of it."""
    parts = Assembly(
        config, directory=directory, log_level=log_level, tenants=tenants, groups=groups
    )
    loop = asyncio.get_running_loop()
    life = asyncio.current_task()
    stop_asked = asyncio.Event()

    def on_signal() -> None:
        if stop_asked.is_set() and life is not None:
            life.cancel()
        stop_asked.set()

    def on_hangup() -> None:
        rereading.read_again(config, parts, console)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    if rereading.has_files(config):
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
    elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not under nohup
        loop.add_signal_handler(signal.SIGHUP, on_signal)
    parts.open(listener)
    try:
        is_up = await _unless(stop_asked, parts.broken, parts.start())
        if is_up:
            took_s = (time.monotonic_ns() - begin_ns) / SECOND_NS
            _announce(config, parts, listener, console, took_s)
            await _unless(stop_asked, parts.broken, asyncio.Event().wait())
            with contextlib.suppress(OSError):  # the terminal may be what went away
                console.print(f"Draining for {config.drain_s:g} s; Ctrl-C again ends at once.")
            await parts.drain()
        if parts.broken.done():
            parts.broken.result()
    except asyncio.CancelledError:
        parts.hurry()
        raise
    finally:
        await parts.close()


async def _unless(
    stop_asked: asyncio.Event, broken: asyncio.Future[None], step: Awaitable[object]
) -> bool:
    """Whether the step ended before a signal came. Raises what it raises, or what broke us."""
    work = asyncio.ensure_future(step)
    stop = asyncio.ensure_future(stop_asked.wait())
    tasks: list[asyncio.Future[Any]] = [work, stop]
    try:
        await asyncio.wait([*tasks, broken], return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            broken.result()
        if work.done():
            work.result()
        return work.done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _announce(
    config: GatewayConfig,
    parts: Assembly,
    listener: socket.socket,
    console: Console,
    took_s: float,
) -> None:
    host, port = listener.getsockname()[:2]
    announce.print_started(
        console,
        url=announce.url_of(host, port, scheme="http" if config.tls_cert is None else "https"),
        specs=list(parts.catalog.values()),
        page_bytes=config.page_mb * MEBIBYTE,
        bodies_dir=host_process.cache_dir(config) / "examples",
        took_s=took_s,
        has_page=config.ui_pages > 0,
        ca_cert=config.tls_cert,
        needs_key=config.tenants_file is not None or config.tenants is not None,
    )
