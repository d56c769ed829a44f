"""What a megabyte costs on its way: microseconds per MB for each hop of a large request.

Owns the experiment behind docs/journey.md's figures. Bodies of several sizes go one by one (c=1)
through the real servers to a model that does next to nothing; a line through the medians gives what
each MB adds. All of ours, and the stand-in for the gateway's half of the wire, are on one core.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from loadtest import repositories, servers, worker_probe
from loadtest.bench import Bench
from loadtest.http1 import Shot
from loadtest.machine import CLIENT_CPU, SERVER_CPU
from loadtest.messages import (
    Account,
    Floats,
    post,
    read_remontoir,
    remontoir_binary,
)
from loadtest.openloop import in_turn
from loadtest.servers import ServerError
from scheduler.actions import Code, InferResult
from scheduler.spec import MILLISECOND_NS

SIZES_BYTES = (256 * 1024, 1024 * 1024, 4 * 1024 * 1024, 16 * 1024 * 1024)
SLO_MS = 10_000.0
MEGABYTE = 1e6


class Hop(msgspec.Struct, kw_only=True):
    """One stretch of the way. `medians_us[i]` belongs to SIZES_BYTES[i]."""

    name: str
    copies: str
    medians_us: list[float]

    @property
    def us_per_mb(self) -> float:
        sizes_mb = [size / MEGABYTE for size in SIZES_BYTES]
        return float(np.polyfit(sizes_mb, self.medians_us, 1)[0])


class Result(msgspec.Struct, kw_only=True):
    sizes_bytes: tuple[int, ...]
    hops: list[Hop]


def run(bench: Bench) -> Result:
    bench.report.start("Hops: microseconds per MB of a request's body")
    repository = repositories.payloads(bench.models_dir, SIZES_BYTES)
    repeats = 10 if bench.is_quick else 60
    chance = np.random.default_rng(1)
    rows = [chance.standard_normal((1, size // 4), np.float32) for size in SIZES_BYTES]
    hops = [
        _http_hop(bench, rows, repeats),
        *_wire_hops(bench, repository, rows, repeats),
        *_whole_way(bench, repository, rows, repeats),
    ]
    result = Result(sizes_bytes=SIZES_BYTES, hops=hops)
    bench.report.table(
        "Medians in µs, one request at a time",
        ("hop", "copies of the bytes", *(f"{size >> 10:,} KiB" for size in SIZES_BYTES), "µs/MB"),
        [(hop.name, hop.copies, *hop.medians_us, hop.us_per_mb) for hop in hops],
        note="The model takes the largest of its values. The whole way has all of the above, and "
        "the client's own sending; the first row has that too.",
    )
    bench.report.save("hops", result)
    return result


def _http_hop(bench: Bench, rows: Sequence[Floats], repeats: int) -> Hop:
    with servers.asgi("echo", "loadtest.baselines.echo:app", log_dir=bench.log_dir) as server:
        requests = [
            post("/length", row.tobytes(), port=server.port, content_type="a/b") for row in rows
        ]
        shots = in_turn(port=server.port, requests=requests * repeats)
    return Hop(
        name="client to bytes of the body (uvicorn, chunks joined)",
        copies="kernel in, kernel out, join",
        medians_us=_medians_us(shots, _latency_ns),
    )


def _wire_hops(bench: Bench, repository: Path, rows: Sequence[Floats], repeats: int) -> list[Hop]:
    received: list[list[int]] = [[] for _ in rows]
    staged: list[list[int]] = [[] for _ in rows]
    with worker_probe.worker(
        repository,
        cache_dir=bench.cache_dir,
        cache_mb=256,
        cpus=str(SERVER_CPU),
        log_dir=bench.log_dir,
    ) as probe:
        os.sched_setaffinity(0, {SERVER_CPU})
        try:
            names = [f"bytes{size}" for size in SIZES_BYTES]
            for name in names:
                probe.load(name)
            for _ in range(repeats):
                for index, name in enumerate(names):
                    action_id = probe.start_infer(name, rows[index])
                    sent_ns = probe.sent_ns
                    result = probe.wait_for(action_id)
                    if not isinstance(result, InferResult) or result.code is not Code.OK:
                        raise ServerError(f"the worker answered {result}")
                    received[index].append(result.received_ns - sent_ns)
                    staged[index].append(result.input.end_ns - result.input.begin_ns)
        finally:
            os.sched_setaffinity(0, {CLIENT_CPU})
    return [
        Hop(
            name="bytes to the worker's frame (ZeroMQ over ipc)",
            copies="kernel in, kernel out",
            medians_us=[statistics.median(times) / 1000 for times in received],
        ),
        Hop(
            name="frame to array (input phase, one request in the batch)",
            copies="none; one where requests are joined",
            medians_us=[statistics.median(times) / 1000 for times in staged],
        ),
    ]


def _whole_way(bench: Bench, repository: Path, rows: Sequence[Floats], repeats: int) -> list[Hop]:
    with servers.remontoir(repository, cache_dir=bench.cache_dir, log_dir=bench.log_dir) as server:
        bench.report.say(f"$ {server.command}")
        requests = [
            remontoir_binary(f"bytes{size}", "x", row, slo_ms=SLO_MS, port=server.port)
            for size, row in zip(SIZES_BYTES, rows, strict=True)
        ]
        in_turn(port=server.port, requests=requests)  # loads the models
        shots = in_turn(port=server.port, requests=requests * repeats)
    for shot in shots:
        if shot.status != 200:
            raise ServerError(f"remontoir answered {shot.status}: {shot.body[:300]!r}")

    return [
        Hop(
            name="execution (the model)",
            copies="-",
            medians_us=_medians_us(
                shots, lambda shot: _account(shot).timing_ms.exec * MILLISECOND_NS
            ),
        ),
        Hop(
            name="the gateway's first sight to its answer",
            copies="-",
            medians_us=_medians_us(
                shots, lambda shot: _account(shot).slo.latency_ms * MILLISECOND_NS
            ),
        ),
        Hop(
            name="the whole way, by the client's clock",
            copies="five in all",
            medians_us=_medians_us(shots, _latency_ns),
        ),
    ]


def _medians_us(shots: Sequence[Shot], duration_ns: Callable[[Shot], float]) -> list[float]:
    """Shots are of the sizes in turn."""
    return [
        statistics.median(duration_ns(shot) for shot in shots[index :: len(SIZES_BYTES)]) / 1000
        for index in range(len(SIZES_BYTES))
    ]


def _account(shot: Shot) -> Account:
    account = read_remontoir(shot).account
    assert account is not None
    return account


def _latency_ns(shot: Shot) -> float:
    return shot.done_ns - shot.sent_ns
