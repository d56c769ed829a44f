"""The second shell: the same scheduler object in virtual time.

There is no simulated scheduler, only simulated workers, clock and network. `run` pops the earliest
of {next arrival, next message, next wake-up}, calls `handle`, and carries every Send to its worker
and every result back. It must never look into the scheduler's state or decide for it.
Deterministic: instants are integers, ties go by the sequence in which entries were made, and noise
is seeded, so that one scenario has one decision log.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import NamedTuple

from scheduler.actions import Action
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Outcome,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
    Tick,
    WorkerLost,
)
from scheduler.scheduler import Scheduler
from scheduler.simulated_worker import SimulatedWorker, Spikes

__all__ = ["Arrival", "Observer", "SimulatedWorker", "Simulation", "Spikes", "arrivals_of"]

Arrival = tuple[int, Event]
Handle = Callable[[Event, int], list[Command]]
Observer = Callable[[int, Event, list[Command]], None]
# (request id, outcome, instant): a closed-loop client hears its answer, and may ask again
OnAnswer = Callable[[int, Outcome, int], None]


class _Order(NamedTuple):
    """An action that arrives at its worker."""

    worker: SimulatedWorker
    action: Action


class _Wake(NamedTuple):
    """The worker wanted to be called."""

    worker: SimulatedWorker


class _Stall(NamedTuple):
    """The controller hears nothing until then."""

    until_ns: int


class _Call(NamedTuple):
    """Something that the shell's owner wants done."""

    do: Callable[[], None]


_Entry = Event | _Order | _Wake | _Stall | _Call
_OURS = (_Order, _Wake, _Stall, _Call)
_ASIDE = (_Order, _Wake, _Call)  # the scheduler does not notice them


