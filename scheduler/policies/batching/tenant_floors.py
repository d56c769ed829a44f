"""A batch for tenants that got less of the devices' time than their floor."""

from bisect import bisect_right

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan
from scheduler.request import Request


def build_owed(
    queue: ModelQueue,
    device: DeviceMirror,
    start_ns: int,
    margin_ns: int,
    *,
    owed: list[str],
    max_ns: int | None = None,
) -> BatchPlan | None:
    """Requests of these tenants first, however long others have waited in the same queue; who else
    shares the model fills the batch up.
    """
    estimate = device.exec_estimate(queue)
    guard = estimate.guard
    reserve_ns = start_ns + margin_ns
    first_due_ns = reserve_ns + guard[1]
    mine: list[Request] = []
    for tenant in owed:
        for request in queue.of_tenant(tenant):
            if request.deadline_ns >= first_due_ns:
                mine.append(request)
    mine.sort(key=_due)
    while mine and mine[0].deadline_ns < reserve_ns + guard[mine[0].rows]:
        del mine[0]
    if not mine:
        return None
    first = mine[0]
    requests = [first]
    rows = first.rows
    if not first.runs_alone:
        size = bisect_right(guard, first.deadline_ns - reserve_ns) - 1
        if max_ns is not None:
            size = min(size, bisect_right(estimate.plan, max_ns) - 1)
        size = max(rows, estimate.efficient[max(1, min(size, queue.num_rows))])
        due_ns = reserve_ns + guard[size]
        others = [r for r in queue if r.tenant not in owed and r.deadline_ns >= due_ns]
        for request in mine[1:] + others[:size]:
            if rows + request.rows <= size and not request.runs_alone:
                requests.append(request)
                rows += request.rows
        requests.sort(key=_due)
    expected_ns = estimate.plan[rows]
    latest_ns = requests[-1].deadline_ns - expected_ns - margin_ns
    return BatchPlan(
        queue, requests, rows, estimate.executed[rows], start_ns, expected_ns, latest_ns
    )


def _due(request: Request) -> tuple[int, int]:
    return request.deadline_ns, request.request_id
