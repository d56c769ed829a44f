"""Requests for models of other replicas: who is asked, in which order, and what becomes of a reply.

It owns the way of one request over one hop: the model's owner first, then who stands in for it, one
after the other while there is time and none has answered. It must never send a request on that came
from a peer, and never read a body: the model's name and the SLO were read by the endpoint, and the
peer reads them itself (docs/adr/0015).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

from gateway.errors import RequestError
from gateway.http.request_ids import REQUEST_ID
from gateway.inference.exchange import Exchange
from gateway.inference.target import INFER_PATH, QUOTE, QUOTE_PATH, Target
from gateway.replicas.connection import Call, PeerReply
from gateway.replicas.hop import HOP, parse_told
from gateway.replicas.peer import READY_REASON, Peer
from gateway.views import CallLater, Clock
from gateway.wakeup_timer import Cancellable
from scheduler.events import Expired, Reason
from scheduler.shards import Shards
from scheduler.spec import MILLISECOND_NS, SECOND_NS

Headers = Sequence[tuple[bytes, bytes]]

REPLICA = b"x-remontoir-replica"  # of a reply: which replica gave it
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
# Of a request: this hop's own, what we write anew, and the encoding of a body that was decoded. Of
# pages of other sites (CORS) the replica that they talk to takes care.
NOT_SENT = frozenset(
    {b"host", b"content-length", b"content-encoding", b"expect", b"origin", REQUEST_ID, HOP}
    | _HOP_BY_HOP
)
# Of a reply: the same, what the server writes by itself, and the length, which a reply in chunks
# does not have: a proxy between replicas may make it one.
NOT_RELAYED = frozenset({b"date", b"server", b"content-length", HOP, *_HOP_BY_HOP})
# Refusals of a replica as a whole: nothing was done, and another can do it.
_OF_REPLICA = frozenset({b"starting", b"draining", b"no_worker"})
_NOT_ITS_MODEL = b"replica_unavailable"  # of a replica that was told another list than we
_RETRY_AFTER_NS = 1 * SECOND_NS  # a gateway that restarts is back by then


class Forwarding:
    """Part of the endpoint. `can_serve` says whether this replica could execute anything now."""

    def __init__(
        self,
        shards: Shards,
        peers: Mapping[str, Peer],
        *,
        clock: Clock,
        call_later: CallLater,
        can_serve: Callable[[], bool],
    ) -> None:
        self.shards = shards
        self.peers = peers
        self.clock = clock
        self.call_later = call_later
        self.can_serve = can_serve
        # What became of requests that were sent to a peer, by (its name, what).
        self.results: Counter[tuple[str, str]] = Counter()
        # All and only requests that a peer has, or is about to.
        self.underway: set[_Forward] = set()
        self._idle_waiters: list[asyncio.Future[None]] = []

    def forward(
        self,
        exchange: Exchange,
        model: str,
        *,
        target: Target,
        headers: Headers,
        body: bytes,
        slo_ns: int,
        serve_here: Callable[[], None],
    ) -> bool:
        """Sends the request to who has the model. False where that is this replica.

        `slo_ns` is 0 where the entry cannot know it. `serve_here` is called, later, where peers
        failed and this replica is the next. Raises RequestError(replica_unavailable).
        """
        holders = self.shards.holders(model)
        if exchange.hop is not None or (holders[0] == self.shards.own_name and self.can_serve()):
            return False
        way = _Forward(self, exchange, model, holders, target, headers, body, serve_here)
        return way.begin(slo_ns)

    def has_elsewhere(self, model: str) -> bool:
        """Whether another replica would be asked first."""
        return self.shards.holders(model)[0] != self.shards.own_name

    def check_is_ours(self, model: str) -> None:
        """Of what a peer has sent here. Raises RequestError(replica_unavailable) where it was told
        another list of replicas: that the model is unknown here does not mean that there is none.
        """
        if self.shards.has(model):
            return
        holders = " and ".join(self.shards.holders(model))
        raise RequestError(
            "replica_unavailable",
            f"replica {self.shards.own_name} was asked for model {model[:200]}, which its list of "
            f"replicas gives to {holders}: was another told another list?",
            retry_after_ns=_RETRY_AFTER_NS,
        )

    @property
    def num_open(self) -> int:
        """Requests that a peer has."""
        return len(self.underway)

    async def wait_idle(self) -> None:
        """Returns once no peer owes an answer. What comes back to be served here is not waited
        for.
        """
        while self.underway:
            waiter = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def forget(self, forward: "_Forward") -> None:
        """It is on its way no more."""
        self.underway.discard(forward)
        if not self.underway and self._idle_waiters:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def close(self) -> None:
        """Who still waits for a peer gets a no."""
        for forward in list(self.underway):
            forward.give_up()
        for peer in self.peers.values():
            peer.close()


class _Forward:
    """One request on its way. Exactly one of: relayed, refused, expired, served here, abandoned."""

    def __init__(
        self,
        forwarding: Forwarding,
        exchange: Exchange,
        model: str,
        holders: tuple[str, ...],
        target: Target,
        headers: Headers,
        body: bytes,
        serve_here: Callable[[], None],
    ) -> None:
        self._forwarding = forwarding
        self._exchange = exchange
        self._model = model
        self._left = list(holders)
        self._target = target
        self._headers = headers
        self._body = body
        self._serve_here = serve_here
        self._call: Call | None = None
        self._peer: Peer
        self._sent_ns = 0
        self._timer: Cancellable | None = None
        self._troubles: list[str] = []
        self._refusal: PeerReply | None = None

    def begin(self, slo_ns: int) -> bool:
        if not self._send_to_next():
            return self._has_refused()
        exchange = self._exchange
        exchange.forward = self
        self._forwarding.underway.add(self)
        if slo_ns:
            exchange.slo_ns = slo_ns
            left_ns = exchange.arrival_ns + slo_ns - self._forwarding.clock()
            self._timer = self._forwarding.call_later(max(left_ns, 0) / SECOND_NS, self._on_late)
        return True

    def abandon(self) -> None:
        """The client went away."""
        self._end("abandoned")

    def give_up(self) -> None:
        """This gateway ends, and the peer has not answered."""
        self._end("failed")
        detail = f"the gateway stops, and {self._peer.name} has not answered yet"
        self._exchange.refuse(RequestError("draining", detail))

    def _has_refused(self) -> bool:
        """Nobody is left to be sent to. True unless this replica is to serve it, or to say no."""
        if self._is_here():
            return False
        raise self._unavailable()

    def _is_here(self) -> bool:
        return self._forwarding.shards.own_name in self._forwarding.shards.holders(self._model)

    def _send_to_next(self) -> bool:
        """False where this replica is the next, or none is left."""
        forwarding = self._forwarding
        while self._left:
            name = self._left.pop(0)
            if name == forwarding.shards.own_name:
                if forwarding.can_serve():
                    return False
                self._troubles.append(f"{name}, this one, has no worker")
                continue
            peer = forwarding.peers[name]
            if peer.problem is not None:
                self._troubles.append(f"{name}: {peer.problem}")
                continue
            self._send(peer)
            return True
        return False

    def _send(self, peer: Peer) -> None:
        now = self._forwarding.clock()
        self._peer, self._sent_ns = peer, now
        # The peer counts the SLO from our first sight of the request, and leaves time for the way.
        spent_ns = now - self._exchange.arrival_ns + peer.hop_ns
        lines = [b"POST %b HTTP/1.1\r\nhost: %b\r\n" % (_path(self._target), peer.authority)]
        for name, value in self._headers:
            if name not in NOT_SENT:
                lines += (name, b": ", value, b"\r\n")
        lines.append(
            b"content-length: %d\r\nx-request-id: %b\r\n%b: %d\r\n\r\n"
            % (
                len(self._body),
                self._exchange.request_id.encode("latin-1"),
                HOP,
                spent_ns // 1000,
            )
        )
        head = b"".join(lines)
        self._call = Call(head, self._body, on_reply=self._on_reply, on_trouble=self._on_trouble)
        peer.send(self._call)

    def _on_reply(self, reply: PeerReply) -> None:
        forwarding, peer = self._forwarding, self._peer
        now = forwarding.clock()
        took_ns, slo_ns = parse_told(reply.header(HOP))
        if took_ns and self._call is not None and not self._call.is_fresh:
            peer.note_hop(max(0, now - self._sent_ns - took_ns))
        reason = reply.header(READY_REASON) or b""
        if reply.status == 503 and (reason in _OF_REPLICA or reason == _NOT_ITS_MODEL):
            if reason != _NOT_ITS_MODEL:
                peer.mark_unready(reason.decode())
            self._refusal = reply
            self._go_on(f"it says {reason.decode()}")
            return
        latency_ns = now - self._exchange.arrival_ns
        if reply.status == 200 and 0 < slo_ns < latency_ns:
            self._exchange.slo_ns = slo_ns
            self._expire(f"{peer.name} answered {latency_ns / MILLISECOND_NS:.3f} ms after arrival")
            return
        self._relay(reply)

    def _relay(self, reply: PeerReply) -> None:
        headers = [header for header in reply.headers if header[0] not in NOT_RELAYED]
        headers.append((b"content-length", b"%d" % len(reply.body)))
        headers.append((REPLICA, self._peer.name.encode()))
        self._end("answered")
        start = {"type": "http.response.start", "status": reply.status, "headers": headers}
        self._exchange.relay((start, {"type": "http.response.body", "body": reply.body}))

    def _on_trouble(self, why: str) -> None:
        self._go_on(why)

    def _go_on(self, why: str) -> None:
        """With the next; the request itself changes nothing, so that it may be asked twice."""
        self._troubles.append(f"{self._peer.name}: {why}")
        self._forwarding.results[self._peer.name, "failed"] += 1
        self._call = None
        if self._send_to_next():
            return
        refusal = self._refusal
        if self._is_here():
            self._leave()
            self._serve_here()
        elif refusal is not None:
            self._relay(refusal)
        else:
            self._end("unavailable")
            self._exchange.refuse(self._unavailable())

    def _unavailable(self) -> RequestError:
        return RequestError(
            "replica_unavailable",
            f"no replica that has model {self._model[:200]} answers: {'; '.join(self._troubles)}",
            retry_after_ns=_RETRY_AFTER_NS,
        )

    def _on_late(self) -> None:
        self._timer = None
        self._expire(f"{self._peer.name} has not answered")

    def _expire(self, what: str) -> None:
        self._end("late")
        slo_ms = self._exchange.slo_ns / MILLISECOND_NS
        detail = f"{what}, the SLO is {slo_ms:.3f} ms"
        self._exchange.on_done(Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, detail), None)

    def _leave(self) -> None:
        self._stop_timer()
        self._exchange.forward = None
        self._forwarding.forget(self)

    def _end(self, result: str) -> None:
        self._leave()
        if result != "unavailable":
            self._forwarding.results[self._peer.name, result] += 1
        call, self._call = self._call, None
        if call is not None:
            call.abandon()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _path(target: Target) -> bytes:
    if target is QUOTE:
        return QUOTE_PATH.encode()
    if target.model is None:
        return INFER_PATH.encode()
    version = "" if target.version is None else f"/versions/{quote(target.version, safe='')}"
    return f"/v2/models/{quote(target.model, safe='')}{version}/infer".encode()
