"""What is counted for one model: histograms and counters in plain Python.

It owns buckets and accumulators. It must never allocate on the hot path: a figure costs one
bisection, one list index and one addition.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from scheduler.actions import InferResult
from scheduler.events import Served
from scheduler.spec import SECOND_NS


class Buckets:
    """Upper bounds of a histogram. What is observed is `scale` times what is shown."""

    __slots__ = ("bounds", "is_signed", "labels", "scale")

    def __init__(self, bounds: Sequence[float], *, scale: int) -> None:
        self.bounds = [round(bound * scale) for bound in bounds]
        self.labels = [repr(float(bound)) for bound in bounds]  # of `le`
        self.scale = scale
        self.is_signed = bounds[0] < 0


# From 0.5 ms: SLOs start there, and the usual defaults start at 5 ms.
DURATIONS = Buckets(
    (
        *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
        *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0),
    ),
    scale=SECOND_NS,
)
# Copies of a few kilobytes, a refusal, a turn of the event loop: fine below that.
SHORT_DURATIONS = Buckets(
    (
        *(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
        *(0.5, 1.0, 5.0, 30.0),
    ),
    scale=SECOND_NS,
)
# Slack left at the answer, and actual minus predicted. Fine around zero.
SIGNED_DURATIONS = Buckets(
    (
        *(-1.0, -0.3, -0.1, -0.05, -0.02, -0.01, -0.005, -0.002, -0.001, -0.0005, -0.0001, 0.0),
        *(0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 10.0),
    ),
    scale=SECOND_NS,
)
ROWS = Buckets((1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64), scale=1)
SERVED = ("served", "")  # outcome and reason, in the counters of outcomes


class Tally:
    """A histogram: counts per bucket, and the sum."""

    __slots__ = ("bounds", "buckets", "counts", "total")

    def __init__(self, buckets: Buckets) -> None:
        self.buckets = buckets
        self.bounds = buckets.bounds
        self.counts = [0] * (len(buckets.bounds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        """A value on a bound belongs to the bucket below it, as `le` says."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Executions:
    """What executing took, in ns of the device's phases; of batches that went well only."""

    __slots__ = ("by_rows", "exec_ns", "input_ns", "last_ns", "num_requests", "output_ns")

    def __init__(self) -> None:
        # Rows of a batch → [batches, input ns, exec ns, output ns].
        self.by_rows: dict[int, list[int]] = {}
        # Each request of a batch has waited for the whole of it.
        self.num_requests = 0
        self.input_ns = 0
        self.exec_ns = 0
        self.output_ns = 0
        self.last_ns: int | None = None  # when the last one was heard of


class Totals:
    """What is counted over all models, and for requests that name none."""

    __slots__ = ("error_ns", "num_hits", "others", "refusals")

    def __init__(self) -> None:
        self.error_ns = Tally(SIGNED_DURATIONS)  # actual minus predicted, of executed requests
        self.num_hits = 0  # served from memory
        # Requests that were not served, by (outcome, reason).
        self.others: Counter[tuple[str, str]] = Counter()
        self.refusals: dict[str, Tally] = {}  # how long a no took, by its reason

    @property
    def num_served(self) -> int:
        return self.num_hits + sum(self.error_ns.counts)

    def observe_refused(self, outcome: str, reason: str, *, latency_ns: int) -> None:
        self.others[outcome, reason] += 1
        if outcome == "rejected":
            tally = self.refusals.get(reason)
            if tally is None:
                tally = self.refusals[reason] = Tally(SHORT_DURATIONS)
            tally.observe(latency_ns)


