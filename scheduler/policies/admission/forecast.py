"""When a request would be done on a device: what is ahead of it there, and its own batch.

Predicted is the order that batching will follow: earlier latest starts go first, except that work
with fewer requests per millisecond does not push out a request that it would make late
(policies/batching/least_latest_start.py decides the same way).
"""

import math
from bisect import bisect_right

from scheduler.device import DeviceMirror
from scheduler.profile import ExecEstimate
from scheduler.request import Request
from scheduler.state import ModelState, SchedulerState

# Queues of other models looked at per prediction; beyond it the rest is taken as not in the way.
MAX_QUEUES_AHEAD = 32
# A model whose full batches take less than this share of the time per row of single executions
# cannot serve what was admitted for full batches in smaller ones.
LIVES_ON_BATCHING = 0.8


def finish_on(
    state: SchedulerState,
    model: ModelState,
    request: Request,
    device: DeviceMirror,
    *,
    now: int,
    start_ns: int,
    rows_elsewhere: int = 0,
) -> tuple[int, int]:
    """(planned finish, finish with guard and margin) of a request that can start then.

    The wait is stretched by the share of the lane that shorter work took lately.
    """
    estimate = device.estimates(request.model).exec(request.shape_key, request.elements)
    margin_ns = state.margin_ns(device)
    latest_start_ns = request.deadline_ns - estimate.guard[request.rows] - margin_ns
    queue = model.queues.get(request.batch_key)
    rows = request.rows
    if queue is not None:
        # Rows, not requests, would need a running sum; requests of one row are the usual case.
        num_ahead = queue.num_due_by(request.deadline_ns)
        rows += num_ahead if queue.num_rows == len(queue) else queue.num_rows
        if rows_elsewhere:
            rows = max(request.rows, rows - rows_elsewhere)
    size = _usual_batch(estimate, request)
    own_ns = estimate.time_for(rows)
    if rows > size and estimate.plan[size] < LIVES_ON_BATCHING * size * estimate.plan[1]:
        # Later requests will fill the last batch up, too. Without the time for that, its first one
        # would hold the batch small, and all that were admitted for full batches would be late.
        own_ns = -(-rows // size) * estimate.plan[size]
    if device.ready:
        # Its own queue goes first with it: that long before its latest start others must be done.
        own_ahead_ns = own_ns - estimate.plan[request.rows]
        start_ns += _work_ahead(
            device, request, estimate, start_ns, latest_start_ns, own_ahead_ns=own_ahead_ns
        )
    last = estimate.efficient[min(rows, estimate.max_rows)]
    wait_ns = start_ns + own_ns - estimate.plan[last] - now
    share = device.exec_shares.share_of_shorter(estimate.plan[1], now) if wait_ns > 0 else 0.0
    finish_ns = now + int(wait_ns / (1 - share)) + estimate.plan[last]
    # What may go wrong with each batch before it adds up as independent errors do.
    num_batches = max(1.0, own_ns / estimate.plan[last])
    guard_ns = int((estimate.guard[last] - estimate.plan[last]) * math.sqrt(num_batches))
    return finish_ns, finish_ns + guard_ns + margin_ns


def _usual_batch(estimate: ExecEstimate, request: Request) -> int:
    """Rows of a batch where enough wait: as batching does, at most half the SLO long."""
    half_slo_ns = (request.deadline_ns - request.arrival_ns) // 2
    return estimate.efficient[max(request.rows, bisect_right(estimate.plan, half_slo_ns) - 1)]


def _work_ahead(
    device: DeviceMirror,
    request: Request,
    estimate: ExecEstimate,
    start_ns: int,
    latest_start_ns: int,
    *,
    own_ahead_ns: int = 0,
) -> int:
    """Time other models' queues will take on the device before this request."""
    ahead_ns = 0
    ns_per_row = estimate.plan[request.rows] / request.rows
    for key_ns, _, queue in device.ready[:MAX_QUEUES_AHEAD]:
        if (
            key_ns > latest_start_ns
            or key_ns != queue.latest_start_ns
            or (queue.model == request.model and queue.batch_key == request.batch_key)
            or not device.is_resident(queue.model)
        ):
            continue
        other = device.exec_estimate(queue)
        rows = queue.num_due_by(latest_start_ns + other.guard[1])
        if rows == 0:
            continue
        other_ns = other.time_for(rows)
        is_in_the_way = start_ns + ahead_ns + other_ns > latest_start_ns - own_ahead_ns
        if is_in_the_way and other_ns / rows > ns_per_row:
            continue
        ahead_ns += other_ns
    return ahead_ns


def rows_in_time(state: SchedulerState, device: DeviceMirror, request: Request, now: int) -> int:
    """Rows of the request's kind that the device could finish by its deadline."""
    estimate = device.estimates(request.model).exec(request.shape_key, request.elements)
    end_ns = request.deadline_ns - state.margin_ns(device)
    start_ns = device.start_at(now)
    start_ns += _work_ahead(
        device, request, estimate, start_ns, end_ns - estimate.guard[request.rows]
    )
    size = _usual_batch(estimate, request)
    if end_ns - start_ns < estimate.plan[size]:
        return max(0, bisect_right(estimate.plan, end_ns - start_ns) - 1)
    return (end_ns - start_ns) // estimate.plan[size] * size
