"""What the HTTP side needs of the dispatcher and may read of the scheduler.

It owns these Protocols alone: the seam that tests put puppets into. It must never grow a method
that changes scheduling state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gateway.dispatcher import Observer, OnDone, OnQuote
from gateway.wakeup_timer import Cancellable
from gateway.workers.gpu_figures import GpuFigures
from scheduler.device import Outstanding, Weights, WeightsState
from scheduler.events import Command, Event, Quote, Rejected, RequestArrived
from scheduler.spec import DeviceSpec, ModelSpec
from scheduler.wire import Buffer, RequestTensors

Clock = Callable[[], int]
# (seconds, callback) → handle: asyncio's loop.call_later, or a hand-driven one in tests.
CallLater = Callable[[float, Callable[[], None]], Cancellable]
# (the dispatcher's id, the textual one); 0 stands for what was refused by `foresee` just now.
OnNamed = Callable[[int, str], None]


class RequestSink(Protocol):
    """gateway.dispatcher.Dispatcher, as far as an endpoint uses it."""

    def next_id(self) -> int: ...
    def submit(
        self,
        arrived: RequestArrived,
        tensors: RequestTensors,
        buffers: list[Buffer],
        on_done: OnDone,
    ) -> None: ...
    def foresee(self, arrived: RequestArrived) -> Rejected | None: ...
    def quote(self, arrived: RequestArrived, count: int, on_quote: OnQuote) -> None: ...
    def verdict(self, arrived: RequestArrived) -> Quote | None: ...
    def is_executing(self, request_id: int) -> bool: ...
    def cancel(self, request_id: int) -> None: ...
    def feed(self, event: Event) -> None: ...


class Observed(Protocol):
    """gateway.dispatcher.Dispatcher, as far as one may watch it for a while."""

    def add_observer(self, observer: Observer) -> None: ...
    def remove_observer(self, observer: Observer) -> None: ...


class ObservedSink(RequestSink, Observed, Protocol):
    """Both."""


class HttpView(Protocol):
    """gateway.inference.endpoint.InferEndpoint, as far as metrics show it."""

    num_open: int

    @property
    def num_body_bytes(self) -> int: ...


class PeerView(Protocol):
    """gateway.replicas.peer.Peer, as metrics show it. `problem` is None while it is asked."""

    problem: str | None
    hop_ns: int
    num_sent: int


class ReplicasView(Protocol):
    """gateway.replicas.forwarding.Forwarding, as metrics show it."""

    @property
    def peers(self) -> Mapping[str, PeerView]: ...
    @property
    def results(self) -> Mapping[tuple[str, str], int]: ...


class DeviceView(Protocol):
    """scheduler.device.DeviceMirror, read only."""

    @property
    def offered(self) -> Mapping[str, ModelSpec]: ...
    @property
    def spec(self) -> DeviceSpec: ...
    @property
    def schedule_ahead_ns(self) -> int: ...
    @property
    def gap_rate(self) -> float: ...
    @property
    def num_held(self) -> int: ...
    @property
    def num_held_late(self) -> int: ...
    @property
    def num_outliers(self) -> int: ...
    @property
    def weights(self) -> Mapping[str, Weights]: ...
    @property
    def outstanding(self) -> Mapping[int, Outstanding]: ...
    def weights_state(self, model: str) -> WeightsState: ...
    def keeps(self, model: str) -> bool: ...
    def offers(self, model: str) -> bool: ...
    def pages_by_state(self) -> Mapping[str, int]: ...


class ConnectionView(Protocol):
    """gateway.workers.link.Connection: a worker that has joined."""

    @property
    def worker_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def rtt_ns(self) -> int: ...
    @property
    def clock_offset_ns(self) -> int: ...


class LinkView(Protocol):
    """gateway.workers.link.WorkerLink: what GPUs say of themselves, and what nobody understood."""

    def connections(self) -> Sequence[ConnectionView]: ...
    @property
    def gpus(self) -> Mapping[str, GpuFigures]: ...
    @property
    def malformed_frames(self) -> int: ...
    @property
    def unknown_senders(self) -> int: ...
    @property
    def unreadable_replies(self) -> int: ...
    @property
    def num_superseded(self) -> int: ...
    @property
    def refused_connections(self) -> Mapping[str, int]: ...


class SchedulerView(Protocol):
    """scheduler.scheduler.Scheduler, read only."""

    @property
    def models(self) -> Mapping[str, ModelSpec]: ...
    @property
    def devices(self) -> Mapping[str, DeviceView]: ...
    @property
    def anomalies(self) -> Mapping[str, int]: ...
    @property
    def num_queued(self) -> int: ...
    @property
    def num_serving(self) -> int: ...
    def offered_load(self, now: int) -> float: ...
    def queue_depth(self, model: str) -> int: ...
    def staging_of(self, model: str) -> tuple[bool, str | None]: ...
    def recent_log(self) -> Sequence[tuple[int, Event, list[Command]]]: ...
