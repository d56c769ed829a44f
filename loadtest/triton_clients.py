"""What a user of tritonclient gets: a picture in, ten numbers out, ours against plain FastAPI.

Owns an experiment of docs/measurements: the same client, unmodified, in a closed
loop against the same model behind both servers, which take turns. The model does next to nothing,
so that what is seen is the way there and back. The client's own work is much of that (a list of
150,528 numbers is written as JSON for every request), and the same for both: what the servers'
processes take is shown beside it.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loadtest import repositories, servers
from loadtest.bench import Bench
from loadtest.servers import Server, ServerError

MODEL, INPUT, OUTPUT = "brightness", "x", "y"
SHAPE = (1, 3, 224, 224)
CONCURRENCIES = (1, 8)
ROUNDS = 3
OURS, PLAIN = "remontoir", "FastAPI + ORT"
BINARY, JSON = "binary", "JSON"


class Run(msgspec.Struct, kw_only=True):
    requests: int
    seconds: float
    server_cpu_s: float
    latencies_ms: list[float]

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


class Cell(msgspec.Struct, kw_only=True):
    """One server in one form at one concurrency; a run per round."""

    server: str
    form: str
    concurrency: int
    runs: list[Run]


class Result(msgspec.Struct, kw_only=True):
    tritonclient: str
    cells: list[Cell]


class _Client(NamedTuple):
    """tritonclient, and what it is asked to send."""

    library: Any  # tritonclient.http.aio: no types
    inputs: list[Any]
    outputs: list[Any]


def run(bench: Bench) -> Result:
    """Raises ServerError where an answer is wrong."""
    bench.report.start("tritonclient: a picture of 3 x 224 x 224 FP32, closed loop")
    repository = repositories.picture(bench.models_dir)
    path = repositories.model_path(repository, MODEL)
    environ = {"BASELINE_MODELS": f"{MODEL}={path.resolve()}"}
    with contextlib.ExitStack() as stack:
        contestants = {
            OURS: stack.enter_context(
                servers.remontoir(repository, cache_dir=bench.cache_dir, log_dir=bench.log_dir)
            ),
            PLAIN: stack.enter_context(
                servers.asgi(
                    "fastapi-v2",
                    "loadtest.baselines.fastapi_v2:app",
                    log_dir=bench.log_dir,
                    environ=environ,
                )
            ),
        }
        for server in contestants.values():
            bench.report.say(f"$ {server.command}")
        cells = asyncio.run(_measure(bench, contestants))
    result = Result(tritonclient=_version(), cells=cells)
    _report(bench, result)
    return result


async def _measure(bench: Bench, contestants: dict[str, Server]) -> list[Cell]:
    seconds = bench.seconds(4.0, 1.0)
    cells = [
        Cell(server=server, form=form, concurrency=concurrency, runs=[])
        for form in (BINARY, JSON)
        for concurrency in CONCURRENCIES
        for server in contestants
    ]
    row = np.random.default_rng(bench.seed).random(SHAPE, np.float32)
    answers = []
    for form in (BINARY, JSON):
        for server in contestants.values():
            answers.append(await _answer(server, row, form))
            await _loop(server, row, form, concurrency=max(CONCURRENCIES), seconds=1.0)
    if not all(np.allclose(answer, answers[0], rtol=1e-3, atol=1e-5) for answer in answers):
        raise ServerError(f"the servers' answers differ: {answers}")
    for _ in range(1 if bench.is_quick else ROUNDS):
        for cell in cells:
            server = contestants[cell.server]
            cell.runs.append(
                await _loop(server, row, cell.form, concurrency=cell.concurrency, seconds=seconds)
            )
    return cells


async def _answer(server: Server, row: Any, form: str) -> Any:
    client = _client(row, form)
    async with client.library.InferenceServerClient(f"127.0.0.1:{server.port}") as connection:
        reply = await connection.infer(MODEL, client.inputs, outputs=client.outputs)
    return reply.as_numpy(OUTPUT)


async def _loop(server: Server, row: Any, form: str, *, concurrency: int, seconds: float) -> Run:
    """As many at once, each sends when it has its answer."""
    client = _client(row, form)
    latencies_ms: list[float] = []
    begin_cpu_s, begin_s = server.cpu_s(), time.monotonic()

    async def one(connection: Any, is_over: Callable[[], bool]) -> None:
        while not is_over():
            sent_s = time.monotonic()
            reply = await connection.infer(MODEL, client.inputs, outputs=client.outputs)
            reply.as_numpy(OUTPUT)
            latencies_ms.append((time.monotonic() - sent_s) * 1e3)

    url = f"127.0.0.1:{server.port}"
    async with client.library.InferenceServerClient(url, conn_limit=concurrency) as connection:
        end_s = begin_s + seconds
        await asyncio.gather(
            *(one(connection, lambda: time.monotonic() >= end_s) for _ in range(concurrency))
        )
    return Run(
        requests=len(latencies_ms),
        seconds=time.monotonic() - begin_s,
        server_cpu_s=server.cpu_s() - begin_cpu_s,
        latencies_ms=latencies_ms,
    )


def _client(row: Any, form: str) -> _Client:
    from tritonclient.http import aio  # here: no other part of the benchmark needs it

    is_binary = form == BINARY
    tensor = aio.InferInput(INPUT, list(SHAPE), "FP32")
    tensor.set_data_from_numpy(row, binary_data=is_binary)
    return _Client(aio, [tensor], [aio.InferRequestedOutput(OUTPUT, binary_data=is_binary)])


def _report(bench: Bench, result: Result) -> None:
    bench.report.table(
        f"Through tritonclient {result.tritonclient}",
        ("server", "form", "c", "requests/s", "p50 ms", "p99 ms", "server CPU ms/request"),
        [_row(cell) for cell in result.cells],
        note="Medians over the rounds. Servers on one core (gateway and worker of ours together),"
        " the client on the other; its own work is part of requests/s and of latencies.",
    )
    for form in (BINARY, JSON):
        for concurrency in CONCURRENCIES:
            ours, plain = (
                statistics.median(run.requests_per_s for run in cell.runs)
                for name in (OURS, PLAIN)
                for cell in result.cells
                if (cell.server, cell.form, cell.concurrency) == (name, form, concurrency)
            )
            bench.report.say(f"{form} at c={concurrency}: {ours / plain:.2f} x {PLAIN}")
    bench.report.save("tritonclient", result)


def _row(cell: Cell) -> tuple[object, ...]:
    return (
        cell.server,
        cell.form,
        cell.concurrency,
        statistics.median(run.requests_per_s for run in cell.runs),
        statistics.median(float(np.quantile(run.latencies_ms, 0.50)) for run in cell.runs),
        statistics.median(float(np.quantile(run.latencies_ms, 0.99)) for run in cell.runs),
        statistics.median(run.server_cpu_s / run.requests * 1e3 for run in cell.runs),
    )


def _version() -> str:
    from importlib.metadata import version

    return version("tritonclient")
