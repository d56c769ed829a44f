"""The second shell: the same scheduler object in virtual time.

There is no simulated scheduler, only simulated workers, clock and network. `run` pops the earliest
of {next arrival, next message, next wake-up}, calls `handle`, and turns every Send into a later
ActionFinished. Deterministic: a heap ordered by (instant, sequence), and seeded noise.
"""

import random
from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Result,
    Span,
)
from scheduler.events import (
    ActionFinished,
    Event,
    Outcome,
    Reply,
    RequestArrived,
    Send,
    Tick,
    WorkerJoined,
)
from scheduler.scheduler import Scheduler
from scheduler.spec import DeviceSpec, ModelSpec

Arrival = tuple[int, Event]
Observer = Callable[[int, Event, list[Send | Reply]], None]


class SimulatedWorker:
    """Honours windows, lanes and pages as a real worker does; durations from profiles plus noise.

    `noise` is the standard deviation of a factor around 1 (0.005 is a tight GPU, 0.05 a loose one);
    `delay_ns` is the one-way latency of a message. `fail` may name a code for an action, to play
    trouble. `resident` models have their weights on the device when it joins.
    """

    def __init__(
        self,
        worker_id: str,
        device: DeviceSpec,
        models: Iterable[ModelSpec],
        *,
        seed: int = 0,
        noise: float = 0.0,
        delay_ns: int = 100_000,
        fail: Callable[[Action], Code | None] | None = None,
        resident: Iterable[str] = (),
    ) -> None:
        self.worker_id = worker_id
        self.device = device
        self.models = {model.name: model for model in models}
        self.delay_ns = delay_ns
        self._noise = noise
        self._random = random.Random(seed)
        self._fail = fail
        self._exec_free_ns = 0
        self._load_free_ns = 0
        # name → (pages, instant from which the weights may be used)
        self._resident: dict[str, tuple[int, int]] = {
            name: (self.models[name].num_pages(device.page_bytes), 0) for name in resident
        }

    def joined(self) -> WorkerJoined:
        return WorkerJoined(
            self.worker_id, self.device, tuple(self.models.values()), tuple(self._resident)
        )

    def run(self, action: Action, received_ns: int) -> tuple[int, Result]:
        """(instant at which the result leaves the worker, the result)."""
        code = self._fail(action) if self._fail is not None else None
        if isinstance(action, Infer):
            return self._infer(action, received_ns, code)
        if isinstance(action, LoadWeights):
            return self._load(action, received_ns, code)
        return self._evict(action, received_ns, code)

    def _infer(self, action: Infer, received_ns: int, code: Code | None) -> tuple[int, Result]:
        start_ns = max(received_ns, action.earliest_ns, self._exec_free_ns)
        if code is None and start_ns > action.latest_ns:
            code = Code.TOO_LATE
        if code is None and action.model not in self.models:
            code = Code.UNKNOWN_MODEL
        if code is None and self._resident.get(action.model, (0, start_ns + 1))[1] > start_ns:
            code = Code.WEIGHTS_MISSING
        if code is not None:
            at_ns = max(received_ns, min(start_ns, action.latest_ns))
            return at_ns, InferResult(action.action_id, code, code.name, received_ns)
        shape = self.models[action.model].profile.shapes[0]
        duration_ns = self._vary(_exec_ns(shape.exec_ns, action.batch_size))
        end_ns = start_ns + duration_ns
        self._exec_free_ns = end_ns
        nothing = Span(start_ns, start_ns, 0)
        span = Span(start_ns, end_ns, duration_ns)
        output = Span(end_ns, end_ns, 0)
        return end_ns, InferResult(
            action.action_id, Code.OK, "", received_ns, nothing, span, output
        )

    def _load(self, action: LoadWeights, received_ns: int, code: Code | None) -> tuple[int, Result]:
        shared = self.device.shares_exec_core
        free_ns = max(self._load_free_ns, self._exec_free_ns) if shared else self._load_free_ns
        start_ns = max(received_ns, action.earliest_ns, free_ns)
        used = sum(pages for pages, _ in self._resident.values())
        if code is None and start_ns > action.latest_ns:
            code = Code.TOO_LATE
        if code is None and action.model in self._resident:
            code = Code.ALREADY_RESIDENT
        if code is None and used + action.num_pages > self.device.total_pages:
            code = Code.PAGES_EXHAUSTED
        if code is not None:
            return start_ns, LoadResult(action.action_id, code, code.name, received_ns)
        duration_ns = self._vary(self.models[action.model].profile.load_ns)
        end_ns = start_ns + duration_ns
        self._load_free_ns = end_ns
        if shared:
            self._exec_free_ns = end_ns
        self._resident[action.model] = (action.num_pages, end_ns)
        span = Span(start_ns, end_ns, duration_ns)
        return end_ns, LoadResult(action.action_id, Code.OK, "", received_ns, span)

    def _evict(
        self, action: EvictWeights, received_ns: int, code: Code | None
    ) -> tuple[int, Result]:
        start_ns = max(received_ns, action.earliest_ns, self._load_free_ns)
        if code is None and action.model not in self._resident:
            code = Code.WEIGHTS_MISSING
        if code is None:
            del self._resident[action.model]
            code = Code.OK
        return start_ns, EvictResult(action.action_id, code, code.name, received_ns)

    def _vary(self, duration_ns: int) -> int:
        factor = self._random.gauss(1.0, self._noise) if self._noise else 1.0
        return max(1, int(duration_ns * max(0.1, factor)))


