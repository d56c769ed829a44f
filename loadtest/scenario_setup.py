"""What one run in virtual time consists of: models, devices, faults, workload, settings.

Owns the words of a scenario's body, their defaults and their checks. It reads no file
(loadtest/scenario.py) and builds nothing (loadtest/stage.py).
"""

import math
import re
from collections.abc import Iterator

import msgspec

from loadtest.workloads import WorkloadEntry
from scheduler.spec import MILLISECOND_NS, SchedulerConfig


def _need(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)


def _need_finite(said: msgspec.Struct) -> None:
    """YAML knows .nan and .inf; no key of a scenario means something with them."""
    for field in said.__struct_fields__:
        value = getattr(said, field)
        if isinstance(value, float):
            _need(math.isfinite(value), f"{field} {value} is no finite number")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A straight line (first_ms, each_ms, load_ms, weights_mb), or a model of a catalogue that
    `remontoir compile` wrote (catalogue, model). Decimal megabytes.
    """

    first_ms: float | None = None
    each_ms: float | None = None
    load_ms: float | None = None
    weights_mb: float | None = None
    catalogue: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        _need_finite(self)
        line = [self.first_ms, self.each_ms, self.load_ms, self.weights_mb]
        measured = [self.catalogue, self.model]
        is_line = None not in line and measured == [None, None]
        is_measured = None not in measured and line == [None] * 4
        if not (is_line or is_measured):
            raise ValueError(
                "a profile is first_ms, each_ms, load_ms and weights_mb, or catalogue and model"
            )


class Models(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`count` models alike: resnet0, resnet1, ...; one alone is called `name`.

    `profile` is "v100/ROW" of the Clockwork paper's table, or a Profile. With a glob, as in
    "v100/*", there are `count` of every row that matches and that no glob of `without` matches, and
    `name` has `{profile}` where the row's name goes.
    """

    name: str
    profile: str | Profile
    count: int = 1
    without: tuple[str, ...] = ()
    max_batch: int = 16
    runs_exact_batch: bool = False
    pinned: bool = False

    def __post_init__(self) -> None:
        _need(self.count >= 1, f"count {self.count} is less than 1")
        is_glob = isinstance(self.profile, str) and "*" in self.profile
        _need(
            is_glob == ("{profile}" in self.name),
            f"name {self.name!r} has {{profile}} in it if, and only if, profile is a glob",
        )


class SpikeTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An execution takes, with this probability, between min and max longer."""

    probability: float
    min_ms: float
    max_ms: float

    def __post_init__(self) -> None:
        _need_finite(self)
        _need(0 <= self.probability <= 1, f"probability {self.probability:g} is not in 0 ... 1")
        _need(
            0 <= self.min_ms <= self.max_ms, f"{self.min_ms:g} ... {self.max_ms:g} ms is no range"
        )


class Devices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`count` workers with one device each. Pages are MiB, as those of `remontoir serve`.

    `resident`: whose weights are there at the start: all models', none, or as many as fit, each
    device beginning with its own share. Noise is the standard deviation of a factor around 1;
    jitter the mean of an exponential tail that every message takes on top of `delay_ms`.
    """

    count: int = 1
    pages: int = 1376  # 21.5 GiB: what Clockwork (OSDI 2020) keeps of a V100
    page_mb: int = 16
    shares_exec_core: bool = False
    resident: str = "none"
    exec_noise: float = 0.0
    load_noise: float = 0.0
    spikes: SpikeTimes | None = None
    delay_ms: float = 0.1
    jitter_ms: float = 0.0

    def __post_init__(self) -> None:
        _need_finite(self)
        _need(self.resident in ("all", "none", "fit"), f"resident {self.resident!r}: all|none|fit")
        for field in ("count", "pages", "page_mb"):
            _need(getattr(self, field) >= 1, f"{field} {getattr(self, field)} is less than 1")
        for field in ("exec_noise", "load_noise", "delay_ms", "jitter_ms"):
            _need(getattr(self, field) >= 0, f"{field} {getattr(self, field):g} is negative")


