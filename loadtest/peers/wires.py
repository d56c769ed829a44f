"""Requests to peers as bytes, and their replies as numbers, by the form that each of them speaks.

Owns the forms. It never sends anything.
"""

import base64
from collections.abc import Callable

import msgspec
import numpy as np

from loadtest.http1 import Shot
from loadtest.messages import (
    DATATYPES,
    Answer,
    ReadAnswer,
    Tensor,
    post,
    read_remontoir,
    remontoir_binary,
)
from loadtest.peers.peer import Wire

BINARY, JSON = "application/octet-stream", "application/json"


def request(
    wire: Wire, path: str, *, model: str, tensor: str, row: Tensor, port: int, slo_ms: float
) -> bytes:
    """One row. Only ours is told the SLO: no peer has a place for it."""
    path = path.format(model=model)
    data = row.tobytes()
    match wire:
        case Wire.RAW:
            return post(path, data, port=port, content_type=BINARY)
        case Wire.BASE64 | Wire.BASE64_LIST:
            text = base64.b64encode(data).decode()
            body = msgspec.json.encode({"data": text if wire is Wire.BASE64 else [text]})
            return post(path, body, port=port, content_type=JSON)
        case Wire.V2_BASE64:
            text = base64.b64encode(data).decode()
            inputs = [{"name": tensor, "shape": [1, 1], "datatype": "BYTES", "data": [text]}]
            body = msgspec.json.encode({"inputs": inputs})
            return post(path, body, port=port, content_type=JSON)
        case Wire.V2_BINARY:
            return _v2_binary(path, tensor, row, port)
        case Wire.REMONTOIR:
            return remontoir_binary(model, tensor, row, slo_ms=slo_ms, port=port)


def _v2_binary(path: str, tensor: str, row: Tensor, port: int) -> bytes:
    data = row.tobytes()
    described = {
        "name": tensor,
        "shape": row.shape,
        "datatype": DATATYPES[row.dtype.name],
        "parameters": {"binary_data_size": len(data)},
    }
    header = msgspec.json.encode(
        {"inputs": [described], "parameters": {"binary_data_output": True}}
    )
    return post(
        path,
        header + data,
        port=port,
        content_type=BINARY,
        extra=f"Inference-Header-Content-Length: {len(header)}\r\n",
    )


def _of_raw(shot: Shot) -> Answer:
    return Answer(np.frombuffer(shot.body, "<f4"))


def _of_base64(shot: Shot) -> Answer:
    found = msgspec.json.decode(shot.body)
    text = found["data"] if isinstance(found, dict) else found[0]
    return Answer(np.frombuffer(base64.b64decode(text), "<f4"))


def _of_v2_binary(shot: Shot) -> Answer:
    if shot.json_length is None:
        (output,) = msgspec.json.decode(shot.body)["outputs"]
        return Answer(np.asarray(output["data"], "<f4"))
    return Answer(np.frombuffer(shot.body, "<f4", offset=shot.json_length))


def _of_v2_base64(shot: Shot) -> Answer:
    (output,) = msgspec.json.decode(shot.body)["outputs"]
    return Answer(np.frombuffer(base64.b64decode(output["data"][0]), "<f4"))


_READ: dict[Wire, Callable[[Shot], Answer]] = {
    Wire.RAW: _of_raw,
    Wire.BASE64: _of_base64,
    Wire.BASE64_LIST: _of_base64,
    Wire.V2_BINARY: _of_v2_binary,
    Wire.V2_BASE64: _of_v2_base64,
    Wire.REMONTOIR: read_remontoir,
}


def reader(wire: Wire) -> ReadAnswer:
    """Its answers raise ValueError where a 200 is not what was asked for."""
    read = _READ[wire]

    def checked(shot: Shot) -> Answer:
        try:
            return read(shot)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"not an answer of {wire}: {error!r}") from error

    return checked
