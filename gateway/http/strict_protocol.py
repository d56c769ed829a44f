"""uvicorn's HTTP protocol, strict where two servers could read the same bytes differently.

Bytes that are no HTTP get our own error body, and get it after the answers to what came before
them on the connection: an answer in another's place is what request smuggling is made of. Then
nothing more is read of that connection. Trailers never become headers. An `Upgrade` to what is
not spoken here is ignored, as RFC 9110 (7.8) has it; uvicorn's parser would drop the body.

It owns what is no request. It must never see one that is: that is gateway.http.protocol's.
"""

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.errors import RequestError, bad_request

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

# After a last answer, how long what the client still writes is read: closing at once would reset
# the connection, and the answer would be lost with it.
LINGER_S = 1.0


class Malformed(Exception):
    """What a parser takes and we do not; the text says what."""


class _Refusal:
    """Stands in uvicorn's pipeline for the answer to what is no request."""

    def __init__(self, protocol: "StrictHttpProtocol", error: RequestError) -> None:
        self._protocol = protocol
        self._error = error

    async def run_asgi(self, app: object) -> None:
        self._protocol.write_last(self._error)


class StrictHttpProtocol(HttpToolsProtocol):
    """One connection. Subclasses say how a last answer is written, and what is forgotten."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""
        self._is_broken = False  # nothing of this connection is parsed any more
        self._is_upgrade = False  # while the parser stops at a head that asks for one
        # The headers of a chunked request: what comes after them are trailers, and dropped.
        self._head: Headers | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    def write_last(self, error: RequestError) -> None:
        """Writes this refusal, and calls `linger` when it is written."""
        raise NotImplementedError

    def forget_unfinished(self) -> None:
        """Drops what there is of a request that was being read."""
        raise NotImplementedError

    def on_ignored(self, data: bytes) -> None:
        """Something came that nobody parses."""

    # ------------------------------------------------------------------ from the transport

    def data_received(self, data: bytes) -> None:
        if self._is_broken:
            self.on_ignored(data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_on(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(_refusal_of(error))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_broken = True
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    # ------------------------------------------------------------------ from the parser

    def on_chunk_header(self) -> None:
        if self._head is not None:
            return
        codings = [value.strip().lower() for name, value in self.headers if name == _CODING]
        if codings != [b"chunked"]:
            names = b", ".join(codings).decode("latin-1")[:60]
            raise Malformed(f"Transfer-Encoding is {names!r}: this server reads chunked alone")
        if self.parser.get_http_version() != "1.1":
            raise Malformed(f"Transfer-Encoding in HTTP/{self.parser.get_http_version()}")
        self._head, self.headers = self.headers, []

    def take_trailers(self) -> None:
        """The message is complete: its headers are those of its head again."""
        if self._head is not None:
            self.headers, self._head = self._head, None

    def check_version(self) -> None:
        """Raises Malformed."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Malformed(f"this is HTTP/{version}, HTTP/1.1 is spoken here")

    # ------------------------------------------------------------------ upgrades

    def _read_on(self, rest: memoryview) -> None:
        """The parser has stopped after a head that asks for another protocol, and before its body.

        A new one reads that head without the wish, and goes on. CONNECT has no body: what follows
        it is for a tunnel, and there is none.
        """
        while True:
            if not self._is_upgrade:  # CONNECT, answered as any method that is not there
                if self.cycle is not None:
                    self.cycle.keep_alive = False
                self._is_broken = True
                return
            self._is_upgrade = False
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            try:
                self.parser.feed_data(head)
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:  # one that was sent right behind
                rest = rest[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                self._refuse(_refusal_of(error))
            return

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"upgrade":
                continue
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() != b"upgrade")
            lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join((*lines, b"\r\n"))

    # ------------------------------------------------------------------ the end of a connection

    def _refuse(self, error: RequestError) -> None:
        """The last answer of this connection, after those that are still owed."""
        self._is_broken = True
        self.forget_unfinished()
        cycle = self.cycle
        if error.reason == "internal_error":
            queued = False  # a callback of ours broke off: nobody knows what is still owed
        elif isinstance(cycle, RequestResponseCycle) and cycle.more_body:
            # The request whose body is broken is this one itself.
            if cycle.response_started:
                self.linger()  # it has its answer
                return
            queued = bool(self.pipeline) and self.pipeline[0][0] is cycle
            if queued:
                self.pipeline.popleft()
            else:
                cycle.disconnected = True
                cycle.message_event.set()
        else:
            queued = cycle is not None and not cycle.response_complete
        if queued:
            refusal: Any = _Refusal(self, error)  # has what uvicorn uses of a cycle
            self.pipeline.appendleft((refusal, self.app))
        else:
            self.write_last(error)

    def linger(self) -> None:
        """Closes the connection in the one direction now, in the other a little later."""
        if self.transport.is_closing():
            return
        if not self.transport.can_write_eof():  # TLS
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)


_CODING = b"transfer-encoding"


def _refusal_of(error: httptools.HttpParserError) -> RequestError:
    """What the parser said, or what one of our own callbacks raised in it."""
    cause: BaseException = error
    if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
        cause = error.__context__
    if isinstance(cause, RequestError):
        return cause
    if isinstance(cause, Malformed | httptools.HttpParserError):
        return bad_request(f"this is not HTTP/1.1 as this server reads it: {cause}")
    logger.error("bytes of a client broke the gateway", exc_info=cause)
    return RequestError("internal_error", "the gateway failed on this request")
