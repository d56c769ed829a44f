"""What a request costs more that has to go to another gateway: latency, and CPU of both gateways.

Owns the experiment behind docs/scale.md's figures. Two gateways with emulated devices share the
servers' core; the same request goes to the owner of its model, and to the other one.
"""

import contextlib
import json
import statistics

import msgspec

from loadtest import servers
from loadtest.bench import Bench
from loadtest.http1 import Shot
from loadtest.machine import SERVER_CPU
from loadtest.openloop import drive, in_turn
from loadtest.server_use import cpu_s_of
from loadtest.servers import Server, ServerError
from loadtest.workloads import Ask
from scheduler.shards import Shards, parse_replicas
from scheduler.spec import SECOND_NS

MODEL = "cifar_wideresnet16_10"  # the quickest of the emulation, so that the hop shows
EMULATION = "clockwork-v100:1"
SLO_MS = 1000
RATE_PER_S = 200  # of the CPU measurement: enough to count ticks, far from busy


class Way(msgspec.Struct, kw_only=True):
    name: str
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of both gateways and their workers, per request


class Result(msgspec.Struct, kw_only=True):
    ways: list[Way]


def run(bench: Bench) -> Result:
    bench.report.start("Replicas: a request whose model is another gateway's")
    ports = [servers.free_port(), servers.free_port()]
    told = ",".join(f"g{i}=http://127.0.0.1:{port}" for i, port in enumerate(ports))
    owner = Shards(parse_replicas(told), "g0", copies=1).holders(MODEL)[0]
    with contextlib.ExitStack() as life:
        gateways = [
            life.enter_context(
                servers.emulated(
                    f"g{i}",
                    port=port,
                    log_dir=bench.log_dir,
                    cpus=str(SERVER_CPU),
                    flags=("--emulate", EMULATION, "--replica", f"g{i}", "--replicas", told),
                )
            )
            for i, port in enumerate(ports)
        ]
        first, other = (gateways if owner == "g0" else gateways[::-1])[:2]
        ways = [
            _way(bench, "asked at the owner", first, gateways, extra=""),
            _way(bench, "asked at the other, model in the body", other, gateways, extra=""),
            _way(
                bench,
                "the same, model in x-remontoir-model",
                other,
                gateways,
                extra=f"x-remontoir-model: {MODEL}\r\n",
            ),
        ]
    result = Result(ways=ways)
    bench.report.table(
        f"One request at a time; CPU at {RATE_PER_S} requests/s",
        ("way", "p50 ms", "p99 ms", "CPU µs/request, both gateways and workers"),
        [(way.name, way.p50_ms, way.p99_ms, way.cpu_us) for way in ways],
        note="All of it is on one core. The device is emulated: it sleeps.",
    )
    bench.report.save("replicas", result)
    return result


def _way(bench: Bench, name: str, asked: Server, gateways: list[Server], *, extra: str) -> Way:
    message = request(asked.port, extra)
    num = 50 if bench.is_quick else 500
    shots = in_turn(port=asked.port, requests=[message] * (num + 20))[20:]
    _check(shots)
    latencies = sorted((shot.done_ns - shot.sent_ns) / 1e6 for shot in shots)
    before_s = sum(cpu_s_of(gateway.process.pid) for gateway in gateways)
    seconds = 2 if bench.is_quick else 10
    step_ns = SECOND_NS // RATE_PER_S
    arrivals = [
        Ask(at_ns=i * step_ns, model=MODEL, slo_ns=SLO_MS * 1_000_000, stream=0)
        for i in range(seconds * RATE_PER_S)
    ]
    _check(drive(port=asked.port, arrivals=arrivals, requests=[[message]], connections=8))
    cpu_s = sum(cpu_s_of(gateway.process.pid) for gateway in gateways) - before_s
    return Way(
        name=name,
        p50_ms=statistics.median(latencies),
        p99_ms=latencies[len(latencies) * 99 // 100],
        cpu_us=cpu_s / len(arrivals) * 1e6,
    )


def request(port: int, extra: str) -> bytes:
    x = {"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [0]}
    y = {"name": "y", "parameters": {"binary_data": True}}
    body = json.dumps({"model": MODEL, "slo_ms": SLO_MS, "inputs": [x], "outputs": [y]}).encode()
    head = f"POST /infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _check(shots: list[Shot]) -> None:
    for shot in shots:
        if shot.status != 200:
            raise ServerError(f"a request was answered {shot.status}: {shot.body[:300]!r}")
