"""One table: reason → status, title, Retry-After; and the error body every refusal has.

It owns what an HTTP client sees when the answer is no. It must never decide whether the answer is
no. The table is walked by tests/test_contract.py against the core's reasons and openapi.yaml
(adr/0007).
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from scheduler.events import Expired, Failed, Reason, Rejected
from scheduler.spec import MILLISECOND_NS, SECOND_NS

Headers = list[tuple[bytes, bytes]]
CONNECTION = b"connection"
CLOSE = (CONNECTION, b"close")
PROBLEM_JSON = b"application/problem+json"
JSON = b"application/json"  # what clients of the Open Inference Protocol need to show the text
MAX_DETAIL = 500  # characters: several lines of a terminal, no more of what a client sent
TYPE_PREFIX = "urn:remontoir:error:"


class Problem(NamedTuple):
    """A row. `is_shed`: its status is the `shed_status` setting. `may_retry`: has Retry-After."""

    status: int
    title: str
    may_retry: bool = False
    is_shed: bool = False


PROBLEMS: dict[str, Problem] = {
    # from the core (scheduler.events.Reason)
    Reason.SLO_INFEASIBLE_NOW.value: Problem(
        429, "The SLO cannot be met at the present load", may_retry=True, is_shed=True
    ),
    Reason.COLD_MODEL.value: Problem(
        429, "The weights cannot be paged in before the deadline", may_retry=True, is_shed=True
    ),
    Reason.SLO_INFEASIBLE_EVER.value: Problem(
        422, "The SLO is shorter than the model's best case, even idle and warm"
    ),
    Reason.WOULD_QUEUE.value: Problem(
        429, "The request would queue, and asked not to", may_retry=True, is_shed=True
    ),
    Reason.OVERLOADED.value: Problem(503, "Too many requests are waiting", may_retry=True),
    Reason.WORKER_LOST.value: Problem(
        503, "The worker was lost and no other can make it in time", may_retry=True
    ),
    Reason.MODEL_UNAVAILABLE.value: Problem(503, "The model cannot be served"),
    Reason.LARGER_THAN_CACHE.value: Problem(422, "The weights are larger than the weights cache"),
    Reason.DEADLINE_EXCEEDED_QUEUED.value: Problem(504, "The deadline passed before execution"),
    Reason.DEADLINE_EXCEEDED_EXECUTING.value: Problem(504, "The deadline passed during execution"),
    Reason.NO_WORKER.value: Problem(503, "No live worker", may_retry=True),
    Reason.ENGINE_ERROR.value: Problem(500, "The engine failed on this input"),
    Reason.INVALID_INPUT.value: Problem(400, "The worker found the input invalid"),
    Reason.INTERNAL_ERROR.value: Problem(500, "The gateway failed"),
    # from the gateway's own door
    "starting": Problem(503, "The gateway is starting", may_retry=True),
    "draining": Problem(503, "The gateway is draining", may_retry=True),
    "replica_unavailable": Problem(503, "No replica that has the model answers", may_retry=True),
    "unauthenticated": Problem(401, "A valid API key is needed"),
    "forbidden": Problem(403, "The API key does not allow this"),
    "slo_below_tenant_minimum": Problem(403, "The SLO is shorter than the tenant may ask for"),
    "quota_exceeded": Problem(429, "The tenant is over its quota", may_retry=True),
    "bad_request": Problem(400, "The request is malformed"),
    "not_found": Problem(404, "No such model, version, request or route"),
    "method_not_allowed": Problem(405, "The route does not have this method"),
    "timeout": Problem(408, "The request came too slowly"),
    "too_large": Problem(413, "The body is over the limit"),
    "headers_too_large": Problem(431, "The header is over the limit"),
    "unsupported_media_type": Problem(415, "The content encoding is not supported"),
}
# All and only reasons after which the connection is not worth keeping: unread body is on its way,
# or we are about to close it, which a request that is sent just then would not survive.
CLOSES_CONNECTION = frozenset({"timeout", "too_large", "headers_too_large", "draining"})


class RequestError(Exception):
    """The client's fault, or a state of the gateway: becomes the error body of `reason`."""

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        allow: str | None = None,
        challenge: str | None = None,
        retry_after_ns: int | None = None,
        slo_ns: int | None = None,
        min_slo_ns: int | None = None,
    ) -> None:
        """`allow` and `challenge` are the headers Allow and WWW-Authenticate."""
        super().__init__(detail)
        self.reason = reason
        # what a client wrote may stand in it, and may be of any length
        self.detail = detail if len(detail) <= MAX_DETAIL else f"{detail[:MAX_DETAIL]}…"
        self.allow = allow
        self.challenge = challenge
        self.retry_after_ns = retry_after_ns
        self.slo_ns = slo_ns
        self.min_slo_ns = min_slo_ns


