"""The routes of groups: which there are, and what clients say of their answers.

It owns what these routes read of a request and answer. It must never tell a tenant of a group that
it may not use.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from fastapi import FastAPI, Request, Response

from gateway.errors import RequestError, bad_request
from gateway.http.small_body import SmallBodies
from gateway.tenants.guard import may_see, tenant_name
from gateway.variants.feedback import Feedback
from gateway.variants.groups import Group, Groups
from gateway.views import Clock
from scheduler.spec import MILLISECOND_NS, ModelSpec

_encoder = msgspec.json.Encoder()


class MemberEntry(msgspec.Struct, frozen=True):
    """One member. `probability` is what Exp3 would choose it with, were all members in time;
    `mean_loss` that of all feedback, None without any.
    """

    model: str
    version: str
    accuracy: float | None
    probability: float | None
    served: int
    feedback: int
    mean_loss: float | None
    unavailable_reason: str | None


class GroupEntry(msgspec.Struct, frozen=True):
    """One group; `members` are in order of preference."""

    name: str
    selection: str
    default_slo_ms: float
    feedback_s: float
    members: list[MemberEntry]
    unavailable_reason: str | None


class GroupList(msgspec.Struct, frozen=True):
    groups: list[GroupEntry]


class FeedbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`request_id` is the answer's header x-request-id. `loss` is 0 for right, 1 for wrong."""

    request_id: str = ""
    loss: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class FeedbackReply(msgspec.Struct, frozen=True):
    """Whose answer it was."""

    request_id: str
    group: str
    model: str
    loss: float


def add_group_routes(
    app: FastAPI,
    groups: Groups,
    feedback: Feedback,
    catalog: Mapping[str, ModelSpec],
    *,
    bodies: SmallBodies,
    default_slo_ms: float,
    clock: Clock,
) -> None:
    @app.get("/groups")
    async def all_groups(request: Request) -> Response:
        shown = [group for group in groups.values() if may_see(request, group.name)]
        return _json(GroupList([describe(group) for group in shown]))

    @app.get("/groups/{name}")
    async def one_group(name: str) -> Response:
        group = groups.get(name)
        if group is None:
            raise RequestError("not_found", f"no group {name[:200]!r} is served here")
        return _json(describe(group))

    @app.post("/feedback")
    async def give_feedback(request: Request) -> Response:
        asked = await bodies.read(request, FeedbackBody())
        if not asked.request_id or asked.loss is None:
            raise bad_request(
                "feedback has the members `request_id`, that of the answer's header x-request-id, "
                "and `loss`, a number in [0, 1]"
            )
        group, model = feedback.judge(tenant_name(request), asked.request_id, asked.loss, clock())
        return _json(FeedbackReply(asked.request_id, group.name, model, asked.loss))

    def describe(group: Group) -> GroupEntry:
        face = group.face(catalog)
        default_ns = face.default_slo_ns
        return GroupEntry(
            group.name,
            group.spec.selection,
            default_slo_ms if default_ns is None else default_ns / MILLISECOND_NS,
            group.spec.feedback_s,
            _members(group, catalog),
            face.unavailable_reason,
        )


def _members(group: Group, catalog: Mapping[str, ModelSpec]) -> list[MemberEntry]:
    reasons = group.reasons(catalog)
    available = [number for number, reason in enumerate(reasons) if reason is None]
    probabilities: dict[int, float] = {}
    if group.exp3 is not None and available:
        probabilities = dict(zip(available, group.exp3.probabilities(available), strict=True))
    entries = []
    for number, (member, reason) in enumerate(zip(group.members, reasons, strict=True)):
        spec = catalog.get(member.model)
        entries.append(
            MemberEntry(
                member.model,
                "" if spec is None else spec.version,
                member.accuracy,
                probabilities.get(number),
                member.num_served,
                member.num_feedback,
                member.loss / member.num_feedback if member.num_feedback else None,
                reason,
            )
        )
    return entries


def _json(value: object) -> Response:
    return Response(_encoder.encode(value), media_type="application/json")
