"""The best batch of one queue for a given start."""

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan
from scheduler.request import Request


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
        requests = take(queue.run_from(head, size), size)
        rows = sum(request.rows for request in requests)
    expected_ns = plan[rows]
    latest_ns = requests[-1].deadline_ns - expected_ns - margin_ns
    return BatchPlan(
        queue, requests, rows, estimate.executed[rows], start_ns, expected_ns, latest_ns
    )


def take(requests: list[Request], max_rows: int) -> list[Request]:
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
