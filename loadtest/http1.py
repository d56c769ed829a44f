"""A lean HTTP/1.1 client: keep-alive connections, requests as ready-made bytes, replies as bytes.

Owns sockets and the parsing of replies. It never waits in the middle of a send, never builds a
request and never looks into a body, so that on its own core it is not the bottleneck.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from loadtest.workloads import Ask

HEADER_LENGTH = b"inference-header-content-length"


class Shot:
    """One request and what became of it. `status` 0: no reply (gave up, or the connection broke).

    `at_ns` is when it was scheduled; instants are of CLOCK_MONOTONIC. `json_length` is the part of
    a binary reply's body that is JSON, None where all of it is. `turn` counts the shots of its
    stream; `ask` is what a closed loop's client has asked.
    """

    __slots__ = (
        "ask",
        "at_ns",
        "body",
        "done_ns",
        "is_retry",
        "json_length",
        "sent_ns",
        "status",
        "stream",
        "trouble",
        "turn",
        "variant",
    )

    def __init__(self, stream: int, variant: int, at_ns: int) -> None:
        self.stream = stream
        self.variant = variant
        self.at_ns = at_ns
        self.sent_ns = 0
        self.done_ns = 0
        self.status = 0
        self.json_length: int | None = None
        self.body = b""
        self.trouble = ""
        self.is_retry = False
        self.turn = 0
        self.ask: Ask | None = None


class _Send(NamedTuple):
    shot: Shot
    request: bytes
    on_done: Callable[[Shot], None]


def _fail(pending: _Send, trouble: str) -> None:
    pending.shot.trouble = trouble
    pending.shot.done_ns = time.monotonic_ns()
    pending.on_done(pending.shot)


class ConnectionPool:
    """Connections to one server. The most recently used is used first, so that few stay warm."""

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        # all and only sends that wait for a connection, the first first: one that is being opened
        # for it, or one that is free before
        self._pending: deque[_Send] = deque()
        self.num_opened = 0

    async def warm(self, num_connections: int) -> None:
        """Open so many connections ahead of time."""
        await asyncio.gather(*(self._open() for _ in range(num_connections)))

    def send(self, shot: Shot, request: bytes, on_done: Callable[[Shot], None]) -> None:
        """Returns at once. `on_done` is called exactly once, also if the connection breaks."""
        connection = self._take_idle()
        if connection is not None:
            connection.send(shot, request, on_done)
            return
        self._pending.append(_Send(shot, request, on_done))
        task = asyncio.get_running_loop().create_task(self._open_for_pending())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def give_up(self, shot: Shot) -> None:
        """Hang up on a request that was sent and not answered."""
        for connection in self._all:
            if connection.shot is shot:
                shot.trouble = "gave up"
                connection.close()
                return
        for pending in self._pending:
            if pending.shot is shot:
                self._pending.remove(pending)
                _fail(pending, "gave up")
                return

    async def close(self) -> None:
        while self._pending:
            _fail(self._pending.popleft(), "gave up")
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        for connection in list(self._all):
            if connection.shot is not None:
                connection.shot.trouble = "gave up"
            connection.close()
        await asyncio.sleep(0)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(
            lambda: _Connection(self), self._host, self._port, ssl=self._tls
        )

    async def _open_for_pending(self) -> None:
        try:
            await self._open()
        except OSError as error:
            if self._pending:
                _fail(self._pending.popleft(), f"cannot connect: {error}")

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        return None

    def _on_open(self, connection: "_Connection") -> None:
        self.num_opened += 1
        self._all.add(connection)
        self._on_idle(connection)

    def _on_idle(self, connection: "_Connection") -> None:
        if self._pending:
            connection.send(*self._pending.popleft())
        else:
            self._idle.append(connection)

    def _on_lost(self, connection: "_Connection") -> None:
        self._all.discard(connection)


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.shot: Shot | None = None
        self.is_usable = False
        self._pool = pool
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._request = b""
        self._on_done: Callable[[Shot], None]
        self._parts: list[bytes] = []
        self._num_done = 0

    def send(self, shot: Shot, request: bytes, on_done: Callable[[Shot], None]) -> None:
        self.shot = shot
        self._request = request
        self._on_done = on_done
        shot.sent_ns = time.monotonic_ns()
        self._transport.write(request)

    def close(self) -> None:
        self.is_usable = False
        self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by behaviour, not by class
        self._transport = cast(asyncio.Transport, transport)
        self.is_usable = True
        self._pool._on_open(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self.shot is not None:
                self.shot.trouble = f"unreadable reply: {error}"
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_usable = False
        self._pool._on_lost(self)
        shot, self.shot = self.shot, None
        if shot is None:
            return
        # A kept-alive connection may be closed by the server in the moment of its next use: any
        # client tries such a request once more (RFC 9110, 9.2.2), and the wait counts as latency.
        if self._num_done and not self._parts and not shot.trouble and not shot.is_retry:
            shot.is_retry = True
            self._pool.send(shot, self._request, self._on_done)
            return
        shot.trouble = shot.trouble or "connection closed without a reply"
        shot.done_ns = time.monotonic_ns()
        self._on_done(shot)

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._parts = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.shot is not None and name.lower() == HEADER_LENGTH:
            self.shot.json_length = int(value)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        shot, self.shot = self.shot, None
        if shot is None:
            self.close()  # a reply that nobody asked for
            return
        on_done = self._on_done
        shot.done_ns = time.monotonic_ns()
        shot.status = self._parser.get_status_code()
        shot.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._num_done += 1
        if self._parser.should_keep_alive():
            self._pool._on_idle(self)
        else:
            self.close()
        on_done(shot)  # not self._on_done: that may be the next one's by now
