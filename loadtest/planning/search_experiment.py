"""`python -m loadtest.planning.search_experiment`: how many evaluations each search needs to come
within 2 % of the best. In virtual time, repeatable by seed; writes docs/measurements.

Every configuration of a space is played once, so that the best is known and a search is a walk
through a table: thirty searches of each kind cost nothing more. RRL (SC 2019) reports that it finds
its configurations eight times faster than other learners; that claim is not comparable, the
question is. Owns the workloads and the page.
"""

import argparse
import math
import random
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from loadtest.planning.question import Question
from loadtest.planning.region_search import RUNGS, STRATEGIES, Config, Space, cost_to_reach
from loadtest.planning.tuning import Host, Simulated, space_of
from loadtest.scenario import Case
from loadtest.scenario_setup import Devices, Models, Profile, Setup
from loadtest.workloads import Ask, Gamma, Poisson, SloShare, WorkloadEntry, open_loop

PAGE = Path("docs/measurements/2026-11-28-tuning.md")
PAGE_COLUMNS = 120
SEARCHES = 100  # of each kind, each with a chance of its own
WITHIN = 0.98
HOST = Host(cores=8, weights_mb=2048)
POLICIES = ("remontoir", "clockwork", "clipper", "edf")
NUM_REQUESTS = 900  # of a whole run


class Work(NamedTuple):
    """A workload and its models. `rate_per_s` is more than any but the best configurations do."""

    name: str
    models: tuple[Models, ...]
    workload: tuple[WorkloadEntry, ...]
    rate_per_s: float


def _work(name: str, models: tuple[Models, ...], *entries: WorkloadEntry) -> Work:
    rate_per_s = sum(entry.rate_per_s for entry in entries if isinstance(entry, Poisson | Gamma))
    return Work(name, models, entries, rate_per_s)


WORKS = (
    _work(
        "one model, Poisson, SLO 250 ms",
        (Models(name="m", profile=Profile(first_ms=40, each_ms=18, load_ms=20, weights_mb=90)),),
        Poisson(models="m", slo_ms=250, rate_per_s=450),
    ),
    _work(
        "eight models, bursts, SLO 150 and 600 ms",
        (
            Models(
                name="m", count=8,
                profile=Profile(first_ms=30, each_ms=12, load_ms=30, weights_mb=150),
            ),
        ),
        Gamma(
            models="m*", rate_per_s=450, cv=3, skew=0.9,
            slo_ms=(SloShare(slo_ms=150, weight=1), SloShare(slo_ms=600, weight=1)),
        ),
    ),
    _work(
        "small and large, Poisson, SLO 60 and 800 ms",
        (
            Models(
                name="small", profile=Profile(first_ms=8, each_ms=3, load_ms=5, weights_mb=20)
            ),
            Models(
                name="large",
                profile=Profile(first_ms=120, each_ms=60, load_ms=60, weights_mb=400),
            ),
        ),
        Poisson(models="small", slo_ms=60, rate_per_s=600, name="small"),
        Poisson(models="large", slo_ms=800, rate_per_s=60, name="large"),
    ),
)  # fmt: skip

Scores = dict[tuple[Config, float], float]


class Found(NamedTuple):
    """Of one workload: what a table of all says, and what each search has cost."""

    work: str
    num_configs: int
    best: Config
    best_score: float
    median_score: float
    num_good: int  # configurations within 2 %
    costs: dict[str, list[float]]


def space() -> Space:
    return space_of(HOST, policies=POLICIES)


def table_of(work: Work, configs: Sequence[Config], num_requests: int = NUM_REQUESTS) -> Scores:
    """Every configuration on every rung."""
    duration_s = num_requests / work.rate_per_s
    setup = Setup(
        duration_s=duration_s,
        models=work.models,
        workload=work.workload,
        devices=(Devices(exec_noise=0.02),),
    )
    names = [f"{m.name}{i}" if m.count > 1 else m.name for m in work.models for i in range(m.count)]
    asks: list[Ask] = list(open_loop(work.workload, duration_s=duration_s, seed=1, models=names))
    case = Case(scenario=work.name, setup=setup, duration_s=duration_s)
    with tempfile.TemporaryDirectory(prefix="remontoir-tune-") as directory:
        question = Question(case=case, source=work.name)
        score = Simulated(question, {1: asks}, HOST, Path(directory))
        return {(config, rung): score(config, rung) for config in configs for rung in RUNGS}


