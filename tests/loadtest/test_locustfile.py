"""Locust itself, in processes of its own (it patches sockets), against a puppet of a gateway."""

import csv
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.servers import free_port
from tests.gateway.running import ROOT, environment

MODELS = {
    "models": [
        {
            "name": "m",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4], "batch_axis": 0}],
        }
    ]
}
NUM_USERS = 4
STATUS_OF_SLO = {"10": 429, "20": 504, "60000": 200}
LOCUST = (sys.executable, "-m", "loadtest.locust_load")


class _Puppet(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: _Puppet
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(200, json.dumps(MODELS).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        slo_ms = self.headers["x-slo-ms"]
        self.server.asked[slo_ms] += 1
        self.server.keys.add(self.headers["authorization"])
        self._reply(STATUS_OF_SLO[slo_ms], b'{"reason": "because"}')

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def puppet() -> Iterator[_Puppet]:
    with _Puppet() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _locust(*flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*LOCUST, *flags],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _rows(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def _is_all_but_the_last(counted: str, asked: int) -> bool:
    """When its time is up a user ends in the middle of a request, which nobody counts then."""
    return 0 <= asked - int(counted) <= NUM_USERS


def test_a_master_adds_up_what_its_workers_count(puppet: _Puppet, tmp_path: Path) -> None:
    port = str(free_port())
    master = _locust(
        *("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port),
        *("--expect-workers", "2", "--headless", "--host", puppet.url),
        *("-u", str(NUM_USERS), "-r", str(NUM_USERS)),
        *("-t", "3s", "--think-s", "0.05", "--slo-ms", "10:1,20:1,60000:2"),
        *("--api-key", "secret", "--csv", str(tmp_path / "run"), "--min-attainment", "0.9"),
    )
    workers = [_locust("--worker", "--master-port", port) for _ in range(2)]
    output, _ = master.communicate(timeout=100)
    for worker in workers:
        worker.communicate(timeout=100)
    slo = _rows(tmp_path / "run_slo.csv", "name")
    asked = puppet.asked
    assert set(asked) == set(STATUS_OF_SLO), output
    assert puppet.keys == {"Bearer secret"}
    assert min(asked.values()) > NUM_USERS, "too few to tell anything"
    assert _is_all_but_the_last(slo["m within 10 ms"]["refused"], asked["10"])
    assert _is_all_but_the_last(slo["m within 20 ms"]["expired"], asked["20"])
    assert _is_all_but_the_last(slo["m within 60000 ms"]["in_time"], asked["60000"])
    assert _is_all_but_the_last(slo["all"]["due"], asked.total())
    stats = _rows(tmp_path / "run_stats.csv", "Name")
    assert _is_all_but_the_last(stats["Aggregated"]["Request Count"], asked.total())
    num_failed = asked["10"] + asked["20"]
    assert _is_all_but_the_last(stats["Aggregated"]["Failure Count"], num_failed)
    assert "refused: 429 because" in (tmp_path / "run_failures.csv").read_text()
    assert (tmp_path / "run_slo_history.csv").read_text().startswith("unix_s,users,name,due")
    assert "--min-attainment 0.9" in output
    assert master.returncode == 1


def test_an_open_load_without_an_answer_is_counted(tmp_path: Path) -> None:
    """A gateway that answers one question alone: what is due later is not sent, and counted so."""
    with _Puppet() as server:
        stuck = threading.Event()

        class Stuck(_Answer):
            def do_POST(self) -> None:
                stuck.wait()
                self.close_connection = True

        server.RequestHandlerClass = Stuck
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        locust = _locust(
            *("--headless", "--host", server.url, "--arrivals", "open", "--rate-per-user", "50"),
            *("-u", "2", "-r", "2", "-t", "2s", "--max-outstanding", "3", "--give-up-s", "30"),
            *("--csv", str(tmp_path / "run"), "--only-summary"),
        )
        try:
            # What is on its way is waited for when the run's time is up: then it may end.
            history = tmp_path / "run_slo_history.csv"
            assert locust.stdout is not None
            for line in locust.stdout:
                if "limit reached" in line:
                    break
        finally:
            stuck.set()
            output, _ = locust.communicate(timeout=60)
            server.shutdown()
            thread.join()
    rows = _rows(tmp_path / "run_slo.csv", "name")
    assert history.exists(), output
    assert int(rows["all"]["failed"]) >= 3, output
    assert int(rows["all"]["unsent"]) > 0
    assert rows["all"]["attainment"] == "0.0"


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        (("--slo-ms", "soon"), "--slo-ms: 'soon' is not of the form", 2),
        (("--models", "other"), "no model other there; it has m", 2),
        (("--shape", "trace", "--trace", "nowhere.csv"), "nowhere.csv is not there", 2),
    ],
)
def test_bad_options_are_told_and_end_it(
    puppet: _Puppet, flags: tuple[str, ...], said: str, code: int
) -> None:
    locust = _locust("--headless", "--host", puppet.url, "-t", "60s", "--only-summary", *flags)
    output, _ = locust.communicate(timeout=60)
    assert said in output
    assert locust.returncode == code
    assert not puppet.asked


def test_a_gateway_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    locust = _locust("--headless", "--host", url, "-t", "60s", "--only-summary")
    output, _ = locust.communicate(timeout=60)
    assert f"{url}/models cannot be asked: " in output
    assert locust.returncode == 2


def test_help_has_the_options_of_the_file() -> None:
    output, _ = _locust("--help").communicate(timeout=60)
    assert "--rate-per-user" in output
    assert "remontoir locust --headless" in output
