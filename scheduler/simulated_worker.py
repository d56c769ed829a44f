"""A worker in virtual time: windows, two lanes, pages and failures as a real worker has them.

It owns what is on one device and what its lanes do next; durations come from the profiles plus
seeded noise. It has no clock and no heap of events: a shell tells it what arrived and what time it
is, asks when it wants to be called again, and carries its reports. It must never choose, reorder or
make room: an order that cannot be done is refused with the code a real worker would send
(gpuworker/lane.py, gpuworker/accepted.py).
"""

import random
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import NamedTuple

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
    Result,
    Span,
)
from scheduler.events import WorkerJoined
from scheduler.spec import DeviceSpec, ModelSpec

# However wide the noise, nothing is done in less than this share of its profiled time.
FASTEST_FACTOR = 0.1


class Spikes(NamedTuple):
    """What an execution sometimes takes on top: with this probability, between min and max."""

    probability: float
    min_ns: int
    max_ns: int


class Link:
    """One direction of a connection: a fixed delay, an exponential tail, and no overtaking.

    `more_ns` is asked for what each message takes on top of them.
    """

    __slots__ = ("_chance", "_last_ns", "_more_ns", "delay_ns", "jitter_ns")

    def __init__(
        self,
        delay_ns: int,
        jitter_ns: int,
        chance: random.Random,
        more_ns: Callable[[], int] | None = None,
    ) -> None:
        self.delay_ns = delay_ns
        self.jitter_ns = jitter_ns  # mean of the tail
        self._chance = chance
        self._more_ns = more_ns
        self._last_ns = 0  # arrival of the last message

    def arrival_of(self, sent_ns: int) -> int:
        """When a message sent now arrives: never before one that was sent earlier."""
        arrival_ns = sent_ns + self.delay_ns
        if self.jitter_ns:
            arrival_ns += int(self._chance.expovariate(1.0) * self.jitter_ns)
        if self._more_ns is not None:
            arrival_ns += self._more_ns()
        self._last_ns = max(self._last_ns, arrival_ns)
        return self._last_ns


class _Lane:
    """What waits, in the order of (earliest, arrival), and the one action under way."""

    __slots__ = ("action", "begin_ns", "end_ns", "received_ns", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, int, Action]] = []  # earliest, sequence, received
        self.action: Infer | LoadWeights | None = None
        self.received_ns = self.begin_ns = self.end_ns = 0


