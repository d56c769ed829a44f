"""How much of a model's work arrives, and which batch size that calls for.

Arrivals alone enter, not what was served, refused or lost: a figure made of losses would hold
itself up (who drops requests for larger batches measures losses, and goes on dropping).
"""

import math
from typing import Final

from scheduler.profile import ExecEstimate
from scheduler.spec import MILLISECOND_NS, SECOND_NS

# How fast arrivals are forgotten: long enough for a rate of a few per second, short enough to
# follow a burst.
FADE_NS: Final = SECOND_NS
# A rate is not made of less time than that, however suddenly the first arrivals came.
MIN_AGE_NS: Final = 100 * MILLISECOND_NS
# Rows of which so little is left count as none.
FORGOTTEN: Final = 0.01
# A model's figures are computed anew after so many arrivals, or so long after the last time.
REFRESH_ARRIVALS: Final = 16
REFRESH_NS: Final = 100 * MILLISECOND_NS
# Weight of the newest request in the usual SLO.
SLO_WEIGHT: Final = 1 / 16
# Silent models are looked at again after that, so that what they asked for once is forgotten.
STALE_NS: Final = SECOND_NS
# Fewer rows per nanosecond than one a minute are no load.
NO_LOAD: Final = 1 / (60 * SECOND_NS)


class RateMeter:
    """Rows per nanosecond, from counts that fade."""

    __slots__ = ("_as_of_ns", "_before", "_count", "_since_ns")

    def __init__(self) -> None:
        self._before = 0.0  # what was counted when the last arrival came
        self._count = 0.0
        self._as_of_ns = 0
        self._since_ns = 0  # the first arrival of all that still count

    def add(self, rows: int, now: int) -> None:
        before = self._count * math.exp((self._as_of_ns - now) / FADE_NS)
        if before < FORGOTTEN:
            before = 0.0
            self._since_ns = now
        self._before = before
        self._count = before + rows
        self._as_of_ns = now

    def per_ns(self, now: int) -> float:
        """At the instant of an arrival without it: whoever looks only then would otherwise see one
        too many each time, which is most of what a rare model asks for.
        """
        if now == self._as_of_ns:
            faded = self._before
        else:
            faded = self._count * math.exp((self._as_of_ns - now) / FADE_NS)
        age_ns = now - self._since_ns
        if age_ns < MIN_AGE_NS:
            age_ns = MIN_AGE_NS
        return faded / (FADE_NS * -math.expm1(-age_ns / FADE_NS))


class Demand:
    """What is asked of one model lately.

    Its batches are taken to be the largest that can form within the usual SLO at this rate: the
    first waits for the others, then all are executed, `l(b) + (b - 1) / rate <= SLO` (Symphony's
    and Nexus's rule, their number of GPUs expressed by the rate). `batch_ns` is how long one takes,
    `ns_per_row` what that is for each row, `load` how many devices all of them would keep busy,
    `single_ns` the execution of one row, with what the ways to and from the worker take.
    """

    __slots__ = (
        "_due_ns",
        "_estimate",
        "_margin_ns",
        "_meter",
        "_num_left",
        "batch_ns",
        "load",
        "ns_per_row",
        "refreshed_ns",
        "single_ns",
        "slo_ns",
    )

    def __init__(self) -> None:
        self._meter = RateMeter()
        self._estimate: ExecEstimate | None = None
        self._margin_ns = 0
        self._num_left = 0
        self._due_ns = 0
        self.slo_ns = 0
        self.single_ns = 0
        self.load = 0.0
        self.ns_per_row = 0.0
        self.batch_ns = 0
        self.refreshed_ns = 0

    def arrived(self, rows: int, slo_ns: int, now: int) -> bool:
        """A request came; whether the figures are due anew."""
        self._meter.add(rows, now)
        if self.slo_ns:
            self.slo_ns += int((slo_ns - self.slo_ns) * SLO_WEIGHT)
        else:
            self.slo_ns = slo_ns
        self._num_left -= 1
        return self._num_left <= 0 or now >= self._due_ns

    def measure(self, estimate: ExecEstimate, margin_ns: int) -> None:
        """With which figures the next refresh computes."""
        self._estimate = estimate
        self._margin_ns = margin_ns
        self.single_ns = estimate.plan[1] + margin_ns
        if not self.ns_per_row:
            self.ns_per_row = float(estimate.plan[1])

    def refresh(self, now: int) -> None:
        """Compute the figures from what came until now."""
        self._num_left = REFRESH_ARRIVALS
        self._due_ns = now + REFRESH_NS
        self.refreshed_ns = now
        estimate = self._estimate
        rate = self._meter.per_ns(now)
        if estimate is None or rate < NO_LOAD:
            self.load = 0.0
            return
        plan = estimate.plan
        budget_ns = self.slo_ns - self._margin_ns
        gap_ns = 1.0 / rate
        low, high = 1, estimate.max_rows
        while low < high:
            middle = (low + high + 1) // 2
            if plan[middle] + (middle - 1) * gap_ns <= budget_ns:
                low = middle
            else:
                high = middle - 1
        size = estimate.efficient[low]
        ns_per_row = plan[size] / size
        if low == size and low < estimate.max_rows:
            # Batches vary: some will be larger by one.
            spare_ns = budget_ns - plan[low] - (low - 1) * gap_ns
            more = min(1.0, spare_ns / (plan[low + 1] - plan[low] + gap_ns))
            if more > 0:
                between_ns = plan[low] + more * (plan[low + 1] - plan[low])
                ns_per_row = min(ns_per_row, between_ns / (low + more))
        self.batch_ns = plan[size]
        self.ns_per_row = ns_per_row
        self.load = rate * ns_per_row


class OfferedLoad:
    """The sum of all models' demand, in devices kept busy."""

    __slots__ = ("devices", "models")

    def __init__(self) -> None:
        self.devices = 0.0
        self.models: dict[Demand, None] = {}  # all and only with a load; longest unrefreshed first

    def refresh(self, demand: Demand, now: int) -> None:
        """The figures of this one, and of those that fell silent."""
        self._refresh(demand, now)
        while True:
            oldest = next(iter(self.models), None)
            if oldest is None or oldest.refreshed_ns > now - STALE_NS:
                return
            self._refresh(oldest, now)

    def as_of(self, now: int) -> float:
        """`devices` as it is now: models that fell silent since the last arrival of any are fewer
        by as much as their rates have faded. Changes nothing.
        """
        devices = self.devices
        for demand in self.models:
            age_ns = now - demand.refreshed_ns
            if age_ns <= STALE_NS:
                break
            devices += demand.load * math.expm1(-age_ns / FADE_NS)
        return devices if devices > 0.0 else 0.0

    def _refresh(self, demand: Demand, now: int) -> None:
        if demand in self.models:
            del self.models[demand]
            self.devices -= demand.load
        demand.refresh(now)
        if demand.load:
            self.devices += demand.load
            self.models[demand] = None
        elif not self.models:
            self.devices = 0.0  # without the rounding of many sums
