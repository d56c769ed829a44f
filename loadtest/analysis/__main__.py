"""`python -m loadtest.analysis`: what `remontoir bench report`, `leaderboard`, `recommend` and
`roofline` run.

Owns their arguments and the tables in the terminal. Exit codes: 0 done, 1 there is nothing to
show, 2 it was asked wrongly.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.analysis import leaderboard, measured_roofs, prices, recommend, results_view
from loadtest.analysis.cell import Cell, lines_of, without_common
from loadtest.analysis.report_page import Roofs, report_html
from loadtest.driver.results_db import ResultsError
from loadtest.plots.style import MissingLibrary
from scheduler.words import counted

RESULTS = "bench-results"
# The page has all metrics; a terminal has room for these, and the one that is sorted by.
SHOWN = ("goodput", "attainment", "p50", "p99", "late", "refused", "usd")
MAX_NAMED = 10  # in an error; a database may have thousands of runs
PIPE_WIDTH = 200  # tables that go into a file or a pipe must not be cut to 80 columns
EXPECTED = (
    ResultsError, prices.PriceError, leaderboard.UnknownMetric,
    recommend.NothingKnown, MissingLibrary,
)  # fmt: skip

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
errors = Console(stderr=True, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except EXPECTED as error:
        errors.print(f"remontoir bench: {error}", style="red", markup=False, soft_wrap=True)
        return 2 if isinstance(error, leaderboard.UnknownMetric | prices.PriceError) else 1


def _report(options: argparse.Namespace) -> int:
    table = prices.load(options.prices)
    leaderboard.metric(options.sort)
    cells = _cells(options)
    roofs = None
    if not options.no_roofline:
        models, missing = measured_roofs.models_of(cells)
        roofs = _measured(models, threads=options.threads, missing=missing)
    names = sorted({cell.model for cell in cells})
    text = report_html(
        cells,
        table,
        title=options.title or f"Benchmark of {', '.join(names)}",
        roofs=roofs,
        made_at=datetime.now().astimezone(),
        sort=options.sort,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    written = options.out.with_name(f"{options.out.name}.new")
    written.write_text(text, encoding="utf-8")
    written.replace(options.out)  # whole, or the page that was there
    console.print(
        f"wrote {options.out}: {len(cells)} cells, {len(text) / 1e6:.1f} MB", markup=False
    )
    return 0


def _cells(options: argparse.Namespace) -> list[Cell]:
    """The results that are asked for. Raises NothingKnown if none of them is."""
    cells = results_view.read_cells(options.results, say=_say)
    for what, of in (("job", "job"), ("run", "run_id")):
        wanted = getattr(options, what)
        if wanted is None:
            continue
        known = sorted({str(getattr(cell, of)) for cell in cells})
        cells = [cell for cell in cells if getattr(cell, of) == wanted]
        if not cells:
            raise recommend.NothingKnown(
                f"{options.results} has no results of {what} {wanted!r}; it has "
                f"{', '.join(known[:MAX_NAMED])}{', ...' if len(known) > MAX_NAMED else ''}"
            )
    return cells


def _say_shared(shared: Sequence[tuple[str, str]]) -> None:
    if shared:
        text = ", ".join(f"{key}={value}" for key, value in shared)
        console.print(f"All of them: {text}", style="dim", markup=False)


def _say_origin(table: prices.Prices, usd: float | None) -> None:
    """Whose prices those are, where there are some."""
    if usd is not None:
        console.print(f"US$ by {table.origin} (--prices)", style="dim", markup=False)


def _measured(
    models: Sequence[tuple[str, Path]], *, threads: int, missing: Sequence[str]
) -> Roofs | None:
    if not models and not missing:
        return None
    with errors.status("measuring this machine") as status:
        return measured_roofs.roofs_of(
            models,
            threads=threads,
            missing=missing,
            say=lambda text: status.update(f"roofline: {text}"),
        )


def _leaderboard(options: argparse.Namespace) -> int:
    table = prices.load(options.prices)
    chosen = leaderboard.metric(options.sort)
    cells = _cells(options)
    if options.model is not None:
        cells = [cell for cell in cells if cell.model == options.model]
        if not cells:
            raise recommend.NothingKnown(f"no results of model {options.model!r}")
    cells, shared = without_common(cells)
    places = leaderboard.board(lines_of(cells), table, sort=options.sort)
    known = [
        i
        for i, metric in enumerate(leaderboard.METRICS)
        if metric is chosen or metric.name in SHOWN
    ]
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("model", "configuration", "offered/s", "SLO ms"):
        shown.add_column(heading, justify="left" if heading[0] in "mc" else "right")
    for i in known:
        metric = leaderboard.METRICS[i]
        unit = f" {metric.unit}" if metric.unit else ""
        style = "bold" if metric is chosen else ""
        shown.add_column(metric.title + unit, justify="right", style=style)
    for place in places[: options.top]:
        first = place.line.first
        shown.add_row(
            first.model + " *" * place.line.is_partial,
            first.config_name,
            f"{first.rate_per_s:g}" if first.rate_per_s else "-",
            f"{first.slo_ms:g}",
            *(leaderboard.shown(place.values[i], leaderboard.METRICS[i].digits) for i in known),
        )
    console.print(shown)
    _say_shared(shared)
    usd = leaderboard.METRICS.index(leaderboard.metric("usd"))
    _say_origin(table, next((place.values[usd] for place in places if place.values[usd]), None))
    if len(places) > options.top:
        console.print(f"{len(places) - options.top} more lines: --top {len(places)}", style="dim")
    if any(place.line.is_partial for place in places[: options.top]):
        console.print("* cut short", style="dim")
    return 0


def _recommend(options: argparse.Namespace) -> int:
    table = prices.load(options.prices)
    own = _cells(options)
    kinds = sorted({cell.arrivals for cell in own if cell.model == options.model})
    if options.arrivals is not None and kinds:
        own = [cell for cell in own if cell.arrivals == options.arrivals]
        if options.arrivals not in kinds:
            raise recommend.NothingKnown(
                f"{options.model} was not measured under {options.arrivals!r} arrivals, but under "
                f"{', '.join(kinds)}"
            )
    cells, shared = without_common(own)
    lines = lines_of(cells)
    samples = recommend.samples_of(
        lines, options.model, rate_per_s=options.rate, attainment=options.attainment
    )
    choices = recommend.with_costs(recommend.recommend(samples, options.slo_ms), lines, table)
    if options.max_cost is not None:
        affordable = [
            c for c in choices if c.usd_per_1000 is not None and c.usd_per_1000 <= options.max_cost
        ]
        if not affordable:
            least = min(
                (c.usd_per_1000 for c in choices if c.usd_per_1000 is not None), default=None
            )
            why = "no price is known of any" if least is None else f"the cheapest has {least:.6f}"
            raise recommend.NothingKnown(
                f"no configuration of {options.model} within {options.slo_ms:g} ms costs at most "
                f"{options.max_cost:g} US$ per 1,000 requests: {why}"
            )
        among = {choice.config for choice in affordable}
        chosen = recommend.recommend(samples, options.slo_ms, among=among)
        choices = recommend.with_costs(chosen, lines, table)
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in (
        *("configuration", "goodput/s", "90 % interval", "the best", "may lose"),
        *("US$ / 1,000", "by"),
    ):
        shown.add_column(heading, justify="left" if heading in ("configuration", "by") else "right")
    for choice in choices[: recommend.TOP]:
        shown.add_row(
            choice.name,
            f"{choice.goodput_per_s:,.1f}",
            f"{choice.low_per_s:,.1f} to {choice.high_per_s:,.1f}",
            f"{choice.is_best * 100:.0f} %",
            f"{choice.loses * 100:.1f} %",
            leaderboard.shown(choice.usd_per_1000, 5),
            "measured" if choice.is_measured else "predicted",
        )
    console.print(shown)
    _say_shared(shared)
    slos = sorted({sample.slo_ms for sample in samples})
    text = (
        f"{counted(len(choices), 'configuration')}, from {len(samples)} measured pairs of "
        "configuration and SLO. “The best”: the chance that no other one of them does better; "
        "“may lose”: how much of the best one's goodput it is expected to fall short of."
    )
    if options.arrivals is None and len(kinds) > 1:
        text += f" Measured under {', '.join(kinds)}: the most of any; --arrivals takes one."
    if not slos[0] <= options.slo_ms <= slos[-1]:
        text += (
            f" {options.slo_ms:g} ms lies outside of what was measured ({slos[0]:g} to "
            f"{slos[-1]:g} ms): a guess."
        )
    console.print(text, style="dim", markup=False)
    _say_origin(table, choices[0].usd_per_1000)
    return 0


def _roofline(options: argparse.Namespace) -> int:
    models = [(path.parent.parent.name or path.stem, path) for path in options.models]
    if len({name for name, _ in models}) < len(models):
        models = [(str(path), path) for _, path in models]
    with errors.status("measuring this machine") as status:
        found = measured_roofs.roofs_of(
            models,
            threads=options.threads,
            batches=options.batch,
            shapes=dict(options.shape) or None,
            say=lambda text: status.update(f"roofline: {text}"),
        )
    top = found.ceilings
    console.print(
        f"{options.threads} thread(s): {top.flops_per_s / 1e9:,.1f} GFLOP/s, memory "
        f"{top.memory_bytes_per_s / 1e9:,.1f} GB/s, a core's cache "
        f"{(top.cache_bytes_per_s or 0) / 1e9:,.1f} GB/s; memory limits below "
        f"{top.ridge:.1f} FLOPs per byte"
    )
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in (
        "model",
        "batch",
        "MFLOP",
        "MB at least",
        "FLOP/byte",
        "ms",
        "GFLOP/s",
        "of its roof",
        "limited by",
        "not counted",
    ):
        shown.add_column(heading, justify="left" if heading == "model" else "right")
    for point in found.points:
        shown.add_row(
            point.model,
            str(point.batch),
            f"{point.flops / 1e6:,.1f}",
            f"{point.least_bytes / 1e6:,.2f}",
            f"{point.intensity:.1f} to {point.best_intensity:.1f}",
            f"{point.execution_s * 1e3:,.3f}",
            f"{point.flops_per_s / 1e9:,.1f}",
            f"{point.share_of_roof(top) * 100:.0f} %",
            point.limit(top),
            ", ".join(f"{n} x {kind}" for kind, n in point.not_counted.items()) or "-",
        )
    console.print(shown)
    for text in found.missing:
        errors.print(f"remontoir bench: {text}", style="red", markup=False, soft_wrap=True)
    return 0 if found.points else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.analysis")
    commands = parser.add_subparsers(required=True)

    report = _with_results(commands.add_parser("report"))
    report.add_argument("--out", type=Path, default=Path("report.html"))
    report.add_argument("--title")
    report.add_argument("--sort", default="goodput")
    report.add_argument("--no-roofline", action="store_true")
    report.add_argument("--threads", type=_count, default=1)
    report.set_defaults(command=_report)

    board = _with_results(commands.add_parser("leaderboard"))
    board.add_argument("--sort", default="goodput")
    board.add_argument("--model")
    board.add_argument("--top", type=_count, default=20)
    board.set_defaults(command=_leaderboard)

    choose = _with_results(commands.add_parser("recommend"))
    choose.add_argument("--model", required=True)
    choose.add_argument("--slo-ms", type=float, required=True)
    choose.add_argument("--max-cost", type=float)
    choose.add_argument("--rate", type=float)
    choose.add_argument("--arrivals")
    choose.add_argument("--attainment", type=float, default=0.0)
    choose.set_defaults(command=_recommend)

    roof = commands.add_parser("roofline")
    roof.add_argument("models", type=Path, nargs="+")
    roof.add_argument("--batch", type=_counts, default=measured_roofs.BATCHES)
    roof.add_argument("--threads", type=_count, default=1)
    roof.add_argument("--shape", type=_shape, action="append", default=[])
    roof.set_defaults(command=_roofline)
    return parser


def _with_results(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("results", nargs="?", default=RESULTS)
    parser.add_argument("--prices", type=Path)
    parser.add_argument("--job")
    parser.add_argument("--run")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(part) for part in text.split(",")}))


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """x=3,48,320: the shape of one row."""
    name, sign, numbers = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not INPUT=N,N,...")
    return name, tuple(_count(part) for part in numbers.split(","))


def _say(text: str) -> None:
    errors.print(f"remontoir bench: {text}", style="yellow", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
