"""`remontoir bench report`: one HTML file with everything in it. It fetches nothing.

Owns the page's order and look, light and dark. Figures come from the modules beside it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import groupby
from pathlib import Path

import msgspec

from loadtest.analysis import pictures
from loadtest.analysis.ceilings import Ceilings
from loadtest.analysis.cell import Cell, Line, lines_of, without_common
from loadtest.analysis.guidance import ENOUGH, sentences
from loadtest.analysis.html_parts import bullets, figure, figures, section, table
from loadtest.analysis.leaderboard import METRICS, Place, board, shown
from loadtest.analysis.pictures import Drawn
from loadtest.analysis.prices import Prices
from loadtest.analysis.report_cost import cost_section
from loadtest.analysis.roofline import KindShare, KindTime, Point

ASSETS = Path(__file__).parent
# A page of more pictures of one sort is read by nobody; the leaderboard has every line.
MAX_PICTURES = 12


class Roofs(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted and measured of models, alone on this machine."""

    ceilings: Ceilings
    points: tuple[Point, ...]
    kinds: dict[str, tuple[KindShare, ...]] = {}
    times: dict[str, tuple[KindTime, ...]] = {}
    missing: tuple[str, ...] = ()  # why a model is not among them
    machine: str = ""  # where that was


def report_html(
    cells: Sequence[Cell],
    prices: Prices,
    *,
    title: str,
    roofs: Roofs | None = None,
    made_at: datetime,
    sort: str = "goodput",
) -> str:
    """The page. Raises plots.MissingLibrary without matplotlib, UnknownMetric for another sort."""
    cells, shared = without_common(cells)
    lines = lines_of(cells)
    names = list(dict.fromkeys(line.first.config_name for line in lines))
    palette = {name: index for index, name in enumerate(sorted(names))}
    places = board(lines, prices, sort=sort)
    points = () if roofs is None else roofs.points
    rates = batch_rates(lines, points)
    said = sentences(
        lines,
        prices,
        points=points,
        ceilings=None if roofs is None else roofs.ceilings,
        batch_rates=rates,
    )
    parts = [
        section("short", "In short", bullets(said) or "<p>There is nothing to say yet.</p>"),
        section("board", "Leaderboard", _board(places, sort)),
        *_cdf_section(lines, palette),
        *_goodput_sections(lines, palette),
        *_batch_section(lines, points, rates),
        *_roof_section(roofs),
        *_time_sections(lines),
        *cost_section(lines, prices),
        section("runs", "What was run", _runs(cells)),
    ]
    headings = "".join(part[1] for part in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_asset('report.css')}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{_facts(cells, lines, made_at, shared)}</p>"
        f"<nav>{headings}</nav></header><main>{''.join(part[0] for part in parts)}</main>"
        f"<script>{_asset('report.js')}</script></body></html>\n"
    )


def batch_rates(lines: Sequence[Line], points: Sequence[Point]) -> dict[tuple[str, int], float]:
    """Rows per second by model and batch size: of the model executed alone, where that was
    measured, else the most that was served in time.
    """
    rates: dict[tuple[str, int], float] = {}
    for line in lines:
        key = (line.first.model, line.first.batch)
        rates[key] = max(rates.get(key, 0.0), line.goodput_per_s * line.first.batch)
    if len({batch for _, batch in rates}) < 2:
        rates = {}
    measured = {(p.model, p.batch): p.batch / p.execution_s for p in points}
    alone = {model for model, _ in measured}
    return {**{k: v for k, v in rates.items() if k[0] not in alone}, **measured}


