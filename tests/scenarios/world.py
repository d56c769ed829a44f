"""A day in virtual time: what is needed to tell a story and to look at its end.

Every event is followed by a validation of the whole book, every story ends with everyone answered.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from scheduler.events import (
    Command,
    Event,
    Expired,
    Failed,
    Outcome,
    Rejected,
    RequestArrived,
    Served,
)
from scheduler.invariants import validate
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation
from scheduler.spec import ModelSpec, SchedulerConfig
from tests.scheduler.story import ms


class World:
    """Scheduler and simulated workers, with a log of every event and its commands."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        workers: Iterable[SimulatedWorker],
        config: SchedulerConfig | None = None,
        *,
        policy: str = "remontoir",
    ) -> None:
        self.scheduler = Scheduler(config, specs, policy=policy)
        self.log: list[tuple[int, Event, list[Command]]] = []
        self.asked: dict[int, RequestArrived] = {}
        self.simulation = Simulation(self.scheduler, workers, observer=self._observe)

    def run(self, requests: Iterable[RequestArrived] = (), until_ms: float | None = None) -> None:
        self.simulation.run(
            self._noted(requests), until_ns=None if until_ms is None else ms(until_ms)
        )
        if until_ms is None:
            assert self.simulation.outcomes.keys() == self.asked.keys()
            assert self.scheduler.num_open == self.scheduler.num_queued == 0

    def _noted(self, requests: Iterable[RequestArrived]) -> Iterator[tuple[int, Event]]:
        for request in requests:
            self.asked[request.request_id] = request
            yield request.arrival_ns, request

    def _observe(self, now: int, event: Event, commands: list[Command]) -> None:
        validate(self.scheduler)
        self.log.append((now, event, commands))

    # ------------------------------------------------------------------ looking

    def outcome(self, request_id: int) -> Outcome:
        return self.simulation.outcomes[request_id][1]

    def outcomes(self, model: str | None = None) -> list[Outcome]:
        return [
            outcome
            for request_id, (_, outcome) in self.simulation.outcomes.items()
            if model is None or self.asked[request_id].model == model
        ]

    def share(self, kind: type[Outcome], model: str | None = None) -> float:
        """Of all requests (of the model), those that ended so."""
        outcomes = self.outcomes(model)
        return sum(isinstance(outcome, kind) for outcome in outcomes) / len(outcomes)

    def reasons(self) -> Counter[str]:
        return Counter(
            "served"
            if isinstance(outcome, Served)
            else outcome.reason.value
            if isinstance(outcome, Rejected | Expired | Failed)
            else "cancelled"
            for outcome in self.outcomes()
        )

    def late(self) -> list[int]:
        """Served, but after the deadline: there must be none."""
        return [
            request_id
            for request_id, (at_ns, outcome) in self.simulation.outcomes.items()
            if isinstance(outcome, Served) and at_ns > self.asked[request_id].deadline_ns
        ]

    def refused_after_ms(self) -> list[float]:
        """How long each refused client waited for its no."""
        return [
            (at_ns - self.asked[request_id].arrival_ns) / 1e6
            for request_id, (at_ns, outcome) in self.simulation.outcomes.items()
            if isinstance(outcome, Rejected)
        ]


def poisson(
    rate_per_s: float,
    seconds: float,
    *,
    models: Sequence[str] = ("m",),
    slo_ms: float = 100,
    seed: int = 1,
    first_id: int = 1,
    from_ms: float = 1,
) -> Iterator[RequestArrived]:
    """Arrivals at random, the model of each at random."""
    chance = random.Random(seed)
    at_ms = from_ms
    request_id = first_id
    while True:
        at_ms += chance.expovariate(rate_per_s) * 1_000
        if at_ms > from_ms + seconds * 1_000:
            return
        model = models[chance.randrange(len(models))]
        yield RequestArrived(request_id, model, ms(at_ms), ms(at_ms + slo_ms), elements=4)
        request_id += 1


def merged(*streams: Iterable[RequestArrived]) -> list[RequestArrived]:
    """Several streams as one, in the order of arrival."""
    return sorted(
        (request for stream in streams for request in stream),
        key=lambda request: (request.arrival_ns, request.request_id),
    )
