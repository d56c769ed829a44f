"""LoopLag: how late the event loop comes to what is due.

It owns one timer, armed again each time it fires. A loop that is held up by one request's digits,
or by a machine with too little CPU, holds up everybody, and no phase of any request shows it.
"""

from gateway.metrics.tallies import SHORT_DURATIONS, Tally
from gateway.views import CallLater, Clock
from gateway.wakeup_timer import Cancellable
from scheduler.spec import SECOND_NS

# Ten looks a second cost a ten-thousandth of the core, and see what holds the loop for longer.
INTERVAL_NS = SECOND_NS // 10


class LoopLag:
    def __init__(self, *, clock: Clock, call_later: CallLater) -> None:
        self.tally = Tally(SHORT_DURATIONS)
        self._clock = clock
        self._call_later = call_later
        self._due_ns = 0
        self._timer: Cancellable | None = None

    def start(self) -> None:
        self._due_ns = self._clock() + INTERVAL_NS
        self._timer = self._call_later(INTERVAL_NS / SECOND_NS, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        # A timer of whole milliseconds may fire a little early.
        self.tally.observe(max(0, self._clock() - self._due_ns))
        self.start()
