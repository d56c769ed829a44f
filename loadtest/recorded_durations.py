"""What a recording says about how long things take: executions, LOADs, messages.

It learns from the recorded results, as the scheduler measures them (from the start of the input, or
the end of what was executed before, to the end of the output), and then draws, seeded. It counts
where each drawn duration came from: the reader must be able to see how much was guessed.
"""

import random
from collections.abc import Callable, Sequence

import msgspec

from scheduler.actions import Action, Code, Infer, InferResult, LoadResult, LoadWeights
from scheduler.event_log import Handled
from scheduler.events import ActionFinished, Send, WorkerJoined
from scheduler.simulated_worker import Link, SimulatedWorker, exec_ns_of
from scheduler.spec import ModelSpec

# One way between gateway and worker where nothing was recorded: ZeroMQ on one host.
UNKNOWN_DELAY_NS = 100_000
# Samples kept of each kind; a long recording has more than a draw needs.
MAX_SAMPLES = 4096


class Sources(msgspec.Struct):
    """Actions by where their duration came from."""

    exact: int = 0  # the same worker, model and batch size (or LOAD) was recorded
    nearby: int = 0  # another batch size of that model was; scaled by the profile
    profiled: int = 0  # nothing was


def _name_of(worker_id: str) -> str:
    """The operator's name of a worker, the same over all its incarnations."""
    return worker_id.partition("#")[0]


class RecordedDurations:
    """Learns entry by entry (`learn`), then makes workers that draw from it (`worker`)."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self.sources = Sources()
        # (worker, model) → executed batch size → durations; and of LOADs
        self._exec_ns: dict[tuple[str, str], dict[int, list[int]]] = {}
        self._load_ns: dict[tuple[str, str], list[int]] = {}
        # worker → delays of orders, of results
        self._orders_ns: dict[str, list[int]] = {}
        self._results_ns: dict[str, list[int]] = {}
        # all and only actions sent and not yet heard of: (worker id, action id) → sent, action
        self._sent: dict[tuple[str, int], tuple[int, Action]] = {}
        self._done_ns: dict[str, int] = {}  # worker id → end of its last execution

    def learn(self, entry: Handled) -> None:
        """Entries in their order."""
        if isinstance(entry.event, ActionFinished):
            self._learn_result(entry.event, entry.now)
        for command in entry.commands or ():
            if isinstance(command, Send):
                key = (command.worker_id, command.action.action_id)
                self._sent[key] = (entry.now, command.action)

    def _learn_result(self, event: ActionFinished, now: int) -> None:
        result, worker_id = event.result, event.worker_id
        sent_ns, action = self._sent.pop((worker_id, result.action_id), (0, None))
        if action is None or result.code is not Code.OK:
            return
        name = _name_of(worker_id)
        if isinstance(action, Infer) and isinstance(result, InferResult):
            end_ns = min(result.output.end_ns, now)
            begin_ns = max(result.input.begin_ns, self._done_ns.get(worker_id, 0), sent_ns)
            self._done_ns[worker_id] = end_ns
            by_size = self._exec_ns.setdefault((name, action.model), {})
            _keep(by_size.setdefault(action.batch_size, []), max(1, end_ns - begin_ns))
        elif isinstance(action, LoadWeights) and isinstance(result, LoadResult):
            end_ns = min(result.load.end_ns, now)
            samples = self._load_ns.setdefault((name, action.model), [])
            _keep(samples, max(1, end_ns - max(result.load.begin_ns, sent_ns)))
        else:
            return
        _keep(self._orders_ns.setdefault(name, []), max(0, result.received_ns - sent_ns))
        _keep(self._results_ns.setdefault(name, []), max(0, now - end_ns))

    def worker(self, joined: WorkerJoined) -> SimulatedWorker:
        """A worker that joins as that one did, and takes as long."""
        worker_id = joined.worker_id
        name = _name_of(worker_id)
        specs = {spec.name: spec for spec in joined.models}
        chance = random.Random(f"{self._seed} {worker_id}")

        def duration_of(action: Infer | LoadWeights) -> int:
            spec = specs[action.model]
            if isinstance(action, Infer):
                return self._draw_exec(name, spec, action.batch_size, chance)
            return self._draw_load(name, spec, chance)

        worker = SimulatedWorker(
            worker_id,
            joined.device,
            joined.models,
            duration_of=duration_of,
            delay_ns=0,
            resident=joined.resident,
        )
        worker.orders = _link(self._orders_ns.get(name), f"{self._seed} {worker_id} orders")
        worker.results = _link(self._results_ns.get(name), f"{self._seed} {worker_id} results")
        return worker

    def _draw_exec(self, name: str, spec: ModelSpec, rows: int, chance: random.Random) -> int:
        by_size = self._exec_ns.get((name, spec.name), {})
        if rows in by_size:
            self.sources.exact += 1
            return chance.choice(by_size[rows])
        profile = spec.profile.shapes[0].exec_ns
        if not by_size:
            self.sources.profiled += 1
            return exec_ns_of(profile, rows)
        self.sources.nearby += 1
        nearest = min(by_size, key=lambda size: (abs(size - rows), size))
        scale = exec_ns_of(profile, rows) / exec_ns_of(profile, nearest)
        return max(1, round(chance.choice(by_size[nearest]) * scale))

    def _draw_load(self, name: str, spec: ModelSpec, chance: random.Random) -> int:
        samples = self._load_ns.get((name, spec.name))
        if samples is None:
            self.sources.profiled += 1
            return max(1, spec.profile.load_ns)
        self.sources.exact += 1
        return chance.choice(samples)


def _keep(samples: list[int], sample_ns: int) -> None:
    if len(samples) < MAX_SAMPLES:
        samples.append(sample_ns)


def _link(delays_ns: Sequence[int] | None, seed: str) -> Link:
    chance = random.Random(seed)
    if not delays_ns:
        return Link(UNKNOWN_DELAY_NS, 0, chance)
    draw: Callable[[], int] = lambda: chance.choice(delays_ns)  # noqa: E731
    return Link(0, 0, chance, more_ns=draw)
