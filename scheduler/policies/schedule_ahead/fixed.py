"""Baseline: the same for every device and for ever."""

from typing import Annotated

import msgspec

from scheduler.device import DeviceMirror
from scheduler.spec import MILLISECOND_NS

# An option of a set.
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=60_000)]


class FixedScheduleAhead:
    """`ahead_ns` None takes the setting of the configuration."""

    def __init__(self, ahead_ns: int | None = None) -> None:
        self._ahead_ns = ahead_ns

    def first_ns(self, configured_ns: int) -> int:
        return configured_ns if self._ahead_ns is None else self._ahead_ns

    def on_held(self, device: DeviceMirror, late_ns: int, now: int) -> None:
        """Only told."""
        device.note_held(late_ns)


def fixed_ms(ahead_ms: Milliseconds | None) -> FixedScheduleAhead:
    """The same of an option of a set."""
    return FixedScheduleAhead(None if ahead_ms is None else round(ahead_ms * MILLISECOND_NS))
