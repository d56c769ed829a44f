"""The model repository extension: index, load, unload; and our own beside it: reload, rollback.

It owns what these routes read of a request and answer. It must never refuse quietly what a client
asked for: a parameter that is not there is named.
"""

from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request, Response

from gateway.errors import bad_request
from gateway.http.small_body import SmallBodies
from gateway.lifecycle import Lifecycle
from gateway.tenants.guard import may_see
from gateway.v2.routes import check_ready, find_model
from gateway.versions.repository import Repository
from gateway.views import SchedulerView
from scheduler.spec import ModelSpec

# Of these routes; the protocol's others (`config`, `file:...`) would change the model itself.
_PINNED = "pinned"
_DEPENDENTS = "unload_dependents"  # without effect: there are no ensembles
_FLAGS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}

_encoder = msgspec.json.Encoder()


class IndexRequest(msgspec.Struct, frozen=True):
    ready: bool = False


class ControlRequest(msgspec.Struct, frozen=True):
    parameters: dict[str, object] = {}


def add_repository_routes(
    app: FastAPI,
    repository: Repository,
    scheduler: SchedulerView,
    catalog: Mapping[str, ModelSpec],
    lifecycle: Lifecycle,
    bodies: SmallBodies,
) -> None:
    @app.post("/v2/repository/index")
    async def index(request: Request) -> Response:
        asked = await bodies.read(request, IndexRequest())
        entries = repository.index(only_ready=asked.ready)
        return _json([entry for entry in entries if may_see(request, entry.name)])

    @app.post("/v2/repository/models/{name}/load")
    async def load(name: str, request: Request) -> Response:
        asked = await bodies.read(request, ControlRequest())
        is_pinned = _pinned_of(asked.parameters, request.query_params)
        check_ready(scheduler, lifecycle)
        await repository.refresh(name)
        spec = find_model(catalog, lifecycle, name)
        return _json(await repository.load(spec, is_pinned=is_pinned))

    @app.post("/v2/repository/models/{name}/unload")
    async def unload(name: str, request: Request) -> Response:
        asked = await bodies.read(request, ControlRequest())
        _check_known(asked.parameters.keys() - {_DEPENDENTS})
        _flag_of(_DEPENDENTS, asked.parameters.get(_DEPENDENTS))
        return _json(await repository.unload(find_model(catalog, lifecycle, name)))

    @app.post("/models/{name}/reload")
    async def reload(name: str) -> Response:
        check_ready(scheduler, lifecycle)
        return _json(await repository.reloading.refresh(name))

    @app.post("/models/{name}/rollback")
    async def rollback(name: str) -> Response:
        check_ready(scheduler, lifecycle)
        find_model(catalog, lifecycle, name)
        return _json(await repository.reloading.rollback(name))


def _pinned_of(parameters: Mapping[str, object], query: Mapping[str, str]) -> bool | None:
    """The body's or the query's, which tritonclient can send too; None where neither says."""
    _check_known(parameters.keys() - {_PINNED})
    in_body = _flag_of(_PINNED, parameters.get(_PINNED))
    text = query.get(_PINNED)
    if text is None:
        return in_body
    in_query = _FLAGS.get(text)
    if in_query is None:
        raise bad_request(f"pinned is {text[:60]!r}: expected true or false")
    return in_query if in_body is None else in_body


def _flag_of(name: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise bad_request(f"{name} is {str(value)[:60]!r}: expected true or false, without quotes")


def _check_known(others: set[str]) -> None:
    if others:
        names = ", ".join(sorted(name[:60] for name in others))
        raise bad_request(
            f"parameters {names}: this server does not have them; models are as their directories"
        )


def _json(value: object) -> Response:
    return Response(_encoder.encode(value), media_type="application/json")
