"""Whose weights to LOAD onto a device, and whose to EVICT for them."""

from collections.abc import Callable
from typing import NamedTuple

from scheduler.device import DeviceMirror, Weights, WeightsState
from scheduler.state import ModelState, SchedulerState

# Waiting requests of a resident model protect its weights, unless the newcomer would save this many
# times as many.
WORTH_DISPLACING = 2


class LoadPlan(NamedTuple):
    """Evict these, in this order, then load that."""

    model: str
    evict: tuple[str, ...]


class DemandResidency:
    """LOAD the model with most savable requests per load time; EVICT the least valuable first.

    Value is recent use per page. Weights in use by an Infer in flight and pinned ones are never
    evicted; weights that requests wait for only if the newcomer would save twice as many. A model
    that is only ever refused because it is cold is loaded when nobody waits for another.
    """

    def next_load(self, state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
        best: tuple[float, ModelState] | None = None
        for model in state.wanted():
            if not _can_load(device, model, now):
                continue
            load_ns = device.estimates(model.spec.name).load_plan_ns
            demand = state.savable(model, device, now) / load_ns
            if demand > 0 and (best is None or demand > best[0]):
                best = (demand, model)
        plan = None
        if best is not None:
            plan = _make_room(state, device, best[1], now, _least_valuable)
        if plan is None:
            plan = _pinned(state, device, now)
        return plan if plan is not None else _refused(state, device, now)


class LruResidency:
    """Baseline: LOAD whoever waits, EVICT the least recently used."""

    def next_load(self, state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
        for model in state.wanted():
            if _can_load(device, model, now):
                return _make_room(state, device, model, now, _least_recent)
        return None


def _can_load(device: DeviceMirror, model: ModelState, now: int) -> bool:
    if device not in model.offered_by:
        return False
    record = device.weights.get(model.spec.name)
    return record is None or (record.state is WeightsState.ABSENT and record.retry_at_ns <= now)


def _pinned(state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
    """Pinned models are resident somewhere, whether or not anyone asks for them."""
    for name in state.pinned_and_absent():
        model = state.models[name]
        if _can_load(device, model, now):
            plan = _make_room(state, device, model, now, _least_valuable)
            if plan is not None:
                return plan
    return None


def _refused(state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
    """Nobody waits for a model whose LOAD takes longer than its SLO: all were refused. Those who
    try again will find it loaded, where that costs nobody who waits.
    """
    for name in reversed(state.refused_cold):
        model = state.models[name]
        if model.is_cold and _can_load(device, model, now):
            plan = _make_room(state, device, model, now, _least_valuable)
            if plan is not None and not any(
                other is not None and other.num_queued
                for other in map(state.models.get, plan.evict)
            ):
                return plan
    return None


def _make_room(
    state: SchedulerState,
    device: DeviceMirror,
    model: ModelState,
    now: int,
    value: Callable[[tuple[str, Weights], int], float],
) -> LoadPlan | None:
    """The evictions that free enough pages, or None if there are not enough that may go."""
    missing = model.spec.num_pages(device.spec.page_bytes) - device.pages_free
    if missing <= 0:
        return LoadPlan(model.spec.name, ())
    evict = []
    for candidates in _evictable(state, device, model):
        for name, record in sorted(candidates, key=lambda candidate: value(candidate, now)):
            evict.append(name)
            missing -= record.num_pages
            if missing <= 0:
                return LoadPlan(model.spec.name, tuple(evict))
    return None


def _evictable(
    state: SchedulerState, device: DeviceMirror, newcomer: ModelState
) -> tuple[list[tuple[str, Weights]], list[tuple[str, Weights]]]:
    """Resident weights that may go: those nobody waits for, and those the newcomer outweighs."""
    idle: list[tuple[str, Weights]] = []
    wanted: list[tuple[str, Weights]] = []
    for name, record in device.weights.items():
        if record.state is not WeightsState.RESIDENT or record.num_infers:
            continue
        model = state.models.get(name)
        if model is None or record.is_unserved or not (model.is_pinned or model.num_queued):
            idle.append((name, record))
        elif not model.is_pinned and (
            len(model.holders) > 1 or newcomer.num_queued >= WORTH_DISPLACING * model.num_queued
        ):
            wanted.append((name, record))
    return idle, wanted


def _least_valuable(candidate: tuple[str, Weights], now: int) -> float:
    """Recent use per page: what evicting costs, per page it frees."""
    record = candidate[1]
    return record.score(now) / record.num_pages


def _least_recent(candidate: tuple[str, Weights], now: int) -> float:
    return candidate[1].last_used_ns
