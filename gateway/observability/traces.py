"""Traces: sampled requests as OpenTelemetry spans, sent to a collector (OTLP over HTTP).

It owns which requests are traced, what is noted of them on the event loop, and the thread that
makes spans of it and sends them. Serving goes before tracing: the loop notes references; what a
slow collector cannot take is dropped, counted and said in the log, and never waited for. It is
there only with the setting `otlp_endpoint`, and needs `pip install remontoir[otel]`.

The gateway makes the worker's spans too, of the instants that come with each result: they are on
the gateway's clock already (adr/0006), so a trace has no skew, and no header has to travel.
"""

import logging
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from gateway.observability.answered import Answered
from gateway.observability.phases import Passage
from gateway.observability.trace_context import SAMPLED, TraceContext, new_span_id
from gateway.observability.trace_spans import SpanFacts, spans_of
from gateway.views import Clock
from scheduler import __version__
from scheduler.actions import Infer, InferResult
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
    WorkerLost,
)

logger = logging.getLogger(__name__)

# Sent at most so often, and so many at a time: making and encoding a trace takes the thread 0.3 ms
# of Python, so it has at most a twelfth of the core.
EXPORT_INTERVAL_S = 1.0
MAX_PER_EXPORT = 256
# How long that thread may keep Python's lock from the event loop. With Python's 5 ms the loop was
# 6.2 ms late in the median while spans were made without a break, with this 0.5 ms.
SWITCH_INTERVAL_S = 0.0002
MAX_WAITING = 4096
# A collector that is away is said once in so long.
COMPLAINT_INTERVAL_S = 60.0
CLOSE_GRACE_S = 5.0
TRACES_PATH = "/v1/traces"
NO_PARENT = ""


class TracesError(Exception):
    """Why there can be no traces: one line."""


class SpanSink(Protocol):
    """Takes spans, in a thread that may wait. Whether they were taken; never raises for long."""

    def send(self, traces: Sequence[tuple[TraceContext, list[SpanFacts]]]) -> bool: ...


class _Noted(NamedTuple):
    answered: Answered
    trace: TraceContext
    passage: Passage


