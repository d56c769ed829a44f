"""Every route but the hot one: health, models, metrics, docs; and FastAPI's own errors as ours.

It owns what these answer. It must never be on the way of an inference, and contains no logic
beyond reading what others own.
"""

import asyncio

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.config import MEBIBYTE, GatewayConfig
from gateway.errors import JSON, PROBLEM_JSON, ErrorReplies, ErrorReply, RequestError, bad_request
from gateway.http.docs_page import add_docs_routes
from gateway.http.request_body import ClientGone
from gateway.http.request_ids import RequestIds
from gateway.http.small_body import SmallBodies
from gateway.inference.target import is_v2
from gateway.lifecycle import Lifecycle
from gateway.live.routes import EVENTS_PATH
from gateway.metrics.metrics import Metrics
from gateway.metrics.page import page_parts
from gateway.metrics.text import CONTENT_TYPE
from gateway.tenants.guard import may_see
from gateway.v2.repository import add_repository_routes
from gateway.v2.routes import add_v2_routes, check_ready, find_model
from gateway.variants.feedback import Feedback
from gateway.variants.groups import CatalogWithGroups, Groups
from gateway.variants.routes import add_group_routes
from gateway.versions.repository import Repository
from gateway.versions.versions import Versions
from gateway.views import CallLater, Clock, SchedulerView
from scheduler.spec import MILLISECOND_NS, ModelSpec, TensorSpec

_encoder = msgspec.json.Encoder()
# In the scope: what the client has asked with, where the application asks with another method.
ASKED_METHOD = "remontoir.asked_method"
# Statuses that Starlette raises by itself. Others would be a route of ours without a reason.
_REASONS_BY_STATUS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


