"""Groups of a gateway as it is started: real models, a real scheduler, feedback over HTTP."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

from tests.gateway.running import ROOT, RunningGateway, environment, running_gateway, write_model
from tests.gateway.running import doubling_model as doubling
from tests.gpuworker import onnx_models
from tests.system.clients import metric

GROUPS = """
groups:
  doubled: {members: [first, second]}
  learnt:
    members: [{model: second, accuracy: 0.8}, {model: first, accuracy: 0.9}]
    selection: exp3
"""
NEVER_MS = 0.001  # no device will ever meet it


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("groups")
    for name in ("first", "second"):
        write_model(directory / "models" / name, doubling(), config="default_slo_ms: 30000\n")
    (directory / "groups.yaml").write_text(GROUPS)
    return directory


@pytest.fixture(scope="module")
def gateway(scratch: Path) -> Iterator[RunningGateway]:
    flags = ("--models", str(scratch / "models"), "--groups", str(scratch / "groups.yaml"))
    with running_gateway(*flags, "--device", "cpu", "--drain-s", "0", scratch=scratch) as running:
        yield running


def ask(gateway: RunningGateway, model: str, slo_ms: float = 30_000, **headers: str) -> Any:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    body = {"model": model, "slo_ms": slo_ms, "inputs": [tensor]}
    return httpx.post(f"{gateway.url}/infer", json=body, headers=headers, timeout=60)


def test_the_preferred_member_answers_for_the_group(gateway: RunningGateway) -> None:
    answer = ask(gateway, "doubled").json()
    assert (answer["model_name"], answer["variant"]) == ("doubled", "first")
    assert answer["outputs"][0]["data"] == [2, 4, 6, 8]
    assert metric(gateway.url, "group_requests_total", group="doubled", model="first") == 1


def test_when_it_is_unloaded_the_next_one_answers_and_then_nobody(gateway: RunningGateway) -> None:
    repository = f"{gateway.url}/v2/repository/models"
    assert httpx.post(f"{repository}/first/unload", timeout=60).status_code == 200
    assert ask(gateway, "doubled").json()["variant"] == "second"
    assert httpx.post(f"{repository}/second/unload", timeout=60).status_code == 200
    refused = ask(gateway, "doubled")
    assert (refused.status_code, refused.json()["reason"]) == (503, "model_unavailable")
    for name in ("first", "second"):
        assert httpx.post(f"{repository}/{name}/load", timeout=60).status_code == 200
    assert ask(gateway, "doubled").json()["variant"] == "first"


def test_an_slo_that_no_member_meets_is_refused_with_figures(gateway: RunningGateway) -> None:
    refused = ask(gateway, "doubled", NEVER_MS)
    assert (refused.status_code, refused.json()["reason"]) == (422, "slo_infeasible_ever")
    assert refused.json()["min_slo_ms"] > NEVER_MS


def test_feedback_moves_the_choices_of_exp3(gateway: RunningGateway) -> None:
    def feedback(request_id: str, loss: float) -> httpx.Response:
        judged = {"request_id": request_id, "loss": loss}
        return httpx.post(f"{gateway.url}/feedback", json=judged, timeout=60)

    chosen = []
    for _ in range(150):
        answer = ask(gateway, "learnt")
        chosen.append(answer.json()["variant"])
        told = feedback(answer.headers["x-request-id"], float(chosen[-1] == "first"))
        assert told.json()["model"] == chosen[-1]
        assert feedback(answer.headers["x-request-id"], 0).status_code == 404  # once
    assert set(chosen[:20]) == {"first", "second"}
    assert chosen[-50:].count("second") > 40
    members = httpx.get(f"{gateway.url}/groups/learnt", timeout=60).json()["members"]
    assert [member["mean_loss"] for member in members] == [1.0, 0.0]
    assert members[1]["probability"] > 0.9
    assert feedback("never heard of", 1).status_code == 404


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ("groups: {g: {members: [first, third]}}", "group g: there is no model 'third'"),
        (
            "groups: {g: {members: [first, other]}}",
            "group g: other cannot be a member: its input 0 is 'x' FP32 [-1, 64]",
        ),
        ("groups: {first: {members: [first, second]}}", "a model has this name too"),
        ("groups: {g: [first, second]}", "group g: Expected `object`"),
    ],
)
def test_a_file_that_cannot_be_served_by_ends_the_start_with_its_reason(
    scratch: Path, tmp_path: Path, groups: str, why: str
) -> None:
    other = scratch / "models" / "other"
    if not other.exists():
        write_model(other, onnx.load_from_string(onnx_models.mlp().SerializeToString()))
    file = tmp_path / "groups.yaml"
    file.write_text(groups)
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--device", "cpu"]
    command += ["--models", str(scratch / "models"), "--groups", str(file)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(REMONTOIR_CACHE_DIR=str(scratch / "cache"), COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert why in " ".join((done.stdout + done.stderr).split())
    assert str(file) in done.stdout + done.stderr
