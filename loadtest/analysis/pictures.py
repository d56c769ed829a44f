"""The report's pictures: distributions, goodput, heat maps, roofs, stages, costs.

Owns what is drawn for which cells, and the words under it. Computes no figure of merit. A `palette`
gives a configuration the same colour in every picture.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadtest.analysis.ceilings import Ceilings
from loadtest.analysis.cell import Cell, Line
from loadtest.analysis.prices import Prices
from loadtest.analysis.roofline import Point
from loadtest.analysis.svg import (
    FAINT,
    INK,
    PAPER,
    SERIES,
    drawing_svg,
    legend,
    new_panels,
    series,
    svg_of,
)
from loadtest.plots.style import dash, fitted, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of a distribution: enough for a smooth line, few enough for a small page.
MAX_POINTS = 160
MAX_CURVES = 8  # more are told apart by nobody
MAX_BARS = 14


class Drawn(NamedTuple):
    """`svg` is an element of the page; `caption` says what it shows, in words."""

    title: str
    svg: str
    caption: str


def latency_cdfs(lines: Sequence[Line], name: str, palette: Mapping[str, int]) -> Drawn:
    """Lines of one model, one SLO and one rate: the share of all requests answered within so long.

    A curve ends at the share that was served at all: what was refused or lost never arrives.
    """
    first = lines[0].first
    with drawing_svg():
        figure, (axis,) = new_panels(1)
        for line in lines[:MAX_CURVES]:
            index = palette[line.first.config_name]
            steps = merged_latency(line.cells)
            sent = sum(cell.sent for cell in line.cells)
            if not steps or not sent:
                continue
            keep = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).astype(int))
            axis.step(
                [steps[k][0] for k in keep], [100 * steps[k][1] / sent for k in keep],
                where="post", color=series(index), linestyle=dash(index),
                label=line.first.config_name or "as it comes",
            )  # fmt: skip
        axis.axvline(first.slo_ms, color=INK, linewidth=1, linestyle=":")
        axis.annotate(
            f"SLO {first.slo_ms:g} ms", (first.slo_ms, 3), xytext=(3, 0),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
        axis.set_xscale("log")
        _plain(axis, "x")
        axis.set_ylim(0, 103)
        axis.set(xlabel="latency from the scheduled arrival (ms)", ylabel="of all requests (%)")
        legend(figure, axis)
        title = f"{first.model}: {workload_words(first)}"
        axis.set_title(fitted(title))
        return Drawn(
            title,
            svg_of(figure, name, f"Distribution of latencies, {title}"),
            _left_out(len(lines), MAX_CURVES),
        )


def goodput_curves(
    lines: Sequence[Line], name: str, palette: Mapping[str, int], *, by: str
) -> Drawn:
    """Lines of one model: goodput over the offered rate (`by` "rate") or over the SLO ("slo").

    Bars are 95 % intervals, where there are three repeats.
    """
    first = lines[0].first
    configs: dict[str, list[Line]] = {}
    for line in lines:
        configs.setdefault(line.first.config_name, []).append(line)
    with drawing_svg():
        figure, (axis,) = new_panels(1)
        xs: set[float] = set()
        has_bars = False
        for config, own in list(configs.items())[:MAX_CURVES]:
            index = palette[config]
            own = sorted(own, key=lambda line: _x(line, by))
            at = [_x(line, by) for line in own]
            xs.update(at)
            known = [line.half_width([c.goodput_per_s for c in line.cells]) for line in own]
            has_bars |= any(half is not None for half in known)
            halves = [half or 0.0 for half in known]
            axis.errorbar(
                at, [line.goodput_per_s for line in own], yerr=halves if any(halves) else None,
                label=config or "as it comes", color=series(index), marker=marker(index),
                markersize=5, linestyle=dash(index), capsize=3, elinewidth=1,
            )  # fmt: skip
        if by == "rate":
            axis.plot([0, max(xs)], [0, max(xs)], color=FAINT, linewidth=1.2, zorder=0)
            axis.annotate("all of it", (max(xs), max(xs)), fontsize=8, ha="right", va="bottom")
            axis.set_xlim(left=0)
            axis.set_xlabel("offered (requests/s)")
            title = f"{first.model}: goodput by rate, {first.arrivals}, SLO {first.slo_ms:g} ms"
        else:
            axis.set_xscale("log")
            axis.minorticks_off()
            axis.set_xticks(sorted(xs), [f"{x:g}" for x in sorted(xs)])
            axis.set_xlabel("SLO (ms)")
            title = (
                f"{first.model}: goodput by SLO, {first.rate_per_s:g} requests/s offered, "
                f"{first.arrivals}"
            )
        axis.set_ylim(bottom=0)
        axis.set_ylabel("served in time (requests/s)")
        axis.set_title(fitted(title))
        legend(figure, axis)
        bars = (
            "Bars: 95 % intervals over the repeats."
            if has_bars
            else "No bars: below three repeats nothing is known of how they differ."
        )
        caption = f"{bars} {_left_out(len(configs), MAX_CURVES)}".strip()
        return Drawn(title, svg_of(figure, name, title), caption)


def heat_map(
    values: Mapping[tuple[str, int], float], name: str, *, title: str, unit: str, better: str
) -> Drawn:
    """Model by batch size. Shades compare a model's batch sizes with its own first, since models
    differ by orders of magnitude.
    """
    models = sorted({model for model, _ in values})
    batches = sorted({batch for _, batch in values})
    with drawing_svg():
        figure, (axis,) = new_panels(1, height_in=1.1 + 0.36 * len(models))
        for row, model in enumerate(models):
            own = [values[model, batch] for batch in batches if (model, batch) in values]
            top = max(own) or 1.0
            for column, batch in enumerate(batches):
                value = values.get((model, batch))
                share = 0.0 if value is None else value / top
                axis.fill(
                    [column - 0.48, column + 0.48, column + 0.48, column - 0.48],
                    [row - 0.46, row - 0.46, row + 0.46, row + 0.46],
                    color=series(0), alpha=0.08 + 0.62 * share, linewidth=0,
                )  # fmt: skip
                text = "–" if value is None else _three_digits(value)  # noqa: RUF001
                axis.text(column, row, text, ha="center", va="center", fontsize=8.5)
        axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axis.set_yticks(range(len(models)), models)
        axis.set_ylim(len(models) - 0.5, -0.5)
        axis.set_xlim(-0.5, len(batches) - 0.5)
        axis.grid(False)
        axis.set_xlabel(f"rows in a batch; {unit}")
        axis.set_title(fitted(title))
        caption = f"The stronger the colour the more, within a model. {better}"
        return Drawn(title, svg_of(figure, name, title), caption)


def roof(points: Sequence[Point], ceilings: Ceilings, name: str) -> Drawn:
    """Models under the roof. Each is a bar from its FLOPs per byte with nothing kept in a cache
    between operators (left) to those with everything kept (right).
    """
    with drawing_svg():
        figure, (axis,) = new_panels(1, height_in=4.2)
        lows = [point.intensity for point in points] or [ceilings.ridge]
        highs = [point.best_intensity for point in points] or [ceilings.ridge]
        left, right = min([*lows, ceilings.ridge]) / 3, max([*highs, ceilings.ridge]) * 3
        xs = np.geomspace(left, right, 100)
        axis.plot(
            xs, [ceilings.roof(x) / 1e9 for x in xs], color=INK, linewidth=1.6,
            label=f"memory {ceilings.memory_bytes_per_s / 1e9:.1f} GB/s, "
            f"compute {ceilings.flops_per_s / 1e9:.0f} GFLOP/s",
        )  # fmt: skip
        if ceilings.cache_bytes_per_s:
            reach = [min(ceilings.flops_per_s, x * ceilings.cache_bytes_per_s) / 1e9 for x in xs]
            axis.plot(
                xs, reach, color=INK, linewidth=1, linestyle="--",
                label=f"a core's cache {ceilings.cache_bytes_per_s / 1e9:.1f} GB/s",
            )  # fmt: skip
        models = list(dict.fromkeys(point.model for point in points))
        for point in points:
            index = models.index(point.model)
            y = point.flops_per_s / 1e9
            is_first = point is next(p for p in points if p.model == point.model)
            axis.plot(
                [point.intensity, point.best_intensity], [y, y], color=series(index),
                linewidth=1.6, alpha=0.8,
            )  # fmt: skip
            axis.plot(
                point.best_intensity, y, color=series(index), marker=marker(index),
                markersize=5 + min(5, point.batch.bit_length()), linestyle="none",
                label=point.model if is_first else None,
            )  # fmt: skip
            axis.annotate(
                str(point.batch), (point.best_intensity, y), xytext=(5, 3),
                textcoords="offset points", fontsize=7.5,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        _plain(axis, "x")
        _plain(axis, "y")
        axis.set(xlabel="FLOPs per byte", ylabel="GFLOP/s")
        title = f"Roofline of {ceilings.device}, {ceilings.threads} thread(s), ceilings measured"
        axis.set_title(fitted(title))
        legend(figure, axis)
        return Drawn(
            title,
            svg_of(figure, name, title),
            "The number at a point is its batch size. Right end of a bar: every intermediate "
            "result stays in a cache; left end: none does.",
        )


def stages(lines: Sequence[Line], name: str) -> Drawn:
    """Where the mean request's time goes, stage by stage, and the cold start beside it."""
    known = [line for line in lines if line.first.stages]
    lines = known[:MAX_BARS]
    names = list(dict.fromkeys(stage for line in lines for stage, _ in line.first.stages))
    with drawing_svg():
        figure, (axis,) = new_panels(1, height_in=1.0 + 0.34 * len(lines))
        left = np.zeros(len(lines))
        for index, stage in enumerate(names):
            widths = np.array(
                [
                    line.mean([dict(cell.stages).get(stage) for cell in line.cells]) or 0.0
                    for line in lines
                ]
            )
            axis.barh(
                range(len(lines)), widths, left=left, color=series(index), label=stage, height=0.7,
                alpha=0.85, edgecolor=PAPER, linewidth=0.6,
                # a request may have ten stages, and there are seven colours
                hatch="////" if index >= len(SERIES) else None,
            )  # fmt: skip
            left += widths
        axis.set_yticks(range(len(lines)), [_bar_name(line) for line in lines], fontsize=8)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("mean of a request (ms)")
        title = "Stages of a request"
        axis.set_title(title)
        legend(figure, axis)
        return Drawn(title, svg_of(figure, name, title), _left_out(len(known), MAX_BARS))


