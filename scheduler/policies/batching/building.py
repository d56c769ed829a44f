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
    target_rows: int = 1,
    max_ns: int | None = None,
    cautious: bool = True,
) -> BatchPlan | None:
    """The best batch of this queue that starts then: all members meet their deadlines.

    Heads that cannot finish even alone are passed over (they expire by their own timer), and so are
    those whose deadline would keep the batch below `target_rows` where enough others wait: close to
    saturation, small batches for urgent heads leave the next heads less time, and so on. The size
    is the smallest within a few per cent of the best time per row, of those that every member's
    deadline allows and that take at most half of the head's SLO (or as long as the target does): a
    batch that fills the SLO makes whoever arrives during it late.
    """
    estimate = device.exec_estimate(queue)
    plan = estimate.plan
    guard = estimate.guard if cautious else plan
    head = queue.head
    assert head is not None
    reserve_ns = start_ns + margin_ns
    num_passed = 0
    if head.deadline_ns < reserve_ns + guard[head.rows]:
        num_passed = queue.num_due_before(reserve_ns + guard[head.rows])
        if num_passed == len(queue):
            return None
        head = queue.at(num_passed)
        if head.deadline_ns < reserve_ns + guard[head.rows]:
            return None
    if head.runs_alone:
        rows = head.rows
        requests = [head]
    else:
        # Rows, not requests, would need a running sum; requests of one row are the usual case.
        limit = waiting = min(queue.num_rows - num_passed, estimate.max_rows)
        budget_ns = head.deadline_ns - reserve_ns
        longest_ns = budget_ns if max_ns is None else max_ns
        while limit > head.rows and (guard[limit] > budget_ns or plan[limit] > longest_ns):
            limit -= 1
        if limit < target_rows and limit < waiting:
            low, high = limit, min(target_rows, waiting)
            while low < high:
                middle = (low + high + 1) // 2
                due_ns = reserve_ns + guard[middle]
                if (max_ns is None or plan[middle] <= max_ns) and (
                    len(queue) - queue.num_due_before(due_ns) >= middle
                ):
                    low = middle
                else:
                    high = middle - 1
            if low > limit:
                limit = low
                num_passed = max(num_passed, queue.num_due_before(reserve_ns + guard[limit]))
                head = queue.at(num_passed)
        size = max(head.rows, estimate.efficient[max(1, limit)])
        rows = head.rows
        requests = [head]
        if size > rows:
            requests = take(queue.run_from(head, size), size)
            rows = sum([request.rows for request in requests])
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
