"""Metrics never grow with what clients send, nor with time: names, keys, a day of traffic."""

import gc
import sys
from collections.abc import Callable

import msgspec
import pytest

from gateway.config import GatewayConfig
from gateway.inference.exchange import Reply as HttpReply
from gateway.inference.target import NATIVE, Target, target_of
from gateway.metrics.loop_lag import LoopLag
from gateway.metrics.metrics import Metrics
from gateway.metrics.page import page_parts
from gateway.metrics.scaling_sampler import ScalingSampler
from gateway.tenants.tenants_file import TenantSpec
from scheduler.actions import (
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Span,
)
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    ModelAdded,
    Reply,
    RequestArrived,
    Send,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.scaling import Scaling
from scheduler.spec import SECOND_NS
from tests.gateway.http_doubles import (
    Bench,
    Clock,
    PuppetDevice,
    PuppetScheduler,
    Timers,
    model_spec,
    ms,
    served,
)

NUM_NAMES = 100_000
# Of the interpreter's own making: caches of methods, a few integers that have become large.
NOISE_BLOCKS = 500


def blocks() -> int:
    """Pieces of memory in use by Python objects."""
    gc.collect()
    return sys.getallocatedblocks()


def series(metrics: Metrics) -> set[str]:
    lines = "".join(page_parts(metrics)).splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def ask(bench: Bench, *, model: str, target: Target = NATIVE, key: str = "") -> int:
    """The status of the answer to one request."""
    row = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5] * 4}
    body = msgspec.json.encode({"model": model, "inputs": [row]})
    statuses: list[int] = []

    def write(reply: HttpReply, on_written: Callable[[], None]) -> None:
        statuses.append(reply[0]["status"])
        on_written()

    headers = [(b"content-length", b"%d" % len(body))]
    if key:
        headers.append((b"x-api-key", key.encode()))
    arrival_ns = bench.clock()
    bench.app.infer.answer(headers, body, write, arrival_ns=arrival_ns, target=target)
    return statuses[0]


def v2_target(model: str) -> Target:
    target = target_of(f"/v2/models/{model}/infer")
    assert target is not None
    return target


def key_of(number: int) -> str:
    return f"rk_{number:032d}"


@pytest.mark.parametrize(
    ("send", "status"),
    [
        (lambda bench, n: ask(bench, model=f"model-{n}"), 404),
        (lambda bench, n: ask(bench, model="", target=v2_target(f"model-{n}")), 404),
        (lambda bench, n: ask(bench, model="mlp", key=key_of(n)), 401),
        (lambda bench, n: ask(bench, model=f"model-{n}", key=f"tenant-{n}"), 401),
    ],
    ids=["models", "models by v2's path", "keys", "names of tenants and models"],
)
def test_a_hundred_thousand_names_in_requests_are_no_label_and_take_no_memory(
    send: Callable[[Bench, int], int], status: int
) -> None:
    tenants = {"a": TenantSpec()} if status == 401 else None
    # What is remembered of recent requests is full before it is measured.
    bench = Bench(tenants=tenants, config=GatewayConfig(recent_requests=500))
    for number in range(1000):
        assert send(bench, number) == status
    known, before = series(bench.metrics), blocks()
    for number in range(1000, NUM_NAMES):
        send(bench, number)
    assert blocks() - before < NOISE_BLOCKS
    assert series(bench.metrics) == known
    page = "".join(page_parts(bench.metrics))
    assert "model-" not in page
    assert "tenant-" not in page
    assert sum(bench.metrics.totals.others.values()) == NUM_NAMES


class Day:
    """Traffic of a day on two workers and three models, a second at a time."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.timers = Timers()
        self.metrics = Metrics(version="0", page_bytes=16 << 20)
        self.scheduler = PuppetScheduler({"mlp": model_spec()})
        scaling = Scaling(horizon_ns=60 * SECOND_NS, target_utilisation=0.7)
        self.metrics.watch(self.scheduler)
        self.metrics.watch_scaling(scaling)
        lag = LoopLag(clock=self.clock, call_later=self.timers)
        self.metrics.watch_loop(lag)
        lag.start()
        sampler = ScalingSampler(
            scaling,
            self.scheduler,
            self.metrics.totals,
            clock=self.clock,
            call_later=self.timers,
        )
        sampler.start()
        self._action_id = 0
        self._worker_ids = {"a": "a#0-0", "b": "b#0-0"}
        for name in ("mlp", "m1", "m2"):
            self._event(ModelAdded(model_spec(name)))

    def run_hour(self, hour: int) -> None:
        for name in self._worker_ids:  # a worker a restart
            self._event(WorkerLost(self._worker_ids[name], "restart"))
            worker_id = self._worker_ids[name] = f"{name}#{hour}-{hour}"
            self._event(WorkerJoined(worker_id, PuppetDevice({}).spec, (), ()))
        for second in range(3600):
            self._second(second)

    def _second(self, second: int) -> None:
        model = ("mlp", "m1", "m2")[second % 3]
        worker_id = self._worker_ids["ab"[second % 2]]
        tallies = self.metrics.of_model(model)
        self._event(RequestArrived(second, model, self.clock.now, self.clock.now + ms(50)))
        if second % 7 == 0:
            tallies.observe_refused("rejected", "cold_model", latency_ns=ms(0.2))
        if second % 11 == 0:
            tallies.observe_refused("expired", "deadline_exceeded_queued", latency_ns=ms(50))
        if second % 60 == 0:
            self._action(worker_id, LoadWeights(self._next_id(), model, 2, 0, 0, ms(8)))
            self._action(worker_id, EvictWeights(self._next_id(), model, 0, 0))
        rows = 1 + second % 8
        self._action(worker_id, Infer(self._next_id(), model, rows, (1,), (rows,), 0, 0, ms(2)))
        latency_ns = ms(3) + second * 1000
        tallies.observe_served(served(load_ns=ms(second % 2)), latency_ns=latency_ns, slo_ns=ms(50))
        self.clock.advance(SECOND_NS)
        due, self.timers.armed = self.timers.armed, []
        for timer in due:
            timer.fire()

    def _action(self, worker_id: str, action: Infer | LoadWeights | EvictWeights) -> None:
        self._event(Tick(), Send(worker_id, action))
        begin, end = self.clock.now, self.clock.now + ms(2)
        answers: list[Command] = []
        result: InferResult | LoadResult | EvictResult
        if isinstance(action, Infer):
            spans = (Span(begin, begin, 0), Span(begin, end, end - begin), Span(end, end, 0))
            result = InferResult(action.action_id, Code.OK, "", begin, *spans)
            answers = [Reply(1, served())]
        elif isinstance(action, LoadWeights):
            result = LoadResult(action.action_id, Code.OK, load=Span(begin, end, end - begin))
        else:
            result = EvictResult(action.action_id, Code.OK)
        self._event(ActionFinished(worker_id, result), *answers)

    def _next_id(self) -> int:
        self._action_id += 1
        return self._action_id

    def _event(self, event: Event, *commands: Command) -> None:
        self.metrics.on_event(event, self.clock.now)
        self.metrics.on_commands(event, commands, self.clock.now)


def test_a_day_of_metrics_takes_no_more_memory_than_its_first_hours() -> None:
    day = Day()
    for hour in range(2):
        day.run_hour(hour)
    known, before = series(day.metrics), blocks()
    for hour in range(2, 24):
        day.run_hour(hour)
    assert blocks() - before < NOISE_BLOCKS
    assert series(day.metrics) == known
    assert 'remontoir_request_duration_seconds_count{model="mlp"}' in known
    assert day.metrics.totals.num_served == 24 * 3600
