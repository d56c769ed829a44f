"""The scheduler's mirror of one device: pages, weights states, two lanes, measured delays.

The worker is the truth; the mirror is corrected by its results and never guesses. It holds no
policy.
"""

import enum
import math
from collections import deque
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from scheduler.actions import Action
from scheduler.lane_shares import LaneShares
from scheduler.model_queue import ModelQueue
from scheduler.profile import ExecEstimate, ModelEstimates, RatioWindow
from scheduler.request import IllegalMove, Request
from scheduler.spec import MILLISECOND_NS, SECOND_NS, DeviceSpec, ModelSpec
from scheduler.timers import Wakeable
from scheduler.work_tracker import WorkTracker

# What a message between gateway and worker needs, before the first one was measured.
INITIAL_DELAY_NS: Final = MILLISECOND_NS // 5
# An order this much later than the end of the execution before it is late: less is the clock's and
# the timer's grain.
GAP_TOLERANCE_NS: Final = 20_000
# Share of the newest in the gap rate: the last fifty count.
GAP_RATE_WEIGHT: Final = 0.02
# How fast the memory of past use fades when weights are weighed against each other.
USE_HALF_LIFE_NS: Final = 10 * SECOND_NS
# A measurement as old as this does not count against a request that it would refuse.
DOUBT_AFTER_NS: Final = SECOND_NS
# A model whose LOAD failed waits this long, doubling, before it is tried again on that device.
LOAD_RETRY_NS: Final = 100 * MILLISECOND_NS
LOAD_RETRY_MAX_NS: Final = 10 * SECOND_NS


class WeightsState(enum.Enum):
    """Of one model on one device. ABSENT is the state of every model without a record."""

    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"
    EVICTING = "evicting"


WEIGHTS_MOVES: dict[WeightsState, frozenset[WeightsState]] = {
    WeightsState.ABSENT: frozenset({WeightsState.LOADING}),
    WeightsState.LOADING: frozenset({WeightsState.RESIDENT, WeightsState.ABSENT}),
    # RESIDENT → ABSENT: the worker says that it does not have them, and the worker is the truth.
    WeightsState.RESIDENT: frozenset({WeightsState.EVICTING, WeightsState.ABSENT}),
    WeightsState.EVICTING: frozenset({WeightsState.ABSENT, WeightsState.RESIDENT}),
}


class Weights:
    """One model's weights on one device. `generation` counts LOADs; old results are ignored."""

    __slots__ = (
        "generation",
        "is_unserved",
        "last_used_ns",
        "num_failures",
        "num_infers",
        "num_pages",
        "ready_at_ns",
        "retry_at_ns",
        "state",
        "use_score",
    )

    def __init__(self, num_pages: int) -> None:
        self.state = WeightsState.ABSENT
        self.generation = 0
        self.num_pages = num_pages
        self.num_infers = 0  # Infers in flight: never evicted while above zero
        self.ready_at_ns = 0  # predicted end of the LOAD while LOADING
        self.last_used_ns = 0
        self.use_score = 0.0
        self.num_failures = 0
        self.retry_at_ns = 0
        # the model was removed, or is served with another content: evicted once it is idle
        self.is_unserved = False

    def move_to(self, state: WeightsState, model: str) -> None:
        """The only way weights change their state."""
        if state not in WEIGHTS_MOVES[self.state]:
            raise IllegalMove(f"weights of {model}: {self.state.value} → {state.value}")
        self.state = state

    def use(self, rows: int, now: int) -> None:
        self.use_score = self.score(now) + rows
        self.last_used_ns = now

    def score(self, now: int) -> float:
        """Recent use, fading: frequency and recency in one figure."""
        return self.use_score * math.pow(2, (self.last_used_ns - now) / USE_HALF_LIFE_NS)


class Outstanding(Wakeable):
    """An action sent and not yet answered, with what it holds reserved."""

    __slots__ = (
        "action",
        "expected_ns",
        "generation",
        "is_held",
        "requests",
        "sent_ns",
    )

    def __init__(
        self,
        action: Action,
        *,
        sent_ns: int,
        expected_ns: int,
        requests: list[Request],
        generation: int,
        is_held: bool = False,
    ) -> None:
        super().__init__()
        self.action = action
        self.sent_ns = sent_ns
        self.expected_ns = expected_ns
        self.requests = requests
        self.generation = generation
        # an Infer that was held back until `schedule_ahead` before the lane was to be free
        self.is_held = is_held


class Trial(NamedTuple):
    """Executions of one batch size and shape class that are to be measured; `num_left` of them."""

    model: str
    sample: int
    shape_key: str
    elements: int
    batch_size: int
    num_left: int


