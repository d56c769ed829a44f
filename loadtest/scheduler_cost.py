"""What one event and one request cost the scheduler, in virtual time: only decisions.

Owns the experiment of the README's scheduler table: microseconds per `handle` as the fleet grows at
one rate of requests, and microseconds per request (all of `handle`, over the requests) where many
models share eight devices. Every size is run in turn, several times, so that what the machine does
in some minutes happens to all.
"""

import gc
import itertools
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from loadtest.bench import Bench
from loadtest.machine import SERVER_CPU
from loadtest.score import percentile
from loadtest.simulate import GC_THRESHOLDS
from scheduler import build
from scheduler.events import Command, Event, RequestArrived, Served
from scheduler.scheduler import Scheduler
from scheduler.simulated_worker import SimulatedWorker
from scheduler.simulation import Arrival, Observer, Simulation
from scheduler.spec import (
    MILLISECOND_NS,
    SECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    SchedulerConfig,
    ShapeProfile,
)


class Size(NamedTuple):
    """How many models, devices and requests; how long executions take, and where weights are."""

    num_models: int
    num_devices: int
    rate_per_s: float = 4000.0
    first_ns: int = 200_000
    each_ns: int = 40_000
    # Every device begins with as many models as it holds; else each model is on one device.
    is_spread: bool = False

    def __str__(self) -> str:
        return f"{self.num_models:,} x {self.num_devices}"


# Two devices must carry the rate with room to spare: at more than half, the small size would spend
# its time on queues and refusals, and a ratio to it would flatter.
SIZES = (Size(100, 2), Size(1000, 8), Size(4000, 32))
# Devices a quarter busy, so that every request is a batch of its own; and more than half busy with
# batches of several, each model's weights on several devices, which admission compares.
REQUEST_RATE = 10_000.0
LIGHT = (Size(50, 8, REQUEST_RATE), Size(500, 8, REQUEST_RATE))
BUSY = tuple(
    Size(n, 8, REQUEST_RATE, first_ns=1_200_000, each_ns=350_000, is_spread=True) for n in (50, 500)
)
SLO_NS = 100 * MILLISECOND_NS
# The part of such a run that does not count: estimates of a model on a device are made when they
# are first asked for, once in the life of a worker.
WARMUP_SHARE = 0.2
ROUNDS = 3
LOAD_NS = 8 * MILLISECOND_NS
WEIGHTS_BYTES = 100 * 2**20
PAGE_BYTES = 16 * 2**20
# 21.5 GiB: the OSDI'20 paper's V100. Holds 196 of the models.
TOTAL_PAGES = 1376
# Popularity of the i-th model: i ** -0.9, between the traces of the two papers.
SKEW = 0.9

BAR_RATIO = 1.5
# Microseconds a request, of the build that runs, by the number of models.
BAR_REQUEST_US = {50: 15.0, 500: 20.0}


class Run(msgspec.Struct, kw_only=True):
    """One simulation, but for its warm-up: durations of `handle` in µs, `request_us` their sum over
    the requests.
    """

    size: Size
    num_events: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    mean_us: float
    request_us: float
    mean_batch: float
    wall_s: float
    outcomes: dict[str, int]
    anomalies: dict[str, int]

    @property
    def num_requests(self) -> int:
        return sum(self.outcomes.values())


class Result(msgspec.Struct, kw_only=True):
    core: str
    virtual_s: float
    runs: list[Run]


def run(bench: Bench) -> Result:
    report = bench.report
    report.start(f"Scheduler cost: one event, in the simulation ({build.describe()})")
    os.sched_setaffinity(0, {SERVER_CPU})
    virtual_s = bench.seconds(5.0, 1.0)
    result = Result(core=build.describe(), virtual_s=virtual_s, runs=[])
    for number in range(1 if bench.is_quick else ROUNDS):
        for size in (*SIZES, *LIGHT, *BUSY):
            warmup_s = 0.0 if size in SIZES else WARMUP_SHARE * virtual_s
            seed = bench.seed + number
            run_ = simulate(size, virtual_s=virtual_s, seed=seed, warmup_s=warmup_s)
            result.runs.append(run_)
    _report_events(bench, result)
    _report_requests(bench, result)
    report.save("scheduler", result)
    return result


