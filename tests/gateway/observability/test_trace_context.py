"""W3C Trace Context: what is accepted, what is passed on, and on which answers it stands."""

import re

import pytest

from gateway.observability.trace_context import TraceContext, trace_of
from tests.gateway.http_doubles import MLP_OUTPUTS, Bench, mlp_body, run, served

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def of(parent: str, *states: str) -> TraceContext | None:
    headers = [(b"traceparent", parent.encode())]
    return trace_of(headers + [(b"tracestate", state.encode("latin-1")) for state in states])


def test_the_trace_goes_on_with_a_span_of_ours() -> None:
    first, second = of(PARENT, "vendor=1"), of(PARENT)
    assert first is not None
    assert second is not None
    assert (first.trace_id, first.parent_id, first.state) == (TRACE, SPAN, "vendor=1")
    assert first.is_sampled
    assert len({SPAN, first.span_id, second.span_id}) == 3
    assert first.response().decode() == f"00-{TRACE}-{first.span_id}-01"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"01-{TRACE}-{SPAN}-01more",
        f"{PARENT},{PARENT}",
    ],
)
def test_what_is_not_valid_is_no_trace(parent: str) -> None:
    assert of(parent, "vendor=1") is None


def test_two_parents_are_none() -> None:
    assert trace_of([(b"traceparent", PARENT.encode())] * 2) is None


def test_a_later_version_begins_as_this_one_and_unknown_flags_end_here() -> None:
    trace = of(f"cc-{TRACE}-{SPAN}-ff-what-comes-later")
    assert trace is not None
    assert trace.response().decode().startswith(f"00-{TRACE}-")
    assert trace.flags == 3
    unsampled = of(f"00-{TRACE}-{SPAN}-02")
    assert unsampled is not None
    assert not unsampled.is_sampled


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ((), None),
        (("a=1, b=2",), "a=1,b=2"),
        (("a=1,,", "b=x y"), "a=1,b=x y"),
        (("tenant@vendor=1",), "tenant@vendor=1"),
        (("a=1,a=2",), None),
        (("A=1",), None),
        (("a=1=2",), None),
        (("a",), None),
        (("a=\u00e9",), None),
        ((",".join(f"k{i}=1" for i in range(32)),), ",".join(f"k{i}=1" for i in range(32))),
        ((",".join(f"k{i}=1" for i in range(33)),), None),
    ],
)
def test_a_state_is_kept_whole_or_not_at_all(states: tuple[str, ...], kept: str | None) -> None:
    trace = of(PARENT, *states)
    assert trace is not None
    assert trace.state == kept


def test_every_answer_has_an_id_and_the_trace_it_belongs_to() -> None:
    async def story() -> None:
        bench = Bench()
        headers = {"traceparent": PARENT, "x-request-id": "mine"}
        client = await bench.post(mlp_body(), headers=headers)
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        answers = [client, await bench.post(b"{", headers=headers)]
        answers += [await bench.post({"model": "mlp"}, headers=headers, path="/quote")]
        for path in ("/livez", "/models", "/models/no", "/v2", "/v2/no", "/metrics", "/docs"):
            answers.append(await bench.get(path, **headers))
        for answer in answers:
            assert answer.headers["x-request-id"] == "mine"
            assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", answer.headers["traceresponse"])
        assert {answer.status for answer in answers} == {200, 400, 404}

    run(story)


def test_without_a_trace_there_is_none_and_an_id_is_made() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body(), headers={"traceparent": "nonsense"})
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        answers = [client, await bench.get("/livez"), await bench.get("/nope")]
        for answer in answers:
            assert "traceresponse" not in answer.headers
        assert len({answer.headers["x-request-id"] for answer in answers}) == 3
        refusal = answers[2]
        assert refusal.json["request_id"] == refusal.headers["x-request-id"]

    run(story)
