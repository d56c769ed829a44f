"""Peer: one other replica, as far as this one can tell: its connections, and whether it answers.

It owns the judgement of a peer: what refuses connections, says that it is not ready, or stays
silent while it is asked, is sent nothing until it answers /readyz again. It must never decide which
replica a model belongs to, and asks nothing of a peer that nobody needs: one that is up and has
nothing to answer hears nothing from us.
"""

import asyncio
import logging
import ssl
from collections import deque
from urllib.parse import urlsplit

from gateway.replicas.connection import Call, PeerConnection, PeerReply
from gateway.views import CallLater, Clock
from gateway.wakeup_timer import Cancellable
from scheduler.shards import Replica
from scheduler.spec import MILLISECOND_NS, SECOND_NS

logger = logging.getLogger(__name__)

# As often a peer that is asked something is looked at, and one that is down is tried.
WATCH_INTERVAL_S = 0.5
# Nothing of a peer that owes us answers for so long, /readyz included: it is gone, or cut off.
SILENCE_NS = 1 * SECOND_NS
QUIET_NS = 400 * MILLISECOND_NS  # so long nothing, and it is asked whether it is there
CONNECT_TIMEOUT_S = 1.0  # of a machine that is there, three tries of TCP's are three seconds
# Of the way to a peer and back, the last so many requests' are remembered; all but the longest
# tenth count, since a request that is forwarded has that much less time.
NUM_HOPS, HOPS_PER_LOOK = 64, 8
FIRST_HOP_NS = 1 * MILLISECOND_NS  # until one was measured
READY_REASON = b"x-remontoir-reason"


class Peer:
    """Used on the running event loop."""

    def __init__(self, replica: Replica, *, clock: Clock, call_later: CallLater) -> None:
        parts = urlsplit(replica.url)
        self.name = replica.name
        self.authority = parts.netloc.encode()
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._clock = clock
        self._call_later = call_later
        self.problem: str | None = None  # why nothing is sent there; None: it is asked
        self.hop_ns = FIRST_HOP_NS
        self.num_sent = 0
        self._hops: deque[int] = deque(maxlen=NUM_HOPS)
        self._num_hops = 0
        self._idle: list[PeerConnection] = []
        self._all: set[PeerConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        # All and only calls that wait for a reply, and since when nothing was heard meanwhile.
        self._waiting: set[Call] = set()
        self.heard_ns = 0
        self._probe: Call | None = None
        self._watch: Cancellable | None = None
        self._is_closed = False

    # ------------------------------------------------------------------ what is asked of it

    def send(self, call: Call) -> None:
        """Calls back once, also where the peer cannot be reached; not before this returns."""
        self.num_sent += 1
        if not self._waiting:
            self.heard_ns = self._clock()
        self._waiting.add(call)
        self._see_to_watch()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                connection.start(call)
                return
        self._open_for(call)

    def note_hop(self, hop_ns: int) -> None:
        """How much longer a reply took than the peer itself, on a connection that was there."""
        self._hops.append(hop_ns)
        self._num_hops += 1
        if self._num_hops % HOPS_PER_LOOK == 1:
            self.hop_ns = sorted(self._hops)[len(self._hops) * 9 // 10]

    def mark_unready(self, reason: str) -> None:
        """It has said itself that it should not be asked now."""
        self._set_problem(f"it says {reason}")

    def close(self) -> None:
        self._is_closed = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for task in self._opening:
            task.cancel()
        for connection in list(self._all):
            connection.close()

    # ------------------------------------------------------------------ from connections

    def on_open(self, connection: PeerConnection) -> None:
        self._all.add(connection)

    def on_idle(self, connection: PeerConnection) -> None:
        self._idle.append(connection)

    def on_heard(self, call: Call) -> None:
        self.heard_ns = self._clock()
        self._waiting.discard(call)

    def on_lost(self, connection: PeerConnection, call: Call | None, *, was_used: bool) -> None:
        self._all.discard(connection)
        if call is None:
            return
        if call.is_over:
            self._waiting.discard(call)
        elif was_used and not call.is_retry and self.problem is None and not self._is_closed:
            # Closed by the peer in the moment of its next use (RFC 9110, 9.2.2).
            call.is_retry = True
            self._open_for(call)
        else:
            self._end(call, self.problem or "its connection broke off before it answered")

    # ------------------------------------------------------------------ connecting

    def _open_for(self, call: Call) -> None:
        call.is_fresh = True
        task = asyncio.get_running_loop().create_task(self._open(call))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: PeerConnection(self), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            why = "no connection within 1 s" if isinstance(error, TimeoutError) else str(error)
            if call is not self._probe:
                self._set_problem(f"cannot be reached: {why}")
            self._end(call, f"cannot be reached: {why}")
        except asyncio.CancelledError:
            self._end(call, "the gateway stops")
            raise
        else:
            if call.is_over:
                self._waiting.discard(call)
                self.on_idle(connection)
            else:
                connection.start(call)

    def _end(self, call: Call, why: str) -> None:
        self._waiting.discard(call)
        if not call.is_over:
            call.is_over = True
            call.on_trouble(why)

    # ------------------------------------------------------------------ whether it answers

    def _set_problem(self, problem: str | None) -> None:
        if problem == self.problem:
            return
        if problem is not None and self.problem is None:
            logger.warning("replica %s is not asked for now: %s", self.name, problem)
        elif problem is None:
            logger.warning("replica %s answers again", self.name)
        self.problem = problem
        self._see_to_watch()

    def _see_to_watch(self) -> None:
        if self._watch is None and not self._is_closed:
            self._watch = self._call_later(WATCH_INTERVAL_S, self.look)

    def look(self) -> None:
        """Twice a second while it is asked something, or is down."""
        self._watch = None
        for call in [call for call in self._waiting if call.is_over]:
            self._waiting.discard(call)  # abandoned on the way
        if not self._waiting and self.problem is None:
            return
        silent_ns = self._clock() - self.heard_ns
        if self._waiting and silent_ns > SILENCE_NS and self._probe is not None:
            self._set_problem(f"it has been silent for {silent_ns / SECOND_NS:.1f} s")
            self.heard_ns = self._clock()
            self._probe.abandon()
            self._probe = None
            for connection in list(self._all):
                connection.close()  # which ends what waits there
        if self._probe is None and (self.problem is not None or silent_ns >= QUIET_NS):
            self._ask_whether_ready()
        self._see_to_watch()

    def _ask_whether_ready(self) -> None:
        head = b"GET /readyz HTTP/1.1\r\nhost: %b\r\n\r\n" % self.authority
        self._probe = Call(head, b"", on_reply=self._on_ready, on_trouble=self._on_unready)
        self.send(self._probe)

    def _on_ready(self, reply: PeerReply) -> None:
        self._probe = None
        if reply.status == 200:
            self._set_problem(None)
        else:
            reason = reply.header(READY_REASON) or b"status %d" % reply.status
            self._set_problem(f"it says {reason.decode('latin-1')}")

    def _on_unready(self, why: str) -> None:
        self._probe = None
        self._set_problem(why)