def _exec_ns(exec_ns: dict[int, int], rows: int) -> int:
    """Profiled time of a batch; between the compiled sizes, on the line that joins them."""
    if rows in exec_ns:
        return exec_ns[rows]
    below = max((n for n in exec_ns if n < rows), default=min(exec_ns))
    above = min((n for n in exec_ns if n > rows), default=below)
    if above == below:
        return exec_ns[below] * rows // below
    slope = (exec_ns[above] - exec_ns[below]) / (above - below)
    return int(exec_ns[below] + slope * (rows - below))


class Simulation:
    """One run: scheduler, workers, a heap of what is still to come, and every outcome."""

    def __init__(
        self,
        scheduler: Scheduler,
        workers: Iterable[SimulatedWorker],
        *,
        observer: Observer | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.now = 0
        # request id → (instant, outcome); exactly one each
        self.outcomes: dict[int, tuple[int, Outcome]] = {}
        self._workers = {worker.worker_id: worker for worker in workers}
        self._observer = observer
        self._heap: list[tuple[int, int, Event]] = []
        self._sequence = 0
        for worker in self._workers.values():
            self.at(0, worker.joined())

    def join(self, worker: SimulatedWorker) -> None:
        """One more worker, or one that comes back, under an id of its own."""
        self._workers[worker.worker_id] = worker
        self.at(self.now, worker.joined())

    def at(self, instant_ns: int, event: Event) -> None:
        """Let an event happen then."""
        self._sequence += 1
        heappush(self._heap, (instant_ns, self._sequence, event))

    def run(self, arrivals: Iterable[Arrival] = (), until_ns: int | None = None) -> None:
        """Play arrivals (in time order) and what follows, to the end or to `until_ns`.

        Raises AssertionError if nothing more will happen while a request is open: the scheduler has
        lost a wake-up, and with a real clock somebody would wait for ever.
        """
        source = iter(arrivals)
        pending = next(source, None)
        while True:
            if pending is not None and (not self._heap or pending[0] <= self._heap[0][0]):
                self.at(*pending)
                pending = next(source, None)
                continue
            wakeup = self.scheduler.next_wakeup()
            at_ns = self._heap[0][0] if self._heap else None
            if at_ns is None and not self.scheduler.num_open:
                return
            is_tick = wakeup is not None and (at_ns is None or wakeup < at_ns)
            at_ns = wakeup if is_tick else at_ns
            if at_ns is None:
                open_ids = self.scheduler.open_request_ids()
                raise AssertionError(f"nothing will wake the core, and open are: {open_ids}")
            if until_ns is not None and at_ns > until_ns:
                if pending is not None:
                    self.at(*pending)
                return
            event = Tick() if is_tick else heappop(self._heap)[2]
            self.step(event, max(at_ns, self.now))

    def step(self, event: Event, now: int) -> None:
        """Hand one event to the scheduler and carry out its commands."""
        self.now = now
        commands = self.scheduler.handle(event, now)
        for command in commands:
            if isinstance(command, Reply):
                if command.request_id in self.outcomes:
                    raise AssertionError(f"request {command.request_id} answered twice")
                self.outcomes[command.request_id] = (now, command.outcome)
            else:
                self._send(command, now)
        if self._observer is not None:
            self._observer(now, event, commands)

    def lose(self, worker_id: str) -> None:
        """The worker dies: what it was doing is never reported. WorkerLost is the caller's to say:
        a gateway notices only after a while.
        """
        del self._workers[worker_id]
        self._heap = [
            entry
            for entry in self._heap
            if not (isinstance(entry[2], ActionFinished) and entry[2].worker_id == worker_id)
        ]
        self._heap.sort()

    def _send(self, command: Send, now: int) -> None:
        worker = self._workers.get(command.worker_id)
        if worker is None:
            return
        left_ns, result = worker.run(command.action, now + worker.delay_ns)
        self.at(left_ns + worker.delay_ns, ActionFinished(command.worker_id, result))


def arrivals_of(requests: Iterable[RequestArrived]) -> list[Arrival]:
    """Requests as arrivals, at their own arrival instants."""
    return sorted(((r.arrival_ns, r) for r in requests), key=lambda pair: pair[0])