class Simulation:
    """One run: scheduler, workers, and a heap of what is still to come.

    `observer` sees every (now, event, commands). `on_answer` hears every answer and may call `at`
    with what the client does next. `gathers_arrivals`: requests that arrive at one instant enter as
    one RequestsArrived, as they do where a gateway reads them in one turn of its loop.
    `keeps_outcomes`: off for runs of millions, whose observer keeps what it needs. `handle` stands
    in for the scheduler's own: a stopwatch around it, or trouble (a compiled one has no subclass).
    """

    def __init__(
        self,
        scheduler: Scheduler,
        workers: Iterable[SimulatedWorker],
        *,
        observer: Observer | None = None,
        on_answer: OnAnswer | None = None,
        gathers_arrivals: bool = False,
        keeps_outcomes: bool = True,
        handle: Handle | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._handle = handle if handle is not None else scheduler.handle
        self.now = 0
        # request id → (instant, outcome); exactly one each
        self.outcomes: dict[int, tuple[int, Outcome]] = {}
        self._open: set[int] = set()  # all and only requests that arrived and were not answered
        self._workers: dict[str, SimulatedWorker] = {}
        self._observer = observer
        self._on_answer = on_answer
        self._gathers_arrivals = gathers_arrivals
        self._keeps_outcomes = keeps_outcomes
        self._heap: list[tuple[int, int, _Entry]] = []
        self._sequence = 0
        self._stalled_until_ns = 0
        # worker → the instant of its one _Wake that counts
        self._wakes: dict[SimulatedWorker, int] = {}
        for worker in workers:
            self.join(worker)

    def join(self, worker: SimulatedWorker) -> None:
        """One more worker, or one that comes back, under an id of its own."""
        self._workers[worker.worker_id] = worker
        self.at(self.now, worker.joined())

    def lose(self, worker_id: str) -> None:
        """The worker dies: what it was doing is never reported. WorkerLost is the caller's to say:
        a gateway notices only after a while.
        """
        self._wakes.pop(self._workers.pop(worker_id), None)

    def crash(self, worker_id: str, *, at_ns: int, detect_ns: int, reason: str = "crashed") -> None:
        """Let the worker die then, and the gateway notice so long after."""
        self.call_at(at_ns, lambda: self.lose(worker_id))
        self.at(at_ns + detect_ns, WorkerLost(worker_id, reason))

    def stall(self, at_ns: int, duration_ns: int) -> None:
        """Let the controller stand still: what reaches it meanwhile is handled after, in order."""
        self._push(at_ns, _Stall(at_ns + duration_ns))

    def at(self, instant_ns: int, event: Event) -> None:
        """Let an event happen then."""
        self._push(instant_ns, event)

    def call_at(self, instant_ns: int, do: Callable[[], None]) -> None:
        """Have something done then: a worker that joins, a look at the fleet."""
        self._push(instant_ns, _Call(do))

    # ------------------------------------------------------------------ running

    def run(self, arrivals: Iterable[Arrival] = (), until_ns: int | None = None) -> None:
        """Play arrivals (in time order) and what follows, to the end or to `until_ns`.

        Raises AssertionError if nothing more will happen while a request is open: the scheduler has
        lost a wake-up, and with a real clock somebody would wait for ever.
        """
        source = iter(arrivals)
        pending = next(source, None)
        heap = self._heap
        wakeup = self.scheduler.next_wakeup()
        while True:
            from_heap = bool(heap) and (pending is None or heap[0][0] <= pending[0])
            at_ns = heap[0][0] if from_heap else pending[0] if pending is not None else None
            if at_ns is None and not self._open:
                return
            is_tick = wakeup is not None and (at_ns is None or wakeup < at_ns)
            at_ns = wakeup if is_tick else at_ns
            if at_ns is None:
                open_ids = sorted(self._open)
                raise AssertionError(f"nothing will wake the core, and open are: {open_ids}")
            now = self.now if self.now > at_ns else at_ns  # comparisons: this runs for every event
            if now < self._stalled_until_ns:
                now = self._stalled_until_ns
            if until_ns is not None and now > until_ns:
                if pending is not None:
                    self.at(*pending)
                return
            if is_tick:
                event: Event = Tick()
            elif from_heap:
                entry = heappop(heap)[2]
                if isinstance(entry, _OURS):
                    self._carry_out(entry, at_ns)
                    wakeup = self.scheduler.next_wakeup()
                    continue
                event = entry
            else:
                assert pending is not None
                event = pending[1]
                pending = next(source, None)
            if self._gathers_arrivals and type(event) is RequestArrived:
                gathered = [event]
                pending = self._gather(gathered, pending, source, now)
                if len(gathered) > 1:
                    event = RequestsArrived(tuple(gathered))
            self.step(event, now)
            wakeup = self.scheduler.next_wakeup()

    def step(self, event: Event, now: int) -> None:
        """Hand one event to the scheduler and carry out its commands."""
        self.now = now
        unanswered = self._open
        if type(event) is RequestArrived:
            unanswered.add(event.request_id)
        elif type(event) is RequestsArrived:
            unanswered.update([request.request_id for request in event.requests])
        commands = self._handle(event, now)
        for command in commands:
            if type(command) is Reply:
                request_id = command.request_id
                if request_id not in unanswered:
                    raise AssertionError(f"request {request_id} answered twice, or never asked")
                unanswered.remove(request_id)
                if self._keeps_outcomes:
                    self.outcomes[request_id] = (now, command.outcome)
                if self._on_answer is not None:
                    self._on_answer(request_id, command.outcome, now)
            else:
                assert isinstance(command, Send)
                worker = self._workers.get(command.worker_id)
                if worker is not None:
                    self._push(worker.orders.arrival_of(now), _Order(worker, command.action))
        if self._observer is not None:
            self._observer(now, event, commands)

    # ------------------------------------------------------------------ the heap

    def _push(self, instant_ns: int, entry: _Entry) -> None:
        self._sequence += 1
        heappush(self._heap, (instant_ns, self._sequence, entry))

    def _gather(
        self,
        gathered: list[RequestArrived],
        pending: Arrival | None,
        source: Iterator[Arrival],
        now: int,
    ) -> Arrival | None:
        """Add the requests that come next and not after `now`; returns the next arrival to play.

        What happens outside the scheduler meanwhile does not part them: a run that is watched
        decides as one that is not.
        """
        heap = self._heap
        while True:
            if heap and (pending is None or heap[0][0] <= pending[0]):
                at_ns, _, entry = heap[0]
                if at_ns > now:
                    return pending
                if type(entry) is RequestArrived:
                    heappop(heap)
                    gathered.append(entry)
                elif isinstance(entry, _ASIDE):
                    heappop(heap)
                    self._carry_out(entry, at_ns)
                else:
                    return pending
            elif pending is None or pending[0] > now or type(pending[1]) is not RequestArrived:
                return pending
            else:
                gathered.append(pending[1])
                pending = next(source, None)

    def _carry_out(self, entry: "_Order | _Wake | _Stall | _Call", at_ns: int) -> None:
        """What happens outside the scheduler, at its own instant whatever the controller does."""
        match entry:
            case _Order(worker, action):
                if self._workers.get(worker.worker_id) is worker:
                    worker.receive(action, at_ns)
                    self._advance(worker, at_ns)
            case _Wake(worker):
                if self._wakes.get(worker) == at_ns:
                    del self._wakes[worker]
                    self._advance(worker, at_ns)
            case _Stall(until_ns):
                self._stalled_until_ns = max(self._stalled_until_ns, until_ns)
            case _:
                self.now = max(self.now, at_ns)
                entry.do()

    def _advance(self, worker: SimulatedWorker, at_ns: int) -> None:
        """Let the worker go on, send what it reports, and note when it wants to be called next."""
        for result in worker.advance(at_ns):
            finished = ActionFinished(worker.worker_id, result)
            self._push(worker.results.arrival_of(at_ns), finished)
        wake_ns = worker.wake_at()
        if wake_ns is not None and wake_ns != self._wakes.get(worker):
            self._wakes[worker] = wake_ns
            self._push(wake_ns, _Wake(worker))


def arrivals_of(requests: Iterable[RequestArrived]) -> list[Arrival]:
    """Requests as arrivals, at their own arrival instants."""
    return sorted(((r.arrival_ns, r) for r in requests), key=lambda pair: pair[0])
