"""The simulator step by step: somebody else says how many devices there are, and how large batches
may be, and sees what came of it.

`reset` and `step` are those of Gymnasium's Env, in form and in what they return; the library is not
needed. Its agents and wrappers want a subclass with spaces (docs/planning.md has it). Owns the
fleet's life (devices asked for, that start, serve, drain) and what is observed. It decides nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from loadtest.planning.capped_batching import CappedBatching
from loadtest.scenario import Case
from loadtest.stage import models_of, worker_of
from loadtest.workloads import Ask, Closed, open_loop
from scheduler.actions import Action, Code
from scheduler.events import (
    Command,
    Event,
    Outcome,
    Rejected,
    RequestArrived,
    RequestsArrived,
    Served,
    WorkerLost,
)
from scheduler.policies import parse
from scheduler.scaling import Sample, Scaling
from scheduler.scheduler import Scheduler
from scheduler.simulation import Arrival, SimulatedWorker, Simulation
from scheduler.spec import MILLISECOND_NS, SECOND_NS

HOUR_S = 3600.0
LOOK_NS = SECOND_NS  # how often the gateway looks at its load (gateway/metrics/scaling_sampler.py)


class FleetAction(NamedTuple):
    """What a policy may say at a step. `max_batch` None: as the scheduler's own policy has it."""

    devices: int
    max_batch: int | None = None


class Observation(NamedTuple):
    """What a policy sees. Counts are of the interval that has just ended; `load` is what was
    offered in it, in devices kept busy, whatever became of it; `forecast` and `recommended` are the
    gateway's own advice (scheduler/scaling.py), None in the first seconds.
    """

    now_s: float
    load: float
    serving: int
    starting: int
    queued: int
    arrived: int
    good: int
    missed: int  # refused, expired, failed, late
    forecast: float | None
    recommended: int | None


class Rewards(msgspec.Struct, frozen=True, kw_only=True):
    """What a step is worth: good requests, less what devices cost while they are there."""

    per_good: float = 1.0
    per_device_s: float = 0.0


