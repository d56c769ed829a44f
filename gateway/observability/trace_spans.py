"""The spans of one request's trace, as plain figures: what they are called, when, of whom.

It owns names, parents and attributes. It knows nothing of OpenTelemetry's classes or of sending;
gateway/observability/traces.py makes those of it.

    infer MODEL               SERVER   arrival .. answer    a child of the caller's span
      admit, load, queue               as in GET /requests/{id}
      execute MODEL           SERVER   received .. outputs  of the worker
        input, exec, output            on its device, the whole batch's
      worker                           sent .. answer, of one that was not served
      answer
"""

import os
from collections.abc import Iterator

import msgspec

from gateway.observability.answered import Answered
from gateway.observability.phases import Passage, phases
from gateway.observability.trace_context import TraceContext
from scheduler.events import Served
from scheduler.spec import MILLISECOND_NS

Value = str | int | float | bool

# Outcomes that are somebody's fault and not a client's; a refusal is an answer.
_FAILURES = frozenset({"expired", "failed"})
_ON_DEVICE = frozenset({"input", "exec", "output"})


class SpanFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Instants in ns on the gateway's clock; ids are numbers. `worker` is the process that it is
    of, None for the gateway. `error` says what went wrong, None where nothing did.
    """

    name: str
    span_id: int
    parent_id: int | None
    begin_ns: int
    end_ns: int
    attributes: dict[str, Value] = {}
    is_server: bool = False
    worker: str | None = None
    error: str | None = None


def spans_of(answered: Answered, trace: TraceContext, passage: Passage) -> Iterator[SpanFacts]:
    """The root first."""
    root_id = int(trace.span_id, 16)
    yield SpanFacts(
        name=f"infer {answered.model}" if answered.model else "infer",
        span_id=root_id,
        parent_id=int(trace.parent_id, 16) if trace.parent_id else None,
        begin_ns=answered.arrival_ns,
        end_ns=answered.answered_ns,
        attributes=_attributes(answered),
        is_server=True,
        error=f"{answered.reason}: {answered.detail}" if answered.kind in _FAILURES else None,
    )
    told = phases(answered, passage)
    on_device = [phase for phase in told if phase[0] in _ON_DEVICE]
    execution_id = None
    for name, begin_ns, end_ns in told:
        if name in _ON_DEVICE:
            if execution_id is None:
                execution_id = new_span_id()
                yield _execution(answered, passage, on_device, execution_id, root_id)
            worker, parent_id = _worker_of(answered), execution_id
        else:
            worker, parent_id = None, root_id
        yield SpanFacts(
            name=name,
            span_id=new_span_id(),
            parent_id=parent_id,
            begin_ns=begin_ns,
            end_ns=end_ns,
            worker=worker,
        )


def new_span_id() -> int:
    """Never 0, which is no id."""
    return int.from_bytes(os.urandom(8), "big") or 1


def _execution(
    answered: Answered,
    passage: Passage,
    on_device: list[tuple[str, int, int]],
    span_id: int,
    parent_id: int,
) -> SpanFacts:
    begin_ns, attributes = on_device[0][1], dict[str, Value]()
    if passage.result is not None:
        begin_ns = min(begin_ns, passage.result.received_ns)
        if passage.result.clock_mhz:
            attributes["remontoir.device.clock_mhz"] = passage.result.clock_mhz
    if passage.infer is not None:
        infer = passage.infer
        attributes |= {
            "remontoir.action.id": infer.action_id,
            "remontoir.batch.size": infer.batch_size,
            "remontoir.batch.requests": len(infer.request_ids),
            "remontoir.exec.expected_ms": infer.expected_duration_ns / MILLISECOND_NS,
        }
    if isinstance(answered.outcome, Served):
        attributes["remontoir.batch.rows"] = answered.outcome.batch_rows
    return SpanFacts(
        name=f"execute {answered.model}",
        span_id=span_id,
        parent_id=parent_id,
        begin_ns=begin_ns,
        end_ns=on_device[-1][2],
        attributes=attributes,
        is_server=True,
        worker=_worker_of(answered),
    )


def _worker_of(answered: Answered) -> str | None:
    return answered.outcome.worker_id if isinstance(answered.outcome, Served) else None


def _attributes(answered: Answered) -> dict[str, Value]:
    outcome = answered.outcome
    told: dict[str, Value | None] = {
        "remontoir.request.id": answered.request_id,
        "remontoir.model": answered.model or None,
        "remontoir.tenant": answered.tenant or None,
        "remontoir.rows": answered.rows or None,
        "remontoir.outcome": answered.kind,
        "remontoir.reason": answered.reason,
        "remontoir.slo_ms": _ms(answered.slo_ns or None),
        "remontoir.slack_ms": _ms(answered.slack_ns),
        "remontoir.predicted_ms": _ms(answered.predicted_ns),
        "remontoir.cold_start": outcome.is_cold_start if isinstance(outcome, Served) else None,
        "remontoir.cache": answered.cache,
    }
    return {name: value for name, value in told.items() if value is not None}


def _ms(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / MILLISECOND_NS
