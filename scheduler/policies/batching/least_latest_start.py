"""The next Infer for a device: which queue, which requests, how many rows.

Work-conserving: a lane that is about to be free gets the most urgent work there is. Urgent means
the least latest feasible start, `deadline - guard - margin` (Clockwork's strategy priority,
Symphony's invalid-after).
"""

from heapq import heappush
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan, Deferred, FinishedBatch
from scheduler.policies.batching.blocking_cap import BlockingCap
from scheduler.policies.batching.building import build
from scheduler.policies.batching.overload_key import OVERLOADED, is_ripe, least_loss
from scheduler.policies.batching.preferred import build_for
from scheduler.priority import HIGH, LOW, NORMAL
from scheduler.state import SchedulerState

# Queues compared for one decision.
MAX_CANDIDATES: Final = 8
# The same in overload: whoever loses most, or is owed time, may be none of the most urgent.
MAX_IN_OVERLOAD: Final = 32
# Queues passed over for one decision, since the blocking cap keeps them off the device.
MAX_CAPPED: Final = 512
# Requests of one queue looked at for how long it can wait.
MAX_BEHIND: Final = 16
# Offered load, as a share of the fleet, below which no request is given up for a larger batch.
WORTHLESS: Final = 0.01
# Work is short beside other work that takes this much longer.
SHORTER: Final = 2


class LeastLatestStart:
    """Least latest-feasible-start first, with two looks around, since a batch cannot be preempted.

    Short work with more requests per millisecond goes first where the most urgent can wait for it
    (in overload the urgent head is always a long one at its limit, and short work would be deferred
    into that crowd; but there a batch that can wait and would grow by it does, since fourteen rows
    of a model that is much asked for cost what four batches of one would). And before a long batch
    starts, the shorter queues whose latest start falls inside it are looked at: the batch is cut
    short or waits if that loses nothing; if one side must lose, the side with more requests per
    millisecond wins.
    """

    def __init__(self, *, blocking_cap: bool = True, overload_key: bool = True) -> None:
        self._cap = BlockingCap() if blocking_cap else None
        self._has_overload_key = overload_key

    def next_infer(
        self, state: SchedulerState, device: DeviceMirror, now: int
    ) -> BatchPlan | Deferred | None:
        if device.peek_ready() is None:
            return None
        cap = self._cap
        if cap is not None:
            cap.refresh(state, now)
        start_ns = device.start_at(now)
        margin_ns = state.margin_ns(device)
        # What a request is worth in time of devices: what one takes, the more the idler they are.
        utilisation = state.utilisation
        scarcity = 1 / min(1.0, utilisation) if utilisation > WORTHLESS else 0.0
        owed: list[str] = []
        max_candidates = MAX_CANDIDATES
        is_overloaded = utilisation > OVERLOADED
        if is_overloaded:
            max_candidates = MAX_IN_OVERLOAD
            if state.tenants is not None:
                owed = state.tenants.owed(len(state.devices), now)
        # In overload: what tenants are owed, and classes of requests, come in this order. Of each
        # only what the earlier have left.
        owed_plans: list[BatchPlan] = []
        high_plans: list[BatchPlan] = []
        low_plans: list[BatchPlan] = []
        taken: list[tuple[int, int, ModelQueue]] = []
        seen: set[ModelQueue] = set()
        plans: list[BatchPlan] = []
        num_capped = 0
        unsure: list[tuple[ModelQueue, int | None]] = []
        while len(taken) - num_capped < max_candidates and num_capped < MAX_CAPPED:
            entry = device.pop_ready()
            if entry is None:
                break
            queue = entry[2]
            if queue in seen:
                continue
            seen.add(queue)
            taken.append(entry)
            estimate = device.exec_estimate(queue)
            max_ns: int | None = None
            if cap is not None:
                head = queue.head
                assert head is not None
                max_ns = cap.longest_ns(
                    state.models[queue.model],
                    device,
                    head.deadline_ns - head.arrival_ns,
                    estimate.plan[estimate.max_rows],
                )
                if max_ns is not None and estimate.plan[head.rows] > max_ns:
                    num_capped += 1
                    continue
            unsure.append((queue, max_ns))
            if owed:
                due = [request for tenant in owed for request in queue.of_tenant(tenant)]
                plan = build_for(due, queue, device, start_ns, margin_ns, max_ns=max_ns)
                if plan is not None:
                    owed_plans.append(plan)
                    continue
            has_classes = is_overloaded and queue.has_classes
            if has_classes:
                high = queue.of_priority(HIGH)
                plan = build_for(high, queue, device, start_ns, margin_ns, max_ns=max_ns)
                if plan is not None:
                    high_plans.append(plan)
                    continue
                usual = [request for request in queue if request.priority != LOW]
                plan = build_for(usual, queue, device, start_ns, margin_ns, max_ns=max_ns)
                if plan is not None:
                    plans.append(plan)
                    continue
            plan = build(
                queue,
                device,
                start_ns,
                margin_ns,
                drop_ns=int(state.models[queue.model].demand.ns_per_row * scarcity),
                max_ns=max_ns,
            )
            if plan is not None:
                (low_plans if has_classes else plans).append(plan)
        for entry in taken:
            heappush(device.ready, entry)
        if owed_plans:
            return _least_latest_start(owed_plans, device, margin_ns)
        if high_plans:
            return _least_latest_start(high_plans, device, margin_ns)
        if plans or low_plans:
            lowest = NORMAL if plans else LOW
            return self._choose(state, plans or low_plans, device, margin_ns, lowest)
        # Nothing is sure to make it, and the lane would idle: try what probably does.
        for queue, max_ns in unsure:
            chosen = build(queue, device, start_ns, margin_ns, max_ns=max_ns, cautious=False)
            if chosen is not None:
                return chosen
        if num_capped:
            assert cap is not None
            return Deferred(cap.until_ns)
        return None

    def _choose(
        self,
        state: SchedulerState,
        plans: list[BatchPlan],
        device: DeviceMirror,
        margin_ns: int,
        lowest: int,
    ) -> BatchPlan:
        chosen = plans[0]
        if len(plans) == 1:
            return chosen
        is_overloaded = self._has_overload_key and state.utilisation > OVERLOADED
        if is_overloaded:
            chosen = least_loss(state, plans, device, margin_ns, lowest=lowest)
        else:
            chosen = _least_latest_start(plans, device, margin_ns)
        for plan in plans:
            if plan.queue is not chosen.queue:
                may_grow = is_overloaded and not is_ripe(state, plan)
                chosen = _first_of(chosen, plan, margin_ns, device, may_grow=may_grow)
        return chosen

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it: estimates are the device's."""


