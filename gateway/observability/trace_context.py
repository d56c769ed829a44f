"""W3C Trace Context: which trace a request belongs to, and our own span in it.

It owns the headers `traceparent` and `tracestate` in and `traceresponse` out. Nothing that does not
fit the specification is passed on (https://www.w3.org/TR/trace-context-2). A request without a
valid `traceparent` has no trace, and costs nothing, unless traces.py begins one.

Out goes `traceresponse` with the id of our span, as OpenTelemetry's propagators for responses
write it: `traceparent` is a header of requests, and the caller's own span is no news to it.
"""

import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
TRACERESPONSE = b"traceresponse"

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_FORBIDDEN_VERSION = b"ff"
_KNOWN_VERSION = b"00"  # later ones begin as it does, and may go on
SAMPLED = 0x01
_KNOWN_FLAGS = 0x03  # sampled, and that the trace id is random; the others must not be passed on
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_MAX_MEMBERS = 32


class TraceContext(NamedTuple):
    """`parent_id` is the caller's span, "" where there is none, `span_id` ours; hexadecimal.
    `state` is vendors' own.
    """

    trace_id: str
    parent_id: str
    span_id: str
    flags: int
    state: str | None

    @property
    def is_sampled(self) -> bool:
        """Whether the caller records it."""
        return bool(self.flags & SAMPLED)

    def response(self) -> bytes:
        """Value of `traceresponse`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}".encode()


# For a request without a `traceparent`: a trace of its own, or none.
BeginTrace = Callable[[], TraceContext | None]


def trace_of(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """Of all headers, names in lower case. None where no valid `traceparent` is among them."""
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if name == TRACEPARENT:
            parents.append(value)
        elif name == TRACESTATE:
            states.append(value)
    if len(parents) != 1:
        return None
    found = _TRACEPARENT.fullmatch(parents[0].strip(b" \t"))
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == _FORBIDDEN_VERSION or (version == _KNOWN_VERSION and more is not None):
        return None
    if not trace_id.strip(b"0") or not parent_id.strip(b"0"):
        return None
    return TraceContext(
        trace_id.decode(),
        parent_id.decode(),
        new_span_id(),
        int(flags, 16) & _KNOWN_FLAGS,
        _state_of(states),
    )


def new_span_id() -> str:
    span_id = "0" * 16
    while not span_id.strip("0"):  # all zeros is no id
        span_id = os.urandom(8).hex()
    return span_id


def _state_of(values: list[bytes]) -> str | None:
    """Several headers are one list. All of it or nothing, as the specification says."""
    members = [member.strip(" \t") for member in b",".join(values).decode("latin-1").split(",")]
    members = [member for member in members if member]
    if not members or len(members) > _MAX_MEMBERS:
        return None
    if not all(_MEMBER.fullmatch(member) for member in members):
        return None
    keys = {member.partition("=")[0] for member in members}
    return ",".join(members) if len(keys) == len(members) else None