class FleetEnv:
    """One run of a case, `interval_s` at a time. A device serves `launch_s` after it was asked for.

    The case's devices say of which kind they are, and how many there are at the start. Raises
    ValueError for a case with closed loops: their clients would have to wait for the policy.
    """

    def __init__(
        self,
        case: Case,
        *,
        interval_s: float = 10.0,
        launch_s: float = 60.0,
        max_devices: int = 32,
        target_utilisation: float = 0.7,
        rewards: Rewards | None = None,
        asks: Sequence[Ask] | None = None,
    ) -> None:
        """`asks` come in place of what the workload would draw, whatever the seed."""
        if any(isinstance(entry, Closed) for entry in case.setup.workload):
            raise ValueError("an environment has open loops only: no entry of kind closed-loop")
        for name, value in (("interval_s", interval_s), ("max_devices", max_devices)):
            if not value > 0:
                raise ValueError(f"{name} {value:g} is not positive")
        if not launch_s >= 0:
            raise ValueError(f"launch_s {launch_s:g} is negative")
        self.case = case
        self.interval_s = interval_s
        self.launch_s = launch_s
        self.max_devices = max_devices
        self._target = target_utilisation
        self._rewards = rewards or Rewards()
        self._asks = asks
        self._run: _Run | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin anew. The same seed, the same requests and the same noise."""
        del options  # there are none; the argument is Gymnasium's
        seed = self.case.seed if seed is None else seed
        case = msgspec.structs.replace(self.case, seed=seed)
        self._run = _Run(case, self, self._target, self._asks)
        return self._run.observe(), {}

    def step(
        self, action: FleetAction | int
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """(observation, reward, terminated, truncated, info). A number is one of devices.

        Terminated when all requests have come and been answered; never truncated. `info` has
        `device_s`, what the interval's devices were there for. Raises ValueError for an action that
        cannot be, RuntimeError before `reset` and after the end.
        """
        if self._run is None or self._run.is_over:
            raise RuntimeError("reset() begins a run; this one is over or was never begun")
        wanted = action if isinstance(action, FleetAction) else FleetAction(int(action))
        if not 0 <= wanted.devices <= self.max_devices:
            raise ValueError(f"{wanted.devices} devices are not in 0 ... {self.max_devices}")
        if wanted.max_batch is not None and wanted.max_batch < 1:
            raise ValueError(f"max_batch {wanted.max_batch} is less than 1")
        run = self._run
        run.apply(wanted)
        device_s = run.advance(round(self.interval_s * SECOND_NS))
        observation = run.observe()
        rewards = self._rewards
        reward = rewards.per_good * observation.good - rewards.per_device_s * device_s
        return observation, reward, run.is_over, False, {"device_s": device_s}


class _Run:
    """Requests, scheduler and fleet between a reset and the end."""

    def __init__(
        self, case: Case, env: FleetEnv, target: float, asks: Sequence[Ask] | None
    ) -> None:
        setup = case.setup
        self._models = models_of(setup)
        self._kind = setup.devices[0]
        self._seed = case.seed
        self._launch_ns = round(env.launch_s * SECOND_NS)
        policy = parse(case.policy)
        self._batching = CappedBatching(policy.batching)
        self._scheduler = Scheduler(
            setup.scheduler_config(),
            self._models,
            policy=policy._replace(batching=self._batching),
        )
        self._simulation = Simulation(
            self._scheduler,
            (),
            observer=self._heard,
            on_answer=self._answered,
            gathers_arrivals=True,
            keeps_outcomes=False,
        )
        self._scaling = Scaling(horizon_ns=self._launch_ns, target_utilisation=target)
        self._end_ns = round(case.duration_s * SECOND_NS)
        drawn = asks
        if drawn is None:
            drawn_all = open_loop(
                setup.workload,
                duration_s=case.duration_s,
                seed=case.seed,
                models=[model.name for model in self._models],
            )
            self._arrivals = self._as_events(drawn_all)
        else:
            self._arrivals = self._as_events(iter(drawn))
        self._deadlines: dict[int, int] = {}  # all and only open requests
        self._arrived = self._good = self._missed = 0  # of this interval
        self._asked = self._refused = 0  # since the start
        self._loads: list[float] = []
        self._num_launched = 0
        self._serving: dict[str, SimulatedWorker] = {}
        self._starting: dict[str, int] = {}  # → when it will serve
        self._draining: dict[str, SimulatedWorker] = {}
        for _ in range(sum(devices.count for devices in setup.devices)):
            self._join(self._next_id())
        self._simulation.call_at(LOOK_NS, self._look)

    @property
    def is_over(self) -> bool:
        return self._simulation.now >= self._end_ns and not self._deadlines

    def apply(self, wanted: FleetAction) -> None:
        """Ask for devices, or let some go: first those that do not serve yet, the newest first."""
        self._batching.max_batch = wanted.max_batch
        missing = wanted.devices - len(self._serving) - len(self._starting)
        for _ in range(missing):
            worker_id = self._next_id()
            at_ns = self._simulation.now + self._launch_ns
            self._starting[worker_id] = at_ns
            self._simulation.call_at(at_ns, partial(self._started, worker_id))
        for _ in range(-missing):
            if self._starting:
                self._starting.popitem()
            else:
                worker_id, worker = self._serving.popitem()
                self._draining[worker_id] = worker
                self._drained(worker_id)

    def advance(self, interval_ns: int) -> float:
        """Play an interval; returns for how many seconds devices were there, all together."""
        self._arrived = self._good = self._missed = 0
        self._loads.clear()
        begin_ns = self._simulation.now
        num_paid = len(self._serving) + len(self._starting) + len(self._draining)
        until_ns = begin_ns + interval_ns
        self._simulation.call_at(until_ns, lambda: None)  # the clock gets there without an event
        self._simulation.run(self._arrivals, until_ns=until_ns)
        self._simulation.now = until_ns
        return num_paid * interval_ns / SECOND_NS

    def observe(self) -> Observation:
        now, scheduler = self._simulation.now, self._scheduler
        return Observation(
            now_s=now / SECOND_NS,
            load=math.fsum(self._loads) / len(self._loads) if self._loads else 0.0,
            serving=len(self._serving),
            starting=len(self._starting),
            queued=scheduler.num_queued,
            arrived=self._arrived,
            good=self._good,
            missed=self._missed,
            forecast=self._scaling.forecast,
            recommended=self._scaling.recommended_devices,
        )

    # ------------------------------------------------------------------ the fleet

    def _next_id(self) -> str:
        self._num_launched += 1
        return f"w{self._num_launched - 1}"

    def _started(self, worker_id: str) -> None:
        if self._starting.pop(worker_id, None) is not None:
            self._join(worker_id)

    def _join(self, worker_id: str) -> None:
        def fail(_: Action) -> Code | None:
            return Code.SHUTTING_DOWN if worker_id in self._draining else None

        worker = worker_of(
            worker_id, self._kind, self._models, seed=self._seed, resident=(), fail=fail
        )
        self._serving[worker_id] = worker
        self._simulation.join(worker)

    def _drained(self, worker_id: str) -> None:
        """It finishes what it does, refuses what it is still sent, and goes."""
        worker = self._draining[worker_id]
        simulation = self._simulation
        if worker.is_busy:
            simulation.call_at(simulation.now + MILLISECOND_NS, partial(self._drained, worker_id))
            return
        del self._draining[worker_id]
        simulation.lose(worker_id)
        simulation.at(simulation.now, WorkerLost(worker_id, "scaled in"))

    # ------------------------------------------------------------------ requests

    def _as_events(self, asks: Iterator[Ask]) -> Iterator[Arrival]:
        shapes = {model.name: model.profile.shapes[0] for model in self._models}
        for request_id, ask in enumerate(asks, start=1):
            shape = shapes[ask.model]
            self._deadlines[request_id] = ask.at_ns + ask.slo_ns
            yield (
                ask.at_ns,
                RequestArrived(
                    request_id,
                    ask.model,
                    ask.at_ns,
                    ask.at_ns + ask.slo_ns,
                    batch_key=shape.shape_key,
                    shape_key=shape.shape_key,
                    elements=shape.elements,
                    tenant=ask.tenant,
                    priority=ask.priority,
                ),
            )

    def _heard(self, _now: int, event: Event, _commands: list[Command]) -> None:
        if isinstance(event, RequestArrived):
            self._arrived += 1
        elif isinstance(event, RequestsArrived):
            self._arrived += len(event.requests)

    def _answered(self, request_id: int, outcome: Outcome, now: int) -> None:
        is_good = isinstance(outcome, Served) and now <= self._deadlines[request_id]
        del self._deadlines[request_id]
        self._asked += 1
        self._good += is_good
        self._missed += not is_good
        self._refused += isinstance(outcome, Rejected)

    def _look(self) -> None:
        now = self._simulation.now
        load = self._scheduler.offered_load(now)
        self._loads.append(load)
        sample = Sample(load, self._scheduler.num_serving, self._asked, self._refused)
        self._scaling.observe(sample, now)
        if now < self._end_ns:
            self._simulation.call_at(now + LOOK_NS, self._look)


Policy = Callable[[Observation], FleetAction]


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy made of a run."""

    requests: int
    good: int
    device_hours: float
    most_devices: int

    @property
    def missed(self) -> int:
        return self.requests - self.good

    @property
    def attained(self) -> float:
        return self.good / self.requests if self.requests else 1.0


def play(env: FleetEnv, policy: Policy, *, seed: int | None = None) -> Episode:
    """From reset to the end with a policy."""
    observation, _ = env.reset(seed=seed)
    requests = good = most = 0
    device_s = 0.0
    is_over = False
    while not is_over:
        observation, _, is_over, _, info = env.step(policy(observation))
        requests += observation.good + observation.missed
        good += observation.good
        device_s += info["device_s"]
        most = max(most, observation.serving + observation.starting)
    return Episode(requests=requests, good=good, device_hours=device_s / HOUR_S, most_devices=most)
