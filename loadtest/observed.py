"""What being watched costs in requests per second: stories and traces, off and on.

Owns the experiment and the collector that takes the traces. The same gateway four times, each with
one thing more, in turns; in µs of the core, and for metrics, which are always counted, it is
loadtest/door.py that says it.
"""

import contextlib
import statistics
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import msgspec

from loadtest import repositories, servers, wrk
from loadtest.bench import Bench
from loadtest.messages import remontoir_json_body
from loadtest.reference import sample_rows
from loadtest.servers import ServerError
from loadtest.wrk import Figures

CONNECTIONS = 64
ROUNDS = 5
MODEL = "mlp"
SLO_MS = 1000.0
# Stories are on when nobody asked for anything: they must not be felt.
BAR_LOST = 0.05


class Cell(msgspec.Struct, kw_only=True):
    """One gateway; a run per round. `collected` counts its messages to the collector."""

    name: str
    runs: list[Figures]
    collected: int = 0


class Result(msgspec.Struct, kw_only=True):
    wrk: str
    cells: list[Cell]


class _Contestant(NamedTuple):
    cell: Cell
    url: str
    collector: "Collector | None"


class Collector:
    """Says yes to whatever is sent, as an OpenTelemetry collector over HTTP does."""

    def __init__(self) -> None:
        self.num_taken = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Its address."""
        collector = self

        class Door(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                collector.num_taken += 1
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def run(bench: Bench) -> Result:
    """Raises WrkError where wrk is missing, ServerError where a gateway or its traces are."""
    report = bench.report
    report.start("Being watched: requests per second with stories and traces, off and on")
    wrk.require()
    seconds = bench.seconds(3.0, 1.0)
    repository = repositories.tiny(bench.models_dir)
    (row,), _ = sample_rows(repositories.model_path(repository, MODEL), 1)
    script = wrk.write_script(
        bench.out_dir / "wrk" / "observed.lua",
        body=remontoir_json_body(MODEL, "x", row, slo_ms=SLO_MS),
        headers={"Content-Type": "application/json"},
    )
    with contextlib.ExitStack() as stack:
        contestants = _start(bench, stack)
        for contestant in contestants:
            wrk.run(contestant.url, script, connections=16, seconds=1.0)
        for number in range(1 if bench.is_quick else ROUNDS):
            # back and forth: whoever comes first finds cold caches
            for contestant in contestants if number % 2 else reversed(contestants):
                figures = wrk.run(contestant.url, script, connections=CONNECTIONS, seconds=seconds)
                contestant.cell.runs.append(figures)
    for contestant in contestants:  # the last traces are sent when a gateway ends
        if contestant.collector is not None:
            contestant.cell.collected = contestant.collector.num_taken
            if not contestant.collector.num_taken:
                raise ServerError(f"{contestant.cell.name}: the collector got no trace")
    result = Result(wrk=wrk.version(), cells=[contestant.cell for contestant in contestants])
    _report(bench, result)
    return result


def _start(bench: Bench, stack: contextlib.ExitStack) -> list[_Contestant]:
    """All at once on the one core: an idle one takes no time worth naming."""
    contestants = []
    for name, kept, ratio in (
        ("metrics alone", 0, None),
        ("and stories: what `serve` does", None, None),
        ("and traces of 1 %", None, 0.01),
        ("and traces of all", None, 1.0),
    ):
        flags: list[str] = []
        environ = {} if kept is None else {"REMONTOIR_RECENT_REQUESTS": str(kept)}
        collector = None
        if ratio is not None:
            collector = Collector()
            endpoint = stack.enter_context(collector.listening())
            flags = ["--otlp-endpoint", endpoint, "--trace-ratio", str(ratio)]
        server = stack.enter_context(
            servers.remontoir(
                repositories.tiny(bench.models_dir),
                cache_dir=bench.cache_dir,
                log_dir=bench.log_dir / name.replace(" ", "-"),
                flags=flags,
                environ=environ,
            )
        )
        bench.report.say(f"$ {server.command}")
        contestants.append(_Contestant(Cell(name=name, runs=[]), server.url("/infer"), collector))
    return contestants


def _report(bench: Bench, result: Result) -> None:
    report = bench.report
    first = result.cells[0]
    report.table(
        f"Requests per second, {result.wrk}, {CONNECTIONS} connections, JSON of 64 numbers",
        ("with", "requests/s", "range", "of the first", "p50 ms", "p99 ms", "not 2xx", "broken"),
        [_row(cell, first) for cell in result.cells],
        note="Medians over the rounds. Each has what the one above it has; gateway and worker on"
        " one core, wrk and the collector on the other. At most 256 traces a second are sent, the"
        " others are noted and dropped. Metrics are always counted: `python -m loadtest door`.",
    )
    lost = 1 - statistics.median(_shares(result.cells[1], first))
    text = f"stories take {lost:.1%} of the requests per second (bar: {BAR_LOST:.0%})"
    report.verdict(text, is_met=lost <= BAR_LOST)
    unserved = sum(run.not_2xx + run.broken for cell in result.cells for run in cell.runs)
    report.verdict(f"{unserved} requests without a 200 (bar: 0)", is_met=unserved == 0)
    report.save("observed", result)


def _shares(cell: Cell, first: Cell) -> list[float]:
    """Of the first, round by round: what happened to the machine happened to both."""
    return [
        run.requests_per_s / base.requests_per_s
        for run, base in zip(cell.runs, first.runs, strict=True)
    ]


def _row(cell: Cell, first: Cell) -> tuple[object, ...]:
    rates = [run.requests_per_s for run in cell.runs]
    return (
        cell.name,
        statistics.median(rates),
        f"{min(rates):,.0f} - {max(rates):,.0f}",
        f"{statistics.median(_shares(cell, first)):.1%}",
        statistics.median(run.p50_us for run in cell.runs) / 1000,
        statistics.median(run.p99_us for run in cell.runs) / 1000,
        sum(run.not_2xx for run in cell.runs),
        sum(run.broken for run in cell.runs),
    )