def _board(places: Sequence[Place], sort: str) -> str:
    known = [
        index
        for index in range(len(METRICS))
        if any(place.values[index] is not None for place in places)
    ]
    head = "".join(
        f'<th scope="col"><button type="button">{escape(text)}</button></th>'
        for text in ("model", "configuration", "offered (1/s)", "SLO (ms)", "repeats")
    )
    for index in known:
        found = METRICS[index]
        unit = f" ({found.unit})" if found.unit else ""
        order = "descending" if found.more_is_better else "ascending"
        current = f' aria-sort="{order}"' if found.name == sort else ""
        head += (
            f'<th scope="col" data-better="{order}"{current}>'
            f'<button type="button">{escape(found.title + unit)}</button></th>'
        )
    rows = []
    for place in places:
        first = place.line.first
        mark = " *" if place.line.is_partial else ""
        cells = [
            _cell(first.model + mark, first.model),
            _cell(first.config_name or "-", first.config_name),
            _cell(f"{first.rate_per_s:g}" if first.rate_per_s else "-", first.rate_per_s),
            _cell(f"{first.slo_ms:g}", first.slo_ms),
            _cell(str(len(place.line.cells)), len(place.line.cells)),
            *(_cell(shown(place.values[i], METRICS[i].digits), place.values[i]) for i in known),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    stars = any(place.line.is_partial for place in places)
    note = "<p>* cut short: see “What was run”.</p>" if stars else ""
    return (
        "<p>Click a heading to sort. Figures are means of the repeats.</p>"
        '<p><label>Only lines with <input id="filter" type="search" placeholder="words"></label>'
        ' <span id="shown" role="status"></span></p>'
        f'<div class="wide"><table id="lines"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _cell(text: str, value: object) -> str:
    data = "" if value is None else escape(str(value), quote=True)
    return f'<td data-value="{data}">{escape(text)}</td>'


def _cdf_section(lines: Sequence[Line], palette: Mapping[str, int]) -> list[tuple[str, str]]:
    """Per model, arrivals and SLO at the busiest rate that some configuration still keeps."""
    drawn: list[Drawn] = []
    groups: dict[tuple[str, str, float], list[Line]] = {}
    for line in lines:
        if any(cell.latency for cell in line.cells):
            key = (line.first.model, line.first.arrivals, line.first.slo_ms)
            groups.setdefault(key, []).append(line)
    for own in list(groups.values())[:MAX_PICTURES]:
        held = [line.first.rate_per_s for line in own if line.attainment >= ENOUGH]
        rate = max(held) if held else min(line.first.rate_per_s for line in own)
        chosen = [line for line in own if line.first.rate_per_s == rate]
        chosen.sort(key=lambda line: -line.goodput_per_s)
        drawn.append(pictures.latency_cdfs(chosen, f"cdf{len(drawn)}", palette))
    if not drawn:
        return []
    note = (
        f"<p>At the highest rate at which some configuration kept {ENOUGH * 100:g} % in time. "
        "Latency counts from when a request was to be sent, so that a driver that waits hides "
        "nothing. A curve that ends below 100 % was refused or lost the rest.</p>"
    )
    return [section("cdf", "Latency", note + figures(drawn, len(groups)))]


def _goodput_sections(lines: Sequence[Line], palette: Mapping[str, int]) -> list[tuple[str, str]]:
    sections = []
    for by, title in (("rate", "Goodput by rate"), ("slo", "Goodput by SLO")):
        groups: dict[tuple[str, str, float], list[Line]] = {}
        for line in lines:
            if not line.first.rate_per_s:
                continue
            other = line.first.slo_ms if by == "rate" else line.first.rate_per_s
            groups.setdefault((line.first.model, line.first.arrivals, other), []).append(line)
        chosen = [
            own
            for own in groups.values()
            if len({ln.first.rate_per_s if by == "rate" else ln.first.slo_ms for ln in own}) > 1
        ]
        drawn = [
            pictures.goodput_curves(own, f"by{by}{index}", palette, by=by)
            for index, own in enumerate(chosen[:MAX_PICTURES])
        ]
        if drawn:
            sections.append(section(f"by-{by}", title, figures(drawn, len(chosen))))
    return sections


def _batch_section(
    lines: Sequence[Line], points: Sequence[Point], rates: Mapping[tuple[str, int], float]
) -> list[tuple[str, str]]:
    if not rates:
        return []
    drawn = [
        pictures.heat_map(
            rates,
            "heat-rows",
            title="Rows per second, by model and batch size",
            unit="rows per second",
            better="Executed alone where that was measured, else the most served in time.",
        )
    ]
    durations = {(p.model, p.batch): p.execution_s * 1000 for p in points}
    if durations:
        drawn.append(
            pictures.heat_map(
                durations,
                "heat-ms",
                title="Execution, by model and batch size",
                unit="ms of an execution",
                better="The largest batch whose execution leaves room in the SLO is the limit.",
            )
        )
    return [section("batch", "Model by batch size", figures(drawn, len(drawn)))]


def _roof_section(roofs: Roofs | None) -> list[tuple[str, str]]:
    if roofs is None:
        return []
    body = bullets(roofs.missing)
    if roofs.points:
        where = roofs.machine or "the machine that made this page"
        body = (
            f"<p>Measured on {escape(where)} when this page was made, each model alone with "
            f"{roofs.ceilings.threads} thread(s); the jobs may have run elsewhere.</p>{body}"
        )
        body += figure(pictures.roof(roofs.points, roofs.ceilings, "roof"))
        rows = [
            (
                point.model,
                point.batch,
                f"{point.flops / 1e6:,.1f}",
                f"{point.least_bytes / 1e6:,.2f}",
                f"{point.moved_bytes / 1e6:,.2f}",
                f"{point.execution_s * 1e3:,.3f}",
                f"{point.flops_per_s / 1e9:,.1f}",
                f"{point.share_of_roof(roofs.ceilings) * 100:.0f}",
                point.limit(roofs.ceilings),
                ", ".join(f"{n} x {kind}" for kind, n in point.not_counted.items()) or "-",
            )
            for point in roofs.points
        ]
        body += table(
            ("model", "batch", "MFLOP", "MB at least", "MB nothing kept", "ms", "GFLOP/s",
             "of its roof (%)", "limited by", "not counted"),
            rows,
        )  # fmt: skip
    for model, kinds in roofs.kinds.items():
        tables = table(
            ("operator", "nodes", "MFLOP", "MB"),
            [
                (k.kind, k.nodes, f"{k.flops / 1e6:,.2f}", f"{k.moved_bytes / 1e6:,.2f}")
                for k in kinds
            ],
        )
        times = roofs.times.get(model, ())
        total = sum(kind.seconds for kind in times) or 1.0
        tables += table(
            ("executed as", "calls", "ms", "of the time (%)"),
            [
                (t.kind, t.calls, f"{t.seconds * 1e3:.3f}", f"{t.seconds / total * 100:.1f}")
                for t in times
            ],
        )
        body += f"<details><summary>{escape(model)}, by operator</summary>{tables}</details>"
    return [section("roof", "Roofline", body)]


def _time_sections(lines: Sequence[Line]) -> list[tuple[str, str]]:
    drawn: list[Drawn] = []
    staged = [line for line in lines if line.first.stages]
    if staged:
        best: dict[tuple[str, str, float], Line] = {}
        for line in staged:  # each configuration at its best rate
            key = (line.first.model, line.first.config_name, line.first.slo_ms)
            if key not in best or line.goodput_per_s > best[key].goodput_per_s:
                best[key] = line
        drawn.append(pictures.stages(list(best.values()), "stages"))
    cold: dict[str, list[float]] = {}
    for line in lines:
        value = line.mean([cell.cold_start_ms for cell in line.cells])
        if value is not None:
            name = " · ".join(filter(None, (line.first.model, line.first.config_name)))
            cold.setdefault(name, []).append(value)
    if cold:
        means = {name: sum(values) / len(values) for name, values in cold.items()}
        drawn.append(pictures.cold_starts(means, "cold"))
    if not drawn:
        return []
    return [section("time", "Stages and cold start", figures(drawn, len(drawn)))]


def _runs(cells: Sequence[Cell]) -> str:
    rows = []
    for run_id, group in groupby(
        sorted(cells, key=lambda c: (c.started_at, c.run_id)), lambda c: c.run_id
    ):
        own = list(group)
        why = sorted({cell.partial for cell in own if cell.partial})
        rows.append(
            (
                own[0].job,
                run_id,
                own[0].started_at,
                len(own),
                f"{sum(cell.sent for cell in own):,}",
                ", ".join(sorted({str(cell.seed) for cell in own})),
                own[0].commit or "-",
                own[0].machine or "-",
                "; ".join(why) or "whole",
            )
        )
    return table(
        ("job", "run", "started", "cells", "requests", "seeds", "commit", "machine", "whole?"), rows
    )


def _facts(
    cells: Sequence[Cell],
    lines: Sequence[Line],
    made_at: datetime,
    shared: Sequence[tuple[str, str]],
) -> str:
    partial = sum(bool(cell.partial) for cell in cells)
    facts = [
        f"{len(cells):,} cells in {len(lines):,} lines",
        f"{sum(cell.sent for cell in cells):,} requests",
        f"cut short: {partial:,}" if partial else "nothing was cut short",
        f"made {made_at.isoformat(sep=' ', timespec='minutes')}",
    ]
    if shared:
        facts.append(f"all of them {', '.join(f'{key}={value}' for key, value in shared)}")
    return escape(" · ".join(facts))


def _asset(name: str) -> str:
    return (ASSETS / name).read_text("utf-8")