class ModelTallies:
    """Everything counted for one model of the catalogue."""

    __slots__ = (
        "batch_rows",
        "cold_starts",
        "evicted_bytes",
        "evictions",
        "exec_ns",
        "executions",
        "host_bytes_released",
        "input_ns",
        "load_failures",
        "load_ns",
        "load_wait_ns",
        "loaded_bytes",
        "loads",
        "outcomes",
        "output_ns",
        "queue_ns",
        "quotes",
        "request_ns",
        "served_ns",
        "slack_ns",
        "totals",
    )

    def __init__(self, totals: Totals) -> None:
        self.totals = totals  # shared by all models
        self.outcomes: Counter[tuple[str, str]] = Counter()  # (outcome, reason)
        self.quotes: Counter[str] = Counter()  # by reason of the refusal; "" where there is none
        self.request_ns = Tally(DURATIONS)
        self.queue_ns = Tally(DURATIONS)
        self.input_ns = Tally(SHORT_DURATIONS)
        self.exec_ns = Tally(DURATIONS)
        self.output_ns = Tally(SHORT_DURATIONS)
        self.load_ns = Tally(DURATIONS)
        self.load_wait_ns = Tally(DURATIONS)
        self.slack_ns = Tally(SIGNED_DURATIONS)
        self.batch_rows = Tally(ROWS)
        self.executions = Executions()
        self.served_ns = 0  # latency of all served requests
        self.cold_starts = 0
        self.loads = 0
        self.load_failures = 0
        self.evictions = 0
        self.loaded_bytes = 0
        self.evicted_bytes = 0
        self.host_bytes_released = 0

    def observe_served(self, served: Served, *, latency_ns: int, slo_ns: int) -> None:
        self.outcomes[SERVED] += 1
        self.served_ns += latency_ns
        # Tally.observe, written out: four calls are a large part of what counting costs.
        queue_ns = served.queue_ns
        slack_ns = slo_ns - latency_ns
        error_ns = latency_ns - served.predicted_ns
        tally = self.request_ns
        tally.counts[bisect_left(tally.bounds, latency_ns)] += 1
        tally.total += latency_ns
        tally = self.queue_ns
        tally.counts[bisect_left(tally.bounds, queue_ns)] += 1
        tally.total += queue_ns
        tally = self.slack_ns
        tally.counts[bisect_left(tally.bounds, slack_ns)] += 1
        tally.total += slack_ns
        tally = self.totals.error_ns
        tally.counts[bisect_left(tally.bounds, error_ns)] += 1
        tally.total += error_ns
        if served.is_cold_start:
            self.cold_starts += 1
        if served.load_ns:
            self.load_wait_ns.observe(served.load_ns)

    def observe_executed(
        self, result: InferResult, *, rows: int, num_requests: int, now: int
    ) -> None:
        """A batch went well. Written out as `observe_served` is: a batch may be one request."""
        input_ns, output_ns = result.input.duration_ns, result.output.duration_ns
        exec_ns = result.exec.duration_ns
        tally = self.input_ns
        tally.counts[bisect_left(tally.bounds, input_ns)] += 1
        tally.total += input_ns
        tally = self.exec_ns
        tally.counts[bisect_left(tally.bounds, exec_ns)] += 1
        tally.total += exec_ns
        tally = self.output_ns
        tally.counts[bisect_left(tally.bounds, output_ns)] += 1
        tally.total += output_ns
        done = self.executions
        sums = done.by_rows.get(rows)
        if sums is None:
            sums = done.by_rows[rows] = [0, 0, 0, 0]
        sums[0] += 1
        sums[1] += input_ns
        sums[2] += exec_ns
        sums[3] += output_ns
        done.num_requests += num_requests
        done.input_ns += num_requests * input_ns
        done.exec_ns += num_requests * exec_ns
        done.output_ns += num_requests * output_ns
        done.last_ns = now

    def observe_hit(self, *, latency_ns: int, slo_ns: int) -> None:
        """Served from memory: nothing was predicted, queued or executed."""
        self.outcomes[SERVED] += 1
        self.totals.num_hits += 1
        self.served_ns += latency_ns
        self.request_ns.observe(latency_ns)
        self.slack_ns.observe(slo_ns - latency_ns)

    @property
    def num_served(self) -> int:
        return self.outcomes[SERVED]

    def observe_refused(self, outcome: str, reason: str, *, latency_ns: int) -> None:
        """`outcome` is rejected, expired, failed, cancelled or invalid."""
        self.outcomes[outcome, reason] += 1
        self.request_ns.observe(latency_ns)
        self.totals.observe_refused(outcome, reason, latency_ns=latency_ns)
