"""One inference request at the HTTP side: from its first sight to the one answer it gets.

It owns what is known of the request and the writing of its answer. An answer that comes while the
request's task waits for a disconnect is written at once, from the dispatcher's callback, by driving
the server's `send` by hand: no future, and no turn of the event loop, between a result and the
socket. It must never write twice, and never let an answer's failure reach the dispatcher.
"""

import asyncio
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

import msgspec

from gateway.dispatcher import Outputs
from gateway.errors import (
    CLOSE,
    CLOSES_CONNECTION,
    PROBLEM_JSON,
    ErrorReplies,
    ErrorReply,
    RequestError,
)
from gateway.http.request_body import BodyMemory, Message
from gateway.inference.answer_sharing import HIT, Ask
from gateway.inference.body import HEADER_LENGTH, InferReply, PhaseFigures, SloFigures
from gateway.inference.quoting import reply_of
from gateway.inference.reply_encoding import compressed
from gateway.inference.tensors import ModelPlan, OutputChoice
from gateway.lifecycle import Lifecycle
from gateway.metrics.metrics import Metrics
from gateway.metrics.tallies import SERVED, ModelTallies
from gateway.observability.answered import Answered, OnAnswered, OwnAnswer
from gateway.observability.trace_context import TRACERESPONSE, TraceContext
from gateway.replicas.hop import Hop, parse_spent
from gateway.tenants.tenant import Tenant
from gateway.views import Clock
from scheduler.events import Cancelled, Expired, Failed, Outcome, Quote, Reason, Rejected, Served
from scheduler.priority import NORMAL
from scheduler.spec import MILLISECOND_NS

logger = logging.getLogger(__name__)

Send = Callable[[Message], Coroutine[Any, Any, None]]
Reply = tuple[Message, Message]  # http.response.start, http.response.body
# Takes a reply, and calls back when it has been handed to the transport: at once, mostly.
Write = Callable[[Reply, Callable[[], None]], None]

CACHE = b"x-cache"
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
# What an outcome other than Served is called in metrics.
_OUTCOME_NAMES = {Rejected: "rejected", Expired: "expired", Failed: "failed"}
# The gateway's own refusals that are no fault of the request.
_REJECTIONS = frozenset(
    {
        "overloaded",
        "starting",
        "draining",
        "model_unavailable",
        "quota_exceeded",
        "replica_unavailable",
    }
)

# What no load and no device would change: asking it costs the tenant's quota.
_NEVER = frozenset({Reason.SLO_INFEASIBLE_EVER, Reason.LARGER_THAN_CACHE})

_GONE_READING = "its client went away before its body was there"

_encoder = msgspec.json.Encoder()


class Forward(Protocol):
    """gateway.replicas.forwarding: the request on its way to another replica."""

    def abandon(self) -> None: ...


class Surroundings(Protocol):
    """What an exchange needs of its endpoint."""

    clock: Clock
    errors: ErrorReplies
    metrics: Metrics
    memory: BodyMemory
    writing: set[asyncio.Task[None]]
    lifecycle: Lifecycle
    on_answered: OnAnswered | None

    def release(self, exchange: "Exchange") -> None: ...
    def cancel(self, exchange: "Exchange") -> None: ...