class Traces:
    """Implements gateway.dispatcher.Observer. All methods but `export` are the event loop's.

    `ratio` is the share of requests that are traced where the caller has not decided it. `draw`
    gives numbers from 0 to 1.
    """

    def __init__(
        self,
        sink: SpanSink,
        *,
        ratio: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.num_dropped = 0
        self._sink = sink
        self._ratio = ratio
        self._draw = draw
        # Not yet made into spans, oldest first; None ends the thread.
        self._waiting: queue.SimpleQueue[_Noted | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closing = threading.Event()
        self._switch_interval_s = 0.0  # as it was before
        self._complained_s: float | None = None
        self._num_told_dropped = 0
        # When the scheduler heard of requests that it has not replied to, by number.
        self._heard: dict[int, int] = {}
        # All and only Infers sent whose result has not come, and when, by worker and action.
        self._sent: dict[str, dict[int, tuple[int, Infer]]] = {}
        # Of the event that is being handled: the requests that it ends, and what it says of them.
        self._ending: dict[int, int] = {}
        self._finished: tuple[int, Infer] | None = None
        self._result: InferResult | None = None

    # ------------------------------------------------------------------ on the event loop

    def begin(self) -> TraceContext | None:
        """For a request whose caller has not decided: a trace of its own, or none."""
        if self._draw() >= self._ratio:
            return None
        return TraceContext(os.urandom(16).hex(), NO_PARENT, new_span_id(), SAMPLED, None)

    def on_event(self, event: Event, now: int) -> None:
        self._ending.clear()
        self._finished = self._result = None
        if type(event) is RequestArrived:
            self._heard[event.request_id] = now
        elif type(event) is RequestsArrived:
            for arrived in event.requests:
                self._heard[arrived.request_id] = now
        elif type(event) is ActionFinished:
            result = event.result
            self._finished = self._sent.get(event.worker_id, {}).pop(result.action_id, None)
            self._result = result if isinstance(result, InferResult) else None
        elif type(event) is WorkerLost:
            self._sent.pop(event.worker_id, None)

    def on_commands(self, event: Event, commands: Sequence[Command], now: int) -> None:
        for command in commands:
            if type(command) is Reply:
                heard_ns = self._heard.pop(command.request_id, None)
                if heard_ns is not None:
                    self._ending[command.request_id] = heard_ns
            elif type(command) is Send and type(command.action) is Infer:
                of_worker = self._sent.setdefault(command.worker_id, {})
                of_worker[command.action.action_id] = (now, command.action)

    def note(self, answered: Answered) -> None:
        """A request has its answer. Listens where gateway.observability.recent_requests does."""
        trace = answered.trace
        if trace is None or not trace.is_sampled:
            return
        if self._waiting.qsize() >= MAX_WAITING:
            self.num_dropped += 1
            return
        self._waiting.put(_Noted(answered, trace, self._passage_of(answered.number)))

    def start(self) -> None:
        self._switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)  # of the whole process
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sends what is left. Waits for the collector, CLOSE_GRACE_S at most."""
        self._waiting.put(None)
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_GRACE_S)
            sys.setswitchinterval(self._switch_interval_s)
            if self._thread.is_alive():
                logger.warning("traces: the collector takes too long, the last ones are lost")

    def _passage_of(self, number: int) -> Passage:
        heard_ns = self._ending.get(number)
        if self._finished is not None and number in self._finished[1].request_ids:
            sent_ns, infer = self._finished
            return Passage(heard_ns, sent_ns, infer, self._result)
        if number:
            for of_worker in self._sent.values():
                for sent_ns, infer in of_worker.values():
                    if number in infer.request_ids:
                        return Passage(heard_ns, sent_ns, infer)
        return Passage(heard_ns)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while self.export(timeout_s=None):
            self._is_closing.wait(EXPORT_INTERVAL_S)

    def export(self, *, timeout_s: float | None = 0.0) -> bool:
        """Sends what waits, once. Waits for the first so long, None for as long as it takes. False
        once nothing can come any more.
        """
        noted: list[_Noted] = []
        is_open = True
        while len(noted) < MAX_PER_EXPORT:
            try:
                is_first = not noted
                one = self._waiting.get(is_first and timeout_s != 0.0, timeout_s)
            except queue.Empty:
                break
            if one is None:
                is_open = False
                break
            noted.append(one)
            if self._waiting.empty():
                break
        if noted:
            self._send(noted)
        return is_open

    def _send(self, noted: list[_Noted]) -> None:
        try:
            traces = [
                (trace, list(spans_of(answered, trace, passage)))
                for answered, trace, passage in noted
            ]
            is_sent = self._sink.send(traces)
        except Exception:  # ours, or the library's: no reason to stop tracing
            logger.exception("traces: %d could not be sent", len(noted))
            is_sent = False
        if not is_sent:
            self.num_dropped += len(noted)
        if self.num_dropped > self._num_told_dropped:
            self._complain()

    def _complain(self) -> None:
        now_s = time.monotonic()
        if self._complained_s is None or now_s - self._complained_s >= COMPLAINT_INTERVAL_S:
            self._complained_s = now_s
            logger.warning(
                "traces: %d dropped since the last such line: the collector does not take them",
                self.num_dropped - self._num_told_dropped,
            )
            self._num_told_dropped = self.num_dropped


class OtlpSink:
    """The SpanSink of OpenTelemetry's SDK. Raises TracesError where that is missing.

    `exporter` is OTLP over HTTP unless a test has its own. `clock` and `wall_ns` are read together,
    to tell what people's clocks showed; headers and certificates are those of the SDK's
    OTEL_EXPORTER_OTLP_* variables.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        clock: Clock,
        wall_ns: Callable[[], int] = time.time_ns,
        exporter: Any = None,
    ) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk import trace as sdk
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import SpanExportResult
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            raise TracesError(
                f"traces need OpenTelemetry: pip install 'remontoir[otel]' ({error})"
            ) from error
        self._api, self._sdk, self._results = trace, sdk, SpanExportResult
        self._resource_type = Resource
        self._scope = InstrumentationScope("remontoir", __version__)
        self._clock = clock
        self._wall_ns = wall_ns
        self._exporter = exporter or OTLPSpanExporter(endpoint=traces_url(endpoint))
        self._gateway = self._resource("remontoir-gateway", {"process.pid": os.getpid()})
        self._workers: dict[str, Any] = {}  # by id; workers come and go, so it is emptied when full

    def send(self, traces: Sequence[tuple[TraceContext, list[SpanFacts]]]) -> bool:
        offset_ns = self._wall_ns() - self._clock()
        spans = [self._span(trace, facts, offset_ns) for trace, told in traces for facts in told]
        return bool(self._exporter.export(spans) == self._results.SUCCESS)

    def _span(self, trace: TraceContext, facts: SpanFacts, offset_ns: int) -> Any:
        parent = None
        if facts.parent_id is not None:
            is_remote = format(facts.parent_id, "016x") == trace.parent_id
            parent = self._context(trace, facts.parent_id, is_remote=is_remote)
        status = self._api.Status()
        if facts.error is not None:
            status = self._api.Status(self._api.StatusCode.ERROR, facts.error)
        kind = self._api.SpanKind.SERVER if facts.is_server else self._api.SpanKind.INTERNAL
        return self._sdk.ReadableSpan(
            name=facts.name,
            context=self._context(trace, facts.span_id, is_remote=False),
            parent=parent,
            resource=self._gateway if facts.worker is None else self._worker(facts.worker),
            attributes=facts.attributes,
            kind=kind,
            status=status,
            start_time=facts.begin_ns + offset_ns,
            end_time=facts.end_ns + offset_ns,
            instrumentation_scope=self._scope,
        )

    def _context(self, trace: TraceContext, span_id: int, *, is_remote: bool) -> Any:
        return self._api.SpanContext(
            int(trace.trace_id, 16),
            span_id,
            is_remote,
            self._api.TraceFlags(trace.flags),
            self._api.TraceState.from_header([trace.state] if trace.state else []),
        )

    def _worker(self, worker_id: str) -> Any:
        found = self._workers.get(worker_id)
        if found is None:
            if len(self._workers) >= 1024:
                self._workers.clear()
            found = self._resource("remontoir-worker", {"service.instance.id": worker_id})
            self._workers[worker_id] = found
        return found

    def _resource(self, service: str, attributes: Mapping[str, object]) -> Any:
        names = {"service.name": service, "service.version": __version__, **attributes}
        return self._resource_type.create(names)


def traces_url(endpoint: str) -> str:
    """Where traces go: a collector's address, or the whole URL. Raises TracesError."""
    parts = urlsplit(endpoint)
    try:
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise TracesError(
            f"otlp_endpoint is {endpoint!r}: expected http://HOST:PORT of a collector, where OTLP "
            "over HTTP listens (4318, not 4317, which is gRPC)"
        )
    path = parts.path.rstrip("/")
    return endpoint if path else f"{parts.scheme}://{parts.netloc}{TRACES_PATH}"