class SimulatedWorker:
    """One device. `receive`, then `advance` at once and again at every instant of `wake_at`.

    `noise` and `load_noise` are standard deviations of a factor around 1 (0.005 is a tight GPU,
    0.05 a loose one); `load_noise` is `noise` where it is not given. `delay_ns` and `jitter_ns` are
    the two links to the gateway, one way each. `fail` may name a code for an action as it is about
    to start, to play trouble; `duration_of` says what one takes, in place of profile and noise.
    `resident` models have their weights on the device when it joins.
    A device that shares its core runs one action of the two lanes at a time.
    """

    def __init__(
        self,
        worker_id: str,
        device: DeviceSpec,
        models: Iterable[ModelSpec],
        *,
        seed: int | str = 0,
        noise: float = 0.0,
        load_noise: float | None = None,
        spikes: Spikes | None = None,
        delay_ns: int = 100_000,
        jitter_ns: int = 0,
        fail: Callable[[Action], Code | None] | None = None,
        duration_of: Callable[[Infer | LoadWeights], int] | None = None,
        resident: Iterable[str] = (),
    ) -> None:
        self.worker_id = worker_id
        self.device = device
        self.models = {model.name: model for model in models}
        # A source each: more noise in one place leaves the others' draws as they were.
        self.orders = Link(delay_ns, jitter_ns, random.Random(f"{seed} orders"))
        self.results = Link(delay_ns, jitter_ns, random.Random(f"{seed} results"))
        self._exec_chance = random.Random(f"{seed} exec")
        self._load_chance = random.Random(f"{seed} load")
        self._noise = noise
        self._load_noise = noise if load_noise is None else load_noise
        self._spikes = spikes
        self._fail = fail
        self._duration_of = duration_of
        self._exec_lane = _Lane()
        self._load_lane = _Lane()
        self._num_received = 0
        # All and only models that hold pages; those that are loading too.
        self._pages: dict[str, int] = {
            name: self.models[name].num_pages(device.page_bytes) for name in resident
        }
        self._pages_free = device.total_pages - sum(self._pages.values())
        if self._pages_free < 0:
            raise ValueError(
                f"{worker_id}: its {len(self._pages)} resident models need "
                f"{sum(self._pages.values())} pages, it has {device.total_pages}"
            )
        self._exec_ns: dict[tuple[str, int], int] = {}  # what _profiled_ns has said
        self._reports: list[Result] = []

    @property
    def pages_free(self) -> int:
        return self._pages_free

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way or waits."""
        lanes = (self._exec_lane, self._load_lane)
        return any(lane.action is not None or lane.waiting for lane in lanes)

    def joined(self) -> WorkerJoined:
        """How it introduces itself; the weights that may be used now are its residents."""
        loading = self._load_lane.action
        loading_model = loading.model if loading is not None else None
        resident = tuple(name for name in self._pages if name != loading_model)
        return WorkerJoined(self.worker_id, self.device, tuple(self.models.values()), resident)

    def drop_weights(self) -> None:
        """Play a device that was reset behind its worker's back: nothing is resident any more."""
        loading = self._load_lane.action
        kept = {name: n for name, n in self._pages.items() if loading and name == loading.model}
        self._pages_free += sum(self._pages.values()) - sum(kept.values())
        self._pages = kept

    def receive(self, action: Action, now: int) -> None:
        """An order is here. `advance` must follow at the same instant."""
        if action.model not in self.models:
            self._refuse(action, Code.UNKNOWN_MODEL, f"{action.model}: no such model here", now)
            return
        lane = self._exec_lane if isinstance(action, Infer) else self._load_lane
        self._num_received += 1
        heappush(lane.waiting, (action.earliest_ns, self._num_received, now, action))

    def advance(self, now: int) -> list[Result]:
        """Finish, refuse and start what is due; the results that leave at this instant."""
        exec_lane, load_lane = self._exec_lane, self._load_lane
        if exec_lane.action is not None and exec_lane.end_ns <= now:
            self._finish(exec_lane)
        if load_lane.action is not None and load_lane.end_ns <= now:
            self._finish(load_lane)
        lanes = (exec_lane, load_lane)
        if self.device.shares_exec_core and load_lane.waiting[:1] < exec_lane.waiting[:1]:
            lanes = (load_lane, exec_lane)  # one core, and the load lane's first comes first
        first, second = lanes
        if first.waiting:
            self._start_due(first, second, now)
        if second.waiting:
            self._start_due(second, first, now)
        reports = self._reports
        if reports:
            self._reports = []
        return reports

    def wake_at(self) -> int | None:
        """The next instant at which `advance` has something to do, if no order arrives before."""
        at_ns = None
        shares = self.device.shares_exec_core
        for lane, other in (
            (self._exec_lane, self._load_lane),
            (self._load_lane, self._exec_lane),
        ):
            if lane.action is not None:
                due_ns = lane.end_ns
            elif lane.waiting:
                due_ns = lane.waiting[0][0]
                if shares and other.action is not None:
                    due_ns = max(due_ns, other.end_ns)
            else:
                continue
            if at_ns is None or due_ns < at_ns:
                at_ns = due_ns
        return at_ns

    # ------------------------------------------------------------------ lanes

    def _start_due(self, lane: _Lane, other: _Lane, now: int) -> None:
        """What gpuworker/lane.py does with its first in order, until it is busy or must wait."""
        waits_for_core = self.device.shares_exec_core and other.action is not None
        while lane.waiting and lane.action is None:
            earliest_ns, _, received_ns, action = lane.waiting[0]
            if now > action.latest_ns:
                late_ms = (now - action.latest_ns) / 1e6
                why = f"{action.model}: {late_ms:.3f} ms after its window closed"
                self._refuse(action, Code.TOO_LATE, why, received_ns)
            elif now < earliest_ns or (waits_for_core and _takes_time(action)):
                return
            else:
                self._start(lane, action, received_ns, now)
            heappop(lane.waiting)

    def _start(self, lane: _Lane, action: Action, received_ns: int, now: int) -> None:
        refusal = self._refusal(action)
        if refusal is not None:
            self._refuse(action, *refusal, received_ns)
            return
        if isinstance(action, EvictWeights):
            self._pages_free += self._pages.pop(action.model)
            self._reports.append(EvictResult(action.action_id, Code.OK, "", received_ns))
            return
        if isinstance(action, ReleaseModel):
            # It keeps nothing, and the next LOAD takes no longer than another.
            self._reports.append(ReleaseResult(action.action_id, Code.OK, "", received_ns))
            return
        if isinstance(action, LoadWeights):
            self._pages[action.model] = action.num_pages
            self._pages_free -= action.num_pages
        duration_ns = (self._duration_of or self._drawn_ns)(action)
        lane.action = action
        lane.received_ns, lane.begin_ns, lane.end_ns = received_ns, now, now + duration_ns

    def _finish(self, lane: _Lane) -> None:
        action, end_ns = lane.action, lane.end_ns
        assert action is not None
        lane.action = None
        span = Span(lane.begin_ns, end_ns, end_ns - lane.begin_ns)
        if isinstance(action, Infer):
            before = Span(lane.begin_ns, lane.begin_ns, 0)
            after = Span(end_ns, end_ns, 0)
            self._reports.append(
                InferResult(action.action_id, Code.OK, "", lane.received_ns, before, span, after)
            )
        else:
            self._reports.append(LoadResult(action.action_id, Code.OK, "", lane.received_ns, span))

    def _refusal(self, action: Action) -> tuple[Code, str] | None:
        """Why the page table or the player of trouble will not have it started now."""
        model = action.model
        code = self._fail(action) if self._fail is not None else None
        if code is not None:
            return code, f"{model}: {code.name}"
        loading = self._load_lane.action
        if isinstance(action, LoadWeights):
            if model in self._pages:
                return Code.ALREADY_RESIDENT, f"{model} is resident"
            if action.num_pages > self._pages_free:
                return Code.PAGES_EXHAUSTED, (
                    f"{model}: needs {action.num_pages} pages, {self._pages_free} of "
                    f"{self.device.total_pages} free"
                )
            return None
        if isinstance(action, ReleaseModel):
            return (Code.WEIGHTS_IN_USE, f"{model} has pages") if model in self._pages else None
        if model not in self._pages:
            return Code.WEIGHTS_MISSING, f"{model} is not resident"
        if isinstance(action, Infer):
            if loading is not None and loading.model == model:
                return Code.WEIGHTS_MISSING, f"{model} is loading"
            return None
        executing = self._exec_lane.action
        if executing is not None and executing.model == model:
            return Code.WEIGHTS_IN_USE, f"{model} is executing"
        return None

    def _refuse(self, action: Action, code: Code, message: str, received_ns: int) -> None:
        kind = _RESULT_OF[type(action)]
        self._reports.append(kind(action.action_id, code, message, received_ns))

    # ------------------------------------------------------------------ durations

    def _drawn_ns(self, action: Infer | LoadWeights) -> int:
        """Profile and noise."""
        if isinstance(action, LoadWeights):
            return self._vary_load(self.models[action.model].profile.load_ns)
        duration_ns = self._vary(self._profiled_ns(action.model, action.batch_size))
        if self._spikes is not None and self._exec_chance.random() < self._spikes.probability:
            duration_ns += self._exec_chance.randint(self._spikes.min_ns, self._spikes.max_ns)
        return duration_ns

    def _profiled_ns(self, model: str, rows: int) -> int:
        """Profiled time of a batch; between the measured sizes, on the line that joins them."""
        known = self._exec_ns.get((model, rows))
        if known is None:
            known = exec_ns_of(self.models[model].profile.shapes[0].exec_ns, rows)
            self._exec_ns[model, rows] = known
        return known

    def _vary(self, duration_ns: int) -> int:
        return _varied(duration_ns, self._noise, self._exec_chance)

    def _vary_load(self, duration_ns: int) -> int:
        return _varied(duration_ns, self._load_noise, self._load_chance)


_RESULT_OF: dict[type, Callable[[int, Code, str, int], Result]] = {
    Infer: InferResult,
    LoadWeights: LoadResult,
    EvictWeights: EvictResult,
    ReleaseModel: ReleaseResult,
}


def _takes_time(action: Action) -> bool:
    return isinstance(action, Infer | LoadWeights)


def exec_ns_of(exec_ns: dict[int, int], rows: int) -> int:
    """Time of a batch of so many rows: as measured, else on the line through its neighbours.

    Beyond the largest size in proportion to it; below the smallest that one's time.
    """
    if rows in exec_ns:
        return exec_ns[rows]
    below = max((n for n in exec_ns if n < rows), default=None)
    above = min((n for n in exec_ns if n > rows), default=None)
    if below is None:
        return exec_ns[min(exec_ns)]
    if above is None:
        return exec_ns[below] * rows // below
    rise_ns = exec_ns[above] - exec_ns[below]
    return exec_ns[below] + rise_ns * (rows - below) // (above - below)


def _varied(duration_ns: int, noise: float, chance: random.Random) -> int:
    if not noise:
        return max(1, duration_ns)
    return max(1, int(duration_ns * max(FASTEST_FACTOR, chance.gauss(1.0, noise))))
