"""The one timer of the gateway's core: fires no later than the instant it was last asked for.

It owns the event loop's timer handle. It must never know what the wake-up is for.
"""

from collections.abc import Callable
from typing import Protocol

# uvloop's timers count whole milliseconds, asyncio's nearly so: a wake-up that comes this much too
# early counts as in time. Waiting out the rest would cost a second timer, and a millisecond more.
TIMER_RESOLUTION_NS = 1_000_000
SECONDS_PER_NS = 1e-9


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Timer(Protocol):
    """What is needed of an asyncio event loop."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Cancellable: ...


class WakeupTimer:
    """Calls `on_due()` when it is time, or up to TIMER_RESOLUTION_NS before.

    Armed for an instant, it stays armed when a later one is asked for: firing for nothing once is
    cheaper than re-arming for every event. `on_due` looks whether anything is due, and arms anew.
    """

    def __init__(
        self, *, clock: Callable[[], int], timer: Timer, on_due: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._timer = timer
        self._on_due = on_due
        self._handle: Cancellable | None = None
        self._armed_for_ns = 0

    def arm(self, wakeup_ns: int | None) -> None:
        """Sees to it that the timer fires no later than `wakeup_ns`. None asks for nothing."""
        if wakeup_ns is None:
            return
        if self._handle is not None:
            if self._armed_for_ns <= wakeup_ns:
                return
            self._handle.cancel()
        self._armed_for_ns = wakeup_ns
        # Relative, on our clock: uvloop's own time stands still during an iteration of the loop.
        delay_ns = max(0, wakeup_ns - self._clock())
        self._handle = self._timer.call_later(delay_ns * SECONDS_PER_NS, self._fire)

    def is_due(self, wakeup_ns: int) -> bool:
        """Whether an instant is close enough to be acted upon now."""
        return wakeup_ns - self._clock() <= TIMER_RESOLUTION_NS

    def close(self) -> None:
        """Disarms. It may be armed again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._on_due()
