"""Triton's dynamic batching: a batch when a preferred size waits, or when waiting has lasted."""

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan, Deferred, FinishedBatch
from scheduler.policies.batching.fifo import first_arrival, first_come
from scheduler.state import SchedulerState


class QueueDelay:
    """The first to arrive waits at most `delay_ns` for a batch of `preferred` rows.

    What is due then is executed with at most `max_batch` rows. None, for either: the largest
    compiled size. Of several models' batches that are due, the one whose first arrived earliest.
    """

    def __init__(
        self, *, delay_ns: int, preferred: int | None = None, max_batch: int | None = None
    ) -> None:
        self._delay_ns = delay_ns
        self._preferred = preferred
        self._max_batch = max_batch

    def next_infer(
        self, state: SchedulerState, device: DeviceMirror, now: int
    ) -> BatchPlan | Deferred | None:
        queues = sorted(device.ready_queues(), key=first_arrival)
        for queue in queues:
            limit = self._limit(queue, device)
            if queue.num_rows >= min(self._preferred or limit, limit) or self._is_due(queue, now):
                return first_come(queue, device, now, max_rows=limit)
        if not queues:
            return None
        return Deferred(first_arrival(queues[0]) + self._delay_ns)

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it."""

    def _is_due(self, queue: ModelQueue, now: int) -> bool:
        return first_arrival(queue) + self._delay_ns <= now

    def _limit(self, queue: ModelQueue, device: DeviceMirror) -> int:
        max_rows = device.exec_estimate(queue).max_rows
        return max_rows if self._max_batch is None else min(self._max_batch, max_rows)
