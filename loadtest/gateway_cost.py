"""What the gateway itself costs: a model of no weight to speak of, as fast as it goes.

Owns the experiment of the README's gateway table: requests per second of a 64-64-10 MLP in a closed
loop, against a bare ASGI echo on the same server software, and plain FastAPI with ONNX Runtime. The
servers take turns, A-B-A-B, so that what the machine does in some minutes happens to all.
"""

import contextlib
import statistics
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadtest import repositories, servers, wrk
from loadtest.bench import Bench
from loadtest.messages import remontoir_binary_body, remontoir_json_body, six_digits
from loadtest.reference import sample_rows
from loadtest.wrk import Figures

CONCURRENCIES = (1, 16, 64)
ROUNDS = 3
SLO_MS = 1000.0
MODEL = "mlp"
OURS, FLOOR, PIPE, PLAIN = "remontoir", "bare ASGI echo", "bare ASGI, body unread", "FastAPI + ORT"

BAR_SHARE = 0.45
BAR_CONCURRENCY = 64


class Cell(msgspec.Struct, kw_only=True):
    """One server in one form at one concurrency; a run per round."""

    server: str
    form: str
    concurrency: int
    runs: list[Figures]


class Result(msgspec.Struct, kw_only=True):
    wrk: str
    cells: list[Cell]


class _Contestant(NamedTuple):
    """A server in one form: JSON or binary."""

    server: str
    form: str
    url: str
    script: Path


def run(bench: Bench) -> Result:
    """Raises WrkError where wrk is missing."""
    report = bench.report
    report.start("Gateway cost: a 64-64-10 MLP, closed loop")
    wrk.require()
    seconds = bench.seconds(2.0, 1.0)
    with contextlib.ExitStack() as stack:
        contestants = _start(bench, stack)
        cells = {
            (contestant, concurrency): Cell(
                server=contestant.server, form=contestant.form, concurrency=concurrency, runs=[]
            )
            for concurrency in CONCURRENCIES
            for contestant in contestants
        }
        for contestant in contestants:  # caches, connections, estimates
            wrk.run(contestant.url, contestant.script, connections=16, seconds=1.0)
        for _ in range(1 if bench.is_quick else ROUNDS):
            for (contestant, concurrency), cell in cells.items():
                cell.runs.append(
                    wrk.run(
                        contestant.url,
                        contestant.script,
                        connections=concurrency,
                        seconds=seconds,
                    )
                )
    result = Result(wrk=wrk.version(), cells=list(cells.values()))
    _report(bench, result)
    return result


def _start(bench: Bench, stack: contextlib.ExitStack) -> list[_Contestant]:
    """All servers at once on the one core: an idle one takes no time worth naming."""
    repository = repositories.tiny(bench.models_dir)
    path = repositories.model_path(repository, MODEL)
    environ = {"BASELINE_MODELS": f"{MODEL}={path.resolve()}"}
    ours = stack.enter_context(
        servers.remontoir(repository, cache_dir=bench.cache_dir, log_dir=bench.log_dir)
    )
    echo = stack.enter_context(
        servers.asgi("echo", "loadtest.baselines.echo:app", log_dir=bench.log_dir)
    )
    fastapi = stack.enter_context(
        servers.asgi(
            "fastapi",
            "loadtest.baselines.fastapi_ort:app",
            log_dir=bench.log_dir,
            environ=environ,
        )
    )
    for server in (ours, echo, fastapi):
        bench.report.say(f"$ {server.command}")
    (row,), _ = sample_rows(path, 1)
    scripts = bench.out_dir / "wrk"
    json_type = {"Content-Type": "application/json"}
    binary_type = {"Content-Type": "application/octet-stream"}
    header, data = remontoir_binary_body(MODEL, "x", row, slo_ms=SLO_MS)
    framed_type = {**binary_type, "Inference-Header-Content-Length": str(len(header))}
    json_script = wrk.write_script(
        scripts / "json.lua",
        body=remontoir_json_body(MODEL, "x", row, slo_ms=SLO_MS),
        headers=json_type,
    )
    framed_script = wrk.write_script(
        scripts / "binary.lua", body=header + data, headers=framed_type
    )
    plain_script = wrk.write_script(
        scripts / "plain.lua",
        body=msgspec.json.encode({"data": six_digits(row)}),
        headers=json_type,
    )
    raw_script = wrk.write_script(scripts / "raw.lua", body=data, headers=binary_type)
    return [
        _Contestant(OURS, "JSON", ours.url("/infer"), json_script),
        _Contestant(FLOOR, "JSON", echo.url("/json"), json_script),
        _Contestant(PIPE, "JSON", echo.url("/echo"), json_script),
        _Contestant(PLAIN, "JSON", fastapi.url(f"/json/{MODEL}"), plain_script),
        _Contestant(OURS, "binary", ours.url("/infer"), framed_script),
        _Contestant(PIPE, "binary", echo.url("/echo"), framed_script),
        _Contestant(PLAIN, "binary", fastapi.url(f"/raw/{MODEL}"), raw_script),
    ]


def _report(bench: Bench, result: Result) -> None:
    report = bench.report
    report.table(
        f"Requests per second, {result.wrk}, one thread",
        ("server", "form", "c", "requests/s", "range", "p50 ms", "p99 ms", "not 2xx", "broken"),
        [_row(cell) for cell in result.cells],
        note="Medians over the rounds; the range is of requests/s. All servers on one core, gateway"
        f" and worker of ours together, wrk on the other. {FLOOR}: JSON decoded and encoded again.",
    )
    for floor in (FLOOR, PIPE):
        shares = _shares(result, "JSON", BAR_CONCURRENCY, floor)
        low, middle, high = min(shares), statistics.median(shares), max(shares)
        text = (
            f"JSON at c={BAR_CONCURRENCY}: {middle:.1%} of the {floor} "
            f"({low:.1%} to {high:.1%} over {len(shares)} rounds"
        )
        if floor == FLOOR:
            report.verdict(f"{text}; bar: {BAR_SHARE:.0%})", is_met=middle >= BAR_SHARE)
        else:
            report.say(f"  {text})")
    unserved = sum(run.not_2xx + run.broken for cell in result.cells for run in cell.runs)
    report.verdict(f"{unserved} requests without a 200 (bar: 0)", is_met=unserved == 0)
    report.save("gateway", result)


def _shares(result: Result, form: str, concurrency: int, floor: str) -> list[float]:
    """Ours over the floor, round by round: what happened to the machine happened to both."""
    rates = {
        cell.server: [run.requests_per_s for run in cell.runs]
        for cell in result.cells
        if cell.form == form and cell.concurrency == concurrency
    }
    return [ours / least for ours, least in zip(rates[OURS], rates[floor], strict=True)]


def _row(cell: Cell) -> tuple[object, ...]:
    rates = [run.requests_per_s for run in cell.runs]
    return (
        *(cell.server, cell.form, cell.concurrency, statistics.median(rates)),
        f"{min(rates):,.0f} - {max(rates):,.0f}",
        statistics.median(run.p50_us for run in cell.runs) / 1000,
        statistics.median(run.p99_us for run in cell.runs) / 1000,
        sum(run.not_2xx for run in cell.runs),
        sum(run.broken for run in cell.runs),
    )