class Crash(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="crash",
):
    """Worker number `worker` dies, is missed `detect_ms` later, and is back, empty, after `down_s`
    (never, where that is not given).
    """

    worker: int
    at_s: float
    down_s: float | None = None
    detect_ms: float = 1000.0  # the silence after which a gateway gives a worker up

    def __post_init__(self) -> None:
        _need_finite(self)
        _need(self.at_s >= 0, f"at_s {self.at_s:g} is negative")
        _need(self.detect_ms >= 0, f"detect_ms {self.detect_ms:g} is negative")
        _need(self.down_s is None or self.down_s > 0, f"down_s {self.down_s} is not positive")


class Stall(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="stall",
):
    """The controller handles nothing for so long, once or every `every_s`."""

    at_s: float
    stall_ms: float
    every_s: float | None = None

    def __post_init__(self) -> None:
        _need_finite(self)
        _need(self.at_s >= 0, f"at_s {self.at_s:g} is negative")
        _need(self.stall_ms > 0, f"stall_ms {self.stall_ms:g} is not positive")
        _need(self.every_s is None or self.every_s > 0, f"every_s {self.every_s} is not positive")


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a run depends on but its policy and seed. Requests that arrive before `warmup_s`
    are played and not counted.
    """

    duration_s: float
    models: tuple[Models, ...]
    workload: tuple[WorkloadEntry, ...]
    devices: tuple[Devices, ...] = (Devices(),)
    faults: tuple[Crash | Stall, ...] = ()
    warmup_s: float = 0.0
    full_duration_s: float | None = None
    scheduler: dict[str, int | float | bool | str | dict[str, float]] = {}
    client_delay_ms: float = 0.0
    sample_ms: float = 100.0

    def __post_init__(self) -> None:
        _need_finite(self)
        for field in ("models", "workload", "devices"):
            _need(bool(getattr(self, field)), f"{field} is empty")
        full_s = self.duration_s if self.full_duration_s is None else self.full_duration_s
        shortest_s = min(self.duration_s, full_s)
        _need(
            0 <= self.warmup_s < shortest_s,
            f"warmup_s {self.warmup_s:g} does not end before the run, at {shortest_s:g} s",
        )
        _need(self.client_delay_ms >= 0, f"client_delay_ms {self.client_delay_ms:g} is negative")
        _need(self.sample_ms > 0, f"sample_ms {self.sample_ms:g} is not positive")
        num_workers = sum(devices.count for devices in self.devices)
        for fault in self.faults:
            if isinstance(fault, Crash):
                _need(
                    0 <= fault.worker < num_workers,
                    f"faults: crash of worker {fault.worker}, there are 0 ... {num_workers - 1}",
                )
        self.scheduler_config()

    def never_reached(self, duration_s: float) -> Iterator[str]:
        """A sentence on each fault that comes too late for a run of this length."""
        for fault in self.faults:
            if fault.at_s >= duration_s:
                yield (
                    f"faults: the {fault.__struct_config__.tag} at {fault.at_s:g} s comes after "
                    f"the end of the run, at {duration_s:g} s"
                )

    def scheduler_config(self) -> SchedulerConfig:
        """`scheduler` as the core wants it: fields that are `_ns` there may be `_ms` here.

        The margin for what a gateway cannot see, an answer's way to its client, is just that way.
        """
        fields = SchedulerConfig.__struct_fields__
        given: dict[str, object] = {"reply_margin_ns": round(self.client_delay_ms * MILLISECOND_NS)}
        for key, value in self.scheduler.items():
            if isinstance(value, float):
                _need(math.isfinite(value), f"scheduler: {key} {value} is no finite number")
            in_ns = key.removesuffix("_ms") + "_ns"
            if key in fields:
                given[key] = value
            elif key.endswith("_ms") and in_ns in fields and isinstance(value, int | float):
                given[in_ns] = round(value * MILLISECOND_NS)
            else:
                known = ", ".join(re.sub("_ns$", "_ms", field) for field in fields)
                raise ValueError(f"scheduler: no setting {key!r} ({value!r}); there are {known}")
        return msgspec.convert(given, SchedulerConfig)
