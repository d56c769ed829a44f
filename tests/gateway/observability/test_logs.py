"""The log: two forms, a line for each request at debug, and not a line for each refusal."""

import io
import json
import logging
import sys
from typing import Any

import pytest

from gateway.command.host_process import ServeError, start_logging
from gateway.config import LogFormat
from gateway.observability.answered import Answered, OwnAnswer
from gateway.observability.logs import LogError, formatter
from gateway.observability.request_log import BURST, RequestLog
from gateway.observability.trace_context import TraceContext
from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantSpec
from scheduler.events import Cancelled, Failed, Outcome, Reason, Rejected
from tests.gateway.http_doubles import START_NS, Bench, mlp_body, ms, run, served

FULL = OwnAnswer("rejected", "overloaded", "16384 requests are open")


class Written:
    """What a logger writes at a level, in a form."""

    def __init__(self, level: int, form: Any = "pretty") -> None:
        self.log = logging.Logger("gateway.observability.request_log", level)
        self._stream = io.StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(formatter(form))
        self.log.addHandler(handler)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


def answered(outcome: Outcome | OwnAnswer, *, at_ms: float = 3, **changes: Any) -> Answered:
    facts = {"request_id": "r1", "number": 7, "key": "mlp/2", "tenant": "", "rows": 1}
    arrival_ns = START_NS + ms(at_ms - 3)
    return Answered(
        arrival_ns=arrival_ns,
        slo_ns=ms(50),
        answered_ns=arrival_ns + ms(3),
        outcome=outcome,
        **{**facts, **changes},
    )


def test_at_debug_every_request_has_a_line() -> None:
    written = Written(logging.DEBUG)
    log = RequestLog(written.log)
    for outcome in (served(), Cancelled(), FULL):
        log.note(answered(outcome))
    told = written.lines
    assert len(told) == 3
    assert "request r1 of mlp: served after 3.0 ms of 50.0 ms" in told[0]
    assert "request r1 of mlp: cancelled after 3.0 ms of 50.0 ms" in told[1]
    assert "rejected after 3.0 ms of 50.0 ms, overloaded: 16384 requests are open" in told[2]


def test_refusals_are_sampled_and_the_others_counted() -> None:
    written = Written(logging.INFO)
    log = RequestLog(written.log)
    for _ in range(1000):
        log.note(answered(FULL, at_ms=3))
        log.note(answered(served()))
        log.note(answered(Cancelled()))
    assert len(written.lines) == BURST
    log.note(answered(OwnAnswer("invalid", "bad_request", "no JSON")))
    assert len(written.lines) == BURST + 1  # each reason has its own
    log.note(answered(FULL, at_ms=900))
    assert len(written.lines) == BURST + 1
    log.note(answered(FULL, at_ms=1900))
    assert "(996 more like it since the last such line)" in written.lines[-1]
    log.note(answered(FULL, at_ms=2000))
    log.note(answered(FULL, at_ms=2950))
    assert "(1 more like it" in written.lines[-1]
    log.note(answered(FULL, at_ms=100))  # an earlier arrival that was answered late
    assert len(written.lines) == BURST + 3


def test_by_default_only_our_failures_have_lines() -> None:
    written = Written(logging.WARNING)
    log = RequestLog(written.log)
    log.note(answered(served()))
    log.note(answered(Rejected(Reason.SLO_INFEASIBLE_NOW, "3 are queued")))
    assert written.lines == []
    log.note(answered(Failed(Reason.ENGINE_ERROR, "NaN")))
    assert "failed after 3.0 ms of 50.0 ms, engine_error: NaN" in written.lines[0]
    bare = answered(OwnAnswer("failed", "internal_error", "ours"), key="")
    log.note(bare)
    assert "request r1: failed after" in written.lines[1]


def test_a_line_of_json_has_the_figures_and_the_trace() -> None:
    pytest.importorskip("structlog")
    written = Written(logging.DEBUG, "json")
    trace = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f0", 1, None)
    RequestLog(written.log).note(answered(served(), trace=trace, tenant="team-a"))
    [line] = map(json.loads, written.lines)
    assert line.pop("timestamp").endswith("Z")
    assert line.pop("pid") > 0
    assert line == {
        "message": "request r1 of mlp: served after 3.0 ms of 50.0 ms "
        "(trace 0af7651916cd43dd8448eb211c80319c)",
        "level": "debug",
        "logger": "gateway.observability.request_log",
        "process": "gateway",
        "request_id": "r1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "00f0",
        "model": "mlp",
        "tenant": "team-a",
        "outcome": "served",
        "worker": "w#1-1",
        "slo_ms": 50.0,
        "latency_ms": 3.0,
        "slack_ms": 47.0,
    }


def test_an_exception_is_one_line_of_json() -> None:
    pytest.importorskip("structlog")
    written = Written(logging.DEBUG, "json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        written.log.exception("it %s", "broke", extra={"odd": 1j, "color_message": "\x1b"})
    [line] = map(json.loads, written.lines)
    assert (line["message"], line["level"]) == ("it broke", "error")
    assert "ValueError: two\nlines" in line["exception"]
    assert line["odd"] == "1j"
    assert "color_message" not in line


def test_keys_are_never_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    key, other = new_key(), new_key()
    tenants = {"one": TenantSpec(keys=(key.line,))}

    async def story() -> None:
        with caplog.at_level(logging.DEBUG):
            bench = Bench(tenants=tenants, on_answered=[RequestLog().note])
            for text in (key.text, other.text, f"{key.text}x"):
                for name in ("x-api-key", "authorization"):
                    value = text if name == "x-api-key" else f"Bearer {text}"
                    await bench.post(mlp_body(slo_ms=-1), headers={name: value})

    run(story)
    told = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert told.count("unauthenticated") >= 4
    assert told.count("bad_request") >= 2
    for secret in (key.text, other.text, key.text.rpartition("_")[2]):
        assert secret not in told


@pytest.mark.parametrize("form", ["pretty", "json"])
def test_an_exception_shows_no_variables_of_ours(form: LogFormat) -> None:
    pytest.importorskip("structlog")
    written = Written(logging.DEBUG, form)
    secret = new_key().text
    try:
        raise ValueError(f"not the key of {len(secret)} characters")
    except ValueError:
        written.log.exception("it broke")
    told = "\n".join(written.lines)
    assert "ValueError: not the key of" in told
    assert secret[:20] not in told


def test_json_without_structlog_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "structlog", None)
    with pytest.raises(LogError, match="needs structlog"):
        formatter("json")
    record = logging.LogRecord("a", logging.INFO, "", 0, "said %d", (1,), None)
    assert formatter("pretty").format(record).endswith(" a INFO said 1")
    with pytest.raises(ServeError, match="needs structlog") as error:
        start_logging("info", "json")
    assert error.value.exit_code == 2
