"""Which model a request is about, and within which time, as far as its first replica needs to know.

It owns the shallow look into a body: tensors are skipped, not read, and nothing is checked that the
replica that executes it checks anyway.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from gateway.inference import slo
from gateway.inference.body import HEADER_LENGTH, InferBody, RequestParameters
from gateway.inference.request_flags import DRY_RUN, flag_of_header
from gateway.inference.target import Target

MODEL_HEADER = b"x-remontoir-model"
_UNKNOWN_NS = 1 << 62


class _Envelope(msgspec.Struct, gc=False):
    model: str | None = None
    slo_ms: object = None
    dry_run: object = None
    parameters: RequestParameters | None = None


class Asked(NamedTuple):
    """`slo_ns` is 0 where the request does not say it, or only in a body that was not looked at;
    and of a question (a quote, a dry run), which asks about an SLO and has none itself.
    """

    model: str
    slo_ns: int


_decoder = msgspec.json.Decoder(_Envelope)


def asked_of(target: Target, body: bytes, special: Mapping[bytes, bytes]) -> Asked | None:
    """None for a body that names no model: whoever reads it says what is wrong.

    Raises RequestError(bad_request) for an SLO that is none, or a flag.
    """
    told = InferBody([])
    is_question = target.is_quote or flag_of_header(special, DRY_RUN)
    model = target.model
    if model is None and MODEL_HEADER in special:
        model = special[MODEL_HEADER].decode("latin-1")
    if model is None:
        envelope = _envelope_of(body, special.get(HEADER_LENGTH))
        if envelope is None or envelope.model is None:
            return None
        model, parameters = envelope.model, envelope.parameters
        told = InferBody([], slo_ms=envelope.slo_ms, parameters=parameters)
        is_question |= envelope.dry_run is True or (parameters is not None and parameters.dry_run)
    slo_ns = slo.find_slo_ns(told, special, default_ns=_UNKNOWN_NS)
    return Asked(model, 0 if is_question or slo_ns == _UNKNOWN_NS else slo_ns)


def _envelope_of(body: bytes, header_length: bytes | None) -> _Envelope | None:
    data: bytes | memoryview = body
    if header_length is not None:
        if not header_length.isdigit() or len(header_length) > 12:
            return None
        data = memoryview(body)[: int(header_length)]
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
