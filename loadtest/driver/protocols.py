"""Requests as bytes and replies as arrays: /infer and the Open Inference Protocol, JSON and binary.

Owns the forms. Any server is asked through them, so that peers differ in nothing but their answers.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from loadtest.driver.inputs import DATATYPE_OF, DATATYPES, Arrays
from loadtest.driver.job import V2, Protocol, Remontoir, Url
from loadtest.http1 import Shot
from loadtest.messages import PhaseFigures, SloFigures

# Batches and paged weights sum in another order than the reference did.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-4, 1e-5


class Account(msgspec.Struct):
    """What a server says of its own answer, if it does."""

    slo: SloFigures | None = None
    timing_ms: PhaseFigures | None = None


class Reply(msgspec.Struct):
    """A 200 that could be read. `outputs` None: the answer's form is nobody's business."""

    outputs: Arrays | None
    account: Account


Read = Callable[[Shot], Reply]


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: Any = None
    parameters: dict[str, Any] = {}


class _Body(Account):
    outputs: list[_Tensor] = []


_body_decoder = msgspec.json.Decoder(_Body)


def request(
    protocol: Protocol,
    target: Remontoir | V2 | Url,
    *,
    host: str,
    model: str,
    inputs: Arrays,
    slo_ms: float,
) -> bytes:
    """One request, whole. `host` is the Host header's value."""
    if isinstance(target, Url):
        return _template(target, host=host, model=model, inputs=inputs, slo_ms=slo_ms)
    is_binary = protocol.endswith("binary")
    header: dict[str, Any] = {"inputs": []}
    if protocol.startswith("infer"):
        path = "/infer"
        header = {"model": model, "slo_ms": slo_ms, **header}
    else:
        path = f"/v2/models/{model}/infer"
        if isinstance(target, Remontoir):
            header["parameters"] = {"slo_ms": slo_ms}
        elif target.slo == "timeout":
            header["parameters"] = {"timeout": round(slo_ms * 1000)}
    blobs = []
    for name, array in inputs.items():
        tensor: dict[str, Any] = {
            "name": name,
            "shape": array.shape,
            "datatype": DATATYPE_OF[array.dtype],
        }
        if is_binary:
            blobs.append(array.tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = _numbers(array)
        header["inputs"].append(tensor)
    if not is_binary:
        return _post(path, host, msgspec.json.encode(header), "Content-Type: application/json\r\n")
    header["parameters"] = {**header.get("parameters", {}), "binary_data_output": True}
    text = msgspec.json.encode(header)
    lines = (
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\n"
    )
    return _post(path, host, b"".join([text, *blobs]), lines)


def reader(target: Remontoir | V2 | Url) -> Read:
    """What reads a target's 200s. It raises ValueError, msgspec.MsgspecError for what is none."""
    if not isinstance(target, Url):
        return _read_protocol
    if target.output == "none":
        return lambda _: Reply(None, Account())
    if target.output == "float32":
        return lambda shot: Reply({"": np.frombuffer(shot.body, "<f4")}, Account())
    members = target.output.removeprefix("json:").split(".")

    def read_json(shot: Shot) -> Reply:
        value = msgspec.json.decode(shot.body)
        for member in members:
            value = value[member] if isinstance(value, dict) and member in value else None
        return Reply({"": np.asarray(value, np.float64)}, Account())

    return read_json


def is_right(outputs: Arrays | None, expected: Arrays | None) -> bool:
    """Near the reference's; true where nobody knows better. An output without a name (a URL's) is
    all of the model's outputs one after the other.
    """
    if expected is None or outputs is None:
        return True
    if "" in outputs:
        return _near(outputs[""], np.concatenate([array.ravel() for array in expected.values()]))
    return all(name in outputs and _near(outputs[name], array) for name, array in expected.items())


def _near(found: Any, expected: Any) -> bool:
    if found.size != expected.size:
        return False
    near = np.allclose(
        found.ravel(), expected.ravel(), rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE
    )
    return bool(near)


def _read_protocol(shot: Shot) -> Reply:
    end = len(shot.body) if shot.json_length is None else shot.json_length
    body = _body_decoder.decode(shot.body[:end])
    outputs: Arrays = {}
    for tensor in body.outputs:
        kind = DATATYPES.get(tensor.datatype)
        if kind is None:
            continue  # BYTES: nothing to compare
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            outputs[tensor.name] = np.asarray(tensor.data, kind)
            continue
        outputs[tensor.name] = np.frombuffer(shot.body[end : end + size], kind)
        end += size
    return Reply(outputs, body)


def _template(target: Url, *, host: str, model: str, inputs: Arrays, slo_ms: float) -> bytes:
    first = next(iter(inputs.values()))

    def fill(text: str) -> str:
        for word, value in (
            ("{model}", model),
            ("{slo_ms}", f"{slo_ms:g}"),
            ("{shape}", json.dumps(first.shape)),
        ):
            text = text.replace(word, value)
        return text

    if target.body == "raw":
        body = b"".join(array.tobytes() for array in inputs.values())
    else:
        text = fill(target.body)
        if "{data}" in text:
            text = text.replace("{data}", msgspec.json.encode(_numbers(first)).decode())
        body = text.encode()
    headers = "".join(f"{name}: {fill(value)}\r\n" for name, value in target.headers.items())
    if not any(name.lower() == "content-type" for name in target.headers):
        kind = "application/octet-stream" if target.body == "raw" else "application/json"
        headers += f"Content-Type: {kind}\r\n"
    return _post(fill(target.path), host, body, headers, method=target.method)


def _post(path: str, host: str, body: bytes, headers: str, *, method: str = "POST") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _numbers(array: Any) -> list[Any]:
    """As people would write them: six digits of a float, not float64's seventeen."""
    if array.dtype.kind == "f":
        return [round(float(value), 6) for value in array.ravel()]
    values: list[Any] = array.ravel().tolist()
    return values
