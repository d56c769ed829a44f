"""A gateway with as many models and devices as one asks for, in one process: `make e2e-ui`.

Everything is the product's but the way to the workers: an order is answered when it would be done,
by a timer. It asks itself for inference, so that there is something to see. Prints its URL.
"""

import argparse
import asyncio
import random
import socket
import time
from collections.abc import Callable, Sequence

import msgspec
import uvicorn

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.dispatcher import Dispatcher
from gateway.inference.endpoint import InferEndpoint
from gateway.inference.exchange import Reply
from gateway.lifecycle import Lifecycle
from gateway.metrics.metrics import Metrics
from gateway.metrics.scaling_sampler import ScalingSampler
from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    ReleaseModel,
    Span,
)
from scheduler.events import WorkerJoined
from scheduler.scaling import Scaling
from scheduler.scheduler import Scheduler
from scheduler.spec import (
    MILLISECOND_NS,
    SECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    ShapeProfile,
    TensorSpec,
)
from scheduler.wire import Buffer, RequestTensors, TensorMeta

PAGE_BYTES = 16 << 20
PAGES = 512  # of each device: 8 GiB


class Lane:
    def __init__(self) -> None:
        self.free_ns = 0

    def take(self, duration_ns: int, *, not_before_ns: int) -> Span:
        begin_ns = max(self.free_ns, not_before_ns)
        self.free_ns = begin_ns + duration_ns
        return Span(begin_ns, self.free_ns, duration_ns)


class Fleet:
    """gateway.dispatcher.ActionSender: devices that take as long as they are expected to."""

    def __init__(self, worker_ids: Sequence[str]) -> None:
        self.dispatcher: Dispatcher
        self._lanes = {worker_id: (Lane(), Lane()) for worker_id in worker_ids}

    def send(
        self,
        worker_id: str,
        action: Action,
        tensors: tuple[RequestTensors, ...],
        buffers: Sequence[Buffer],
    ) -> None:
        now = time.monotonic_ns()
        exec_lane, load_lane = self._lanes[worker_id]
        if isinstance(action, EvictWeights | ReleaseModel):
            result: object = EvictResult(action.action_id, Code.OK, received_ns=now)
            done_ns = now
        elif isinstance(action, LoadWeights):
            span = load_lane.take(action.expected_duration_ns, not_before_ns=now)
            result = LoadResult(action.action_id, Code.OK, received_ns=now, load=span)
            done_ns = span.end_ns
        else:
            span = exec_lane.take(action.expected_duration_ns, not_before_ns=now)
            edge = Span(span.begin_ns, span.begin_ns, 0), Span(span.end_ns, span.end_ns, 0)
            result = InferResult(
                action.action_id,
                Code.OK,
                received_ns=now,
                input=edge[0],
                exec=span,
                output=edge[1],
            )
            done_ns = span.end_ns
        asyncio.get_running_loop().call_later(
            max(0, done_ns - now) / 1e9, self._report, worker_id, action, result
        )

    def _report(self, worker_id: str, action: Action, result: object) -> None:
        num = len(action.request_ids) if isinstance(action, Infer) else 0
        metas = [(TensorMeta((1, 1), 1),)] * num
        views = [[memoryview(b"y")] for _ in range(num)]
        self.dispatcher.report(worker_id, result, metas, views)  # type: ignore[arg-type]


def spec(number: int, chance: random.Random) -> ModelSpec:
    family = ("resnet", "bert", "yolo", "densenet", "whisper", "mobilenet")[number % 6]
    one_ns = round(chance.uniform(1, 8) * MILLISECOND_NS)
    exec_ns = {rows: round(one_ns * (0.6 + 0.4 * rows)) for rows in (1, 2, 4, 8, 16)}
    weights_bytes = round(chance.uniform(5, 400) * (1 << 20))
    return ModelSpec(
        name=f"{family}_{number:04}",
        version="1",
        content_hash=f"{number:x}",
        platform="stand-in",
        inputs=(TensorSpec("x", "UINT8", (-1, 1)),),
        outputs=(TensorSpec("y", "UINT8", (-1, 1)),),
        batch_sizes=(1, 2, 4, 8, 16),
        runs_exact_batch=True,
        weights_bytes=weights_bytes,
        profile=ModelProfile(weights_bytes // 12, (ShapeProfile("", 1, exec_ns),)),
    )


class Clients:
    """Poisson arrivals, few models much more than most."""

    def __init__(self, infer: InferEndpoint, names: Sequence[str]) -> None:
        self._infer = infer
        self._names = names
        self._chance = random.Random(7)

    async def ask(self, per_second: float) -> None:
        due = time.monotonic()
        while True:
            due += self._chance.expovariate(per_second)
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())
            name = self._names[min(int(self._chance.paretovariate(0.7)), len(self._names)) - 1]
            self._submit(name, self._chance.choice((10, 25, 50, 100, 250)))

    def _submit(self, name: str, slo_ms: int) -> None:
        x = {"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [0]}
        body = msgspec.json.encode({"model": name, "slo_ms": slo_ms, "inputs": [x]})
        headers = [(b"content-length", b"%d" % len(body))]
        self._infer.answer(headers, body, _written, arrival_ns=time.monotonic_ns())


def _written(reply: Reply, on_written: Callable[[], None]) -> None:
    on_written()


async def serve(num_models: int, num_devices: int, per_second: float, port: int) -> None:
    chance = random.Random(1)
    specs = [spec(number, chance) for number in range(num_models)]
    workers = [f"gpu-{number:02}#1" for number in range(num_devices)]
    fleet = Fleet(workers)
    scheduler = Scheduler(models=specs)
    metrics = Metrics(version="stage", page_bytes=PAGE_BYTES)
    loop = asyncio.get_running_loop()
    dispatcher = fleet.dispatcher = Dispatcher(
        scheduler,
        fleet,
        clock=time.monotonic_ns,
        timer=loop,
        on_fatal=lambda error: loop.stop(),
        observers=[metrics],
        call_soon=loop.call_soon,
    )
    scaling = Scaling(horizon_ns=60 * SECOND_NS, target_utilisation=0.7)
    metrics.watch_scaling(scaling)
    ScalingSampler(
        scaling,
        scheduler,
        metrics.totals,
        clock=time.monotonic_ns,
        call_later=loop.call_later,
    ).start()
    device = DeviceSpec(
        kind="stand-in", page_bytes=PAGE_BYTES, total_pages=PAGES, shares_exec_core=False
    )
    for worker_id in workers:
        dispatcher.feed(WorkerJoined(worker_id, device, tuple(specs), ()))
    lifecycle = Lifecycle()
    lifecycle.serve()
    catalog = {one.name: one for one in specs}
    app = create_app(
        GatewayConfig(), dispatcher, scheduler, catalog, metrics=metrics, lifecycle=lifecycle
    )
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    names = [one.name for one in specs]
    chance.shuffle(names)
    clients = Clients(app.infer, names)
    await asyncio.gather(uvicorn.Server(config).serve(sockets=[listener]), clients.ask(per_second))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--per-second", type=float, default=1000)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    asyncio.run(serve(given.models, given.devices, given.per_second, given.port))
