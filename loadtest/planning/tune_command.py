"""`remontoir tune`: which workers, threads, largest batch and policy serve some requests best.

Owns the words of the command. The requests and models are those of `remontoir plan`, or those of a
benchmark's job, under which each configuration is then measured live.
"""

import argparse
import os
import random
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from loadtest.driver.job_file import JobFile, load
from loadtest.planning.evaluate import Asks
from loadtest.planning.peak import Demand, cut, demand_of, warmup_s_of
from loadtest.planning.plan_command import check_numbers, question_of, source_flags, with_noise
from loadtest.planning.plan_report import percent
from loadtest.planning.region_search import STRATEGIES, Score, Space, Tried
from loadtest.planning.tuning import (
    DEFAULT_BATCHES,
    DEFAULT_POLICIES,
    DIMENSIONS,
    PARALLEL_SHARE,
    Host,
    Probe,
    Simulated,
    space_of,
)
from loadtest.scenario import ScenarioError
from loadtest.workloads import Ask
from scheduler.policies import PolicyError, parse
from scheduler.spec import SECOND_NS, ModelSpec

DEFAULT_BUDGET = 20.0
NUM_SHOWN = 10
PIPE_WIDTH = 140
RESULTS = "bench-results"
# Evaluations for the cost of a whole run, by the rungs of a round (region_search.py).
PER_RUN = {"region": 14 / 4, "halving": 13 / 3}
# What measures by itself does not look at.
OF_REQUESTS = (
    *("source", "trace", "catalogue", "profile", "set", "seed", "measured"),
    *("slo_ms", "rate_per_s", "scale", "duration_s", "exec_noise"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Ends with 0, with 2 where it was asked wrongly, or with 130 after Ctrl-C, which shows what
    was tried until then.
    """
    options = _parser().parse_args(argv)
    errors = Console(stderr=True, highlight=False)
    tried: list[Tried] = []
    code = 0
    try:
        _check(options)
        job = None if options.job is None else load(options.job)
        host = _host(options, job)
        space = space_of(
            host,
            workers=_numbers(options.workers, "workers"),
            threads=_numbers(options.threads, "threads"),
            batches=_numbers(options.batches, "batches") or DEFAULT_BATCHES,
            policies=options.policy or DEFAULT_POLICIES,
        )
        budget = min(options.evaluations, 2.0 * len(space.configs))
        try:
            with _Shown(errors, budget) as shown, _scores(options, job, host, shown) as score:
                if job is not None:
                    shown.say(_will_take(options, job, space, budget))
                for one in _within(options, space, score, budget):
                    tried.append(one)
                    shown.tried(one, space)
        except KeyboardInterrupt:
            code = 130
    except (ValueError, RuntimeError) as error:
        errors.print(f"remontoir: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
    if tried and options.json:
        print(msgspec.json.format(msgspec.json.encode(_rows(space, tried))).decode())
    elif tried:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        _print(Console(highlight=False, width=width), options, space, tried)
    if code:
        raise SystemExit(code)


def _host(options: argparse.Namespace, job: JobFile | None) -> Host:
    cores = options.cores
    if job is not None:
        from loadtest.planning.live import num_cores_of

        there = num_cores_of(job)
        if cores is not None and cores > there:
            raise ScenarioError(f"--cores {cores}: {options.job} gives its server {there}")
        cores = cores or there
    return Host(
        cores=cores or os.cpu_count() or 1,
        weights_mb=options.weights_mb,
        parallel_share=options.parallel_share,
        measured=_measured(options.measured),
    )


@contextmanager
def _scores(
    options: argparse.Namespace, job: JobFile | None, host: Host, shown: "_Shown"
) -> Iterator[Score]:
    if options.probe is not None:
        yield Probe(options.probe, DIMENSIONS)
    elif job is not None:
        from loadtest.driver.run import Progress
        from loadtest.planning.live import live

        progress = Progress(say=shown.say, step=shown.step, done=lambda *_: None)
        with live(job, options.results, progress) as score:
            yield score
    else:
        with tempfile.TemporaryDirectory(prefix="remontoir-tune-") as directory:
            yield _simulated(options, host, Path(directory))


def _will_take(options: argparse.Namespace, job: JobFile, space: Space, budget: float) -> str:
    loads_s = sum(case.job.duration_s for case in job.cases)
    around_s = job.estimated_s() - loads_s
    number = budget * PER_RUN.get(options.search, 1.0)
    minutes = (budget * loads_s + number * around_s) / 60
    return (
        f"{len(space.configs)} configurations, measured live on CPU(s) "
        f"{job.cases[0].job.target.cpus}: {budget:g} whole runs (--evaluations) of {loads_s:g} s, "
        f"and a start of the server for each of some {number:.0f}, take about {minutes:.0f} "
        "minutes; Ctrl-C shows what is known by then"
    )


def _simulated(options: argparse.Namespace, host: Host, directory: Path) -> Score:
    # The policy is one of the space's: a scenario's own does not matter.
    asked = argparse.Namespace(**{**vars(options), "policy": None})
    question = with_noise(question_of(asked, directory), options.exec_noise)
    if question.is_closed:
        raise ScenarioError(
            f"{question.source}: clients in closed loops ask a faster host for more; tune needs "
            "open ones"
        )
    demand = demand_of(question, max_requests=options.max_requests)
    seeds = options.seed or [1]
    asks: Asks = {seed: _counted(cut(question, demand, seed), demand) for seed in seeds}
    # A ninth of the requests is to be a ninth of the work, and all of it to count: no warm-up.
    setup = msgspec.structs.replace(
        question.case.setup,
        warmup_s=0.0,
        duration_s=demand.end_s - demand.begin_s,
        full_duration_s=None,
    )
    case = msgspec.structs.replace(question.case, setup=setup, duration_s=setup.duration_s)
    played = msgspec.structs.replace(question, case=case)
    return Simulated(played, asks, host, directory)


def _counted(played: Iterable[Ask], demand: Demand) -> list[Ask]:
    """Without the warm-up before the stretch, from instant 0 on."""
    begin_ns = round(warmup_s_of(demand) * SECOND_NS)
    return [ask._replace(at_ns=ask.at_ns - begin_ns) for ask in played if ask.at_ns >= begin_ns]


def _within(
    options: argparse.Namespace, space: Space, score: Score, budget: float
) -> Iterator[Tried]:
    """What the strategy tries until the budget is used up."""
    strategy = STRATEGIES[options.search]
    for tried in strategy(space, score, random.Random(options.search_seed)):
        yield tried
        if tried.cost >= budget and tried.share == 1.0:
            return


class _Shown:
    """How far the search is, on a terminal's stderr."""

    def __init__(self, errors: Console, budget: float) -> None:
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._errors = errors
        self._task = self._bars.add_task("tuning", total=budget)

    def __enter__(self) -> "_Shown":
        self._bars.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._errors.print(f"remontoir: {text}", style="yellow", markup=False, soft_wrap=True)

    def step(self, text: str) -> None:
        self._bars.update(self._task, description=text[:90])

    def tried(self, tried: Tried, space: Space) -> None:
        words = ", ".join(f"{key}={value}" for key, value in space.named(tried.config).items())
        self._bars.update(self._task, completed=tried.cost, description=f"tried {words}")


def _check(options: argparse.Namespace) -> None:
    check_numbers(options, "weights_mb", "evaluations", "max_requests", "count")
    if options.cores is not None and options.cores < 1:
        raise ScenarioError(f"--cores {options.cores} is not positive")
    if not 0 <= options.parallel_share <= 1:
        raise ScenarioError(f"--parallel-share {options.parallel_share:g} is not in 0 ... 1")
    for policy in options.policy:
        try:
            parse(policy)
        except PolicyError as error:
            raise ScenarioError(f"--policy: {error}") from error
    ways = [way for way in ("probe", "job") if getattr(options, way) is not None]
    if len(ways) > 1:
        raise ScenarioError("--probe and --job: only one of them measures")
    for way in ways:
        for name in OF_REQUESTS:
            if given := getattr(options, name):
                raise ScenarioError(
                    f"--{way} measures by itself: {name.replace('_', '-')} {given} would not be "
                    "looked at"
                )


def _numbers(text: str | None, flag: str) -> list[int]:
    if text is None:
        return []
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise ScenarioError(f"--{flag} takes numbers from 1 on, as in 1,2,4; not {text!r}")
    return numbers


def _measured(settings: Sequence[str]) -> dict[int, list[ModelSpec]]:
    """`4=catalogue.json`: the models as they were measured with four threads."""
    found: dict[int, list[ModelSpec]] = {}
    for setting in settings:
        threads, separator, file = setting.partition("=")
        if not separator or not threads.isdecimal() or not int(threads):
            raise ScenarioError(f"--measured takes THREADS=FILE, not {setting!r}")
        try:
            found[int(threads)] = msgspec.json.decode(Path(file).read_bytes(), type=list[ModelSpec])
        except OSError as error:
            raise ScenarioError(f"--measured {file}: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise ScenarioError(f"--measured {file}: {error}") from error
    return found


def _rows(space: Space, tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Each configuration by the most requests that it was tried on; the best first."""
    last = {one.config: one for one in tried}
    ordered = sorted(last.values(), key=lambda one: (-one.share, -one.score))
    return [{**space.named(o.config), "share": o.share, "score": o.score} for o in ordered]


def _print(
    console: Console, options: argparse.Namespace, space: Space, tried: Sequence[Tried]
) -> None:
    rows = _rows(space, tried)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in space.names:
        table.add_column(name.replace("_", " "), justify="right")
    is_probe = options.probe is not None
    table.add_column("score" if is_probe else "in time", justify="right")
    table.add_column("of the requests", justify="right")
    for row in rows[:NUM_SHOWN]:
        shown = f"{row['score']:g}" if is_probe else percent(row["score"])
        table.add_row(*(str(row[name]) for name in space.names), shown, f"{row['share']:.0%}")
    console.print(table)
    whole = sum(row["share"] == 1.0 for row in rows)
    console.print(
        f"{len(rows)} of {len(space.configs)} configurations were tried, {whole} on all requests, "
        f"for the cost of {tried[-1].cost:.1f} whole runs ({options.search}).",
        soft_wrap=True,
    )
    console.print(_best(rows[0]), markup=False, soft_wrap=True)
    more = sum(row["share"] < 1.0 and row["score"] > rows[0]["score"] for row in rows)
    if more:
        console.print(
            f"{more} of the others scored more on fewer requests: that may be their luck, or a "
            "queue that had not grown yet; more --evaluations tell.",
            soft_wrap=True,
        )
    if options.job is not None:
        console.print(
            f"Measured by requests to `remontoir serve`; whole runs are in {options.results} "
            "(remontoir bench report). Another run of the same differs a little: of two that are "
            "close, either may be the better.",
            markup=False,
            soft_wrap=True,
        )
    elif not is_probe:
        known = ", ".join(setting.partition("=")[0] for setting in options.measured)
        console.print(
            f"Threads share {options.parallel_share:.0%} of an execution (Amdahl)"
            + (f", but for {known}, which were measured" if known else "")
            + ": an assumption, as is that workers do not slow each other down. `remontoir "
            "compile --intra-op-threads N --catalog-out FILE` measures the first (--measured "
            "N=FILE), --job both.",
            soft_wrap=True,
        )


def _best(row: dict[str, Any]) -> str:
    """How a gateway is told the first of them."""
    if row["share"] < 1.0:
        return "None was tried on all requests: give it more --evaluations."
    command = ["remontoir", "serve", "--models", "DIR", "--workers", str(row["workers"])]
    command += ["--intra-op-threads", str(row["threads"]), "--policy", row["policy"]]
    return (
        f"The best of them: {shlex.join(command)}, with `max_batch_size: {row['max_batch']}` in "
        "each model's config.yaml."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remontoir tune",
        description="Which workers, threads, largest batch and policy serve some requests best.",
    )
    source_flags(parser)
    parser.add_argument("--cores", type=int, metavar="N")
    parser.add_argument("--weights-mb", type=int, default=22_016, metavar="MIB")
    parser.add_argument("--workers", metavar="N,...")
    parser.add_argument("--threads", metavar="N,...")
    parser.add_argument("--batches", metavar="N,...")
    parser.add_argument("--policy", action="append", default=[], metavar="TEXT")
    parser.add_argument("--parallel-share", type=float, default=PARALLEL_SHARE, metavar="SHARE")
    parser.add_argument("--measured", action="append", default=[], metavar="THREADS=FILE")
    parser.add_argument("--probe", metavar="COMMAND")
    parser.add_argument("--job", metavar="JOB.yaml")
    parser.add_argument("--results", default=RESULTS, metavar="PLACE")
    parser.add_argument("--search", choices=tuple(STRATEGIES), default="region")
    parser.add_argument("--search-seed", type=int, default=1, metavar="N")
    parser.add_argument("--evaluations", type=float, default=DEFAULT_BUDGET, metavar="N")
    parser.add_argument("--max-requests", type=int, default=10_000, metavar="N")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()
