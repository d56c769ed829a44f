"""What became of requests with an SLO, counted by Locust's name of a request.

Owns the kinds of outcome and their sums. A worker counts, sends what it has counted since the last
report, and the master adds up: `take` and `add` are the two ends of that.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from loadtest.refusals import is_refusal

GOODPUT_WINDOW_S = 10.0  # what the web interface calls "now"


class Outcome(StrEnum):
    """By the client's clock, from the instant at which the request was due."""

    IN_TIME = "in time"
    LATE = "late"  # a 200 after its SLO
    REFUSED = "refused"  # an honest no: 429, 503, and a 422 that says "never"
    EXPIRED = "expired"  # 504: the server's own miss
    FAILED = "failed"  # another status, a broken connection, no answer
    UNSENT = "not sent"  # this client had too many outstanding


class Row(NamedTuple):
    """One line of the tables. `attainment`: in time, of all that were due; None before the first.

    `refused_after_ms`: mean time to a refusal.
    """

    name: str
    due: int
    in_time: int
    late: int
    refused: int
    expired: int
    failed: int
    unsent: int
    attainment: float | None
    goodput_per_s: float
    goodput_now_per_s: float
    refused_after_ms: float | None


TOTAL = "all"
_KINDS = tuple(Outcome)


class SloCounts:
    """Not thread-safe; greenlets only meet between calls."""

    def __init__(self) -> None:
        self._counts: dict[str, list[float]] = {}  # a number per kind, then refusals' ms
        self._untaken: dict[str, list[float]] = {}
        self._first_s: float | None = None
        self._last_s = 0.0
        self._in_time_at: list[tuple[float, dict[str, int]]] = []

    def clear(self) -> None:
        self._counts.clear()
        self._untaken.clear()
        self._first_s = None
        self._last_s = 0.0
        self._in_time_at.clear()

    def count(self, name: str, outcome: Outcome, *, latency_ms: float, now_s: float) -> None:
        refusal_ms = latency_ms if outcome is Outcome.REFUSED else 0.0
        for counts in (self._counts, self._untaken):
            of_name = counts.setdefault(name, [0.0] * (len(_KINDS) + 1))
            of_name[_KINDS.index(outcome)] += 1
            of_name[-1] += refusal_ms
        self._saw(now_s)

    def take(self) -> dict[str, list[float]]:
        """What was counted since the last time, for the report to the master."""
        taken, self._untaken = self._untaken, {}
        return taken

    def add(self, taken: Mapping[str, Sequence[float]], *, now_s: float) -> None:
        for name, numbers in taken.items():
            of_name = self._counts.setdefault(name, [0.0] * (len(_KINDS) + 1))
            for index, number in enumerate(numbers):
                of_name[index] += number
            self._saw(now_s)

    def tick(self, now_s: float) -> None:
        """Once a second or so: keeps what `goodput_now_per_s` is the difference to."""
        self._in_time_at.append((now_s, {row.name: row.in_time for row in self.rows(now_s)}))
        while len(self._in_time_at) > 1 and self._in_time_at[1][0] <= now_s - GOODPUT_WINDOW_S:
            self._in_time_at.pop(0)

    def rows(self, now_s: float) -> list[Row]:
        """By name, and the total last. None where nothing was due yet."""
        names = sorted(self._counts)
        rows = [self._row(name, self._counts[name], now_s) for name in names]
        sums = [sum(column) for column in zip(*self._counts.values(), strict=True)]
        return [*rows, self._row(TOTAL, sums, now_s)] if rows else []

    @property
    def attainment(self) -> float | None:
        rows = self.rows(self._last_s)
        return rows[-1].attainment if rows else None

    def _saw(self, now_s: float) -> None:
        self._first_s = now_s if self._first_s is None else self._first_s
        self._last_s = max(self._last_s, now_s)

    def _row(self, name: str, counts: Sequence[float], now_s: float) -> Row:
        numbers = [int(number) for number in counts[:-1]]
        in_time, late, refused, expired, failed, unsent = numbers
        due = sum(numbers)
        span_s = self._last_s - (self._first_s or 0.0)
        at_s, before = self._in_time_at[0] if self._in_time_at else (now_s, {})
        window_s = now_s - at_s
        return Row(
            name=name,
            due=due,
            in_time=in_time,
            late=late,
            refused=refused,
            expired=expired,
            failed=failed,
            unsent=unsent,
            attainment=in_time / due if due else None,
            goodput_per_s=in_time / span_s if span_s > 0.0 else 0.0,
            goodput_now_per_s=(in_time - before.get(name, 0)) / window_s if window_s > 0 else 0.0,
            refused_after_ms=counts[-1] / refused if refused else None,
        )


def outcome_of(status: int, reason: str, *, latency_ms: float, slo_ms: float) -> Outcome:
    """`status` 0: no answer. `reason` is what an error's body says."""
    if status == 200:
        return Outcome.IN_TIME if latency_ms <= slo_ms else Outcome.LATE
    if is_refusal(status, reason):
        return Outcome.REFUSED
    return Outcome.EXPIRED if status == 504 else Outcome.FAILED


def csv_header() -> list[str]:
    return list(Row._fields)


def csv_rows(rows: Sequence[Row]) -> Iterator[list[Any]]:
    for row in rows:
        yield [
            "" if value is None else round(value, 4) if isinstance(value, float) else value
            for value in row
        ]
