"""`remontoir tune`: which workers, threads, largest batch and policy serve some requests best.

Owns the words of the command. The requests and models are those of `remontoir plan`.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

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


def main(argv: Sequence[str] | None = None) -> None:
    """Ends with 0, or 2 where it was asked wrongly."""
    options = _parser().parse_args(argv)
    errors = Console(stderr=True, highlight=False)
    try:
        with tempfile.TemporaryDirectory(prefix="remontoir-tune-") as directory:
            space, tried = _tune(options, errors, Path(directory))
    except (ValueError, RuntimeError) as error:
        errors.print(f"remontoir: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(_rows(space, tried))).decode())
        return
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    _print(Console(highlight=False, width=width), options, space, tried)


def _tune(
    options: argparse.Namespace, errors: Console, directory: Path
) -> tuple[Space, list[Tried]]:
    _check(options)
    host = Host(
        cores=options.cores,
        weights_mb=options.weights_mb,
        parallel_share=options.parallel_share,
        measured=_measured(options.measured),
    )
    space = space_of(
        host,
        workers=_numbers(options.workers, "workers"),
        threads=_numbers(options.threads, "threads"),
        batches=_numbers(options.batches, "batches") or DEFAULT_BATCHES,
        policies=options.policy or DEFAULT_POLICIES,
    )
    score: Score
    if options.probe is not None:
        score = Probe(options.probe, DIMENSIONS)
    else:
        score = _simulated(options, host, directory)
    return space, list(_within(options, errors, space, score))


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


def _within(options: argparse.Namespace, errors: Console, space: Space, score: Score) -> Any:
    """What the strategy tries until the budget is used up."""
    strategy = STRATEGIES[options.search]
    budget = min(options.evaluations, 2.0 * len(space.configs))
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    with bars:
        task = bars.add_task("tuning", total=budget)
        for tried in strategy(space, score, random.Random(options.search_seed)):
            yield tried
            bars.update(task, completed=tried.cost, description=f"tried {_words(space, tried)}")
            if tried.cost >= budget and tried.share == 1.0:
                return


def _words(space: Space, tried: Tried) -> str:
    return ", ".join(f"{key}={value}" for key, value in space.named(tried.config).items())


def _check(options: argparse.Namespace) -> None:
    check_numbers(options, "cores", "weights_mb", "evaluations", "max_requests", "count")
    if not 0 <= options.parallel_share <= 1:
        raise ScenarioError(f"--parallel-share {options.parallel_share:g} is not in 0 ... 1")
    for policy in options.policy:
        try:
            parse(policy)
        except PolicyError as error:
            raise ScenarioError(f"--policy: {error}") from error
    sources = options.source or options.trace
    if options.probe is not None and sources:
        raise ScenarioError(f"--probe measures by itself: {sources} would not be looked at")


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
    if not is_probe:
        known = ", ".join(setting.partition("=")[0] for setting in options.measured)
        console.print(
            f"Threads share {options.parallel_share:.0%} of an execution (Amdahl)"
            + (f", but for {known}, which were measured" if known else "")
            + ": an assumption, as is that workers do not slow each other down. "
            "`compile` measures with one thread; --probe asks the machine itself.",
            soft_wrap=True,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remontoir tune",
        description="Which workers, threads, largest batch and policy serve some requests best.",
    )
    source_flags(parser)
    cores = os.cpu_count() or 1
    parser.add_argument("--cores", type=int, default=cores, metavar="N")
    parser.add_argument("--weights-mb", type=int, default=22_016, metavar="MIB")
    parser.add_argument("--workers", metavar="N,...")
    parser.add_argument("--threads", metavar="N,...")
    parser.add_argument("--batches", metavar="N,...")
    parser.add_argument("--policy", action="append", default=[], metavar="TEXT")
    parser.add_argument("--parallel-share", type=float, default=PARALLEL_SHARE, metavar="SHARE")
    parser.add_argument("--measured", action="append", default=[], metavar="THREADS=FILE")
    parser.add_argument("--probe", metavar="COMMAND")
    parser.add_argument("--search", choices=tuple(STRATEGIES), default="region")
    parser.add_argument("--search-seed", type=int, default=1, metavar="N")
    parser.add_argument("--evaluations", type=float, default=DEFAULT_BUDGET, metavar="N")
    parser.add_argument("--max-requests", type=int, default=10_000, metavar="N")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()
