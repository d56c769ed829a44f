"""Traces: which requests are traced, what their spans are, and what a slow collector costs."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.observability.answered import Answered, OwnAnswer
from gateway.observability.phases import Passage
from gateway.observability.trace_context import TraceContext
from gateway.observability.trace_spans import SpanFacts, spans_of
from gateway.observability.traces import (
    MAX_PER_EXPORT,
    MAX_WAITING,
    OtlpSink,
    Traces,
    TracesError,
    traces_url,
)
from scheduler.actions import Code, EvictResult, Infer, InferResult, Span
from scheduler.events import (
    ActionFinished,
    Expired,
    Reason,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
    Tick,
    WorkerLost,
)
from tests.gateway.http_doubles import START_NS, Bench, ms, run, served, settle

PARENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f0", 1, "a=1")
UNSAMPLED = PARENT._replace(flags=0)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes what it is sent, or not."""

    def __init__(self) -> None:
        self.traces: list[tuple[TraceContext, list[SpanFacts]]] = []
        self.is_up = True
        self.error: Exception | None = None

    def send(self, traces: Sequence[tuple[TraceContext, list[SpanFacts]]]) -> bool:
        if self.error is not None:
            raise self.error
        if self.is_up:
            self.traces += traces
        return self.is_up


def answered(
    number: int = 1, outcome: Any = None, *, trace: TraceContext | None = PARENT
) -> Answered:
    return Answered(
        "r", number, "mlp/2", "", START_NS, ms(50), START_NS + ms(6), outcome or served(), 1,
        trace=trace,
    )  # fmt: skip


def arrived(number: int) -> RequestArrived:
    return RequestArrived(number, "mlp", START_NS, START_NS + ms(50))


def infer(action_id: int, *numbers: int) -> Infer:
    return Infer(action_id, "mlp", 4, numbers, (1,) * len(numbers), 0, 0, ms(2))


def span(begin_ms: float, end_ms: float) -> Span:
    return Span(START_NS + ms(begin_ms), START_NS + ms(end_ms), ms(end_ms - begin_ms))


def finished(action_id: int) -> ActionFinished:
    result = InferResult(
        action_id, Code.OK, "", START_NS + ms(1), span(2, 2.5), span(3, 5), span(5, 5.5), 1410
    )
    return ActionFinished("w", result)


def test_one_trace_spans_gateway_and_worker() -> None:
    passage = Passage(START_NS + ms(0.5), START_NS + ms(0.75), infer(7, 1, 2), finished(7).result)  # type: ignore[arg-type]
    told = list(spans_of(answered(), PARENT, passage))
    root = told[0]
    assert (root.name, root.is_server, root.worker, root.error) == ("infer mlp", True, None, None)
    assert (root.span_id, root.parent_id) == (0xF0, 0xB7AD6B7169203331)
    assert (root.begin_ns, root.end_ns) == (START_NS, START_NS + ms(6))
    assert root.attributes == {
        "remontoir.request.id": "r",
        "remontoir.model": "mlp",
        "remontoir.rows": 1,
        "remontoir.outcome": "served",
        "remontoir.slo_ms": 50.0,
        "remontoir.slack_ms": 44.0,
        "remontoir.predicted_ms": 5.0,
        "remontoir.cold_start": False,
    }
    assert [(one.name, one.worker) for one in told[1:]] == [
        ("admit", None),
        ("queue", None),
        ("execute mlp", "w#1-1"),
        ("input", "w#1-1"),
        ("exec", "w#1-1"),
        ("output", "w#1-1"),
        ("answer", None),
    ]
    execution = told[3]
    assert (execution.begin_ns, execution.end_ns) == (START_NS + ms(1), START_NS + ms(5.5))
    assert execution.attributes == {
        "remontoir.device.clock_mhz": 1410,
        "remontoir.action.id": 7,
        "remontoir.batch.size": 4,
        "remontoir.batch.requests": 2,
        "remontoir.batch.rows": 1,
        "remontoir.exec.expected_ms": 2.0,
    }
    parents = [one.parent_id for one in told[1:]]
    assert parents == [0xF0] * 3 + [execution.span_id] * 3 + [0xF0]
    assert len({one.span_id for one in told}) == 8


