"""Baseline: the queue whose head arrived first, everything that fits, deadlines ignored."""

from itertools import islice

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan, FinishedBatch
from scheduler.policies.batching.building import take
from scheduler.state import SchedulerState


class FifoBatching:
    """Batches of at most `max_batch` rows; None: of the largest compiled size."""

    def __init__(self, max_batch: int | None = None) -> None:
        self._max_batch = max_batch

    def next_infer(self, state: SchedulerState, device: DeviceMirror, now: int) -> BatchPlan | None:
        queue = min(device.ready_queues(), key=first_arrival, default=None)
        if queue is None:
            return None
        max_rows = device.exec_estimate(queue).max_rows
        return first_come(queue, device, now, max_rows=self._max_batch or max_rows)

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it."""


def first_arrival(queue: ModelQueue) -> int:
    return queue.first_in_order.arrival_ns


def first_come(queue: ModelQueue, device: DeviceMirror, now: int, *, max_rows: int) -> BatchPlan:
    """The first of a queue, at most so many rows, but the very first in any case."""
    estimate = device.exec_estimate(queue)
    limit = max(min(max_rows, estimate.max_rows), queue.first_in_order.rows)
    requests = take(list(islice(queue.in_order(), limit)), limit)
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
