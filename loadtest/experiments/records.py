"""Records by what they are of, and means over seeds as words.

Owns how a mean and its interval are written. Never computes a figure of merit of one run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from loadtest.experiments.jobs import Kind, Record
from loadtest.results import interval
from loadtest.scenario import Value

Key = Callable[[Record], float | None]


class Spread(NamedTuple):
    """A mean over seeds; `half` is half of its 95 % interval, None below three seeds."""

    mean: float
    half: float | None
    seeds: int

    def text(self, digits: int = 1, *, scale: float = 1.0, unit: str = "") -> str:
        text = f"{self.mean * scale:,.{digits}f}"
        if self.half is not None:
            text += f" ± {self.half * scale:,.{digits}f}"
        return text + unit


def spread(values: Iterable[float | None]) -> Spread | None:
    """None where there is no value at all."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) < 3:
        return Spread(sum(known) / len(known), None, len(known))
    mean, half = interval(known)
    return Spread(mean, half, len(known))


def text_of(found: Spread | None, digits: int = 1, *, scale: float = 1.0, unit: str = "") -> str:
    return "-" if found is None else found.text(digits, scale=scale, unit=unit)


class Records:
    """Some records, in the order of their jobs."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = list(records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def where(
        self,
        scenario: str | None = None,
        *,
        kind: Kind | None = None,
        policy: str | None = None,
        seed: int | None = None,
    ) -> "Records":
        """Those of which all that is given is true."""
        return Records(
            record
            for record in self._records
            if (scenario is None or record.scenario == scenario)
            and (kind is None or record.kind == kind)
            and (policy is None or record.policy == policy)
            and (seed is None or record.seed == seed)
        )

    def at(self, **values: Value) -> "Records":
        """Those with these values of their variables."""
        return Records(
            record
            for record in self._records
            if all(record.values.get(name) == value for name, value in values.items())
        )

    def policies(self) -> list[str]:
        return list(dict.fromkeys(record.policy for record in self._records))

    def values_of(self, variable: str) -> list[Value]:
        return list(
            dict.fromkeys(
                record.values[variable] for record in self._records if variable in record.values
            )
        )

    def numbers_of(self, variable: str) -> list[float]:
        return sorted(v for v in self.values_of(variable) if isinstance(v, int | float))

    def spread(self, key: Key) -> Spread | None:
        return spread(key(record) for record in self._records)

    def settings(self) -> list[tuple[dict[str, Value], "Records"]]:
        """By policy and variables: the seeds of each."""
        parts: dict[tuple[object, ...], list[Record]] = {}
        for record in self._records:
            key = (record.scenario, record.policy, *record.values.items())
            parts.setdefault(key, []).append(record)
        return [(part[0].values, Records(part)) for part in parts.values()]

    def bound_for(self, record: Record) -> Record | None:
        """The bound of the same scenario, seed and values, where there is one."""
        for bound in self._records:
            if (
                bound.kind == "bound"
                and bound.scenario == record.scenario
                and bound.seed == record.seed
                and bound.duration_s == record.duration_s
                and all(record.values.get(name) == value for name, value in bound.values.items())
            ):
                return bound
        return None


def goodput(record: Record) -> float | None:
    return None if record.group is None else record.group.goodput_per_s


def attainment(record: Record) -> float | None:
    return None if record.group is None else record.group.attainment


def good_at(record: Record, from_s: float, stream: int) -> float:
    """Good requests of a stream in the window from there, as bounding.good_in_windows counted."""
    return record.figures.get(f"good_{stream}_from_{from_s:.3f}", 0.0)


def stream_attainment(stream: int) -> Key:
    def of(record: Record) -> float | None:
        group = record.streams.get(stream)
        return None if group is None else group.attainment

    return of


def stream_goodput(stream: int) -> Key:
    def of(record: Record) -> float | None:
        group = record.streams.get(stream)
        return None if group is None else group.goodput_per_s

    return of


def figure(name: str) -> Key:
    return lambda record: record.figures.get(name)


def share_of_bound(records: Records) -> Key:
    """Good requests over the most that could be, of the bound's window; goodput over the ceiling
    where all requests are those of closed loops.
    """

    def of(record: Record) -> float | None:
        bound = records.bound_for(record)
        if bound is not None and not bound.figures.get("asked") and record.group is not None:
            return record.group.goodput_per_s / bound.figures["closed_per_s"]
        good = record.figures.get("window_good")
        if bound is None or good is None or not bound.figures.get("most"):
            return None
        return good / bound.figures["most"]

    return of


def bound_attainment(records: Records) -> float | None:
    """The most that could be attained, over the bounds among these records."""
    found = [
        record.figures["most"] / record.figures["asked"]
        for record in records
        if record.kind == "bound" and record.figures.get("asked")
    ]
    return sum(found) / len(found) if found else None


def of_seeds(records: Sequence[Record]) -> str:
    seeds = sorted({record.seed for record in records})
    return f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
