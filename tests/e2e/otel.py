"""Traces through a real OpenTelemetry collector, rotel: `make e2e-otel`.

A gateway with a real worker sends what it traces to the collector, which says what it took: one
trace for each request, of gateway and worker, below the caller's span. Also: the caller's own
decision is kept, a collector that is away costs no request anything, and what waits is sent when
the gateway ends. Makes environments of its own, which go with it; needs an index of packages.
"""

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.tools import environment_with
from tests.gateway.running import ROOT, running_gateway
from tests.gpuworker import onnx_models

ROTEL = "rotel==0.0.1a15"
EXTRA = ("opentelemetry-exporter-otlp-proto-http>=1.30", "opentelemetry-sdk>=1.30")
WAIT_S = 30.0

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
BODY = {
    "model": "mlp",
    "slo_ms": 5000,
    "inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}],
}
# Of a request that is served by resident weights.
NAMES = {"infer mlp", "admit", "queue", "execute mlp", "input", "exec", "output", "answer"}
_FIELD = re.compile(r"\s+(Trace ID|Parent ID|ID|Name) *: ?(.*)")


class Span(NamedTuple):
    name: str
    span_id: str
    parent_id: str


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="remontoir-otel-") as scratch:
        home = Path(scratch)
        python = environment_with(home / "env", ROTEL, *EXTRA)
        [packages] = (home / "env" / "lib").glob("python*/site-packages")
        models = home / "models"
        onnx_models.write_model(models, "mlp", onnx_models.mlp())
        port = free_port()
        with running_gateway(
            *("--models", str(models), "--drain-s", "0"),
            *("--otlp-endpoint", f"http://127.0.0.1:{port}", "--trace-ratio", "1"),
            scratch=home,
            PYTHONPATH=f"{ROOT}:{packages}",
        ) as gateway:
            ask(gateway.url)  # nobody listens yet
            print("e2e-otel: a collector that is away: the request was served", flush=True)
            with collector(python, home, port) as log:
                header = f"00-{TRACE_ID}-{CALLER}-01"
                told = ask(gateway.url, traceparent=header).headers["traceresponse"]
                assert told.startswith(f"00-{TRACE_ID}-"), told
                unsampled = f"00-{'1' * 32}-{CALLER}-00"
                ask(gateway.url, traceparent=unsampled)
                own = ask(gateway.url).headers["traceresponse"].split("-")[1]
                refused = ask(gateway.url, status=422, slo_ms=0.001).headers["traceresponse"]
                traces = wait_for(log, TRACE_ID, own, refused.split("-")[1])
                check(traces[TRACE_ID], told.split("-")[2])
                assert {span.name for span in traces[own]} == NAMES, traces[own]
                names = {span.name for span in traces[refused.split("-")[1]]}
                assert names == {"infer mlp", "admit", "queue"}, names
                assert "1" * 32 not in traces
                print(f"e2e-otel: rotel took {len(traces)} traces, each of gateway and worker")
                last = ask(gateway.url).headers["traceresponse"].split("-")[1]
                gateway.process.terminate()
                gateway.process.wait(60)
                wait_for(log, last)
                print("e2e-otel: what waited was sent when the gateway ended", flush=True)
    return 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ask(
    url: str, *, status: int = 200, traceparent: str | None = None, slo_ms: float = 5000
) -> httpx.Response:
    headers = {} if traceparent is None else {"traceparent": traceparent}
    reply = httpx.post(f"{url}/infer", json={**BODY, "slo_ms": slo_ms}, headers=headers)
    assert reply.status_code == status, json.dumps(reply.json())
    return reply


def check(spans: list[Span], root_id: str) -> None:
    """The gateway's span is the caller's child, and every other's ancestor is the gateway's."""
    by_id = {span.span_id: span for span in spans}
    assert {span.name for span in spans} == NAMES, spans
    root = by_id[root_id]
    assert (root.name, root.parent_id) == ("infer mlp", CALLER), root
    for span in spans:
        if span is root:
            continue
        parent = by_id[span.parent_id].name
        is_on_device = span.name in ("input", "exec", "output")
        assert parent == ("execute mlp" if is_on_device else "infer mlp"), span


@contextmanager
def collector(python: Path, home: Path, port: int) -> Iterator[Path]:
    """Yields the file in which it writes what it took."""
    find = "import os, rotel; print(os.path.dirname(rotel.__file__))"
    found = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True)
    program = Path(found.stdout.strip()) / "rotel-agent"
    log = home / "rotel.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(program, "start", "--exporter", "blackhole"),
                *("--otlp-http-endpoint", f"127.0.0.1:{port}"),
                *("--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"),
                *("--debug-log", "traces", "--debug-log-verbosity", "detailed"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield log
        finally:
            process.terminate()
            process.wait(30)


def wait_for(log: Path, *trace_ids: str) -> dict[str, list[Span]]:
    """All that it took so far, by trace; once it has those. Raises AssertionError."""
    until_s = time.monotonic() + WAIT_S
    while True:
        traces = taken(log.read_text())
        if all(trace_id in traces for trace_id in trace_ids):
            return traces
        if time.monotonic() > until_s:
            raise AssertionError(f"{trace_ids} are not all in:\n{log.read_text()[-5000:]}")
        time.sleep(0.2)


def taken(text: str) -> dict[str, list[Span]]:
    traces: dict[str, list[Span]] = defaultdict(list)
    fields: dict[str, str] = {}
    for line in text.splitlines():
        found = _FIELD.fullmatch(line)
        if found is None:
            continue
        fields[found[1]] = found[2].strip()
        if found[1] == "Name":  # the last of a span's
            span = Span(fields["Name"], fields["ID"], fields["Parent ID"])
            traces[fields["Trace ID"]].append(span)
    return traces


if __name__ == "__main__":
    sys.exit(main())
