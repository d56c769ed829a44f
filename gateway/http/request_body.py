"""A request's body: off the wire within its limits, and out of its content encoding.

It owns the byte limits and must never hold more than they say, whatever a client announces or
compresses. The limit of time is the caller's, who answers for the request once that has passed.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway.errors import RequestError, bad_request
from scheduler.wire import Buffer

Message = MutableMapping[str, Any]  # ASGI's own type of a message
Receive = Callable[[], Awaitable[Message]]

# Inflated, and fed, between two looks at the event loop: under a millisecond of work.
INFLATE_STEP_BYTES = 1 << 18
INFLATE_INPUT_BYTES = 1 << 16
# zlib's window bits by encoding; +16 reads a gzip wrapper, without it a zlib one (RFC 9110, 8.4.1).
_WINDOW_BITS = {
    b"gzip": zlib.MAX_WBITS + 16,
    b"x-gzip": zlib.MAX_WBITS + 16,
    b"deflate": zlib.MAX_WBITS,
}


class ClientGone(Exception):
    """The client closed the connection before its body was complete: nobody to answer."""


def check_length(num_bytes: int, *, max_bytes: int) -> None:
    """Raises RequestError(too_large). For what is announced, and for what arrived."""
    if num_bytes > max_bytes:
        raise too_large(f"the body has {num_bytes} bytes, the limit is {max_bytes}")


class BodyMemory:
    """Bytes of all bodies in memory. Counted as they come: what is announced costs nothing yet."""

    def __init__(self, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Raises RequestError(overloaded) instead of going over the limit."""
        if self.num_bytes + num_bytes > self.max_bytes:
            raise RequestError(
                "overloaded",
                f"{self.num_bytes} bytes of request bodies are in memory, "
                f"{num_bytes} more would be over the limit of {self.max_bytes}",
            )
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes


async def read_rest(
    first: Message, receive: Receive, *, max_bytes: int, hold: Callable[[int], None]
) -> bytes:
    """The whole body, given its first message; joined once at the end. `hold` is told each size.

    Raises RequestError(too_large) at the first byte over the limit, ClientGone on a disconnect.
    """
    message = first
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise too_large(f"the body has over {max_bytes} bytes, the limit")
        hold(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


async def decompress(
    body: bytes, encoding: bytes, *, max_bytes: int, hold: Callable[[int], None]
) -> bytes:
    """Undoes Content-Encoding. The result never exceeds `max_bytes`, whatever the body claims, and
    `hold` is told of each part of it as it comes.

    Raises RequestError: unsupported_media_type, too_large, or bad_request for damaged data.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    window_bits = _WINDOW_BITS.get(name)
    if window_bits is None:
        raise RequestError(
            "unsupported_media_type",
            f"content-encoding is {name[:60].decode('latin-1')!r}: "
            "this server reads gzip, deflate and identity",
        )
    inflater = zlib.decompressobj(window_bits)
    parts: list[bytes] = []
    num_bytes = 0
    start = 0
    view = memoryview(body)
    while start < len(view) and not inflater.eof:
        if start:
            await asyncio.sleep(0)  # others' deadlines go on meanwhile
        # in slices: zlib copies what it has not consumed at every step
        rest: Buffer = view[start : start + INFLATE_INPUT_BYTES]
        start += len(rest)
        while True:
            try:
                part = inflater.decompress(rest, INFLATE_STEP_BYTES)
            except zlib.error as error:
                raise bad_request(f"the body is not {name.decode()}: {error}") from None
            rest = inflater.unconsumed_tail
            parts.append(part)
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise too_large(f"the body has over {max_bytes} bytes decompressed, the limit")
            hold(len(part))
            if inflater.eof or (not rest and len(part) < INFLATE_STEP_BYTES):
                break
            await asyncio.sleep(0)
    num_left = len(view) - start + len(inflater.unused_data)
    if not inflater.eof:
        raise bad_request(f"the {name.decode()} body is cut off after {len(body)} bytes")
    if num_left:
        raise bad_request(f"{num_left} bytes follow the end of the {name.decode()} body")
    return b"".join(parts)


def too_large(detail: str) -> RequestError:
    return RequestError("too_large", detail)