def simulate(
    size: Size,
    *,
    virtual_s: float,
    seed: int,
    warmup_s: float = 0.0,
    observer: Observer | None = None,
) -> Run:
    """One run at that size. Sizes that differ in models alone get the same instants of arrival."""
    models = [_model(f"model{index}", size) for index in range(size.num_models)]
    scheduler = Scheduler(SchedulerConfig(), models)
    durations_ns: list[int] = []
    warm_ns = int(warmup_s * SECOND_NS)
    clock_ns = _cost_of_clock_ns()

    def timed(event: Event, now: int) -> list[Command]:
        # Of the processor, not of the clock on the wall: others may want the core meanwhile.
        begin_ns = time.thread_time_ns()
        commands = scheduler.handle(event, now)
        if now >= warm_ns:
            durations_ns.append(time.thread_time_ns() - begin_ns - clock_ns)
        return commands

    simulation = Simulation(scheduler, _workers(models, size), handle=timed, observer=observer)
    arrivals = list(_arrivals(models, size.rate_per_s, virtual_s, seed))
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    begin_s = time.perf_counter()
    simulation.run(arrivals)
    wall_s = time.perf_counter() - begin_s
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    durations_us = [duration_ns / 1000 for duration_ns in durations_ns]
    outcomes = [outcome for _, outcome in simulation.outcomes.values()]
    batches = [outcome.batch_rows for outcome in outcomes if isinstance(outcome, Served)]
    return Run(
        size=size,
        num_events=len(durations_us),
        p50_us=percentile(durations_us, 50) or 0.0,
        p90_us=percentile(durations_us, 90) or 0.0,
        p99_us=percentile(durations_us, 99) or 0.0,
        max_us=max(durations_us),
        mean_us=statistics.fmean(durations_us),
        request_us=sum(durations_us) / sum(at_ns >= warm_ns for at_ns, _ in arrivals),
        # Of batches, not of requests: each batch of n counts once, though n requests report it.
        mean_batch=statistics.harmonic_mean(batches) if batches else 0.0,
        wall_s=wall_s,
        outcomes=dict(Counter(type(outcome).__name__ for outcome in outcomes)),
        anomalies=dict(scheduler.anomalies),
    )


def _cost_of_clock_ns() -> int:
    """What reading the clock adds to what is measured with it: a system call, here and there."""
    begins_ns = [(time.thread_time_ns(), time.thread_time_ns()) for _ in range(1000)]
    return int(statistics.median(end_ns - begin_ns for begin_ns, end_ns in begins_ns))


def _model(name: str, size: Size) -> ModelSpec:
    times = {rows: size.first_ns + size.each_ns * (rows - 1) for rows in (1, 2, 4, 8, 16)}
    return ModelSpec(
        name=name,
        version="1",
        content_hash=name,
        platform="simulated",
        inputs=(),
        outputs=(),
        batch_sizes=tuple(times),
        runs_exact_batch=False,
        weights_bytes=WEIGHTS_BYTES,
        profile=ModelProfile(LOAD_NS, (ShapeProfile("", 64, times),)),
    )


def _workers(models: list[ModelSpec], size: Size) -> list[SimulatedWorker]:
    device = DeviceSpec(
        kind="simulated", page_bytes=PAGE_BYTES, total_pages=TOTAL_PAGES, shares_exec_core=False
    )
    capacity = TOTAL_PAGES // models[0].num_pages(PAGE_BYTES)
    step = size.num_devices
    workers = []
    for index in range(step):
        # Its own share first; where weights are spread, the others' shares as far as there is room.
        shares = range(index, index + step) if size.is_spread else (index,)
        names = [model.name for share in shares for model in models[share % step :: step]]
        workers.append(
            SimulatedWorker(
                f"worker{index}", device, models, seed=index, noise=0.01, resident=names[:capacity]
            )
        )
    return workers


