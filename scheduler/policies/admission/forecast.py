"""When a request would be done on a device: those of its own model before it, and its own batch.

Work of other models is not counted: which of them goes first, and in how large a batch, depends on
what arrives meanwhile, so that a request refused for it may have been served. Only of shorter work
is it known that it slips in ahead, so the wait is stretched by the share that it took lately.
"""

import math
from bisect import bisect_right
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.profile import ExecEstimate
from scheduler.request import Request
from scheduler.state import ModelState, SchedulerState

# A model whose full batches take less than this share of the time per row of single executions
# cannot serve what was admitted for full batches in smaller ones.
LIVES_ON_BATCHING: Final = 0.8
# Offered load, as a share of the fleet, above which later requests will fill every batch.
SATURATED: Final = 0.9


def finish_on(
    state: SchedulerState,
    model: ModelState,
    request: Request,
    device: DeviceMirror,
    *,
    now: int,
    start_ns: int,
    rows_elsewhere: int = 0,
) -> tuple[int, int, DeviceMirror]:
    """(planned finish, finish with guard and margin, the device) of a request that can start then.

    `rows_elsewhere` of those who wait are left to other devices.
    """
    estimate = device.estimates(request.model).exec(request.shape_key, request.elements)
    margin_ns = state.margin_ns(device)
    plan = estimate.plan
    rows = request.rows
    queue = model.queues.get(request.batch_key)
    if queue is not None:
        # Rows, not requests, would need a running sum; requests of one row are the usual case.
        tenants = state.tenants
        if tenants is not None and tenants.is_owed(request.tenant, len(state.devices), now):
            rows += queue.num_of_tenant(request.tenant)  # batching passes the others over
        elif state.utilisation > SATURATED and queue.only_class != request.priority:
            rows += queue.rows_before(request.deadline_ns, request.priority)
        else:
            num_ahead = queue.num_due_by(request.deadline_ns)
            rows += num_ahead if queue.num_rows == len(queue) else queue.num_rows
        if rows_elsewhere:
            rows = max(request.rows, rows - rows_elsewhere)
    # As batching does: the best size that the SLO allows, and the rest.
    size = usual_batch(estimate, request, margin_ns)
    lives_on_batching = plan[size] < LIVES_ON_BATCHING * size * plan[1]
    if lives_on_batching and rows > request.rows:
        # Where models compete, one that has more to choose from fills a batch that is still in time
        # (15 models with 16 clients each and 10 ms: 540 answers a second without this, 680 with).
        others = state.num_queued - model.num_queued
        rows = max(request.rows, rows - others)
    full, rest = divmod(rows, size)
    if rest and full and lives_on_batching and state.utilisation > SATURATED:
        # Later requests will fill the last batch up, too. Without the time for that, its first one
        # would hold the batch small, and all that were admitted for full batches would be late.
        last = size
        own_ns = (full + 1) * plan[size]
    elif rest:
        last = estimate.efficient[rest]
        own_ns = full * plan[size] + estimate.batched[rest]
    else:
        last = size
        own_ns = full * plan[size]
    own_wait_ns = own_ns - plan[last]
    lane_ns = device.start_at(now) - now + own_wait_ns
    share = device.exec_shares.share_of_shorter(plan[1], now)
    # A LOAD that is waited for meanwhile is not stretched by what the exec lane does.
    wait_ns = max(int(lane_ns / (1 - share)), start_ns - now + own_wait_ns)
    finish_ns = now + wait_ns + plan[last]
    # What may go wrong with each batch before it adds up as independent errors do.
    guard_ns = int((estimate.guard[last] - plan[last]) * math.sqrt(full + 1))
    return finish_ns, finish_ns + guard_ns + margin_ns, device


def usual_batch(estimate: ExecEstimate, request: Request, margin_ns: int) -> int:
    """Rows of a batch where enough wait."""
    time_ns = request.deadline_ns - request.arrival_ns - margin_ns
    return estimate.efficient[max(request.rows, bisect_right(estimate.plan, time_ns) - 1)]


def rows_in_time(state: SchedulerState, device: DeviceMirror, request: Request, now: int) -> int:
    """Rows of the request's kind that the device could finish by its deadline."""
    estimate = device.estimates(request.model).exec(request.shape_key, request.elements)
    margin_ns = state.margin_ns(device)
    time_ns = request.deadline_ns - margin_ns - device.start_at(now)
    if time_ns <= 0:
        return 0
    share = device.exec_shares.share_of_shorter(estimate.plan[1], now)
    time_ns = int(time_ns * (1 - share))
    size = usual_batch(estimate, request, margin_ns)
    if time_ns >= estimate.plan[size]:
        return time_ns // estimate.plan[size] * size
    return bisect_right(estimate.plan, time_ns) - 1
