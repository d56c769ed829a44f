"""LOAD whom it saves most per millisecond, EVICT who is worth least per page."""

from itertools import islice
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.policies.residency import LoadPlan
from scheduler.policies.residency.replica import replica_for
from scheduler.policies.residency.room import can_load, least_valuable, make_room
from scheduler.state import ModelState, SchedulerState

# Models that are refused for being cold which are looked at, the latest first.
MAX_REFUSED: Final = 16
# Models with waiting requests that may get a copy, those first that have been waiting longest.
MAX_WAITING: Final = 32


class DemandResidency:
    """LOAD the model with most savable requests per load time; EVICT the least valuable first.

    Value is recent use per page. Weights in use by an Infer in flight and pinned ones are never
    evicted; weights that requests wait for only if the newcomer would save twice as many. A model
    that is only ever refused because it is cold is loaded when nobody waits for another; with
    `replicates`, a device with nothing to do takes a copy of what waits elsewhere.
    """

    def __init__(self, *, replicates: bool = True) -> None:
        self.is_speculative = replicates

    def next_load(self, state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
        candidates: list[tuple[float, ModelState]] = []
        for model in state.wanted():
            if can_load(device, model, now):
                load_ns = device.estimates(model.name).load_plan_ns
                demand = state.savable(model, device, now) / load_ns
                if demand > 0:
                    candidates.append((demand, model))
        candidates.sort(key=_demand, reverse=True)
        for _, model in candidates:
            plan = make_room(state, device, model, now, least_valuable)
            if plan is not None:
                return plan
        plan = _pinned(state, device, now)
        if plan is None:
            plan = _refused(state, device, now)
        if plan is None and self.is_speculative:
            plan = replica_for(state, device, now, islice(state.waiting.values(), MAX_WAITING))
        return plan

    def copy_of(
        self, state: SchedulerState, device: DeviceMirror, model: ModelState, now: int
    ) -> LoadPlan | None:
        return replica_for(state, device, now, (model,))


def _demand(candidate: tuple[float, ModelState]) -> float:
    return candidate[0]


def _pinned(state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
    """Pinned models are resident somewhere, whether or not anyone asks for them."""
    for name in state.pinned_and_absent():
        model = state.models[name]
        if can_load(device, model, now):
            plan = make_room(state, device, model, now, least_valuable)
            if plan is not None:
                return plan
    return None


def _refused(state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
    """Nobody waits for a model whose LOAD takes longer than its SLO: all were refused. Those who
    try again will find it loaded, where that costs nobody who waits.
    """
    for name in islice(reversed(state.refused_cold), MAX_REFUSED):
        model = state.models[name]
        if model.is_cold and can_load(device, model, now):
            plan = make_room(state, device, model, now, least_valuable)
            if plan is not None and not any(
                other is not None and other.num_queued
                for other in map(state.models.get, plan.evict)
            ):
                return plan
    return None
