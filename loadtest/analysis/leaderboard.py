"""The leaderboard: configurations under their workloads, sorted by any metric.

Owns the metrics' names, units and which way is better. The same list is on the page and in the
terminal.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from loadtest.analysis.cell import Cell, Line
from loadtest.analysis.prices import Cost, Prices

MEBIBYTE = 1 << 20


class UnknownMetric(ValueError):
    """There is no such metric; the message lists those that are."""


class Metric(NamedTuple):
    """`of` one cell; a line shows the mean of its repeats."""

    name: str
    title: str
    unit: str
    digits: int
    more_is_better: bool
    of: Callable[[Cell, Prices], float | None]


def _cost(pick: Callable[[Cost], float]) -> Callable[[Cell, Prices], float | None]:
    def of(cell: Cell, prices: Prices) -> float | None:
        found = cell.cost(prices)
        return None if found is None else pick(found)

    return of


def _per_request_cpu_ms(cell: Cell, _: Prices) -> float | None:
    if cell.server_cpu_s is None or not cell.good:
        return None
    return cell.server_cpu_s * 1000 / cell.good


METRICS = (
    Metric("goodput", "goodput", "1/s", 1, True, lambda c, _: c.goodput_per_s),
    Metric("attainment", "in time", "%", 2, True, lambda c, _: 100 * c.attainment),
    Metric("p50", "p50", "ms", 2, False, lambda c, _: c.p50_ms),
    Metric("p99", "p99", "ms", 2, False, lambda c, _: c.p99_ms),
    Metric("p999", "p99.9", "ms", 2, False, lambda c, _: c.p999_ms),
    Metric("late", "late", "%", 3, False, lambda c, _: 100 * c.late / max(1, c.sent)),
    Metric("refused", "refused", "%", 2, False, lambda c, _: 100 * c.refused / max(1, c.sent)),
    Metric("failed", "failed", "%", 3, False, lambda c, _: 100 * c.failed / max(1, c.sent)),
    Metric("refusal-p99", "time to refuse p99", "ms", 2, False, lambda c, _: c.refusal_p99_ms),
    Metric("cold-start", "cold start", "ms", 1, False, lambda c, _: c.cold_start_ms),
    Metric("usd", "US$ / 1,000", "", 5, False, _cost(lambda cost: cost.usd)),
    Metric("energy", "Wh / 1,000", "", 3, False, _cost(lambda cost: cost.energy_wh)),
    Metric("co2", "g CO₂ / 1,000", "", 3, False, _cost(lambda cost: cost.grams_co2)),
    Metric("cpu", "CPU / good request", "ms", 3, False, _per_request_cpu_ms),
    Metric(
        "memory", "memory", "MiB", 0, False,
        lambda c, _: None if c.server_rss_bytes is None else c.server_rss_bytes / MEBIBYTE,
    ),
    Metric(
        "prediction-error", "prediction error p99", "ms", 3, False,
        lambda c, _: c.prediction_error_p99_ms,
    ),
)  # fmt: skip


class Place(NamedTuple):
    """A line of the board. `values` are the metrics', in METRICS' order."""

    line: Line
    values: tuple[float | None, ...]


def metric(name: str) -> Metric:
    """Raises UnknownMetric."""
    for found in METRICS:
        if found.name == name:
            return found
    raise UnknownMetric(f"no metric {name!r}; there are {', '.join(m.name for m in METRICS)}")


def board(
    lines: Sequence[Line], prices: Prices, *, sort: str = "goodput", ascending: bool | None = None
) -> list[Place]:
    """The best first (or as `ascending` says); what does not know the metric comes last.

    Raises UnknownMetric.
    """
    chosen = metric(sort)
    index = METRICS.index(chosen)
    is_ascending = not chosen.more_is_better if ascending is None else ascending
    places = [
        Place(line, tuple(line.mean(m.of(cell, prices) for cell in line.cells) for m in METRICS))
        for line in lines
    ]

    def rank(place: Place) -> tuple[bool, float, str]:
        value = place.values[index]
        if value is None:
            return True, 0.0, place.line.first.config_name
        return False, value if is_ascending else -value, place.line.first.config_name

    return sorted(places, key=rank)


def shown(value: float | None, digits: int) -> str:
    """A dash where nothing is known."""
    return "-" if value is None else f"{value:,.{digits}f}"
