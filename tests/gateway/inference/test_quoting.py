"""`POST /quote`, and `dry_run` on the routes of inference."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.inference.quoting import MAX_BODY_BYTES
from scheduler.events import Failed, Quote, Reason, Rejected
from scheduler.spec import ModelProfile, ShapeProfile, TensorSpec
from tests.gateway.http_doubles import (
    Bench,
    Client,
    binary_mlp,
    mlp_body,
    model_spec,
    ms,
    refused,
    run,
)

FREE = model_spec(
    "free",
    inputs=(TensorSpec("x", "FP32", (-1, -1)),),
    profile=ModelProfile(ms(8), (ShapeProfile("7", 7, {1: ms(1), 4: ms(3)}),)),
)


async def ask(bench: Bench, path: str = "/quote", **body: Any) -> Client:
    return await bench.post({"model": "mlp", **body}, path=path)


def test_a_yes_says_when_where_and_how_little_would_do() -> None:
    async def story() -> None:
        bench = Bench()
        bench.dispatcher.quote_answer = Quote(
            num_met=1,
            finish_ns=bench.clock() + ms(4.25),
            worker_id="local-0#3-1",
            num_ahead=2,
            min_slo_now_ns=ms(5),
            min_slo_ever_ns=ms(2.5),
        )
        client = await ask(bench, slo_ms=50, id="7")
        assert client.status == 200
        assert client.headers["content-type"] == "application/json"
        assert client.json == {
            "model_name": "mlp",
            "model_version": "1",
            "id": "7",
            "met": True,
            "count": 1,
            "num_met": 1,
            "slo_ms": 50.0,
            "predicted_ms": 4.0,  # from the instant of the answer, 0.25 ms after the arrival
            "slack_ms": 45.75,
            "min_slo_now_ms": 5.0,
            "min_slo_ever_ms": 2.5,
            "cold": False,
            "device": "local-0",
            "queue_ahead": 2,
            "refusal": None,
            "variant": None,
        }
        assert bench.dispatcher.quoted == [("mlp", ms(50), 1, "", "", 4)]
        assert bench.dispatcher.submitted == []
        page = (await bench.get("/metrics")).body.decode()
        assert 'remontoir_quotes_total{model="mlp",reason=""} 1\n' in page
        assert "remontoir_requests_total{" not in page

    run(story)


def test_a_no_is_an_answer_too_with_the_refusal_that_the_request_would_get() -> None:
    async def story() -> None:
        bench = Bench()
        refusal = Rejected(Reason.SLO_INFEASIBLE_NOW, "busy", ms(3), predicted_ns=ms(53.25))
        bench.dispatcher.quote_answer = Quote(num_met=0, refusal=refusal)
        told = (await ask(bench, slo_ms=50)).json
        assert (told["met"], told["predicted_ms"], told["slack_ms"]) == (False, 53.0, -3.25)
        assert told["refusal"] == {
            "status": 429,
            "reason": "slo_infeasible_now",
            "detail": "busy",
            "retry_after_ms": 3.0,
            "predicted_ms": 53.25,
        }
        bench.dispatcher.quote_answer = Quote(num_met=12, refusal=refusal)
        told = (await ask(bench, count=20)).json
        assert (told["met"], told["num_met"], told["predicted_ms"]) == (False, 12, None)
        assert bench.dispatcher.quoted_flags[-1] == (False, 20, "")
        page = (await bench.get("/metrics")).body.decode()
        assert 'remontoir_quotes_total{model="mlp",reason="slo_infeasible_now"} 2\n' in page

    run(story)


def test_the_shape_asked_about_is_the_inputs_or_the_first_profiled() -> None:
    async def story() -> None:
        bench = Bench(model_spec(), FREE)
        shaped = [{"name": "x", "shape": [2, 5], "datatype": "FP32"}]
        await ask(bench, model="free")
        await ask(bench, model="free", rows=3)
        await ask(bench, model="free", inputs=shaped)
        await ask(bench, model="free", inputs=shaped, rows=2)
        facts = [(rows, key, elements) for _, _, rows, _, key, elements in bench.dispatcher.quoted]
        assert facts == [(1, "7", 7), (3, "7", 7), (2, "5", 5), (2, "5", 5)]

    run(story)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"slo": 50}, "unknown field `slo`"),
        ({"count": 0}, ">= 1"),
        ({"count": 101}, "<= 100"),
        ({"rows": 5}, "rows is 5, model mlp takes at most 4"),
        ({"count": 2, "do_not_queue": True}, "do_not_queue is about one request, count is 2"),
        ({"slo_ms": -1}, "slo_ms is -1"),
        ({"inputs": []}, "model mlp needs input 'x': not given"),
        (
            {"inputs": [{"name": "z", "shape": [1, 4], "datatype": "FP32"}]},
            "model mlp has no input 'z'; it has x",
        ),
        (
            {"rows": 1, "inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32"}]},
            "rows is 1, the shapes of the inputs say 2",
        ),
    ],
)
def test_what_cannot_be_asked_is_named(change: Mapping[str, Any], detail: str) -> None:
    async def story() -> None:
        bench = Bench()
        body = refused(await ask(bench, **change), 400, "bad_request")
        assert detail in body["detail"]
        assert bench.dispatcher.quoted == []

    run(story)


def test_what_inference_refuses_at_the_door_is_the_same_error_here() -> None:
    async def story() -> None:
        bench = Bench(model_spec(), model_spec("broken", unavailable_reason="why"))
        refused(await ask(bench, model="other"), 404, "not_found")
        refused(await ask(bench, version="2"), 404, "not_found")
        refused(await ask(bench, model="broken"), 503, "model_unavailable")
        refused(await bench.get("/quote"), 405, "method_not_allowed")
        refused(await bench.post(b"{", path="/quote"), 400, "bad_request")
        refused(await bench.post(bytes(MAX_BODY_BYTES + 1), path="/quote"), 413, "too_large")
        header = {"x-do-not-queue": "1"}
        many = {"model": "mlp", "count": 3}
        refused(await bench.post(many, path="/quote", headers=header), 400, "bad_request")
        bench.lifecycle.refuse()
        refused(await ask(bench), 503, "draining")
        assert bench.app.infer.num_open == 0

    run(story)


def test_a_core_that_has_broken_is_a_500() -> None:
    async def story() -> None:
        bench = Bench()
        bench.dispatcher.quote_answer = Failed(Reason.INTERNAL_ERROR, "the gateway stops")
        refused(await ask(bench), 500, "internal_error")

    run(story)


def test_do_not_queue_may_be_asked_in_the_body_or_a_header() -> None:
    async def story() -> None:
        bench = Bench()
        await ask(bench, do_not_queue=True)
        await bench.post({"model": "mlp"}, path="/quote", headers={"x-do-not-queue": "true"})
        await ask(bench)
        flags = [is_impatient for is_impatient, _, _ in bench.dispatcher.quoted_flags]
        assert flags == [True, True, False]

    run(story)


# ---------------------------------------------------------------------- dry runs


@pytest.mark.parametrize("path", ["/infer", "/v2/models/mlp/infer"])
@pytest.mark.parametrize("way", ["member", "parameter", "header"])
def test_a_dry_run_is_checked_and_quoted_and_not_submitted(path: str, way: str) -> None:
    async def story() -> None:
        bench = Bench()
        changes: dict[str, Any] = {"slo_ms": 20, "id": "9"}
        if way == "member":
            changes["dry_run"] = True
        elif way == "parameter":
            changes["parameters"] = {"dry_run": True}
        headers = {"x-dry-run": "true"} if way == "header" else {}
        client = await bench.post(mlp_body(**changes), path=path, headers=headers)
        assert (client.status, client.json["met"], client.json["id"]) == (200, True, "9")
        assert bench.dispatcher.quoted == [("mlp", ms(20), 1, "", "", 4)]
        assert bench.dispatcher.submitted == []
        assert bench.app.infer.num_open == 0

    run(story)


def test_a_dry_run_finds_what_is_wrong_with_the_tensors() -> None:
    async def story() -> None:
        bench = Bench()
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3]}
        client = await bench.post(mlp_body(inputs=[tensor], dry_run=True))
        assert "3" in refused(client, 400, "bad_request")["detail"]
        client = await bench.post(mlp_body(), headers={"x-dry-run": "perhaps"})
        assert "x-dry-run" in refused(client, 400, "bad_request")["detail"]
        assert bench.dispatcher.quoted == []

    run(story)


def test_a_dry_run_asks_about_do_not_queue_as_well() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.post(mlp_body(dry_run=True, do_not_queue=True))
        assert bench.dispatcher.quoted_flags == [(True, 1, "")]

    run(story)


def test_a_dry_run_is_not_refused_before_its_tensors_are_there() -> None:
    """The early refusal of an upload counts as load, and would be a 429 where a quote is due."""

    async def story() -> None:
        bench = Bench()
        bench.dispatcher.refusal = Rejected(Reason.SLO_INFEASIBLE_NOW, "busy")
        body, headers = binary_mlp(dry_run=True)
        client = bench.client()
        client.start("POST", "/infer", headers)
        client.give(body[:-4], more=True)
        client.give(body[-4:])
        assert client.task is not None
        await client.task
        assert (client.status, client.json["met"]) == (200, True)
        assert bench.dispatcher.foreseen == []

    run(story)


def test_a_client_that_leaves_before_its_quote_is_answered_nothing() -> None:
    async def story() -> None:
        bench = Bench()
        waiting: list[Any] = []
        bench.dispatcher.quote = lambda *asked: waiting.append(asked[-1])  # type: ignore[method-assign]
        client = await ask(bench)
        client.hang_up()
        assert client.task is not None
        await client.task
        waiting[0](Quote(num_met=1), bench.clock())
        assert client.sent == []
        assert bench.app.infer.num_open == 0

    run(story)


def test_a_quote_comes_by_the_short_way_too() -> None:
    """A dry run over the server's own protocol: the answer is written from a later turn."""
    bench = Bench()
    written: list[Any] = []
    body = json.dumps(mlp_body(dry_run=True)).encode()

    async def story() -> None:
        bench.app.infer.answer(
            [], body, lambda reply, done: written.append(reply), arrival_ns=bench.clock()
        )

    asyncio.run(story())
    ((start, answer),) = written
    assert start["status"] == 200
    assert json.loads(answer["body"])["met"] is True
