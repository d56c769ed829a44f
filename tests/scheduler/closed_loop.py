"""The Clockwork paper's section 6.1 in small: one device, closed-loop clients, in virtual time."""

from collections import Counter
from collections.abc import Mapping

from scheduler.events import Outcome, RequestArrived, Served
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation
from scheduler.spec import SECOND_NS, SchedulerConfig
from tests.scheduler.story import device_spec, model_spec, ms

# ResNet-50 v2 on a V100 (the model zoo's measurements, to batches of 8: 643 a second at most).
RESNET_MS = {1: 3.322, 2: 5.271, 4: 7.495, 8: 12.439}
RESNET_PER_S = 8 / 0.012439
AGAIN_AFTER_MS = 0.3


class ClosedLoop:
    """15 models of 16 clients; each asks again 0.3 ms after any answer. `run` counts by ends."""

    def __init__(
        self,
        policy: str,
        *,
        slo_ms: float,
        exec_ms: Mapping[int, float] = RESNET_MS,
        num_models: int = 15,
        num_clients: int = 16,
        exact: bool = False,
    ) -> None:
        self._slo_ns = ms(slo_ms)
        specs = [
            model_spec(f"m{i}", exec_ms=dict(exec_ms), load_ms=8.3, pages=7, exact=exact)
            for i in range(num_models)
        ]
        worker = SimulatedWorker(
            "w", device_spec(pages=1376), specs, resident=[spec.name for spec in specs]
        )
        self.scheduler = Scheduler(SchedulerConfig(reply_margin_ns=0), specs, policy=policy)
        self._simulation = Simulation(
            self.scheduler, [worker], on_answer=self._on_answer, keeps_outcomes=False
        )
        self._asked: dict[int, RequestArrived] = {}
        self._next_id = 1
        self._from_ns = 0
        self.ended: Counter[str] = Counter()  # answers since the warm-up: good, late, refused
        self.batches: Counter[int] = Counter()  # good answers by the rows of their batch
        for client in range(num_models * num_clients):
            self._ask(f"m{client % num_models}", client * 10_000)

    def run(self, *, seconds: float, warm_up_s: float = 0.3) -> float:
        """Good answers a second after the warm-up."""
        self._from_ns = int(warm_up_s * SECOND_NS)
        self._simulation.run(until_ns=int((warm_up_s + seconds) * SECOND_NS))
        return self.ended["good"] / seconds

    def _ask(self, model: str, at_ns: int) -> None:
        arrived = RequestArrived(self._next_id, model, at_ns, at_ns + self._slo_ns, elements=4)
        self._asked[self._next_id] = arrived
        self._next_id += 1
        self._simulation.at(at_ns, arrived)

    def _on_answer(self, request_id: int, outcome: Outcome, now: int) -> None:
        asked = self._asked.pop(request_id)
        if now >= self._from_ns:
            if not isinstance(outcome, Served):
                self.ended["refused"] += 1
            elif now > asked.deadline_ns:
                self.ended["late"] += 1
            else:
                self.ended["good"] += 1
                self.batches[outcome.batch_rows] += 1
        self._ask(asked.model, now + ms(AGAIN_AFTER_MS))
