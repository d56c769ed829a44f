"""The short way through the HTTP server: an inference request that is complete when it is read.

uvicorn's protocol makes a task, an event, a scope and two timers for each request, and half of what
a small inference cost the core was that. A `POST` to the hot path whose head and body came in one
piece, which is nearly every one, is handed to the endpoint in a plain call instead, and its reply
is written in one piece. So is one whose body comes in several pieces soon after each other, and if
its first piece is enough for a no, the rest is thrown away as it comes. Everything else goes
through uvicorn's own code, unchanged: other paths, chunked bodies in pieces and bodies that stall,
`Expect`, upgrades, HTTP/1.0, pipelined requests, encoded bodies (adr/0008).

It owns bytes and connections. It must never decide about a request, and never let one be answered
twice or not at all.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from gateway.errors import JSON, PROBLEM_JSON, RequestError
from gateway.http.cors import Cors
from gateway.http.limited_protocol import ConnectionLimits, LimitedHttpProtocol
from gateway.http.request_body import BodyMemory, Message
from gateway.http.strict_protocol import Headers
from gateway.http.upload import Upload, announced_bytes, set_low_water
from gateway.inference.endpoint import ARRIVAL_NS
from gateway.inference.exchange import Exchange, Reply, Write
from gateway.inference.target import INFER_URL, NATIVE, Target, is_v2, target_of_url
from gateway.lifecycle import Lifecycle
from gateway.views import Clock

logger = logging.getLogger(__name__)

# A reply's body up to this size is joined to its head: one write instead of two. Larger ones are
# not worth the copy.
JOINED_BODY_BYTES = 1 << 16
# Of a body that is still to come, how much the kernel may collect before it wakes us.
MIN_LOW_WATER = 1 << 16
MAX_LOW_WATER = 1 << 20
# A body of which nothing comes for so long, or that takes so long in all, is waited for by a task
# that has the limits of time for it.
STALL_S = 0.05
MAX_UPLOAD_NS = 1_000_000_000


class Endpoint(Protocol):
    """gateway.inference.endpoint.InferEndpoint, as far as the server calls it without ASGI."""

    clock: Clock
    memory: BodyMemory
    lifecycle: Lifecycle

    def answer(
        self, headers: Headers, body: bytes, write: Write, *, arrival_ns: int, target: Target
    ) -> Exchange | None: ...
    def collects_body(self, headers: Headers) -> bool: ...
    def refuse_malformed(self, error: RequestError, write: Write, *, media_type: bytes) -> None: ...
    def takes_upload(self, num_bytes: int) -> bool: ...
    def answer_early(
        self, headers: Headers, begin: bytes, write: Write, *, arrival_ns: int, target: Target
    ) -> Exchange | None: ...


class _Ignored:
    """Stands where uvicorn tells a cycle's task to look: a direct answer has none."""

    def set(self) -> None:
        pass


