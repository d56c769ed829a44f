"""The application: one outer ASGI callable that answers inference, and FastAPI for the rest.

It owns which of the two a request goes to, and that both ask for a key where there are tenants. It
must never look at anything but the path: a FastAPI route costs two thirds of the throughput, and a
mount answers POST with 307.
"""

import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI

from gateway.config import GatewayConfig
from gateway.errors import CLOSE, CONNECTION, ErrorReplies
from gateway.http.request_body import Message, Receive
from gateway.http.request_ids import REQUEST_ID, RequestIds
from gateway.http.routes import ASKED_METHOD, build_routes
from gateway.inference.answer_sharing import Sharings
from gateway.inference.endpoint import InferEndpoint
from gateway.inference.exchange import Send
from gateway.inference.target import target_of
from gateway.lifecycle import Lifecycle
from gateway.live.feed import LiveFeed
from gateway.live.frames import LiveSampler
from gateway.live.routes import EVENTS_PATH, add_live_routes
from gateway.live.watch import LiveWatch
from gateway.metrics.metrics import Metrics
from gateway.observability.answered import OnAnswered, told_to
from gateway.observability.recent_requests import RecentRequests
from gateway.observability.request_routes import add_request_routes
from gateway.observability.trace_context import TRACERESPONSE, BeginTrace, trace_of
from gateway.replicas.forwarding import Forwarding
from gateway.replicas.routes import ReplicaRoutes
from gateway.tenants.device_time import DeviceTime
from gateway.tenants.guard import App as ASGIApp
from gateway.tenants.guard import Guard
from gateway.tenants.keyring import Keyring
from gateway.variants.feedback import Feedback
from gateway.variants.groups import CatalogWithGroups, Groups
from gateway.versions.reloading import Reloading
from gateway.versions.repository import Repository
from gateway.versions.versions import Versions
from gateway.views import CallLater, Clock, ObservedSink, OnNamed, SchedulerView
from scheduler.spec import MILLISECOND_NS, ModelSpec


class App:
    """ASGI 3. `lifecycle` starts in "starting": whoever built the app says when it serves."""

    def __init__(
        self,
        infer: InferEndpoint,
        routes: FastAPI,
        lifecycle: Lifecycle,
        *,
        request_ids: RequestIds,
        others: ASGIApp | None = None,
    ) -> None:
        """`others` stands in front of `routes`: who asks for keys, who asks other replicas."""
        self.infer = infer
        self.routes = routes
        self.lifecycle = lifecycle
        self._request_ids = request_ids
        self._others: ASGIApp = others or routes

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        target = target_of(scope["path"]) if scope["type"] == "http" else None
        if target is None:
            await self._others(_as_get(scope), receive, self._signed(scope, send))
        else:
            await self.infer(scope, receive, send, target=target)

    def _signed(self, scope: dict[str, Any], send: Send) -> Send:
        """Answers of the other routes have what those to inference have."""
        if scope["type"] != "http":
            return send
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        trace = trace_of(headers)

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = list(message["headers"])
                if all(name != REQUEST_ID for name, _ in told):
                    request_id = self._request_ids.of(dict(headers).get(REQUEST_ID))
                    told.append((REQUEST_ID, request_id.encode("latin-1")))
                if trace is not None:
                    told.append((TRACERESPONSE, trace.response()))
                if self.lifecycle.is_ending and all(name != CONNECTION for name, _ in told):
                    told.append(CLOSE)
                message = {**message, "headers": told}
            await send(message)

        return signed


def _as_get(scope: dict[str, Any]) -> dict[str, Any]:
    """HEAD is what GET says without the body, which the server leaves out (RFC 9110, 9.3.2): load
    balancers probe with it. Events have no end that it could wait for.
    """
    if scope["type"] == "http" and scope["method"] == "HEAD" and scope["path"] != EVENTS_PATH:
        return {**scope, "method": "GET", ASKED_METHOD: "HEAD"}
    return scope


