"""ScalingSampler: shows Scaling once a second what is offered, and what became of it.

It owns one timer. It must never cost a request anything: it reads sums that others keep.
"""

from gateway.metrics.slo_results import result_of
from gateway.metrics.tallies import Totals
from gateway.views import CallLater, Clock, SchedulerView
from gateway.wakeup_timer import Cancellable
from scheduler.scaling import Sample, Scaling

# The scheduler forgets arrivals with a time constant of a second: no rarer look has seen them all.
INTERVAL_S = 1.0


class ScalingSampler:
    def __init__(
        self,
        scaling: Scaling,
        scheduler: SchedulerView,
        totals: Totals,
        *,
        clock: Clock,
        call_later: CallLater,
    ) -> None:
        self.scaling = scaling
        self._scheduler = scheduler
        self._totals = totals
        self._clock = clock
        self._call_later = call_later
        self._timer: Cancellable | None = None

    def start(self) -> None:
        self._timer = self._call_later(INTERVAL_S, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self._clock()
        asked = self._totals.num_served
        refused = 0
        for (outcome, reason), count in self._totals.others.items():
            result = result_of(outcome, reason)
            if result is not None:
                asked += count
                refused += count * (result == "rejected")
        load = self._scheduler.offered_load(now)
        self.scaling.observe(Sample(load, self._scheduler.num_serving, asked, refused), now)
        self.start()
