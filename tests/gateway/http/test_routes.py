import base64
import hashlib
import re

import pytest

from gateway.http.docs_page import ASSETS, PATHS
from scheduler.device import WeightsState
from tests.gateway.http_doubles import Bench, PuppetDevice, model_spec, ms, run
from tests.gateway.listening import listening
from tests.gateway.listening import run as run_listening


def test_livez_answers_in_every_phase() -> None:
    async def story() -> None:
        bench = Bench()
        bench.lifecycle.refuse()
        client = await bench.get("/livez")
        assert (client.status, client.json) == (200, {"live": True})

    run(story)


def test_readyz_needs_a_worker_but_no_weights() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.get("/readyz")
        assert (client.status, client.json["reason"]) == (503, "no_worker")
        assert client.headers["retry-after"] == "1"
        bench.scheduler.devices["w#1-1"] = PuppetDevice({})
        client = await bench.get("/readyz")
        assert (client.status, client.json) == (200, {"live": True, "ready": True})

    run(story)


def test_readyz_says_no_while_starting_and_draining() -> None:
    async def story() -> None:
        bench = Bench()
        bench.scheduler.devices["w#1-1"] = PuppetDevice({})
        bench.lifecycle.__init__()  # type: ignore[misc]  # as it was before serve()
        assert (await bench.get("/readyz")).json["reason"] == "starting"
        bench.lifecycle.serve()
        bench.lifecycle.drain()
        client = await bench.get("/readyz")
        assert (client.status, client.json["reason"]) == (503, "draining")

    run(story)


def test_a_model_asked_for_before_any_is_known_is_not_called_unknown() -> None:
    async def story() -> None:
        bench = Bench()
        bench.catalog.clear()
        bench.lifecycle.__init__()  # type: ignore[misc]  # as it was before serve()
        client = await bench.get("/models/mlp")
        assert (client.status, client.json["reason"]) == (503, "starting")
        bench.lifecycle.serve()
        client = await bench.get("/models/mlp")
        assert (client.status, client.json["reason"]) == (404, "not_found")

    run(story)


def test_models_are_listed_with_state_and_reason() -> None:
    async def story() -> None:
        bench = Bench(
            model_spec(default_slo_ns=ms(250)), model_spec("bad", unavailable_reason="not ONNX")
        )
        bench.scheduler.devices["w#1-1"] = PuppetDevice({"mlp": WeightsState.RESIDENT})
        mlp, bad = (await bench.get("/models")).json["models"]
        assert mlp == {
            "name": "mlp",
            "version": "1",
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4], "batch_axis": 0}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2], "batch_axis": 0}],
            "batch_sizes": [1, 2, 4],
            "runs_exact_batch": True,
            "weights_bytes": 20971520,
            "pages": 2,
            "pinned": False,
            "default_slo_ms": 250.0,
            "queue_depth": 3,
            "devices": [{"worker": "w#1-1", "kind": "cpu", "state": "resident"}],
            "profile": {
                "load_ms": 8.0,
                "shapes": [{"shape_key": "", "exec_ms": {"1": 1.0, "4": 3.0}}],
            },
            "unavailable_reason": None,
            "kept_versions": [],
            "problem": None,
        }
        assert (bad["unavailable_reason"], bad["profile"]) == ("not ONNX", None)
        assert bad["default_slo_ms"] == 1000.0
        assert bad["devices"][0]["state"] == "absent"
        assert (await bench.get("/models/mlp")).json == mlp

    run(story)


def test_a_model_the_scheduler_has_not_met_yet_has_an_empty_queue() -> None:
    async def story() -> None:
        bench = Bench()
        bench.scheduler.models = {}
        assert (await bench.get("/models/mlp")).json["queue_depth"] == 0

    run(story)


@pytest.mark.parametrize("path", ["/models/nope", "/nope", "/infer/", "/livez/", "/", "/v20"])
def test_what_is_not_there_is_our_own_404(path: str) -> None:
    async def story() -> None:
        client = await Bench().get(path)
        assert (client.status, client.json["reason"]) == (404, "not_found")
        assert client.headers["content-type"] == "application/problem+json"
        assert client.headers["x-request-id"] == client.json["request_id"]

    run(story)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/models", "/models/mlp", "/metrics"])
def test_another_method_is_our_own_405(path: str) -> None:
    async def story() -> None:
        client = await Bench().get(path, method="POST")
        assert (client.status, client.json["reason"]) == (405, "method_not_allowed")
        assert client.headers["allow"] == "GET, HEAD"

    run(story)


def test_a_clients_request_id_is_returned_on_errors() -> None:
    async def story() -> None:
        client = await Bench().get("/nope", **{"x-request-id": "abc"})
        assert client.json["request_id"] == "abc"

    run(story)


def test_metrics_are_prometheus_text_with_every_family() -> None:
    async def story() -> None:
        bench = Bench()
        bench.scheduler.devices["w#1-1"] = PuppetDevice({})
        client = await bench.get("/metrics")
        assert client.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = client.body.decode()
        assert 'remontoir_queue_depth{model="mlp"} 3\n' in text
        assert 'remontoir_weights_pages{worker="w",state="resident"} 2\n' in text
        assert text.count("# TYPE remontoir_requests_total counter") == 1

    run(story)


def test_the_contract_is_served_and_shown() -> None:
    async def story() -> None:
        bench = Bench()
        contract = (await bench.get("/openapi.json")).json
        assert contract["openapi"] == "3.1.0"
        assert contract["paths"]["/infer"]["post"]["operationId"] == "infer"

    run(story)


def test_the_page_that_shows_it_loads_nothing_from_another_host() -> None:
    async def story() -> None:
        bench = Bench()
        page = await bench.get("/docs")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert b'url: "/openapi.json"' in page.body
        addresses = re.findall(rb'(?:src|href|url)(?:="|: ")([^"]*)"', page.body)
        assert sorted(addresses) == sorted(path.encode() for path in PATHS - {"/docs"})
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self' 'sha256-")
        assert "http" not in policy
        (script,) = re.findall(rb"<script>(.*)</script>", page.body, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(script).digest()).decode() in policy

    run(story)


def test_the_files_of_the_page_are_served() -> None:
    pytest.importorskip("fastapi_swagger")

    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            for name, media_type in ASSETS.items():
                head = f"GET /docs/{name} HTTP/1.1\r\nHost: x\r\n\r\n"
                connection.writer.write(head.encode())
                status, headers, body = await connection.answer()
                assert (status, headers["content-type"].split(";")[0]) == (200, media_type)
                assert len(body) > 500

    run_listening(story)


def test_a_bug_in_a_route_is_a_500_of_ours_and_is_raised() -> None:
    async def story() -> None:
        bench = Bench()
        del bench.scheduler.devices
        client = bench.client()
        client.start("GET", "/readyz", {})
        client.give(b"")
        assert client.task is not None
        with pytest.raises(AttributeError):
            await client.task
        assert (client.status, client.json["reason"]) == (500, "internal_error")

    run(story)
