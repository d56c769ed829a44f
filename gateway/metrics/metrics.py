"""Metrics: what the gateway counts, told by the dispatcher (as its Observer) and the endpoints.

It owns the accumulators and which name may become a label. It must never slow the hot path and
never let a client choose a label: models are those of the catalogue, reasons those of the error
table. How it is shown is gateway/metrics/page.py.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.inference.answer_sharing import AnswerSharing, Sharings
from gateway.metrics.lane_times import LaneTimes
from gateway.metrics.loop_lag import LoopLag
from gateway.metrics.tallies import SIGNED_DURATIONS, ModelTallies, Tally, Totals
from gateway.tenants.keyring import Keyring
from gateway.variants.feedback import Feedback
from gateway.variants.groups import Group
from gateway.views import HttpView, LinkView, ReplicasView, SchedulerView
from scheduler.actions import Code, EvictResult, Infer, InferResult, LoadResult, LoadWeights
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    ModelAdded,
    ModelForgotten,
    Reply,
    RequestArrived,
    Send,
    Served,
    WorkerJoined,
    WorkerLost,
)
from scheduler.scaling import Scaling
from scheduler.spec import ModelSpec, public_name

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
        self.loop_lag: LoopLag | None = None
        self.scaling: Scaling | None = None
        self.replicas: ReplicasView | None = None
        self.groups: Mapping[str, Group] = {}
        self.feedback: Feedback | None = None
        # The models to show under Triton's names too; None: under ours alone.
        self.triton_catalog: Mapping[str, ModelSpec] | None = None
        self.sharings: Mapping[str, AnswerSharing] = {}
        # All and only models that were asked for by a name of the catalogue, or acted upon.
        self.models: dict[str, ModelTallies] = {}
        # The same, and by the names of all their versions in the scheduler.
        self._tallies: dict[str, ModelTallies] = {}
        self.totals = Totals()
        # What became of versions that were to take over, by (model, outcome): reloaded,
        # rolled_back, failed.
        self.reloads: Counter[tuple[str, str]] = Counter()
        # Answers to requests that named no model of the catalogue, by (outcome, reason).
        self.unnamed: Counter[tuple[str, str]] = Counter()
        self.workers: dict[str, int] = {}  # name → incarnations now up
        self.results: Counter[tuple[str, Code]] = Counter()  # (action, code)
        # Actual minus predicted, by what was predicted. Over all models: with a histogram for each
        # they were half of the page.
        self.errors_ns = {
            "request": self.totals.error_ns,
            "exec": Tally(SIGNED_DURATIONS),
            "load": Tally(SIGNED_DURATIONS),
        }
        self.lanes: dict[str, LaneTimes] = {}  # by the worker's name
        # All and only workers of which a batch or a LOAD has ended, until they are lost, by id.
        self._lanes: dict[str, LaneTimes] = {}
        # Where the lane was idle before the batch whose result is being handled, and how long.
        self._gap: tuple[LaneTimes, int] | None = None
        self._weights_bytes: dict[str, int] = {}  # of the models served
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

    def watch_loop(self, loop_lag: LoopLag) -> None:
        self.loop_lag = loop_lag

    def watch_scaling(self, scaling: Scaling) -> None:
        self.scaling = scaling

    def watch_replicas(self, replicas: ReplicasView) -> None:
        self.replicas = replicas

    def show_as_triton(self, catalog: Mapping[str, ModelSpec]) -> None:
        """The page has Triton's names besides ours, of these models."""
        self.triton_catalog = catalog

    def watch_sharings(self, sharings: Sharings) -> None:
        self.sharings = sharings.by_model

    def watch_groups(self, groups: Mapping[str, Group], feedback: Feedback) -> None:
        self.groups = groups
        self.feedback = feedback

    def of_model(self, name: str) -> ModelTallies:
        """Only for names of the catalogue: each becomes a label. A version's name in the scheduler
        stands for its model.
        """
        tallies = self._tallies.get(name)
        if tallies is None:
            told = public_name(name)
            tallies = self.models.get(told)
            if tallies is None:
                tallies = self.models[told] = ModelTallies(self.totals)
            self._tallies[name] = tallies
        return tallies

    def forget_version(self, key: str) -> None:
        """No action will name it any more."""
        self._tallies.pop(key, None)

    def observe_unnamed(self, outcome: str, reason: str, *, latency_ns: int) -> None:
        """An answer to a request whose model is unknown, or was never read."""
        self.unnamed[outcome, reason] += 1
        self.totals.observe_refused(outcome, reason, latency_ns=latency_ns)

    def on_event(self, event: Event, now: int) -> None:
        # Most events are one of these two; a class pattern is a call each.
        if type(event) is RequestArrived:
            return  # the endpoints count requests, by their answers
        if type(event) is ActionFinished:
            self._on_finished(event, now)
            return
        match event:
            case WorkerJoined():
                self._on_worker(event.worker_id, +1)
            case WorkerLost():
                self._sent.pop(event.worker_id, None)
                lanes = self._lanes.pop(event.worker_id, None)
                if lanes is not None:
                    lanes.lose()
                self._on_worker(event.worker_id, -1)
            case ModelAdded():
                self._weights_bytes[event.spec.name] = event.spec.weights_bytes
            case ModelForgotten():
                self._weights_bytes.pop(event.model, None)
            case _:
                pass

    def on_commands(self, event: Event, commands: Sequence[Command], now: int) -> None:
        gap, self._gap = self._gap, None
        waited_ns = 0
        for command in commands:
            if type(command) is Send:
                self._on_sent(command)
            elif gap is not None and type(command) is Reply:
                outcome = command.outcome
                if type(outcome) is Served and outcome.queue_ns > waited_ns:
                    waited_ns = outcome.queue_ns
        if gap is not None:
            lanes, gap_ns = gap
            # Who came to an idle lane waits for its way there, which is no idleness of the lane's:
            # somebody of the batch must have been here before the one before it ended.
            if waited_ns >= gap_ns:
                lanes.idle_with_work_ns += gap_ns

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
        of_worker = self._sent.get(event.worker_id)
        sent = of_worker.pop(result.action_id, None) if of_worker else None
        if sent is None:
            return  # late or unknown: the core counts that as an anomaly
        expected_ns = sent.expected_ns
        tallies = self.of_model(sent.model)
        is_ok = result.code is Code.OK
        if isinstance(result, InferResult):
            kind = "infer" if sent.rows else "trial"
            if is_ok:
                lanes = self._lanes.get(event.worker_id) or self._lanes_of(event.worker_id)
                gap_ns = lanes.executed(result.input.begin_ns, result.output.end_ns)
                if gap_ns:
                    self._gap = lanes, gap_ns
            if is_ok and sent.rows:
                tallies.observe_executed(
                    result, rows=sent.rows, num_requests=sent.num_requests, now=now
                )
                self.errors_ns["exec"].observe(result.exec.duration_ns - expected_ns)
        elif isinstance(result, LoadResult):
            kind = "load"
            tallies.loads += is_ok
            tallies.load_failures += not is_ok
            if is_ok:
                tallies.loaded_bytes += self._weights_bytes.get(sent.model, 0)
                span = result.load
                self._lanes_of(event.worker_id).loaded(span.begin_ns, span.end_ns)
                tallies.load_ns.observe(span.duration_ns)
                self.errors_ns["load"].observe(result.load.duration_ns - expected_ns)
        elif isinstance(result, EvictResult):
            kind = "evict"
            tallies.evictions += is_ok
            if is_ok:
                tallies.evicted_bytes += self._weights_bytes.get(sent.model, 0)
        else:
            kind = "release"
            tallies.host_bytes_released += result.host_bytes
        self.results[kind, result.code] += 1

    def _lanes_of(self, worker_id: str) -> LaneTimes:
        lanes = self._lanes.get(worker_id)
        if lanes is None:
            name = name_of(worker_id)
            lanes = self.lanes.get(name) or LaneTimes()
            if len(self.lanes) < MAX_WORKER_NAMES:
                self.lanes[name] = lanes
            self._lanes[worker_id] = lanes
        return lanes

    def _on_worker(self, worker_id: str, change: int) -> None:
        name = name_of(worker_id)
        if name in self.workers or len(self.workers) < MAX_WORKER_NAMES:
            self.workers[name] = max(0, self.workers.get(name, 0) + change)


def name_of(worker_id: str) -> str:
    """The operator's name of a worker, the same over all its incarnations."""
    return worker_id.partition("#")[0]
