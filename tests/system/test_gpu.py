"""`remontoir serve` on two GPUs, with stand-ins for the driver and TensorRT in their place.

Everything else is real: pages and mappings through cuda-bindings and pycuda, a process for each
GPU, weights in memory that both share, and the way of every request.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from gpuworker.artifact_cache import PLAN_FILE
from tests.gateway.running import ROOT, RunningGateway, environment, running_gateway
from tests.processes import GONE, child_pids
from tests.standin import driver
from tests.system.clients import metric, play, post
from tests.system.test_models import INPUTS, mlp_body, output_bytes, rows_of, wide_body
from tests.system.zoo import WIDE, expected_of_wide, wide_weights

# Of 2 MiB each: the seven larger models need 58 pages, and each GPU has 32.
FLAGS = ("--page-mb", "2", "--cache-mb", "64", "--drain-s", "0", "--log-level", "error")
RTOL, ATOL = 1e-4, 1e-5


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    reason = driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    return driver.environment(tmp_path_factory.mktemp("standin"), num_gpus=2)


@pytest.fixture(scope="module")
def gpus(standins: dict[str, str], zoo_dir: Path) -> Iterator[RunningGateway]:
    """Serves the zoo on all GPUs that there are, as it does when no device is named."""
    flags = ("--models", str(zoo_dir / "models"), *FLAGS)
    with running_gateway(*flags, scratch=zoo_dir, **standins) as gateway:
        play(lambda: _both_joined(gateway.url))
        yield gateway


async def _both_joined(url: str) -> None:
    while metric(url, "worker_up") < 2:
        pass


def test_each_gpu_has_a_worker_and_models_are_plans(gpus: RunningGateway) -> None:
    told = {m["name"]: m for m in httpx.get(f"{gpus.url}/models").json()["models"]}
    assert {m["platform"] for m in told.values()} == {"tensorrt_plan"}
    assert [name for name, m in told.items() if m["unavailable_reason"]] == ["broken"]
    assert len(told["mlp"]["devices"]) == 2
    for number in range(2):
        assert metric(gpus.url, "worker_up", worker=f"local-0-cuda{number}") == 1


def test_cards_of_one_kind_share_what_is_compiled_and_the_weights(
    gpus: RunningGateway, zoo_dir: Path
) -> None:
    for model in ("mlp", *WIDE):
        assert len(list((zoo_dir / "cache").glob(f"{model}-*/{PLAN_FILE}"))) == 1
    # In each worker the store is one mapping, which both have of one file.
    [launcher] = gpus.child_pids()
    assert len({_store_of(pid) for pid in child_pids(launcher)}) == 1


def _store_of(pid: int) -> int:
    """The inode of the memory that its weights lie in."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "weights-store" in line:
            return int(line.split()[4])
    raise AssertionError(f"process {pid} maps no store")


def test_answers_are_those_of_the_model_through_caches_that_are_too_small(
    gpus: RunningGateway,
) -> None:
    chance = random.Random(7)
    expected = {model: expected_of_wide(wide_weights(model), INPUTS) for model in WIDE}
    before = metric(gpus.url, "evictions_total")
    for _ in range(60):
        model, row = chance.choice(list(WIDE)), chance.randrange(len(INPUTS))
        got = rows_of(output_bytes(post(gpus.url, wide_body(model, INPUTS[row : row + 1]))))
        np.testing.assert_allclose(got[0], expected[model][row], rtol=RTOL, atol=ATOL)
    assert metric(gpus.url, "evictions_total") > before
    assert metric(gpus.url, "anomalies_total") == 0


def test_each_card_says_what_it_draws_and_an_answer_its_share(gpus: RunningGateway) -> None:
    assert post(gpus.url, mlp_body()).json["energy_mj"] > 0
    for number in range(2):
        worker = f"local-0-cuda{number}"
        assert metric(gpus.url, "gpu_power_watts", worker=worker) == 299
        assert metric(gpus.url, "gpu_sm_clock_hertz", worker=worker) == 1.41e9


def test_a_worker_that_is_killed_is_started_again_beside_the_other(gpus: RunningGateway) -> None:
    [launcher] = gpus.child_pids()

    first, second = child_pids(launcher)
    os.kill(second, signal.SIGKILL)

    async def story() -> None:
        while first not in (now := child_pids(launcher)) or len(now) < 2 or second in now:
            assert post(gpus.url, mlp_body()).status == 200  # by the other one, meanwhile
        await _both_joined(gpus.url)

    play(story)
    assert post(gpus.url, mlp_body()).status == 200


