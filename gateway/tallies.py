"""What is counted for one model: histograms and counters in plain Python.

It owns buckets and accumulators. It must never allocate on the hot path: a figure costs one
bisection, one list index and one addition.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from scheduler.events import Served
from scheduler.spec import SECOND_NS

# From 0.5 ms: SLOs start there, and the usual defaults start at 5 ms.
DURATION_BUCKETS_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0),
)
# Signed: slack left at the answer, and actual minus predicted. Fine around zero.
SIGNED_BUCKETS_S = (
    *(-1.0, -0.3, -0.1, -0.05, -0.02, -0.01, -0.005, -0.002, -0.001, -0.0005, -0.0001, 0.0),
    *(0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 10.0),
)
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Tally:
    """A histogram: counts per bucket, and the sum. `observe` takes the unit of the bounds given."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self, scale: float) -> list[tuple[str, float]]:
        """Cumulative, as the exposition format wants them."""
        cumulative = 0
        rows = []
        for bound, count in zip(self.bounds, self.counts, strict=False):
            cumulative += count
            rows.append((repr(float(bound / scale)), float(cumulative)))
        rows.append(("+Inf", float(cumulative + self.counts[-1])))
        return rows


_DURATION_BOUNDS_NS = tuple(round(bound * SECOND_NS) for bound in DURATION_BUCKETS_S)
_SIGNED_BOUNDS_NS = tuple(round(bound * SECOND_NS) for bound in SIGNED_BUCKETS_S)


class ModelTallies:
    """Everything counted for one model of the catalogue."""

    __slots__ = (
        "batch_rows",
        "cold_starts",
        "evictions",
        "exec_error_ns",
        "exec_ns",
        "load_error_ns",
        "load_failures",
        "load_ns",
        "loads",
        "outcomes",
        "queue_ns",
        "request_error_ns",
        "request_ns",
        "slack_ns",
    )

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()  # (outcome, reason)
        self.request_ns = Tally(_DURATION_BOUNDS_NS)
        self.queue_ns = Tally(_DURATION_BOUNDS_NS)
        self.exec_ns = Tally(_DURATION_BOUNDS_NS)
        self.load_ns = Tally(_DURATION_BOUNDS_NS)
        self.slack_ns = Tally(_SIGNED_BOUNDS_NS)
        self.request_error_ns = Tally(_SIGNED_BOUNDS_NS)
        self.exec_error_ns = Tally(_SIGNED_BOUNDS_NS)
        self.load_error_ns = Tally(_SIGNED_BOUNDS_NS)
        self.batch_rows = Tally(BATCH_BUCKETS)
        self.cold_starts = 0
        self.loads = 0
        self.load_failures = 0
        self.evictions = 0

    def observe_served(self, served: Served, *, latency_ns: int, slo_ns: int) -> None:
        self.outcomes["served", ""] += 1
        self.request_ns.observe(latency_ns)
        self.queue_ns.observe(served.queue_ns)
        self.slack_ns.observe(slo_ns - latency_ns)
        self.request_error_ns.observe(latency_ns - served.predicted_ns)
        if served.is_cold_start:
            self.cold_starts += 1

    def observe_refused(self, outcome: str, reason: str, *, latency_ns: int) -> None:
        """`outcome` is rejected, expired, failed, cancelled or invalid."""
        self.outcomes[outcome, reason] += 1
        self.request_ns.observe(latency_ns)
