"""`remontoir simulate SCENARIO.yaml`: play its runs, show a table, write the results.

Owns the words of the command, its progress bar on stderr and its processes. How a run is played is
loadtest/simulate.py's, what the table says loadtest/simulate_table.py's.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import msgspec
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from loadtest.bound_share import of_bound
from loadtest.results import read, write
from loadtest.scenario import Case, ScenarioError, Value, load
from loadtest.simulate import Run, run
from loadtest.simulate_table import Line, print_lines
from loadtest.stage import check
from scheduler.spec import SECOND_NS
from scheduler.words import counted, listed

PIPE_WIDTH = 200  # tables that go into a file or a pipe must not be cut to 80 columns
PROGRESS_STEP_NS = SECOND_NS // 5

SCENARIOS = Path(__file__).parent / "scenarios"

Report = Callable[[int], None]
Window = tuple[int, int]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be left behind of every run."""

    out: str | None = None
    format: str = "parquet"
    log: str | None = None
    bound: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m loadtest.simulate`. Ends with 2 where it was asked wrongly."""
    options = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    errors = Console(stderr=True, highlight=False)
    try:
        lines = simulate(options, errors)
    except (ScenarioError, RuntimeError) as error:  # RuntimeError: a library that is not there
        errors.print(f"remontoir: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    print_lines(console, lines, shows_bound=options.bound)
    if options.plot:
        console.print(f"wrote {Path(options.out, 'index.html')}", markup=False, soft_wrap=True)


def simulate(options: argparse.Namespace, errors: Console) -> list[Line]:
    """Play what the options ask for, with a progress bar. Raises ScenarioError, RuntimeError."""
    scenario = load(path_of(options.scenario))
    cases = scenario.expand(
        policies=options.policy,
        seeds=options.seed,
        variables=_variables(options.set),
        duration_s=options.duration_s,
        is_full=options.full,
    )
    if options.jobs < 1:
        raise ScenarioError(f"--jobs {options.jobs}: at least one run at a time")
    if options.plot and options.out is None:
        raise ScenarioError("--plot needs --out DIR, where the pictures go")
    if options.lanes is not None:
        _check_lanes(options.lanes, cases, is_drawn=options.plot)
    if options.log is not None and len(cases) > 1:
        raise ScenarioError(
            f"--log takes one run, this is {len(cases)}: choose with --policy, --seed and --set"
        )
    for setup in {id(case.setup): case.setup for case in cases}.values():
        try:
            check(setup)
        except ValueError as error:
            raise ScenarioError(f"{scenario.path}: {error}") from error
    _check_leavings(options)
    # No error: a run is cut short by --duration-s, too. Each once, whatever the number of runs.
    for warning in dict.fromkeys(w for c in cases for w in c.setup.never_reached(c.duration_s)):
        errors.print(f"{scenario.path}: {warning}", style="yellow", markup=False, soft_wrap=True)
    wanted = Wanted(
        out=options.out,
        format=options.format,
        log=options.log,
        bound=options.bound,
    )
    with _bar(errors, cases) as report_of:
        if options.jobs > 1 and len(cases) > 1:
            lines = _in_processes(cases, wanted, options.jobs, report_of)
        else:
            lines = []
            for number, case in enumerate(cases):
                report = report_of(number)
                lines.append(_line(case, wanted, report))
                report(round(case.duration_s * SECOND_NS))
    if options.plot:
        _draw(lines, Path(options.out), options.lanes, errors)
    return lines


def path_of(text: str) -> Path:
    """The file, or the scenario of that name that comes with the product."""
    path = Path(text)
    ours = SCENARIOS / f"{text}.yaml"
    return ours if not path.exists() and path.name == text and ours.exists() else path


def _check_lanes(span: Window, cases: Sequence[Case], *, is_drawn: bool) -> None:
    """Raises ScenarioError for a timeline that is in no picture, or beyond a run."""
    if not is_drawn:
        raise ScenarioError("--lanes needs --plot: it is what the timeline of lanes shows")
    for case in cases:
        if span[0] >= case.duration_s * SECOND_NS:
            raise ScenarioError(
                f"--lanes begins at {span[0] / SECOND_NS:g} s, {case.name} ends at "
                f"{case.duration_s:g} s"
            )


def _check_leavings(
    options: argparse.Namespace, find: Callable[[str], object | None] = find_spec
) -> None:
    """What would otherwise fail once the first run is played: files that cannot be written, and
    libraries that are not there. Raises ScenarioError, RuntimeError.
    """
    libraries = (
        (options.out is not None and options.format == "parquet", "Parquet", "pyarrow"),
        (options.plot, "a picture", "matplotlib"),
        (options.bound, "the bound", "numba"),
    )
    for is_wanted, what, library in libraries:
        if is_wanted and find(library) is None:
            or_else = ", or --format sqlite" if library == "pyarrow" else ""
            raise RuntimeError(
                f'{what} needs {library}: pip install "remontoir[simulate]"{or_else}'
            )
    if options.out is not None:
        try:
            Path(options.out).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.out).close()
        except OSError as error:
            raise ScenarioError(f"--out {options.out}: {error.strerror}") from error
    if options.log is not None:
        try:
            open(options.log, "ab").close()
        except OSError as error:
            raise ScenarioError(f"--log {options.log}: {error.strerror}") from error


def _line(case: Case, wanted: Wanted, report: Report | None = None) -> Line:
    log = nullcontext(None) if wanted.log is None else open(wanted.log, "wb")  # noqa: SIM115
    with log as file:
        played = run(case, progress=report, log=file)
    assert played.summary is not None
    if wanted.bound:
        played.summary = msgspec.structs.replace(played.summary, of_bound=of_bound(played))
    return Line(
        case=case,
        summary=played.summary,
        num_requests=played.num_requests,
        wall_us=played.wall_ns / 1000 / max(1, played.num_requests),
        anomalies=played.anomalies,
        files=_written(played, wanted),
    )


def _in_processes(
    cases: Sequence[Case], wanted: Wanted, num_jobs: int, report_of: Callable[[int], Report]
) -> list[Line]:
    """Whole runs in processes of their own; the bar moves as each ends."""
    lines: dict[int, Line] = {}
    # spawn: a fork would take the progress bar's thread half along
    with ProcessPoolExecutor(num_jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(_line, case, wanted): i for i, case in enumerate(cases)}
        for done in as_completed(running):
            number = running[done]
            lines[number] = done.result()
            report_of(number)(round(cases[number].duration_s * SECOND_NS))
    return [lines[number] for number in range(len(cases))]


@contextmanager
def _bar(errors: Console, cases: Sequence[Case]) -> Iterator[Callable[[int], Report]]:
    """A bar over the virtual seconds of all runs; nothing where stderr is no terminal."""
    total_s = sum(case.duration_s for case in cases)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} virtual s"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as progress:
        task = progress.add_task("simulating", total=total_s)
        yield lambda number: _Advance(progress, task, cases[number].name)


class _Advance:
    """Moves the bar by what one run has got on."""

    def __init__(self, progress: Progress, task: TaskID, name: str) -> None:
        self._progress, self._task, self._name = progress, task, name
        self._shown_ns = 0

    def __call__(self, now: int) -> None:
        if now - self._shown_ns >= PROGRESS_STEP_NS or now == 0:
            self._progress.update(
                self._task,
                description=self._name,
                advance=(now - self._shown_ns) / SECOND_NS,
            )
            self._shown_ns = now


def _variables(settings: Sequence[str]) -> dict[str, list[Value]]:
    """`slo_ms=25` or `slo_ms=10,25`, as YAML would read the values."""
    variables: dict[str, list[Value]] = {}
    for setting in settings:
        name, separator, values = setting.partition("=")
        if not separator or not name or not values:
            raise ScenarioError(f"--set takes NAME=VALUE or NAME=VALUE,VALUE, not {setting!r}")
        try:
            variables[name] = [yaml.safe_load(value) for value in values.split(",")]
        except yaml.YAMLError:
            raise ScenarioError(f"--set {name}: {values!r} is no value that YAML knows") from None
    return variables


def _written(played: Run, wanted: Wanted) -> tuple[str, ...]:
    if wanted.out is None:
        return ()
    assert played.tables is not None
    directory = Path(wanted.out) / _as_folder(played.case)
    files = write(played.tables, directory, played.meta, wanted.format)
    summary = directory / "summary.json"
    summary.write_bytes(msgspec.json.format(msgspec.json.encode(played.summary)))
    return (*map(str, files), str(summary))


def _as_folder(case: Case) -> str:
    """A folder's name for the run, readable and without characters that shells trip over."""
    kept = "".join(c if c.isalnum() or c in "=.,_-" else "-" for c in case.name)
    return kept


def _draw(
    lines: Sequence[Line], directory: Path, lanes_window: Window | None, errors: Console
) -> None:
    """One page about all runs. Of runs that differ in their seed alone the first has its tables
    drawn, read back from its files: no more than one run's tables are written at a time.

    Pictures that are there of other runs stay, since they may be wanted, and are spoken of.
    """
    from loadtest.plots import DrawnRun, write_page

    drawn, seen = [], set()
    for line in lines:
        run_of = (line.case.policy, *line.case.values.items())
        tables, meta = read(Path(line.files[0]).parent)
        kept = None if run_of in seen else tables
        drawn.append(DrawnRun(meta=meta, summary=line.summary, tables=kept))
        seen.add(run_of)
    written = write_page(directory, lines[0].case.scenario, drawn, lanes_window=lanes_window)
    if older := sorted(path.name for path in set(directory.glob("*.png")) - set(written)):
        errors.print(
            f"{directory}: {counted(len(older), 'picture')} there of other runs: {listed(older)}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _span_ns(text: str) -> Window:
    """`3.9:4.3` in nanoseconds."""
    try:
        begin_s, end_s = map(float, text.split(":"))
    except ValueError:
        begin_s = end_s = math.nan
    if not 0 <= begin_s < end_s < math.inf:
        raise argparse.ArgumentTypeError(
            f"FROM:TO in seconds of the run, as in 3.9:4.3, not {text!r}"
        )
    return round(begin_s * SECOND_NS), round(end_s * SECOND_NS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remontoir simulate",
        description="Play a scenario in virtual time, with the scheduler that serves.",
    )
    parser.add_argument(
        "scenario", metavar="SCENARIO.yaml", help="a file, or the name of one in loadtest/scenarios"
    )
    parser.add_argument("--policy", action="append", default=[], metavar="NAME")
    parser.add_argument("--seed", action="append", default=[], type=int, metavar="N")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE,...")
    parser.add_argument("--duration-s", type=float, metavar="S")
    parser.add_argument("--full", action="store_true", help="the scenario's full_duration_s")
    parser.add_argument("--out", metavar="DIR", help="write the tables of every run there")
    parser.add_argument("--format", choices=("parquet", "sqlite"), default="parquet")
    parser.add_argument("--plot", action="store_true", help="pictures too, beside the tables")
    parser.add_argument(
        "--lanes",
        type=_span_ns,
        metavar="FROM:TO",
        help="what the picture of the lanes shows, in seconds of the run (default: 100 ms after "
        "the warm-up)",
    )
    parser.add_argument("--bound", action="store_true", help="share of the clairvoyant bound")
    parser.add_argument("--log", metavar="FILE", help="the decision log of the one run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    return parser
