"""The simulator against the real thing: one trace, on an emulated device and in virtual time.

Both run the same scheduler and the same profile. What differs is what a simulation leaves out:
HTTP, ZeroMQ, threads that wake late, a machine that does other things. So outcomes that do not
depend on milliseconds must be equal to the request, and those of an overload within a quarter of
its requests (on an idle machine they differ by 3 %).
"""

import asyncio
import time
from collections import Counter
from pathlib import Path

from gateway.errors import PROBLEMS
from scheduler.actions import LoadWeights
from scheduler.events import (
    Event,
    Expired,
    Failed,
    ModelAdded,
    Outcome,
    Rejected,
    Reply,
    RequestArrived,
    Send,
    Served,
)
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation
from scheduler.spec import MILLISECOND_NS, DeviceSpec
from tests.gateway.running import running_gateway
from tests.system.clients import Connection, bytes_body, metric, play
from tests.system.puppets import EMULATION, MODELS, PAGE_BYTES
from tests.system.stages import until

CACHE_MB = 320
# What the simulation takes for the way to a worker and back: measured 0.1-0.5 ms on one host.
DELAY_NS = 300_000
TOLERANCE = 0.25  # of the requests of an overload

QUICK = "cifar_wideresnet16_10"  # 1.3 ms, 5 of the 20 pages
SLOW = "resnet152_v2"  # 8.2 ms, 15 pages: both fit
HUGE = "se_resnext101_64x4d"  # 22 pages
NEVER_MS = 1.0  # shorter than any execution of SLOW

# name → (model, SLO in ms, at which milliseconds)
TRACE: dict[str, tuple[str, float, list[int]]] = {
    "easy": (QUICK, 5_000.0, list(range(0, 1500, 10))),
    "too large": (HUGE, 5_000.0, list(range(5, 1500, 150))),
    "too short": (SLOW, NEVER_MS, list(range(7, 1500, 75))),
    "overload": (SLOW, 600.0, [600] * 400),
}
Counts = dict[str, Counter[str]]


def test_one_trace_has_the_same_outcomes_in_both_shells(tmp_path: Path) -> None:
    arrivals: list[tuple[int, str]] = []
    flags = ("--emulate", f"{EMULATION}:1", "--cache-mb", str(CACHE_MB), "--drain-s", "0")
    with running_gateway(*flags, scratch=tmp_path) as gateway:
        until(lambda: metric(gateway.url, "worker_up") == 1, "the worker joins")
        real: Counts = {name: Counter() for name in TRACE}

        async def story() -> None:
            schedule = sorted(
                (at_ms, name) for name, (_, _, instants) in TRACE.items() for at_ms in instants
            )
            connections = [await Connection.open(gateway.url) for _ in schedule]
            begin_ns = time.monotonic_ns()
            for (at_ms, name), connection in zip(schedule, connections, strict=True):
                ahead_ns = begin_ns + at_ms * MILLISECOND_NS - time.monotonic_ns()
                if ahead_ns > 0:
                    await asyncio.sleep(ahead_ns / 1e9)
                model, slo_ms, _ = TRACE[name]
                # when it was truly sent: the simulation gets the same trace, stalls included
                arrivals.append((time.monotonic_ns() - begin_ns, name))
                connection.send(bytes_body(model, slo_ms=slo_ms))
            for (_, name), connection in zip(schedule, connections, strict=True):
                real[name][(await connection.answer()).verdict] += 1
                connection.close()

        play(story)
        real_loads = {m: metric(gateway.url, "loads_total", model=m) for m in (QUICK, SLOW, HUGE)}
        assert metric(gateway.url, "anomalies_total") == 0

    simulated, simulated_loads = simulate(arrivals)

    assert simulated_loads == real_loads == {QUICK: 1, SLOW: 1, HUGE: 0}
    for name in ("easy", "too large", "too short"):
        assert simulated[name] == real[name], name
    assert set(real["easy"]) == {"200"}
    assert set(real["too large"]) == {"422 larger_than_cache"}
    assert set(real["too short"]) == {"422 slo_infeasible_ever"}
    total = len(TRACE["overload"][2])
    for verdict in simulated["overload"] | real["overload"]:
        difference = simulated["overload"][verdict] - real["overload"][verdict]
        assert abs(difference) <= TOLERANCE * total, (verdict, simulated, real)
    assert min(simulated["overload"]["200"], real["overload"]["200"]) > TOLERANCE * total
    assert sum(real["overload"].values()) == total


def simulate(arrivals: list[tuple[int, str]]) -> tuple[Counts, dict[str, float]]:
    """Outcomes as HTTP would show them, and LOADs by model."""
    loads: Counter[str] = Counter()
    device = DeviceSpec(
        kind="simulated",
        page_bytes=PAGE_BYTES,
        total_pages=CACHE_MB * 1024 * 1024 // PAGE_BYTES,
        shares_exec_core=False,
    )
    worker = SimulatedWorker("w", device, MODELS.values(), seed=7, noise=0.01, delay_ns=DELAY_NS)

    def count_loads(_now: int, _event: Event, commands: list[Send | Reply]) -> None:
        for command in commands:
            if isinstance(command, Send) and isinstance(command.action, LoadWeights):
                loads[command.action.model] += 1

    simulation = Simulation(Scheduler(), [worker], observer=count_loads)
    for spec in MODELS.values():
        simulation.at(0, ModelAdded(spec))
    start_ns = MILLISECOND_NS
    requests: list[tuple[int, Event]] = []
    for number, (at_ns, name) in enumerate(arrivals):
        model, slo_ms, _ = TRACE[name]
        arrival_ns = start_ns + at_ns
        deadline_ns = arrival_ns + int(slo_ms * MILLISECOND_NS)
        request = RequestArrived(number, model, arrival_ns, deadline_ns, 1, "1", "1", 1, False)
        requests.append((arrival_ns, request))
    simulation.run(requests)
    counts: Counts = {name: Counter() for name in TRACE}
    for number, (_, name) in enumerate(arrivals):
        counts[name][verdict_of(simulation.outcomes[number][1])] += 1
    return counts, {model: float(loads[model]) for model in (QUICK, SLOW, HUGE)}


def verdict_of(outcome: Outcome) -> str:
    if isinstance(outcome, Served):
        return "200"
    assert isinstance(outcome, Rejected | Expired | Failed)
    reason = outcome.reason.value
    return f"{PROBLEMS[reason].status} {reason}"
