"""Whose weights to LOAD onto a device, and whose to EVICT for them."""

from typing import NamedTuple

from scheduler.device import DeviceMirror
from scheduler.state import ModelState, SchedulerState


class LoadPlan(NamedTuple):
    """Evict these, in this order, then load that."""

    model: str
    evict: tuple[str, ...]


class LoadsWhatIsWanted:
    """A residency policy that never LOADs what nobody waits for."""

    is_speculative = False

    def copy_of(
        self, state: SchedulerState, device: DeviceMirror, model: ModelState, now: int
    ) -> LoadPlan | None:
        """None."""
        return None