def bad_request(detail: str) -> RequestError:
    return RequestError("bad_request", detail)


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457 members, `error` for clients of the Open Inference Protocol, and our figures."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    reason: str
    request_id: str
    retry_after_ms: float | None = None
    predicted_ms: float | None = None
    load_ms: float | None = None
    min_slo_ms: float | None = None
    slo_ms: float | None = None


class ErrorReply(NamedTuple):
    status: int
    headers: Headers
    body: bytes


_encoder = msgspec.json.Encoder()


class ErrorReplies:
    """Builds error replies; holds the two settings the table leaves open."""

    def __init__(self, *, shed_status: int, default_retry_after_ns: int) -> None:
        self._default_retry_after_ns = default_retry_after_ns
        self._rows = {
            reason: row._replace(status=shed_status) if row.is_shed else row
            for reason, row in PROBLEMS.items()
        }

    def status_of(self, reason: str) -> int:
        return self._rows[reason].status

    def of_outcome(
        self,
        outcome: Rejected | Expired | Failed,
        *,
        request_id: str,
        slo_ns: int,
        media_type: bytes = PROBLEM_JSON,
    ) -> ErrorReply:
        """The core's no."""
        retry_after_ns = None if isinstance(outcome, Expired) else outcome.retry_after_ns
        rejected = outcome if isinstance(outcome, Rejected) else None
        return self.build(
            outcome.reason.value,
            outcome.detail,
            request_id=request_id,
            retry_after_ns=retry_after_ns,
            predicted_ns=rejected.predicted_ns if rejected else None,
            load_ns=rejected.load_ns if rejected else None,
            min_slo_ns=rejected.min_slo_ns if rejected else None,
            slo_ns=slo_ns,
            media_type=media_type,
        )

    def of_error(
        self, error: RequestError, *, request_id: str, media_type: bytes = PROBLEM_JSON
    ) -> ErrorReply:
        """The gateway's own no."""
        extra = [(b"allow", error.allow.encode())] if error.allow else []
        if error.challenge:
            extra.append((b"www-authenticate", error.challenge.encode()))
        return self.build(
            error.reason,
            error.detail,
            request_id=request_id,
            retry_after_ns=error.retry_after_ns,
            slo_ns=error.slo_ns,
            min_slo_ns=error.min_slo_ns,
            media_type=media_type,
            extra_headers=extra,
        )

    def build(
        self,
        reason: str,
        detail: str,
        *,
        request_id: str,
        retry_after_ns: int | None = None,
        predicted_ns: int | None = None,
        load_ns: int | None = None,
        min_slo_ns: int | None = None,
        slo_ns: int | None = None,
        media_type: bytes = PROBLEM_JSON,
        extra_headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> ErrorReply:
        """Raises KeyError for a reason that has no row."""
        row = self._rows[reason]
        if not row.may_retry:
            retry_after_ns = None
        elif retry_after_ns is None:
            retry_after_ns = self._default_retry_after_ns
        body = _encoder.encode(
            ErrorBody(
                type=TYPE_PREFIX + reason,
                title=row.title,
                status=row.status,
                detail=detail,
                error=detail,
                reason=reason,
                request_id=request_id,
                retry_after_ms=_ms(retry_after_ns),
                predicted_ms=_ms(predicted_ns),
                load_ms=_ms(load_ns),
                min_slo_ms=_ms(min_slo_ns),
                slo_ms=_ms(slo_ns),
            )
        )
        headers: Headers = [
            (b"content-type", media_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode("latin-1")),
            (b"x-remontoir-reason", reason.encode()),
            *extra_headers,
        ]
        if retry_after_ns is not None:
            # whole seconds, rounded up: never invites a client back before the time
            headers.append((b"retry-after", b"%d" % -(-retry_after_ns // SECOND_NS)))
        if reason in CLOSES_CONNECTION:
            headers.append(CLOSE)
        return ErrorReply(row.status, headers, body)


def _ms(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / MILLISECOND_NS
