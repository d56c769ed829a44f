"""The JSON of an inference request and of its success, as the Open Inference Protocol names it.

It owns the shape of both. It must never check a value against a model. Tensor data stay
undecoded here (`msgspec.Raw`): only the model's spec says what they must be. Unknown members are
ignored, since clients of the protocol send some.
"""

import re
from typing import Annotated

import msgspec

from gateway.errors import RequestError, bad_request
from scheduler.wire import Buffer

HEADER_LENGTH = b"inference-header-content-length"

NumBytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
# Of the Open Inference Protocol: 0 is the default, 1 the highest.
Priority = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]

_NO_DATA = msgspec.Raw()
_BYTE_POSITION = re.compile(r"\(byte (\d+)\)")
_LITERALS = (b"NaN", b"-Infinity", b"Infinity")  # what JavaScript and Python write, JSON has not


class TensorParameters(msgspec.Struct, gc=False):
    binary_data_size: NumBytes | None = None


class InputTensor(msgspec.Struct, gc=False):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: TensorParameters | None = None
    data: msgspec.Raw = _NO_DATA


class RequestedOutputParameters(msgspec.Struct, gc=False):
    """The last two ask for extensions that are not there: gateway.inference.tensors says so."""

    binary_data: bool | None = None
    classification: object = None
    shared_memory_region: object = None


class RequestedOutput(msgspec.Struct, gc=False):
    name: str
    parameters: RequestedOutputParameters | None = None


class RequestParameters(msgspec.Struct, gc=False):
    """`slo_ms` and `timeout` are checked by gateway.inference.slo, which names a bad value.
    What `priority` means is gateway.inference.request_flags' to say.
    """

    slo_ms: object = None
    timeout: object = None
    do_not_queue: bool = False
    dry_run: bool = False
    binary_data_output: bool = False
    priority: Priority = 0


class InferBody(msgspec.Struct, gc=False):
    """A request. Where the route names the model, `model` is ignored."""

    inputs: list[InputTensor]
    model: str | None = None
    slo_ms: object = None
    id: str | None = None
    do_not_queue: bool = False
    dry_run: bool = False
    parameters: RequestParameters | None = None
    outputs: list[RequestedOutput] | None = None


class OutputParameters(msgspec.Struct, frozen=True, gc=False):
    binary_data_size: int


class OutputTensor(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: OutputParameters | None = None
    data: object = None


class SloFigures(msgspec.Struct, frozen=True, gc=False):
    """What was promised and what was kept. `slack_ms` is never negative in a success."""

    slo_ms: float
    latency_ms: float
    slack_ms: float
    predicted_ms: float
    cold_start: bool


class PhaseFigures(msgspec.Struct, frozen=True, gc=False):
    """Where the time went, in milliseconds."""

    queue: float
    load: float
    input: float
    exec: float
    output: float


class InferReply(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A success. `energy_mj` is there where the device says what power it draws, `cache` where the
    model's answers are shared; `variant` is the model that answered for a group.
    """

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    slo: SloFigures
    timing_ms: PhaseFigures
    id: str | None = None
    energy_mj: float | None = None
    cache: str | None = None
    variant: str | None = None


_decoder = msgspec.json.Decoder(InferBody)


def decode_body(body: bytes, header_length: bytes | None) -> tuple[InferBody, Buffer]:
    """Body, and its `Inference-Header-Content-Length` → the JSON part and the bytes after it.

    Raises RequestError(bad_request).
    """
    if header_length is None:
        return _decode_json(body), b""
    if not header_length.isdigit() or len(header_length) > 12:
        raise bad_request(
            f"header Inference-Header-Content-Length is '{header_length[:60].decode('latin-1')}': "
            "expected a number of bytes"
        )
    num_bytes = int(header_length)
    if num_bytes > len(body):
        raise bad_request(
            f"Inference-Header-Content-Length is {num_bytes}, the body has {len(body)} bytes"
        )
    view = memoryview(body)
    return _decode_json(view[:num_bytes]), view[num_bytes:]


def _decode_json(data: Buffer) -> InferBody:
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise bad_request(f"the body is not an inference request: {error}") from None
    except msgspec.DecodeError as error:
        raise _malformed(data, str(error)) from None
    except RecursionError:
        raise bad_request("the body is nested too deep for an inference request") from None
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: {error.reason} in a string") from None


def _malformed(data: Buffer, message: str) -> RequestError:
    """Names the place, and the literals that other languages write and JSON does not have."""
    if not len(data):
        return bad_request("the body is empty: expected a JSON object")
    match = _BYTE_POSITION.search(message)
    if match is None:
        return bad_request(f"the body is not valid JSON: {message}, after {len(data)} bytes")
    position = int(match[1])
    around = bytes(data[max(0, position - 24) : position + 12])
    for literal in _LITERALS:
        # the complaint may point one or two characters into the literal
        found = around.find(literal, max(0, min(position, 24) - 2))
        if found >= 0:
            name = literal.decode()
            return bad_request(
                f"the body is not valid JSON: {name} at byte {position} is no JSON number, "
                f"near {around.decode(errors='replace')!r}"
            )
    return bad_request(
        f"the body is not valid JSON: {message}, near {around.decode(errors='replace')!r}"
    )
