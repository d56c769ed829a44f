"""What `serve` prints: the model it asks, the body it makes up, the address it shows."""

import json
from pathlib import Path

import pytest

from gateway.command import announce
from scheduler.spec import ModelProfile, ModelSpec, ShapeProfile, TensorSpec

URL = "http://127.0.0.1:8000"


def spec(
    name: str, inputs: list[TensorSpec], outputs: list[TensorSpec], shape_key: str = ""
) -> ModelSpec:
    return ModelSpec(
        name=name,
        version="1",
        content_hash="00",
        platform="onnxruntime_onnx",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batch_sizes=(1,),
        runs_exact_batch=True,
        weights_bytes=1,
        profile=ModelProfile(1, (ShapeProfile(shape_key, 1, {1: 1}),)),
    )


SMALL = spec("small", [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 1))])
CHATTY = spec("chatty", [TensorSpec("x", "FP32", (-1, 1))], [TensorSpec("y", "FP32", (-1, -1))])
HUGE = spec("huge", [TensorSpec("x", "FP32", (-1, 70_000))], [TensorSpec("y", "FP32", (-1, 1))])
TEXT = spec("text", [TensorSpec("x", "BYTES", (-1, 1))], [TensorSpec("y", "FP32", (-1, 1))])
SOUND = spec(
    "sound",
    [
        TensorSpec("input", "FP32", (-1, -1)),
        TensorSpec("state", "FP32", (2, -1, 128), batch_axis=1),
        TensorSpec("sr", "INT64", (), batch_axis=None),
    ],
    [TensorSpec("y", "FP32", (-1, 1))],
    "576;2x128;",
)


def test_a_short_body_is_in_the_line_itself(tmp_path: Path) -> None:
    models, served, refused = announce.curl_lines(URL, [SMALL], tmp_path)
    body = (
        '{"model":"small","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[0,0,0]}]}'
    )
    assert models == rf"curl -sw '\n' {URL}/models"
    assert served == rf"curl -sw '\n' -H 'x-slo-ms: 1000' -d '{body}' {URL}/infer"
    assert refused.startswith(rf"curl -sw '\n' -H 'x-slo-ms: 0.001' -d '{body}' {URL}/infer")
    assert list(tmp_path.iterdir()) == []


def test_a_long_body_is_in_a_file_named_absolutely(tmp_path: Path) -> None:
    lines = announce.curl_lines(URL, [SOUND], tmp_path / "examples")
    file = tmp_path / "examples" / "sound.json"
    assert f"-d @{file} {URL}/infer" in lines[1]
    inputs = json.loads(file.read_text())["inputs"]
    assert [tensor["shape"] for tensor in inputs] == [[1, 576], [2, 1, 128], []]
    assert [len(tensor["data"]) for tensor in inputs] == [576, 256, 1]
    assert inputs[2]["data"] == [16_000]  # a rate of zero is none


def test_the_model_with_the_shortest_answer_is_asked() -> None:
    example = announce.example_of([CHATTY, SMALL, HUGE, TEXT])
    assert example is not None
    assert example.model == "small"


def test_models_with_large_or_textual_inputs_are_not_asked(tmp_path: Path) -> None:
    assert announce.example_of([HUGE, TEXT]) is None
    assert len(announce.curl_lines(URL, [HUGE, TEXT], tmp_path)) == 1


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_address_shown_is_one_that_can_be_asked(host: str, url: str) -> None:
    assert announce.url_of(host, 8000) == url
