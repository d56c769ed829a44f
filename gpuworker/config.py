"""Every setting of a worker, once, with its unit in its name; checked at start, then frozen.

It reads neither the environment nor files, except for the default of the cache directory, which is
a function for the command line to call.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from scheduler.shards import ReplicasError, Shards, parse_replicas, parse_together

MEBIBYTE = 1024 * 1024


# The CPU's: all demo models resident, and no surprise on a laptop. A GPU's is what it has free.
CPU_CACHE_BYTES = 1024 * MEBIBYTE


class ConfigError(ValueError):
    """A setting cannot be used; the message names it and its value."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    connect: str  # the gateway's ZeroMQ address
    name: str
    models_dir: Path | None  # None only for an emulated device
    cache_dir: Path
    cache_bytes: int | None  # None: the device's own default
    page_bytes: int
    emulate: str | None = None
    cpu: int | None = None
    device: str = "cpu"  # or "cuda:N"
    intra_op_threads: int = 1  # of an execution on the CPU
    shards: Shards | None = None  # of whose models its replica has some; None: all are made ready
    host_store: int | None = None  # descriptor of weights that the GPUs of this machine share

    def is_ours(self, model: str) -> bool:
        """Whether the model is made ready here."""
        return self.shards is None or self.shards.has(model)

    def validate(self) -> None:
        """Raises ConfigError."""
        if "://" not in self.connect:
            raise ConfigError(f"--connect {self.connect}: not an address like tcp://host:port")
        if not self.name:
            raise ConfigError("--name must not be empty")
        if self.models_dir is None and self.emulate is None:
            raise ConfigError("--models is needed, except with --emulate")
        if self.page_bytes < MEBIBYTE or self.page_bytes % MEBIBYTE:
            raise ConfigError(f"a page of {self.page_bytes} bytes is not a whole number of MiB")
        if self.cache_bytes is not None and self.cache_bytes < self.page_bytes:
            raise ConfigError(
                f"--cache-mb {self.cache_bytes / MEBIBYTE:g} holds no page of "
                f"--page-mb {self.page_bytes / MEBIBYTE:g}"
            )
        if self.cpu is not None and self.cpu not in os.sched_getaffinity(0):
            usable = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            raise ConfigError(f"--cpu {self.cpu} is not among the usable CPUs {usable}")
        check_threads(self.intra_op_threads, device=self.emulate or self.device, cpu=self.cpu)


def check_threads(threads: int, *, device: str, cpu: int | None = None) -> None:
    """Raises ConfigError where an execution cannot have so many CPUs at once."""
    if threads == 1:
        return
    flag = f"--intra-op-threads {threads}"
    if device != "cpu":
        raise ConfigError(f"{flag}: {device} has none, they are for executions on the CPU")
    if cpu is not None:
        raise ConfigError(f"{flag}: with --cpu {cpu} they would take turns on one CPU")
    usable = len(os.sched_getaffinity(0))
    if threads > usable:
        raise ConfigError(f"{flag}: this process may use {usable} CPUs")


def shards_of(
    replica: str | None, replicas: str | None, copies: int, together: Sequence[str] = ()
) -> Shards | None:
    """Of the gateway that this worker is for; None where it is the only one. `together` names
    models that one gateway has together. Raises ConfigError.
    """
    if replica is None and replicas is None:
        return None
    if replica is None or replicas is None:
        given, missing = (
            ("--replicas", "--replica") if replica is None else ("--replica", "--replicas")
        )
        raise ConfigError(f"{given} without {missing}: which models are this worker's?")
    try:
        groups = parse_together(together)
    except ReplicasError as error:
        raise ConfigError(f"--together: {error}") from error
    try:
        return Shards(parse_replicas(replicas), replica, copies=copies, groups=groups)
    except ReplicasError as error:
        raise ConfigError(f"--replicas: {error}") from error


def default_cache_dir() -> Path:
    """$REMONTOIR_CACHE_DIR, else the user's cache directory."""
    explicit = os.environ.get("REMONTOIR_CACHE_DIR")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "remontoir"
