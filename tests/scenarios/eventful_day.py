"""An eventful day, and what every policy decided on it, as hashes: golden/eventful.txt.

Six models share three devices that cannot hold them all. Each has tight and lax SLOs; executions
vary and spike, engines and LOADs fail now and then, messages are delayed at random. In the middle
more is asked than the fleet can do; the controller stalls, a worker dies and one comes back.

`python -m tests.scenarios.eventful_day` writes the file anew; with a policy's text after it, it
prints that one's decision log, to be compared with `diff` before and after a change.
"""

import hashlib
import io
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from loadtest.decision_log import DecisionLog
from scheduler.actions import Action, Code, EvictWeights, Infer
from scheduler.events import Command, Event, ModelPinned, RequestArrived, RequestCancelled
from scheduler.policies import POLICIES
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation, Spikes
from tests.scheduler.story import device_spec, model_spec, ms

GOLDEN = Path(__file__).parent / "golden" / "eventful.txt"
AS_PUBLISHED = "clockwork:deadline_floor,late_refusal,loads_never_stop,load_demand_never_expires"
PLAYED = (*POLICIES, AS_PUBLISHED)

SPECS = [
    model_spec("tiny", exec_ms={1: 1, 2: 1.4, 4: 2.1, 8: 3.6, 16: 6.4}, load_ms=3, pages=1),
    model_spec("padded", exec_ms={1: 2, 4: 4, 8: 6.5}, load_ms=5, pages=2, exact=False),
    model_spec("even", exec_ms={1: 3, 2: 5.9, 4: 11.6}, load_ms=6, pages=2),
    model_spec("usual", exec_ms={1: 5, 2: 7.5, 4: 12, 8: 20}, load_ms=9, pages=4),
    model_spec("large", exec_ms={1: 12, 2: 19, 4: 33, 8: 60}, load_ms=15, pages=6),
    model_spec("rare", exec_ms={1: 8, 2: 13, 4: 22}, load_ms=12, pages=5),
]
WEIGHTS = (8, 5, 3, 5, 2, 1)  # how often each is asked for
SLOS_MS = {
    "tiny": (6, 20, 60),
    "padded": (12, 40),
    "even": (25, 150),
    "usual": (25, 60, 250),
    "large": (120, 400),
    "rare": (60, 300),
}
# From when on, in ms, how many requests come in a second.
RATES = ((1, 500), (600, 2_000), (900, 400), (2_000, 0))


class Day:
    """One policy's."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._log = io.BytesIO()
        self._write = DecisionLog(self._log)
        self._num_decisions = 0
        simulation = Simulation(
            Scheduler(models=SPECS, policy=policy),
            [worker(0, "tiny", "usual"), worker(1, "large"), worker(2)],
            observer=self._observe,
            gathers_arrivals=True,
        )
        simulation.at(ms(300), ModelPinned("even", True))
        simulation.stall(ms(450), ms(12))
        simulation.crash("w1", at_ns=ms(1_100), detect_ns=ms(15))
        simulation.call_at(ms(1_350), lambda: simulation.join(worker(3)))
        simulation.stall(ms(1_700), ms(30))
        simulation.run(arrivals())

    def _observe(self, now: int, event: Event, commands: list[Command]) -> None:
        self._num_decisions += len(commands)
        self._write(now, event, commands)

    @property
    def log(self) -> bytes:
        return self._log.getvalue()

    @property
    def line(self) -> str:
        """Its line in the golden file."""
        return f"{hashlib.sha256(self.log).hexdigest()} {self._num_decisions} {self._policy}"


def worker(number: int, *resident: str) -> SimulatedWorker:
    chance = random.Random(number)

    def fail(action: Action) -> Code | None:
        if isinstance(action, EvictWeights) or chance.random() > 0.04:
            return None
        return Code.ENGINE_ERROR if isinstance(action, Infer) else Code.LOAD_FAILED

    return SimulatedWorker(
        f"w{number}",
        device_spec(pages=9, shared=number == 2),
        SPECS,
        seed=number,
        noise=0.03,
        load_noise=0.1,
        spikes=Spikes(0.01, ms(5), ms(40)),
        jitter_ns=ms(0.1),
        fail=fail,
        resident=resident,
    )


def arrivals() -> Iterator[tuple[int, Event]]:
    """Requests, now and then two at one instant, and some clients that leave."""
    chance = random.Random(1)
    request_id = 0
    for (at_ms, rate), (until_ms, _) in itertools.pairwise(RATES):
        now_ms: float = at_ms
        while now_ms < until_ms:
            for _ in range(1 + (chance.random() < 0.1)):
                request_id += 1
                yield ms(now_ms), request(request_id, now_ms, chance)
            if chance.random() < 0.02:
                yield ms(now_ms), RequestCancelled(request_id - 5)
            now_ms += chance.expovariate(1.0) * 1_000 / rate


def request(request_id: int, at_ms: float, chance: random.Random) -> RequestArrived:
    [spec] = chance.choices(SPECS, WEIGHTS)
    return RequestArrived(
        request_id,
        spec.name,
        ms(at_ms),
        ms(at_ms + chance.choice(SLOS_MS[spec.name])),
        rows=chance.choice((1, 1, 1, 1, 1, 1, 1, 2, 2, 3)),
        batch_key=chance.choice(("", "other")) if spec.name == "usual" else "",
        elements=4,
        do_not_queue=chance.random() < 0.02,
    )


def main() -> None:
    if len(sys.argv) > 1:
        sys.stdout.buffer.write(Day(sys.argv[1]).log)
    else:
        GOLDEN.write_text("".join(f"{Day(policy).line}\n" for policy in PLAYED), "utf-8")


if __name__ == "__main__":
    main()
