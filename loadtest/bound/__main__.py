"""`remontoir bound SCENARIO.yaml`: the most that any scheduler could serve of its runs, as a table.

Owns the words of the command and what it prints. What the numbers mean: of_case.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from loadtest.bound.of_case import MAX_REQUESTS, Bound, bound_of
from loadtest.scenario import Case, ScenarioError, Value, load

PIPE_WIDTH = 200  # tables that go into a file or a pipe must not be cut to 80 columns
SCENARIOS = Path(__file__).parent.parent / "scenarios"
FIGURES = (
    "requests", "most", "attained", "goodput/s", "closed/s", "found", "gap", "window s", "steps",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m loadtest.bound`. Ends with 2 where it was asked wrongly."""
    options = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    errors = Console(stderr=True, highlight=False)
    try:
        cases = _cases(options)
        bounds = [_bound(case, options, errors) for case in cases]
    except (ScenarioError, ValueError) as error:
        errors.print(f"remontoir: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        errors.print(f"remontoir: {error}: a bound needs the extra `simulate`", markup=False)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    _print(console, cases, bounds)


def _cases(options: argparse.Namespace) -> list[Case]:
    """One of those that differ in their policy alone, which no bound asks for."""
    path = Path(options.scenario)
    ours = SCENARIOS / f"{options.scenario}.yaml"
    if not path.exists() and path.name == options.scenario and ours.exists():
        path = ours
    return load(path).expand(
        policies=["remontoir"],
        seeds=options.seed,
        variables=_variables(options.set),
        duration_s=options.duration_s,
        is_full=options.full,
    )


def _variables(settings: Sequence[str]) -> dict[str, list[Value]]:
    variables: dict[str, list[Value]] = {}
    for setting in settings:
        name, separator, values = setting.partition("=")
        if not separator or not name or not values:
            raise ValueError(f"--set takes NAME=VALUE or NAME=VALUE,VALUE, not {setting!r}")
        variables[name] = [yaml.safe_load(value) for value in values.split(",")]
    return variables


def _bound(case: Case, options: argparse.Namespace, errors: Console) -> Bound:
    with errors.status(f"bound of {case.name}"):
        return bound_of(
            case,
            max_requests=options.window,
            from_s=options.from_s,
            iterations=options.iterations,
        )


def _print(console: Console, cases: Sequence[Case], bounds: Sequence[Bound]) -> None:
    variables = list(dict.fromkeys(name for case in cases for name in case.values))
    table = Table(title=cases[0].scenario, title_justify="left")
    for heading in (*variables, "seed"):
        table.add_column(heading, no_wrap=True)
    for heading in FIGURES:
        table.add_column(heading, justify="right", no_wrap=True)
    for case, bound in zip(cases, bounds, strict=True):
        table.add_row(
            *(str(case.values.get(name, "")) for name in variables),
            str(case.seed),
            f"{bound.num_requests:,}",
            f"{bound.most:,}" + " (LOADs)" * bound.counts_loads,
            "-" if bound.attainment is None else f"{bound.attainment:.3%}",
            f"{bound.goodput_per_s:,.1f}",
            f"{bound.closed_per_s:,.1f}" if bound.closed_per_s else "-",
            "-" if bound.gap is None else f"{bound.found:,}",
            "-" if bound.gap is None else f"{bound.gap:.1%}",
            f"{bound.from_s:g}-{bound.until_s:.3f}" + " (a part)" * (not bound.is_whole),
            str(bound.iterations),
        )
    console.print(table)
    console.print(_notes(cases, bounds), markup=False)


def _notes(cases: Sequence[Case], bounds: Sequence[Bound]) -> str:
    notes = ["No scheduler serves more than `most` in time; a schedule that serves `found` exists."]
    if not all(bound.is_whole for bound in bounds):
        notes.append(
            "A part: of so many requests only, from the first on; --window and --from-s choose."
        )
    if any(bound.closed_per_s for bound in bounds):
        notes.append("Closed loops ask as they are answered: closed/s is their ceiling in all.")
    if any(_is_noisy(case) for case in cases):
        notes.append("Durations are the profiles' own: noise may help a run by what it averages.")
    return "\n".join(notes)


def _is_noisy(case: Case) -> bool:
    return any(devices.exec_noise > 0 for devices in case.setup.devices)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remontoir bound",
        description="The most that any scheduler, even one that knew all arrivals, could serve.",
    )
    parser.add_argument(
        "scenario", metavar="SCENARIO.yaml", help="a file, or the name of one in loadtest/scenarios"
    )
    parser.add_argument("--window", type=_positive, default=MAX_REQUESTS, metavar="REQUESTS")
    parser.add_argument("--from-s", type=float, metavar="S", help="where it begins")
    parser.add_argument("--iterations", type=_positive, metavar="N", help="more is lower")
    parser.add_argument("--seed", action="append", default=[], type=int, metavar="N")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE,...")
    parser.add_argument("--duration-s", type=float, metavar="S")
    parser.add_argument("--full", action="store_true", help="the scenario's full_duration_s")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    main()