def test_what_was_not_served_has_the_phases_it_reached() -> None:
    late = answered(outcome=Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, "still executing"))
    told = list(spans_of(late, PARENT, Passage(START_NS, START_NS + 5, infer(7, 1))))
    assert [one.name for one in told] == ["infer mlp", "admit", "queue", "worker"]
    assert told[0].error == "deadline_exceeded_executing: still executing"
    own = Answered(
        "r", 0, "", "", START_NS, 0, START_NS + 1, OwnAnswer("invalid", "bad_request", "no JSON")
    )
    root, admit = spans_of(own, PARENT._replace(parent_id=""), Passage())
    assert (root.name, root.parent_id, root.error, admit.name) == ("infer", None, None, "admit")
    known_by_figures = list(spans_of(answered(), PARENT, Passage()))
    assert known_by_figures[3].attributes == {"remontoir.batch.rows": 1}


def test_a_passage_is_noted_while_events_go_through() -> None:
    collector = Collector()
    traces = Traces(collector, ratio=0)
    first = [Send("w", infer(1, 1, 2)), Send("v", infer(1, 3))]
    for event, commands in (
        (RequestsArrived((arrived(1), arrived(2), arrived(3))), first),
        (arrived(4), []),
        (ActionFinished("w", EvictResult(99, Code.OK)), []),
    ):
        traces.on_event(event, START_NS + ms(0.5))
        traces.on_commands(event, commands, START_NS + ms(0.5))
    event = finished(1)
    traces.on_event(event, START_NS + ms(6))
    traces.on_commands(event, [Reply(1, served()), Reply(2, served())], START_NS + ms(6))
    traces.note(answered(1))
    traces.note(answered(2, trace=UNSAMPLED))
    traces.note(answered(2, trace=None))
    late = Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, "late")
    traces.on_event(Tick(), START_NS + ms(7))
    traces.on_commands(Tick(), [Reply(3, late), Reply(4, late)], START_NS + ms(7))
    traces.note(answered(3, late))
    traces.note(answered(4, late))
    traces.note(answered(0, late))
    lost = WorkerLost("v", "silent")
    traces.on_event(lost, START_NS + ms(8))
    traces.on_commands(lost, [], START_NS + ms(8))
    traces.note(answered(3, late))
    assert traces.export()
    names = [[one.name for one in told] for _, told in collector.traces]
    assert "exec" in names[0]
    assert names[1] == ["infer mlp", "admit", "queue", "worker"]
    assert names[2] == ["infer mlp", "admit", "queue"]
    assert names[3] == ["infer mlp", "admit"]
    assert names[4] == ["infer mlp", "admit", "queue"]  # its worker's loss is all that is known
    admit = collector.traces[0][1][1]
    assert (admit.begin_ns, admit.end_ns) == (START_NS, START_NS + ms(0.5))


def test_the_caller_decides_and_else_the_ratio() -> None:
    draws = iter([0.2, 0.3])
    traces = Traces(Collector(), ratio=0.25, draw=lambda: next(draws))
    begun = traces.begin()
    assert begun is not None
    assert (len(begun.trace_id), len(begun.span_id), begun.parent_id) == (32, 16, "")
    assert begun.is_sampled
    assert traces.begin() is None


