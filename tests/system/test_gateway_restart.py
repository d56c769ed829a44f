"""A gateway that ends, by a signal or at once, and its worker elsewhere, which stays as it was."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.running import ROOT, environment, running_gateway
from tests.system.clients import bytes_body, is_ready, metric, post, state_on
from tests.system.stages import until

MODEL = "resnet50_v2"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "gateway", "worker", "--connect", f"ipc://{tmp_path}/door"]
    command += ["--emulate", "clockwork-v100", "--name", "elsewhere"]
    log = (tmp_path / "worker.log").open("wb")
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()
    log.close()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_gateway_finds_the_worker_and_its_weights(
    tmp_path: Path, worker: "subprocess.Popen[bytes]", ending: signal.Signals
) -> None:
    flags = ("--emulate", "clockwork-v100", "--workers", "0", "--drain-s", "0")
    flags = (*flags, "--worker-bind", f"ipc://{tmp_path}/door")
    with running_gateway(*flags, scratch=tmp_path) as gateway:
        until(lambda: is_ready(gateway.url), "the worker joins")
        assert post(gateway.url, bytes_body(MODEL)).status == 200
        assert metric(gateway.url, "loads_total", model=MODEL) == 1
        gateway.process.send_signal(ending)
        gateway.wait()
    with running_gateway(*flags, scratch=tmp_path) as gateway:
        until(lambda: is_ready(gateway.url), "the worker joins again")
        assert state_on(gateway.url, MODEL, "elsewhere") == "resident"
        assert post(gateway.url, bytes_body(MODEL)).status == 200
        assert metric(gateway.url, "loads_total", model=MODEL) == 0
    assert worker.poll() is None
