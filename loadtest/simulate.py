"""Play a scenario's run in virtual time: `run(case)`, and `python -m loadtest.simulate`.

Owns how a workload becomes events, and what a run leaves behind. The scheduler is the one that
serves; everything else is simulated (scheduler/simulation.py). It must not change what it plays:
the same case gives the same decision log, whoever watches.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import msgspec

from loadtest.decision_log import DecisionLog
from loadtest.results import Collector, RunMeta, Summary, Tables, summarise, versions
from loadtest.scenario import Case
from loadtest.stage import models_of, schedule_faults, workers_of
from loadtest.workloads import Ask, closed_loops, open_loop
from scheduler.device import DeviceMirror
from scheduler.events import Command, Event, Outcome, RequestArrived
from scheduler.scheduler import Scheduler
from scheduler.simulation import Arrival, Observer, Simulation
from scheduler.spec import MILLISECOND_NS, SECOND_NS, ModelSpec

Progress = Callable[[int], None]  # hears the virtual instant, in ns
# Of the garbage collector where time is measured, as the gateway sets it (gateway/assembly.py).
GC_THRESHOLDS = (20_000, 20, 20)


class Run(msgspec.Struct, kw_only=True):
    """What a run left behind. `tables` and `summary` are None where nothing was collected.

    `handle_wall_ns` is wall time inside Scheduler.handle, `wall_ns` that of the whole run.
    `num_outliers` are durations so far above the usual that estimates took in a part of them only.
    """

    case: Case
    num_requests: int
    num_events: int
    anomalies: dict[str, int]
    num_outliers: int
    wall_ns: int
    handle_wall_ns: int
    tables: Tables | None = None
    summary: Summary | None = None

    @property
    def meta(self) -> RunMeta:
        begin_ns, end_ns = window_of(self.case)
        return RunMeta(
            scenario=self.case.scenario,
            policy=self.case.policy,
            seed=self.case.seed,
            case=dict(self.case.values),
            window_begin_ns=begin_ns,
            window_end_ns=end_ns,
            versions=versions(),
        )


class Cost(msgspec.Struct, kw_only=True):
    """What the measured part of a run took of the scheduler: wall time inside its `handle`."""

    num_requests: int
    num_events: int
    handle_wall_ns: int
    anomalies: dict[str, int]


def window_of(case: Case) -> tuple[int, int]:
    """The measured part: requests that arrive after the warm-up, before the end."""
    return round(case.setup.warmup_s * SECOND_NS), round(case.duration_s * SECOND_NS)


def run(
    case: Case,
    *,
    progress: Progress | None = None,
    collects: bool = True,
    observer: Observer | None = None,
    log: BinaryIO | None = None,
    asks: Iterable[Ask] | None = None,
) -> Run:
    """Play a case to its end: until every request that came before `duration_s` is answered.

    `observer` sees every (now, event, commands), `log` gets the decision log; `collects` off for
    runs of which only the decisions matter. `asks`, in time order, come in place of what the open
    loops of the workload would draw. Raises ValueError for a case that cannot be.
    """
    play = _Play(case, collects=collects, observer=observer, log=log, progress=progress, asks=asks)
    gc.collect()
    gc.freeze()  # what was built for the run is not looked through again and again during it
    begin_ns = time.perf_counter_ns()
    try:
        play.run()
    finally:
        wall_ns = time.perf_counter_ns() - begin_ns
        gc.unfreeze()
    tables = summary = None
    if play.collector is not None:
        tables = play.collector.tables()
        summary = summarise(
            tables,
            window_of(case),
            handle_wall_ns=play.handle_wall_ns,
            outliers=play.num_outliers,
        )
    return Run(
        case=case,
        num_requests=play.num_requests,
        num_events=play.num_events,
        anomalies=dict(Counter(play.scheduler.anomalies)),
        num_outliers=play.num_outliers,
        wall_ns=wall_ns,
        handle_wall_ns=play.handle_wall_ns,
        tables=tables,
        summary=summary,
    )


def cost_of(case: Case) -> Cost:
    """Play a case for what its decisions cost once it is warm: that devices join and models are
    met for the first time happens before. The collector of garbage is set as in the gateway.
    """
    play = _Play(case, collects=False, observer=None, log=None, progress=None)
    thresholds = gc.get_threshold()
    before: list[int] = []

    def begin() -> None:
        gc.collect()
        gc.freeze()
        before.extend([play.num_requests, play.num_events, play.handle_wall_ns])

    play.call_at(window_of(case)[0], begin)
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        play.run()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    return Cost(
        num_requests=play.num_requests - before[0],
        num_events=play.num_events - before[1],
        handle_wall_ns=play.handle_wall_ns - before[2],
        anomalies=dict(Counter(play.scheduler.anomalies)),
    )


class _Play:
    """One run under way."""

    def __init__(
        self,
        case: Case,
        *,
        collects: bool,
        observer: Observer | None,
        log: BinaryIO | None,
        progress: Progress | None,
        asks: Iterable[Ask] | None = None,
    ) -> None:
        setup = case.setup
        models = models_of(setup)
        names = [model.name for model in models]
        self.num_requests = 0
        self.num_events = 0
        self.handle_wall_ns = 0
        self.scheduler = Scheduler(setup.scheduler_config(), models, policy=case.policy)
        self._handle = self.scheduler.handle
        self._client_delay_ns = round(setup.client_delay_ms * MILLISECOND_NS)
        self.collector = (
            Collector(self.scheduler, client_delay_ns=self._client_delay_ns) if collects else None
        )
        self._progress = progress
        self._sample_ns = round(setup.sample_ms * MILLISECOND_NS)
        self._end_ns = round(case.duration_s * SECOND_NS)
        self._shapes = {model.name: _shape_of(model) for model in models}
        self._arrivals = iter(
            open_loop(setup.workload, duration_s=case.duration_s, seed=case.seed, models=names)
            if asks is None
            else asks
        )
        self._loops = closed_loops(
            setup.workload, duration_s=case.duration_s, seed=case.seed, models=names
        )
        # who was there at some sample or at the end: what a lost one has counted still counts
        self._devices: dict[str, DeviceMirror] = {}
        self._open_loops: dict[int, Ask] = {}  # all and only open requests of closed loops
        watchers = [w for w in (self.collector, observer) if w is not None]
        if log is not None:
            watchers.append(DecisionLog(log))
        self._simulation = Simulation(
            self.scheduler,
            workers_of(setup, models, case.seed),
            observer=_all_of(watchers),
            on_answer=self._answered if self._loops else None,
            gathers_arrivals=True,
            keeps_outcomes=False,
            handle=self._timed_handle,
        )
        schedule_faults(setup, self._simulation, models, seed=case.seed, duration_s=case.duration_s)

    def call_at(self, at_ns: int, call: Callable[[], None]) -> None:
        """Before it runs: have something done at an instant of it."""
        self._simulation.call_at(at_ns, call)

    def run(self) -> None:
        simulation = self._simulation
        for loop in self._loops.values():
            for ask in loop.starts():
                simulation.at(*self._arrival(ask))
        if self.collector is not None or self._progress is not None:
            simulation.call_at(0, self._sample)
        simulation.run(self._open_loop())
        self._devices.update(self.scheduler.devices)

    @property
    def num_outliers(self) -> int:
        return sum(device.num_outliers for device in self._devices.values())

    def _open_loop(self) -> Iterator[Arrival]:
        arrival = self._arrival
        for ask in self._arrivals:
            yield arrival(ask)

    def _arrival(self, ask: Ask) -> Arrival:
        """The request of an ask, at the gateway: time counts from there."""
        self.num_requests += 1
        request_id = self.num_requests
        at_ns, model, slo_ns, stream, tenant, client, priority = ask
        at_ns += self._client_delay_ns
        if client >= 0:
            self._open_loops[request_id] = ask
        if self.collector is not None:
            self.collector.arrived(request_id, (at_ns, model, slo_ns, stream, tenant))
        shape_key, elements = self._shapes[model]
        return at_ns, RequestArrived(
            request_id,
            model,
            at_ns,
            at_ns + slo_ns,
            batch_key=shape_key,
            shape_key=shape_key,
            elements=elements,
            tenant=tenant,
            priority=priority,
        )

    def _answered(self, request_id: int, _outcome: Outcome, now: int) -> None:
        """A client of a closed loop hears its answer."""
        ask = self._open_loops.pop(request_id, None)
        if ask is None:
            return
        following = self._loops[ask.stream].next_after(ask, now + self._client_delay_ns)
        if following is not None:
            self._simulation.at(*self._arrival(following))

    def _timed_handle(self, event: Event, now: int) -> list[Command]:
        begin_ns = time.perf_counter_ns()
        commands = self._handle(event, now)
        self.handle_wall_ns += time.perf_counter_ns() - begin_ns
        self.num_events += 1
        return commands

    def _sample(self) -> None:
        now = self._simulation.now
        self._devices.update(self.scheduler.devices)
        if self.collector is not None:
            self.collector.sample(now, self.scheduler)
        if self._progress is not None:
            self._progress(min(now, self._end_ns))
        if now + self._sample_ns <= self._end_ns:
            self._simulation.call_at(now + self._sample_ns, self._sample)


def _shape_of(model: ModelSpec) -> tuple[str, int]:
    shape = model.profile.shapes[0]
    return shape.shape_key, shape.elements


def _all_of(observers: list[Observer]) -> Observer | None:
    if len(observers) < 2:
        return observers[0] if observers else None

    def observe(now: int, event: Event, commands: list[Command]) -> None:
        for observer in observers:
            observer(now, event, commands)

    return observe


if __name__ == "__main__":
    from loadtest.simulate_command import main

    main()
