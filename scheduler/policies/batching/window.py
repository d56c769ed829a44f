"""Window dropping: which heads to give up so that a batch of the target size is in time.

Nexus (SOSP '19, "early drop") slides a window of the target size over the queue and
stops at the first request that can wait for the execution of the whole window; those before it are
dropped. Symphony adds the free lunch: whoever else fits without making the first one late.
"""

from collections.abc import Sequence
from typing import NamedTuple

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan
from scheduler.policies.batching.building import take
from scheduler.profile import ExecEstimate
from scheduler.request import Request


class Window(NamedTuple):
    """A batch out of a queue in deadline order."""

    queue: ModelQueue
    requests: list[Request]
    rows: int
    given_up: tuple[Request, ...]
    estimate: ExecEstimate

    @property
    def first_deadline_ns(self) -> int:
        return self.requests[0].deadline_ns

    def latest_start_ns(self, margin_ns: int) -> int:
        """The last instant at which it is in time."""
        return self.first_deadline_ns - margin_ns - self.estimate.guard[self.rows]

    def plan(self, start_ns: int, margin_ns: int) -> BatchPlan:
        return BatchPlan(
            self.queue,
            self.requests,
            self.rows,
            self.estimate.executed[self.rows],
            start_ns,
            self.estimate.plan[self.rows],
            self.latest_start_ns(margin_ns),
            self.given_up,
        )


def slide(
    queue: ModelQueue,
    device: DeviceMirror,
    *,
    start_ns: int,
    margin_ns: int,
    batches_in_slo: float | None = None,
    max_rows: int | None = None,
) -> Window | None:
    """The window for a start, of at most the target's rows, then of up to `max_rows` for free.

    The target is the largest batch that fits so many times into the SLO of the window's first;
    None: one row. The window shrinks where fewer wait. None where nobody can make it, not even
    alone.
    """
    estimate = device.exec_estimate(queue)
    requests = list(queue)
    target = 1
    target_slo_ns: int | None = None
    for index, first in enumerate(requests):
        slo_ns = first.deadline_ns - first.arrival_ns
        if batches_in_slo is not None and slo_ns != target_slo_ns:
            target_slo_ns = slo_ns
            target = _largest_batch(estimate, (slo_ns - margin_ns) / batches_in_slo)
        batch = take(requests[index : index + target], max(target, first.rows))
        rows = sum(request.rows for request in batch)
        spare_ns = first.deadline_ns - margin_ns - start_ns
        if estimate.guard[rows] <= spare_ns:
            if max_rows is not None and not first.runs_alone:
                batch = _free_lunch(requests[index:], estimate, spare_ns, len(batch), max_rows)
                rows = sum(request.rows for request in batch)
            return Window(queue, batch, rows, tuple(requests[:index]), estimate)
    return None


def _free_lunch(
    requests: Sequence[Request],
    estimate: ExecEstimate,
    spare_ns: int,
    num_taken: int,
    max_rows: int,
) -> list[Request]:
    """Those taken, and those behind them as long as the first one is in time."""
    rows = sum(request.rows for request in requests[:num_taken])
    for request in requests[num_taken:]:
        rows += request.rows
        if rows > max_rows or request.runs_alone or estimate.guard[rows] > spare_ns:
            break
        num_taken += 1
    return list(requests[:num_taken])


def _largest_batch(estimate: ExecEstimate, budget_ns: float) -> int:
    """The most rows whose execution takes no longer than that; one at least."""
    rows = estimate.max_rows
    while rows > 1 and estimate.guard[rows] > budget_ns:
        rows -= 1
    return rows
