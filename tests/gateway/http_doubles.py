"""Puppets for the HTTP side: a dispatcher, a scheduler's read side, a client; moved by hand."""

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.app import App, create_app
from gateway.config import GatewayConfig
from gateway.dispatcher import OnDone, OnQuote, Outputs
from gateway.lifecycle import Lifecycle
from gateway.metrics.metrics import Metrics
from gateway.observability.answered import OnAnswered
from gateway.observability.trace_context import BeginTrace
from gateway.tenants.device_time import DeviceTime
from gateway.tenants.keyring import Keyring
from gateway.tenants.tenants_file import Tenants
from gateway.variants.groups import Groups
from gateway.variants.groups_file import Groups as GroupSpecs
from scheduler.device import WeightsState
from scheduler.events import (
    Cancelled,
    Command,
    Event,
    Failed,
    Quote,
    Rejected,
    RequestArrived,
    Served,
)
from scheduler.spec import (
    MILLISECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    ShapeProfile,
    TensorSpec,
)
from scheduler.wire import Buffer, RequestTensors, TensorMeta

START_NS = 7_000_000_123_456_789  # large and odd: a forgotten time.monotonic_ns() shows at once


def ms(milliseconds: float) -> int:
    return int(milliseconds * MILLISECOND_NS)


def model_spec(name: str = "mlp", **changes: Any) -> ModelSpec:
    """x: FP32[n, 4] → y: FP32[n, 2], batches of up to 4."""
    spec = ModelSpec(
        name=name,
        version="1",
        content_hash="c0ffee",
        platform="onnxruntime_onnx",
        inputs=(TensorSpec("x", "FP32", (-1, 4)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        batch_sizes=(1, 2, 4),
        runs_exact_batch=True,
        weights_bytes=20 << 20,
        profile=ModelProfile(ms(8), (ShapeProfile("", 4, {1: ms(1), 4: ms(3)}),)),
    )
    return msgspec.structs.replace(spec, **changes)


class Clock:
    def __init__(self) -> None:
        self.now = START_NS

    def __call__(self) -> int:
        return self.now

    def advance(self, duration_ns: int) -> None:
        self.now += duration_ns


class Timers:
    """`loop.call_later` by hand."""

    def __init__(self) -> None:
        self.armed: list[PuppetTimer] = []

    def __call__(self, delay_s: float, callback: Callable[[], None]) -> "PuppetTimer":
        timer = PuppetTimer(delay_s, callback, self.armed)
        self.armed.append(timer)
        return timer


class PuppetTimer:
    def __init__(
        self, delay_s: float, callback: Callable[[], None], armed: list["PuppetTimer"]
    ) -> None:
        self.delay_s = delay_s
        self._callback = callback
        self._armed = armed

    def cancel(self) -> None:
        self._armed.remove(self)

    def fire(self) -> None:
        self._callback()


class Submitted(msgspec.Struct):
    request_id: int
    model: str
    arrival_ns: int
    slo_ns: int
    rows: int
    batch_key: str
    shape_key: str
    elements: int
    do_not_queue: bool
    tensors: RequestTensors
    buffers: list[Any]
    on_done: Any
    tenant: str
    priority: int


class PuppetDispatcher:
    """Keeps what is submitted; `answer_at_once` is given what each on_done is called with."""

    def __init__(self) -> None:
        self.submitted: list[Submitted] = []
        self.cancelled: list[int] = []
        self.observers: list[Any] = []
        self.answer_at_once: tuple[Any, Outputs | None] | None = None
        self.foreseen: list[tuple[str, int, int, str, int]] = []
        self.refusal: Rejected | None = None
        self.quoted: list[tuple[str, int, int, str, str, int]] = []
        self.quoted_flags: list[tuple[bool, int, str]] = []
        self.quote_answer: Quote | Failed = Quote(num_met=1)
        self.asked: list[str] = []  # models whose verdict was wanted
        self.verdicts: dict[str, Quote | None] = {}  # of others: met
        self.executing: set[int] = set()
        self.fed: list[Event] = []
        self.on_feed: Callable[[Event], None] = lambda event: None

    def add_observer(self, observer: Any) -> None:
        self.observers.append(observer)

    def remove_observer(self, observer: Any) -> None:
        self.observers.remove(observer)

    def feed(self, event: Event) -> None:
        self.fed.append(event)
        self.on_feed(event)

    def next_id(self) -> int:
        return len(self.submitted) + 1

    def foresee(self, arrived: RequestArrived) -> Rejected | None:
        slo_ns = arrived.deadline_ns - arrived.arrival_ns
        self.foreseen.append(
            (arrived.model, slo_ns, arrived.rows, arrived.shape_key, arrived.elements)
        )
        return self.refusal

    def submit(
        self,
        arrived: RequestArrived,
        tensors: RequestTensors,
        buffers: list[Buffer],
        on_done: OnDone,
    ) -> None:
        facts = msgspec.structs.asdict(arrived)
        slo_ns = facts.pop("deadline_ns") - arrived.arrival_ns
        self.submitted.append(
            Submitted(**facts, slo_ns=slo_ns, tensors=tensors, buffers=buffers, on_done=on_done)
        )
        if self.answer_at_once is not None:
            on_done(*self.answer_at_once)

    def verdict(self, arrived: RequestArrived) -> Quote | None:
        self.asked.append(arrived.model)
        return self.verdicts.get(arrived.model, Quote(num_met=1))

    def quote(self, arrived: RequestArrived, count: int, on_quote: OnQuote) -> None:
        slo_ns = arrived.deadline_ns - arrived.arrival_ns
        of_batch = (arrived.batch_key, arrived.shape_key, arrived.elements)
        self.quoted.append((arrived.model, slo_ns, arrived.rows, *of_batch))
        self.quoted_flags.append((arrived.do_not_queue, count, arrived.tenant))
        on_quote(self.quote_answer, arrived.arrival_ns + ms(0.25))

    def is_executing(self, request_id: int) -> bool:
        return request_id in self.executing

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)
        self.submitted[request_id - 1].on_done(Cancelled(), None)


class PuppetDevice:
    def __init__(self, states: Mapping[str, WeightsState]) -> None:
        self.spec = DeviceSpec(
            kind="cpu", page_bytes=16 << 20, total_pages=64, shares_exec_core=False
        )
        self._states = states
        self.weights: dict[str, Any] = {}
        self.outstanding: dict[int, Any] = {}
        self.offered = {name: model_spec(name) for name in states}
        self.schedule_ahead_ns = 250_000
        self.gap_rate = 0.1
        self.num_held, self.num_held_late, self.num_outliers = 50, 5, 2

    def keeps(self, model: str) -> bool:
        return self.weights_state(model) is not WeightsState.ABSENT

    def weights_state(self, model: str) -> WeightsState:
        return self._states.get(model, WeightsState.ABSENT)

    def pages_by_state(self) -> Mapping[str, int]:
        return {"free": 62, "resident": 2}


class PuppetScheduler:
    def __init__(self, models: Mapping[str, ModelSpec]) -> None:
        self.models = models
        self.devices: dict[str, PuppetDevice] = {}
        self.anomalies: dict[str, int] = {}
        self.num_queued = 0
        self.num_serving = 2
        self.load = 1.5
        self.log: list[tuple[int, Event, list[Command]]] = []

    def offered_load(self, now: int) -> float:
        return self.load

    def queue_depth(self, model: str) -> int:
        return 3 if model == "mlp" else 0

    def recent_log(self) -> list[tuple[int, Event, list[Command]]]:
        return self.log


class Bench:
    """One app over puppets, serving."""

    def __init__(
        self,
        *specs: ModelSpec,
        config: GatewayConfig | None = None,
        tenants: Tenants | None = None,
        on_answered: Sequence[OnAnswered] = (),
        begin_trace: BeginTrace | None = None,
        groups: GroupSpecs | None = None,
    ) -> None:
        self.catalog = {spec.name: spec for spec in specs or (model_spec(),)}
        self.clock = Clock()
        self.timers = Timers()
        self.dispatcher = PuppetDispatcher()
        self.scheduler = PuppetScheduler(self.catalog)
        self.lifecycle = Lifecycle()
        self.lifecycle.serve()
        self.metrics = Metrics(version="0.0.0", page_bytes=16 << 20)
        self.keyring: Keyring | None = None
        self.device_time: DeviceTime | None = None
        if tenants is not None:
            self.keyring = Keyring(tenants, clock=self.clock)
            self.device_time = DeviceTime(self.keyring, self.catalog)
            self.metrics.watch_tenants(self.keyring)
        self.app: App = create_app(
            config or GatewayConfig(),
            self.dispatcher,
            self.scheduler,
            self.catalog,
            metrics=self.metrics,
            clock=self.clock,
            wall=lambda: 1_800_000_000 + (self.clock.now - START_NS) / 1e9,
            lifecycle=self.lifecycle,
            call_later=self.timers,
            keyring=self.keyring,
            device_time=self.device_time,
            groups=Groups(groups or {}, self.catalog),
            on_answered=on_answered,
            begin_trace=begin_trace,
        )

    def client(self) -> "Client":
        return Client(self.app)

    async def post(
        self,
        body: bytes | Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        path: str = "/infer",
        method: str = "POST",
    ) -> "Client":
        """A request whose body comes in one piece; returns once there is nothing to do."""
        client = self.client()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        client.start(method, path, {"content-length": str(len(data)), **(headers or {})})
        client.give(data)
        await settle()
        return client

    async def get(self, path: str, *, method: str = "GET", **headers: str) -> "Client":
        """A request without a body, until it is answered."""
        client = self.client()
        client.start(method, path, headers)
        client.give(b"")
        assert client.task is not None
        await client.task
        return client

    async def served(
        self,
        body: Mapping[str, Any],
        *tensors: tuple[Iterable[int], bytes],
        path: str = "/infer",
    ) -> Any:
        """JSON of the answer to a request whose outputs are `tensors`, 3 ms after its arrival."""
        client = await self.post(body, path=path)
        self.clock.advance(ms(3))
        self.dispatcher.submitted[-1].on_done(served(), outputs(*tensors))
        await settle()
        assert client.status == 200
        return client.json


class Client:
    """The server's side of one ASGI connection, as uvicorn behaves, moved by hand."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.task: asyncio.Task[None] | None = None
        self.override_send: Callable[[Mapping[str, Any]], Awaitable[None]] | None = None

    def start(
        self, method: str, path: str, headers: Mapping[str, str] | Sequence[tuple[str, str]]
    ) -> None:
        """Pairs where a header is there twice."""
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "scheme": "http",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 5),
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in pairs],
        }
        self.task = asyncio.ensure_future(self._app(scope, self._receive, self._send))  # type: ignore[arg-type]

    def give(self, body: bytes, *, more: bool = False) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def _receive(self) -> dict[str, Any]:
        if self.is_complete:
            return {"type": "http.disconnect"}
        return await self._incoming.get()

    async def _send(self, message: Mapping[str, Any]) -> None:
        if self.override_send is not None:
            await self.override_send(message)
        if not self.writable.is_set():
            await self.writable.wait()
        self.sent.append(dict(message))
        if message["type"] == "http.response.body" and self.is_complete:
            self.hang_up()  # the server says so once the response is complete

    @property
    def is_answered(self) -> bool:
        return any(m["type"] == "http.response.body" for m in self.sent)

    @property
    def is_complete(self) -> bool:
        """The server may close the connection now, where it should."""
        last = self.sent[-1] if self.sent else {}
        return last.get("type") == "http.response.body" and not last.get("more_body")

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode("latin-1") for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def settle(turns: int = 8) -> None:
    """Lets every task run until it waits for something that only the test can give."""
    for _ in range(turns):
        await asyncio.sleep(0)


def served(**changes: Any) -> Served:
    figures = {
        "worker_id": "w#1-1",
        "batch_rows": 1,
        "is_cold_start": False,
        "predicted_ns": ms(5),
        "queue_ns": ms(1),
        "load_ns": 0,
        "input_ns": ms(0.25),
        "exec_ns": ms(2),
        "output_ns": ms(0.5),
    }
    return Served(**{**figures, **changes})


def fp32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def outputs(*tensors: tuple[Iterable[int], bytes]) -> Outputs:
    """(shape, bytes) of each output, in the spec's order."""
    return Outputs(
        tuple(TensorMeta(tuple(shape), len(data)) for shape, data in tensors),
        [memoryview(data) for _, data in tensors],
    )


def mlp_body(**changes: Any) -> dict[str, Any]:
    body = {
        "model": "mlp",
        "slo_ms": 50,
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}],
    }
    return {**body, **changes}


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def refused(client: Client, status: int, reason: str) -> dict[str, Any]:
    """Asserts the form that every refusal has, and returns its body."""
    assert client.status == status
    body: dict[str, Any] = client.json
    assert body["reason"] == reason
    assert body["status"] == status
    assert body["error"] == body["detail"] != ""
    assert client.headers["content-type"] == "application/problem+json"
    assert client.headers["x-request-id"] == body["request_id"] != ""
    assert client.headers["content-length"] == str(len(client.body))
    return body


def binary(header: Mapping[str, Any], *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(header).encode()
    return b"".join((text, *tensors)), {"inference-header-content-length": str(len(text))}


def binary_mlp(data: bytes = fp32(1, 2, 3, 4), **changes: Any) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "x",
        "shape": [1, 4],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    return binary(mlp_body(inputs=[tensor], **changes), data)


MLP_OUTPUTS = outputs(((1, 2), fp32(0.5, 0.25)))
