"""A hand-driven scheduler for tests: short words for events, and every call checked.

Times are milliseconds after an odd large offset, so that a clock read by mistake is visible at
once. After each event the invariants are validated, and no request may be answered twice.
"""

from collections.abc import Sequence

from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    ReleaseModel,
    ReleaseResult,
    Span,
)
from scheduler.device import INITIAL_DELAY_NS
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    ModelAdded,
    ModelForgotten,
    ModelOffered,
    ModelPinned,
    ModelRemoved,
    ModelStaged,
    ModelUnloaded,
    Outcome,
    Reply,
    RequestArrived,
    RequestCancelled,
    RequestsArrived,
    Send,
    StagingEnded,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.invariants import validate
from scheduler.policies import Policy
from scheduler.priority import NORMAL
from scheduler.scheduler import Scheduler
from scheduler.spec import (
    MILLISECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    SchedulerConfig,
    ShapeProfile,
    TensorSpec,
)

# The default policy with literal times: what it finds by itself is test_gap_tracker.py's.
AHEAD_2_MS = "remontoir:schedule_ahead_ms=2"
START_NS = 7_777_777_000_777
PAGE_BYTES = 16 * 2**20
# One row takes 10 ms; batches save time per row, as they do on real devices.
EXEC_MS = {1: 10.0, 2: 16.0, 4: 28.0, 8: 50.0}


def ms(milliseconds: float) -> int:
    """A duration in nanoseconds."""
    return round(milliseconds * MILLISECOND_NS)


def at(milliseconds: float) -> int:
    """An instant: so long after the start of the test's timeline."""
    return START_NS + ms(milliseconds)


def model_spec(
    name: str = "m",
    *,
    exec_ms: dict[int, float] | None = None,
    load_ms: float = 20,
    pages: int = 4,
    exact: bool = True,
    pinned: bool = False,
    content_hash: str = "hash",
    unavailable_reason: str | None = None,
    shapes: Sequence[ShapeProfile] | None = None,
) -> ModelSpec:
    times = EXEC_MS if exec_ms is None else exec_ms
    tensor = TensorSpec("x", "FP32", (-1, 4))
    exec_ns = {rows: ms(duration) for rows, duration in times.items()}
    return ModelSpec(
        name=name,
        version="1",
        content_hash=content_hash,
        platform="test",
        inputs=(tensor,),
        outputs=(tensor,),
        batch_sizes=tuple(sorted(times)),
        runs_exact_batch=exact,
        weights_bytes=pages * PAGE_BYTES,
        profile=ModelProfile(
            load_ns=ms(load_ms),
            shapes=(ShapeProfile("", 4, exec_ns),) if shapes is None else tuple(shapes),
        ),
        is_pinned=pinned,
        unavailable_reason=unavailable_reason,
    )


def device_spec(*, pages: int = 16, shared: bool = False) -> DeviceSpec:
    return DeviceSpec(
        kind="test", page_bytes=PAGE_BYTES, total_pages=pages, shares_exec_core=shared
    )


