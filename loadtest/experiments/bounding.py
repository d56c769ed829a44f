"""The bound that runs are compared with, over windows of at most 20,000 requests.

Owns which windows: one from the end of the warm-up, or several where a run goes through several
regimes; and counts what a run had of them. The bound itself is loadtest/bound/of_case.py's.
"""

from collections.abc import Sequence

from loadtest.bound.of_case import MAX_REQUESTS, asks_of, bound_of
from loadtest.results import Tables
from loadtest.results.tables import Mask
from loadtest.scenario import Case
from loadtest.scenario_setup import Setup
from loadtest.simulate import Run, window_of
from loadtest.workloads import Closed
from scheduler.spec import MILLISECOND_NS, SECOND_NS

# Steps of the ascent; three quarters of those of `remontoir bound`, which are within 0.1 % of it.
ITERATIONS = 45


def bound_figures(case: Case, from_s: float | None, max_requests: int) -> dict[str, float]:
    """`most` of `asked` can be good, `found` can certainly be; `closed_per_s` is the ceiling of
    closed loops if nobody else asked, `goodput_per_s` of all together.
    """
    bound = bound_of(case, from_s=from_s, max_requests=max_requests, iterations=ITERATIONS)
    return {
        "from_s": bound.from_s,
        "until_s": bound.until_s,
        "asked": float(bound.num_requests),
        "most": float(bound.most),
        "found": float(bound.found),
        "counts_loads": float(bound.counts_loads),
        "closed_per_s": bound.closed_per_s,
        "goodput_per_s": bound.goodput_per_s,
    }


def window_figures(
    case: Case, tables: Tables, from_s: float | None = None, max_requests: int = MAX_REQUESTS
) -> dict[str, float]:
    """Of a run: how many requests of the bound's window there were, and how many of them good."""
    inside = in_window(case, tables, from_s, max_requests)
    if inside is None:
        return {}
    return {
        "window_asked": float(inside.sum()),
        "window_good": float((inside & tables.requests["is_good"]).sum()),
    }


def in_window(
    case: Case, tables: Tables, from_s: float | None = None, max_requests: int = MAX_REQUESTS
) -> Mask | None:
    """Where requests are those that the bound is of; None if there are none."""
    begin_s = case.setup.warmup_s if from_s is None else from_s
    asks, _ = asks_of(case, begin_s=begin_s, max_requests=max_requests)
    if not asks:
        return None
    requests = tables.requests
    arrival_ns = requests["arrival_ns"] - round(case.setup.client_delay_ms * MILLISECOND_NS)
    inside: Mask = (arrival_ns >= asks[0].at_ns) & (arrival_ns <= asks[-1].at_ns)
    for stream in _closed_streams(case.setup):
        inside &= requests["stream"] != stream
    return inside


def good_in_windows(run: Run, starts: Sequence[float], max_requests: int) -> dict[str, float]:
    """Good requests by stream in each of these windows; records.good_at reads them."""
    assert run.tables is not None
    requests = run.tables.requests
    figures = {}
    for from_s in starts:
        inside = in_window(run.case, run.tables, from_s, max_requests)
        for stream in range(len(run.case.setup.workload)):
            good = requests["is_good"] & (requests["stream"] == stream)
            count = 0 if inside is None else int((inside & good).sum())
            figures[f"good_{stream}_from_{from_s:.3f}"] = float(count)
    return figures


def starts_of(case: Case, shares: Sequence[float]) -> list[float]:
    """Where windows begin, in seconds of the run, at these shares of its measured part."""
    begin_ns, end_ns = window_of(case)
    span_ns = end_ns - begin_ns
    return [round((begin_ns + share * span_ns) / SECOND_NS, 3) for share in shares]


def _closed_streams(setup: Setup) -> list[int]:
    return [n for n, entry in enumerate(setup.workload) if isinstance(entry, Closed)]
