"""The hot path: one inference request from ASGI to the dispatcher and back.

It owns the door, the body's way in and the answer's end: method, phase, number of open requests,
key, size, encoding. What stands in the body is gateway.inference.submission's. It must never decide
about scheduling, and costs no task or future per request: through `answer` there is none at all,
and behind ASGI its own task waits in `receive()` for the client to hang up, which is also how it
learns that the answer is out.
"""

import asyncio
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.config import MEBIBYTE, GatewayConfig
from gateway.errors import JSON, PROBLEM_JSON, ErrorReplies, RequestError
from gateway.http.request_body import (
    BodyMemory,
    ClientGone,
    Message,
    Receive,
    check_length,
    decompress,
    read_rest,
)
from gateway.http.request_ids import REQUEST_ID, RequestIds
from gateway.http.single_headers import CONTENT_ENCODING, check_single
from gateway.inference import slo
from gateway.inference.answer_sharing import Sharings
from gateway.inference.body import HEADER_LENGTH
from gateway.inference.exchange import Exchange, Reply, Send, Write, no_send
from gateway.inference.plans import Plans
from gateway.inference.reply_encoding import ACCEPT_ENCODING, encoding_of
from gateway.inference.request_flags import DO_NOT_QUEUE, DRY_RUN
from gateway.inference.submission import Submission
from gateway.inference.target import NATIVE, Target
from gateway.lifecycle import Lifecycle
from gateway.metrics.metrics import Metrics
from gateway.observability.answered import OnAnswered
from gateway.observability.trace_context import TRACEPARENT, BeginTrace, trace_of
from gateway.replicas.asked import MODEL_HEADER, asked_of
from gateway.replicas.forwarding import Forwarding
from gateway.replicas.hop import HOP
from gateway.tenants.device_time import DeviceTime
from gateway.tenants.keyring import Keyring
from gateway.variants.feedback import Feedback
from gateway.variants.groups import Groups
from gateway.versions.versions import NONE_KEPT
from gateway.views import CallLater, Clock, OnNamed, RequestSink
from scheduler.spec import MILLISECOND_NS, ModelSpec

logger = logging.getLogger(__name__)

# Where the scope tells when a request was first seen whose task was started later.
ARRIVAL_NS = "remontoir.arrival_ns"
# All and only headers that change how a request is read, or answered.
SPECIAL_HEADERS = slo.HEADERS | {
    REQUEST_ID,
    DO_NOT_QUEUE,
    DRY_RUN,
    TRACEPARENT,
    CONTENT_ENCODING,
    ACCEPT_ENCODING,
    HEADER_LENGTH,
    HOP,
    MODEL_HEADER,
}

_PHASE_DETAILS = {
    "starting": "the gateway is starting: models are being compiled or workers have not joined",
    "draining": "the gateway is stopping and takes no new requests",
}
_NO_HEADERS: Mapping[bytes, bytes] = {}

Scope = Mapping[str, Any]