class DirectAnswer:
    """The one answer to a request that no task serves. To uvicorn, the connection's cycle."""

    __slots__ = (
        "disconnected",
        "exchange",
        "keep_alive",
        "more_lines",
        "protocol",
        "response_complete",
    )

    message_event = _Ignored()  # part of what uvicorn expects of a cycle

    def __init__(self, protocol: "HttpProtocol", keep_alive: bool) -> None:
        self.protocol = protocol
        self.keep_alive = keep_alive  # uvicorn's shutdown says no
        self.disconnected = False
        self.response_complete = False
        self.exchange: Exchange | None = None
        self.more_lines = b""  # of the reply's head

    def serves(self, exchange: Exchange) -> None:
        """Who is to be told of a hang-up; nobody where the answer was written at once."""
        if not self.response_complete:
            self.exchange = exchange

    def write(self, reply: Reply, on_written: Callable[[], None]) -> None:
        """Sends the reply, at once unless the client has yet to read an earlier one."""
        protocol = self.protocol
        if protocol.flow.write_paused and not self.disconnected:
            task = protocol.loop.create_task(self._write_later(reply, on_written))
            protocol.tasks.add(task)
            task.add_done_callback(protocol.tasks.discard)
            return
        try:
            if not self.disconnected:
                self._write(reply[0], reply[1]["body"])
        except Exception:  # ours: a client that gets no answer must at least see the end
            logger.exception("an answer could not be written: %r", reply[0])
            protocol.transport.abort()
        on_written()

    async def _write_later(self, reply: Reply, on_written: Callable[[], None]) -> None:
        await self.protocol.flow.drain()  # returns also when the connection is lost
        self.write(reply, on_written)

    def _write(self, start: Message, body: bytes) -> None:
        protocol = self.protocol
        parts = [protocol.head_of(start["status"])]
        if protocol.endpoint.lifecycle.is_ending and not protocol.pipeline:
            self.keep_alive = False
        says_close = False
        for name, value in start["headers"]:
            parts += (name, b": ", value, b"\r\n")
            if name == b"connection":
                says_close = True  # the only thing our replies say there
        if says_close:
            self.keep_alive = False
        elif not self.keep_alive:
            parts.append(b"connection: close\r\n")
        if self.more_lines:
            parts.append(self.more_lines)
        if len(body) <= JOINED_BODY_BYTES:
            parts += (b"\r\n", body)
            protocol.transport.write(b"".join(parts))
        else:
            parts.append(b"\r\n")
            protocol.transport.write(b"".join(parts))
            protocol.transport.write(body)
        self.response_complete = True
        self.exchange = None  # it knows us, too: none of both is left to the garbage collector
        protocol.on_answered(self)


