import json

import pytest

from gateway.errors import (
    MAX_DETAIL,
    PROBLEMS,
    ErrorReplies,
    RequestError,
    bad_request,
)
from scheduler.events import Expired, Failed, Reason, Rejected
from tests.gateway.http_doubles import ms

REPLIES = ErrorReplies(shed_status=429, default_retry_after_ns=ms(1000))


def test_every_reason_of_the_core_has_a_row() -> None:
    assert {reason.value for reason in Reason} <= set(PROBLEMS)


@pytest.mark.parametrize(
    ("reason", "status", "may_retry"),
    [
        ("slo_infeasible_now", 429, True),
        ("cold_model", 429, True),
        ("slo_infeasible_ever", 422, False),
        ("would_queue", 429, True),
        ("overloaded", 503, True),
        ("worker_lost", 503, True),
        ("model_unavailable", 503, False),
        ("larger_than_cache", 422, False),
        ("deadline_exceeded_queued", 504, False),
        ("deadline_exceeded_executing", 504, False),
        ("no_worker", 503, True),
        ("starting", 503, True),
        ("draining", 503, True),
        ("replica_unavailable", 503, True),
        ("unauthenticated", 401, False),
        ("forbidden", 403, False),
        ("slo_below_tenant_minimum", 403, False),
        ("quota_exceeded", 429, True),
        ("bad_request", 400, False),
        ("invalid_input", 400, False),
        ("not_found", 404, False),
        ("too_large", 413, False),
        ("timeout", 408, False),
        ("method_not_allowed", 405, False),
        ("unsupported_media_type", 415, False),
        ("engine_error", 500, False),
        ("internal_error", 500, False),
    ],
)
def test_status_and_retry_after_are_those_of_the_contract(
    reason: str, status: int, may_retry: bool
) -> None:
    reply = REPLIES.build(reason, "why", request_id="r", retry_after_ns=ms(20))
    assert reply.status == status
    assert (b"retry-after" in dict(reply.headers)) is may_retry
    assert ("retry_after_ms" in json.loads(reply.body)) is may_retry


def test_the_table_has_no_other_rows() -> None:
    assert len(PROBLEMS) == 28


def test_a_rejection_carries_its_figures() -> None:
    outcome = Rejected(
        Reason.COLD_MODEL, "vit loads 80 ms", retry_after_ns=ms(35.5), load_ns=ms(80)
    )
    reply = REPLIES.of_outcome(outcome, request_id="r-1", slo_ns=ms(50))
    assert json.loads(reply.body) == {
        "type": "urn:remontoir:error:cold_model",
        "title": "The weights cannot be paged in before the deadline",
        "status": 429,
        "detail": "vit loads 80 ms",
        "error": "vit loads 80 ms",
        "reason": "cold_model",
        "request_id": "r-1",
        "retry_after_ms": 35.5,
        "load_ms": 80.0,
        "slo_ms": 50.0,
    }
    headers = dict(reply.headers)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"content-length"] == str(len(reply.body)).encode()
    assert headers[b"x-request-id"] == b"r-1"
    assert headers[b"x-remontoir-reason"] == b"cold_model"


@pytest.mark.parametrize(
    ("retry_after_ns", "seconds", "exact_ms"),
    [(1, b"1", 1e-6), (ms(1000), b"1", 1000.0), (ms(1000) + 1, b"2", 1000.000001)],
)
def test_retry_after_is_rounded_up_to_whole_seconds_and_exact_in_the_body(
    retry_after_ns: int, seconds: bytes, exact_ms: float
) -> None:
    reply = REPLIES.build("overloaded", "full", request_id="r", retry_after_ns=retry_after_ns)
    assert dict(reply.headers)[b"retry-after"] == seconds
    assert json.loads(reply.body)["retry_after_ms"] == exact_ms


def test_retry_after_has_a_default_where_the_core_names_none() -> None:
    outcome = Failed(Reason.WORKER_LOST, "w1 was lost")
    reply = REPLIES.of_outcome(outcome, request_id="r", slo_ns=ms(50))
    assert dict(reply.headers)[b"retry-after"] == b"1"


def test_predicted_and_least_slo_are_told() -> None:
    outcome = Rejected(Reason.SLO_INFEASIBLE_EVER, "no", predicted_ns=ms(3), min_slo_ns=ms(2.5))
    body = json.loads(REPLIES.of_outcome(outcome, request_id="r", slo_ns=ms(1)).body)
    assert (body["predicted_ms"], body["min_slo_ms"], body["slo_ms"]) == (3.0, 2.5, 1.0)


def test_shedding_has_the_status_that_is_set_and_nothing_else_has() -> None:
    replies = ErrorReplies(shed_status=503, default_retry_after_ns=ms(1000))
    changed = {
        reason for reason, row in PROBLEMS.items() if replies.status_of(reason) != row.status
    }
    assert changed == {"slo_infeasible_now", "cold_model", "would_queue"}
    body = json.loads(replies.build("cold_model", "why", request_id="r").body)
    assert body["status"] == 503


def test_an_expired_request_may_not_retry() -> None:
    outcome = Expired(Reason.DEADLINE_EXCEEDED_QUEUED, "late")
    reply = REPLIES.of_outcome(outcome, request_id="r", slo_ns=ms(50))
    assert reply.status == 504
    assert b"retry-after" not in dict(reply.headers)


def test_unread_bodies_and_draining_close_the_connection() -> None:
    for reason in PROBLEMS:
        headers = dict(REPLIES.build(reason, "why", request_id="r").headers)
        assert (headers.get(b"connection") == b"close") is (
            reason in {"too_large", "headers_too_large", "timeout", "draining"}
        )


def test_allow_is_a_header() -> None:
    error = RequestError("method_not_allowed", "no", allow="POST")
    assert dict(REPLIES.of_error(error, request_id="r").headers)[b"allow"] == b"POST"


def test_what_a_client_wrote_is_cut_in_details() -> None:
    error = bad_request("x" * 10_000)
    assert len(error.detail) == MAX_DETAIL + 1
