"""The SLO of a request: where it may be written, in which order it counts, what it may be.

It owns the lookup: body (`slo_ms`, `parameters.slo_ms`, `parameters.timeout` in microseconds),
header `x-slo-ms`, model default, `default_slo_ms`; then a proxy's own timeout caps it. It must
never read an SLO it cannot honour as "most urgent": what is not finite and in (0, 86,400,000] ms is
a 400 that names the value.
"""

import math
import re
from collections.abc import Mapping

from gateway.errors import bad_request
from gateway.inference.body import InferBody
from scheduler.spec import MILLISECOND_NS, SECOND_NS

MAX_SLO_MS = 86_400_000  # a day: above it a "deadline" is a mistake of units
SLO_HEADER = b"x-slo-ms"
ENVOY_HEADER = b"x-envoy-expected-rq-timeout-ms"
GRPC_HEADER = b"grpc-timeout"

_GRPC_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_GRPC_UNIT_NS = {
    b"H": 3600 * SECOND_NS,
    b"M": 60 * SECOND_NS,
    b"S": SECOND_NS,
    b"m": MILLISECOND_NS,
    b"u": 1000,
    b"n": 1,
}
_SHOWN_CHARACTERS = 60  # of a bad value: enough to recognise it, too little to fill a log


# All and only headers that `find_slo_ns` looks at.
HEADERS = frozenset({SLO_HEADER, ENVOY_HEADER, GRPC_HEADER})


def find_slo_ns(body: InferBody, headers: Mapping[bytes, bytes], *, default_ns: int) -> int:
    """The SLO of a request. `default_ns` is the model's default, or the gateway's.

    The first place that says one wins; what the others say must be an SLO, too: a client that
    writes nonsense there means something else than it gets.
    Raises RequestError(bad_request) naming the source and the value.
    """
    slo_ns = None
    if body.slo_ms is not None or body.parameters is not None:
        slo_ns = _slo_ns_of_body(body)
    if not headers:
        return default_ns if slo_ns is None else slo_ns
    header = headers.get(SLO_HEADER)
    if header is not None:
        in_header_ns = slo_ns_of_header(header, source="x-slo-ms")
        slo_ns = in_header_ns if slo_ns is None else slo_ns
    if slo_ns is None:
        slo_ns = default_ns
    cap_ns = cap_ns_of(headers)
    return slo_ns if cap_ns is None else min(slo_ns, cap_ns)


def _slo_ns_of_body(body: InferBody) -> int | None:
    slo_ns = None
    if body.slo_ms is not None:
        slo_ns = slo_ns_of_ms(body.slo_ms, source="slo_ms")
    parameters = body.parameters
    if parameters is None:
        return slo_ns
    if parameters.slo_ms is not None:
        in_parameters_ns = slo_ns_of_ms(parameters.slo_ms, source="parameters.slo_ms")
        slo_ns = in_parameters_ns if slo_ns is None else slo_ns
    if parameters.timeout is not None:
        timeout_ns = slo_ns_of_timeout_us(parameters.timeout, source="parameters.timeout")
        slo_ns = timeout_ns if slo_ns is None else slo_ns
    return slo_ns


def slo_ns_of_ms(value: object, *, source: str) -> int:
    """A JSON number of milliseconds → nanoseconds. Raises RequestError naming source and value."""
    # bool is an int to Python, and `true` is no duration
    if (type(value) is float or type(value) is int) and 0 < value <= MAX_SLO_MS:
        return int(value * MILLISECOND_NS) or 1
    raise bad_request(
        f"{source} is {_shown(value)}: expected a number of milliseconds in (0, {MAX_SLO_MS}]"
    )


def slo_ns_of_timeout_us(value: object, *, source: str) -> int | None:
    """`parameters.timeout` of the Open Inference Protocol: integer microseconds, 0 = not given."""
    if type(value) is int and 0 <= value <= MAX_SLO_MS * 1000:
        return value * 1000 or None
    raise bad_request(
        f"{source} is {_shown(value)}: expected an integer of microseconds "
        f"in [0, {MAX_SLO_MS * 1000}]"
    )


def slo_ns_of_header(text: bytes, *, source: str) -> int:
    """A decimal number of milliseconds in a header. Raises RequestError as above."""
    return slo_ns_of_ms(_number(text), source=f"header {source}")


def cap_ns_of(headers: Mapping[bytes, bytes]) -> int | None:
    """The least timeout a proxy in front has set for this call, or None.

    Envoy writes 0 for "no timeout"; every other value that is no positive duration is a 400.
    """
    caps = []
    envoy = headers.get(ENVOY_HEADER)
    if envoy is not None and _number(envoy) != 0:
        caps.append(slo_ns_of_header(envoy, source=ENVOY_HEADER.decode()))
    grpc = headers.get(GRPC_HEADER)
    if grpc is not None:
        match = _GRPC_TIMEOUT.fullmatch(grpc.strip())
        cap_ns = int(match[1]) * _GRPC_UNIT_NS[match[2]] if match else 0
        if cap_ns == 0:
            raise bad_request(
                f"header grpc-timeout is {_shown(_text(grpc))}: expected 1 to 8 digits, not zero, "
                "and one of H M S m u n"
            )
        caps.append(cap_ns)
    return min(caps, default=None)


def _number(text: bytes) -> float | str:
    """The number a header holds; the text itself where it is none, for the error to show."""
    shown = _text(text).strip()
    if "_" in shown:  # Python reads 1_000; nobody else does
        return shown
    try:
        number = float(shown)
    except ValueError:
        return shown
    return number if math.isfinite(number) else shown


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _shown(value: object) -> str:
    text = repr(value)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"
