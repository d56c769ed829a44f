"""Ray Serve: a deployment each; tuned: @serve.batch, max_queued_requests, request_timeout_s."""

import signal
from typing import Any

import ray
from peer_models import BATCH_WAIT_S, CONFIG, IS_TUNED, MODELS, PORT, TIMEOUT_S, OrtModel
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

READY = Response("ready")


class Plain:
    def __init__(self, name: str) -> None:
        self.model = OrtModel(name)

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return READY
        return Response(self.model.run_bytes(await request.body()))


class Batched:
    def __init__(self, name: str) -> None:
        self.model = OrtModel(name)
        self.run.set_max_batch_size(MODELS[name]["max_batch"])

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=BATCH_WAIT_S)
    async def run(self, bodies: list[bytes]) -> list[bytes]:
        rows = [self.model.row(body) for body in bodies]
        return [answer.tobytes() for answer in self.model.run_rows(rows)]

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return READY
        return Response(await self.run(await request.body()))


def _deployment(name: str) -> Any:
    settings: dict[str, Any] = {
        "name": name,
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    if not IS_TUNED:
        return serve.deployment(Plain, **settings).bind(name)
    settings["max_ongoing_requests"] = max(2, 2 * MODELS[name]["max_batch"])
    settings["max_queued_requests"] = MODELS[name]["limit"]
    return serve.deployment(Batched, **settings).bind(name)


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=CONFIG["scratch"],
        object_store_memory=128 << 20,
    )
    serve.start(
        http_options={
            "host": "127.0.0.1",
            "port": PORT,
            "request_timeout_s": TIMEOUT_S if IS_TUNED else None,
        }
    )
    for name in MODELS:
        serve.run(_deployment(name), name=name, route_prefix=f"/{name}")
    signal.pause()
