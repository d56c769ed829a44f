"""Whether a model can be loaded onto a device now, and what would have to go for it."""

from collections.abc import Callable
from typing import Final

from scheduler.device import DeviceMirror, Weights, WeightsState
from scheduler.policies.residency import LoadPlan
from scheduler.state import ModelState, SchedulerState

# Waiting requests of a resident model protect its weights, unless the newcomer would save this many
# times as many.
WORTH_DISPLACING: Final = 2


def can_load(device: DeviceMirror, model: ModelState, now: int) -> bool:
    """Whether the device has the model, could ever hold its weights, and does not have them now."""
    if device not in model.offered_by or not model.fits(device):
        return False
    record = device.weights.get(model.name)
    return record is None or (record.state is WeightsState.ABSENT and record.retry_at_ns <= now)


def make_room(
    state: SchedulerState,
    device: DeviceMirror,
    model: ModelState,
    now: int,
    value: Callable[[tuple[str, Weights], int], float],
) -> LoadPlan | None:
    """The evictions that free enough pages, or None if there are not enough that may go."""
    missing = model.spec.num_pages(device.spec.page_bytes) - device.pages_free
    if missing <= 0:
        return LoadPlan(model.name, ())
    evict = []
    for candidates in _evictable(state, device, model):
        by_value = [
            (value(candidate, now), index, candidate) for index, candidate in enumerate(candidates)
        ]
        by_value.sort()  # of equals the one that was found first
        for _, _, (name, record) in by_value:
            evict.append(name)
            missing -= record.num_pages
            if missing <= 0:
                return LoadPlan(model.name, tuple(evict))
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


def least_valuable(candidate: tuple[str, Weights], now: int) -> float:
    """Recent use per page: what evicting costs, per page it frees."""
    record = candidate[1]
    return record.score(now) / record.num_pages