class InferEndpoint:
    """`POST /infer`, and the routes of the Open Inference Protocol that name a model and a version.

    Those differ in where the name comes from, in the type of error bodies, and in raw mode.
    """

    def __init__(
        self,
        config: GatewayConfig,
        sink: RequestSink,
        catalog: Mapping[str, ModelSpec],
        *,
        clock: Clock,
        lifecycle: Lifecycle,
        metrics: Metrics,
        errors: ErrorReplies,
        request_ids: RequestIds,
        call_later: CallLater | None = None,
        on_named: OnNamed | None = None,
        keyring: Keyring | None = None,
        device_time: DeviceTime | None = None,
        sharings: Sharings | None = None,
        kept: Mapping[tuple[str, str], ModelSpec] = NONE_KEPT,
        groups: Groups | None = None,
        feedback: Feedback | None = None,
        on_answered: OnAnswered | None = None,
        begin_trace: BeginTrace | None = None,
        forwarding: Forwarding | None = None,
    ) -> None:
        """`kept` has versions beside those of the catalogue, by name and version. Without a
        keyring nobody needs a key; with one, `device_time` predicts for its quotas. `feedback`
        hears which members of `groups` have answered, `on_answered` of every request's end.
        `begin_trace` decides about requests whose caller has not. `forwarding` has the way to other
        replicas, None where there are none.
        """
        self._forwarding = forwarding
        self.on_answered = on_answered
        self._begin_trace = begin_trace
        self.clock = clock
        self.errors = errors
        self.metrics = metrics
        self.num_open = 0
        self.lifecycle = lifecycle
        self.memory = BodyMemory(max_bytes=config.max_buffered_mb * MEBIBYTE)
        # All and only answers whose client reads slower than it is written to.
        self.writing: set[asyncio.Task[None]] = set()
        self._request_ids = request_ids
        self._sink = sink
        self._call_later = call_later
        self._keyring = keyring
        self._max_open = config.max_open_requests
        self._max_body_bytes = config.max_body_mb * MEBIBYTE
        self._body_timeout_s = config.body_timeout_ms / 1000
        groups = Groups({}, catalog) if groups is None else groups
        self.plans = Plans(catalog, groups, sharings or Sharings(sink.cancel), kept)
        submission = Submission(
            sink,
            self.plans,
            clock=clock,
            metrics=metrics,
            default_slo_ns=int(config.default_slo_ms * MILLISECOND_NS),
            groups=groups,
            feedback=Feedback() if feedback is None else feedback,
            device_time=device_time,
            forwarding=forwarding,
            on_named=on_named,
        )
        self._submit, self._foresee = submission.submit, submission.foresee

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        target: Target = NATIVE,
    ) -> None:
        arrival_ns = scope.get(ARRIVAL_NS) or self.clock()
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        special = _NO_HEADERS if SPECIAL_HEADERS.isdisjoint(headers) else headers
        request_id = self._request_ids.of(special.get(REQUEST_ID))
        media_type = PROBLEM_JSON if target.model is None else JSON
        exchange = Exchange(self, send, request_id, arrival_ns, media_type)
        if special:
            _note_wishes(exchange, special, scope["headers"])
        if self._begin_trace is not None and exchange.trace is None:
            exchange.trace = self._begin_trace()
        self.num_open += 1
        is_read = False
        try:
            try:
                if len(headers) != len(scope["headers"]):
                    check_single(scope["headers"])
                self._check_door(scope["method"], headers)
                if self._keyring is not None:
                    self._let_in(exchange, self._keyring, headers)
                if self._forwarding is not None and HOP in special:
                    exchange.enter_from_peer(special[HOP])
                message = await receive()
                if not message.get("more_body", True):
                    body = message["body"]
                    exchange.hold(len(body))
                    check_length(len(body), max_bytes=self._max_body_bytes)
                else:  # or a disconnect, which has no such member
                    self._foresee(exchange, message.get("body", b""), special, target)
                    if not exchange.is_answered:
                        body = await self._read_in_time(exchange, message, receive)
                if not exchange.is_answered:
                    is_read = True
                    if special and CONTENT_ENCODING in special:
                        body = await self._decompressed(exchange, body, special[CONTENT_ENCODING])
                    if self._forwarding is None:
                        self._submit(exchange, body, special, target)
                    else:
                        told = scope["headers"]
                        self._route(self._forwarding, exchange, body, special, target, told)
            except RequestError as error:
                exchange.refuse(error)
            except ClientGone:
                exchange.abandon()
            except asyncio.CancelledError:  # the server stops, and this body is still on its way
                exchange.refuse(RequestError("draining", _PHASE_DETAILS["draining"]))
                is_read = True  # the rest will not be
            reply = exchange.reply
            if reply is not None:
                if not is_read and exchange.closes_connection:
                    await self._discard_rest(exchange, reply, receive)
                    return
                await send(reply[0])
                await send(reply[1])
            elif not exchange.is_answered:
                exchange.task = asyncio.current_task()
                while (await receive())["type"] != "http.disconnect":
                    pass  # ASGI has nothing more to say of a request whose body is complete
        except Exception:
            if not exchange.is_answered:
                exchange.task = asyncio.current_task()
                exchange.fail()
            raise
        finally:
            self.release(exchange)
            if not exchange.is_answered:
                exchange.is_gone = True
                self.cancel(exchange)

    def answer(
        self,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        write: Write,
        *,
        arrival_ns: int,
        target: Target = NATIVE,
    ) -> Exchange | None:
        """A `POST` whose body is complete, as `__call__` does it, without a task.

        `write` gets the one reply, possibly before this returns; a client that goes away before is
        the exchange's `hang_up`. None for a request that must wait for something: call it instead.
        """
        known = dict(headers)
        special = _NO_HEADERS if SPECIAL_HEADERS.isdisjoint(known) else known
        if CONTENT_ENCODING in special or len(known) != len(headers):
            return None
        request_id = self._request_ids.of(special.get(REQUEST_ID))
        media_type = PROBLEM_JSON if target.model is None else JSON
        exchange = Exchange(self, no_send, request_id, arrival_ns, media_type, write)
        if special:
            _note_wishes(exchange, special, headers)
        if self._begin_trace is not None and exchange.trace is None:
            exchange.trace = self._begin_trace()
        self.num_open += 1
        try:
            self._check_door("POST", _NO_HEADERS)  # what the body was announced as matters no more
            if self._keyring is not None:
                self._let_in(exchange, self._keyring, known)
            if self._forwarding is not None and HOP in special:
                exchange.enter_from_peer(special[HOP])
            exchange.hold(len(body))
            check_length(len(body), max_bytes=self._max_body_bytes)
            if self._forwarding is None:
                self._submit(exchange, body, special, target)
            else:
                self._route(self._forwarding, exchange, body, special, target, headers)
        except RequestError as error:
            exchange.refuse(error)
        except Exception:
            _fail(exchange)
        return exchange

    def collects_body(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether the pieces of such a request's body may be waited for before it is let in.

        Not without a valid key, and not where its tenant's requests are counted: they take memory
        from their first piece on.
        """
        if self._keyring is None:
            return True
        tenant = self._keyring.find(dict(headers))
        return tenant is not None and not tenant.is_counted

    def takes_upload(self, num_bytes: int) -> bool:
        """Whether a body that was announced with so many bytes is worth waiting for."""
        return (
            self.lifecycle.refusal_reason is None
            and self.num_open < self._max_open
            and num_bytes <= self._max_body_bytes
        )

    def answer_early(
        self,
        headers: Sequence[tuple[bytes, bytes]],
        begin: bytes,
        write: Write,
        *,
        arrival_ns: int,
        target: Target = NATIVE,
    ) -> Exchange | None:
        """A `POST` of whose body only the first piece is there: refuses it if that is certain."""
        known = dict(headers)
        if (
            HEADER_LENGTH not in known
            or self.lifecycle.refusal_reason is not None
            or (self._forwarding is not None and HOP in known)
        ):
            return None
        request_id = self._request_ids.of(known.get(REQUEST_ID))
        media_type = PROBLEM_JSON if target.model is None else JSON
        exchange = Exchange(self, no_send, request_id, arrival_ns, media_type, write)
        _note_wishes(exchange, known, headers)
        if self._begin_trace is not None and exchange.trace is None:
            exchange.trace = self._begin_trace()
        self.num_open += 1
        if self._keyring is not None:
            try:
                exchange.tenant = self._keyring.tenant_of(known)
            except RequestError:  # a key that was good when the upload began
                self.release(exchange)
                return None
        self._foresee(exchange, begin, known, target)
        if exchange.is_answered:
            return exchange
        self.release(exchange)
        return None

    @property
    def num_body_bytes(self) -> int:
        return self.memory.num_bytes

    def refuse_malformed(self, error: RequestError, write: Write, *, media_type: bytes) -> None:
        """Answers and counts bytes that are no request."""
        request_id = self._request_ids.of(None)
        exchange = Exchange(self, no_send, request_id, self.clock(), media_type, write)
        self.num_open += 1
        exchange.refuse(error)

    def release(self, exchange: Exchange) -> None:
        """The exchange takes no more room here."""
        self.num_open -= 1
        self.memory.give_back(exchange.held_bytes)
        tenant = exchange.tenant
        if tenant is not None and exchange.has_entered:
            tenant.leave(exchange.held_device_ns, was_refused=exchange.was_refused)

    def cancel(self, exchange: Exchange) -> None:
        """Nobody waits for its answer any more."""
        if exchange.forward is not None:
            exchange.forward.abandon()
            exchange.is_answered = True  # the replica that had it sees the same, and counts it
            return
        ask = exchange.ask
        sink_id = exchange.sink_id if ask is None else ask.sink_id
        if sink_id is not None:
            exchange.was_executing = self._sink.is_executing(sink_id)
        if ask is not None:
            ask.leave()  # the execution may go on for others
        elif sink_id is not None:
            self._sink.cancel(sink_id)

    def _check_door(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """What is refused before a byte of the body is read."""
        if method != "POST":
            detail = f"{method} is not answered here, POST is"
            raise RequestError("method_not_allowed", detail, allow="POST")
        phase = self.lifecycle.refusal_reason
        if phase is not None:
            raise RequestError(phase, _PHASE_DETAILS[phase])
        if self.num_open > self._max_open:
            raise RequestError(
                "overloaded", f"{self._max_open} requests are open, the most this gateway takes"
            )
        content_length = headers.get(b"content-length")
        if content_length is not None and content_length.isdigit():
            check_length(int(content_length), max_bytes=self._max_body_bytes)

    def _let_in(self, exchange: Exchange, keyring: Keyring, headers: Mapping[bytes, bytes]) -> None:
        """Before the body is looked at. Raises RequestError: unauthenticated, quota_exceeded."""
        exchange.tenant = tenant = keyring.tenant_of(headers)
        tenant.enter(self.clock())
        exchange.has_entered = True

    async def _read_in_time(self, exchange: Exchange, first: Message, receive: Receive) -> bytes:
        def on_slow() -> None:
            limit = f"{self._body_timeout_s:g} s"
            error = RequestError("timeout", f"the body was not complete after {limit}")
            exchange.refuse(error)

        exchange.task = asyncio.current_task()  # so that `on_slow` is answered at once
        call_later = self._call_later or asyncio.get_running_loop().call_later
        timer = call_later(self._body_timeout_s, on_slow)
        try:
            body = await read_rest(
                first, receive, max_bytes=self._max_body_bytes, hold=exchange.hold
            )
        finally:
            timer.cancel()
            exchange.task = None
        if exchange.is_answered:
            raise ClientGone
        return body

    async def _discard_rest(self, exchange: Exchange, reply: Reply, receive: Receive) -> None:
        """Answers, then reads on for a while before the connection is closed.

        Closing on a client that still writes resets the connection, and the answer is lost with it.
        """
        await exchange.send(reply[0])
        await exchange.send({**reply[1], "more_body": True})
        call_later = self._call_later or asyncio.get_running_loop().call_later
        timer = call_later(self._body_timeout_s, exchange.end)
        num_bytes = 0
        while num_bytes <= self._max_body_bytes:
            message = await receive()
            if not message.get("more_body", False):
                break
            num_bytes += len(message["body"])
        timer.cancel()
        exchange.end()

    async def _decompressed(self, exchange: Exchange, body: bytes, encoding: bytes) -> bytes:
        return await decompress(body, encoding, max_bytes=self._max_body_bytes, hold=exchange.hold)

    def _route(
        self,
        forwarding: Forwarding,
        exchange: Exchange,
        body: bytes,
        special: Mapping[bytes, bytes],
        target: Target,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """To the replica that has the model."""
        if exchange.hop is not None:
            try:
                self._submit(exchange, body, special, target)
            except RequestError as error:
                asked = asked_of(target, body, special) if error.reason == "not_found" else None
                if asked is not None:
                    forwarding.check_is_ours(asked.model)
                raise
            return
        asked = asked_of(target, body, special)
        # What is only passed on counts where it is served.
        exchange.was_refused = asked is not None and forwarding.forward(
            exchange,
            asked.model,
            target=target,
            headers=headers,
            body=body,
            slo_ns=asked.slo_ns,
            serve_here=functools.partial(self._serve_here, exchange, body, special, target),
        )
        if not exchange.was_refused:
            self._submit(exchange, body, special, target)

    def _serve_here(
        self, exchange: Exchange, body: bytes, special: Mapping[bytes, bytes], target: Target
    ) -> None:
        """Other replicas that have the model did not answer, and this one has it too."""
        exchange.was_refused = False
        try:
            self._submit(exchange, body, special, target)
        except RequestError as error:
            exchange.refuse(error)
        except Exception:
            _fail(exchange)


def _fail(exchange: Exchange) -> None:
    """Within an `except`."""
    ids = {"request_id": exchange.request_id}
    logger.exception("request %s broke the gateway", exchange.request_id, extra=ids)
    exchange.fail()


def _note_wishes(
    exchange: Exchange,
    special: Mapping[bytes, bytes],
    headers: Iterable[tuple[bytes, bytes]],
) -> None:
    """Of headers that say how the answer is written."""
    if ACCEPT_ENCODING in special:
        exchange.encoding = encoding_of(special[ACCEPT_ENCODING])
    if TRACEPARENT in special:
        exchange.trace = trace_of(headers)
