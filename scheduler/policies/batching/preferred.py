"""A batch for some of a queue's requests before the others, in overload: of tenants that got less
of the devices' time than their floor, then of the higher classes.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan
from scheduler.policies.batching.building import build
from scheduler.priority import HIGH, LOW, NORMAL
from scheduler.request import Request

# Whom a batch is for, the first first: who is owed time, the high, the normal, the low. Batches in
# which nobody goes before others are of USUAL.
RANKS: Final = range(4)
OWED: Final = 0
USUAL: Final = 1 + NORMAL


def build_preferred(
    queue: ModelQueue,
    device: DeviceMirror,
    start_ns: int,
    margin_ns: int,
    *,
    owed: list[str],
    drop_ns: int,
    max_ns: int | None,
) -> tuple[int, BatchPlan | None]:
    """The batch of the first rank that has a request in time, and that rank. None where nobody of
    the queue goes before the others of it; the rank is then that of any batch of the queue.
    """
    if owed:
        mine = [request for tenant in owed for request in queue.of_tenant(tenant)]
        plan = build_for(mine, queue, device, start_ns, margin_ns, max_ns=max_ns)
        if plan is not None:
            return OWED, plan
    only = queue.only_class
    if only is not None:
        return 1 + only, None
    for priority in (HIGH, NORMAL):
        of_class = queue.of_class(priority)
        if of_class is None:
            continue
        plan = build(
            queue, device, start_ns, margin_ns, drop_ns=drop_ns, max_ns=max_ns, of=of_class
        )
        if plan is not None:
            return 1 + priority, plan
    return 1 + LOW, None


def build_for(
    first: Iterable[Request],
    queue: ModelQueue,
    device: DeviceMirror,
    start_ns: int,
    margin_ns: int,
    *,
    max_ns: int | None = None,
) -> BatchPlan | None:
    """These requests of the queue first, however long others have waited in it; who else shares
    the model fills the batch up. None where none of them can be in time.
    """
    estimate = device.exec_estimate(queue)
    guard = estimate.guard
    reserve_ns = start_ns + margin_ns
    first_due_ns = reserve_ns + guard[1]
    mine = [request for request in first if request.deadline_ns >= first_due_ns]
    mine.sort(key=_due)
    while mine and mine[0].deadline_ns < reserve_ns + guard[mine[0].rows]:
        del mine[0]
    if not mine:
        return None
    head = mine[0]
    requests = [head]
    rows = head.rows
    if not head.runs_alone:
        size = bisect_right(guard, head.deadline_ns - reserve_ns) - 1
        if max_ns is not None:
            size = min(size, bisect_right(estimate.plan, max_ns) - 1)
        size = max(rows, estimate.efficient[max(1, min(size, queue.num_rows))])
        due_ns = reserve_ns + guard[size]
        preferred = set(mine)
        others = [r for r in queue if r.deadline_ns >= due_ns and r not in preferred]
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
