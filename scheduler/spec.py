"""Facts that do not change while they are used: models, devices, settings of the core.

All times are integer nanoseconds (adr/0006). Nothing here has behaviour beyond arithmetic on its
own fields.
"""

from typing import Final

import msgspec

from scheduler.priority import NORMAL

MILLISECOND_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a model, with the names of the Open Inference Protocol.

    `shape` has -1 wherever a size is free, at the batch axis too. `batch_axis` is the axis that
    counts rows (requests' items), or None for a tensor that all rows of a batch share (silero-vad's
    sample rate), which is therefore part of a request's batch key.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None = 0


class ShapeProfile(msgspec.Struct, frozen=True):
    """Measured execution times of one shape class: rows in the batch → nanoseconds.

    `shape_key` is "" for a model whose non-batch shapes are fixed, else as `shape_key_of` writes
    it. `elements` is the number of input elements of one row, which scales estimates to shapes
    that were never measured.
    """

    shape_key: str
    elements: int
    exec_ns: dict[int, int]


class ModelProfile(msgspec.Struct, frozen=True):
    """What compiling measured on the device that serves."""

    load_ns: int
    shapes: tuple[ShapeProfile, ...]


class SharingSpec(msgspec.Struct, frozen=True):
    """The gateway may answer one request of the model with what another's execution gave.

    Identical requests that wait at the same time are executed once. Answers are kept in up to
    `cache_bytes`, 0 for not at all. What one tenant asked answers another's request only where
    `is_across_tenants`.
    """

    cache_bytes: int = 0
    is_across_tenants: bool = True


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything gateway, scheduler and worker must agree on about one model.

    `batch_sizes` are the compiled sizes, ascending, always starting at 1. Where
    `runs_exact_batch` is true the engine runs any number of rows up to the largest; otherwise a
    batch is padded to the next compiled size. `unavailable_reason` is set for a model that is in
    the repository but cannot be served; such a spec has no profile worth reading. `sharing` is None
    for a model each of whose requests is executed.
    """

    name: str
    version: str
    content_hash: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...]
    runs_exact_batch: bool
    weights_bytes: int
    profile: ModelProfile
    default_slo_ns: int | None = None
    is_pinned: bool = False
    priority: int = NORMAL  # of requests that ask for none (scheduler.priority)
    unavailable_reason: str | None = None
    sharing: SharingSpec | None = None
    # What scheduler and workers call the version that clients know by `name`, where it came while
    # the gateway served (adr/0012). "": the same. In what they are told themselves it is `name`.
    scheduled_as: str = ""

    @property
    def key(self) -> str:
        """Its name in the scheduler."""
        return self.scheduled_as or self.name

    @property
    def public_name(self) -> str:
        """What clients call it."""
        return public_name(self.name)

    @property
    def max_batch_rows(self) -> int:
        return self.batch_sizes[-1]

    def num_pages(self, page_bytes: int) -> int:
        """Pages the weights occupy; a model without weights still takes one, as its marker."""
        return max(1, -(-self.weights_bytes // page_bytes))


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One device of one worker: a page cache and two lanes.

    `shares_exec_core` says that copying weights slows execution (a CPU worker on one core): the
    scheduler then plans LOADs on the exec lane.
    """

    kind: str
    page_bytes: int
    total_pages: int
    shares_exec_core: bool


def shape_key_of(shapes: tuple[tuple[int, ...], ...]) -> str:
    """Name of a shape class: the non-batch shapes of all inputs in spec order, "3x48x320;1"."""
    return ";".join("x".join(map(str, shape)) for shape in shapes)


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Every knob of the core, once, with the reason for its default."""

    # How long before a lane is predicted free its next action is sent, by policies that do not find
    # it themselves. Must hide the way to the worker (0.1-0.5 ms on one host, plus a millisecond of
    # timer granularity), and no more: what is committed cannot be joined or overtaken (Clockwork's
    # 10 ms cost it the 10 ms SLO).
    schedule_ahead_ns: int = 2 * MILLISECOND_NS
    # Infers sent to one device and not yet answered. schedule_ahead is what commits late; this only
    # bounds what a device that has fallen silent holds. Executions of 0.1 ms over a network of
    # 0.5 ms need a dozen on their way.
    max_outstanding_infers: int = 16
    # What an answer needs from the end of an execution to the client, on top of what is measured.
    reply_margin_ns: int = 500_000
    # Beyond this many, queueing is memory without purpose: every one of them costs its payload.
    max_queued_requests: int = 16_384
    # Tenant → weight of the floor it is guaranteed while there is too much to do: half of the
    # devices' time is divided by these (scheduler/tenants.py). Empty: all are one tenant, and
    # nothing is counted.
    tenant_weights: dict[str, float] = {}
    # (event, commands) pairs kept for `story()`.
    story_length: int = 512


def public_name(key: str) -> str:
    """What clients call a model that the scheduler calls so, whatever its version: what is before
    the slash, which is in no directory's name.
    """
    return key.partition("/")[0]
