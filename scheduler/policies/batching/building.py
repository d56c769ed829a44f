"""The best batch of one queue for a given start."""

from bisect import bisect_right

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan
from scheduler.profile import ExecEstimate
from scheduler.request import Request


def build(
    queue: ModelQueue,
    device: DeviceMirror,
    start_ns: int,
    margin_ns: int,
    *,
    drop_ns: int = 0,
    max_ns: int | None = None,
    cautious: bool = True,
    of: ModelQueue | None = None,
) -> BatchPlan | None:
    """The best batch of this queue that starts then: all members meet their deadlines.

    The size is the smallest within a few per cent of the best time per row, of those that every
    member's deadline allows and that take at most `max_ns` (more only for a single request). Heads
    that cannot finish even alone are passed over (they expire by their own timer), and so are those
    that keep the batch small, where that saves `drop_ns` of the device for each of them: close to
    saturation, small batches for urgent heads leave the next heads less time, and so on to batches
    of one. With 0 nobody is passed over for that. `of` is a class of the queue for which the batch
    is; the others of the queue then fill it up.
    """
    waiting = queue if of is None else of
    estimate = device.exec_estimate(queue)
    guard = estimate.guard if cautious else estimate.plan
    head = waiting.head
    assert head is not None
    reserve_ns = start_ns + margin_ns
    num_passed = 0
    if head.deadline_ns < reserve_ns + guard[head.rows]:
        num_passed = waiting.num_due_before(reserve_ns + guard[head.rows])
        if num_passed == len(waiting):
            return None
        head = waiting.at(num_passed)
        if head.deadline_ns < reserve_ns + guard[head.rows]:
            return None
    rows = head.rows
    requests = [head]
    if not head.runs_alone:
        num_rows = min(waiting.num_rows - num_passed, estimate.max_rows)
        size = min(num_rows, bisect_right(guard, head.deadline_ns - reserve_ns) - 1)
        if max_ns is not None:
            size = min(size, bisect_right(estimate.plan, max_ns) - 1)
        size = max(head.rows, size)
        # The window's arithmetic is that of requests of one row, the usual case.
        if drop_ns and size < num_rows and waiting.num_rows == len(waiting):
            num_more, size = _window(
                waiting, estimate, guard, reserve_ns, num_passed, size, num_rows, drop_ns, max_ns
            )
            if num_more:
                head = waiting.at(num_passed + num_more)
                requests = [head]
        size = max(rows, estimate.efficient[size])
        if size > rows:
            requests = take(waiting.run_from(head, size), size)
            rows = sum([request.rows for request in requests])
        if of is not None:
            rows = _fill_up(requests, rows, queue, estimate, guard, reserve_ns, max_ns)
    expected_ns = estimate.plan[rows]
    latest_ns = requests[-1].deadline_ns - expected_ns - margin_ns
    return BatchPlan(
        queue, requests, rows, estimate.executed[rows], start_ns, expected_ns, latest_ns
    )


def _fill_up(
    requests: list[Request],
    rows: int,
    queue: ModelQueue,
    estimate: ExecEstimate,
    guard: list[int],
    reserve_ns: int,
    max_ns: int | None,
) -> int:
    """Adds requests of other classes that a batch has room for without making anybody late.

    Returns the rows of the batch.
    """
    first = requests[0]
    size = min(queue.num_rows, bisect_right(guard, first.deadline_ns - reserve_ns) - 1)
    if max_ns is not None:
        size = min(size, bisect_right(estimate.plan, max_ns) - 1)
    size = estimate.efficient[max(rows, size)]
    other = queue.first_due_after(reserve_ns + guard[size] - 1)
    if size <= rows or other is None:
        return rows
    for request in queue.run_from(other, 2 * size):
        is_other = request.priority != first.priority
        if is_other and rows + request.rows <= size and not request.runs_alone:
            requests.append(request)
            rows += request.rows
    requests.sort(key=_due)
    return rows


def _due(request: Request) -> tuple[int, int]:
    return request.deadline_ns, request.request_id


def _window(
    queue: ModelQueue,
    estimate: ExecEstimate,
    guard: list[int],
    reserve_ns: int,
    num_passed: int,
    size: int,
    waiting: int,
    drop_ns: int,
    max_ns: int | None,
) -> tuple[int, int]:
    """How many more heads to pass over, and the size of the batch behind them."""
    low, high = size, waiting
    if max_ns is not None:
        high = max(low, min(high, bisect_right(estimate.plan, max_ns) - 1))
    num_queued = len(queue)
    while low < high:
        middle = (low + high + 1) // 2
        if num_queued - queue.num_due_before(reserve_ns + guard[middle]) >= middle:
            low = middle
        else:
            high = middle - 1
    small, large = estimate.efficient[size], estimate.efficient[low]
    if large > small:
        num_more = queue.num_due_before(reserve_ns + guard[large]) - num_passed
        saved_ns = estimate.plan[small] * large // small - estimate.plan[large]
        if saved_ns >= num_more * drop_ns:
            return num_more, large
    return 0, size


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
