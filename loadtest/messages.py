"""Requests as bytes and replies as figures, in each server's own words.

Owns what a request looks like to Remontoir and to the baselines, and what is read out of a reply.
It never sends anything.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from loadtest.http1 import Shot

Floats = npt.NDArray[np.float32]
Tensor = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
DATATYPES = {"float32": "FP32", "uint8": "UINT8"}


class SloFigures(msgspec.Struct):
    latency_ms: float
    slack_ms: float
    predicted_ms: float
    cold_start: bool


class PhaseFigures(msgspec.Struct):
    queue: float
    load: float
    input: float
    exec: float
    output: float


class Account(msgspec.Struct):
    """What a server says of its own answer."""

    slo: SloFigures
    timing_ms: PhaseFigures


class _Problem(msgspec.Struct):
    reason: str = ""


class Answer(NamedTuple):
    """A 200. A server without an account of its own has None there."""

    output: Floats
    account: Account | None = None


ReadAnswer = Callable[[Shot], Answer]

_account_decoder = msgspec.json.Decoder(Account)
_problem_decoder = msgspec.json.Decoder(_Problem)


def remontoir_binary(model: str, tensor: str, row: Tensor, *, slo_ms: float, port: int) -> bytes:
    """One row to `POST /infer`, tensors in and out as raw bytes after a JSON header."""
    header, data = remontoir_binary_body(model, tensor, row, slo_ms=slo_ms)
    return post(
        "/infer",
        header + data,
        port=port,
        content_type="application/octet-stream",
        extra=f"Inference-Header-Content-Length: {len(header)}\r\n",
    )


def remontoir_binary_body(
    model: str, tensor: str, row: Tensor, *, slo_ms: float
) -> tuple[bytes, bytes]:
    """The JSON header and the tensor's bytes, which follow it."""
    data = row.tobytes()
    size = {"binary_data_size": len(data)}
    header = msgspec.json.encode(
        {
            "model": model,
            "slo_ms": slo_ms,
            "inputs": [
                {
                    "name": tensor,
                    "shape": row.shape,
                    "datatype": DATATYPES[row.dtype.name],
                    "parameters": size,
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    )
    return header, data


def remontoir_json_body(model: str, tensor: str, row: Tensor, *, slo_ms: float) -> bytes:
    data = six_digits(row)
    tensors = [{"name": tensor, "shape": row.shape, "datatype": "FP32", "data": data}]
    return msgspec.json.encode({"model": model, "slo_ms": slo_ms, "inputs": tensors})


def baseline_binary(model: str, row: Tensor, *, port: int) -> bytes:
    """One row to the FastAPI baseline: the tensor's bytes and nothing else."""
    data = row.tobytes()
    return post(f"/raw/{model}", data, port=port, content_type="application/octet-stream")


def post(path: str, body: bytes, *, port: int, content_type: str, extra: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


def six_digits(row: Tensor) -> list[float]:
    """The row as numbers that people would write: six digits, not float64's seventeen."""
    return [round(float(value), 6) for value in row.ravel()]


def read_remontoir(shot: Shot) -> Answer:
    """Raises msgspec.DecodeError, ValueError where the reply is not what was asked for."""
    if shot.json_length is None:
        raise ValueError("a binary reply was asked for, JSON came")
    account = _account_decoder.decode(shot.body[: shot.json_length])
    output = np.frombuffer(shot.body, "<f4", offset=shot.json_length)
    return Answer(output, account)


def read_baseline(shot: Shot) -> Answer:
    return Answer(np.frombuffer(shot.body, "<f4"))


def reason_of(shot: Shot) -> str:
    """The `reason` member of an error body; "" where there is none."""
    try:
        return _problem_decoder.decode(shot.body).reason
    except msgspec.DecodeError:
        return ""