def test_a_terminals_ctrl_c_ends_the_workers_of_all_gpus(
    standins: dict[str, str], zoo_dir: Path
) -> None:
    env = environment(**standins, REMONTOIR_CACHE_DIR=str(zoo_dir / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        probes = free.getsockname()[1]
    flags = ("--connect", "tcp://127.0.0.1:1", "--models", str(zoo_dir / "models"), *FLAGS[:4])
    flags += ("--health-port", str(probes))
    launcher = subprocess.Popen(
        [sys.executable, "-m", "gateway", "worker", *flags, "--device", "all"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its process group is what a terminal sends Ctrl-C to
    )
    try:
        while sum(map(_ignores_ctrl_c, child_pids(launcher.pid))) < 2:
            assert launcher.poll() is None
        while _probe(probes, "/startz") != 200:  # of both, and the launcher answers
            assert launcher.poll() is None
        assert (_probe(probes, "/livez"), _probe(probes, "/readyz")) == (200, 503)
        os.killpg(launcher.pid, signal.SIGINT)
        output, _ = launcher.communicate(timeout=60)
        assert launcher.returncode == 0, output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)


def _probe(port: int, path: str) -> int | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=20).status_code
    except httpx.ConnectError:
        return None  # not yet


def _ignores_ctrl_c(pid: int) -> bool:
    with contextlib.suppress(*GONE):  # it ended just now
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1)
    return False


def test_a_gpu_that_breaks_ends_its_worker_with_one_line_and_is_started_again(
    zoo_dir: Path, tmp_path: Path
) -> None:
    reason = driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    env = driver.environment(tmp_path, num_gpus=2)
    flags = ("--models", str(zoo_dir / "models"), *FLAGS[:-1], "warning")
    # One breaks as soon as it has the weights of a model, which only a worker pins.
    driver.death_of(tmp_path).write_text("cuMemHostRegister_v2")
    with running_gateway(*flags, scratch=zoo_dir, **env) as gateway:
        play(lambda: _both_joined(gateway.url))
        driver.death_of(tmp_path).touch()

        async def story() -> None:
            while metric(gateway.url, "worker_up") == 2:
                answer = post(gateway.url, mlp_body())
                assert answer.verdict in ("200", "503 worker_lost")
            while metric(gateway.url, "worker_up") < 2:
                assert post(gateway.url, mlp_body()).status == 200  # by the other one, meanwhile
            assert post(gateway.url, mlp_body()).status == 200

        play(story)
        gateway.process.send_signal(signal.SIGTERM)
        exit_code, rest = gateway.wait()
    output = gateway.announcement + rest
    assert exit_code == 0, output
    assert output.count("giving up: Stand-in is lost: CUDA_ERROR_ECC_UNCORRECTABLE") == 1
    assert len(re.findall(r"gpuworker: Stand-in broke while model \S+ was made ready", output)) == 1
    assert output.count("its worker ended with code 1 after") == 2
    assert "Traceback" not in output
    assert "context stack" not in output


def _command(*flags: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway", *flags],
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_gpu_that_is_not_there_is_refused_with_the_number_of_those_that_are(
    standins: dict[str, str], zoo_dir: Path
) -> None:
    flags = ("serve", "--models", str(zoo_dir / "models"), "--port", "0")
    ended = _command(*flags, "--device", "cuda:2", env=standins)
    assert ended.returncode == 2
    assert "--device cuda:2: this machine has 2 CUDA devices" in ended.stderr


def test_workers_are_not_counted_on_gpus(standins: dict[str, str], zoo_dir: Path) -> None:
    flags = ("serve", "--models", str(zoo_dir / "models"), "--port", "0")
    ended = _command(*flags, "--workers", "3", env=standins)
    assert ended.returncode == 2
    assert "--workers 3: on GPUs there is one for each (cuda:0, cuda:1)" in ended.stderr


def test_a_cache_larger_than_the_card_is_refused_with_both_sizes(
    standins: dict[str, str], zoo_dir: Path
) -> None:
    flags = ("serve", "--models", str(zoo_dir / "models"), "--port", "0", "--page-mb", "2")
    env = {**standins, "REMONTOIR_CACHE_DIR": str(zoo_dir / "cache")}
    ended = _command(*flags, "--device", "cuda:0", "--cache-mb", "100000", env=env)
    assert ended.returncode == 1
    assert "a weights cache of 100000 MiB does not fit onto" in ended.stderr
    assert "MiB are free" in ended.stderr


def test_without_tensorrt_it_says_so_and_the_cpu_is_not_taken_for_it(
    standins: dict[str, str], zoo_dir: Path
) -> None:
    if _is_installed("tensorrt"):
        pytest.skip("TensorRT is installed here")
    env = {**standins, "PYTHONPATH": str(ROOT)}
    ended = _command("serve", "--models", str(zoo_dir / "models"), "--port", "0", env=env)
    assert ended.returncode == 2
    assert "tensorrt not installed: pip install tensorrt-cu13 (the driver runs" in ended.stderr
    assert "--device cpu serves without it" in ended.stderr


def _is_installed(package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
