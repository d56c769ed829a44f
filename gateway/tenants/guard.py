"""Guard: every route but inference asks for a key here, and for the right to what it does.

It owns which routes are open, and which need a tenant with `admin` or `metrics`. What is not listed
is closed: a new route that changes something needs an admin until somebody says here that it does
not. Inference itself is never seen here: gateway.inference.endpoint asks the same keyring.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import Request

from gateway.errors import JSON, PROBLEM_JSON, ErrorReplies, RequestError
from gateway.http import docs_page
from gateway.http.request_body import Receive
from gateway.http.request_ids import REQUEST_ID, RequestIds
from gateway.http.single_headers import check_single
from gateway.inference.exchange import Send
from gateway.tenants.keyring import Keyring
from gateway.tenants.tenant import Tenant

# Probes: those who ask have no keys, and learn nothing but whether to send requests here. And the
# live page, which is the same everywhere.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/ui"})
METRICS_PATH = "/metrics"
# The live page itself shows nothing: what it shows comes from the events below, which need a key.
OPEN_PREFIXES = ("/ui/files/",)
LIVE_PATH = "/ui/events"
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# All and only routes that are posted to and change nothing.
_READING_PATHS = frozenset({"/v2/repository/index"})
# Posted to by clients, about their own requests.
_CLIENTS_PATHS = frozenset({"/feedback"})
# A route about one model: those of lists are none of them.
_OF_MODEL = re.compile(r"/(?:v2/)?(?:repository/)?(?:models|groups)/([^/]+)(?:/.*)?", re.DOTALL)
_LIST_PATHS = frozenset({"/v2/models/stats"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TENANT = "remontoir.tenant"  # in the scope

App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


class Guard:
    """ASGI 3, in front of an application."""

    def __init__(
        self,
        app: App,
        keyring: Keyring,
        *,
        errors: ErrorReplies,
        request_ids: RequestIds,
        has_open_metrics: bool,
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._errors = errors
        self._request_ids = request_ids
        self._open = OPEN_PATHS | docs_page.PATHS
        if has_open_metrics:
            self._open |= {METRICS_PATH}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            check_single(scope["headers"])
            tenant = self._keyring.tenant_of(headers)
            check(tenant, scope["method"], scope["path"])
        except RequestError as error:
            path: str = scope["path"]
            reply = self._errors.of_error(
                error,
                request_id=self._request_ids.of(headers.get(REQUEST_ID)),
                media_type=JSON if path == "/v2" or path.startswith("/v2/") else PROBLEM_JSON,
            )
            start = {"status": reply.status, "headers": reply.headers}
            await send({"type": "http.response.start", **start})
            await send({"type": "http.response.body", "body": reply.body})
            return
        scope[_TENANT] = tenant
        await self._app(scope, receive, send)

    def still_admits(self, scope: MutableMapping[str, Any]) -> bool:
        """Whether a request that is being answered for long would be let in now."""
        try:
            check(self._keyring.tenant_of(dict(scope["headers"])), scope["method"], scope["path"])
        except RequestError:
            return False
        return True

    def _is_open(self, path: str) -> bool:
        return path in self._open or path.startswith(OPEN_PREFIXES)


def check(tenant: Tenant, method: str, path: str) -> None:
    """Raises RequestError(forbidden) where the tenant may not ask this."""
    if _CONTROL.search(path):  # a router may find a route where we see another path
        raise RequestError("not_found", "no path has control characters in it")
    if path == METRICS_PATH:
        if not (tenant.spec.metrics or tenant.is_admin):
            raise RequestError(
                "forbidden",
                f"{path} shows all tenants: it needs one with `metrics: true` or `admin: true`, "
                f"{tenant.name} has neither",
            )
    elif path == LIVE_PATH:
        tenant.check_admin(f"{path}, which shows all tenants' models,")
    elif method not in _READING_METHODS and path not in _READING_PATHS | _CLIENTS_PATHS:
        tenant.check_admin(f"{method} {path[:200]}")
    found = _OF_MODEL.fullmatch(path)
    if found is not None and path not in _LIST_PATHS:
        tenant.check_model(found[1])


def may_see(request: Request, model: str) -> bool:
    """Whether lists show the model to the request's tenant; to all where there are no tenants."""
    tenant: Tenant | None = request.scope.get(_TENANT)
    return tenant is None or tenant.may_use(model)


def tenant_name(request: Request) -> str:
    """Whose request it is; "" where there are no tenants."""
    tenant: Tenant | None = request.scope.get(_TENANT)
    return "" if tenant is None else tenant.name


def tenant_of(request: Request) -> Tenant | None:
    """Who asks; None where there are no tenants, and on routes that need no key."""
    tenant: Tenant | None = request.scope.get(_TENANT)
    return tenant
