"""Baseline: earliest deadline first over all models, as many of its model as are in time."""

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan, FinishedBatch
from scheduler.policies.batching.window import Window, slide
from scheduler.state import SchedulerState


class EarliestDeadline:
    """`max_batch` rows at most; None: the largest compiled size."""

    def __init__(self, max_batch: int | None = None) -> None:
        self._max_batch = max_batch

    def next_infer(self, state: SchedulerState, device: DeviceMirror, now: int) -> BatchPlan | None:
        start_ns = device.start_at(now)
        margin_ns = state.margin_ns(device)
        best: Window | None = None
        for queue in device.ready_queues():
            # Whoever cannot make it is passed over, and expires by itself.
            window = slide(
                queue,
                device,
                start_ns=start_ns,
                margin_ns=margin_ns,
                max_rows=self._limit(queue, device),
            )
            if window is not None and (
                best is None or window.first_deadline_ns < best.first_deadline_ns
            ):
                best = window
        return None if best is None else best._replace(given_up=()).plan(start_ns, margin_ns)

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it: estimates are the device's."""

    def _limit(self, queue: ModelQueue, device: DeviceMirror) -> int:
        max_rows = device.exec_estimate(queue).max_rows
        return max_rows if self._max_batch is None else min(self._max_batch, max_rows)
