"""The routes under /v2 beside inference."""

import time
from typing import Any

import pytest

from gateway.v2.model_config import TensorConfig, configuration_of
from gateway.v2.routes import EXTENSIONS
from scheduler import __version__
from scheduler.actions import Code, Infer, InferResult, Span
from scheduler.events import ActionFinished, Send, Tick
from scheduler.spec import TensorSpec
from tests.gateway.http_doubles import Bench, PuppetDevice, model_spec, ms, run, served


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


@pytest.mark.parametrize("what", ["", "/ready", "/config", "/stats"])
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
        repository = bench(model_spec(), broken)
        told = refused(await repository.get("/v2/models/bad/ready"), 503, "model_unavailable")
        assert told == "model bad: not ONNX"
        refused(await repository.get("/v2/models/bad"), 503, "model_unavailable")
        refused(await repository.get("/v2/models/bad/config"), 503, "model_unavailable")
        assert (await repository.get("/v2/health/ready")).status == 200

    run(story)


@pytest.mark.parametrize("path", ["/v2/models/mlp/config", "/v2/models/mlp/versions/1/config"])
def test_the_configuration_of_a_model_whose_rows_are_the_first_axis(path: str) -> None:
    async def story() -> None:
        assert (await bench().get(path)).json == {
            "name": "mlp",
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": 4,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
            "model_transaction_policy": {"decoupled": False},
            "dynamic_batching": {"preferred_batch_size": [1, 2, 4]},
        }

    run(story)


def test_max_batch_size_is_0_where_rows_are_elsewhere_or_nowhere() -> None:
    inputs = (TensorSpec("words", "BYTES", (-1, 2)), TensorSpec("rate", "INT64", (), None))
    told = configuration_of(model_spec(inputs=inputs))
    assert told.max_batch_size == 0
    assert told.dynamic_batching is None
    assert told.input == [
        TensorConfig("words", "TYPE_STRING", (-1, 2)),
        TensorConfig("rate", "TYPE_INT64", ()),
    ]
    assert told.output == [TensorConfig("y", "TYPE_FP32", (-1, 2))]


def test_a_model_of_single_rows_has_no_dynamic_batching() -> None:
    told = configuration_of(model_spec(batch_sizes=(1,)))
    assert (told.max_batch_size, told.dynamic_batching) == (1, None)


def batch(action_id: int, rows: tuple[int, ...]) -> Send:
    requests = tuple(range(len(rows)))
    return Send("w#1-1", Infer(action_id, "mlp", sum(rows), requests, rows, 0, 1, ms(2)))


def inferred(action_id: int, code: Code = Code.OK) -> ActionFinished:
    spans = [Span(0, ms(n), ms(n)) for n in (1, 4, 2)]
    return ActionFinished("w#1-1", InferResult(action_id, code, "", 0, *spans))


def test_statistics_count_requests_rows_and_batches() -> None:
    async def story() -> None:
        used = bench(model_spec(), model_spec("idle"))
        metrics, now = used.metrics, used.clock.now
        sent = [batch(1, (1, 2)), batch(2, (1,)), batch(3, (1, 2))]
        metrics.on_commands(Tick(), sent, now)
        metrics.on_event(inferred(1), now)
        metrics.on_event(inferred(2, Code.ENGINE_ERROR), now)
        used.clock.advance(ms(1_000))
        metrics.on_event(inferred(3), used.clock.now)
        tallies = metrics.of_model("mlp")
        for latency_ms in (10, 20):
            tallies.observe_served(served(queue_ns=ms(3)), latency_ns=ms(latency_ms), slo_ns=ms(50))
        tallies.observe_refused("failed", "engine_error", latency_ns=ms(7))
        used.clock.advance(ms(5_000))
        (told,) = (await used.get("/v2/models/mlp/stats")).json["model_stats"]
        age_ms = time.time_ns() // 1_000_000 - told.pop("last_inference")
        assert 5_000 <= age_ms < 65_000
        none = {"count": 0, "ns": 0}
        assert told == {
            "name": "mlp",
            "version": "1",
            "inference_count": 6,
            "execution_count": 2,
            "inference_stats": {
                "success": {"count": 2, "ns": ms(30)},
                "fail": {"count": 1, "ns": ms(7)},
                "queue": {"count": 2, "ns": ms(6)},
                "compute_input": {"count": 4, "ns": ms(4)},
                "compute_infer": {"count": 4, "ns": ms(16)},
                "compute_output": {"count": 4, "ns": ms(8)},
                "cache_hit": none,
                "cache_miss": none,
            },
            "batch_stats": [
                {
                    "batch_size": 3,
                    "compute_input": {"count": 2, "ns": ms(2)},
                    "compute_infer": {"count": 2, "ns": ms(8)},
                    "compute_output": {"count": 2, "ns": ms(4)},
                }
            ],
        }
        both = (await used.get("/v2/models/stats")).json["model_stats"]
        assert [(m["name"], m["inference_count"]) for m in both] == [("mlp", 6), ("idle", 0)]
        versioned = await used.get("/v2/models/mlp/versions/1/stats")
        assert versioned.json["model_stats"][0]["execution_count"] == 2

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
        assert client.headers["allow"] == "GET, HEAD"

    run(story)
