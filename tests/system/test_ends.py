"""How a serving gateway ends, under load: in order and with everybody answered, or at once."""

import asyncio
import os
import signal
from pathlib import Path

import httpx

from scheduler.wire import Goodbye
from tests.gateway.running import running_gateway
from tests.gpuworker import onnx_models
from tests.processes import is_alive
from tests.system.clients import (
    Answer,
    Connection,
    ask_on_new_connection,
    bytes_body,
    infer_body,
    play,
    post,
)
from tests.system.puppets import MODELS, PuppetWorker
from tests.system.stages import open_stage, until

MODEL = "cifar_wideresnet16_10"


def test_sigterm_serves_on_then_refuses_and_answers_what_is_in_flight(tmp_path: Path) -> None:
    """One request is held by its worker from before the signal until all others are refused."""
    with open_stage(tmp_path, "--drain-s", "1") as stage:
        gateway = stage.gateway
        with PuppetWorker(stage.workers, [MODELS[MODEL]], is_holding=True) as puppet:
            until(lambda: httpx.get(f"{stage.url}/readyz").status_code == 200, "the worker joins")

            async def story() -> None:
                in_flight = await Connection.open(stage.url)
                in_flight.send(bytes_body(MODEL, b"first"))
                await asyncio.to_thread(puppet.wait_for_requests, 1)
                gateway.process.send_signal(signal.SIGTERM)
                line = await asyncio.to_thread(gateway.read_line)
                assert line == "Draining for 1 s; Ctrl-C again ends at once.\n"

                not_ready = await asyncio.to_thread(httpx.get, f"{stage.url}/readyz")
                assert (not_ready.status_code, not_ready.json()["reason"]) == (503, "draining")
                live = await asyncio.to_thread(httpx.get, f"{stage.url}/livez")
                assert live.status_code == 200
                admitted = await Connection.open(stage.url)
                admitted.send(bytes_body(MODEL, b"while draining"))
                await asyncio.to_thread(puppet.wait_for_requests, 2)

                refused = await first_refusal(stage.url)
                assert refused.verdict == "503 draining"
                assert refused.headers["connection"] == "close"
                assert "retry-after" in refused.headers
                assert puppet.num_held > 1  # nobody was answered by the end of draining
                puppet.release()
                for connection, data in ((in_flight, b"first"), (admitted, b"while draining")):
                    answer = await connection.answer()
                    assert bytes(answer.json["outputs"][0]["data"]).startswith(data)
                    assert answer.headers["connection"] == "close"  # the next one goes elsewhere
                    connection.close()

            play(story)
            assert gateway.wait() == (0, "")
            puppet.wait_for(lambda: any(isinstance(m, Goodbye) for m in puppet.heard), "Goodbye")
    assert list((tmp_path / "tmp").iterdir()) == []


async def first_refusal(url: str) -> Answer:
    """Asks until the answer is not simply late: what is admitted meanwhile hangs up again."""
    while True:
        asking = asyncio.create_task(ask_on_new_connection(url, bytes_body(MODEL, b"later")))
        done, _ = await asyncio.wait({asking}, timeout=0.1)
        if done:
            return asking.result()
        asking.cancel()


def test_a_real_worker_under_load_ends_with_everybody_answered_and_nothing_left(
    tmp_path: Path,
) -> None:
    """Two starts: the first compiles, the second finds it done. Each ends under load."""
    onnx_models.write_model(tmp_path / "models", "mlp", onnx_models.mlp())
    flags = ("--models", str(tmp_path / "models"), "--drain-s", "0")
    tensor = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
    body = infer_body("mlp", [tensor])
    artifacts: list[dict[Path, tuple[int, int]]] = []
    outputs = []
    for _ in range(2):
        with running_gateway(*flags, scratch=tmp_path) as gateway:
            (worker,) = gateway.child_pids()
            assert not named_memory_of(gateway.process.pid) | named_memory_of(worker)
            outputs.append(post(gateway.url, body).json["outputs"])

            async def story(url: str = gateway.url, pid: int = gateway.process.pid) -> None:
                connections = [await Connection.open(url) for _ in range(200)]
                for number, connection in enumerate(connections):
                    connection.send(body)
                    if number == 100:
                        os.kill(pid, signal.SIGTERM)
                answers = [await connection.answer() for connection in connections]
                assert {answer.verdict for answer in answers} <= {"200", "503 draining"}
                for connection in connections:
                    connection.close()

            play(story)
            exit_code, output = gateway.wait()
            assert exit_code == 0, output
        assert not is_alive(worker)
        assert list((tmp_path / "tmp").iterdir()) == []
        artifacts.append(
            {
                path: (path.stat().st_ino, path.stat().st_mtime_ns)
                for path in (tmp_path / "cache").rglob("*")
                if path.is_file() and path.suffix != ".lock" and "examples" not in path.parts
            }
        )
    assert artifacts[0]
    assert artifacts[0] == artifacts[1]  # not one file was written again
    assert outputs[0] == outputs[1]


def test_killing_a_gateway_with_a_real_worker_leaves_no_process_and_no_shared_memory(
    tmp_path: Path,
) -> None:
    onnx_models.write_model(tmp_path / "models", "mlp", onnx_models.mlp())
    flags = ("--models", str(tmp_path / "models"))
    with running_gateway(*flags, scratch=tmp_path) as gateway:
        (worker,) = gateway.child_pids()
        assert not named_memory_of(gateway.process.pid) | named_memory_of(worker)
        gateway.process.kill()
        gateway.wait()
        until(lambda: not is_alive(worker), "the worker ends")


def named_memory_of(pid: int) -> set[str]:
    """Shared memory that would outlive its processes. The worker's pages have no name: a memfd."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines}
    return {path for path in paths if path.startswith(("/dev/shm/", "/SYSV"))}
