"""Baseline: the same for every device and for ever."""

from scheduler.device import DeviceMirror


class FixedScheduleAhead:
    """`ahead_ns` None takes the setting of the configuration."""

    def __init__(self, ahead_ns: int | None = None) -> None:
        self._ahead_ns = ahead_ns

    def first_ns(self, configured_ns: int) -> int:
        return configured_ns if self._ahead_ns is None else self._ahead_ns

    def on_held(self, device: DeviceMirror, late_ns: int, now: int) -> None:
        """Only told."""
        device.note_held(late_ns)
