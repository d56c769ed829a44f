"""One HTML file with everything in it: tables, and pictures as data. It fetches nothing."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from loadtest.results.summary import Group, Summary

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
       max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap }
th:first-child, td:first-child { text-align: left }
figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto }
figcaption { color: #555; font-size: 0.9rem }
"""


class Picture(NamedTuple):
    """`name` is the stem of its file."""

    name: str
    title: str
    png: bytes
    caption: str = ""


OF_BOUND = "of bound (%)"
# Heading → how a group's figure is written under it.
_COLUMNS: dict[str, Callable[[Group], str]] = {
    "requests": lambda g: f"{g.requests:,}",
    "goodput (r/s)": lambda g: f"{g.goodput_per_s:,.1f}",
    "attainment (%)": lambda g: _number(g.attainment, 3, 100),
    "late": lambda g: f"{g.late:,}",
    "rejected": lambda g: f"{g.rejected:,}",
    "expired": lambda g: f"{g.expired:,}",
    "failed": lambda g: f"{g.failed:,}",
    "p50 (ms)": lambda g: _number(g.latency_p50_ms, 2),
    "p99 (ms)": lambda g: _number(g.latency_p99_ms, 2),
    "p99.9 (ms)": lambda g: _number(g.latency_p999_ms, 2),
    "refused p99 (ms)": lambda g: _number(g.refusal_p99_ms, 2),
    "mean batch": lambda g: _number(g.mean_batch, 2),
    "LOADs/s": lambda g: _number(g.loads_per_s, 1),
    "EXEC ms/good": lambda g: _number(g.exec_ms_per_good, 3),
    "error p1/p50/p99 (µs)": lambda g: _three(
        g.prediction_error_p1_us, g.prediction_error_p50_us, g.prediction_error_p99_us
    ),
}


def html_page(
    title: str,
    runs: Mapping[str, Summary],
    pictures: Sequence[Picture],
    facts: Mapping[str, str] | None = None,
) -> str:
    """`runs` are the lines of the table, by what they are of; `facts` stand above it."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
    ]
    if facts:
        told = " · ".join(f"{escape(k)}: {escape(v)}" for k, v in facts.items())
        parts.append(f"<p>{told}</p>")
    if runs:
        parts.append(_table(runs))
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        parts.append(
            f"<h2>{escape(picture.title)}</h2><figure>"
            f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        )
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _table(runs: Mapping[str, Summary]) -> str:
    """The share of the bound is the last column, where it was asked for."""
    has_bound = any(summary.of_bound is not None for summary in runs.values())
    headings = ("run", *_COLUMNS, *[OF_BOUND] * has_bound)
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = []
    for name, summary in runs.items():
        cells = [name, *(write(summary.run) for write in _COLUMNS.values())]
        if has_bound:
            share = None if summary.of_bound is None else summary.of_bound.share
            cells.append(_number(share, 1, 100))
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "–" if value is None else f"{value * factor:,.{digits}f}"  # noqa: RUF001


def _three(*values: float | None) -> str:
    return " / ".join(_number(value, 0) for value in values)
