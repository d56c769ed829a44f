"""Nexus's batching: a fixed target batch per model, window dropping, and the models in turn."""

from scheduler.device import DeviceMirror
from scheduler.policies.batching import BatchPlan, FinishedBatch
from scheduler.policies.batching.window import slide
from scheduler.state import SchedulerState

# A request that just misses a batch waits for that one and then for its own: two in one SLO.
BATCHES_IN_SLO = 2


class WindowDrop:
    """The target is the largest batch that fits twice into the SLO of its first request.

    The turn is that of the model that was executed longest ago on the device (Nexus: a fixed
    order within a duty cycle).
    """

    def next_infer(self, state: SchedulerState, device: DeviceMirror, now: int) -> BatchPlan | None:
        start_ns = device.start_at(now)
        margin_ns = state.margin_ns(device)
        turn_of = {name: turn for turn, name in enumerate(device.weights)}
        by_turn = [
            (turn_of[queue.model], index, queue)
            for index, queue in enumerate(device.ready_queues())
        ]
        by_turn.sort()  # of one model's queues the one that was found first
        for _, _, queue in by_turn:
            window = slide(
                queue,
                device,
                start_ns=start_ns,
                margin_ns=margin_ns,
                batches_in_slo=BATCHES_IN_SLO,
            )
            if window is not None:
                return window.plan(start_ns, margin_ns)
        return None

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it: the target is fixed by the profile."""
