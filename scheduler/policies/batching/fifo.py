"""Baseline: the queue whose head arrived first, everything that fits, deadlines ignored."""

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
        queues = device.ready_queues()
        if not queues:
            return None
        queue = min(queues, key=_first_arrival)
        estimate = device.exec_estimate(queue)
        limit = min(self._max_batch or estimate.max_rows, estimate.max_rows)
        first = queue.first_in_order
        requests = take(list(queue.in_order()), max(limit, first.rows))
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

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it."""


def _first_arrival(queue: ModelQueue) -> int:
    return queue.first_in_order.arrival_ns
