"""Headers of which a request has one at most, since two would be read differently by two servers.

It owns the list. It must never name a header that proxies may repeat.
"""

from collections.abc import Iterable

from gateway.errors import bad_request
from gateway.inference import slo
from gateway.inference.body import HEADER_LENGTH
from gateway.inference.request_flags import DO_NOT_QUEUE, DRY_RUN

CONTENT_ENCODING = b"content-encoding"
# All and only headers that decide who asks, for what, and how the body is read. More than one
# Content-Length the parser refuses.
SINGLE = slo.HEADERS | {
    b"host",
    b"authorization",
    b"x-api-key",
    DO_NOT_QUEUE,
    DRY_RUN,
    CONTENT_ENCODING,
    HEADER_LENGTH,
}


def check_single(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises RequestError(bad_request) naming one that is given twice."""
    seen = set()
    for name, _ in headers:
        if name in seen and name in SINGLE:
            raise bad_request(f"header {name.decode()} is given twice")
        seen.add(name)
