"""Cross-origin requests: which other sites' pages may read our answers (Fetch standard, CORS).

Starlette's middleware answers preflights and all that comes through ASGI; this says of it what we
allow, and has the same headers ready for the short way. It must never let cookies count: keys go in
headers, which a page has to know.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.http.request_ids import RequestIds

METHODS = ("GET", "HEAD", "POST")
# What a page may read besides the body; browsers hide the rest.
EXPOSED = (
    "inference-header-content-length",
    "retry-after",
    "x-remontoir-reason",
    "x-request-id",
)
# A preflight less for each request; Chrome's upper bound.
MAX_AGE_S = 7200


class OriginError(ValueError):
    """Which of the allowed origins is none, and how one looks."""


def origins_of(text: str) -> tuple[str, ...]:
    """`https://a.example,http://localhost:3000`, or `*`. Raises OriginError."""
    origins = tuple(part.strip() for part in text.split(","))
    if origins == ("*",):
        return origins
    for origin in origins:
        if not _is_origin(origin):
            raise OriginError(
                f"{origin!r} is no origin: expected SCHEME://HOST or SCHEME://HOST:PORT in lower"
                " case, as https://app.example.com, several with commas between them, or * alone"
            )
    return origins


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_port_sound = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_whole = text == f"{parts.scheme}://{parts.netloc}" and text == text.lower()
    has_host = bool(parts.hostname) and "@" not in parts.netloc and "*" not in parts.netloc
    return is_whole and has_host and is_port_sound and text.isprintable() and " " not in text


class _WithRequestIds(CORSMiddleware):
    """Preflights never come to the application, whose answers all have an id."""

    def __init__(self, app: ASGIApp, request_ids: RequestIds, **settings: Any) -> None:
        super().__init__(app, **settings)
        self._request_ids = request_ids

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        given = request_headers.get("x-request-id")
        request_id = self._request_ids.of(given.encode("latin-1") if given else None)
        response.headers["x-request-id"] = request_id
        return response


class Cors:
    """What to say to whom. `origins` as `origins_of` returns them."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = origins
        self._request_ids = RequestIds()
        exposed = f"access-control-expose-headers: {', '.join(EXPOSED)}\r\n"
        vary = "vary: Origin\r\n"
        self._to_nobody = vary.encode()
        self._to_others = f"{exposed}{vary}".encode()
        # By origin; "*" is everybody's.
        self._to = {
            origin.encode(): f"{exposed}access-control-allow-origin: {origin}\r\n{vary}".encode()
            for origin in origins
        }
        if "*" in origins:
            self._to_others = self._to[b"*"]

    def around(self, app: ASGIApp) -> CORSMiddleware:
        return _WithRequestIds(
            app,
            self._request_ids,
            allow_origins=self._origins,
            allow_methods=METHODS,
            allow_headers=("*",),  # as asked for: what a header means is for who reads it
            expose_headers=EXPOSED,
            allow_private_network=True,  # a page that may ask us may ask us here
            max_age=MAX_AGE_S,
        )

    def lines_for(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The lines that the middleware would add to the answer to a request with these headers."""
        for name, value in headers:
            if name == b"origin":
                return self._to.get(value, self._to_others)
        return self._to_nobody
