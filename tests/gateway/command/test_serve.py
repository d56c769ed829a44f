"""`remontoir serve` as a process: it starts, serves, drains, and leaves nothing behind."""

import http.client
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.gateway.running import (
    ROOT,
    RunningGateway,
    doubling_model,
    environment,
    running_gateway,
    write_model,
)
from tests.processes import child_pids, is_alive

EMULATED = ("--emulate", "clockwork-v100:2")
BODY = {
    "model": "resnet50_v2",
    "slo_ms": 5000,
    "inputs": [{"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [0]}],
}


def asked_with_curl(line: str) -> httpx.Response:
    """What the curl line would get, without curl."""
    words = shlex.split(line, comments=True)
    assert words[:3] == ["curl", "-sw", r"\n"]
    headers, data, rest = {}, None, words[3:]
    while len(rest) > 1:
        flag, value, *rest = rest
        if flag == "-H":
            name, _, content = value.partition(": ")
            headers[name] = content
        else:
            assert flag == "-d"
            data = Path(value[1:]).read_text() if value.startswith("@") else value
    [url] = rest
    return httpx.request("GET" if data is None else "POST", url, headers=headers, content=data)


def infer(gateway: RunningGateway) -> httpx.Response:
    return httpx.post(f"{gateway.url}/infer", json=BODY, timeout=30)


def test_the_printed_lines_work_as_pasted(tmp_path: Path) -> None:
    with running_gateway(*EMULATED, "--drain-s", "0", scratch=tmp_path) as gateway:
        lines = [line for line in gateway.announcement.splitlines() if line.startswith("  curl")]
        models, served, refused = map(asked_with_curl, lines)
        assert len(models.json()["models"]) > 50
        assert served.status_code == 200
        assert served.json()["slo"]["slo_ms"] == 1000.0
        assert refused.status_code == 422
        assert refused.json()["reason"] == "slo_infeasible_ever"


def test_sigterm_drains_and_leaves_nothing(tmp_path: Path) -> None:
    with running_gateway(*EMULATED, "--drain-s", "3", scratch=tmp_path) as gateway:
        workers = gateway.child_pids()
        assert len(workers) == 2
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.read_line() == "Draining for 3 s; Ctrl-C again ends at once.\n"
        not_ready = httpx.get(f"{gateway.url}/readyz")
        assert (not_ready.status_code, not_ready.json()["reason"]) == (503, "draining")
        assert infer(gateway).status_code == 200
        assert gateway.wait() == (0, "")
    assert not any(map(is_alive, workers))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_who_asked_before_the_end_is_answered(tmp_path: Path) -> None:
    with running_gateway(*EMULATED, "--drain-s", "0", scratch=tmp_path) as gateway:
        address = gateway.url.removeprefix("http://")
        connections = [http.client.HTTPConnection(address, timeout=60) for _ in range(24)]
        for connection in connections:
            connection.request("POST", "/infer", json.dumps(BODY))
        gateway.process.send_signal(signal.SIGTERM)
        statuses = [connection.getresponse().status for connection in connections]
        for connection in connections:
            connection.close()
        assert set(statuses) <= {200, 503}
        assert gateway.wait()[0] == 0


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with running_gateway(*EMULATED, "--drain-s", "3600", scratch=tmp_path) as gateway:
        workers = gateway.child_pids()
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.read_line() == "Draining for 3600 s; Ctrl-C again ends at once.\n"
        gateway.process.send_signal(signal.SIGINT)
        exit_code, output = gateway.wait()
        assert exit_code == 130
        assert output.endswith("remontoir: ended at once, as asked a second time\n")
    assert not any(map(is_alive, workers))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_workers_do_not_outlive_a_killed_gateway(tmp_path: Path) -> None:
    with running_gateway(*EMULATED, scratch=tmp_path) as gateway:
        workers = gateway.child_pids()
        gateway.process.kill()
        gateway.wait()
        until(lambda: not any(map(is_alive, workers)), "the workers end")


def test_a_signal_while_compiling_ends_it_cleanly(tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "double", doubling_model())
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--port", "0", "--models", "models"],
        cwd=tmp_path,
        env=environment(
            TMPDIR=str(tmp_path / "tmp"), REMONTOIR_CACHE_DIR="cache", PYTHONPATH=str(ROOT)
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: child_pids(process.pid) != [], "compiling starts")
    [compiling] = child_pids(process.pid)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert not is_alive(compiling)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_worker_that_joins_from_elsewhere_serves(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    flags = ("--emulate", "clockwork-v100", "--workers", "0", "--worker-bind", address)
    with running_gateway(*flags, "--drain-s", "0", scratch=tmp_path) as gateway:
        not_ready = httpx.get(f"{gateway.url}/readyz")
        assert (not_ready.status_code, not_ready.json()["reason"]) == (503, "no_worker")
        join = ["worker", "--connect", address, "--emulate", "clockwork-v100", "--name", "other"]
        worker = subprocess.Popen(
            [sys.executable, "-m", "gateway", *join], cwd=ROOT, env=environment()
        )
        try:
            ready = f"{gateway.url}/readyz"
            until(lambda: httpx.get(ready).status_code == 200, "the worker joins")
            assert infer(gateway).status_code == 200
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.wait()[0] == 0
            assert worker.poll() is None  # it waits for the next gateway (adr/0016)
            worker.terminate()
            assert worker.wait(timeout=30) == 0
        finally:
            worker.kill()
            worker.wait()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within 30 s"
        time.sleep(0.02)
