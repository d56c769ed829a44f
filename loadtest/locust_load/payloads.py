"""Requests to a model that this machine has never seen: random tensors of the shape it says it has.

Owns what a request looks like as JSON or binary, to `/infer` or to `/v2/models/M/infer`. What the
server has is asked over GET /models; it never sends anything else.
"""

import json
import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

# Datatypes of the Open Inference Protocol that numpy has.
NUMPY_TYPES = {
    "BOOL": "|b1", "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "|i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


class PayloadError(ValueError):
    """No request can be made; the text names the model and says what is in the way."""


class Protocol(StrEnum):
    JSON = "json"
    BINARY = "binary"
    V2_JSON = "v2-json"
    V2_BINARY = "v2-binary"

    @property
    def is_binary(self) -> bool:
        return self in (Protocol.BINARY, Protocol.V2_BINARY)

    @property
    def is_v2(self) -> bool:
        return self in (Protocol.V2_JSON, Protocol.V2_BINARY)


class Payload(NamedTuple):
    """What is sent, but for the SLO, which goes into a header."""

    path: str
    headers: Mapping[str, str]
    body: bytes


def payloads_of(
    model: Mapping[str, Any],
    *,
    protocol: Protocol,
    rows: int,
    dynamic_size: int,
    count: int,
    seed: int,
) -> list[Payload]:
    """So many different ones. `model` is as GET /models has it; axes of unknown size but for the
    batch axis get `dynamic_size`. Raises PayloadError.
    """
    chance = np.random.default_rng([seed, *model["name"].encode()])
    return [
        _payload(
            model["name"],
            [_tensor(model["name"], spec, rows, dynamic_size, chance) for spec in model["inputs"]],
            protocol,
        )
        for _ in range(count)
    ]


def _tensor(
    model: str, spec: Mapping[str, Any], rows: int, dynamic_size: int, chance: np.random.Generator
) -> tuple[str, str, Any]:
    datatype = spec["datatype"]
    if datatype not in NUMPY_TYPES:
        raise PayloadError(
            f"model {model}: input {spec['name']} is {datatype}, which has no random values; "
            "leave it out with --models"
        )
    shape = [
        rows if axis == spec.get("batch_axis") else dynamic_size if size < 0 else size
        for axis, size in enumerate(spec["shape"])
    ]
    dtype = np.dtype(NUMPY_TYPES[datatype])
    if dtype.kind == "f":
        return spec["name"], datatype, chance.standard_normal(shape).astype(dtype)
    # A token's number or a pixel: small enough for most vocabularies, and for every type.
    return spec["name"], datatype, chance.integers(0, 2 if dtype.kind == "b" else 100, shape, "i8")


def _payload(model: str, tensors: Sequence[tuple[str, str, Any]], protocol: Protocol) -> Payload:
    path = f"/v2/models/{quote(model, safe='')}/infer" if protocol.is_v2 else "/infer"
    header: dict[str, Any] = {} if protocol.is_v2 else {"model": model}
    inputs = []
    blobs = []
    for name, datatype, values in tensors:
        described = {"name": name, "datatype": datatype, "shape": values.shape}
        if protocol.is_binary:
            blobs.append(values.astype(NUMPY_TYPES[datatype]).tobytes())
            described["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            described["data"] = _written(values)
        inputs.append(described)
    header["inputs"] = inputs
    if not protocol.is_binary:
        return Payload(path, {"content-type": "application/json"}, json.dumps(header).encode())
    header["parameters"] = {"binary_data_output": True}
    text = json.dumps(header).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(text)),
    }
    return Payload(path, headers, b"".join([text, *blobs]))


def _written(values: Any) -> list[Any]:
    """As people would write them: six digits, not float64's seventeen."""
    flat: list[Any] = values.ravel().tolist()
    return [round(value, 6) for value in flat] if values.dtype.kind == "f" else flat


def pick(chance: random.Random, payloads: Sequence[Payload]) -> Payload:
    return payloads[chance.randrange(len(payloads))]
