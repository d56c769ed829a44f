"""A further copy of what waits elsewhere, for a device that has nothing to do.

Its links and its lanes are idle, so the copy costs nothing but pages; those of a model's only copy
are not taken for it. Clockwork got such copies by accident, from a LOAD that never stopped
(reference: INFER5's loadModel), and was the better for it under bursts.
"""

from itertools import islice
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.policies.residency import LoadPlan
from scheduler.policies.residency.room import can_load, least_valuable, make_room
from scheduler.state import ModelState, SchedulerState

# Models with waiting requests that are looked at.
MAX_CANDIDATES: Final = 16
# A copy must come well before those that are there have served the queue.
WORTHWHILE_WAIT: Final = 2


def replica_for(state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
    """The model whose queue would wait longest elsewhere, in terms of its LOAD."""
    if device.num_infers or device.peek_ready() is not None:
        return None
    longest: tuple[float, ModelState] | None = None
    for model in islice(state.waiting.values(), MAX_CANDIDATES):
        if not model.holders or model.loading_on or not can_load(device, model, now):
            continue
        wait_ns = min([holder.exec_lane.free_at(now) for holder in model.holders]) - now
        for queue in model.queues.values():
            wait_ns += device.exec_estimate(queue).time_for(queue.num_rows)
        loads = wait_ns / device.estimates(model.name).load_plan_ns
        if loads > WORTHWHILE_WAIT and (longest is None or loads > longest[0]):
            longest = (loads, model)
    if longest is None:
        return None
    plan = make_room(state, device, longest[1], now, least_valuable)
    if plan is not None:
        for name in plan.evict:
            evicted = state.models.get(name)
            if evicted is not None and len(evicted.holders) < 2:
                return None
    return plan