def _arrivals(
    models: list[ModelSpec], rate_per_s: float, virtual_s: float, seed: int
) -> Iterator[Arrival]:
    chance = random.Random(seed)
    names = [model.name for model in models]
    weights = list(itertools.accumulate((index + 1) ** -SKEW for index in range(len(names))))
    at_s = 0.0
    for request_id in itertools.count():
        at_s += chance.expovariate(rate_per_s)
        if at_s > virtual_s:
            return
        (name,) = chance.choices(names, cum_weights=weights)
        at_ns = MILLISECOND_NS + int(at_s * SECOND_NS)
        yield at_ns, RequestArrived(request_id, name, at_ns, at_ns + SLO_NS, elements=64)


def _report_events(bench: Bench, result: Result) -> None:
    report = bench.report
    rows: list[tuple[object, ...]] = []
    medians: dict[Size, float] = {}
    for size in SIZES:
        runs = [run for run in result.runs if run.size == size]
        medians[size] = statistics.median(run.p50_us for run in runs)
        low, high = min(run.p50_us for run in runs), max(run.p50_us for run in runs)
        rows.append(
            (
                str(size),
                *(sum(run.num_events for run in runs), medians[size], f"{low:.1f} - {high:.1f}"),
                *(statistics.median(run.p90_us for run in runs),),
                *(statistics.median(run.p99_us for run in runs),),
                *(statistics.median(run.mean_us for run in runs),),
                _served_share(runs),
            )
        )
    report.table(
        f"Microseconds per event at {SIZES[0].rate_per_s:,.0f} requests/s, "
        f"{result.virtual_s:.0f} s of virtual time, {len(runs)} rounds",
        ("models x devices", "events", "p50", "range of p50", "p90", "p99", "mean", "served"),
        rows,
        note="Medians over the rounds; sizes take turns. Events: arrivals, results, wake-ups.",
    )
    smallest, largest = SIZES[0], SIZES[-1]
    ratio = medians[largest] / medians[smallest]
    report.verdict(
        f"p50 at {largest.num_models} x {largest.num_devices} is {ratio:.2f} x that at "
        f"{smallest.num_models} x {smallest.num_devices} (bar: {BAR_RATIO})",
        is_met=ratio <= BAR_RATIO,
    )


def _report_requests(bench: Bench, result: Result) -> None:
    report = bench.report
    rows: list[tuple[object, ...]] = []
    costs: dict[Size, float] = {}
    for size in (*LIGHT, *BUSY):
        runs = [run for run in result.runs if run.size == size]
        costs[size] = statistics.median(run.request_us for run in runs)
        low, high = min(run.request_us for run in runs), max(run.request_us for run in runs)
        rows.append(
            (
                str(size),
                "busy" if size in BUSY else "light",
                *(statistics.median(run.p50_us for run in runs),),
                *(statistics.median(run.p99_us for run in runs),),
                *(costs[size], f"{low:.1f} - {high:.1f}"),
                *(statistics.median(run.mean_batch for run in runs),),
                _served_share(runs),
            )
        )
    report.table(
        f"Microseconds at {REQUEST_RATE:,.0f} requests/s, {result.core}",
        (
            "models x devices",
            "devices",
            "p50 event",
            "p99 event",
            "per request",
            "range",
            "batch",
            "served",
        ),
        rows,
        note="Per request: all of handle, over the requests. Light: a quarter busy, one copy of "
        "each model's weights. Busy: over half, as many copies as there is room for.",
    )
    for size in LIGHT:
        bar_us = BAR_REQUEST_US[size.num_models]
        report.verdict(
            f"a request at {size} costs {costs[size]:.1f} µs, {result.core} (bar: {bar_us:.0f})",
            is_met=costs[size] <= bar_us,
        )


def _served_share(runs: list[Run]) -> str:
    served = sum(run.outcomes.get(Served.__name__, 0) for run in runs)
    return f"{served / sum(run.num_requests for run in runs):.1%}"
