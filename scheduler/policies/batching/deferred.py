"""Symphony's batching: wait until waiting longer cannot let one more request into the batch.

A model's candidate batch may start from its frontrun, `deadline - l(b + 1)`, to its latest start,
`deadline - l(b)` (arXiv 2308.07470, section 3; its source, dispatcher/rankmt). Of those that may
start, the one with the least latest start goes first.
"""

from scheduler.device import DeviceMirror
from scheduler.policies.batching import BatchPlan, Deferred, FinishedBatch
from scheduler.policies.batching.window import Window, slide
from scheduler.state import SchedulerState


class DeferredBatching:
    """`gpus_per_model` is the n of the target: the largest b with `l(b) * (1 + 1/n) <= SLO`."""

    def __init__(self, *, gpus_per_model: float) -> None:
        self._batches_in_slo = 1 + 1 / gpus_per_model

    def next_infer(
        self, state: SchedulerState, device: DeviceMirror, now: int
    ) -> BatchPlan | Deferred | None:
        start_ns = device.start_at(now)
        margin_ns = state.margin_ns(device)
        best: Window | None = None
        frontrun_ns: int | None = None
        for queue in device.ready_queues():
            window = slide(
                queue,
                device,
                start_ns=start_ns,
                margin_ns=margin_ns,
                batches_in_slo=self._batches_in_slo,
                max_rows=device.exec_estimate(queue).max_rows,
            )
            if window is None:
                continue
            from_ns = _frontrun(window, margin_ns)
            if from_ns is not None and from_ns > start_ns:
                frontrun_ns = from_ns if frontrun_ns is None else min(frontrun_ns, from_ns)
            elif best is None or window.latest_start_ns(margin_ns) < best.latest_start_ns(
                margin_ns
            ):
                best = window
        if best is not None:
            return best.plan(start_ns, margin_ns)
        if frontrun_ns is None:
            return None
        # Sent then, it starts at the frontrun.
        return Deferred(frontrun_ns - device.command_delay_ns)

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it: estimates are the device's."""


def _frontrun(window: Window, margin_ns: int) -> int | None:
    """From when on one more could not be waited for; None where it is as large as it can get."""
    estimate = window.estimate
    if window.rows >= estimate.max_rows or window.requests[0].runs_alone:
        return None
    return window.first_deadline_ns - margin_ns - estimate.guard[window.rows + 1]
