"""`python -m gateway.costs.sharing_cost`: what sharing answers costs and saves, in µs.

It owns an endpoint without sockets, and in place of scheduler and worker something that answers at
once: what remains is the gateway's own work, so that microseconds show which sockets would hide.
Cases take turns, so that what the machine does in some moment happens to all. It prints JSON, for
`python -m loadtest cache`.
"""

import argparse
import gc
import itertools
import json
import statistics
import struct
import time
from collections.abc import Callable, Iterator

import msgspec

from gateway.config import GatewayConfig
from gateway.dispatcher import OnDone, OnQuote, Outputs
from gateway.errors import ErrorReplies
from gateway.http.request_ids import RequestIds
from gateway.inference.answer_sharing import HIT, MISS
from gateway.inference.body import HEADER_LENGTH
from gateway.inference.endpoint import InferEndpoint
from gateway.inference.exchange import Reply
from gateway.lifecycle import Lifecycle
from gateway.metrics.metrics import Metrics
from scheduler.events import Event, Rejected, RequestArrived, Served
from scheduler.spec import ModelProfile, ModelSpec, ShapeProfile, SharingSpec, TensorSpec
from scheduler.wire import Buffer, RequestTensors, TensorMeta

SIZES = (256, 4 << 10, 64 << 10, 600 << 10)  # bytes of input; the last is a picture as FP32
CACHE_BYTES = 64 << 20
OUTPUT_BYTES = 40
REQUESTS_PER_ROUND = 200
MAX_BYTES_PER_ROUND = 8 << 20

_SERVED = Served("w#1-1", 1, False, 1, 1, 0, 1, 1, 1)


class Case(msgspec.Struct, kw_only=True):
    """Microseconds of a whole request at the lower quartile of the rounds, which others' work on
    the machine disturbs least: every one executed, every one a hit, every one a miss.
    """

    input_bytes: int
    plain_us: float
    hit_us: float
    miss_us: float


class _Sink:
    """Has executed what it is given, and nothing of it took any time."""

    def __init__(self) -> None:
        views = [memoryview(bytes(OUTPUT_BYTES))]
        self._outputs = Outputs((TensorMeta((1, 10), OUTPUT_BYTES),), views)

    def next_id(self) -> int:
        return 1

    def submit(
        self,
        arrived: RequestArrived,
        tensors: RequestTensors,
        buffers: list[Buffer],
        on_done: OnDone,
    ) -> None:
        on_done(_SERVED, self._outputs)

    def foresee(self, arrived: RequestArrived) -> Rejected | None:
        return None

    def quote(self, arrived: RequestArrived, count: int, on_quote: OnQuote) -> None:
        raise NotImplementedError

    def verdict(self, arrived: RequestArrived) -> None:
        raise NotImplementedError

    def is_executing(self, request_id: int) -> bool:
        return False

    def cancel(self, request_id: int) -> None:
        pass

    def feed(self, event: Event) -> None:
        pass


class _Model:
    """One model behind an endpoint of its own, asked in one way."""

    def __init__(self, input_bytes: int, sharing: SharingSpec | None, result: str | None) -> None:
        num_values = input_bytes // 4
        spec = ModelSpec(
            name="mlp",
            version="1",
            content_hash="c0ffee",
            platform="onnxruntime_onnx",
            inputs=(TensorSpec("x", "FP32", (-1, num_values)),),
            outputs=(TensorSpec("y", "FP32", (-1, 10)),),
            batch_sizes=(1, 2, 4),
            runs_exact_batch=True,
            weights_bytes=1,
            profile=ModelProfile(1, (ShapeProfile("", num_values, {1: 1}),)),
            sharing=sharing,
        )
        lifecycle = Lifecycle()
        lifecycle.serve()
        self._endpoint = InferEndpoint(
            GatewayConfig(),
            _Sink(),
            {"mlp": spec},
            clock=time.monotonic_ns,
            lifecycle=lifecycle,
            metrics=Metrics(version="0", page_bytes=1 << 24),
            errors=ErrorReplies(shed_status=429, default_retry_after_ns=1),
            request_ids=RequestIds(),
        )
        tensor = {
            "name": "x",
            "shape": [1, num_values],
            "datatype": "FP32",
            "parameters": {"binary_data_size": input_bytes},
        }
        head = json.dumps({"model": "mlp", "slo_ms": 60_000, "inputs": [tensor]}).encode()
        self._headers = [
            (b"host", b"127.0.0.1:8000"),
            (b"content-type", b"application/octet-stream"),
            (HEADER_LENGTH, b"%d" % len(head)),
        ]
        self._head = head
        self._numbers: Iterator[int] = itertools.repeat(0)
        if result == MISS:
            self._numbers = itertools.count(1)
        self._result = result
        self._rest = bytes(input_bytes - 8)
        self._replies: list[Reply] = []
        self.runs_us: list[float] = []

    def run(self) -> None:
        """One round: requests made beforehand, answered one after the other."""
        count = max(5, min(REQUESTS_PER_ROUND, MAX_BYTES_PER_ROUND // (len(self._rest) + 8)))
        bodies = [
            b"".join((self._head, struct.pack("<q", next(self._numbers)), self._rest))
            for _ in range(count)
        ]
        answer, headers, clock = self._endpoint.answer, self._headers, time.monotonic_ns
        self._replies.clear()
        begin_ns = time.perf_counter_ns()
        for body in bodies:
            answer(headers, body, self._write, arrival_ns=clock())
        took_ns = time.perf_counter_ns() - begin_ns
        self.runs_us.append(took_ns / count / 1e3)

    def check(self) -> None:
        """That the last round was what it is called."""
        for start, _ in self._replies[1:]:
            told = dict(start["headers"]).get(b"x-cache")
            if start["status"] != 200 or told != (self._result and self._result.encode()):
                raise RuntimeError(f"expected {self._result}, was answered {start}")

    def _write(self, reply: Reply, on_written: Callable[[], None]) -> None:
        self._replies.append(reply)
        on_written()


def measure(num_rounds: int) -> list[Case]:
    gc.collect()
    gc.disable()
    try:
        return [_measured(size, num_rounds) for size in SIZES]
    finally:
        gc.enable()


def _measured(input_bytes: int, num_rounds: int) -> Case:
    sharing = SharingSpec(CACHE_BYTES)
    plain = _Model(input_bytes, None, None)
    hit, miss = _Model(input_bytes, sharing, HIT), _Model(input_bytes, sharing, MISS)
    for number in range(num_rounds + 1):
        for model in (plain, hit, miss):
            model.run()
            model.check()
            if number == 0:
                model.runs_us.clear()  # plans, tables, the first answer
    return Case(
        input_bytes=input_bytes,
        plain_us=_quartile(plain.runs_us),
        hit_us=_quartile(hit.runs_us),
        miss_us=_quartile(miss.runs_us),
    )


def _quartile(runs_us: list[float]) -> float:
    return statistics.quantiles(runs_us, n=4, method="inclusive")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.costs.sharing_cost", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=60)
    print(msgspec.json.encode(measure(parser.parse_args().rounds)).decode())


if __name__ == "__main__":
    main()
