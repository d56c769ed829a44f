"""The baselines answer what they are asked: a benchmark against a broken server flatters."""

import asyncio
import importlib
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import onnx
import pytest

from loadtest import graphs
from loadtest.baselines import echo
from loadtest.reference import sample_rows


async def ask(app: object, method: str, path: str, **kwargs: object) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(graphs.mlp(sizes=(4, 4, 2), seed=1), str(path))
    return path


@pytest.fixture
def fastapi_ort(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("BASELINE_MODELS", f"tiny={model_path}")
    from loadtest.baselines import fastapi_ort

    return importlib.reload(fastapi_ort)


def test_the_echo_sends_back_what_came():
    assert asyncio.run(ask(echo.app, "POST", "/echo", content=b"\x00a")).content == b"\x00a"


def test_the_json_echo_has_read_what_came():
    reply = asyncio.run(ask(echo.app, "POST", "/json", content=b' {"a": [1.5, 2]} '))
    assert reply.content == b'{"a":[1.5,2]}'


def test_raw_and_json_give_the_models_output(fastapi_ort: ModuleType, model_path: Path):
    (row,), (expected,) = sample_rows(model_path, 1)
    raw = asyncio.run(ask(fastapi_ort.app, "POST", "/raw/tiny", content=row.tobytes()))
    np.testing.assert_allclose(np.frombuffer(raw.content, np.float32), expected.ravel(), rtol=1e-5)
    body = {"data": row.ravel().tolist()}
    json = asyncio.run(ask(fastapi_ort.app, "POST", "/json/tiny", json=body))
    np.testing.assert_allclose(json.json()["data"], expected.ravel(), rtol=1e-5)


@pytest.mark.parametrize("of_model", [False, True], ids=["in all", "of the model"])
def test_at_most_n_are_outstanding(
    fastapi_ort: ModuleType, model_path: Path, monkeypatch: pytest.MonkeyPatch, of_model: bool
):
    (row,), _ = sample_rows(model_path, 1)
    if of_model:
        monkeypatch.setenv("BASELINE_LIMITS", "tiny=2,other=9")
        importlib.reload(fastapi_ort)

    async def play() -> list[int]:
        if not of_model:
            await ask(fastapi_ort.app, "PUT", "/limit/2")
        replies = await asyncio.gather(
            *(ask(fastapi_ort.app, "POST", "/raw/tiny", content=row.tobytes()) for _ in range(5))
        )
        return sorted(reply.status_code for reply in replies)

    assert asyncio.run(play()) == [200, 200, 503, 503, 503]


@pytest.fixture
def fastapi_v2(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("BASELINE_MODELS", f"tiny={model_path}")
    from loadtest.baselines import fastapi_v2

    return importlib.reload(fastapi_v2)


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
def test_what_tritonclient_sends_is_understood_and_answered_so(
    fastapi_v2: ModuleType, model_path: Path, is_binary: bool
):
    """Written and read by the client's own parts; only the way between is ours."""
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    (row,), (expected,) = sample_rows(model_path, 1)
    tensor = InferInput("x", list(row.shape), "FP32")
    tensor.set_data_from_numpy(row, binary_data=is_binary)
    outputs = [InferRequestedOutput("y", binary_data=is_binary)]
    body, length = InferenceServerClient.generate_request_body([tensor], outputs=outputs)
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    reply = asyncio.run(
        ask(fastapi_v2.app, "POST", "/v2/models/tiny/infer", content=body, headers=headers)
    )
    header_length = reply.headers.get("Inference-Header-Content-Length")
    assert (header_length is not None) == is_binary
    read = InferenceServerClient.parse_response_body(
        reply.content, header_length=None if header_length is None else int(header_length)
    )
    np.testing.assert_allclose(read.as_numpy("y"), expected, rtol=1e-5)
