"""What one event costs the scheduler, in virtual time: no sockets, no model, only decisions.

Owns the experiment of the README's scheduler table: microseconds per `handle` at three sizes and
one rate of requests. Every size is run in turn, several times, so that what the machine does in
some minutes happens to all.
"""

import gc
import itertools
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator

import msgspec

from loadtest.bench import Bench
from loadtest.machine import SERVER_CPU
from loadtest.score import percentile
from scheduler.events import Command, Event, RequestArrived, Served
from scheduler.scheduler import Scheduler
from scheduler.simulation import Arrival, SimulatedWorker, Simulation
from scheduler.spec import (
    MILLISECOND_NS,
    SECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    SchedulerConfig,
    ShapeProfile,
)

SIZES = ((100, 2), (1000, 8), (4000, 32))  # models, devices
RATE_PER_S = 4000.0
SLO_NS = 100 * MILLISECOND_NS
ROUNDS = 3
# Two devices must carry the rate with room to spare: at more than half, the small size would spend
# its time on queues and refusals, and a ratio to it would flatter.
EXEC_FIRST_NS, EXEC_EACH_NS = 200_000, 40_000
LOAD_NS = 8 * MILLISECOND_NS
WEIGHTS_BYTES = 100 * 2**20
PAGE_BYTES = 16 * 2**20
# 21.5 GiB: the OSDI'20 paper's V100. Holds 196 of the models.
TOTAL_PAGES = 1376
# Popularity of the i-th model: i ** -0.9, between the traces of the two papers.
SKEW = 0.9

BAR_RATIO = 1.5


class Run(msgspec.Struct, kw_only=True):
    """One simulation. Durations of `handle` in microseconds."""

    num_models: int
    num_devices: int
    num_events: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    mean_us: float
    wall_s: float
    outcomes: dict[str, int]
    anomalies: dict[str, int]


class Result(msgspec.Struct, kw_only=True):
    rate_per_s: float
    virtual_s: float
    runs: list[Run]


def run(bench: Bench) -> Result:
    report = bench.report
    report.start("Scheduler cost: one event, in the simulation")
    os.sched_setaffinity(0, {SERVER_CPU})
    virtual_s = bench.seconds(5.0, 1.0)
    result = Result(rate_per_s=RATE_PER_S, virtual_s=virtual_s, runs=[])
    for number in range(1 if bench.is_quick else ROUNDS):
        for num_models, num_devices in SIZES:
            seed = bench.seed + number
            result.runs.append(simulate(num_models, num_devices, virtual_s=virtual_s, seed=seed))
    _report(bench, result)
    return result


def simulate(num_models: int, num_devices: int, *, virtual_s: float, seed: int) -> Run:
    """The same arrivals at every size, over so many models."""
    models = [_model(f"model{index}") for index in range(num_models)]
    scheduler = _TimedScheduler(SchedulerConfig(), models)
    device = DeviceSpec(
        kind="simulated", page_bytes=PAGE_BYTES, total_pages=TOTAL_PAGES, shares_exec_core=False
    )
    capacity = TOTAL_PAGES // models[0].num_pages(PAGE_BYTES)
    workers = [
        SimulatedWorker(
            f"worker{index}",
            device,
            models,
            seed=index,
            noise=0.01,
            resident=[model.name for model in models[index::num_devices][:capacity]],
        )
        for index in range(num_devices)
    ]
    simulation = Simulation(scheduler, workers)
    arrivals = list(_arrivals(models, virtual_s, seed))
    gc.collect()
    gc.freeze()
    begin_s = time.perf_counter()
    simulation.run(arrivals)
    wall_s = time.perf_counter() - begin_s
    gc.unfreeze()
    durations_us = [duration_ns / 1000 for duration_ns in scheduler.durations_ns]
    kinds = Counter(type(outcome).__name__ for _, outcome in simulation.outcomes.values())
    return Run(
        num_models=num_models,
        num_devices=num_devices,
        num_events=len(durations_us),
        p50_us=percentile(durations_us, 50) or 0.0,
        p90_us=percentile(durations_us, 90) or 0.0,
        p99_us=percentile(durations_us, 99) or 0.0,
        max_us=max(durations_us),
        mean_us=statistics.fmean(durations_us),
        wall_s=wall_s,
        outcomes=dict(kinds),
        anomalies=dict(scheduler.anomalies),
    )


class _TimedScheduler(Scheduler):
    """Notes how long each `handle` took."""

    def __init__(self, config: SchedulerConfig, models: list[ModelSpec]) -> None:
        super().__init__(config, models)
        self.durations_ns: list[int] = []

    def handle(self, event: Event, now: int) -> list[Command]:
        begin_ns = time.perf_counter_ns()
        commands = super().handle(event, now)
        self.durations_ns.append(time.perf_counter_ns() - begin_ns)
        return commands


def _model(name: str) -> ModelSpec:
    times = {rows: EXEC_FIRST_NS + EXEC_EACH_NS * (rows - 1) for rows in (1, 2, 4, 8, 16)}
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


def _arrivals(models: list[ModelSpec], virtual_s: float, seed: int) -> Iterator[Arrival]:
    chance = random.Random(seed)
    names = [model.name for model in models]
    weights = list(itertools.accumulate((index + 1) ** -SKEW for index in range(len(names))))
    at_s = 0.0
    for request_id in itertools.count():
        at_s += chance.expovariate(RATE_PER_S)
        if at_s > virtual_s:
            return
        (name,) = chance.choices(names, cum_weights=weights)
        at_ns = MILLISECOND_NS + int(at_s * SECOND_NS)
        yield at_ns, RequestArrived(request_id, name, at_ns, at_ns + SLO_NS, elements=64)


def _report(bench: Bench, result: Result) -> None:
    report = bench.report
    rows: list[tuple[object, ...]] = []
    medians: dict[tuple[int, int], float] = {}
    for size in SIZES:
        runs = [run for run in result.runs if (run.num_models, run.num_devices) == size]
        medians[size] = statistics.median(run.p50_us for run in runs)
        low, high = min(run.p50_us for run in runs), max(run.p50_us for run in runs)
        total = sum(sum(run.outcomes.values()) for run in runs)
        served = sum(run.outcomes.get(Served.__name__, 0) for run in runs)
        rows.append(
            (
                f"{size[0]:,} x {size[1]}",
                *(sum(run.num_events for run in runs), medians[size], f"{low:.1f} - {high:.1f}"),
                *(statistics.median(run.p90_us for run in runs),),
                *(statistics.median(run.p99_us for run in runs),),
                *(statistics.median(run.mean_us for run in runs),),
                f"{served / total:.1%}",
            )
        )
    report.table(
        f"Microseconds per event at {result.rate_per_s:,.0f} requests/s, "
        f"{result.virtual_s:.0f} s of virtual time, {len(result.runs) // len(SIZES)} rounds",
        ("models x devices", "events", "p50", "range of p50", "p90", "p99", "mean", "served"),
        rows,
        note="Medians over the rounds; sizes take turns. Events: arrivals, results, wake-ups.",
    )
    smallest, largest = SIZES[0], SIZES[-1]
    ratio = medians[largest] / medians[smallest]
    report.verdict(
        f"p50 at {largest[0]} x {largest[1]} is {ratio:.2f} x that at {smallest[0]} x "
        f"{smallest[1]} (bar: {BAR_RATIO})",
        is_met=ratio <= BAR_RATIO,
    )
    report.save("scheduler", result)
