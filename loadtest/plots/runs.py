"""All pictures of a set of runs, as files: which are drawn of what, and their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from loadtest.plots.curves import goodput, latency_cdf, prediction_errors
from loadtest.plots.lanes import lanes
from loadtest.plots.over_time import busy, pages, schedule_ahead
from loadtest.plots.page import Picture, html_page
from loadtest.plots.style import png_of
from loadtest.results.summary import Summary
from loadtest.results.tables import RunMeta, Tables
from scheduler.spec import MILLISECOND_NS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Window = tuple[int, int]
LANES_NS = 100 * MILLISECOND_NS
MAX_NAME = 200  # file systems take 255 bytes


class DrawnRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Without tables it has its line and its point, and no pictures of its own."""

    meta: RunMeta
    summary: Summary
    tables: Tables | None = None

    @property
    def window(self) -> Window:
        return self.summary.window_begin_ns, self.summary.window_end_ns

    @property
    def case_text(self) -> str:
        return ", ".join(f"{key} {_plain(value)}" for key, value in self.meta.case.items())

    @property
    def text(self) -> str:
        parts = (self.meta.policy, self.case_text, f"seed {self.meta.seed}")
        return ", ".join(part for part in parts if part)


def write_page(
    directory: str | Path,
    title: str,
    runs: Sequence[DrawnRun],
    *,
    lanes_window: Window | None = None,
) -> list[Path]:
    """Write index.html and its pictures as PNG files; the files written, the page first.

    Goodput over each variable that takes several numbers; per case one CDF with all policies; and
    of every run that has tables: a timeline of lanes over `lanes_window` (the first LANES_NS of its
    own window), prediction errors, pages, schedule_ahead and busy shares. Raises MissingLibrary.
    """
    directory = Path(directory)
    pictures = [*_goodputs(runs), *_cdfs(runs)]
    for run in runs:
        if run.tables is not None:
            pictures += _of_one(run, run.tables, lanes_window or _first_of(run.window))
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / "index.html"
    facts = {"runs": str(len(runs))}
    if runs:
        facts = {"scenario": runs[0].meta.scenario, **facts, **runs[0].meta.versions}
    summaries = {run.text: run.summary for run in runs}
    page.write_text(html_page(title, summaries, pictures, facts), encoding="utf-8")
    written = [page]
    for name, picture in zip(_distinct([p.name for p in pictures]), pictures, strict=True):
        path = directory / f"{name}.png"
        path.write_bytes(picture.png)
        written.append(path)
    return written


def _goodputs(runs: Sequence[DrawnRun]) -> list[Picture]:
    pictures = []
    for variable in dict.fromkeys(key for run in runs for key in run.meta.case):
        values = {run.meta.case.get(variable) for run in runs}
        if len(values) < 2 or not all(_is_number(value) for value in values):
            continue
        series: dict[str, dict[float, list[float]]] = {}
        for run in runs:
            others = [f"{k} {_plain(v)}" for k, v in run.meta.case.items() if k != variable]
            points = series.setdefault(", ".join([run.meta.policy, *others]), {})
            x = float(run.meta.case[variable] or 0)
            points.setdefault(x, []).append(run.summary.run.goodput_per_s)
        label = _axis_label(variable)
        title = f"Goodput by {label.split(' (')[0]}"
        bound = _bound_by(variable, runs)
        figure = goodput(series, title=title, x_label=label, bound=bound)
        caption = "Mean over seeds; bars are 95 % intervals (Student's t) from 3 seeds on."
        bounds = [run.summary.of_bound for run in runs if run.summary.of_bound is not None]
        if bound:
            is_whole = all(of_bound.is_whole for of_bound in bounds)
            of_first = "" if is_whole else ", here that of each run's first requests"
            caption += f" No scheduler passes the upper bound{of_first}."
        elif bounds:
            caption += " Lines have bounds of their own: the table says what share was reached."
        pictures.append(Picture(f"goodput-{_file_stem(variable)}", title, png_of(figure), caption))
    return pictures


