"""Metrics: what the gateway counts, told by the dispatcher (as its Observer) and the endpoints.

It owns the accumulators and which name may become a label. It must never slow the hot path and
never let a client choose a label: models are those of the catalogue, reasons those of the error
table. How it is shown is gateway/metrics_page.py.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.answer_sharing import AnswerSharing, Sharings
from gateway.keyring import Keyring
from gateway.tallies import SIGNED_DURATIONS, ModelTallies, Tally
from gateway.views import HttpView, LinkView, SchedulerView
from scheduler.actions import Code, EvictResult, Infer, InferResult, LoadResult, LoadWeights
from scheduler.events import ActionFinished, Command, Event, Send, WorkerJoined, WorkerLost

# Workers are named by their operator; more names than this in one life are a mistake.
MAX_WORKER_NAMES = 1024


class _Sent(NamedTuple):
    model: str
    expected_ns: int
    rows: int
    num_requests: int


class Metrics:
    """Implements gateway.dispatcher.Observer.

    Bind the scheduler with `watch` before somebody looks; until then its gauges are absent.
    """

    def __init__(self, *, version: str, page_bytes: int) -> None:
        self.version = version
        self.page_bytes = page_bytes
        self.scheduler: SchedulerView | None = None
        self.link: LinkView | None = None
        self.http: HttpView | None = None
        self.keyring: Keyring | None = None
        self.sharings: Mapping[str, AnswerSharing] = {}
        # All and only models that were asked for by a name of the catalogue, or acted upon.
        self.models: dict[str, ModelTallies] = {}
        # The same, and by the names of all their versions in the scheduler.
        self._tallies: dict[str, ModelTallies] = {}
        # Answers to requests that named no model of the catalogue, by (outcome, reason).
        self.unnamed: Counter[tuple[str, str]] = Counter()
        self.workers: dict[str, int] = {}  # name → incarnations now up
        self.results: Counter[tuple[str, str]] = Counter()  # (action, code)
        # Actual minus predicted, by what was predicted. Over all models: with a histogram for each
        # they were half of the page.
        self.errors_ns = {kind: Tally(SIGNED_DURATIONS) for kind in ("request", "exec", "load")}
        # All and only actions sent whose result has not come, by worker and id.
        self._sent: dict[str, dict[int, _Sent]] = {}

    def watch(self, scheduler: SchedulerView) -> None:
        self.scheduler = scheduler

    def watch_link(self, link: LinkView) -> None:
        self.link = link

    def watch_http(self, http: HttpView) -> None:
        self.http = http

    def watch_tenants(self, keyring: Keyring) -> None:
        self.keyring = keyring

    def watch_sharings(self, sharings: Sharings) -> None:
        self.sharings = sharings.by_model

    def of_model(self, name: str) -> ModelTallies:
        """Only for names of the catalogue: each becomes a label. A version's name in the scheduler
        stands for its model.
        """
        tallies = self._tallies.get(name)
        if tallies is None:
            public_name = name.partition("/")[0]
            tallies = self.models.get(public_name)
            if tallies is None:
                tallies = self.models[public_name] = ModelTallies(self.errors_ns["request"])
            self._tallies[name] = tallies
        return tallies

    def forget_version(self, key: str) -> None:
        """No action will name it any more."""
        self._tallies.pop(key, None)

    def observe_unnamed(self, outcome: str, reason: str) -> None:
        """An answer to a request whose model is unknown, or was never read."""
        self.unnamed[outcome, reason] += 1

    def on_event(self, event: Event, now: int) -> None:
        match event:
            case ActionFinished():
                self._on_finished(event, now)
            case WorkerJoined():
                self._on_worker(event.worker_id, +1)
            case WorkerLost():
                self._sent.pop(event.worker_id, None)
                self._on_worker(event.worker_id, -1)
            case _:  # the endpoints count requests, by their answers
                pass

    def on_commands(self, event: Event, commands: Sequence[Command], now: int) -> None:
        for command in commands:
            if type(command) is Send:
                self._on_sent(command)

    def _on_sent(self, send: Send) -> None:
        action = send.action
        expected_ns = rows = num_requests = 0
        if type(action) is Infer:
            rows, num_requests = sum(action.rows), len(action.rows)
            if rows:  # else a trial, which is nobody's
                self.of_model(action.model).batch_rows.observe(rows)
            expected_ns = action.expected_duration_ns
        elif type(action) is LoadWeights:
            expected_ns = action.expected_duration_ns
        of_worker = self._sent.setdefault(send.worker_id, {})
        of_worker[action.action_id] = _Sent(action.model, expected_ns, rows, num_requests)

    def _on_finished(self, event: ActionFinished, now: int) -> None:
        result = event.result
        sent = self._sent.get(event.worker_id, {}).pop(result.action_id, None)
        if sent is None:
            return  # late or unknown: the core counts that as an anomaly
        expected_ns = sent.expected_ns
        tallies = self.of_model(sent.model)
        is_ok = result.code == Code.OK
        if isinstance(result, InferResult):
            kind = "infer" if sent.rows else "trial"
            if is_ok and sent.rows:
                tallies.exec_ns.observe(result.exec.duration_ns)
                tallies.executions.observe(
                    result, rows=sent.rows, num_requests=sent.num_requests, now=now
                )
                self.errors_ns["exec"].observe(result.exec.duration_ns - expected_ns)
        elif isinstance(result, LoadResult):
            kind = "load"
            tallies.loads += is_ok
            tallies.load_failures += not is_ok
            if is_ok:
                tallies.load_ns.observe(result.load.duration_ns)
                self.errors_ns["load"].observe(result.load.duration_ns - expected_ns)
        elif isinstance(result, EvictResult):
            kind = "evict"
            tallies.evictions += is_ok
        else:
            kind = "release"
            tallies.host_bytes_released += result.host_bytes
        self.results[kind, result.code.name.lower()] += 1

    def _on_worker(self, worker_id: str, change: int) -> None:
        name = name_of(worker_id)
        if name in self.workers or len(self.workers) < MAX_WORKER_NAMES:
            self.workers[name] = max(0, self.workers.get(name, 0) + change)


def name_of(worker_id: str) -> str:
    """The operator's name of a worker, the same over all its incarnations."""
    return worker_id.partition("#")[0]
