"""Puppets for the gateway's tests: moved by hand, they do not think.

`ManualClock` and `ManualTimer` stand for time and the event loop's timers, `PuppetScheduler` for
the core, `PuppetLink` for the way to the workers, `Answers` for the HTTP side's callbacks.
"""

from collections import deque
from collections.abc import Callable, Sequence

from gateway.open_requests import Outputs
from scheduler.actions import Action
from scheduler.events import Command, Event, Outcome, Quote, Rejected, RequestArrived
from scheduler.spec import (
    MILLISECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    ShapeProfile,
    TensorSpec,
)
from scheduler.wire import Buffer, RequestTensors, TensorMeta

# Far from zero and from any real clock: a forgotten time.monotonic_ns() shows at once.
START_NS = 7_000_000_000_000_001


def ms(count: float) -> int:
    """An instant so many milliseconds after the clock's start."""
    return START_NS + round(count * MILLISECOND_NS)


class ManualClock:
    """`clock()` in ns, moved by `advance` and `set`; never backwards."""

    def __init__(self) -> None:
        self.now = START_NS

    def __call__(self) -> int:
        return self.now

    def advance(self, duration_ns: int) -> None:
        assert duration_ns >= 0, "this clock does not go backwards"
        self.now += duration_ns

    def set(self, instant_ns: int) -> None:
        self.advance(instant_ns - self.now)


class ManualTimer:
    """The event loop's `call_later`: remembers what was asked, fires when told."""

    class Handle:
        def __init__(self, delay: float, callback: Callable[[], None]) -> None:
            self.delay = delay
            self.callback = callback
            self.is_cancelled = False

        def cancel(self) -> None:
            self.is_cancelled = True

    def __init__(self) -> None:
        self.handles: list[ManualTimer.Handle] = []

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Handle:
        handle = self.Handle(delay, callback)
        self.handles.append(handle)
        return handle

    @property
    def delays_ms(self) -> list[float]:
        """Of the timers that are armed now, rounded to the microsecond."""
        return [round(handle.delay * 1000, 3) for handle in self.handles if not handle.is_cancelled]

    def fire(self) -> None:
        """Fires the one timer that is armed."""
        (handle,) = [handle for handle in self.handles if not handle.is_cancelled]
        self.handles.clear()
        handle.callback()


class PuppetScheduler:
    """Answers each event with the next of `answers` (nothing when there is none left)."""

    def __init__(self) -> None:
        self.handled: list[tuple[Event, int]] = []
        self.answers: deque[list[Command] | Exception] = deque()
        self.wakeup_ns: int | None = None
        self.foreseen: list[tuple[RequestArrived, int]] = []
        self.refusal: Rejected | None = None
        self.quoted: list[tuple[RequestArrived, int, int]] = []
        self.quote_answer: Quote | Exception = Quote(num_met=1)
        self.stories: dict[int, list[tuple[int, Event, list[Command]]]] = {}

    @property
    def events(self) -> list[Event]:
        return [event for event, _ in self.handled]

    def handle(self, event: Event, now: int) -> list[Command]:
        assert not self.handled or now >= self.handled[-1][1], "now went backwards"
        self.handled.append((event, now))
        answer = self.answers.popleft() if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer

    def foresee(self, event: RequestArrived, now: int) -> Rejected | None:
        self.foreseen.append((event, now))
        return self.refusal

    def verdict(self, event: RequestArrived, now: int) -> Quote:
        return self.quote(event, now)

    def quote(self, event: RequestArrived, now: int, *, count: int = 1) -> Quote:
        self.quoted.append((event, now, count))
        if isinstance(self.quote_answer, Exception):
            raise self.quote_answer
        return self.quote_answer

    def next_wakeup(self) -> int | None:
        return self.wakeup_ns

    def story(self, request_id: int) -> list[tuple[int, Event, list[Command]]]:
        return self.stories.get(request_id, [])


class PuppetLink:
    """Remembers what was sent. `on_send`, if set, is called with the worker's id at each send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Action]] = []
        self.tensors: list[tuple[RequestTensors, ...]] = []
        self.buffers: list[list[bytes]] = []
        self.on_send: Callable[[str], None] | None = None

    def send(
        self,
        worker_id: str,
        action: Action,
        tensors: tuple[RequestTensors, ...],
        buffers: Sequence[Buffer],
    ) -> None:
        self.sent.append((worker_id, action))
        self.tensors.append(tensors)
        self.buffers.append([bytes(buffer) for buffer in buffers])
        if self.on_send is not None:
            self.on_send(worker_id)


class Answers:
    """`answers.to("a")` is an on_done callback that writes down what it was told."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, Outcome]] = []
        self.outputs: dict[str, Outputs | None] = {}

    def to(self, name: str) -> Callable[[Outcome, Outputs | None], None]:
        def on_done(outcome: Outcome, outputs: Outputs | None) -> None:
            self.outcomes.append((name, outcome))
            self.outputs[name] = outputs

        return on_done


def tensors_of(*buffers: Buffer) -> RequestTensors:
    """The metas of UINT8 tensors of one row each."""
    return tuple(TensorMeta((1, len(buffer)), len(buffer)) for buffer in buffers)


def device_spec(*, total_pages: int = 8) -> DeviceSpec:
    return DeviceSpec(
        kind="puppet", page_bytes=16 * 2**20, total_pages=total_pages, shares_exec_core=False
    )


def model_spec(
    name: str = "resnet",
    *,
    content_hash: str = "abc123",
    batch_sizes: tuple[int, ...] = (1, 2, 4),
    exec_ms: float = 3,
    unavailable_reason: str | None = None,
) -> ModelSpec:
    """One UINT8 input and output per row; execution time grows with the batch."""
    exec_ns = {size: round(exec_ms * size * MILLISECOND_NS) for size in batch_sizes}
    return ModelSpec(
        name=name,
        version="1",
        content_hash=content_hash,
        platform="puppet",
        inputs=(TensorSpec(name="x", datatype="UINT8", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype="UINT8", shape=(-1, 4)),),
        batch_sizes=batch_sizes,
        runs_exact_batch=True,
        weights_bytes=16 * 2**20,
        profile=ModelProfile(
            load_ns=5 * MILLISECOND_NS,
            shapes=(ShapeProfile(shape_key="", elements=4, exec_ns=exec_ns),),
        ),
        unavailable_reason=unavailable_reason,
    )
