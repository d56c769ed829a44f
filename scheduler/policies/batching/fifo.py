"""Baseline: the queue whose first arrived earliest, and as many behind it as fit."""

from collections.abc import Callable, Iterable
from itertools import islice

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan, FinishedBatch
from scheduler.policies.batching.building import take
from scheduler.request import Request
from scheduler.state import SchedulerState


class FifoBatching:
    """Batches of at most `max_batch` rows; None: of the largest compiled size.

    `passes_over`: see first_of_all.
    """

    def __init__(self, max_batch: int | None = None, *, passes_over: bool = False) -> None:
        self._max_batch = max_batch
        self._passes_over = passes_over

    def next_infer(self, state: SchedulerState, device: DeviceMirror, now: int) -> BatchPlan | None:
        return first_of_all(state, device, now, self._limit, passes_over=self._passes_over)

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it."""

    def _limit(self, device: DeviceMirror, model: str) -> int:
        return self._max_batch or device.estimates(model).first.max_rows


def first_of_all(
    state: SchedulerState,
    device: DeviceMirror,
    now: int,
    limit: Callable[[DeviceMirror, str], int],
    *,
    passes_over: bool,
) -> BatchPlan | None:
    """A batch of the queue whose first arrived earliest, at most as large as its model's limit.

    `passes_over` those who could not make it any more, not even alone; they expire by themselves.
    """
    queues = sorted(device.ready_queues(), key=first_arrival)
    if not passes_over:
        if not queues:
            return None
        return first_come(queues[0], device, now, max_rows=limit(device, queues[0].model))
    earliest_end_ns = device.start_at(now) + state.margin_ns(device)
    for queue in queues:
        guard = device.exec_estimate(queue).guard
        in_time = [r for r in queue.in_order() if r.deadline_ns >= earliest_end_ns + guard[r.rows]]
        if in_time:
            max_rows = limit(device, queue.model)
            return first_come(queue, device, now, max_rows=max_rows, requests=in_time)
    return None


def first_arrival(queue: ModelQueue) -> int:
    return queue.first_in_order.arrival_ns


def first_come(
    queue: ModelQueue,
    device: DeviceMirror,
    now: int,
    *,
    max_rows: int,
    requests: Iterable[Request] | None = None,
) -> BatchPlan:
    """The first of a queue, or of those of its requests that are given: at most so many rows, but
    the very first in any case.
    """
    estimate = device.exec_estimate(queue)
    limit = min(max_rows, estimate.max_rows)
    batch = take(list(islice(queue.in_order() if requests is None else requests, limit)), limit)
    rows = sum(request.rows for request in batch)
    return BatchPlan(
        queue,
        batch,
        rows,
        estimate.executed[rows],
        device.start_at(now),
        estimate.plan[rows],
        max(request.deadline_ns for request in batch),
    )
