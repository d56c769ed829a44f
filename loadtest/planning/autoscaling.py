"""`python -m loadtest.planning.autoscaling`: the gateway's advice over a day with bursts, beside a
rule that reacts and an oracle. In virtual time, repeatable by seed; writes docs/measurements.

The comparison is MArk's (Zhang et al., ATC 2019, section 6): what a forecast saves, in device-hours
and in requests that were in time. Owns the day and the page.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from loadtest.planning.autoscalers import Oracle, Predictive, Reactive, Static, devices_for
from loadtest.planning.environment import Episode, FleetEnv, Policy, play
from loadtest.planning.guard import Guarded
from loadtest.results.intervals import interval
from loadtest.scenario import Case
from loadtest.scenario_setup import Devices, Models, Profile, Setup
from loadtest.stage import models_of
from loadtest.workloads import Diurnal, Poisson, open_loop

PAGE = Path("docs/measurements/2026-11-28-autoscaling.md")
PAGE_COLUMNS = 120
SEEDS = (1, 2, 3)
TARGET = 0.7  # utilisation; the gateway's default (gateway/config.py)
INTERVAL_S = 15.0  # how often Kubernetes looks
LAUNCHES_S = (30.0, 120.0, 300.0)
MAX_DEVICES = 24
# A day in an hour, twice: what counts is how a launch compares with the slope, not the hours.
PERIOD_S, DURATION_S = 1800.0, 3600.0
MEAN_PER_S, AMPLITUDE = 14.0, 0.7
BURST_PER_S = 20.0
BURSTS_S = ((700.0, 820.0), (1750.0, 1810.0), (2900.0, 3080.0))
# Half a second alone, a second for eight: slow, so that few requests make a fleet.
MODEL = Profile(first_ms=400, each_ms=85, load_ms=200, weights_mb=400)
SLO_MS = 4000.0
CAP = COST_CAP = 0.02
POLICIES = ("static peak", "reactive", "predictive", "oracle", "guarded zero")


class Job(NamedTuple):
    """One run; it crosses processes."""

    policy: str
    launch_s: float
    seed: int
    duration_s: float


class Row(NamedTuple):
    policy: str
    launch_s: float
    episodes: list[Episode]


def day(seed: int, duration_s: float = DURATION_S) -> Case:
    bursts = tuple(
        Poisson(
            models="m", slo_ms=SLO_MS, rate_per_s=BURST_PER_S, start_s=begin_s, stop_s=end_s,
            name=f"burst{number}",
        )
        for number, (begin_s, end_s) in enumerate(BURSTS_S)
        if begin_s < duration_s
    )  # fmt: skip
    wave = Diurnal(
        models="m", slo_ms=SLO_MS, rate_per_s=MEAN_PER_S, amplitude=AMPLITUDE, period_s=PERIOD_S,
        name="wave",
    )  # fmt: skip
    setup = Setup(
        duration_s=duration_s,
        models=(Models(name="m", profile=MODEL, max_batch=8),),
        workload=(wave, *bursts),
        devices=(Devices(count=3, pages=64, exec_noise=0.02),),
    )
    return Case(scenario="day", setup=setup, seed=seed, duration_s=duration_s)


def run(job: Job) -> Episode:
    case = day(job.seed, job.duration_s)
    models = models_of(case.setup)
    asks = list(
        open_loop(
            case.setup.workload, duration_s=case.duration_s, seed=case.seed,
            models=[model.name for model in models],
        )
    )  # fmt: skip
    env = FleetEnv(
        case,
        interval_s=INTERVAL_S,
        launch_s=job.launch_s,
        max_devices=MAX_DEVICES,
        target_utilisation=TARGET,
        asks=asks,
    )
    ahead_s = job.launch_s + INTERVAL_S
    oracle = Oracle(asks, models, target=TARGET, ahead_s=ahead_s, max_devices=MAX_DEVICES)
    return play(env, _policy(job, oracle))


def rows(
    seeds: Sequence[int] = SEEDS,
    launches_s: Sequence[float] = LAUNCHES_S,
    *,
    duration_s: float = DURATION_S,
    jobs: int = 1,
    console: Console | None = None,
) -> list[Row]:
    todo = [Job(p, s, seed, duration_s) for s in launches_s for p in POLICIES for seed in seeds]
    episodes = list(_done(todo, jobs, console or Console(stderr=True)))
    found: list[Row] = []
    for index in range(0, len(todo), len(seeds)):
        job = todo[index]
        found.append(Row(job.policy, job.launch_s, episodes[index : index + len(seeds)]))
    return found


def page(found: Sequence[Row], command: str) -> str:
    """The page for docs/measurements."""
    blocks = [
        "# Autoscaling: the gateway's forecast, a rule that reacts, an oracle",
        f"`{command}`: virtual time, {len(found[0].episodes)} seeds, each figure with half of a "
        "95 % interval (Student's t); no figure is typed by hand.",
        f"A wave between {MEAN_PER_S * (1 - AMPLITUDE):.0f} and "
        f"{MEAN_PER_S * (1 + AMPLITUDE):.0f} requests/s with a period of {PERIOD_S / 60:.0f} "
        f"minutes, for {DURATION_S / 60:.0f} minutes, and {len(BURSTS_S)} bursts of "
        f"{BURST_PER_S:.0f}/s more that last one to three minutes. One model, 0.4 s alone and 1 s "
        f"in a batch of eight; SLO {SLO_MS / 1000:.0f} s. All aim at {TARGET:.0%} utilisation, "
        f"look every {INTERVAL_S:.0f} s, and have fewer devices only when nothing wanted more for "
        "five minutes (as Kubernetes' autoscaler does), but for the oracle, which knows every "
        "request beforehand. A device is paid for from when it is asked for.",
        _table(found),
        "`reactive` is Kubernetes' rule on the load that is offered now; `predictive` follows "
        "`remontoir_recommended_devices` (scheduler/scaling.py: the forecast one launch ahead and "
        "what it is usually wrong by); `static peak` has always what the wave's and a burst's peak "
        "need together. `guarded zero` is a policy that wants no device at all, held by `reactive` "
        f"with a cap of {CAP:.0%} on what it may lose: what it loses beside `reactive` is in the "
        "last column, in percent of the requests.",
        _verdict(found),
    ]
    wrapped = [b if b.startswith("|") else textwrap.fill(b, PAGE_COLUMNS) for b in blocks]
    return "\n\n".join(wrapped) + "\n"


def _policy(job: Job, oracle: Oracle) -> Policy:
    match job.policy:
        case "static peak":
            per_device = 8 / ((400 + 7 * 85) / 1000)
            peak_per_s = MEAN_PER_S * (1 + AMPLITUDE) + BURST_PER_S
            return Static(min(MAX_DEVICES, devices_for(peak_per_s / per_device, TARGET)))
        case "reactive":
            return Reactive(target=TARGET, max_devices=MAX_DEVICES)
        case "predictive":
            return Predictive(max_devices=MAX_DEVICES)
        case "oracle":
            return oracle
        case _:
            return Guarded(
                Static(0),
                Reactive(target=TARGET, max_devices=MAX_DEVICES),
                cap=CAP,
                cost_cap=COST_CAP,
                interval_s=INTERVAL_S,
                launch_s=job.launch_s,
            )


def _done(todo: Sequence[Job], jobs: int, console: Console) -> Iterator[Episode]:
    shown = {"description": "autoscaling", "total": len(todo), "console": console}
    if jobs == 1:
        yield from track(map(run, todo), **shown)  # type: ignore[arg-type]
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from track(pool.map(run, todo), **shown)  # type: ignore[arg-type]


def _table(found: Sequence[Row]) -> str:
    lines = [
        "| a launch takes | policy | in time | device-hours | of the oracle's | most devices | "
        "lost beside `reactive` |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        oracle, reactive = _of(found, "oracle", row.launch_s), _of(found, "reactive", row.launch_s)
        hours = [episode.device_hours for episode in row.episodes]
        shares = [
            mine.device_hours / theirs.device_hours
            for mine, theirs in zip(row.episodes, oracle.episodes, strict=True)
        ]
        lost = [
            100 * (theirs.good - mine.good) / mine.requests
            for mine, theirs in zip(row.episodes, reactive.episodes, strict=True)
        ]
        most = max(episode.most_devices for episode in row.episodes)
        attained = _figure([100 * episode.attained for episode in row.episodes], 2)
        lines.append(
            f"| {row.launch_s:.0f} s | {row.policy} | {attained} % | {_figure(hours, 2)} | "
            f"{_figure(shares, 2)} x | {most} | {_figure(lost, 2)} % |"
        )
    return "\n".join(lines)


def _verdict(found: Sequence[Row]) -> str:
    said = []
    for launch_s in dict.fromkeys(row.launch_s for row in found):
        reactive, predictive = _of(found, "reactive", launch_s), _of(found, "predictive", launch_s)
        missed = [sum(e.missed for e in row.episodes) for row in (reactive, predictive)]
        hours = [sum(e.device_hours for e in row.episodes) for row in (reactive, predictive)]
        change = hours[1] / hours[0] - 1
        said.append(
            f"With launches of {launch_s:.0f} s the forecast misses {missed[1]:,} requests where "
            f"the reaction misses {missed[0]:,}, for {abs(change):.0%} "
            f"{'more' if change > 0 else 'fewer'} device-hours."
        )
    return " ".join(said)


def _of(found: Sequence[Row], policy: str, launch_s: float) -> Row:
    return next(row for row in found if (row.policy, row.launch_s) == (policy, launch_s))


def _figure(values: Sequence[float], digits: int) -> str:
    mean = sum(values) / len(values)
    if len(values) < 3:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {interval(values).half_width:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.planning.autoscaling",
        description="Autoscaling over a day with bursts, in virtual time; writes a page.",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (2)")
    parser.add_argument("--report", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args(argv)
    found = rows(jobs=options.jobs)
    options.report.write_text(page(found, "python -m loadtest.planning.autoscaling"))
    print(f"wrote {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
