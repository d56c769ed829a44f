"""Unmodified clients of the Open Inference Protocol v2 against a real gateway and a real worker.

Only tritonclient is here; KServe's and MLServer's clients and perf_analyzer are heavy and come with
`make e2e-v2` (tests/e2e/v2_clients.py).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from gateway.v2.routes import EXTENSIONS
from scheduler import __version__
from tests.gateway.running import RunningGateway, running_gateway
from tests.gpuworker import onnx_models
from tests.system.clients import metric, play, state_on

FORMS = (True, False)  # binary, JSON
CODINGS = (None, "gzip", "deflate")
X = np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32)
NO_SUCH = "no model 'nope' is served here"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    scratch = tmp_path_factory.mktemp("v2")
    models = scratch / "models"
    onnx_models.write_model(models, "mlp", onnx_models.mlp())
    onnx_models.write_model(models, "every_type", onnx_models.every_type())
    onnx_models.write_model(models, "recurrent", onnx_models.recurrent(), version="7")
    _write_broken(models)
    flags = ("--models", str(models), "--drain-s", "0")
    with running_gateway(*flags, scratch=scratch) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[Any]:
    with triton.InferenceServerClient(gateway.url.removeprefix("http://")) as made:
        yield made


@pytest.fixture(scope="module")
def expected(gateway: RunningGateway) -> Any:
    with triton.InferenceServerClient(gateway.url.removeprefix("http://")) as made:
        return made.infer("mlp", mlp_inputs(triton, is_binary=True)).as_numpy("y")


def _write_broken(models: Path) -> None:
    file = models / "broken" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no model")


def mlp_inputs(module: Any, *, is_binary: bool) -> list[Any]:
    tensor = module.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X, binary_data=is_binary)
    return [tensor]


def mlp_outputs(module: Any, is_binary: bool | None) -> list[Any] | None:
    return None if is_binary is None else [module.InferRequestedOutput("y", binary_data=is_binary)]


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("mlp", "1")
    assert not client.is_model_ready("mlp", "2")
    assert not client.is_model_ready("broken")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata() == {
        "name": "remontoir",
        "version": __version__,
        "extensions": [*EXTENSIONS],
    }
    assert client.get_model_metadata("mlp") == {
        "name": "mlp",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
    }
    assert client.get_model_metadata("recurrent", "7")["versions"] == ["7"]


def test_configuration_and_statistics(client: Any) -> None:
    config = client.get_model_config("mlp")
    assert config["max_batch_size"] >= 1
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [64]}]
    assert client.get_model_config("recurrent", "7")["max_batch_size"] == 0

    def stats() -> Any:
        (told,) = client.get_inference_statistics("mlp", "1")["model_stats"]
        return told

    before = stats()
    for _ in range(3):
        client.infer("mlp", mlp_inputs(triton, is_binary=True))
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 3 * len(X)
    assert after["execution_count"] - before["execution_count"] == 3
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        count = after["inference_stats"][name]["count"]
        assert count - before["inference_stats"][name]["count"] == 3
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    told = after["inference_stats"]
    assert 0 < sum(told[part]["ns"] for part in parts) < told["success"]["ns"]
    names = {model["name"] for model in client.get_inference_statistics()["model_stats"]}
    assert names == {"mlp", "every_type", "recurrent", "broken"}
    with pytest.raises(InferenceServerException, match=NO_SUCH):
        client.get_inference_statistics("nope")


@pytest.mark.parametrize(
    ("is_binary", "wants_binary", "coding", "reply_coding"),
    list(itertools.product(FORMS, (True, False, None), CODINGS, CODINGS)),
)
def test_every_form_and_coding(
    client: Any,
    expected: Any,
    is_binary: bool,
    wants_binary: bool | None,
    coding: str | None,
    reply_coding: str | None,
) -> None:
    result = client.infer(
        "mlp",
        mlp_inputs(triton, is_binary=is_binary),
        outputs=mlp_outputs(triton, wants_binary),
        request_compression_algorithm=coding,
        response_compression_algorithm=reply_coding,
    )
    # another batch size may be another order of sums, but one request runs alone here
    np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-6)


def test_the_same_with_the_asynchronous_client(gateway: RunningGateway, expected: Any) -> None:
    async def story() -> None:
        async with triton_aio.InferenceServerClient(gateway.url.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("mlp")
            for is_binary, wants_binary, coding in itertools.product(FORMS, FORMS, CODINGS):
                result = await client.infer(
                    "mlp",
                    mlp_inputs(triton_aio, is_binary=is_binary),
                    outputs=mlp_outputs(triton_aio, wants_binary),
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
                np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-6)
            with pytest.raises(InferenceServerException, match=NO_SUCH):
                await client.infer("nope", mlp_inputs(triton_aio, is_binary=True))

    play(story)


def test_a_model_is_unloaded_and_loaded_again(gateway: RunningGateway, client: Any) -> None:
    """Its pages and its copy on the host go, and come back; the others serve meanwhile."""
    entry = {"name": "mlp", "version": "1", "state": "READY", "reason": ""}
    assert entry in client.get_model_repository_index()
    inputs = mlp_inputs(triton, is_binary=True)
    first = client.infer("mlp", inputs).as_numpy("y")
    assert state_on(gateway.url, "mlp", "local-0") == "resident"

    told = httpx.post(f"{gateway.url}/v2/repository/models/mlp/unload").json()
    assert (told["pages_freed"], told["complete"]) == (1, True)
    assert 64 * 64 * 4 < told["host_bytes_freed"] < 1 << 20
    assert state_on(gateway.url, "mlp", "local-0") == "absent"
    assert not client.is_model_ready("mlp")
    with pytest.raises(InferenceServerException, match="mlp: unloaded by an operator") as raised:
        client.infer("mlp", inputs)
    assert raised.value.status() == "503"
    (unloaded,) = [e for e in client.get_model_repository_index() if e["name"] == "mlp"]
    assert unloaded == {**entry, "state": "UNAVAILABLE", "reason": "unloaded by an operator"}
    assert client.is_model_ready("every_type")
    client.unload_model("mlp")  # there is nothing left to do

    client.load_model("mlp")
    assert state_on(gateway.url, "mlp", "local-0") == "resident"
    assert client.is_model_ready("mlp")
    assert (client.infer("mlp", inputs).as_numpy("y") == first).all()
    client.load_model("mlp", query_params={"pinned": "true"})
    assert httpx.get(f"{gateway.url}/models/mlp").json()["pinned"]
    client.unload_model("mlp")
    client.load_model("mlp")
    assert httpx.get(f"{gateway.url}/models/mlp").json()["pinned"], "as it was"
    client.load_model("mlp", query_params={"pinned": "false"})
    assert not httpx.get(f"{gateway.url}/models/mlp").json()["pinned"]
    with pytest.raises(InferenceServerException, match="parameters config: this server"):
        client.load_model("mlp", config="{}")
    with pytest.raises(InferenceServerException, match="model broken: "):
        client.load_model("broken")
    with pytest.raises(InferenceServerException, match=NO_SUCH):
        client.unload_model("nope")
    assert metric(gateway.url, "anomalies_total") == 0


def test_ids_versions_and_what_we_add_to_a_reply(client: Any) -> None:
    inputs = mlp_inputs(triton, is_binary=True)
    reply = client.infer("mlp", inputs, request_id="my id", model_version="1").get_response()
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("my id", "mlp", "1")
    assert reply["slo"]["slo_ms"] == 1000.0
    assert "id" not in client.infer("mlp", inputs).get_response()
    told = "model mlp has no version '2' here; it has 1"
    with pytest.raises(InferenceServerException, match=told) as raised:
        client.infer("mlp", inputs, model_version="2")
    assert raised.value.status() == "404"


def test_where_an_slo_may_stand_and_which_one_wins(client: Any) -> None:
    inputs = mlp_inputs(triton, is_binary=True)

    def slo_ms(**options: Any) -> float:
        reply = client.infer("mlp", inputs, **options).get_response()
        return float(reply["slo"]["slo_ms"])

    assert slo_ms(timeout=700_000) == 700.0
    assert slo_ms(timeout=0) == 1000.0
    assert slo_ms(parameters={"slo_ms": 600}) == 600.0
    assert slo_ms(parameters={"slo_ms": 600}, timeout=700_000) == 600.0
    assert slo_ms(headers={"x-slo-ms": "500"}) == 500.0
    assert slo_ms(headers={"x-slo-ms": "500"}, timeout=0) == 500.0
    assert slo_ms(headers={"x-slo-ms": "500"}, parameters={"slo_ms": 600}, timeout=700_000) == 600.0
    assert slo_ms(priority=1, timeout=700_000) == 700.0


def test_a_refusal_shows_its_text(client: Any) -> None:
    inputs = mlp_inputs(triton, is_binary=True)
    with pytest.raises(InferenceServerException, match="mlp") as raised:
        client.infer("mlp", inputs, timeout=1)
    assert raised.value.status() == "422"
    with pytest.raises(InferenceServerException, match=r"parameters\.timeout is -1: expected"):
        client.infer("mlp", inputs, timeout=-1)
    with pytest.raises(InferenceServerException, match=NO_SUCH):
        client.infer("nope", inputs)
    with pytest.raises(InferenceServerException, match="model broken: "):
        client.infer("broken", inputs)
    with pytest.raises(InferenceServerException, match="classification"):
        client.infer("mlp", inputs, outputs=[triton.InferRequestedOutput("y", class_count=3)])


def test_requests_that_are_under_way_at_once(gateway: RunningGateway, expected: Any) -> None:
    address = gateway.url.removeprefix("http://")
    with triton.InferenceServerClient(address, concurrency=8) as client:
        asked = [client.async_infer("mlp", mlp_inputs(triton, is_binary=True)) for _ in range(32)]
        for pending in asked:
            np.testing.assert_allclose(pending.get_result().as_numpy("y"), expected, rtol=1e-4)


@pytest.mark.parametrize("is_binary", FORMS)
def test_text_truth_and_half_precision(client: Any, is_binary: bool) -> None:
    text = np.array([["a", "grüße, 世界"], ["", "x" * 300]], dtype=np.object_)
    flag = np.array([[True, False], [False, False]])
    half = np.array([[0.5, -2.0], [32752.0, 0.0]], dtype=np.float16)
    inputs = [
        triton.InferInput("text", [2, 2], "BYTES"),
        triton.InferInput("flag", [2, 2], "BOOL"),
        triton.InferInput("half", [2, 2], "FP16"),
    ]
    inputs[0].set_data_from_numpy(text, binary_data=is_binary)
    inputs[1].set_data_from_numpy(flag, binary_data=is_binary)
    inputs[2].set_data_from_numpy(half)  # has no JSON form
    outputs = [
        triton.InferRequestedOutput("same", binary_data=is_binary),
        triton.InferRequestedOutput("opposite", binary_data=is_binary),
        triton.InferRequestedOutput("double"),
    ]
    result = client.infer("every_type", inputs, outputs=outputs)
    same = [
        [cell if isinstance(cell, str) else cell.decode() for cell in row]
        for row in result.as_numpy("same")
    ]
    assert same == text.tolist()
    assert (result.as_numpy("opposite") == ~flag).all()
    assert (result.as_numpy("double") == half + half).all()
    outputs = [triton.InferRequestedOutput("double", binary_data=False)]
    with pytest.raises(InferenceServerException, match="FP16, which has no JSON form"):
        client.infer("every_type", inputs, outputs=outputs)


def test_several_inputs_and_a_version_that_is_not_one(client: Any) -> None:
    values = {
        "x": np.ones((2, 32), np.float32),
        "state": np.zeros((2, 2, 32), np.float32),
        "gain": np.array(2.0, np.float32),
    }
    inputs = []
    for name, value in values.items():
        tensor = triton.InferInput(name, list(value.shape), "FP32")
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    result = client.infer("recurrent", inputs, model_version="7")
    assert result.as_numpy("y").shape == (2, 32)
    assert result.as_numpy("stateN").shape == (2, 2, 32)
    with pytest.raises(InferenceServerException, match="it has 7"):
        client.infer("recurrent", inputs, model_version="1")


def test_raw_mode(gateway: RunningGateway, expected: Any) -> None:
    """tritonclient cannot send it; curl can."""
    url = f"{gateway.url}/v2/models/mlp/infer"
    headers = {"inference-header-content-length": "0", "content-type": "application/octet-stream"}
    answer = httpx.post(url, headers=headers, content=X[:1].tobytes())
    assert answer.status_code == 200, answer.text
    start = int(answer.headers["inference-header-content-length"])
    got = np.frombuffer(answer.content[start:], np.float32)
    np.testing.assert_allclose(got, expected[0], rtol=1e-4)
    answer = httpx.post(url, headers=headers, content=X[:1].tobytes()[:-1])
    assert answer.status_code == 400
    assert "255 bytes are no whole number" in answer.json()["error"]
