"""The table that `remontoir simulate` prints: a row per run.

Owns headings and figures. It computes none: loadtest/results has done that.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.bound.of_case import MAX_REQUESTS
from loadtest.results import Summary
from loadtest.scenario import Case
from loadtest.workloads import Closed

FIGURES = ("goodput/s", "attained", "late", "refused", "p50 ms", "p99 ms", "batch", "us/req")
ASK_FOR_BOUND = "With --bound: the percentage of what any scheduler could have served."
ROOMY_WIDTH = 110  # of a terminal where there is place between columns


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What the table says about one run, and where its files are."""

    case: Case
    summary: Summary
    num_requests: int
    wall_us: float  # of the whole run, per request
    anomalies: dict[str, int]
    files: tuple[str, ...] = ()


def print_lines(console: Console, lines: Sequence[Line], *, shows_bound: bool = False) -> None:
    """A row per run: first what it was, then how it went."""
    variables = list(dict.fromkeys(name for line in lines for name in line.case.values))
    gap = 1 if console.width >= ROOMY_WIDTH else 0
    table = Table(
        title=lines[0].case.scenario if lines else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, gap, 0, gap),
        pad_edge=False,
        show_edge=False,
    )
    for heading in variables:
        table.add_column(heading, no_wrap=True)
    table.add_column("policy", overflow="fold")  # what is cut first: a figure never is
    table.add_column("seed", no_wrap=True)
    has_outliers = any(line.summary.outliers for line in lines)
    more = (*["outliers"] * has_outliers, *["of bound"] * shows_bound)
    for heading in (*FIGURES, *more):
        table.add_column(
            heading.replace("/", "\n/").replace(" ", "\n"), justify="right", no_wrap=True
        )
    for line in lines:
        table.add_row(
            *(str(line.case.values.get(name, "")) for name in variables),
            line.case.policy,
            str(line.case.seed),
            *_figures(line),
            *[f"{line.summary.outliers or 0:,}"] * has_outliers,
            *[_percent(_share_of_bound(line), 1)] * shows_bound,
        )
    console.print(table)
    for sentence in _about_bound(lines) if shows_bound else (ASK_FOR_BOUND,):
        console.print(sentence, markup=False, soft_wrap=True)
    for line in lines:
        if line.anomalies:
            console.print(f"{line.case.name}: anomalies {line.anomalies}", markup=False)
    folders = sorted({str(Path(file).parent) for line in lines for file in line.files})
    for folder in folders:
        console.print(f"wrote {folder}", markup=False, soft_wrap=True)


def _figures(line: Line) -> list[str]:
    group = line.summary.run
    refused = group.rejected + group.expired + group.failed
    return [
        f"{group.goodput_per_s:,.1f}",
        _percent(group.attainment, 3),
        f"{group.late:,}",
        f"{refused:,}",
        _or_dash(group.latency_p50_ms),
        _or_dash(group.latency_p99_ms),
        _or_dash(group.mean_batch),
        f"{line.wall_us:.0f}",
    ]


def _share_of_bound(line: Line) -> float | None:
    return None if line.summary.of_bound is None else line.summary.of_bound.share


def _about_bound(lines: Sequence[Line]) -> list[str]:
    """What the column cannot say of itself, a line each."""
    told = []
    if any(isinstance(entry, Closed) for line in lines for entry in line.case.setup.workload):
        told.append(
            "of bound: with closed loops it is of the goodput that devices and clients could have "
            "in the long run."
        )
    if any(line.summary.of_bound and not line.summary.of_bound.is_whole for line in lines):
        told.append(f"of bound: over the first {MAX_REQUESTS:,} counted requests of a run.")
    if any(_share_of_bound(line) is None for line in lines):
        told.append("-: nothing could have been served.")
    return told


def _percent(share: float | None, digits: int) -> str:
    return "-" if share is None else f"{share:.{digits}%}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
