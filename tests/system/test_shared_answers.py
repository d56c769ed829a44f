"""Single flight and the prediction cache of a gateway as it is started, with workers of both kinds.

Whether requests met is never a matter of time: a worker moved by hand holds the execution until the
gateway says that they wait.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from gpuworker.model_store import scan_repository
from scheduler.spec import ModelSpec, TensorSpec
from tests.gateway.running import RunningGateway, running_gateway, write_model
from tests.system.clients import Answer, Connection, bytes_body, metric, play, post
from tests.system.puppets import MODELS, PuppetWorker
from tests.system.stages import until

FLIGHT, CACHED = "flight", "cached"


def echo_model() -> onnx.ModelProto:
    """x UINT8 [N, 4] → y = x."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", 4]) for name in ("x", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "echo", [tensors[0]], [tensors[1]]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared")
    write_model(directory / "models" / FLIGHT, echo_model(), config="single_flight: true\n")
    write_model(directory / "models" / CACHED, echo_model(), config="cache: {mb: 1}\n")
    return directory


@pytest.fixture(scope="module")
def gateway(repository: Path) -> Iterator[RunningGateway]:
    """Without workers of its own."""
    flags = ("--models", str(repository / "models"), "--device", "cpu", "--workers", "0")
    with running_gateway(*flags, "--drain-s", "0", scratch=repository) as running:
        yield running


@pytest.fixture
def puppet(gateway: RunningGateway, repository: Path) -> Iterator[PuppetWorker]:
    (socket,) = (repository / "tmp").glob("remontoir-*/workers")
    hashes = {model.name: model.content_hash for model in scan_repository(repository / "models")}
    specs = [spec_of(name, content_hash) for name, content_hash in hashes.items()]
    with PuppetWorker(f"ipc://{socket}", specs, is_holding=True) as worker:
        until(lambda: metric(gateway.url, "worker_up") == 1, "the puppet joins")
        yield worker
    until(lambda: metric(gateway.url, "worker_up") == 0, "the puppet leaves")


def spec_of(name: str, content_hash: str) -> ModelSpec:
    return msgspec.structs.replace(
        next(iter(MODELS.values())),
        name=name,
        content_hash=content_hash,
        inputs=(TensorSpec("x", "UINT8", (-1, 4)),),
        outputs=(TensorSpec("y", "UINT8", (-1, 4)),),
    )


def body(model: str, data: bytes = b"abcd", **members: object) -> bytes:
    return bytes_body(model, data, **members)


def marks(answers: list[Answer]) -> list[str]:
    assert {answer.verdict for answer in answers} == {"200"}
    assert all(answer.headers["x-cache"] == answer.json["cache"] for answer in answers)
    return [answer.json["cache"] for answer in answers]


def test_identical_requests_in_flight_are_one_execution(
    gateway: RunningGateway, puppet: PuppetWorker
) -> None:
    async def story() -> None:
        connections = [await Connection.open(gateway.url) for _ in range(4)]
        connections[0].send(body(FLIGHT, id="a"))
        await asyncio.to_thread(puppet.wait_for_requests, 1)
        connections[1].send(body(FLIGHT, id="b"), headers="x-request-id: mine\r\n")
        connections[2].send(body(FLIGHT, id="c", parameters={"binary_data_output": True}))
        connections[3].send(body(FLIGHT, b"zzzz"))  # another input
        await waiting(gateway, 2)
        await asyncio.to_thread(puppet.wait_for, lambda: puppet.num_ordered == 2, "the other one")
        puppet.release()
        answers = [await connection.answer() for connection in connections]
        binary = answers.pop(2)
        assert marks(answers) == ["miss", "shared", "miss"]
        assert [answer.json.get("id") for answer in answers] == ["a", "b", None]
        assert answers[1].headers["x-request-id"] == "mine"
        assert [answer.json["outputs"][0]["data"] for answer in answers] == [
            [*b"abcd"],
            [*b"abcd"],
            [*b"zzzz"],
        ]
        header = binary.body[: int(binary.headers["inference-header-content-length"])]
        assert (json.loads(header)["cache"], binary.body[-4:]) == ("shared", b"abcd")

    before = executions(gateway, FLIGHT)
    play(story)
    assert puppet.num_ordered == 2
    assert executions(gateway, FLIGHT) - before <= 2


def test_a_leader_that_hangs_up_leaves_the_execution_to_the_others(
    gateway: RunningGateway, puppet: PuppetWorker
) -> None:
    async def story() -> None:
        leader, follower = [await Connection.open(gateway.url) for _ in range(2)]
        leader.send(body(FLIGHT))
        await asyncio.to_thread(puppet.wait_for_requests, 1)
        follower.send(body(FLIGHT))
        await waiting(gateway, 1)
        gone = metric(gateway.url, "requests_total", model=FLIGHT, outcome="cancelled")
        leader.close()
        await asyncio.to_thread(
            until,
            lambda: metric(gateway.url, "requests_total", model=FLIGHT, outcome="cancelled") > gone,
            "the leader is missed",
        )
        puppet.release()
        assert marks([await follower.answer()]) == ["shared"]

    play(story)
    assert puppet.num_ordered == 1


def test_what_was_answered_is_answered_again_without_a_worker(
    gateway: RunningGateway, puppet: PuppetWorker
) -> None:
    puppet.release()
    assert marks([post(gateway.url, body(CACHED)) for _ in range(2)]) == ["miss", "hit"]
    assert marks([post(gateway.url, body(CACHED, slo_ms=100))]) == ["hit"]
    assert puppet.num_ordered == 1
    assert executions(gateway, CACHED) == 1
    assert metric(gateway.url, "cache_requests_total", model=CACHED, result="hit") == 2
    assert 0 < metric(gateway.url, "cache_bytes", model=CACHED) <= 1 << 20


async def waiting(gateway: RunningGateway, count: int) -> None:
    await asyncio.to_thread(
        until,
        lambda: metric(gateway.url, "single_flight_waiting", model=FLIGHT) == count,
        f"{count} wait for another's execution",
    )


def executions(gateway: RunningGateway, model: str) -> int:
    stats = httpx.get(f"{gateway.url}/v2/models/{model}/stats", timeout=30).json()
    count: int = stats["model_stats"][0]["execution_count"]
    return count
