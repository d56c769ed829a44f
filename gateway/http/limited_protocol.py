"""What one connection may take of the server before there is a request: a place, bytes, time.

It owns the limits on connections and heads. It must never cost a request that comes in one piece
more than a few comparisons, and never close on a client that is owed an answer.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from gateway.errors import RequestError
from gateway.http.strict_protocol import LINGER_S, StrictHttpProtocol
from gateway.views import CallLater

# Beyond `max_connections`, so many at a time are told so; a flood beyond that is cut off unheard.
MAX_TURNED_AWAY = 256
# Whoever asks this one thing is told so without a place: a kubelet that does not hear it kills a
# gateway for being full.
LIVENESS_PROBE = b"GET /livez HTTP/1."
LIVE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 13\r\n"
    b'connection: close\r\n\r\n{"live":true}'
)


class ConnectionLimits(msgspec.Struct, frozen=True):
    """`head_timeout_s` counts from a head's first byte. `call_later`: None is the event loop's."""

    max_connections: int = 16_384
    max_head_bytes: int = 1 << 16
    head_timeout_s: float = 10.0
    call_later: CallLater | None = None


class LimitedHttpProtocol(StrictHttpProtocol):
    """One connection."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    turned_away: ClassVar[set["LimitedHttpProtocol"]]  # all and only that hear it now

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._is_in_head = False  # of a request that has begun
        self._is_long = False  # whether a head has to be measured: what came is over the limit
        self._num_head_bytes = 0  # of a head that comes in pieces
        self._head_timer: Any = None  # runs while a head comes in pieces
        # One timer per connection, looked at when it fires, instead of one per request.
        self._idle_timer: asyncio.TimerHandle | None = None
        self._is_idle = False  # since it came, or since a direct answer
        self._idle_since_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.limits.max_connections:
            self._turn_away(transport)
            return
        super().connection_made(transport)
        self.begin_idling()  # who says nothing is as idle as who has nothing more to say
        self._idle_since_s += max(0.0, self.limits.head_timeout_s - self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.turned_away.discard(self)
        self._end_head()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    # ------------------------------------------------------------------ connections

    def _turn_away(self, transport: asyncio.Transport) -> None:
        """Answers once something comes: clients take what comes before they ask for noise."""
        self.transport = transport
        self.flow = FlowControl(transport)
        self._is_broken = True
        if len(self.turned_away) >= MAX_TURNED_AWAY:
            transport.abort()
            return
        self.turned_away.add(self)
        self._linger_timer = self.loop.call_later(LINGER_S, transport.close)

    def on_ignored(self, data: bytes) -> None:
        if self not in self.turned_away:
            return
        self.turned_away.discard(self)
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        if data.startswith(LIVENESS_PROBE):
            self.transport.write(LIVE)
            self.linger()
            return
        limit = self.limits.max_connections
        detail = f"{limit} connections are open, the most this gateway takes"
        self.write_last(RequestError("overloaded", detail))

    # ------------------------------------------------------------------ idle connections

    def begin_idling(self) -> None:
        self._is_idle = True
        self._idle_since_s = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._on_idle_timer)

    def _on_idle_timer(self) -> None:
        self._idle_timer = None
        if not self._is_idle:
            return  # the next answer sets it again
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._on_idle_timer)
        else:
            self.timeout_keep_alive_handler()

    # ------------------------------------------------------------------ heads

    def await_head(self, num_bytes: int) -> None:
        """A head has begun and is not complete; so many bytes came last."""
        self.count_head(num_bytes)
        if self._head_timer is None and not self._is_broken:
            self._start_head_timer()

    def count_head(self, num_bytes: int) -> None:
        """Bytes of a head, or of trailers. What came with its first may be another's body."""
        self._num_head_bytes += num_bytes if self._num_head_bytes else 1
        if self._num_head_bytes > self.limits.max_head_bytes:
            self._refuse(self._over_limit())

    def _start_head_timer(self) -> None:
        call_later: Callable[..., Any] = self.limits.call_later or self.loop.call_later
        self._head_timer = call_later(self.limits.head_timeout_s, self._on_head_timer)

    def _on_head_timer(self) -> None:
        self._head_timer = None
        if self._is_broken:
            return
        if self.flow.read_paused:
            self._start_head_timer()  # the rest may have come, and we do not look
            return
        limit = f"{self.limits.head_timeout_s:g} s"
        self._refuse(RequestError("timeout", f"the header was not complete after {limit}"))

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def end_long_head(self) -> None:
        """A head is complete that came in pieces, or with more bytes than a head may have. Raises
        RequestError.
        """
        self._end_head()
        self._num_head_bytes = 0
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > self.limits.max_head_bytes:
            raise self._over_limit()

    def _over_limit(self) -> RequestError:
        limit = self.limits.max_head_bytes
        return RequestError(
            "headers_too_large", f"the header has over {limit} bytes, the limit of this gateway"
        )