class HttpProtocol(LimitedHttpProtocol):
    """One connection. Made by uvicorn, from the class that `serving` returns."""

    endpoint: ClassVar[Endpoint]
    cors: ClassVar[Cors | None] = None
    # Status line and default headers, by status; of default headers that change every second.
    _heads: ClassVar[dict[int, bytes]]
    _heads_of: ClassVar[object]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # A request for the endpoint and what came of its body, while its first piece is parsed.
        self._is_deferred = False
        self._chunks: list[bytes] = []
        self._arrival_ns = 0
        self._target = NATIVE
        # The same once there is to be another piece.
        self._upload: Upload | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._num_to_skip = 0  # of the body of a request that is answered already
        self._low_water = 1  # bytes that must have come before the loop is woken
        self._waiting: DirectAnswer | None = None  # all and only the direct answer not yet written

    @classmethod
    def serving(
        cls,
        endpoint: Endpoint,
        limits: ConnectionLimits | None = None,
        cors: Cors | None = None,
    ) -> "type[HttpProtocol]":
        """A protocol for `uvicorn.Config(http=...)` that hands inference to the endpoint."""
        members = {
            "endpoint": endpoint,
            "limits": limits or ConnectionLimits(),
            "turned_away": set(),
            "cors": cors,
            "_heads": {},
            "_heads_of": None,
        }
        return type("ServingHttpProtocol", (cls,), members)

    # ------------------------------------------------------------------ from the transport

    def data_received(self, data: bytes) -> None:
        if self._num_to_skip:
            if self._num_to_skip > len(data):
                self._num_to_skip -= len(data)
                self._wake_at(self._num_to_skip)
                return
            data = data[self._num_to_skip :]
            self._num_to_skip = 0
            self._wake_at(1)
            if not data:
                return
        self._is_long = len(data) > self.limits.max_head_bytes
        super().data_received(data)
        if self._is_in_head:
            self.await_head(len(data))
        elif self._head is not None:
            self.count_head(len(data))  # until it is seen to be body
        if self._is_deferred:
            self._begin_upload()
        upload = self._upload
        if upload is not None:
            self._await_rest(upload)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._low_water = 1  # the socket's number may be another's by now
        self._take_upload()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.disconnected = True
            exchange, waiting.exchange = waiting.exchange, None
            if exchange is not None:
                exchange.hang_up()

    # ------------------------------------------------------------------ from the parser

    def shutdown(self) -> None:
        if self._upload is not None:
            self._start_cycle()  # which uvicorn lets finish
        super().shutdown()

    def on_message_begin(self) -> None:
        # The scope is made where a cycle is started.
        self._is_in_head = True
        self._is_idle = False
        self._unset_keepalive_if_required()
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._is_long or self._num_head_bytes:
            self.end_long_head()
        cycle = self.cycle
        is_free = cycle is None or cycle.response_complete
        if is_free and cycle is not None and not cycle.keep_alive:
            return  # sent in one piece with a request after which we close
        parser = self.parser
        url = self.url
        target = NATIVE if url == INFER_URL else target_of_url(url)
        if (
            is_free
            and target is not None
            and not self.expect_100_continue
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and not parser.should_upgrade()
        ):
            self._is_deferred = True
            self._target = target
            self._arrival_ns = self.endpoint.clock()
        elif parser.should_upgrade() and parser.get_method() != b"CONNECT":
            self._is_upgrade = True  # once this head is over, it is read again without that wish
        else:
            self.check_version()
            self._start_cycle()

    def on_body(self, body: bytes) -> None:
        self._num_head_bytes = 0
        if self._is_deferred:
            self._chunks.append(body)
            return
        if self._upload is not None:
            try:
                self._upload.add(body)
                return
            except RequestError:
                self._start_cycle()  # where the same is found, and said
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._head is not None:
            self.take_trailers()
        if self._is_deferred:
            arrival_ns, chunks = self._arrival_ns, self._take_deferred()
        elif self._upload is not None:
            arrival_ns = self._upload.arrival_ns
            chunks = self._take_upload()
        else:
            if not self._is_upgrade:
                super().on_message_complete()
            return
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        previous = self.cycle
        answer = self._expect_answer()
        exchange = self.endpoint.answer(
            self.headers, body, answer.write, arrival_ns=arrival_ns, target=self._target
        )
        if exchange is None:
            self.cycle = previous
            self._waiting = None
            self._start_cycle(chunks, arrival_ns)
            super().on_message_complete()
            return
        answer.serves(exchange)

    # ------------------------------------------------------------------ bodies in pieces

    def _take_deferred(self) -> list[bytes]:
        self._is_deferred = False
        chunks, self._chunks = self._chunks, []
        return chunks

    def _begin_upload(self) -> None:
        chunks = self._take_deferred()
        if not self.endpoint.collects_body(self.headers):
            self._start_cycle(chunks, self._arrival_ns)  # where the door comes before the body
            return
        num_expected = announced_bytes(self.headers)
        upload = Upload(
            self.endpoint.memory, arrival_ns=self._arrival_ns, num_expected=num_expected
        )
        try:
            for chunk in chunks:
                upload.add(chunk)
        except RequestError:
            upload.release()
            self._start_cycle(chunks, self._arrival_ns)  # where the same is found, and said
        else:
            self._upload = upload

    def _await_rest(self, upload: Upload) -> None:
        """Not all of the body is here: refuse what is certain by now, and see that more comes."""
        if upload.num_expected is None or not self.endpoint.takes_upload(upload.num_expected):
            self._start_cycle()
            return
        if upload.chunks and not upload.is_judged:
            upload.is_judged = True
            if self._refuse_early(upload, upload.num_expected):
                return
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(STALL_S, self._on_stall_timer)
        self._wake_at(upload.num_expected - upload.num_bytes)

    def _wake_at(self, num_bytes: int) -> None:
        """Has the kernel collect what is still to come before it wakes the loop.

        600 kB came in 12 pieces otherwise, each of which interrupted whatever this core computed.
        """
        low_water = 1
        # Under TLS nobody knows how many bytes are to come, of which some may be here already.
        if num_bytes > MIN_LOW_WATER and self.scheme != "https":
            low_water = min(num_bytes, MAX_LOW_WATER)
        if low_water != self._low_water:
            self._low_water = low_water
            set_low_water(self.transport, low_water)

    def _refuse_early(self, upload: Upload, num_expected: int) -> bool:
        if not self.parser.should_keep_alive():
            return False  # closing on a client that still writes would take the answer with it
        previous = self.cycle
        answer = self._expect_answer()
        exchange = self.endpoint.answer_early(
            self.headers,
            upload.chunks[0],
            answer.write,
            arrival_ns=upload.arrival_ns,
            target=self._target,
        )
        if exchange is None:
            self.cycle = previous
            self._waiting = None
            return False
        answer.serves(exchange)
        self._num_to_skip = num_expected - upload.num_bytes
        self._take_upload()
        self._wake_at(self._num_to_skip)
        # The parser is in the middle of a body that it will not see the end of.
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return True

    def _on_stall_timer(self) -> None:
        self._stall_timer = None
        upload = self._upload
        if upload is None:
            return
        took_ns = self.endpoint.clock() - upload.arrival_ns
        if self._low_water > 1 and took_ns < MAX_UPLOAD_NS:
            self._wake_at(1)  # some may have come, and waits in the kernel for more
            self._stall_timer = self.loop.call_later(STALL_S, self._on_stall_timer)
            return
        if upload.has_progressed() and took_ns < MAX_UPLOAD_NS:
            self._stall_timer = self.loop.call_later(STALL_S, self._on_stall_timer)
        else:
            self._start_cycle()

    def _take_upload(self) -> list[bytes]:
        """Ends the waiting for a body; returns what came of it."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._wake_at(1)
        upload, self._upload = self._upload, None
        return upload.release() if upload is not None else []

    def _expect_answer(self) -> DirectAnswer:
        answer = DirectAnswer(self, self.parser.should_keep_alive())
        if self.cors is not None:
            answer.more_lines = self.cors.lines_for(self.headers)
        self.cycle = answer  # type: ignore[assignment]  # has what uvicorn uses of one
        self._waiting = answer
        return answer

    # ------------------------------------------------------------------ what is no request

    def write_last(self, error: RequestError) -> None:
        answer = DirectAnswer(self, keep_alive=False)
        media_type = JSON if is_v2(self.url.decode("latin-1")) else PROBLEM_JSON
        self.endpoint.refuse_malformed(error, answer.write, media_type=media_type)

    def forget_unfinished(self) -> None:
        self._is_in_head = False
        self._end_head()
        self._take_deferred()
        self._take_upload()

    # ------------------------------------------------------------------ from answers

    def head_of(self, status: int) -> bytes:
        """Status line and default headers."""
        cls = type(self)
        default_headers = self.server_state.default_headers
        if default_headers is not cls._heads_of:
            cls._heads_of = default_headers
            cls._heads = {}
        head = cls._heads.get(status)
        if head is None:
            lines = [b"%b: %b\r\n" % header for header in default_headers]
            head = cls._heads[status] = b"".join([STATUS_LINE[status], *lines])
        return head

    def on_answered(self, answer: DirectAnswer) -> None:
        """As uvicorn's on_response_complete: what comes after an answer."""
        self._waiting = None
        self.server_state.total_requests += 1
        if not answer.keep_alive:
            if self._is_broken:
                self.linger()
            else:
                self.transport.close()
            return
        if self.pipeline:
            if not self.transport.is_closing():
                self.flow.resume_reading()
                self._start_asgi_task(*self.pipeline.pop())
            return
        self.begin_idling()

    # ------------------------------------------------------------------ the long way

    def _start_cycle(self, chunks: list[bytes] | None = None, arrival_ns: int = 0) -> None:
        """What uvicorn would have done so far with the request that is being parsed."""
        url, expect_100_continue = self.url, self.expect_100_continue
        headers = self.headers if self._head is None else self._head
        if self._upload is not None:
            arrival_ns = self._upload.arrival_ns
            chunks = self._take_upload()
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)  # the list is the scope's
        self.expect_100_continue = expect_100_continue
        super().on_headers_complete()
        if self._head is not None:
            self.headers = []  # trailers
        if arrival_ns:
            cast(dict[str, Any], self.scope)[ARRIVAL_NS] = arrival_ns
        if chunks:
            super().on_body(b"".join(chunks))  # uvicorn would join them one by one
