"""A plan in words: the answer, its curve, the trade of cache for devices, what it cannot know.

Owns wording and pictures. It computes nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.planning.evaluate import Point
from loadtest.planning.plan import Plan
from scheduler.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR_CELLS = 30
PICTURES = ("svg", "png")


def print_plan(console: Console, plan: Plan) -> None:
    for line in _answer(plan):
        console.print(line, markup=False, soft_wrap=True)
    sizes = plan.sizes
    console.print(_curve(plan, "devices", sizes.curve))
    if len(sizes.cache) > 1:
        console.print(_curve(plan, "cache", sizes.cache))
    for remark in plan.remarks:
        console.print(remark, markup=False, soft_wrap=True)
    console.print("What this cannot know:", markup=False)
    for sentence in plan.cannot_know:
        console.print(f"- {sentence}", markup=False, soft_wrap=True)


def write_plan(plan: Plan, directory: Path) -> list[Path]:
    """plan.json, and the curves as pictures. Raises MissingLibrary, OSError."""
    from loadtest.plots.style import DPI, drawing

    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "plan.json"]
    written[0].write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
    figure = _figure(plan)
    with drawing():
        for kind in PICTURES:
            path = directory / f"plan.{kind}"
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(path, format=kind, dpi=DPI, metadata=metadata)
            written.append(path)
    return written


def _answer(plan: Plan) -> list[str]:
    sizes = plan.sizes
    target = percent(plan.target)
    lines = [f"Of {plan.source}, policy {plan.policy}:"]
    if plan.demand is not None:
        demand = plan.demand
        lines.append(
            f"{counted(demand.num_requests, 'request')} in {demand.span_s:,.0f} s keep "
            f"{demand.mean_load:.2f} devices busy in the mean, {demand.peak_load:.2f} in the "
            f"busiest second, {demand.played_load:.2f} in what is played."
        )
    lines.append(
        f"The weights of {counted(plan.num_models, 'model')} are {plan.weights_mb:,} MiB; a "
        f"device's cache is {_mb(plan, sizes.full_pages)} at the most."
    )
    if sizes.devices is None:
        most = max((point.devices for point in sizes.curve), default=0)
        best = max((point.attained for point in sizes.curve), default=0.0)
        lines.append(
            f"No plan: {counted(most, 'device')} attain no more than {percent(best)}, the target "
            f"is {target}. More of them: --max-devices; or a longer SLO."
        )
    else:
        assert sizes.pages is not None
        lines.append(
            f"Plan: {counted(sizes.devices, 'device')} with {_mb(plan, sizes.pages)} of cache "
            f"each attain {target}"
            + (
                f"; {counted(sizes.fails, 'device')} cannot."
                if sizes.fails
                else "; there is no less."
            )
        )
        for pair in sizes.pairs[1:]:
            lines.append(f"Or {counted(pair.devices, 'device')} with {_mb(plan, pair.pages)} each.")
    if sizes.knee is not None:
        lines.append(f"The knee of the curve is at {counted(sizes.knee, 'device')}.")
    if not sizes.is_whole:
        lines.append(
            "The time was over before all was played: the sizes above are what is known so far "
            "(--budget-s gives more)."
        )
    return lines


def _curve(plan: Plan, what: str, points: Sequence[Point]) -> Table:
    sizes = plan.sizes
    is_cache = what == "cache"
    title = (
        counted(sizes.devices or 0, "device")
        if is_cache
        else f"{_mb(plan, sizes.full_pages)} of cache"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("cache MiB" if is_cache else "devices", "attained"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading in ("refused", "late", "p99 ms", "busy", "cold", "loads/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for point in points:
        table.add_row(
            f"{point.pages * plan.page_mb:,}" if is_cache else str(point.devices),
            percent(point.attained),
            "█" * round(BAR_CELLS * point.attained),
            percent(point.refused),
            percent(point.late),
            "-" if point.p99_ms is None else f"{point.p99_ms:.1f}",
            f"{point.busy:.0%}",
            percent(point.cold),
            f"{point.loads_per_s:.1f}",
            _note(plan, point, is_cache=is_cache),
        )
    return table


def _note(plan: Plan, point: Point, *, is_cache: bool) -> str:
    sizes = plan.sizes
    if is_cache:
        return "◀ the least that attains it" if point.pages == sizes.pages else ""
    notes = ["the fewest that attain it"] * (point.devices == sizes.devices)
    notes += ["the knee"] * (point.devices == sizes.knee)
    return "◀ " + ", ".join(notes) if notes else ""


def percent(share: float) -> str:
    """As many digits as tell it from 100 %, and no more than three."""
    for digits in (1, 2, 3):
        text = f"{share:.{digits}%}"
        if share in (0.0, 1.0) or not text.startswith("100"):
            return text
    return f"{share:.4%}"


def _mb(plan: Plan, pages: int) -> str:
    return f"{pages * plan.page_mb:,} MiB"


def _figure(plan: Plan) -> "Figure":
    from loadtest.plots.style import drawing, fitted, new_figure

    sizes = plan.sizes
    with drawing():
        figure, (by_devices, by_cache) = new_figure(4.2, columns=2)
        figure.suptitle(fitted(f"{plan.source}, {plan.policy}"), fontsize=11)
        _draw(by_devices, plan, [(p.devices, p.attained) for p in sizes.curve], sizes.devices)
        by_devices.set_xlabel(f"devices with {_mb(plan, sizes.full_pages)} of cache")
        if sizes.knee is not None:
            by_devices.axvline(sizes.knee, linestyle=":", color="#555555")
            by_devices.annotate("knee", (sizes.knee, 0.02), rotation=90, ha="right")
        pages = None if sizes.pages is None else sizes.pages * plan.page_mb
        _draw(by_cache, plan, [(p.pages * plan.page_mb, p.attained) for p in sizes.cache], pages)
        by_cache.set_xlabel(f"MiB of cache of each of {sizes.devices or '-'} devices")
    return figure


def _draw(
    axis: "Axes", plan: Plan, points: Sequence[tuple[int, float]], chosen: int | None
) -> None:
    from loadtest.plots.style import ALARM, colour

    axis.plot([x for x, _ in points], [100 * y for _, y in points], marker="o", color=colour(0))
    axis.axhline(100 * plan.target, color=ALARM, linestyle="--", linewidth=1.0)
    if chosen is not None:
        [attained] = [y for x, y in points if x == chosen]
        axis.plot([chosen], [100 * attained], marker="o", markersize=11, color=ALARM, zorder=3)
    axis.set_ylim(0, 103)
    axis.set_ylabel("attained (%)")