def create_app(
    config: GatewayConfig,
    dispatcher: ObservedSink,
    scheduler: SchedulerView,
    catalog: MutableMapping[str, ModelSpec],
    *,
    metrics: Metrics,
    clock: Clock = time.monotonic_ns,
    wall: Callable[[], float] = time.time,
    lifecycle: Lifecycle | None = None,
    call_later: CallLater | None = None,
    on_named: OnNamed | None = None,
    keyring: Keyring | None = None,
    device_time: DeviceTime | None = None,
    reloading: Reloading | None = None,
    groups: Groups | None = None,
    on_answered: Sequence[OnAnswered] = (),
    begin_trace: BeginTrace | None = None,
    forwarding: Forwarding | None = None,
) -> App:
    """Composes the HTTP side.

    `catalog` maps names to specs, unavailable ones too; it may be changed while the app runs, each
    spec as a whole, and is where models are unloaded and loaded. `metrics` must also be among the
    dispatcher's observers. `call_later` is the event loop's unless a test drives its own.
    `wall` tells what people's clocks show, in seconds since 1970. `on_answered` hear of every
    request's end, `begin_trace` decides which are traced where the caller has not. `on_named` hears
    which of the dispatcher's ids a request's textual id belongs to.
    With a `keyring` requests need a key of it; its `device_time` is then among the dispatcher's
    observers.
    `reloading` has the same catalogue, where there is a model repository. `forwarding` has the way
    to other replicas, which have models that the catalogue has not.
    """
    lifecycle = lifecycle or Lifecycle()
    errors = ErrorReplies(
        shed_status=config.shed_status,
        default_retry_after_ns=int(config.retry_after_ms * MILLISECOND_NS),
    )
    versions = Versions(catalog, {}) if reloading is None else reloading.versions
    metrics.watch(scheduler)
    if config.triton_metrics:
        metrics.show_as_triton(catalog)
    request_ids = RequestIds()
    recent = RecentRequests(config.recent_requests, clock=clock, wall=wall)
    listeners = [*([recent.note] if config.recent_requests else []), *on_answered]
    sharings = Sharings(dispatcher.cancel)
    metrics.watch_sharings(sharings)
    groups = Groups({}, catalog) if groups is None else groups
    feedback = Feedback()
    metrics.watch_groups(groups, feedback)
    infer = InferEndpoint(
        config,
        dispatcher,
        catalog,
        clock=clock,
        lifecycle=lifecycle,
        metrics=metrics,
        errors=errors,
        request_ids=request_ids,
        call_later=call_later,
        on_named=on_named,
        keyring=keyring,
        device_time=device_time,
        sharings=sharings,
        kept=versions.kept,
        groups=groups,
        feedback=feedback,
        on_answered=told_to(listeners),
        begin_trace=begin_trace,
        forwarding=forwarding,
    )
    metrics.watch_http(infer)
    routes = build_routes(
        config,
        scheduler,
        versions,
        Repository(
            catalog,
            dispatcher.feed,
            scheduler,
            metrics,
            reloading=reloading,
            on_unload=sharings.forget,
        ),
        groups,
        feedback,
        lifecycle=lifecycle,
        metrics=metrics,
        errors=errors,
        request_ids=request_ids,
        clock=clock,
        call_later=call_later,
    )
    named = CatalogWithGroups(catalog, groups)
    add_request_routes(routes, recent, scheduler, named, request_ids)
    others: ASGIApp = routes
    if forwarding is not None:
        others = ReplicaRoutes(routes, forwarding, errors=errors, request_ids=request_ids)
    guard = None
    if keyring is not None:
        others = guard = Guard(
            others,
            keyring,
            errors=errors,
            request_ids=request_ids,
            has_open_metrics=config.open_metrics,
        )
    watch = LiveWatch(scheduler)
    sampler = LiveSampler(
        scheduler,
        catalog,
        metrics,
        watch,
        recent,
        clock=clock,
        interval_ms=config.ui_interval_ms,
        default_slo_ms=config.default_slo_ms,
    )
    feed = LiveFeed(
        sampler,
        watch,
        dispatcher,
        lifecycle,
        interval_ms=config.ui_interval_ms,
        max_pages=config.ui_pages,
    )
    add_live_routes(routes, feed, guard)
    return App(infer, routes, lifecycle, request_ids=request_ids, others=others)