def cold_starts(values: Mapping[str, float], name: str) -> Drawn:
    """Milliseconds until a model that was nowhere could answer, by what was measured."""
    items = sorted(values.items(), key=lambda item: item[1])[:MAX_BARS]
    with drawing_svg():
        figure, (axis,) = new_panels(1, height_in=1.0 + 0.32 * len(items))
        axis.barh(range(len(items)), [value for _, value in items], color=series(0), alpha=0.8)
        for row, (_, value) in enumerate(items):
            axis.annotate(
                _three_digits(value), (value, row), xytext=(3, 0), va="center",
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axis.set_yticks(range(len(items)), [key for key, _ in items], fontsize=8)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("ms")
        title = "Cold start"
        axis.set_title(title)
        return Drawn(title, svg_of(figure, name, title), _left_out(len(values), MAX_BARS))


def costs(lines: Sequence[Line], prices: Prices, name: str) -> Drawn | None:
    """US$ per 1,000 requests served in time against p99; left and low is what to buy."""
    found = []
    for line in lines:
        usd = line.mean(
            [None if (c := cell.cost(prices)) is None else c.usd for cell in line.cells]
        )
        p99 = line.mean([cell.p99_ms for cell in line.cells])
        if usd is not None and p99 is not None:
            found.append((line, usd, p99))
    if not found:
        return None
    models = list(dict.fromkeys(line.first.model for line, _, _ in found))
    with drawing_svg():
        figure, (axis,) = new_panels(1)
        for index, model in enumerate(models[:MAX_CURVES]):
            own = [(usd, p99) for line, usd, p99 in found if line.first.model == model]
            axis.plot(
                [usd for usd, _ in own], [p99 for _, p99 in own], linestyle="none", alpha=0.8,
                marker=marker(index), markersize=6, color=series(index), label=model,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        _plain(axis, "x")
        _plain(axis, "y")
        axis.set(xlabel="US$ per 1,000 requests in time", ylabel="p99 (ms)")
        title = "Cost against tail latency, every line of the leaderboard"
        axis.set_title(title)
        legend(figure, axis)
        return Drawn(title, svg_of(figure, name, title), _left_out(len(models), MAX_CURVES))


def merged_latency(cells: Sequence[Cell]) -> list[tuple[float, int]]:
    """Distributions put together: milliseconds, and how many took at most so long."""
    counts: dict[float, int] = {}
    for cell in cells:
        before = 0
        for edge, cumulative in cell.latency:
            counts[edge] = counts.get(edge, 0) + cumulative - before
            before = cumulative
    total, merged = 0, []
    for edge in sorted(counts):
        total += counts[edge]
        merged.append((edge, total))
    return merged


def workload_words(cell: Cell) -> str:
    rate = f"{cell.rate_per_s:g} requests/s, " if cell.rate_per_s else ""
    return f"{rate}{cell.arrivals}, SLO {cell.slo_ms:g} ms"


def _x(line: Line, by: str) -> float:
    return line.first.rate_per_s if by == "rate" else line.first.slo_ms


def _bar_name(line: Line) -> str:
    first = line.first
    parts = [first.model, first.config_name, f"{first.rate_per_s:g}/s, {first.slo_ms:g} ms"]
    return fitted(" · ".join(part for part in parts if part))


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _left_out(count: int, most: int) -> str:
    return f"Only {most} of {count} are drawn; the leaderboard has all." if count > most else ""


def _plainly(value: float) -> str:
    """0.00002 and 20,000, never 2e-05."""
    return f"{value:,.9f}".rstrip("0").rstrip(".")


def _plain(axis: "Axes", which: str) -> None:
    """On a logarithmic axis: 0.2, 5, 100 and no powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    own = axis.xaxis if which == "x" else axis.yaxis
    low, high = own.get_view_interval()
    is_narrow = low > 0 and high / low < 100
    own.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_narrow else (1.0,)))
    own.set_major_formatter(FuncFormatter(lambda value, _: _plainly(value)))
    own.set_minor_formatter(NullFormatter())
