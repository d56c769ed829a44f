"""Baseline: LOAD whoever waits, EVICT the least recently used."""

from scheduler.device import DeviceMirror, Weights
from scheduler.policies.residency import LoadPlan, LoadsWhatIsWanted
from scheduler.policies.residency.room import can_load, make_room
from scheduler.state import SchedulerState


class LruResidency(LoadsWhatIsWanted):
    """See the module."""

    def next_load(self, state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
        for model in state.wanted():
            if can_load(device, model, now):
                plan = make_room(state, device, model, now, _least_recent)
                if plan is not None:
                    return plan
        return None


def _least_recent(candidate: tuple[str, Weights], now: int) -> float:
    return candidate[1].last_used_ns
