"""Instants at which the core wants to be called again: one per object, cheap to move."""

from heapq import heapify, heappop, heappush
from typing import Final

# Stale entries are swept out once they outnumber the live ones by this factor.
_SWEEP_FACTOR: Final = 4
_SWEEP_MINIMUM: Final = 256


class Wakeable:
    """Whatever can have a wake-up, none at first. The field is written by Timers only."""

    __slots__ = ("wake_at_ns",)

    def __init__(self) -> None:
        self.wake_at_ns: int | None = None

    def is_awaited_by(self, at_ns: int) -> bool:
        """Whether it will be woken at the instant or before."""
        return self.wake_at_ns is not None and self.wake_at_ns <= at_ns


class Timers:
    """A heap with lazy deletion: an entry counts only if its object still wants that instant."""

    __slots__ = ("_heap", "_num_live", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Wakeable]] = []
        self._num_live = 0
        self._sequence = 0

    def set(self, target: Wakeable, at_ns: int) -> None:
        """Wake the object at this instant instead of any other."""
        if target.wake_at_ns == at_ns:
            return
        if target.wake_at_ns is None:
            self._num_live += 1
        target.wake_at_ns = at_ns
        self._sequence += 1
        heappush(self._heap, (at_ns, self._sequence, target))
        if len(self._heap) > _SWEEP_FACTOR * self._num_live + _SWEEP_MINIMUM:
            self._sweep()

    def clear(self, target: Wakeable) -> None:
        if target.wake_at_ns is not None:
            target.wake_at_ns = None
            self._num_live -= 1

    def next_at(self) -> int | None:
        """The earliest wanted instant. Drops stale entries on the way; decides nothing."""
        heap = self._heap
        while heap:
            at_ns, _, target = heap[0]
            if target.wake_at_ns == at_ns:
                return at_ns
            heappop(heap)
        return None

    def pop_due(self, now: int) -> Wakeable | None:
        """One object whose instant has come, its wake-up cleared; None when there is none."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            at_ns, _, target = heappop(heap)
            if target.wake_at_ns == at_ns:
                self.clear(target)
                return target
        return None

    def _sweep(self) -> None:
        live: dict[int, tuple[int, int, Wakeable]] = {}
        for entry in self._heap:
            if entry[2].wake_at_ns == entry[0]:
                live[id(entry[2])] = entry
        self._heap = list(live.values())
        heapify(self._heap)
