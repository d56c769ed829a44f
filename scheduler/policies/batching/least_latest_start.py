"""The next Infer for a device: which queue, which requests, how many rows.

Work-conserving: a lane that is about to be free gets the most urgent work there is. Urgent means
the least latest feasible start, `deadline - guard - margin` (Clockwork's strategy priority,
Symphony's invalid-after).
"""

from heapq import heappush

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan, FinishedBatch
from scheduler.policies.batching.building import build
from scheduler.state import SchedulerState

# Queues compared for one decision.
MAX_CANDIDATES = 8
# Requests of one queue looked at for how long it can wait.
MAX_BEHIND = 16


class LeastLatestStart:
    """Least latest-feasible-start first, with two looks around, since a batch cannot be preempted.

    Work with more requests per millisecond goes first where the most urgent can wait for it (in
    overload the urgent head is always a long one at its limit, and short work would be deferred
    into that crowd). And before a long batch starts, the queues whose latest start falls inside it
    are looked at: the batch is cut short or waits if that loses nothing; if one side must lose, the
    side with more requests per millisecond wins.
    """

    def next_infer(self, state: SchedulerState, device: DeviceMirror, now: int) -> BatchPlan | None:
        if device.peek_ready() is None:
            return None
        start_ns = device.start_at(now)
        margin_ns = state.margin_ns(device)
        taken: list[tuple[int, int, ModelQueue]] = []
        chosen: BatchPlan | None = None
        while len(taken) < MAX_CANDIDATES:
            queue = device.peek_ready()
            if queue is None:
                break
            entry = device.pop_ready()
            assert entry is not None
            if any(entry[2] is other[2] for other in taken):
                continue
            taken.append(entry)
            plan = build(queue, device, start_ns, margin_ns)
            if plan is None:
                continue
            chosen = plan if chosen is None else _first_of(chosen, plan, margin_ns, device)
        for entry in taken:
            heappush(device.ready, entry)
        if chosen is None:
            # Nothing is sure to make it, and the lane would idle: try what probably does.
            for entry in taken:
                chosen = build(entry[2], device, start_ns, margin_ns, cautious=False)
                if chosen is not None:
                    break
        return chosen

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it: estimates are the device's."""


def _first_of(
    urgent: BatchPlan, other: BatchPlan, margin_ns: int, device: DeviceMirror
) -> BatchPlan:
    """Which of two batches goes first, when `other` may not be able to wait for `urgent`."""
    is_denser = other.rows * urgent.expected_ns > urgent.rows * other.expected_ns
    urgent_can_wait = (
        _latest_start(urgent, device, margin_ns) >= urgent.start_ns + other.expected_ns
    )
    if is_denser and urgent_can_wait:
        return other
    wait_ns = _latest_start_of_all(other, device, margin_ns) - urgent.start_ns
    if urgent.expected_ns <= wait_ns:
        return urgent
    shorter = build(urgent.queue, device, urgent.start_ns, margin_ns, max_ns=wait_ns)
    if shorter is not None and shorter.expected_ns <= wait_ns:
        return shorter
    return other if is_denser or urgent_can_wait else urgent


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