class TensorEntry(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None


class ShapeEntry(msgspec.Struct, frozen=True):
    shape_key: str
    exec_ms: dict[str, float]


class ProfileEntry(msgspec.Struct, frozen=True):
    load_ms: float
    shapes: list[ShapeEntry]


class DeviceEntry(msgspec.Struct, frozen=True):
    worker: str
    kind: str
    state: str


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model as `/models` shows it. `default_slo_ms` is what a request without an SLO gets;
    `kept_versions` is what a rollback goes back to, the first first; `problem` says why what the
    repository has of it does not serve, where an older version does.
    """

    name: str
    version: str
    platform: str
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    batch_sizes: tuple[int, ...]
    runs_exact_batch: bool
    weights_bytes: int
    pages: int
    pinned: bool
    default_slo_ms: float
    queue_depth: int
    devices: list[DeviceEntry]
    profile: ProfileEntry | None
    unavailable_reason: str | None
    kept_versions: list[str]
    problem: str | None


def build_routes(
    config: GatewayConfig,
    scheduler: SchedulerView,
    versions: Versions,
    repository: Repository,
    groups: Groups,
    feedback: Feedback,
    *,
    lifecycle: Lifecycle,
    metrics: Metrics,
    errors: ErrorReplies,
    request_ids: RequestIds,
    clock: Clock,
    call_later: CallLater | None = None,
) -> FastAPI:
    """The FastAPI app behind the hot path."""
    catalog = versions.serving
    # What a slash at the end redirects to, POST bodies included, nobody has asked for.
    app = FastAPI(openapi_url=None, redirect_slashes=False)  # nor pages of FastAPI's own

    named = CatalogWithGroups(catalog, groups)

    def refusal(error: RequestError, request: Request) -> Response:
        given = request.headers.get("x-request-id")
        request_id = request_ids.of(given.encode("latin-1") if given else None)
        media_type = JSON if is_v2(request.url.path) else PROBLEM_JSON
        return _response(errors.of_error(error, request_id=request_id, media_type=media_type))

    @app.get("/livez")
    async def livez() -> Response:
        return _json({"live": True})

    @app.get("/readyz")
    async def readyz() -> Response:
        check_ready(scheduler, lifecycle)
        return _json({"live": True, "ready": True})

    @app.get("/models")
    async def models(request: Request) -> Response:
        shown = [spec for spec in catalog.values() if may_see(request, spec.name)]
        return _json({"models": [describe(spec) for spec in shown]})

    @app.get("/models/{name}")
    async def model(name: str) -> Response:
        return _json(describe(find_model(named, lifecycle, name)))

    @app.get("/metrics")
    async def metrics_page() -> Response:
        parts = []
        for part in page_parts(metrics):
            parts.append(part)
            await asyncio.sleep(0)  # thousands of models make a long page; requests go on
        return Response("".join(parts), headers={"content-type": CONTENT_TYPE})

    add_docs_routes(app)
    add_v2_routes(
        app,
        scheduler,
        named,
        groups,
        lifecycle=lifecycle,
        metrics=metrics,
        clock=clock,
        kept=versions.kept,
    )
    bodies = SmallBodies(
        timeout_s=config.body_timeout_ms / 1000,
        max_dropped_bytes=config.max_body_mb * MEBIBYTE,
        call_later=call_later,
    )
    add_repository_routes(app, repository, scheduler, catalog, lifecycle, bodies)
    add_group_routes(
        app,
        groups,
        feedback,
        catalog,
        bodies=bodies,
        default_slo_ms=config.default_slo_ms,
        clock=clock,
    )

    @app.exception_handler(ClientGone)
    async def on_client_gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=400)  # which nobody reads

    @app.exception_handler(RequestError)
    async def on_request_error(request: Request, error: RequestError) -> Response:
        return refusal(error, request)

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        reason = _REASONS_BY_STATUS.get(error.status_code, "internal_error")
        allow = (error.headers or {}).get("Allow") or (error.headers or {}).get("allow")
        if allow == "GET" and request.url.path != EVENTS_PATH:
            allow = "GET, HEAD"  # the application asks the routes for GET then
        path = request.url.path[:200]
        method = request.scope.get(ASKED_METHOD, request.method)
        detail = {
            "not_found": f"no route {path!r} here",
            "method_not_allowed": f"{method} is not answered at {path!r}: {allow} can be",
        }.get(reason, str(error.detail))
        return refusal(RequestError(reason, detail, allow=allow), request)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return refusal(bad_request(str(error.errors())), request)

    @app.exception_handler(Exception)
    async def on_exception(request: Request, error: Exception) -> Response:
        # Starlette raises it again afterwards, so that the log has it too.
        detail = f"the gateway failed at {request.url.path!r}"
        return refusal(RequestError("internal_error", detail), request)

    def describe(spec: ModelSpec) -> ModelEntry:
        is_available = spec.unavailable_reason is None
        default_ns = spec.default_slo_ns
        problem = versions.problems.get(spec.name)
        return ModelEntry(
            name=spec.name,
            version=spec.version,
            platform=spec.platform,
            inputs=[_tensor(tensor) for tensor in spec.inputs],
            outputs=[_tensor(tensor) for tensor in spec.outputs],
            batch_sizes=spec.batch_sizes,
            runs_exact_batch=spec.runs_exact_batch,
            weights_bytes=spec.weights_bytes,
            pages=spec.num_pages(config.page_mb * MEBIBYTE),
            pinned=spec.is_pinned,
            default_slo_ms=(
                config.default_slo_ms if default_ns is None else default_ns / MILLISECOND_NS
            ),
            queue_depth=scheduler.queue_depth(spec.key) if spec.key in scheduler.models else 0,
            devices=[
                DeviceEntry(worker, device.spec.kind, device.weights_state(spec.key).value)
                for worker, device in scheduler.devices.items()
            ],
            profile=_profile(spec) if is_available else None,
            unavailable_reason=spec.unavailable_reason,
            kept_versions=[kept.version for kept in versions.kept_of(spec.name)],
            problem=None if problem is None else f"version {problem.version}: {problem.reason}",
        )

    return app


def _tensor(spec: TensorSpec) -> TensorEntry:
    return TensorEntry(spec.name, spec.datatype, spec.shape, spec.batch_axis)


def _profile(spec: ModelSpec) -> ProfileEntry:
    return ProfileEntry(
        spec.profile.load_ns / MILLISECOND_NS,
        [
            ShapeEntry(
                shape.shape_key,
                {str(rows): ns / MILLISECOND_NS for rows, ns in shape.exec_ns.items()},
            )
            for shape in spec.profile.shapes
        ],
    )


def _json(value: object) -> Response:
    return Response(_encoder.encode(value), media_type="application/json")


def _response(reply: ErrorReply) -> Response:
    headers = {name.decode(): value.decode("latin-1") for name, value in reply.headers}
    return Response(reply.body, status_code=reply.status, headers=headers)
