"""One kept-alive HTTP/1.1 connection to a peer, and one request on its way through it.

It owns bytes: a request goes out as it is given, a reply comes back whole. It must never look into
either, and calls back exactly once for each call that was not abandoned. A library's client makes
tasks, futures and objects for headers, which cost several times what the scheduler does
(docs/adr/0015).
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import httptools

# A reply is held as a whole, and is no larger than what the peer may answer.
MAX_REPLY_BYTES = 1 << 30


class PeerReply(NamedTuple):
    """`headers` have names in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for known, value in self.headers if known == name), None)


class Call:
    """One request to a peer. `head` and `body` are bytes as they are sent."""

    __slots__ = (
        "body",
        "connection",
        "head",
        "is_fresh",
        "is_over",
        "is_retry",
        "on_reply",
        "on_trouble",
    )

    def __init__(
        self,
        head: bytes,
        body: bytes,
        *,
        on_reply: Callable[[PeerReply], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self.head = head
        self.body = body
        self.on_reply = on_reply
        self.on_trouble = on_trouble
        self.connection: PeerConnection | None = None  # while it is on its way
        self.is_fresh = False  # a connection was made for it
        self.is_over = False
        self.is_retry = False

    def abandon(self) -> None:
        """Nobody waits for it any more: the peer sees a client that hung up."""
        self.is_over = True
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class Pool(Protocol):
    """Who hears of a connection: gateway.replicas.peer.Peer."""

    def on_open(self, connection: "PeerConnection") -> None: ...
    def on_idle(self, connection: "PeerConnection") -> None: ...
    def on_lost(self, connection: "PeerConnection", call: Call | None, *, was_used: bool) -> None:
        """`was_used`: it had answered before, and nothing of this call's reply came."""
        ...

    def on_heard(self, call: Call) -> None: ...


class PeerConnection(asyncio.Protocol):
    """Made by the event loop's create_connection; one call at a time."""

    def __init__(self, pool: Pool) -> None:
        self.call: Call | None = None
        self.is_open = False
        self._pool = pool
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._num_answered = 0
        self._has_heard = False

    def start(self, call: Call) -> None:
        self.call = call
        call.connection = self
        self._has_heard = False
        # Small bodies go with their head: one packet, one wake-up of the peer.
        if len(call.body) <= 1 << 16:
            self._transport.write(call.head + call.body)
        else:
            self._transport.write(call.head)
            self._transport.write(call.body)

    def close(self) -> None:
        self.is_open = False
        self._transport.abort()

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by behaviour, not by class
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True
        self._pool.on_open(self)

    def data_received(self, data: bytes) -> None:
        self._has_heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        call, self.call = self.call, None
        if call is not None:
            call.connection = None
        was_used = self._num_answered > 0 and not self._has_heard
        self._pool.on_lost(self, call, was_used=was_used)

    # ------------------------------------------------------------------ httptools callbacks

    def on_message_begin(self) -> None:
        self._headers, self._parts, self._num_bytes = [], [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self._num_bytes += len(body)
        if self._num_bytes > MAX_REPLY_BYTES:
            self.close()
        self._parts.append(body)

    def on_message_complete(self) -> None:
        call, self.call = self.call, None
        if call is None:
            self.close()  # a reply that nobody asked for
            return
        call.connection = None
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        reply = PeerReply(self._parser.get_status_code(), self._headers, body)
        self._headers, self._parts = [], []
        self._num_answered += 1
        if self._parser.should_keep_alive() and self.is_open:
            self._pool.on_idle(self)
        else:
            self.close()
        self._pool.on_heard(call)
        if not call.is_over:
            call.is_over = True
            call.on_reply(reply)
