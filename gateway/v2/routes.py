"""The Open Inference Protocol v2 beside inference: what server and models say of themselves.

It owns the paths below /v2 and the words of their answers. It must never be on the way of an
inference, and raises RequestError for every no: gateway/http/routes.py makes plain JSON of it here,
since the protocol's clients show an error's text only then.
"""

import asyncio
import time
from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request, Response

from gateway.errors import RequestError
from gateway.inference.plans import no_such_version
from gateway.lifecycle import Lifecycle
from gateway.metrics.metrics import Metrics
from gateway.tenants.guard import may_see
from gateway.v2.model_config import configuration_of
from gateway.v2.statistics import ModelStats, Statistics, statistics_of
from gateway.variants.groups import Groups
from gateway.versions.versions import NONE_KEPT, versions_of
from gateway.views import Clock, SchedulerView
from scheduler import __version__
from scheduler.spec import ModelSpec, TensorSpec

SERVER_NAME = "remontoir"
# Only what is there: clients ask for the routes of what they find in this list.
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
# Models per turn of the event loop: under half a millisecond.
MODELS_PER_TURN = 32

_encoder = msgspec.json.Encoder()


class ServerMetadata(msgspec.Struct, frozen=True):
    name: str
    version: str
    extensions: tuple[str, ...]


class TensorMetadata(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True):
    """`shape` of a tensor has -1 where a size is free, at the batch axis too."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(msgspec.Struct, frozen=True):
    name: str
    ready: bool


def add_v2_routes(
    app: FastAPI,
    scheduler: SchedulerView,
    catalog: Mapping[str, ModelSpec],
    groups: Groups,
    *,
    lifecycle: Lifecycle,
    metrics: Metrics,
    clock: Clock,
    kept: Mapping[tuple[str, str], ModelSpec],
) -> None:
    """Registers them. Inference itself never reaches FastAPI (gateway.app). `catalog` lists models,
    and finds groups as well.
    """

    @app.get("/v2")
    async def server_metadata() -> Response:
        return _json(ServerMetadata(SERVER_NAME, __version__, EXTENSIONS))

    @app.get("/v2/health/live")
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        check_ready(scheduler, lifecycle)
        return _json({"live": True, "ready": True})

    @app.get("/v2/models/stats")
    async def all_stats(request: Request) -> Response:
        told = []
        for number, spec in enumerate(list(catalog.values())):
            if number % MODELS_PER_TURN == 0:
                await asyncio.sleep(0)  # requests go on
            if may_see(request, spec.name):
                told.append(stats_of(spec))
        return _json(Statistics(told))

    @app.get("/v2/models/{name}/stats")
    @app.get("/v2/models/{name}/versions/{version}/stats")
    async def model_stats(name: str, version: str | None = None) -> Response:
        spec = find_model(catalog, lifecycle, name, version, kept)
        group = groups.get(spec.name)
        if group is None:
            return _json(Statistics([stats_of(spec)]))
        members = [catalog.get(member.model) for member in group.members]
        return _json(Statistics([stats_of(member) for member in members if member is not None]))

    @app.get("/v2/models/{name}/config")
    @app.get("/v2/models/{name}/versions/{version}/config")
    async def model_config(name: str, version: str | None = None) -> Response:
        spec = find_model(catalog, lifecycle, name, version, kept)
        if not spec.inputs and spec.unavailable_reason is not None:
            raise _unavailable(spec)
        return _json(configuration_of(spec))

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def model_metadata(name: str, version: str | None = None) -> Response:
        spec = find_model(catalog, lifecycle, name, version, kept)
        if not spec.inputs and spec.unavailable_reason is not None:
            raise _unavailable(spec)  # nobody knows its tensors
        return _json(
            ModelMetadata(
                spec.name,
                versions_of(catalog[name], kept) if spec.version else (),  # a group has none
                spec.platform,
                [_tensor(tensor) for tensor in spec.inputs],
                [_tensor(tensor) for tensor in spec.outputs],
            )
        )

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        check_ready(scheduler, lifecycle)
        spec = find_model(catalog, lifecycle, name, version, kept)
        if spec.unavailable_reason is not None:
            raise _unavailable(spec)
        return _json(ModelReady(spec.name, True))

    def stats_of(spec: ModelSpec) -> ModelStats:
        epoch_ns = time.time_ns() - clock()
        return statistics_of(
            spec,
            metrics.models.get(spec.name),
            epoch_ns=epoch_ns,
            sharing=metrics.sharings.get(spec.name),
        )


def check_ready(scheduler: SchedulerView, lifecycle: Lifecycle) -> None:
    """Raises RequestError unless requests should be sent here."""
    reason = lifecycle.unready_reason
    if reason is not None:
        raise RequestError(reason, f"the gateway is {reason}")
    if not scheduler.devices:
        raise RequestError("no_worker", "no worker has joined, or all were lost")


def find_model(
    catalog: Mapping[str, ModelSpec],
    lifecycle: Lifecycle,
    name: str,
    version: str | None = None,
    kept: Mapping[tuple[str, str], ModelSpec] = NONE_KEPT,
) -> ModelSpec:
    """`kept` has versions beside those of the catalogue.

    Raises RequestError: not_found, or starting while nobody knows the models yet.
    """
    spec = catalog.get(name)
    if spec is None and not catalog and lifecycle.phase == "starting":
        detail = "the gateway is starting, and does not know yet which models it serves"
        raise RequestError("starting", detail)
    if spec is None:
        raise RequestError("not_found", f"no model {name[:200]!r} is served here")
    if version is None or version == spec.version:
        return spec
    found = kept.get((name, version))
    if found is None:
        raise RequestError("not_found", no_such_version(spec, version, kept))
    return found


def _unavailable(spec: ModelSpec) -> RequestError:
    return RequestError("model_unavailable", f"model {spec.name}: {spec.unavailable_reason}")


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(spec.name, spec.datatype, spec.shape)


def _json(value: object) -> Response:
    return Response(_encoder.encode(value), media_type="application/json")
