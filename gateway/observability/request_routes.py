"""GET /requests and /requests/{id}: what became of recent requests, and why.

It owns what may be asked and the words of its refusals. With tenants each sees its own, an admin
all; whether another tenant has a request of some id is not told.
"""

import re
from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request, Response

from gateway.errors import RequestError, bad_request
from gateway.http.request_ids import RequestIds
from gateway.observability.answered import KINDS, Answered
from gateway.observability.recent_requests import RecentRequests
from gateway.observability.request_stories import (
    Onlooker,
    RequestEntry,
    entries_of,
    in_turns,
    story_of,
)
from gateway.tenants.guard import tenant_of
from gateway.views import SchedulerView
from scheduler.spec import ModelSpec

DEFAULT_LISTED = 20
MAX_LISTED = 1000
_PARAMETERS = ("worst", "latest", "model", "outcome", "tenant")
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")

_encoder = msgspec.json.Encoder()


class RequestList(msgspec.Struct, frozen=True):
    """`kept` are all that are looked through, answered from `since` on."""

    requests: list[RequestEntry]
    kept: int
    since: str | None


def add_request_routes(
    app: FastAPI,
    recent: RecentRequests,
    scheduler: SchedulerView,
    catalog: Mapping[str, ModelSpec],
    request_ids: RequestIds,
) -> None:
    def onlooker_of(request: Request) -> Onlooker:
        tenant = tenant_of(request)
        if not recent.max_kept:
            raise RequestError("not_found", "no requests are kept here: recent_requests is 0")
        return Onlooker(recent, None if tenant is None or tenant.is_admin else tenant)

    @app.get("/requests")
    async def requests(request: Request) -> Response:
        onlooker = onlooker_of(request)
        asked = _single(request)
        model, outcome, tenant = asked.get("model"), asked.get("outcome"), asked.get("tenant")
        if model is not None:
            _check_model(model, request, catalog)
        if outcome is not None and outcome not in KINDS:
            raise bad_request(f"outcome is {outcome[:60]!r}: expected one of {', '.join(KINDS)}")

        def is_wanted(answered: Answered) -> bool:
            return (
                (model is None or answered.model == model)
                and (outcome is None or answered.kind == outcome)
                and (tenant is None or answered.tenant == tenant)
                and onlooker.may_see(answered)
            )

        found = None
        if "latest" in asked or "worst" not in asked:
            latest = recent.latest(_number_of("latest", asked), is_wanted)
            found = await in_turns(latest)
        if "worst" in asked:
            worst = recent.worst(_number_of("worst", asked), is_wanted, among=found)
            found = await in_turns(worst)
        entries = await in_turns(entries_of(found or (), recent))
        return _json(RequestList(entries, len(recent), recent.since))

    @app.get("/requests/{request_id:path}")
    async def story(request_id: str, request: Request) -> Response:
        onlooker = onlooker_of(request)
        found = recent.named(request_id, onlooker.may_see)
        if not found:
            raise RequestError("not_found", _missing(request_id, recent, request_ids))
        same_id = len(found)
        return _json(await story_of(found[-1], recent, scheduler, onlooker, same_id=same_id))


def _single(request: Request) -> dict[str, str]:
    """The query's parameters. Raises RequestError for one that is unknown, or there twice."""
    asked: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in _PARAMETERS:
            known = ", ".join(_PARAMETERS)
            raise bad_request(f"parameter {name[:60]!r} is not known here; known are {known}")
        if name in asked:
            raise bad_request(f"parameter {name} is there twice")
        asked[name] = value
    return asked


def _number_of(name: str, asked: Mapping[str, str]) -> int:
    text = asked.get(name, str(DEFAULT_LISTED))
    if not _NUMBER.fullmatch(text) or int(text) > MAX_LISTED:
        raise bad_request(f"{name} is {text[:60]!r}: expected a number from 1 to {MAX_LISTED}")
    return int(text)


def _check_model(model: str, request: Request, catalog: Mapping[str, ModelSpec]) -> None:
    tenant = tenant_of(request)
    if tenant is not None:
        tenant.check_model(model)
    if model not in catalog:
        raise RequestError("not_found", f"no model {model[:200]!r} is served here")


def _missing(request_id: str, recent: RecentRequests, request_ids: RequestIds) -> str:
    """Whether it is unknown or too old, as far as that can be told."""
    shown = f"request {request_id[:128]!r}"
    kept = f"the last {len(recent):,} answered"
    if recent.is_full:
        kept += f", since {recent.since}; older ones are gone (setting recent_requests)"
        if request_ids.was_given(request_id):
            return f"{shown} has expired, or has no answer yet: it is not among {kept}"
        return f"{shown} is unknown or has expired: it is not among {kept}"
    if request_ids.was_given(request_id):
        return (
            f"{shown} has no answer yet, was no inference, or is not yours to see:"
            " ask again when it has one"
        )
    return f"{shown} is unknown: it is not among {kept}, which are all since the start"


def _json(value: object) -> Response:
    return Response(_encoder.encode(value), media_type="application/json")
