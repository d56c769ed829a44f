"""Prometheus metrics of the gateway: counted in plain Python, shown on demand.

It owns names, labels and gauges. It is told of events and commands by the dispatcher (as its
Observer) and of answers by the endpoints; gauges are read from the scheduler when somebody looks.
It must never slow the hot path and never let a client choose a label: models are those of the
catalogue, reasons those of the error table.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway.tallies import ModelTallies, Tally
from gateway.views import SchedulerView
from scheduler.actions import Code, EvictResult, Infer, InferResult, LoadResult, LoadWeights
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Send,
    WorkerJoined,
    WorkerLost,
)
from scheduler.spec import SECOND_NS

# Workers are named by their operator; more names than this in one life are a mistake.
MAX_WORKER_NAMES = 1024


class Metrics(Collector):
    """The dispatcher's Observer and prometheus_client's Collector in one.

    Bind the scheduler with `watch` before somebody looks; until then gauges are absent.
    """

    def __init__(self, *, version: str, page_bytes: int) -> None:
        self._version = version
        self._page_bytes = page_bytes
        self._scheduler: SchedulerView | None = None
        # All and only models that were asked for by a name of the catalogue, or acted upon.
        self._models: dict[str, ModelTallies] = {}
        # Answers to requests that named no model of the catalogue.
        self._unnamed: Counter[tuple[str, str]] = Counter()
        # All and only actions sent whose result has not come, by worker and id.
        self._sent: dict[str, dict[int, tuple[str, int]]] = {}
        self._workers: dict[str, int] = {}  # name → incarnations now up
        self._results: Counter[tuple[str, str]] = Counter()  # (action, code)

    def watch(self, scheduler: SchedulerView) -> None:
        self._scheduler = scheduler

    def of_model(self, name: str) -> ModelTallies:
        """Only for names of the catalogue: each becomes a label."""
        tallies = self._models.get(name)
        if tallies is None:
            tallies = self._models[name] = ModelTallies()
        return tallies

    def observe_unnamed(self, outcome: str, reason: str) -> None:
        """An answer to a request whose model is unknown, or was never read."""
        self._unnamed[outcome, reason] += 1

    # ------------------------------------------------------------------ Observer

    def on_event(self, event: Event, now: int) -> None:
        kind = type(event)
        if kind is ActionFinished:
            self._on_finished(event)  # type: ignore[arg-type]  # `is` does not narrow
        elif kind is WorkerJoined:
            self._on_worker(event.worker_id, +1)  # type: ignore[union-attr]
        elif kind is WorkerLost:
            self._sent.pop(event.worker_id, None)  # type: ignore[union-attr]
            self._on_worker(event.worker_id, -1)  # type: ignore[union-attr]

    def on_commands(self, event: Event, commands: Sequence[Command], now: int) -> None:
        for command in commands:
            if type(command) is Send:
                self._on_sent(command)

    def _on_sent(self, send: Send) -> None:
        action = send.action
        if type(action) is Infer:
            self.of_model(action.model).batch_rows.observe(sum(action.rows))
            expected_ns = action.expected_duration_ns
        else:
            expected_ns = action.expected_duration_ns if type(action) is LoadWeights else 0
        of_worker = self._sent.setdefault(send.worker_id, {})
        of_worker[action.action_id] = (action.model, expected_ns)

    def _on_finished(self, event: ActionFinished) -> None:
        result = event.result
        sent = self._sent.get(event.worker_id, {}).pop(result.action_id, None)
        if sent is None:
            return  # late or unknown: the core counts that as an anomaly
        model, expected_ns = sent
        tallies = self.of_model(model)
        is_ok = result.code == Code.OK
        if type(result) is InferResult:
            self._results["infer", result.code.name.lower()] += 1
            if is_ok:
                tallies.exec_ns.observe(result.exec.duration_ns)
                tallies.exec_error_ns.observe(result.exec.duration_ns - expected_ns)
        elif type(result) is LoadResult:
            self._results["load", result.code.name.lower()] += 1
            if is_ok:
                tallies.loads += 1
                tallies.load_ns.observe(result.load.duration_ns)
                tallies.load_error_ns.observe(result.load.duration_ns - expected_ns)
            else:
                tallies.load_failures += 1
        elif type(result) is EvictResult:
            self._results["evict", result.code.name.lower()] += 1
            tallies.evictions += is_ok

    def _on_worker(self, worker_id: str, change: int) -> None:
        name = worker_id.partition("#")[0]
        if name in self._workers or len(self._workers) < MAX_WORKER_NAMES:
            self._workers[name] = max(0, self._workers.get(name, 0) + change)

    # ------------------------------------------------------------------ Collector

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("remontoir_build_info", "Always 1.", labels=["version"])
        info.add_metric([self._version], 1)
        yield info
        yield from self._collect_requests()
        yield from self._collect_actions()
        yield from self._collect_workers()
        if self._scheduler is not None:
            yield from self._collect_scheduler(self._scheduler)

    def _collect_requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "remontoir_requests",
            "Requests answered, by model (empty: none of the catalogue), outcome and reason.",
            labels=["model", "outcome", "reason"],
        )
        rejections = CounterMetricFamily(
            "remontoir_rejections", "Requests refused before execution.", labels=["model", "reason"]
        )
        cold = CounterMetricFamily(
            "remontoir_cold_starts", "Served requests that waited for weights.", labels=["model"]
        )
        answered = [("", self._unnamed)]
        answered += [(name, tallies.outcomes) for name, tallies in self._models.items()]
        for model, outcomes in answered:
            for (outcome, reason), count in outcomes.items():
                requests.add_metric([model, outcome, reason], count)
                if outcome == "rejected":
                    rejections.add_metric([model, reason], count)
        for model, tallies in self._models.items():
            cold.add_metric([model], tallies.cold_starts)
        yield from (requests, rejections, cold)
        yield self._histogram(
            "remontoir_request_duration_seconds",
            "From the first sight of a request to its answer, whatever it was.",
            ((name, tallies.request_ns) for name, tallies in self._models.items()),
        )
        yield self._histogram(
            "remontoir_queue_duration_seconds",
            "Arrival to the start of the input phase, without waiting for a LOAD; served only.",
            ((name, tallies.queue_ns) for name, tallies in self._models.items()),
        )
        yield self._histogram(
            "remontoir_slack_seconds",
            "SLO minus latency of served requests: how much of the promise was left.",
            ((name, tallies.slack_ns) for name, tallies in self._models.items()),
        )

    def _collect_actions(self) -> Iterator[Metric]:
        yield self._histogram(
            "remontoir_exec_duration_seconds",
            "Device time of one execution of one batch.",
            ((name, tallies.exec_ns) for name, tallies in self._models.items()),
        )
        yield self._histogram(
            "remontoir_load_duration_seconds",
            "Device time of one LOAD of a model's weights.",
            ((name, tallies.load_ns) for name, tallies in self._models.items()),
        )
        errors = HistogramMetricFamily(
            "remontoir_prediction_error_seconds",
            "Actual minus predicted: latency of served requests, device time of EXEC and LOAD.",
            labels=["model", "kind"],
        )
        for name, tallies in self._models.items():
            for kind, tally in (
                ("request", tallies.request_error_ns),
                ("exec", tallies.exec_error_ns),
                ("load", tallies.load_error_ns),
            ):
                errors.add_metric(
                    [name, kind],
                    buckets=tally.buckets(SECOND_NS),
                    sum_value=tally.total / SECOND_NS,
                )
        yield errors
        yield self._histogram(
            "remontoir_batch_size",
            "Rows of each batch sent to a worker, without padding.",
            ((name, tallies.batch_rows) for name, tallies in self._models.items()),
            scale=1,
        )
        loads = CounterMetricFamily(
            "remontoir_loads", "LOADs finished.", labels=["model", "result"]
        )
        evictions = CounterMetricFamily("remontoir_evictions", "EVICTs finished.", labels=["model"])
        for name, tallies in self._models.items():
            loads.add_metric([name, "ok"], tallies.loads)
            loads.add_metric([name, "failed"], tallies.load_failures)
            evictions.add_metric([name], tallies.evictions)
        results = CounterMetricFamily(
            "remontoir_action_results", "Results of actions.", labels=["action", "code"]
        )
        for (action, code), count in self._results.items():
            results.add_metric([action, code], count)
        yield from (loads, evictions, results)

    def _collect_workers(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "remontoir_worker_up", "1 while a worker of this name serves.", labels=["worker"]
        )
        for name, num_up in self._workers.items():
            up.add_metric([name], min(1, num_up))
        yield up

    def _collect_scheduler(self, scheduler: SchedulerView) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "remontoir_queue_depth", "Requests waiting, by model.", labels=["model"]
        )
        for name in scheduler.models:
            depth.add_metric([name], scheduler.queue_depth(name))
        pages = GaugeMetricFamily(
            "remontoir_weights_pages", "Pages of the weights cache.", labels=["worker", "state"]
        )
        by_state: Counter[tuple[str, str]] = Counter()
        for worker_id, device in scheduler.devices.items():
            for state, count in device.pages_by_state().items():
                by_state[worker_id.partition("#")[0], state] += count
        for (worker, state), count in by_state.items():
            pages.add_metric([worker, state], count)
        anomalies = CounterMetricFamily(
            "remontoir_anomalies", "Unexpected input of workers, by kind.", labels=["kind"]
        )
        for kind, count in scheduler.anomalies.items():
            anomalies.add_metric([kind], count)
        page_bytes = GaugeMetricFamily(
            "remontoir_weights_page_bytes", "Size of one page.", value=self._page_bytes
        )
        yield from (depth, pages, page_bytes, anomalies)

    @staticmethod
    def _histogram(
        name: str, text: str, rows: Iterable[tuple[str, Tally]], *, scale: float = SECOND_NS
    ) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model"])
        for model, tally in rows:
            family.add_metric([model], buckets=tally.buckets(scale), sum_value=tally.total / scale)
        return family
