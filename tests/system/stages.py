"""Gateways as processes, ready for some trouble, and what the machine knows about them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.gateway.running import RunningGateway, running_gateway
from tests.system.clients import state_on
from tests.system.puppets import EMULATION, MODELS, PuppetWorker

HANG_S = 30.0


class Stage(NamedTuple):
    """A gateway without workers of its own; puppets join at `workers`."""

    gateway: RunningGateway
    workers: str  # ZeroMQ address

    @property
    def url(self) -> str:
        return self.gateway.url


@contextmanager
def open_stage(scratch: Path, *flags: str, settings: str = "") -> Iterator[Stage]:
    """`settings` is the text of a configuration file."""
    (scratch / "settings.yaml").write_text(settings or "{}")
    emulated = ("--emulate", EMULATION, "--workers", "0")
    config = ("--config", str(scratch / "settings.yaml"))
    with running_gateway(*emulated, *config, *flags, scratch=scratch) as gateway:
        (socket,) = (scratch / "tmp").glob("remontoir-*/workers")
        yield Stage(gateway, f"ipc://{socket}")


def until(condition: Callable[[], bool], what: str) -> None:
    """Polls for what another process will bring about; the time is a guard against hanging."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {HANG_S:g} s"
        time.sleep(0.02)


def resident_bytes(pid: int) -> int:
    """Memory of a process that belongs to it alone or is anonymous, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no RssAnon")


@contextmanager
def joined(
    stage: Stage, models: Sequence[str], *, name: str = "puppet", **options: Any
) -> Iterator[PuppetWorker]:
    """A puppet that the scheduler counts on, for these emulated models, until the block ends."""
    specs = [MODELS[model] for model in models]
    with PuppetWorker(stage.workers, specs, name=name, **options) as puppet:
        until(lambda: state_on(stage.url, models[0], name) is not None, f"{name} joins")
        yield puppet
    until(lambda: state_on(stage.url, models[0], name) is None, f"{name} leaves")


def open_files_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
