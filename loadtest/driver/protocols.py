"""Requests as bytes and replies as arrays: /infer and the Open Inference Protocol, JSON and binary.

Owns the forms. Any server is asked through them, so that peers differ in nothing but their answers.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from loadtest.driver.inputs import DATATYPE_OF, DATATYPES, Arrays
from loadtest.driver.job import Protocol
from loadtest.driver.job_target import Remontoir, Spoken, Url
from loadtest.http1 import Shot
from loadtest.messages import PhaseFigures, SloFigures
from scheduler.priority import NORMAL

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
    parameters: dict[str, Any] | None = None  # KServe says null


class _Body(Account):
    outputs: list[_Tensor] = []


_body_decoder = msgspec.json.Decoder(_Body)


def request(
    protocol: Protocol,
    target: Spoken,
    *,
    host: str,
    model: str,
    inputs: Arrays,
    slo_ms: float,
    priority: int = NORMAL,
) -> bytes:
    """One request, whole. `host` is the Host header's value; `priority` is the scheduler's."""
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
    if priority != NORMAL:  # Triton's numbers begin with 1
        header["parameters"] = {**header.get("parameters", {}), "priority": priority + 1}
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
        body, lines = msgspec.json.encode(header), "Content-Type: application/json\r\n"
        return _post(target, path, host, body, lines + _lines(target.headers))
    header["parameters"] = {**header.get("parameters", {}), "binary_data_output": True}
    text = msgspec.json.encode(header)
    lines = (
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\n"
    )
    return _post(target, path, host, b"".join([text, *blobs]), lines + _lines(target.headers))


def reader(target: Spoken) -> Read:
    """What reads a target's 200s. It raises ValueError, msgspec.MsgspecError for what is none."""
    if not isinstance(target, Url):
        return _read_protocol
    if target.output == "none":
        return lambda _: Reply(None, Account())
    if target.output == "float32":
        return lambda shot: Reply({"": np.frombuffer(shot.body, "<f4")}, Account())
    kind, _, path = target.output.partition(":")
    members = path.split(".")

    def read_json(shot: Shot) -> Reply:
        value = _member(msgspec.json.decode(shot.body), members)
        if kind == "base64":
            return Reply({"": np.frombuffer(base64.b64decode(value), "<f4")}, Account())
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
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            outputs[tensor.name] = np.asarray(tensor.data, kind)
            continue
        outputs[tensor.name] = np.frombuffer(shot.body[end : end + size], kind)
        end += size
    return Reply(outputs, body)


def _member(value: Any, members: Sequence[str]) -> Any:
    """`a.0.b` of a JSON document; None where it has no such."""
    for member in members:
        if isinstance(value, dict) and member in value:
            value = value[member]
        elif isinstance(value, list) and member.isdecimal() and int(member) < len(value):
            value = value[int(member)]
        else:
            return None
    return value


def _template(target: Url, *, host: str, model: str, inputs: Arrays, slo_ms: float) -> bytes:
    name, first = next(iter(inputs.items()))

    def fill(text: str) -> str:
        for word, value in (
            ("{model}", model),
            ("{slo_ms}", f"{slo_ms:g}"),
            ("{shape}", json.dumps(first.shape)),
            ("{input}", name),
        ):
            text = text.replace(word, value)
        return text

    raw = b"".join(array.tobytes() for array in inputs.values())
    if target.body == "raw":
        body = raw
    else:
        text = fill(target.body)
        if "{data}" in text:
            text = text.replace("{data}", msgspec.json.encode(_numbers(first)).decode())
        text = text.replace("{base64}", base64.b64encode(raw).decode())
        body = text.encode()
    headers = _lines({name: fill(value) for name, value in target.headers.items()})
    if not any(name.lower() == "content-type" for name in target.headers):
        kind = "application/octet-stream" if target.body == "raw" else "application/json"
        headers += f"Content-Type: {kind}\r\n"
    return _post(target, fill(target.path), host, body, headers, method=target.method)


def _post(
    target: Spoken, path: str, host: str, body: bytes, headers: str, *, method: str = "POST"
) -> bytes:
    if not any(name.lower() == "host" for name in target.headers):
        headers = f"Host: {host}\r\n{headers}"
    head = (
        f"{method} {target.prefix}{path} HTTP/1.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def _numbers(array: Any) -> list[Any]:
    """As people would write them: six digits of a float, not float64's seventeen."""
    if array.dtype.kind == "f":
        return [round(float(value), 6) for value in array.ravel()]
    values: list[Any] = array.ravel().tolist()
    return values