def _bound_by(variable: str, runs: Sequence[DrawnRun]) -> dict[float, float]:
    """x → the bound, the mean over seeds; nothing where another variable makes it another one."""
    found: dict[float, dict[int, set[float]]] = {}
    for run in runs:
        if run.summary.of_bound is not None:
            of_seeds = found.setdefault(float(run.meta.case[variable] or 0), {})
            of_seeds.setdefault(run.meta.seed, set()).add(run.summary.of_bound.goodput_per_s)
    if any(len(bounds) > 1 for of_seeds in found.values() for bounds in of_seeds.values()):
        return {}
    return {
        x: sum(bound for bounds in of_seeds.values() for bound in bounds) / len(of_seeds)
        for x, of_seeds in found.items()
    }


def _cdfs(runs: Sequence[DrawnRun]) -> list[Picture]:
    cases: dict[str, dict[str, DrawnRun]] = {}
    for run in runs:
        if run.tables is not None:  # of each policy the first seed that kept its tables
            cases.setdefault(run.case_text, {}).setdefault(run.meta.policy, run)
    pictures = []
    for case, by_policy in cases.items():
        title = f"Latency at the client{f': {case}' if case else ''}"
        tables = {policy: run.tables for policy, run in by_policy.items() if run.tables is not None}
        figure = latency_cdf(tables, next(iter(by_policy.values())).window, title=title)
        name = "-".join(part for part in ("latency", _file_stem(case)) if part)
        caption = "A curve ends at the share of requests that was served at all."
        pictures.append(Picture(name, title, png_of(figure), caption))
    return pictures


def _first_of(window: Window) -> Window:
    begin_ns, end_ns = window
    return begin_ns, min(begin_ns + LANES_NS, end_ns)


def _of_one(run: DrawnRun, tables: Tables, lanes_window: Window) -> list[Picture]:
    window_text = " to ".join(f"{instant_ns / MILLISECOND_NS:g}" for instant_ns in lanes_window)
    drawn: list[tuple[str, Figure, str]] = [
        (
            "Timeline of lanes",
            lanes(tables, *lanes_window, title=f"Timeline of lanes: {run.text}"),
            f"{window_text} ms. A bar's figure is its rows.",
        ),
        (
            "Prediction errors",
            prediction_errors(tables, run.window, title=f"Prediction errors: {run.text}"),
            "Share of actions that erred by more than so much.",
        ),
    ]
    if len(tables.devices):
        drawn += [
            ("Pages", pages(tables, title=f"Pages: {run.text}"), ""),
            ("schedule_ahead", schedule_ahead(tables, title=f"schedule_ahead: {run.text}"), ""),
            ("Busy lanes", busy(tables, title=f"How busy the lanes were: {run.text}"), ""),
        ]
    return [
        Picture(
            f"{_file_stem(what)}-{_file_stem(run.text)}",
            f"{what}: {run.text}",
            png_of(figure),
            caption,
        )
        for what, figure, caption in drawn
    ]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _axis_label(variable: str) -> str:
    """slo_ms → SLO (ms)."""
    stem, _, unit = variable.rpartition("_")
    if stem and unit in ("ns", "us", "ms", "s"):
        variable = f"{stem} ({unit})"
    return variable.replace("slo", "SLO")


def _distinct(names: Sequence[str]) -> list[str]:
    """Names that fit a file system; one that is there already gets a number."""
    taken: dict[str, None] = {}
    for name in names:
        short = name[:MAX_NAME]
        found, number = short, 2
        while found in taken:
            found, number = f"{short}-{number}", number + 1
        taken[found] = None
    return list(taken)


def _file_stem(text: str) -> str:
    """Lower case, and only what is safe in a file's name everywhere."""
    kept = "".join(c if c.isalnum() or c in "._" else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part)
