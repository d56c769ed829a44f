"""`python -m loadtest.driver`: what `remontoir bench run` and `bench ceiling` run.

Owns their arguments, the progress and the tables in the terminal. Exit codes: 0 done, 1 nothing was
measured, 2 it was asked wrongly, 3 part of it was measured.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from loadtest.analysis.cell import Cell, row_of
from loadtest.driver import ceiling, registry_command, run
from loadtest.driver.crew import DriverError
from loadtest.driver.figures import MissingHdr, new_histogram
from loadtest.driver.job_file import Case, JobError, JobFile, load
from loadtest.driver.registry import RegistryError
from loadtest.driver.results_db import ResultsDatabase, ResultsError
from loadtest.driver.targets import cpus_of
from loadtest.servers import ServerError

RESULTS = "bench-results"
PARTIAL_EXIT = 3
PIPE_WIDTH = 200  # tables that go into a file or a pipe must not be cut to 80 columns
EXPECTED = (
    JobError,
    ResultsError,
    RegistryError,
    MissingHdr,
    DriverError,
    ServerError,
    ceiling.TooBusy,
)

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
errors = Console(stderr=True, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except EXPECTED as error:
        _say(str(error), style="red")
        return 2 if isinstance(error, JobError | RegistryError) else 1


def _run(options: argparse.Namespace) -> int:
    job = load(options.job)
    if options.estimate:
        console.print(f"{job.estimated_s():.0f}")
        return 0
    new_histogram()  # or the library is missing, which is said before anything is measured
    database = ResultsDatabase(options.results)
    folder = database.folder or Path(RESULTS)
    console.print(
        f"{job.name}: {len(job.cases)} measurements, about {job.estimated_s():.0f} s", markup=False
    )
    rows: list[Cell] = []
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # what is being measured is kept as far as it got, and marked; a second one ends at once
        signal.signal(
            number, lambda got, _: sys.exit(128 + got) if stopped else stopped.append(got)
        )
    with _shown(job) as (bar, task):

        def done(case: Case, cells: list[Cell]) -> None:
            rows.extend(cells)
            bar.advance(task)

        progress = run.Progress(
            say=lambda text: _say(text, style="yellow"),
            step=lambda text: bar.update(task, description=text[:60]),
            done=done,
            asked_to_stop=lambda: bool(stopped),
        )
        try:
            summary = run.run_job(
                job,
                database,
                folder=folder,
                progress=progress,
                resume=options.resume,
                given_ceiling=options.ceiling,
            )
        except ResultsError as error:
            _rescue(error, rows)
            return PARTIAL_EXIT if rows else 1
        finally:
            database.close()
    if rows:
        console.print(_table(rows))
    kept = f"run {summary.run_id} in {database.name}: {summary.measured} measured"
    for word in ("partial", "failed", "skipped"):
        if count := getattr(summary, word):
            kept += f", {count} {word}"
    console.print(kept, markup=False)
    if options.report is not None and (summary.measured or summary.skipped):
        command = [sys.executable, "-m", "loadtest.analysis", "report", str(options.results)]
        command += ["--run", summary.run_id, "--out", str(options.report)]
        subprocess.run(command, check=False)
    if stopped or summary.failed or summary.partial:
        return PARTIAL_EXIT if summary.measured or summary.skipped else 1
    return 0


def _ceiling(options: argparse.Namespace) -> int:
    server_cpus = options.server_cpus
    client_cpus = sorted(os.sched_getaffinity(0) - cpus_of(server_cpus))
    if not client_cpus:
        raise JobError(f"--server-cpus {server_cpus} leaves the driver no CPU")
    with errors.status("measuring") as status:
        found = ceiling.measure(
            request_bytes=ceiling.rounded_bytes(options.bytes),
            processes=options.processes,
            server_cpus=server_cpus,
            client_cpus=client_cpus,
            log_dir=Path(tempfile.gettempdir()) / f"remontoir-bench-{os.getuid()}",
            on_step=lambda text: status.update(f"measuring: {text}"),
        )
    console.print(
        f"{found.rate_per_s:,.0f} requests/s of {found.request_bytes:,} bytes, "
        f"{found.processes} process(es) on CPU(s) {', '.join(map(str, found.cpus))}: "
        f"99 of 100 sent within {found.error_p99_ms:.2f} ms of their schedule"
    )
    if found.next_rate_per_s:
        console.print(
            f"{found.next_rate_per_s:,.0f}/s was beyond {ceiling.MOST_ERROR_MS:g} ms, or was not "
            "all answered by a server that does nothing"
        )
    try:
        ceiling.KnownCeilings().keep(found)
    except OSError as error:
        _say(f"it cannot be kept for `bench run`: {error}", style="yellow")
    return 0 if found.rate_per_s else 1


@contextlib.contextmanager
def _shown(job: JobFile) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        yield bar, bar.add_task("starting", total=len(job.cases))


def _rescue(error: ResultsError, rows: list[Cell]) -> None:
    """Rows of this run that a database has refused, somewhere else: they were measured."""
    _say(str(error), style="red")
    if not rows:
        return
    try:
        with tempfile.NamedTemporaryFile(
            "wb", prefix="remontoir-bench-", suffix=".jsonl", delete=False
        ) as file:
            file.writelines(row_of(cell) + b"\n" for cell in rows)
        _say(f"all {len(rows)} rows of this run are in {file.name}, too", style="yellow")
    except OSError:
        sys.stdout.buffer.writelines(row_of(cell) + b"\n" for cell in rows)


def _table(rows: Sequence[Cell]) -> Table:
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("measurement", "model"):
        shown.add_column(heading)
    for heading in (
        *(
            "offered/s",
            "SLO ms",
            "good/s",
            "in time",
            "p50 ms",
            "p99 ms",
            "late",
            "refused",
            "after",
        ),
        *("failed", "sent p99", ""),
    ):
        shown.add_column(heading, justify="right")
    for cell in rows:
        shown.add_row(
            f"{cell.point} #{cell.repeat + 1}",
            cell.model,
            f"{cell.rate_per_s:,.1f}" if cell.rate_per_s else "closed",
            f"{cell.slo_ms:g}",
            f"{cell.goodput_per_s:,.1f}",
            f"{cell.attainment:.1%}",
            *(_ms(value) for value in (cell.p50_ms, cell.p99_ms)),
            *(str(cell.late), str(cell.refused), _ms(cell.refusal_p50_ms), str(cell.failed)),
            _ms(cell.driver_error_p99_ms),
            "partial" if cell.partial else "",
        )
    return shown


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _say(text: str, *, style: str) -> None:
    errors.print(f"remontoir bench: {text}", style=style, markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.driver")
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("job", type=Path)
    runs.add_argument("--results", default=RESULTS)
    runs.add_argument("--report", type=Path)
    runs.add_argument("--resume", action="store_true")
    runs.add_argument("--estimate", action="store_true")
    runs.add_argument("--ceiling", type=float)
    runs.set_defaults(run=_run)
    top = commands.add_parser("ceiling")
    top.add_argument("--bytes", type=int, default=1024)
    top.add_argument("--processes", type=int, default=1)
    top.add_argument("--server-cpus", default="0")
    top.set_defaults(run=_ceiling)
    registry_command.add_to(commands, RESULTS, console)
    return parser


if __name__ == "__main__":
    sys.exit(main())
