"""Bodies of the routes beside inference: a few members of JSON, or nothing.

It owns how much and how long such a route reads. It must never answer while the client still
writes: the connection would be reset, and the answer lost with it.
"""

import asyncio
from typing import TypeVar

import msgspec
from fastapi import Request
from starlette.requests import ClientDisconnect

from gateway.errors import RequestError, bad_request
from gateway.http.request_body import ClientGone, decompress, too_large
from gateway.views import CallLater

# Of these bodies: a hundred times the largest that makes sense.
MAX_BODY_BYTES = 1 << 16

_Asked = TypeVar("_Asked")


class SmallBodies:
    """Reads them within `timeout_s`. What is over the limit is read to its end and dropped, up to
    `max_dropped_bytes`. `call_later` is the event loop's unless a test drives its own.
    """

    def __init__(
        self, *, timeout_s: float, max_dropped_bytes: int, call_later: CallLater | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._max_dropped_bytes = max_dropped_bytes
        self._call_later = call_later

    async def read(self, request: Request, absent: _Asked) -> _Asked:
        """The body as `absent`'s type, which is what an empty one stands for.

        Raises RequestError: bad_request, too_large, timeout, unsupported_media_type; ClientGone.
        """
        body = await self._read_in_time(request)
        body = await decompress(
            body,
            request.headers.get("content-encoding", "").encode("latin-1"),
            max_bytes=MAX_BODY_BYTES,
            hold=lambda num_bytes: None,
        )
        if not body.strip():
            return absent
        try:
            return msgspec.json.decode(body, type=type(absent))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise bad_request(f"the body is not what this route takes: {error}") from None

    async def _read_in_time(self, request: Request) -> bytes:
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(self._read_all(request))
        is_late = asyncio.Event()
        lateness = asyncio.ensure_future(is_late.wait())
        timer = (self._call_later or loop.call_later)(self._timeout_s, is_late.set)
        try:
            await asyncio.wait((reading, lateness), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            raise RequestError("timeout", f"the body was not complete after {self._timeout_s:g} s")
        finally:
            timer.cancel()
            reading.cancel()
            lateness.cancel()

    async def _read_all(self, request: Request) -> bytes:
        body = bytearray()
        num_bytes = 0
        try:
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes <= MAX_BODY_BYTES:
                    body += chunk
                elif num_bytes > self._max_dropped_bytes:
                    break
        except ClientDisconnect:
            raise ClientGone from None
        if num_bytes > MAX_BODY_BYTES:
            raise too_large(f"the body has over {MAX_BODY_BYTES} bytes, the limit here")
        return bytes(body)