class Story:
    """A Scheduler, a timeline, and what has been sent and answered so far."""

    def __init__(
        self,
        *specs: ModelSpec,
        config: SchedulerConfig | None = None,
        policy: Policy | str = AHEAD_2_MS,
    ) -> None:
        self.specs = specs or (model_spec(),)
        self.scheduler = Scheduler(config, self.specs, policy=policy)
        self.now_ns = START_NS
        self.outcomes: dict[int, Outcome] = {}
        self.answered_at_ms: dict[int, float] = {}
        self.asked: set[int] = set()
        # every action sent and not yet answered, in the order sent
        self.sent: dict[int, Send] = {}
        self._sent_ns: dict[int, int] = {}

    # ------------------------------------------------------------------ events

    def handle(self, event: Event, at_ms: float | None = None) -> list[Command]:
        """One event, at an instant not before the last; wake-ups due until then come first."""
        commands: list[Command] = []
        if at_ms is not None:
            commands += self.advance(at_ms, inclusive=False)
        return commands + self._step(event, self.now_ns if at_ms is None else at(at_ms))

    def advance(self, to_ms: float, *, inclusive: bool = True) -> list[Command]:
        """Let time pass: a Tick at every wake-up."""
        commands: list[Command] = []
        while True:
            wakeup = self.scheduler.next_wakeup()
            if wakeup is None or wakeup > at(to_ms) or (wakeup == at(to_ms) and not inclusive):
                break
            commands += self._step(Tick(), wakeup)
        self.now_ns = max(self.now_ns, at(to_ms))
        return commands

    def join(
        self,
        worker_id: str = "w",
        *,
        pages: int = 16,
        shared: bool = False,
        specs: Sequence[ModelSpec] | None = None,
        resident: Sequence[str] = (),
        at_ms: float | None = None,
    ) -> list[Command]:
        offered = tuple(self.specs if specs is None else specs)
        spec = device_spec(pages=pages, shared=shared)
        return self.handle(WorkerJoined(worker_id, spec, offered, tuple(resident)), at_ms)

    def lose(self, worker_id: str = "w", *, at_ms: float | None = None) -> list[Command]:
        for action_id in [i for i, send in self.sent.items() if send.worker_id == worker_id]:
            del self.sent[action_id]
        return self.handle(WorkerLost(worker_id, "silent for 1 s"), at_ms)

    def arrive(
        self,
        request_id: int,
        model: str = "m",
        *,
        slo_ms: float = 100,
        at_ms: float | None = None,
        rows: int = 1,
        batch_key: str = "",
        shape_key: str = "",
        elements: int = 4,
        do_not_queue: bool = False,
        tenant: str = "",
        priority: int = NORMAL,
    ) -> list[Command]:
        commands = [] if at_ms is None else self.advance(at_ms, inclusive=False)
        arrived = self.arrival(
            request_id,
            model,
            slo_ms=slo_ms,
            rows=rows,
            batch_key=batch_key,
            shape_key=shape_key,
            elements=elements,
            do_not_queue=do_not_queue,
            tenant=tenant,
            priority=priority,
        )
        return commands + self.handle(arrived)

    def arrival(
        self,
        request_id: int,
        model: str = "m",
        *,
        slo_ms: float = 100,
        rows: int = 1,
        batch_key: str = "",
        shape_key: str = "",
        elements: int = 4,
        do_not_queue: bool = False,
        tenant: str = "",
        priority: int = NORMAL,
    ) -> RequestArrived:
        """The event, not handled yet."""
        return RequestArrived(
            request_id,
            model,
            self.now_ns,
            self.now_ns + ms(slo_ms),
            rows,
            batch_key,
            shape_key,
            elements,
            do_not_queue,
            tenant,
            priority,
        )

    def cancel(self, request_id: int, *, at_ms: float | None = None) -> list[Command]:
        return self.handle(RequestCancelled(request_id), at_ms)

    def add(self, spec: ModelSpec, *, at_ms: float | None = None) -> list[Command]:
        return self.handle(ModelAdded(spec), at_ms)

    def remove(self, model: str = "m", *, at_ms: float | None = None) -> list[Command]:
        return self.handle(ModelRemoved(model, "test"), at_ms)

    def unload(self, model: str = "m", *, at_ms: float | None = None) -> list[Command]:
        return self.handle(ModelUnloaded(model), at_ms)

    def offer(
        self, spec: ModelSpec, worker_id: str = "w", *, at_ms: float | None = None
    ) -> list[Command]:
        return self.handle(ModelOffered(worker_id, spec), at_ms)

    def stage(self, model: str, replaces: str, *, at_ms: float | None = None) -> list[Command]:
        return self.handle(ModelStaged(model, replaces), at_ms)

    def end_staging(self, model: str, *, at_ms: float | None = None) -> list[Command]:
        return self.handle(StagingEnded(model), at_ms)

    def forget(self, model: str, *, at_ms: float | None = None) -> list[Command]:
        return self.handle(ModelForgotten(model), at_ms)

    def pin(self, model: str, is_pinned: bool = True) -> list[Command]:
        return self.handle(ModelPinned(model, is_pinned))

    def finish(
        self,
        action: Action,
        *,
        at_ms: float | None = None,
        took_ms: float | None = None,
        code: Code = Code.OK,
        message: str = "",
    ) -> list[Command]:
        """The worker answers; without `took_ms`, what it did lasted as long as expected."""
        send = self.sent[action.action_id]
        end_ns = self.now_ns if at_ms is None else at(at_ms)
        if isinstance(action, EvictWeights):
            return self._finish(send, EvictResult(action.action_id, code, message, end_ns), at_ms)
        if isinstance(action, ReleaseModel):
            done_released = ReleaseResult(action.action_id, code, message, end_ns, 1000)
            return self._finish(send, done_released, at_ms)
        duration_ns = action.expected_duration_ns if took_ms is None else ms(took_ms)
        span = Span(end_ns - duration_ns, end_ns, duration_ns)
        received_ns = min(end_ns, self._sent_ns[action.action_id] + INITIAL_DELAY_NS)
        if isinstance(action, LoadWeights):
            done = LoadResult(action.action_id, code, message, received_ns, span)
            return self._finish(send, done, at_ms)
        if code is not Code.OK:
            return self._finish(send, InferResult(action.action_id, code, message), at_ms)
        before = Span(span.begin_ns, span.begin_ns, 0)
        after = Span(end_ns, end_ns, 0)
        done_ok = InferResult(action.action_id, code, message, received_ns, before, span, after)
        return self._finish(send, done_ok, at_ms)

    def _finish(
        self, send: Send, result: InferResult | LoadResult | EvictResult, at_ms: float | None
    ) -> list[Command]:
        del self.sent[result.action_id]
        return self.handle(ActionFinished(send.worker_id, result), at_ms)

    def _step(self, event: Event, now: int) -> list[Command]:
        self.now_ns = now
        if isinstance(event, RequestArrived):
            self.asked.add(event.request_id)
        if isinstance(event, RequestsArrived):
            self.asked.update(arrived.request_id for arrived in event.requests)
        commands = self.scheduler.handle(event, now)
        validate(self.scheduler)
        for command in commands:
            if isinstance(command, Send):
                assert command.action.action_id not in self.sent
                self.sent[command.action.action_id] = command
                self._sent_ns[command.action.action_id] = now
            else:
                assert command.request_id in self.asked, "an answer nobody asked for"
                assert command.request_id not in self.outcomes, "answered twice"
                self.outcomes[command.request_id] = command.outcome
                self.answered_at_ms[command.request_id] = (now - START_NS) / MILLISECOND_NS
        return commands

    # ------------------------------------------------------------------ looking

    def check_answers(self) -> None:
        """Every request asked is answered or still open, and none is both."""
        open_ids = set(self.scheduler.open_request_ids())
        assert open_ids.isdisjoint(self.outcomes)
        assert open_ids | set(self.outcomes) == self.asked

    @property
    def infers(self) -> list[Infer]:
        """Infers in flight, in the order sent."""
        return [s.action for s in self.sent.values() if isinstance(s.action, Infer)]

    @property
    def loads(self) -> list[LoadWeights]:
        return [s.action for s in self.sent.values() if isinstance(s.action, LoadWeights)]

    @property
    def evicts(self) -> list[EvictWeights]:
        return [s.action for s in self.sent.values() if isinstance(s.action, EvictWeights)]

    @property
    def releases(self) -> list[ReleaseModel]:
        return [s.action for s in self.sent.values() if isinstance(s.action, ReleaseModel)]

    def worker_of(self, action: Action) -> str:
        return self.sent[action.action_id].worker_id


def actions_in(commands: Sequence[Command]) -> list[Action]:
    return [command.action for command in commands if isinstance(command, Send)]


def replies_in(commands: Sequence[Command]) -> dict[int, Outcome]:
    return {c.request_id: c.outcome for c in commands if isinstance(c, Reply)}
