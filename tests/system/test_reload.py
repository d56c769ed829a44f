"""Versions come, break, go back and vanish under a serving gateway, whose clients notice nothing.

Each version of the model multiplies by another number, so that every answer says who gave it. One
client asks for it without a pause, one for the model beside it.
"""

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.gateway.running import RunningGateway, running_gateway
from tests.processes import is_alive

INDEX = "/v2/repository/index"
LOAD = "/v2/repository/models/scale/load"
UNLOAD = "/v2/repository/models/scale/unload"


HANG_S = 300.0  # a guard: compiling at nice 19 on a busy machine takes a tenth of it


def until(condition: Callable[[], bool], what: str) -> None:
    """Polls for what another process will bring about."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {HANG_S:g} s"
        time.sleep(0.05)


def scaling(factor: float) -> onnx.ModelProto:
    """x FP32 [N, 64] → y = factor · x, by a matrix: weights that lie in a page."""
    weights = np.eye(64, dtype=np.float32) * factor
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9)


class Site:
    """A gateway, its repository, and two clients that never stop asking."""

    def __init__(self, gateway: RunningGateway, repository: Path) -> None:
        self.gateway = gateway
        self.url = gateway.url
        self.repository = repository
        self.verdicts: Counter[str] = Counter()  # of the clients that never stop, by model
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(name,)) for name in ("scale", "other")
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def write(self, version: str, content: bytes, *, model: str = "scale") -> None:
        """Whole at once, as by a rename."""
        aside = self.repository / f".{model}-{version}"
        aside.mkdir()
        (aside / "model.onnx").write_bytes(content)
        (self.repository / model).mkdir(exist_ok=True)
        target = self.repository / model / version
        shutil.rmtree(target, ignore_errors=True)
        os.rename(aside, target)

    def answer(self, model: str = "scale", version: str | None = None) -> float | str:
        """What the model multiplies by; a refusal's reason."""
        versions = "" if version is None else f"/versions/{version}"
        reply = httpx.post(f"{self.url}/v2/models/{model}{versions}/infer", json=BODY, timeout=60)
        if reply.status_code != 200:
            return str(reply.json()["reason"])
        return float(reply.json()["outputs"][0]["data"][0])

    def post(self, path: str) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=HANG_S)

    def model(self, name: str = "scale") -> dict[str, object]:
        return dict(httpx.get(f"{self.url}/models/{name}").json())

    def index(self) -> list[tuple[str, str, str]]:
        return [(e["name"], e["version"], e["state"]) for e in self.post(INDEX).json()]

    def _ask(self, model: str) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._is_over.is_set():
                reply = client.post(f"{self.url}/v2/models/{model}/infer", json=BODY)
                reason = "" if reply.status_code == 200 else f" {reply.json()['reason']}"
                self.verdicts[f"{model} {reply.status_code}{reason}"] += 1


BODY = {
    "inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [1.0] * 64}],
    "parameters": {"slo_ms": 30_000},
}


def opened(scratch: Path, *flags: str) -> Iterator[Site]:
    repository = scratch / "models"
    for name, factor in (("scale", 1.0), ("other", 10.0)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.onnx").write_bytes(scaling(factor).SerializeToString())
    given = ("--models", str(repository), "--device", "cpu", "--drain-s", "0", *flags)
    with running_gateway(*given, scratch=scratch) as gateway:
        site = Site(gateway, repository)
        site.start()
        try:
            yield site
        finally:
            site.stop()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Site]:
    """Looks at its repository all the time."""
    yield from opened(tmp_path, "--repository-poll-s", "0.1", "--keep-versions", "1")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Site]:
    """Looks at its repository when it is told to, on two workers."""
    yield from opened(tmp_path, "--workers", "2", "--keep-versions", "1")


def test_a_version_that_appears_takes_over_and_nobody_notices(watched: Site) -> None:
    assert watched.answer() == 1
    watched.write("2", scaling(2).SerializeToString())
    until(lambda: watched.model()["version"] == "2", "version 2 serves")
    assert watched.answer() == 2
    assert watched.answer(version="1") == 1, "it is kept, and means what it meant"
    assert watched.model()["kept_versions"] == ["1"]
    assert watched.answer(version="3") == "not_found"

    watched.write("3", b"this is no model")
    until(lambda: watched.model()["problem"] is not None, "version 3 is found wanting")
    assert str(watched.model()["problem"]).startswith("version 3: ")
    assert ("scale", "3", "UNAVAILABLE") in watched.index()
    assert watched.answer() == 2

    watched.write("3", scaling(3).SerializeToString())
    until(lambda: watched.model()["version"] == "3", "version 3 serves, mended")
    assert (watched.model()["problem"], watched.model()["kept_versions"]) == (None, ["2"])
    until(lambda: watched.answer(version="1") == "not_found", "version 1 is kept no more")

    watched.write("1", scaling(7).SerializeToString(), model="newcomer")
    until(lambda: watched.answer("newcomer") == 7, "a new model serves")

    shutil.rmtree(watched.repository / "scale" / "3")
    until(lambda: watched.model()["version"] == "2", "the highest that is left serves")
    shutil.rmtree(watched.repository / "scale")
    until(lambda: watched.model()["problem"] is not None, "nothing is left in the repository")
    assert watched.answer() == 2, "what serves goes on"
    watched.stop()
    assert set(watched.verdicts) == {"scale 200", "other 200"}, watched.verdicts