def test_a_collector_that_is_away_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    traces = Traces(collector, ratio=1)
    for _ in range(MAX_WAITING + 3):
        traces.note(answered())
    assert traces.num_dropped == 3
    collector.is_up = False
    with caplog.at_level(logging.WARNING):
        assert traces.export()
        collector.error = ValueError("no")
        assert traces.export()
    assert traces.num_dropped == 3 + 2 * MAX_PER_EXPORT
    told = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert told == [
        f"traces: {3 + MAX_PER_EXPORT} dropped since the last such line: the collector does not "
        "take them"
    ]
    collector.is_up, collector.error = True, None
    assert traces.export()
    assert len(collector.traces) == MAX_PER_EXPORT


def test_the_thread_sends_what_is_left_and_ends() -> None:
    collector = Collector()
    traces = Traces(collector, ratio=1)
    traces.start()
    traces.note(answered())
    traces.note(answered())
    traces.close()
    assert len(collector.traces) == 2
    unused = Traces(collector, ratio=1)
    unused.close()
    assert not unused.export()


def test_an_answer_tells_which_trace_it_is_in() -> None:
    async def story() -> None:
        collector = Collector()
        traces = Traces(collector, ratio=1)
        bench = Bench(on_answered=[traces.note], begin_trace=traces.begin)
        client = await bench.post(b"{", headers={"x-request-id": "own"})
        _, trace_id, span_id, flags = client.headers["traceresponse"].split("-")
        assert flags == "01"
        assert (await bench.get("/requests/own")).json["trace_id"] == trace_id
        client = await bench.post(b"{", headers={"traceparent": TRACEPARENT})
        assert client.headers["traceresponse"].startswith(TRACEPARENT[:35])
        await bench.post(b"{", headers={"traceparent": TRACEPARENT[:-1] + "0"})
        await settle()
        traces.export()
        assert [trace.trace_id for trace, _ in collector.traces] == [trace_id, TRACEPARENT[3:35]]
        assert collector.traces[0][1][0].span_id == int(span_id, 16)

    run(story)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://[::1]:4318", "https://[::1]:4318/v1/traces"),
        ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
    ],
)
def test_an_address_becomes_a_url(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "grpc://h:4317", "http://", "http://h:x"])
def test_an_address_that_cannot_be_meant_is_named(endpoint: str) -> None:
    with pytest.raises(TracesError, match=r"otlp_endpoint is .* expected http://HOST:PORT"):
        traces_url(endpoint)


def test_spans_of_the_sdk_have_the_figures() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="make install has no extra `otel`")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    sink = OtlpSink(
        "http://h:4318",
        clock=lambda: START_NS,
        wall_ns=lambda: START_NS + ms(1000),
        exporter=exporter,
    )
    late = answered(outcome=Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, "late"))
    own = PARENT._replace(parent_id="", state=None)
    told = [(PARENT, list(spans_of(answered(), PARENT, Passage())))]
    told += [(own, list(spans_of(late, own, Passage())))]
    assert sink.send(told)
    spans = exporter.get_finished_spans()
    root, execution, failed = spans[0], spans[3], spans[len(told[0][1])]
    assert root.name == "infer mlp"
    assert root.start_time == START_NS + ms(1000)
    assert root.parent.span_id == 0xB7AD6B7169203331
    assert root.parent.is_remote
    assert format(root.context.trace_id, "032x") == PARENT.trace_id
    assert root.context.trace_state["a"] == "1"
    assert root.kind.name == "SERVER"
    assert root.resource.attributes["service.name"] == "remontoir-gateway"
    assert execution.resource.attributes["service.name"] == "remontoir-worker"
    assert execution.resource.attributes["service.instance.id"] == "w#1-1"
    assert execution.parent.span_id == 0xF0
    assert not execution.parent.is_remote
    assert failed.parent is None
    assert failed.status.status_code.name == "ERROR"


def test_without_the_sdk_the_reader_is_told_what_to_install() -> None:
    try:
        import opentelemetry.sdk  # noqa: F401
    except ImportError:
        with pytest.raises(TracesError, match=r"pip install 'remontoir\[otel\]'"):
            OtlpSink("http://h:4318", clock=lambda: 0)
