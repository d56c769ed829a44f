"""Tables that several experiments have: all runs of a scenario, and one figure over one variable.

Owns their columns. Every row has goodput, attainment, and the percent of the bound where one was
computed.
"""

from collections.abc import Mapping, Sequence

from loadtest.experiments.page import Section
from loadtest.experiments.records import (
    Key,
    Records,
    Spread,
    attainment,
    bound_attainment,
    goodput,
    share_of_bound,
    spread,
    text_of,
)
from loadtest.results import Group
from loadtest.scenario import Value

FIGURES = (
    "goodput/s",
    "attained",
    "of the bound",
    "p50 ms",
    "p99 ms",
    "late",
    "batch",
    "GPU ms per good",
    "µs/request",
)
OURS = "remontoir"
Rows = list[tuple[str, ...]]


def code(policy: str) -> str:
    """A policy's text, as one would type it."""
    return f"`{policy}`"


def figure_cells(part: Records, bounds: Records) -> tuple[str, ...]:
    """The cells of FIGURES: means over seeds, `late` is their sum."""

    def of_group(name: str) -> Key:
        def of(record: object) -> float | None:
            group: Group | None = getattr(record, "group", None)
            return None if group is None else getattr(group, name)

        return of

    late = sum(record.group.late for record in part if record.group is not None)
    handle = spread(r.handle_ns / 1000 / r.num_requests for r in part if r.num_requests)
    return (
        text_of(part.spread(goodput)),
        text_of(part.spread(attainment), 2, scale=100, unit=" %"),
        text_of(part.spread(share_of_bound(bounds)), scale=100, unit=" %"),
        text_of(_without_spread(part, of_group("latency_p50_ms"))),
        text_of(_without_spread(part, of_group("latency_p99_ms"))),
        f"{late:,}",
        text_of(_without_spread(part, of_group("mean_batch")), 2),
        text_of(_without_spread(part, of_group("exec_ms_per_good")), 2),
        "-" if handle is None else f"{handle.mean:.1f}",
    )


def all_runs(
    section: Section,
    records: Records,
    variables: Sequence[str],
    *,
    labels: Mapping[str, str] | None = None,
    is_folded: bool = True,
) -> None:
    """Every setting and policy of these runs."""
    rows: Rows = []
    for values, part in records.where(kind="run").settings():
        policy = part.policies()[0]
        shown = [_shown(values.get(name)) for name in variables]
        rows.append(
            (code((labels or {}).get(policy, policy)), *shown, *figure_cells(part, records))
        )
    columns = ("policy", *variables, *FIGURES)
    if is_folded:
        section.details(f"All {len(rows)} rows", columns, rows)
    elif rows:
        section.table(columns, rows)


def over(
    section: Section,
    records: Records,
    variable: str,
    *,
    what: Key = attainment,
    scale: float = 100.0,
    digits: int = 1,
    first: str = "policy",
    unit: str = "",
    has_bound: bool = True,
) -> None:
    """A row per policy, a column per value of the variable; the bound's attainment last."""
    xs = records.where(kind="run").numbers_of(variable)
    rows: Rows = []
    for policy in records.where(kind="run").policies():
        mine = records.where(kind="run", policy=policy)
        cells = [text_of(mine.at(**{variable: x}).spread(what), digits, scale=scale) for x in xs]
        rows.append((code(policy), *cells))
    if has_bound:
        most = [bound_attainment(records.where(kind="bound").at(**{variable: x})) for x in xs]
        if any(share is not None for share in most):
            shown = ["-" if share is None else f"{share * 100:.{digits}f}" for share in most]
            rows.append(("upper bound", *shown))
            ours = records.where(kind="run", policy=OURS)
            shares = [ours.at(**{variable: x}).spread(share_of_bound(records)) for x in xs]
            cells = [text_of(share, digits, scale=scale) for share in shares]
            rows.append((f"{code(OURS)}, of the bound", *cells))
    if rows:
        section.table((f"{first}{unit}", *(f"{x:g}" for x in xs)), rows)


def by_policy(
    records: Records, variable: str, what: Key, *, scale: float = 1.0
) -> dict[str, dict[float, list[float]]]:
    """policy → x → one value per seed, as loadtest.plots.goodput draws it."""
    series: dict[str, dict[float, list[float]]] = {}
    for record in records.where(kind="run"):
        x, y = record.values.get(variable), what(record)
        if isinstance(x, int | float) and y is not None:
            series.setdefault(record.policy, {}).setdefault(float(x), []).append(y * scale)
    return series


def bound_line(records: Records, variable: str, *, scale: float = 100.0) -> dict[float, float]:
    """x → the bound's attainment."""
    found = {}
    for x in records.where(kind="bound").numbers_of(variable):
        share = bound_attainment(records.where(kind="bound").at(**{variable: x}))
        if share is not None:
            found[x] = share * scale
    return found


def _without_spread(part: Records, key: Key) -> Spread | None:
    found = part.spread(key)
    return None if found is None else found._replace(half=None)


def _shown(value: Value | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