class DeviceMirror(Wakeable):
    """Everything the scheduler knows of one incarnation of one worker's device."""

    def __init__(
        self,
        worker_id: str,
        spec: DeviceSpec,
        offered: dict[str, ModelSpec],
        *,
        schedule_ahead_ns: int = 0,
    ) -> None:
        super().__init__()
        self.worker_id = worker_id
        self.spec = spec
        self.offered = offered
        # all and only models with a record; least recently used first
        self.weights: dict[str, Weights] = {}
        # all and only models that it was told to release, and not to load since
        self.released: dict[str, None] = {}
        self.pages_free = spec.total_pages
        self.exec_lane = WorkTracker()
        self.exec_shares = LaneShares()
        self.load_lane = self.exec_lane if spec.shares_exec_core else WorkTracker()
        # all and only actions sent and not yet answered
        self.outstanding: dict[int, Outstanding] = {}
        self.num_infers = 0
        self.num_moves = 0  # LoadWeights outstanding
        self.trials: deque[Trial] = deque()  # the first is in flight, if one is
        self.next_trial_ns = 0  # none is begun before then
        self.previous_done_ns = 0
        self.retry_until_ns = 0  # some model's LOAD failed and is not tried again before then
        self.is_stopping = False  # the worker shuts down: it gets no more work
        self.speculates_at_ns = 0  # no look for a LOAD that nobody waits for before then
        # how long before a lane is predicted free its next action is sent; its policy's to set
        self.schedule_ahead_ns = schedule_ahead_ns
        # of the orders held back until then, lately, the share that reached a lane run dry
        self.gap_rate = 0.0
        self.num_held = self.num_held_late = 0  # the same, since it joined
        self.num_outliers = 0  # durations far above the usual, clipped in the estimates
        # for policies that adapt schedule_ahead: what lies on top of the command's delay, and the
        # number of orders in time since the last late one
        self.ahead_extra_ns = 0.0
        self.num_in_time = 0
        # from sending an order to its arrival at the worker, typically
        self.command_delay_ns = INITIAL_DELAY_NS
        # from the end of an action to the scheduler hearing of it, at worst lately
        self.reply_delay_ns = INITIAL_DELAY_NS
        self._command_delay = RatioWindow()
        self._reply_delay = RatioWindow()
        self._estimates: dict[str, ModelEstimates] = {}
        # heap of (latest start, sequence, queue): an entry counts only while the queue still
        # stands under that key and its model is resident here
        self.ready: list[tuple[int, int, ModelQueue]] = []
        self._sequence = 0

    def weights_state(self, model: str) -> WeightsState:
        record = self.weights.get(model)
        return record.state if record is not None else WeightsState.ABSENT

    def forget(self, model: str) -> None:
        """Drop all that is known of a model of which nothing is here."""
        self.offered.pop(model, None)
        self.weights.pop(model, None)
        self.released.pop(model, None)
        self._estimates.pop(model, None)
        self.retry_until_ns = max((r.retry_at_ns for r in self.weights.values()), default=0)

    def offer(self, spec: ModelSpec) -> None:
        """The device can serve this model, of which nothing is here yet."""
        self.forget(spec.name)
        self.offered[spec.name] = spec

    def offers(self, model: str) -> bool:
        """Whether it could be served here."""
        return model in self.offered

    def keeps(self, model: str) -> bool:
        """Whether anything of it is here, or under way: pages, executions, orders unanswered."""
        if self.weights_state(model) is not WeightsState.ABSENT:
            return True
        return any(sent.action.model == model for sent in self.outstanding.values())

    def is_resident(self, model: str) -> bool:
        record = self.weights.get(model)
        return record is not None and record.state is WeightsState.RESIDENT

    def record(self, model: str) -> Weights:
        record = self.weights.get(model)
        if record is None:
            record = Weights(self.offered[model].num_pages(self.spec.page_bytes))
            self.weights[model] = record
        return record

    def touch(self, model: str, rows: int, now: int) -> Weights:
        """Note the use of resident weights; they become the most recently used."""
        record = self.weights.pop(model)
        self.weights[model] = record
        record.use(rows, now)
        return record

    def estimates(self, model: str) -> ModelEstimates:
        estimates = self._estimates.get(model)
        if estimates is None:
            estimates = self._estimates[model] = ModelEstimates(self.offered[model])
        return estimates

    def exec_estimate(self, work: ModelQueue | Request) -> ExecEstimate:
        """Of the model and shape class of a request, or of all that wait in a queue."""
        estimates = self._estimates.get(work.model)
        if estimates is None:
            estimates = self.estimates(work.model)
        estimate = estimates.shapes.get(work.shape_key)
        if estimate is None:
            estimate = estimates.exec(work.shape_key, work.elements)
        return estimate

    def note_held(self, late_ns: int) -> bool:
        """Of an order that was held back; whether it came too late, so that the lane ran dry."""
        is_late = late_ns > GAP_TOLERANCE_NS
        self.num_held += 1
        self.num_held_late += is_late
        self.gap_rate += GAP_RATE_WEIGHT * (is_late - self.gap_rate)
        return is_late

    def observe_delays(self, *, command_ns: int, reply_ns: int) -> None:
        """Of one action: on its way to the worker, and from its end to the scheduler's hearing."""
        self._command_delay.add(command_ns if command_ns > 1 else 1)
        self._reply_delay.add(reply_ns if reply_ns > 1 else 1)
        self.command_delay_ns = int(self._command_delay.plan)
        self.reply_delay_ns = int(self._reply_delay.guard)
        self.exec_lane.lag_ns = self.load_lane.lag_ns = self.reply_delay_ns

    def doubt(self, model: str, now: int) -> None:
        """A request was refused by estimates. What is refused is not measured again, so that one
        slow spell would shut a model out for ever: figures that are old and unused are dropped.
        """
        doubtful_ns = now - DOUBT_AFTER_NS
        if not self.outstanding and self.previous_done_ns <= doubtful_ns:
            self._command_delay = RatioWindow()
            self._reply_delay = RatioWindow()
            self.command_delay_ns = self.reply_delay_ns = INITIAL_DELAY_NS
        estimates = self._estimates.get(model)
        if estimates is not None and estimates.measured_ns <= doubtful_ns:
            record = self.weights.get(model)
            if record is None or not (record.num_infers or record.state is WeightsState.LOADING):
                del self._estimates[model]

    def start_at(self, now: int) -> int:
        """When an Infer sent now would start to execute."""
        free_ns, arrived_ns = self.exec_lane.free_at(now), now + self.command_delay_ns
        return free_ns if free_ns > arrived_ns else arrived_ns

    def load_start_at(self, now: int) -> int:
        """When a LoadWeights sent now would start to copy."""
        free_ns, arrived_ns = self.load_lane.free_at(now), now + self.command_delay_ns
        return free_ns if free_ns > arrived_ns else arrived_ns

    def push_ready(self, latest_start_ns: int, queue: ModelQueue) -> None:
        self._sequence += 1
        heappush(self.ready, (latest_start_ns, self._sequence, queue))
        if self._sequence % 4096 == 0:
            self._sweep_ready()

    def peek_ready(self) -> ModelQueue | None:
        """The most urgent queue this device can serve. Drops stale entries on the way."""
        ready, weights = self.ready, self.weights
        while ready:
            latest_start_ns, _, queue = ready[0]
            if queue.latest_start_ns == latest_start_ns:
                record = weights.get(queue.model)
                if record is not None and record.state is WeightsState.RESIDENT:
                    return queue
            heappop(ready)
        return None

    def pop_ready(self) -> tuple[int, int, ModelQueue] | None:
        """Take the most urgent entry off; the caller pushes back what it keeps."""
        if self.peek_ready() is None:
            return None
        return heappop(self.ready)

    def ready_queues(self) -> list[ModelQueue]:
        """All queues that this device can serve, most urgent first as far as the heap is sorted."""
        queues = {
            id(queue): queue
            for key_ns, _, queue in self.ready
            if key_ns == queue.latest_start_ns and self.is_resident(queue.model)
        }
        return list(queues.values())

    def next_retry_ns(self, now: int) -> int:
        """When the next LOAD that failed may be tried again; only while `retry_until_ns` > now."""
        return min(r.retry_at_ns for r in self.weights.values() if r.retry_at_ns > now)

    def pages_by_state(self) -> dict[str, int]:
        """Pages of the cache: free, loading, resident, evicting."""
        pages = {"free": max(0, self.pages_free), "loading": 0, "resident": 0, "evicting": 0}
        for record in self.weights.values():
            if record.state is not WeightsState.ABSENT:
                pages[record.state.value] += record.num_pages
        return pages

    def requests_of(self, model: str) -> list[Request]:
        """Those in flight."""
        return [
            request
            for outstanding in self.outstanding.values()
            if outstanding.action.model == model
            for request in outstanding.requests
        ]

    def _sweep_ready(self) -> None:
        live = {
            id(entry[2]): entry
            for entry in self.ready
            if entry[2].latest_start_ns == entry[0] and self.is_resident(entry[2].model)
        }
        self.ready = list(live.values())
        heapify(self.ready)