def searched(work: str, space: Space, scores: Scores, num_searches: int = SEARCHES) -> Found:
    """Every strategy on the table, so many times."""
    whole = {config: scores[config, 1.0] for config in space.configs}
    best = max(space.configs, key=whole.__getitem__)
    needed = WITHIN * whole[best]
    costs = {
        name: [
            cost_to_reach(
                strategy(space, lambda config, share: scores[config, share], random.Random(seed)),
                needed,
            )
            for seed in range(1 if name == "grid" else num_searches)
        ]
        for name, strategy in STRATEGIES.items()
    }
    ordered = sorted(whole.values())
    return Found(
        work=work,
        num_configs=len(space.configs),
        best=best,
        best_score=whole[best],
        median_score=ordered[len(ordered) // 2],
        num_good=sum(score >= needed for score in ordered),
        costs=costs,
    )


def page(found: Sequence[Found], command: str) -> str:
    """The page for docs/measurements."""
    blocks = [
        "# Tuning a host: how many evaluations until within 2 % of the best",
        f"`{command}`: virtual time, {SEARCHES} searches of each kind (the grid has one order); no "
        "figure is typed by hand. A host of 8 cores; workers x threads x largest batch x policy, "
        f"{found[0].num_configs} configurations without those that ask for more cores. A whole run "
        f"is {NUM_REQUESTS} requests, and the unit of cost; rungs of a ninth and a third of them "
        "cost that. The score is the share of the requests in time. Threads share 85 % of an "
        "execution (Amdahl).",
        _table(found),
        "Cost until a configuration that was tried on all requests has 98 % of the best score: the "
        "mean, and what nine of ten searches keep below. `region` begins what the scores of its "
        "neighbours speak for, by successive halving; `halving` begins what chance draws; `random` "
        "and `grid` play whole runs only. `halving` ends when all was begun: a search that had not "
        "got there by then, since a rung had sorted the best out, counts as twice the whole grid. "
        "`region` goes back to what was sorted out.",
        _verdict(found),
    ]
    wrapped = [b if b.startswith("|") else textwrap.fill(b, PAGE_COLUMNS) for b in blocks]
    return "\n\n".join(wrapped) + "\n"


def _table(found: Sequence[Found]) -> str:
    names = list(STRATEGIES)
    lines = [
        "| workload | best: workers, threads, batch, policy | in time | the median one | "
        "within 2 % | " + " | ".join(names) + " |",
        "|---" * (5 + len(names)) + "|",
    ]
    for one in found:
        costs = [_shown(one, name) for name in names]
        lines.append(
            f"| {one.work} | {', '.join(map(str, one.best))} | {one.best_score:.1%} | "
            f"{one.median_score:.1%} | {one.num_good} of {one.num_configs} | "
            + " | ".join(costs)
            + " |"
        )
    return "\n".join(lines)


def _shown(one: Found, name: str) -> str:
    costs = _finite(one, name)
    if len(costs) == 1:
        return f"{costs[0]:.0f}"
    return f"{_mean(costs):.1f}, {sorted(costs)[math.ceil(0.9 * len(costs)) - 1]:.1f}"


def _finite(one: Found, name: str) -> list[float]:
    return [min(cost, 2.0 * one.num_configs) for cost in one.costs[name]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _verdict(found: Sequence[Found]) -> str:
    said = []
    for one in found:
        region = _mean(_finite(one, "region"))
        random_, halving = (_mean(_finite(one, name)) for name in ("random", "halving"))
        said.append(
            f"{one.work}: {random_ / region:.1f} times fewer than random search, "
            f"{_finite(one, 'grid')[0] / region:.1f} than the grid, {halving / region:.1f} than "
            "halving."
        )
    return "The mean of `region`: " + " ".join(said)


def _tables(jobs: int, console: Console) -> Iterator[Scores]:
    """A table for each workload; the configurations of one are shared out over processes."""
    configs = space().configs
    parts = [configs[start :: 4 * jobs] for start in range(4 * jobs)]
    todo = [(work, part) for work in WORKS for part in parts]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        played = pool.map(table_of, [work for work, _ in todo], [part for _, part in todo])
        done = list(track(played, "playing every configuration", len(todo), console=console))
    for number in range(len(WORKS)):
        merged: Scores = {}
        for part in done[number * len(parts) : (number + 1) * len(parts)]:
            merged.update(part)
        yield merged


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.planning.search_experiment",
        description="How many evaluations each search needs, in virtual time; writes a page.",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (2)")
    parser.add_argument("--report", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args(argv)
    everything = space()
    tables = _tables(options.jobs, Console(stderr=True))
    found = [
        searched(work.name, everything, scores) for work, scores in zip(WORKS, tables, strict=True)
    ]
    command = "python -m loadtest.planning.search_experiment"
    options.report.write_text(page(found, command))
    print(f"wrote {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
