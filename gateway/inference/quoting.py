"""A quote at the HTTP side: what `POST /quote` takes, and what it and a dry run answer.

It owns the shape of both. It must never form an opinion of its own: scheduler.Scheduler.quote has
it, and the figures here are that in milliseconds from now.
"""

from typing import Annotated

import msgspec

from gateway.errors import ErrorReplies, bad_request
from gateway.http.request_body import too_large
from gateway.inference.body import InputTensor, RequestParameters
from gateway.inference.tensors import ModelPlan, ShapeClass
from gateway.metrics.metrics import name_of
from scheduler.events import Quote, Rejected
from scheduler.spec import MILLISECOND_NS, ModelSpec

# Names and shapes, no tensors.
MAX_BODY_BYTES = 1 << 16
# Each is asked for in turn, while nobody else is served: a millisecond of pure Python in all.
MAX_COUNT = 100

Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class QuoteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question. `inputs` say the shapes, without `data`; else it is about `rows` rows of the
    model's first profiled shape. `count` such requests are asked about as if they came together.
    """

    model: str
    version: str | None = None
    slo_ms: object = None
    rows: Rows | None = None
    inputs: list[InputTensor] | None = None
    count: Count = 1
    do_not_queue: bool = False
    id: str | None = None
    parameters: RequestParameters | None = None


class QuotedRefusal(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the first that would not be met would be answered, as in an error body."""

    status: int
    reason: str
    detail: str
    retry_after_ms: float | None = None
    predicted_ms: float | None = None
    load_ms: float | None = None
    min_slo_ms: float | None = None


class QuoteReply(msgspec.Struct, frozen=True, kw_only=True):
    """`predicted_ms` is from now to the end of the first one's execution, `slack_ms` what is left
    of the SLO then. None where a figure is not known; of `id` and `refusal`, where there is none.
    """

    model_name: str
    model_version: str
    id: str | None
    met: bool
    count: int
    num_met: int
    slo_ms: float
    predicted_ms: float | None
    slack_ms: float | None
    min_slo_now_ms: float | None
    min_slo_ever_ms: float | None
    cold: bool
    device: str | None
    queue_ahead: int
    refusal: QuotedRefusal | None
    variant: str | None  # of a group: whose figures these are


_decoder = msgspec.json.Decoder(QuoteBody)


def decode_quote(body: bytes) -> QuoteBody:
    """Raises RequestError: bad_request, too_large."""
    if len(body) > MAX_BODY_BYTES:
        raise too_large(f"the body has {len(body)} bytes, a quote takes {MAX_BODY_BYTES}")
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is no question for a quote: {error}") from None


def class_asked(plan: ModelPlan, asked: QuoteBody) -> ShapeClass:
    """Which kind of request it is about. Raises RequestError(bad_request)."""
    if asked.inputs is None:
        rows = 1 if asked.rows is None else asked.rows
        most = plan.spec.max_batch_rows
        if rows > most:
            raise bad_request(f"rows is {rows}, model {plan.spec.name} takes at most {most}")
        return plan.first_class(rows)
    shape_class = plan.checked_class(asked.inputs)
    if asked.rows is not None and asked.rows != shape_class.rows:
        raise bad_request(f"rows is {asked.rows}, the shapes of the inputs say {shape_class.rows}")
    return shape_class


def reply_of(
    quote: Quote,
    now: int,
    *,
    spec: ModelSpec,
    errors: ErrorReplies,
    arrival_ns: int,
    slo_ns: int,
    count: int,
    client_id: str | None,
    group: str | None = None,
) -> QuoteReply:
    """The scheduler's answer of the instant `now`, in milliseconds from then."""
    predicted_ns = None if quote.finish_ns is None else quote.finish_ns - now
    refusal = quote.refusal
    if not quote.num_met and refusal is not None and refusal.predicted_ns is not None:
        predicted_ns = arrival_ns + refusal.predicted_ns - now
    slack_ns = None if predicted_ns is None else arrival_ns + slo_ns - now - predicted_ns
    return QuoteReply(
        model_name=spec.name if group is None else group,
        model_version=spec.version,
        id=client_id,
        met=quote.num_met == count,
        count=count,
        num_met=quote.num_met,
        slo_ms=slo_ns / MILLISECOND_NS,
        predicted_ms=_ms(predicted_ns),
        slack_ms=_ms(slack_ns),
        min_slo_now_ms=_ms(quote.min_slo_now_ns),
        min_slo_ever_ms=_ms(quote.min_slo_ever_ns),
        cold=quote.is_cold,
        device=None if quote.worker_id is None else name_of(quote.worker_id),
        queue_ahead=quote.num_ahead,
        refusal=None if refusal is None else _refusal(refusal, errors),
        variant=None if group is None else spec.name,
    )


def _refusal(refusal: Rejected, errors: ErrorReplies) -> QuotedRefusal:
    reason = refusal.reason.value
    return QuotedRefusal(
        errors.status_of(reason),
        reason,
        refusal.detail,
        _ms(refusal.retry_after_ns),
        _ms(refusal.predicted_ns),
        _ms(refusal.load_ns),
        _ms(refusal.min_slo_ns),
    )


def _ms(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / MILLISECOND_NS
