"""The next Infer for a device: which queue, which requests, how many rows.

Work-conserving: a lane that is about to be free gets the most urgent work there is. Urgent means
the least latest feasible start, `deadline - guard - margin` (Clockwork's strategy priority,
Symphony's invalid-after).
"""

from heapq import heappush
from typing import NamedTuple

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.request import Request
from scheduler.state import SchedulerState

# Queues compared for one decision.
MAX_CANDIDATES = 8
# Requests of one queue looked at for how long it can wait.
MAX_BEHIND = 16


class BatchPlan(NamedTuple):
    """One batch: rows executed may exceed `rows` where the engine pads to a compiled size."""

    queue: ModelQueue
    requests: list[Request]
    rows: int
    executed_rows: int
    start_ns: int
    expected_ns: int
    latest_ns: int


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


class FifoBatching:
    """Baseline: the queue whose head arrived first, everything that fits, deadlines ignored."""

    def next_infer(self, state: SchedulerState, device: DeviceMirror, now: int) -> BatchPlan | None:
        queues = {
            id(queue): queue
            for key_ns, _, queue in device.ready
            if key_ns == queue.latest_start_ns and device.is_resident(queue.model)
        }
        if not queues:
            return None
        queue = min(queues.values(), key=_head_arrival)
        estimate = device.exec_estimate(queue)
        requests = _take(list(queue), estimate.max_rows)
        rows = sum(request.rows for request in requests)
        return BatchPlan(
            queue,
            requests,
            rows,
            estimate.executed[rows],
            device.start_at(now),
            estimate.plan[rows],
            max(request.deadline_ns for request in requests),
        )


def build(
    queue: ModelQueue,
    device: DeviceMirror,
    start_ns: int,
    margin_ns: int,
    *,
    max_ns: int | None = None,
    cautious: bool = True,
) -> BatchPlan | None:
    """The best batch of this queue that starts then: all members meet their deadlines.

    Heads that cannot finish even alone are passed over (they expire by their own timer). The size
    is the smallest within a few per cent of the best time per row, of those that every member's
    deadline allows and that take at most half of the head's SLO: a batch that fills the SLO makes
    whoever arrives during it late.
    """
    estimate = device.exec_estimate(queue)
    plan = estimate.plan
    guard = estimate.guard if cautious else plan
    head = queue.head
    assert head is not None
    reserve_ns = start_ns + margin_ns
    if head.deadline_ns < reserve_ns + guard[head.rows]:
        head = queue.first_due_after(reserve_ns + guard[head.rows] - 1)
        if head is None or head.deadline_ns < reserve_ns + guard[head.rows]:
            return None
    if head.runs_alone:
        rows = head.rows
        requests = [head]
    else:
        limit = min(queue.num_rows, estimate.max_rows)
        budget_ns = head.deadline_ns - reserve_ns
        half_slo_ns = (head.deadline_ns - head.arrival_ns) // 2
        if max_ns is not None:
            half_slo_ns = min(half_slo_ns, max_ns)
        while limit > head.rows and (guard[limit] > budget_ns or plan[limit] > half_slo_ns):
            limit -= 1
        size = max(head.rows, estimate.efficient[limit])
        requests = _take(queue.run_from(head, size), size)
        rows = sum(request.rows for request in requests)
    expected_ns = plan[rows]
    latest_ns = requests[-1].deadline_ns - expected_ns - margin_ns
    return BatchPlan(
        queue, requests, rows, estimate.executed[rows], start_ns, expected_ns, latest_ns
    )


def _take(requests: list[Request], max_rows: int) -> list[Request]:
    """The longest prefix of at most so many rows that may share a batch."""
    taken: list[Request] = []
    rows = 0
    for request in requests:
        if taken and (request.runs_alone or rows + request.rows > max_rows):
            break
        taken.append(request)
        rows += request.rows
        if request.runs_alone or rows >= max_rows:
            break
    return taken


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


def _head_arrival(queue: ModelQueue) -> int:
    head = queue.head
    assert head is not None
    return head.arrival_ns
