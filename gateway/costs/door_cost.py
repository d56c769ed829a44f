"""`python -m gateway.costs.door_cost`: what metrics, stories, keys, quotas and traces cost, in µs.

It owns a gateway without sockets: real endpoint, dispatcher and scheduler, and in place of a worker
something that answers at once. A request goes through it in a plain call, so that microseconds
show which sockets would hide. Each step has what the one before it has, and one thing more; steps
take turns, so that what the machine does in some moment happens to all. It prints JSON, for
`python -m loadtest door`.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence

import msgspec

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.dispatcher import Dispatcher, Observer
from gateway.inference.exchange import Reply
from gateway.inference.target import NATIVE
from gateway.lifecycle import Lifecycle
from gateway.metrics.metrics import Metrics
from gateway.metrics.tallies import ModelTallies, Totals
from gateway.observability.trace_context import TraceContext
from gateway.observability.trace_spans import SpanFacts
from gateway.observability.traces import Traces
from gateway.tenants.api_keys import new_key
from gateway.tenants.device_time import DeviceTime
from gateway.tenants.keyring import Keyring
from gateway.tenants.tenants_file import Tenants, TenantSpec
from scheduler.actions import Action, Code, Infer, InferResult, Span
from scheduler.events import ModelAdded, Served, WorkerJoined
from scheduler.scheduler import Scheduler
from scheduler.spec import (
    MILLISECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    ShapeProfile,
    TensorSpec,
)
from scheduler.wire import Buffer, RequestTensors, TensorMeta

NUM_TENANTS = 100
# Of a limit that is asked about, and never reached.
PLENTY = 1e6

WORKER = "w#1-1"
PAGE_BYTES = 16 << 20
SPEC = ModelSpec(
    name="mlp",
    version="1",
    content_hash="c0ffee",
    platform="onnxruntime_onnx",
    inputs=(TensorSpec("x", "FP32", (-1, 64)),),
    outputs=(TensorSpec("y", "FP32", (-1, 10)),),
    batch_sizes=(1, 2, 4, 8, 16),
    runs_exact_batch=True,
    weights_bytes=20_000,
    profile=ModelProfile(MILLISECOND_NS, (ShapeProfile("", 64, {1: 10_000, 16: 40_000}),)),
)
BODY = msgspec.json.encode(
    {
        "model": "mlp",
        "slo_ms": 1000,
        "inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}],
    }
)
OUTPUT = bytes(40)


class Step(msgspec.Struct, kw_only=True):
    """Microseconds of a whole request, by rounds: lower quartile and median; `added_us` is what the
    step adds to the one before it, by the lower quartiles, which others' work on the machine
    disturbs least.
    """

    name: str
    quartile_us: float
    median_us: float
    added_us: float | None = None


class _NoTallies(ModelTallies):
    def observe_served(self, served: Served, *, latency_ns: int, slo_ns: int) -> None:
        pass


class _NoMetrics(Metrics):
    """The endpoint calls it; nothing is counted."""

    def __init__(self) -> None:
        super().__init__(version="0", page_bytes=PAGE_BYTES)
        self._nothing = _NoTallies(Totals())

    def of_model(self, name: str) -> ModelTallies:
        return self._nothing


class _Never:
    def cancel(self) -> None:
        pass


class _NoTimer:
    def call_later(self, delay: float, callback: Callable[[], None], /) -> _Never:
        return _Never()


class _NoCollector:
    def send(self, traces: Sequence[tuple[TraceContext, list[SpanFacts]]]) -> bool:
        return True


class _Link:
    """Keeps what is sent, for the caller to answer."""

    def __init__(self) -> None:
        self.infer: Infer | None = None

    def send(
        self,
        worker_id: str,
        action: Action,
        tensors: tuple[RequestTensors, ...],
        buffers: Sequence[Buffer],
    ) -> None:
        if isinstance(action, Infer):
            self.infer = action


class _Gateway:
    """One request after the other, each alone."""

    def __init__(
        self,
        name: str,
        *,
        is_counted: bool = True,
        num_kept: int = 0,
        trace_ratio: float | None = None,
        limits: TenantSpec | None = None,
        is_metered: bool = True,
    ) -> None:
        """`num_kept` requests are kept for /requests. With a `trace_ratio` so many are traced, and
        sent to nobody. With `limits` there are tenants, whose device
        time is measured if `is_metered`.
        """
        self.name = name
        self.runs_us: list[float] = []
        headers = {b"host": b"127.0.0.1:8000", b"user-agent": b"door", b"accept": b"*/*"}
        headers |= {b"content-type": b"application/json", b"content-length": b"%d" % len(BODY)}
        clock = time.monotonic_ns
        scheduler = Scheduler()
        metrics = Metrics(version="0", page_bytes=PAGE_BYTES) if is_counted else _NoMetrics()
        observers: list[Observer] = [metrics] if is_counted else []
        keyring = device_time = None
        if limits is not None:
            keys = [new_key() for _ in range(NUM_TENANTS)]
            tenants: Tenants = {
                f"t{number}": msgspec.structs.replace(limits, keys=(key.line,))
                for number, key in enumerate(keys)
            }
            headers[b"authorization"] = b"Bearer " + keys[NUM_TENANTS // 2].text.encode()
            keyring = Keyring(tenants, clock=clock)
        if keyring is not None and is_metered:
            device_time = DeviceTime(keyring, {SPEC.name: SPEC})
            observers.append(device_time)
        traces = None if trace_ratio is None else Traces(_NoCollector(), ratio=trace_ratio)
        if traces is not None:
            observers.append(traces)
        self._traces = traces
        self._headers = list(headers.items())
        self._link = _Link()
        self._dispatcher = Dispatcher(
            scheduler,
            self._link,
            clock=clock,
            timer=_NoTimer(),
            on_fatal=_raise,
            observers=observers,
        )
        lifecycle = Lifecycle()
        lifecycle.serve()
        app = create_app(
            GatewayConfig(recent_requests=num_kept),
            self._dispatcher,
            scheduler,
            {SPEC.name: SPEC},
            metrics=metrics,
            clock=clock,
            lifecycle=lifecycle,
            keyring=keyring,
            device_time=device_time,
            on_answered=[] if traces is None else [traces.note],
            begin_trace=None if traces is None else traces.begin,
        )
        self._answer = app.infer.answer
        device = DeviceSpec(
            kind="cpu", page_bytes=PAGE_BYTES, total_pages=8, shares_exec_core=False
        )
        self._dispatcher.feed(ModelAdded(SPEC))
        self._dispatcher.feed(WorkerJoined(WORKER, device, (SPEC,), (SPEC.name,)))

    def run(self, num_requests: int) -> float:
        """Microseconds per request. Raises RuntimeError for one that is not served."""
        if self._traces is not None:
            self._traces.export()  # of the last run, as the thread does it
        begin_ns = time.thread_time_ns()  # of this thread alone, whoever else is at work
        for _ in range(num_requests):
            self._one()
        return (time.thread_time_ns() - begin_ns) / num_requests / 1000

    def _one(self) -> None:
        arrival_ns = time.monotonic_ns()
        self._answer(self._headers, BODY, _written, arrival_ns=arrival_ns, target=NATIVE)
        infer, self._link.infer = self._link.infer, None
        if infer is None:
            raise RuntimeError("a request was not sent to the worker at once")
        now = time.monotonic_ns()
        spans = (Span(arrival_ns, now, 0), Span(arrival_ns, now, 10_000), Span(now, now, 0))
        result = InferResult(infer.action_id, Code.OK, "", arrival_ns, *spans)
        outputs = [(TensorMeta((1, 10), len(OUTPUT)),)], [[memoryview(OUTPUT)]]
        self._dispatcher.report(WORKER, result, *outputs)


def _written(reply: Reply, on_written: Callable[[], None]) -> None:
    if reply[0]["status"] != 200:
        raise RuntimeError(f"not served: {reply[1]['body']!r}")
    on_written()


def _raise(error: Exception) -> None:
    raise error


def measure(*, num_rounds: int, num_requests: int) -> list[Step]:
    """Each step in turn, `num_rounds` times so many requests."""
    limits = TenantSpec(
        models=("resnet*", "mlp"),
        min_slo_ms=1,
        requests_per_s=PLENTY,
        gpu_ms_per_s=PLENTY,
        max_concurrent=1000,
    )
    num_kept = GatewayConfig().recent_requests
    gateways = [
        _Gateway("nothing counted", is_counted=False),
        _Gateway("metrics"),
        _Gateway("recent requests", num_kept=num_kept),
        _Gateway("authentication", num_kept=num_kept, limits=TenantSpec(), is_metered=False),
        _Gateway("tenants' device time", num_kept=num_kept, limits=TenantSpec()),
        _Gateway("quotas", num_kept=num_kept, limits=limits),
        _Gateway("traces of 1 %", num_kept=num_kept, limits=limits, trace_ratio=0.01),
        _Gateway("traces of all", num_kept=num_kept, limits=limits, trace_ratio=1.0),
    ]
    for gateway in gateways:
        gateway.run(num_requests)
    gc.disable()  # what it costs is not this step's
    for number in range(num_rounds):
        gc.collect()
        # back and forth: whoever comes first finds cold caches
        for gateway in gateways if number % 2 else reversed(gateways):
            gateway.runs_us.append(gateway.run(num_requests))
    gc.enable()
    steps: list[Step] = []
    for gateway in gateways:
        quartile_us, median_us, _ = statistics.quantiles(gateway.runs_us, n=4)
        added_us = quartile_us - steps[-1].quartile_us if steps else None
        steps.append(
            Step(name=gateway.name, quartile_us=quartile_us, median_us=median_us, added_us=added_us)
        )
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.costs.door_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--requests", type=int, default=300, help="in each round and step")
    args = parser.parse_args()
    steps = measure(num_rounds=args.rounds, num_requests=args.requests)
    print(msgspec.json.encode(steps).decode())


if __name__ == "__main__":
    main()