class Exchange:
    """States: unanswered; answered with `reply` yet to be sent by the request's own task; sent."""

    __slots__ = (
        "arrival_ns",
        "ask",
        "cache",
        "choices",
        "client_id",
        "closes_connection",
        "encoding",
        "forward",
        "group",
        "has_entered",
        "held_bytes",
        "held_device_ns",
        "hop",
        "is_answered",
        "is_ended",
        "is_gone",
        "key",
        "media_type",
        "plan",
        "priority",
        "reply",
        "request_id",
        "rows",
        "send",
        "sink_id",
        "slo_ns",
        "surroundings",
        "tallies",
        "task",
        "tenant",
        "trace",
        "was_executing",
        "was_refused",
        "write",
    )

    def __init__(
        self,
        surroundings: Surroundings,
        send: Send,
        request_id: str,
        arrival_ns: int,
        media_type: bytes = PROBLEM_JSON,
        write: Write | None = None,
    ) -> None:
        """With `write` instead of `send` no task stands behind it: see `hang_up`."""
        self.surroundings = surroundings
        self.send = send
        self.write = write
        self.request_id = request_id
        self.arrival_ns = arrival_ns
        self.media_type = media_type  # of error bodies
        self.held_bytes = 0
        self.tenant: Tenant | None = None  # None where nobody has a key
        self.priority = NORMAL
        self.has_entered = False  # takes a place among the tenant's open requests
        self.was_refused = False  # for no fault of its own
        self.held_device_ns = 0  # of the tenant's quota
        self.sink_id: int | None = None  # the dispatcher's id, once it has the request
        # Where the answer comes from, of a model whose answers are shared (answer_sharing.py).
        self.cache: str | None = None
        self.ask: Ask | None = None
        self.group: str | None = None  # that was asked for; `plan` is then of a member
        self.tallies: ModelTallies | None = None  # once the model is known
        self.key = ""  # what the scheduler calls it, once it is known
        self.rows = 0  # once they are known
        self.reply: Reply | None = None
        self.is_answered = False
        self.is_gone = False
        self.was_executing = False  # when its client went away
        self.trace: TraceContext | None = None  # None where the client sent none
        self.hop: Hop | None = None  # of a request that came from a peer
        self.forward: Forward | None = None  # while another replica is asked
        self.is_ended = False
        self.closes_connection = False
        self.encoding: bytes | None = None  # of the reply: gzip, deflate or neither
        self.task: asyncio.Task[Any] | None = None  # set while the task waits for a disconnect
        self.plan: ModelPlan
        self.choices: tuple[OutputChoice, ...]
        self.client_id: str | None
        self.slo_ns = 0  # until it is known

    def enter_from_peer(self, spent: bytes) -> None:
        """Its SLO runs since it was with a peer. Raises RequestError(bad_request)."""
        spent_ns = parse_spent(spent)
        self.hop = Hop(self.arrival_ns)
        self.arrival_ns -= spent_ns

    def relay(self, reply: Reply) -> None:
        """The answer of a peer, which counts it and tells of it."""
        if not self.is_answered:
            self.trace = None
            self._answer(reply)

    def hold(self, num_bytes: int) -> None:
        """Counts bytes of the body in. Raises RequestError(overloaded) over the gateway's limit."""
        self.surroundings.memory.take(num_bytes)
        self.held_bytes += num_bytes

    def abandon(self, reason: str = "reading", detail: str = _GONE_READING) -> None:
        """The client went away before the dispatcher had the request, or after a 408."""
        if not self.is_answered:
            self.is_answered = True
            self._count("cancelled", reason)
            self._tell(OwnAnswer("cancelled", reason, detail), self.surroundings.clock())

    def on_done(self, outcome: Outcome, outputs: Outputs | None) -> None:
        """The dispatcher's callback: exactly once."""
        if self.is_answered:
            return
        if self.is_gone:
            self._count("cancelled", "executing" if self.was_executing else "queued")
            self._tell(outcome, self.surroundings.clock())
            self.is_answered = True
            return
        try:
            reply = self._reply_of(outcome, outputs)
        except Exception:  # ours: the client is still owed an answer, the dispatcher its calm
            told = "request %s: no reply could be made of %r"
            logger.exception(told, self.request_id, outcome, extra=self._ids())
            reply = self._refusal("failed", Reason.INTERNAL_ERROR.value, "the gateway failed")
        self._answer(reply)

    def on_quote(self, count: int, quote: Quote | Failed, now: int) -> None:
        """The dispatcher's answer to a question about `count` requests: exactly once."""
        if self.is_answered:
            return
        if self.is_gone:
            self.is_answered = True
            return
        if isinstance(quote, Failed):
            self._answer(self._reply_of(quote, None))
            return
        told = reply_of(
            quote,
            now,
            spec=self.plan.spec,
            errors=self.surroundings.errors,
            arrival_ns=self.arrival_ns,
            slo_ns=self.slo_ns,
            count=count,
            client_id=self.client_id,
            group=self.group,
        )
        if self.tallies is not None:
            self.tallies.quotes[told.refusal.reason if told.refusal is not None else ""] += 1
        body = _encoder.encode(told)
        headers = [
            _JSON,
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self.request_id.encode("latin-1")),
        ]
        self.slo_ns = 0  # it is what was asked about: the answer itself has none to keep on its way
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        self._answer((start, {"type": "http.response.body", "body": body}))

    def refuse(self, error: RequestError) -> None:
        """The gateway's own no."""
        if self.is_answered:
            return
        self.was_refused = error.reason in _REJECTIONS
        kind = "rejected" if self.was_refused else "invalid"
        self._count(kind, error.reason)
        if self.surroundings.on_answered is not None:
            own = OwnAnswer(kind, error.reason, error.detail)
            self._tell(own, self.surroundings.clock())
        reply = self.surroundings.errors.of_error(
            error, request_id=self.request_id, media_type=self.media_type
        )
        self.closes_connection = error.reason in CLOSES_CONNECTION
        self._answer(_messages(reply))

    def end(self) -> None:
        """Ends an answer that was sent as if more came; the server closes the connection. Once."""
        if not self.is_ended:
            self.is_ended = True
            self._drive(self.send({"type": "http.response.body", "body": b""}))

    def fail(self) -> None:
        """Our own bug: whoever is still unanswered gets a 500."""
        if not self.is_answered:
            reason = Reason.INTERNAL_ERROR.value
            self._answer(self._refusal("failed", reason, "the gateway failed on this request"))

    def hang_up(self) -> None:
        """The client of an exchange without a task went away."""
        if not self.is_answered:
            self.is_gone = True
            self._release()
            self.surroundings.cancel(self)

    def _release(self) -> None:
        self.surroundings.release(self)

    def _answer(self, reply: Reply) -> None:
        self.is_answered = True
        if self.trace is not None:
            reply[0]["headers"].append((TRACERESPONSE, self.trace.response()))
        if self.hop is not None:
            told = self.hop.told(now=self.surroundings.clock(), slo_ns=self.slo_ns)
            reply[0]["headers"].append(told)
        if self.write is not None:
            self.write(reply, self._release)
            return
        # Without ASGI the connection itself says so, which knows whether more was asked of it.
        if self.surroundings.lifecycle.is_ending and CLOSE not in reply[0]["headers"]:
            reply[0]["headers"].append(CLOSE)
        if self.task is None:
            self.reply = reply  # its own task is running and sends it
            return
        self._drive(_write(self.send, reply))

    def _drive(self, writing: Coroutine[Any, Any, None]) -> None:
        """Writes outside of the request's own task: at once where the server takes it at once."""
        try:
            yielded = writing.send(None)
        except StopIteration:
            return
        except Exception:
            told = "request %s: its answer could not be written"
            logger.exception(told, self.request_id, extra=self._ids())
            if self.task is not None:
                self.task.cancel()  # the server closes the connection
            return
        # The client reads slower than it is answered: a task waits for it.
        task = asyncio.get_running_loop().create_task(_go_on(writing, yielded))
        self.surroundings.writing.add(task)
        task.add_done_callback(self.surroundings.writing.discard)

    def _reply_of(self, outcome: Outcome, outputs: Outputs | None) -> Reply:
        if type(outcome) is Served and outputs is not None:
            latency_ns = self.surroundings.clock() - self.arrival_ns
            if latency_ns <= self.slo_ns:
                return self._success(outcome, outputs, latency_ns)
            outcome = Expired(  # never 200 on a miss, however late it shows
                Reason.DEADLINE_EXCEEDED_EXECUTING,
                f"the outputs came {latency_ns / MILLISECOND_NS:.3f} ms after arrival, "
                f"the SLO is {self.slo_ns / MILLISECOND_NS:.3f} ms",
            )
        if isinstance(outcome, Served | Cancelled):
            raise RuntimeError(f"{type(outcome).__name__} does not fit a waiting client")
        self.was_refused = type(outcome) is Rejected and outcome.reason not in _NEVER
        self._count(_OUTCOME_NAMES[type(outcome)], outcome.reason.value)
        self._tell(outcome, self.surroundings.clock())
        return _messages(
            self.surroundings.errors.of_outcome(
                outcome,
                request_id=self.request_id,
                slo_ns=self.slo_ns,
                media_type=self.media_type,
            )
        )

    def _success(self, served: Served, outputs: Outputs, latency_ns: int) -> Reply:
        spec = self.plan.spec
        slo_ns = self.slo_ns
        written, binary = self.plan.write_outputs(self.choices, outputs.tensors, outputs.views)
        body = _encoder.encode(
            InferReply(
                spec.name if self.group is None else self.group,
                spec.version,
                written,
                SloFigures(
                    slo_ns / MILLISECOND_NS,
                    latency_ns / MILLISECOND_NS,
                    (slo_ns - latency_ns) / MILLISECOND_NS,
                    served.predicted_ns / MILLISECOND_NS,
                    served.is_cold_start,
                ),
                PhaseFigures(
                    served.queue_ns / MILLISECOND_NS,
                    served.load_ns / MILLISECOND_NS,
                    served.input_ns / MILLISECOND_NS,
                    served.exec_ns / MILLISECOND_NS,
                    served.output_ns / MILLISECOND_NS,
                ),
                self.client_id,
                outputs.energy_mj,
                self.cache,
                None if self.group is None else spec.name,
            )
        )
        request_id = (b"x-request-id", self.request_id.encode("latin-1"))
        if binary:
            json_length = b"%d" % len(body)
            body = b"".join((body, *binary))
            headers = [
                _BINARY,
                (b"content-length", b"%d" % len(body)),
                (HEADER_LENGTH, json_length),
                request_id,
            ]
        else:
            headers = [_JSON, (b"content-length", b"%d" % len(body)), request_id]
        if self.cache is not None:
            headers.append((CACHE, self.cache.encode()))
        if self.encoding is not None:
            body = _encoded(body, self.encoding, headers)
        if self.tallies is not None:
            if self.cache == HIT:
                self.tallies.observe_hit(latency_ns=latency_ns, slo_ns=slo_ns)
            else:
                self.tallies.observe_served(served, latency_ns=latency_ns, slo_ns=slo_ns)
        if self.tenant is not None:
            self.tenant.outcomes[SERVED] += 1
        self._tell(served, self.arrival_ns + latency_ns)
        return (
            {"type": "http.response.start", "status": 200, "headers": headers},
            {"type": "http.response.body", "body": body},
        )

    def _refusal(self, outcome: str, reason: str, detail: str) -> Reply:
        self._count(outcome, reason)
        self._tell(OwnAnswer(outcome, reason, detail), self.surroundings.clock())
        return _messages(
            self.surroundings.errors.build(
                reason, detail, request_id=self.request_id, media_type=self.media_type
            )
        )

    def _ids(self) -> dict[str, str]:
        """For the log, as gateway.observability.request_log has them."""
        trace_id = {} if self.trace is None else {"trace_id": self.trace.trace_id}
        return {"request_id": self.request_id, **trace_id}

    def _tell(self, outcome: Outcome | OwnAnswer, now: int) -> None:
        on_answered = self.surroundings.on_answered
        if on_answered is None:
            return
        tenant = self.tenant
        on_answered(
            Answered(
                self.request_id,
                self.sink_id or 0,
                self.key,
                "" if tenant is None else tenant.name,
                self.arrival_ns,
                self.slo_ns,
                now,
                outcome,
                self.rows,
                self.cache,
                self.trace,
            )
        )

    def _count(self, outcome: str, reason: str) -> None:
        if self.tenant is not None:
            self.tenant.outcomes[outcome, reason] += 1
        latency_ns = self.surroundings.clock() - self.arrival_ns
        if self.tallies is None:
            self.surroundings.metrics.observe_unnamed(outcome, reason, latency_ns=latency_ns)
        else:
            self.tallies.observe_refused(outcome, reason, latency_ns=latency_ns)


def _messages(reply: ErrorReply) -> Reply:
    return (
        {"type": "http.response.start", "status": reply.status, "headers": reply.headers},
        {"type": "http.response.body", "body": reply.body},
    )


def _encoded(body: bytes, encoding: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The header length stays that of the JSON before it was compressed, as for requests."""
    packed = compressed(body, encoding)
    if packed is None:
        return body
    headers[1] = (b"content-length", b"%d" % len(packed))
    headers.append((b"content-encoding", encoding))
    return packed


async def no_send(message: Message) -> None:
    """Stands for `send` where replies go through `write`."""
    raise RuntimeError(f"{message['type']} has nowhere to go")


async def _write(send: Send, reply: Reply) -> None:
    await send(reply[0])
    await send(reply[1])


async def _go_on(writing: Coroutine[Any, Any, None], yielded: Any) -> None:
    await _resumed(writing, yielded)


@types.coroutine
def _resumed(writing: Coroutine[Any, Any, None], yielded: Any) -> Generator[Any, None, None]:
    """Waits for what `writing` last waited for, then drives it to its end."""
    while True:
        yield yielded
        try:
            yielded = writing.send(None)
        except StopIteration:
            return