def _least_latest_start(plans: list[BatchPlan], device: DeviceMirror, margin_ns: int) -> BatchPlan:
    chosen = plans[0]
    least_ns = _latest_start(chosen, device, margin_ns)
    for plan in plans:
        latest_ns = _latest_start(plan, device, margin_ns)
        if latest_ns < least_ns:
            chosen, least_ns = plan, latest_ns
    return chosen


def _first_of(
    urgent: BatchPlan, other: BatchPlan, margin_ns: int, device: DeviceMirror, *, may_grow: bool
) -> BatchPlan:
    """Which of two batches goes first, when `other` may not be able to wait for `urgent`.
    `may_grow`: if it can, it should, and be a larger one then.
    """
    is_denser = other.rows * urgent.expected_ns > urgent.rows * other.expected_ns
    if SHORTER * other.expected_ns > urgent.expected_ns or not is_denser:
        return urgent
    can_wait = _latest_start(urgent, device, margin_ns) >= urgent.start_ns + other.expected_ns
    if can_wait and not may_grow:
        return other
    wait_ns = _latest_start_of_all(other, device, margin_ns) - urgent.start_ns
    if urgent.expected_ns <= wait_ns:
        return urgent
    if can_wait:
        return other
    shorter = build(urgent.queue, device, urgent.start_ns, margin_ns, max_ns=wait_ns)
    if shorter is not None and shorter.expected_ns <= wait_ns:
        return shorter
    return other


def _latest_start(plan: BatchPlan, device: DeviceMirror, margin_ns: int) -> int:
    guard_ns = device.exec_estimate(plan.queue).guard[plan.rows]
    return plan.requests[0].deadline_ns - guard_ns - margin_ns


def _latest_start_of_all(plan: BatchPlan, device: DeviceMirror, margin_ns: int) -> int:
    """The same so that those who wait behind the batch in its queue are in time as well."""
    estimate = device.exec_estimate(plan.queue)
    guard_ns = estimate.guard[1] - estimate.plan[1] + margin_ns
    rows = 0
    latest_ns = _latest_start(plan, device, margin_ns)
    for request in plan.queue.run_from(plan.requests[0], MAX_BEHIND):
        rows += request.rows
        latest_ns = min(latest_ns, request.deadline_ns - estimate.time_for(rows) - guard_ns)
    return latest_ns
