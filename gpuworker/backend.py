"""The seam between the worker runtime and what computes: one device with one engine on it.

It owns the Protocols and the exceptions a backend may refuse with, and nothing else. Everything
above this line counts pages, windows and results; everything below it touches memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from scheduler.actions import Infer
from scheduler.spec import DeviceSpec, ModelSpec
from scheduler.wire import Buffer, DeviceSample, RequestTensors

# What a backend keeps between the phases of one Infer; opaque to the runtime.
Staged = Any


class InvalidInput(Exception):
    """The tensors do not fit the model, or not each other: the sender's fault."""


class EngineError(Exception):
    """The engine failed while executing."""


class DeviceLost(Exception):
    """The device is broken for good, for this process: only a new one may find it again."""


class NotCompiled(Exception):
    """There is no compiled artifact of the model, or a damaged one."""


class Prepared(NamedTuple):
    """A model made ready beside what serves: what it is, and the backend's own of it."""

    spec: ModelSpec
    session: Any


class Telemetry(Protocol):
    """What a device says of itself."""

    @property
    def last(self) -> DeviceSample | None:
        """The last sample, at once: asked for with every batch and every ping, by any thread."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """One device and the engine that executes on it.

    `load`, `evict` and `release` are called by the LOAD lane only and never at the same time,
    `execute` by the EXEC lane only. The two lanes do run at the same time, but never on the same
    model's weights: the page cache pins what executes. `stage` and `unstage` are called by the EXEC
    lane too, or where `overlaps_io` by one thread each, while another batch executes. Any of them
    may raise DeviceLost.
    """

    overlaps_io: bool
    """Whether inputs and outputs of other batches are copied while one executes."""

    def bind_thread(self) -> None:
        """Called first by every thread that calls anything else, but the one that made it."""
        ...

    @property
    def device(self) -> DeviceSpec: ...

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        """Every model of the repository by name, also those with an `unavailable_reason`."""
        ...

    @property
    def telemetry(self) -> Telemetry | None:
        """The same from the start to the end; None for a device that says nothing of itself."""
        ...

    def load(self, model: str, pages: Sequence[int]) -> int:
        """Map the pages under the model's range and copy its weights in; returns device ns.

        If it raises, nothing of the model may be left mapped: the pages are given to others.
        """
        ...

    def evict(self, model: str) -> None:
        """Unmap the model's pages. If it raises, the worker stops: nobody knows what is mapped."""
        ...

    def release(self, model: str) -> int:
        """Give back what is kept for a model without pages, for `load` to make anew.

        Returns the bytes of its copy on the host that were given back.
        """
        ...

    def prepare(self, spec: ModelSpec) -> Prepared:
        """Make a model ready that nobody uses yet, while others are executed and loaded: by a
        thread of its own, and it may take seconds. `spec` is the gateway's; the answer has this
        device's profile. Raises NotCompiled, or whatever says that it cannot be served.
        """
        ...

    def add(self, prepared: Prepared) -> None:
        """From now on it is one of `models`. Called, as `remove`, by the main thread."""
        ...

    def remove(self, model: str) -> None:
        """It is none of `models` any more: it has no pages, and nobody will ask for it again."""
        ...

    def stage(
        self,
        order: Infer,
        tensors: Sequence[RequestTensors],
        views: Sequence[Sequence[memoryview]],
    ) -> Staged:
        """The input phase: check, join and pad the requests' rows. Raises InvalidInput.

        May run before the weights are resident. What it returns is executed and unstaged, or else
        discarded. The views are the received frames; they may be kept for as long as they are used.
        """
        ...

    def execute(self, staged: Staged) -> int:
        """Run the batch; returns device ns. The weights are resident and pinned meanwhile.

        Raises EngineError (any other exception is reported as one, with its type).
        """
        ...

    def unstage(self, staged: Staged) -> tuple[tuple[RequestTensors, ...], list[Buffer]]:
        """The output phase: the outputs of each request and all their bytes, request by request.

        The buffers must never change again: they are sent without copying.
        """
        ...

    def discard(self, staged: Staged) -> None:
        """A staged batch is not unstaged: it was not executed, or that failed."""
        ...

    def close(self) -> None: ...
