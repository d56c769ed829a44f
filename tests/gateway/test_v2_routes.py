"""The routes under /v2 beside inference."""

from typing import Any

import pytest

from gateway.v2_routes import EXTENSIONS
from scheduler import __version__
from tests.gateway.http_doubles import Bench, PuppetDevice, model_spec, run


def bench(*specs: Any) -> Bench:
    made = Bench(*specs)
    made.scheduler.devices["w#1-1"] = PuppetDevice({})
    return made


def refused(client: Any, status: int, reason: str) -> Any:
    assert (client.status, client.json["reason"]) == (status, reason)
    assert client.headers["content-type"] == "application/json"
    assert client.json["error"] == client.json["detail"] != ""
    assert client.headers["x-request-id"] == client.json["request_id"]
    return client.json["error"]


def test_the_server_names_only_what_it_has() -> None:
    async def story() -> None:
        assert (await bench().get("/v2")).json == {
            "name": "remontoir",
            "version": __version__,
            "extensions": [*EXTENSIONS],
        }

    run(story)


def test_health_has_the_members_that_clients_read() -> None:
    async def story() -> None:
        assert (await bench().get("/v2/health/live")).json == {"live": True}
        assert (await bench().get("/v2/health/ready")).json == {"live": True, "ready": True}
        refused(await Bench().get("/v2/health/ready"), 503, "no_worker")
        draining = bench()
        draining.lifecycle.drain()
        refused(await draining.get("/v2/health/ready"), 503, "draining")
        refused(await draining.get("/v2/models/mlp/ready"), 503, "draining")

    run(story)


@pytest.mark.parametrize("path", ["/v2/models/mlp", "/v2/models/mlp/versions/1"])
def test_model_metadata(path: str) -> None:
    async def story() -> None:
        assert (await bench().get(path)).json == {
            "name": "mlp",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        }
        assert (await bench().get(f"{path}/ready")).json == {"name": "mlp", "ready": True}

    run(story)


@pytest.mark.parametrize("what", ["", "/ready"])
def test_models_and_versions_that_are_not_there(what: str) -> None:
    async def story() -> None:
        told = refused(await bench().get(f"/v2/models/nope{what}"), 404, "not_found")
        assert told == "no model 'nope' is served here"
        client = await bench().get(f"/v2/models/mlp/versions/2{what}")
        assert refused(client, 404, "not_found") == "model mlp has no version '2' here; it has 1"
        starting = bench()
        starting.catalog.clear()
        starting.lifecycle.__init__()  # type: ignore[misc]  # as it was before serve()
        refused(await starting.get(f"/v2/models/mlp{what}"), 503, "starting")

    run(story)


def test_a_broken_model_is_not_ready_and_says_why() -> None:
    async def story() -> None:
        broken = model_spec("bad", unavailable_reason="not ONNX", inputs=(), outputs=())
        served = bench(model_spec(), broken)
        told = refused(await served.get("/v2/models/bad/ready"), 503, "model_unavailable")
        assert told == "model bad: not ONNX"
        refused(await served.get("/v2/models/bad"), 503, "model_unavailable")
        assert (await served.get("/v2/health/ready")).status == 200

    run(story)


@pytest.mark.parametrize("path", ["/v2/", "/v2/nope", "/v2/models/mlp/nope", "/v2/logging"])
def test_what_is_not_there_is_plain_json_too(path: str) -> None:
    async def story() -> None:
        refused(await bench().get(path), 404, "not_found")

    run(story)


def test_another_method_is_a_405() -> None:
    async def story() -> None:
        client = await bench().get("/v2/models/mlp", method="POST")
        refused(client, 405, "method_not_allowed")
        assert client.headers["allow"] == "GET"

    run(story)
