"""`python -m loadtest.experiments`: play the papers' experiments and write the report."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loadtest.experiments.jobs import Experiment, Job, Length, Record
from loadtest.experiments.records import Records
from loadtest.experiments.registry import EXPERIMENTS
from loadtest.experiments.report import write_report
from loadtest.experiments.runner import Runner, Store
from loadtest.scenario import ScenarioError

FASTER = """An editable install has the pure Python core. With the compiled one it is faster:
  python3 -m venv FAST && FAST/bin/pip install ".[simulate]"
  FAST/bin/python -P -m loadtest.experiments   (-P: not the sources in this folder)"""
REPORT = Path("docs/measurements/scheduler.md")


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all ran, whatever was met; 2 for a question that makes no sense."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.verbose and not options.list:
        parser.error("--verbose goes with --list")
    console = Console(stderr=True, highlight=False)
    length = Length.FULL if options.full else Length.QUICK if options.quick else Length.DEFAULT
    try:
        chosen = _chosen(options.only)
        jobs = [job for experiment in chosen for job in experiment.jobs(length)]
    except (ScenarioError, ValueError) as error:
        console.print(f"experiments: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    if options.list:
        _list(chosen, jobs, is_verbose=options.verbose)
        return 0
    out_dir = Path(options.out)
    store = Store(out_dir)
    runner = Runner(store, num_jobs=options.jobs, resumes=options.resume, console=console)
    begin_s = time.monotonic()
    try:
        records = runner.do(jobs, lambda known: _more(chosen, known, length))
    except KeyboardInterrupt:
        console.print("broken off; --resume goes on from here")
        return 130
    is_whole = not options.only and length is not Length.QUICK
    path = options.report or (REPORT if is_whole else out_dir / "scheduler.md")
    verdicts = write_report(
        path,
        chosen,
        records,
        pictures_dir=store.pictures,
        length=length,
        command=shlex.join(["python", "-m", "loadtest.experiments", *(argv or sys.argv[1:])]),
        took_s=time.monotonic() - begin_s,
    )
    for verdict in verdicts:
        print(f"{verdict.experiment:4} {verdict.word:12} {verdict.what}: {verdict.detail}")
    print(f"wrote {path}")
    return 0


def _more(chosen: Sequence[Experiment], known: Sequence[Record], length: Length) -> list[Job]:
    found: list[Job] = []
    for experiment in chosen:
        if experiment.more_jobs is not None:
            own = Records(record for record in known if record.experiment == experiment.number)
            found += experiment.more_jobs(own, length)
    return found


def _chosen(only: Sequence[str]) -> list[Experiment]:
    numbers = [number for text in only for number in text.split(",")]
    known = [experiment.number for experiment in EXPERIMENTS]
    for number in numbers:
        if number not in known:
            raise ValueError(f"no experiment {number!r}; there are {', '.join(known)}")
    return [e for e in EXPERIMENTS if not numbers or e.number in numbers]


def _list(chosen: Sequence[Experiment], jobs: Sequence[Job], *, is_verbose: bool) -> None:
    """How much there is of every scenario; `is_verbose`: every job."""
    if is_verbose:
        for job in jobs:
            print(f"{job.case.duration_s:8.1f} virtual s  {job.name}")
    else:
        scenarios: dict[tuple[str, str], list[Job]] = {}
        for job in jobs:
            scenarios.setdefault((job.experiment, job.case.scenario), []).append(job)
        for (number, scenario), of_scenario in scenarios.items():
            print(f"{number:5} {scenario:20} {_amount(of_scenario)}")
    print(f"{'all':26} {_amount(jobs)}")
    if later := [experiment.number for experiment in chosen if experiment.more_jobs is not None]:
        print(f"Of {', '.join(later)} there will be more, which depends on what these find.")


def _amount(jobs: Sequence[Job]) -> str:
    """A measurement of cost is a run, too; a bound plays nothing."""
    runs = [job for job in jobs if job.kind != "bound"]
    virtual_s = sum(job.case.duration_s for job in runs)
    return f"{len(runs):5} runs {len(jobs) - len(runs):5} bounds {virtual_s:8,.0f} virtual s"


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {e.number:5} {e.title}" for e in EXPERIMENTS)
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.experiments",
        description="Plays the papers' experiments in virtual time and writes "
        "docs/measurements/scheduler.md.",
        epilog=f"experiments:\n{listed}\n\n{FASTER}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", default=[], metavar="N", help="6.1 or 6.1,7")
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument("--full", action="store_true", help="the papers' lengths: many hours")
    lengths.add_argument("--quick", action="store_true", help="one seed, little time: does it run?")
    parser.add_argument("--jobs", type=_positive, default=2, metavar="N", help="runs at a time (2)")
    parser.add_argument(
        "--out", default="bench-results/experiments", metavar="DIR", help="records of the runs"
    )
    parser.add_argument("--resume", action="store_true", help="keep what --out has already")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="the page (default: docs/measurements/scheduler.md if all is run, else in --out)",
    )
    parser.add_argument("--list", action="store_true", help="only say what would be played")
    parser.add_argument("--verbose", action="store_true", help="with --list: every single run")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of runs, from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