def test_a_copy_that_stalls_half_way_harms_nobody_and_is_taken_once_whole(watched: Site) -> None:
    content = scaling(2).SerializeToString()
    directory = watched.repository / "scale" / "2"
    directory.mkdir()
    with (directory / "model.onnx").open("wb", buffering=0) as file:
        file.write(content[: len(content) // 2])
        until(lambda: watched.model()["problem"] is not None, "half of it is found wanting")
        assert watched.answer() == 1
        file.write(content[len(content) // 2 :])
    until(lambda: watched.model()["version"] == "2", "it is whole, and serves")
    assert (watched.answer(), watched.model()["problem"]) == (2, None)


def test_reload_and_rollback_by_one_call_each(told: Site) -> None:
    told.write("2", scaling(2).SerializeToString())
    assert told.answer() == 1, "nobody has told it"
    reply = told.post("/models/scale/reload")
    assert reply.status_code == 200, reply.text
    outcome = reply.json()
    assert (outcome["version"], outcome["previous_version"]) == ("2", "1")
    assert (outcome["outcome"], outcome["kept_versions"]) == ("reloaded", ["1"])
    assert told.answer() == 2
    assert told.post("/models/scale/reload").json()["outcome"] == "unchanged"

    reply = told.post("/models/scale/rollback")
    assert (reply.status_code, reply.json()["outcome"]) == (200, "rolled_back")
    assert (told.answer(), told.answer(version="2")) == (1, 2)
    assert told.post(LOAD).status_code == 200
    assert told.answer() == 1, "nothing has changed in the repository since"
    assert told.post("/models/scale/reload").json()["outcome"] == "reloaded"
    assert told.answer() == 2

    # Another content under the number that serves.
    told.write("2", scaling(5).SerializeToString())
    assert told.post(LOAD).status_code == 200
    assert told.answer() == 5
    assert told.post("/models/scale/rollback").status_code == 200
    assert told.answer() == 2
    told.stop()
    assert set(told.verdicts) == {"scale 200", "other 200"}, told.verdicts


def test_what_cannot_be_done_says_why(told: Site) -> None:
    reply = told.post("/models/scale/rollback")
    assert (reply.status_code, reply.json()["reason"]) == (404, "not_found")
    assert "no version to go back to" in reply.json()["detail"]
    assert told.post("/models/nobody/reload").status_code == 404
    assert told.post("/models/nobody/rollback").status_code == 404
    assert told.post("/models/../reload").status_code in (404, 405)
    told.write("2", b"this is no model")
    reply = told.post("/models/scale/reload")
    assert (reply.status_code, reply.json()["reason"]) == (503, "model_unavailable")
    assert "version 2 cannot be served" in reply.json()["detail"]
    assert reply.json()["detail"].endswith("version 1 goes on serving")
    assert told.answer() == 1


def test_unloading_takes_all_versions_and_loading_brings_what_is_new(told: Site) -> None:
    told.write("2", scaling(2).SerializeToString())
    assert told.post("/models/scale/reload").status_code == 200
    reply = told.post(UNLOAD)
    assert (reply.status_code, reply.json()["version"]) == (200, "2")
    assert reply.json()["host_bytes_freed"] > 0
    assert told.answer() == "model_unavailable"
    assert told.answer(version="1") == "not_found"
    told.write("3", scaling(3).SerializeToString())
    assert told.post(LOAD).json()["version"] == "3"
    assert told.answer() == 3
    assert told.model()["kept_versions"] == []


def test_a_worker_that_starts_again_serves_what_served(told: Site) -> None:
    told.write("2", scaling(2).SerializeToString())
    assert told.post("/models/scale/reload").status_code == 200
    workers = told.gateway.child_pids()
    for pid in workers:
        os.kill(pid, 9)
    until(lambda: not any(is_alive(pid) for pid in workers), "the workers are dead")
    until(lambda: told.answer() == 2, "version 2 serves again")
    until(lambda: told.answer(version="1") == 1, "so does the one that is kept")
    assert told.post("/models/scale/rollback").status_code == 200
    assert told.answer() == 1
