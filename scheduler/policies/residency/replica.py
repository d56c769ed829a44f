"""A further copy of what waits elsewhere, for a device that could serve it sooner.

The link is idle, so the copy costs nothing but pages; those of a model's only copy are not taken
for it, unless it is hardly used. Clockwork got such copies by accident, from a LOAD that never
stopped, and was the better for it under bursts (docs/policies.md).
"""

from collections.abc import Iterable
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.policies.residency import LoadPlan
from scheduler.policies.residency.room import can_load, least_valuable, make_room
from scheduler.state import ModelState, SchedulerState

# For a device that has nothing to do: so many LOADs must the queue's own devices need for it.
WORTHWHILE_WAIT: Final = 2
# For one that has: the head has waited this part of the time until it must start, so that its own
# devices are in trouble, as this one is not.
TROUBLED: Final = 0.5
# Pages of an only copy may be taken for a further one of another model, if it was used less lately.
HARDLY_USED: Final = 1.0


def replica_for(
    state: SchedulerState, device: DeviceMirror, now: int, candidates: Iterable[ModelState]
) -> LoadPlan | None:
    """The candidate of which most requests per millisecond of LOAD would be saved by a copy."""
    best: tuple[float, ModelState] | None = None
    own = device.peek_ready()
    own_latest_ns = None if own is None else own.latest_start_ns
    is_idle = own is None and not device.num_infers
    for model in candidates:
        if not model.holders or model.loading_on or not can_load(device, model, now):
            continue
        load_ns = device.estimates(model.name).load_plan_ns
        if is_idle:
            is_due = _wait_ns(model, device, now) > WORTHWHILE_WAIT * load_ns
        else:
            is_due = _is_in_trouble(model, own_latest_ns, now)
        if is_due:
            saved = state.savable(model, device, now) / load_ns
            if saved > 0 and (best is None or saved > best[0]):
                best = (saved, model)
    if best is None:
        return None
    plan = make_room(state, device, best[1], now, least_valuable)
    if plan is not None:
        for name in plan.evict:
            evicted = state.models.get(name)
            is_only_copy = evicted is not None and len(evicted.holders) < 2
            if is_only_copy and device.weights[name].score(now) > HARDLY_USED:
                return None
    return plan


def _wait_ns(model: ModelState, device: DeviceMirror, now: int) -> int:
    """Until those who wait would be done where the weights are."""
    wait_ns = min([holder.exec_lane.free_at(now) for holder in model.holders]) - now
    for queue in model.queues.values():
        wait_ns += device.exec_estimate(queue).time_for(queue.num_rows)
    return wait_ns


def _is_in_trouble(model: ModelState, own_latest_ns: int | None, now: int) -> bool:
    """Whether some head of it has waited long, and would go before what the device itself has."""
    for queue in model.queues.values():
        head = queue.head
        latest_ns = queue.latest_start_ns
        assert head is not None
        assert latest_ns is not None
        if own_latest_ns is not None and own_latest_ns <= latest_ns:
            continue
        if now - head.arrival_ns >= TROUBLED * (latest_ns - head.arrival_ns):
            return True
    return False
