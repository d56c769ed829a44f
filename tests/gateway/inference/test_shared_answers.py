"""Shared answers from the request's headers to the reply, over puppets and a hand-driven clock."""

import gc
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.inference.exchange import Exchange, Reply
from gateway.metrics.page import page_parts
from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantSpec
from gateway.variants.groups_file import GroupSpec, MemberSpec
from scheduler.actions import Code, Infer, InferResult, Span
from scheduler.events import ActionFinished, Reason, Rejected, RequestArrived, Send
from scheduler.spec import SharingSpec
from tests.gateway.http_doubles import (
    MLP_OUTPUTS,
    Bench,
    Client,
    binary_mlp,
    mlp_body,
    model_spec,
    ms,
    refused,
    run,
    served,
    settle,
)
from tests.gateway.inference.test_answer_sharing import shared_spec

KEY, OTHER, POOR = new_key(), new_key(), new_key()


def bearer(key: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {key.text}"}


async def serve(bench: Bench, number: int = -1) -> None:
    bench.dispatcher.submitted[number].on_done(served(), MLP_OUTPUTS)
    await settle()


def marks(*clients: Client) -> list[tuple[str, str]]:
    """Body's and header's."""
    assert all(client.status == 200 for client in clients)
    return [(client.json["cache"], client.headers["x-cache"]) for client in clients]


def figures(bench: Bench) -> dict[str, float]:
    lines = "".join(page_parts(bench.metrics)).splitlines()
    return {
        line.rpartition(" ")[0].removeprefix("remontoir_"): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(("remontoir_cache", "remontoir_single", "remontoir_requests_total"))
    }


def test_each_has_his_own_id_encoding_and_slo_of_one_execution() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        plain = await bench.post(mlp_body(id="a"), headers={"x-request-id": "first"})
        bench.clock.advance(ms(1))
        body, headers = binary_mlp(parameters={"binary_data_output": True}, slo_ms=70)
        binary = await bench.post(body, headers=headers)
        packed = await bench.post(mlp_body(slo_ms=90), headers={"accept-encoding": "gzip"})
        v2 = await bench.post(mlp_body(), path="/v2/models/mlp/infer")
        assert len(bench.dispatcher.submitted) == 1
        bench.clock.advance(ms(2))
        await serve(bench)
        assert (plain.json["id"], plain.headers["x-request-id"]) == ("a", "first")
        assert marks(plain, v2) == [("miss", "miss"), ("shared", "shared")]
        assert plain.json["slo"]["latency_ms"] == 3
        header = json.loads(binary.body[: int(binary.headers["inference-header-content-length"])])
        assert (header["slo"]["slo_ms"], header["slo"]["latency_ms"]) == (70, 2)
        assert binary.body.endswith(bytes(MLP_OUTPUTS.views[0]))
        assert json.loads(gzip.decompress(packed.body))["outputs"] == plain.json["outputs"]

    run(story)


def test_a_hit_costs_no_execution_and_says_that_it_is_one() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        first = await bench.post(mlp_body())
        await serve(bench)
        again = await bench.post(mlp_body(slo_ms=0.5, do_not_queue=True))
        other = mlp_body()
        other["inputs"][0]["data"] = [4, 3, 2, 1]
        await bench.post(other)
        assert len(bench.dispatcher.submitted) == 2
        assert marks(first, again) == [("miss", "miss"), ("hit", "hit")]
        assert again.json["outputs"] == first.json["outputs"]
        assert set(again.json["timing_ms"].values()) == {0}
        shown = figures(bench)
        assert shown['requests_total{model="mlp",outcome="served",reason=""}'] == 2
        assert shown['cache_requests_total{model="mlp",result="hit"}'] == 1
        assert shown['cache_requests_total{model="mlp",result="miss"}'] == 1
        assert shown['cache_entries{model="mlp"}'] == 1
        assert 0 < shown['cache_bytes{model="mlp"}'] <= shown['cache_max_bytes{model="mlp"}']
        stats = (await bench.get("/v2/models/mlp/stats")).json["model_stats"][0]["inference_stats"]
        assert (stats["success"]["count"], stats["cache_hit"]["count"]) == (2, 1)
        assert stats["cache_miss"]["count"] == 1

    run(story)


def test_models_that_have_not_asked_for_it_are_executed_each_time_and_say_nothing() -> None:
    async def story() -> None:
        bench = Bench()
        clients = [await bench.post(mlp_body()), await bench.post(mlp_body())]
        assert len(bench.dispatcher.submitted) == 2
        await serve(bench, 0)
        assert "cache" not in clients[0].json
        assert "x-cache" not in clients[0].headers
        assert not any("cache" in name for name in figures(bench))

    run(story)


def test_a_leader_that_hangs_up_does_not_take_the_others_along() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        leader, follower = await bench.post(mlp_body()), await bench.post(mlp_body())
        leader.hang_up()
        await settle()
        assert bench.dispatcher.cancelled == []
        await serve(bench)
        assert follower.status == 200
        assert bench.app.infer.num_open == 0
        key = 'requests_total{model="mlp",outcome="cancelled",reason="queued"}'
        assert figures(bench)[key] == 1

    run(story)


def test_the_last_that_hangs_up_ends_the_execution() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        clients = [await bench.post(mlp_body()), await bench.post(mlp_body())]
        for client in clients:
            client.hang_up()
            await settle()
        assert bench.dispatcher.cancelled == [1]
        assert (bench.app.infer.num_open, bench.app.infer.memory.num_bytes) == (0, 0)

    run(story)


def test_a_refusal_is_the_leaders_and_the_others_ask_by_their_own_deadline() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        short, long = await bench.post(mlp_body(slo_ms=5)), await bench.post(mlp_body(slo_ms=500))
        no = Rejected(Reason.SLO_INFEASIBLE_NOW, "no time", predicted_ns=ms(9))
        bench.dispatcher.submitted[0].on_done(no, None)
        await settle()
        refused(short, 429, "slo_infeasible_now")
        assert bench.dispatcher.submitted[1].slo_ns == ms(500)
        await serve(bench)
        assert marks(long) == [("miss", "miss")]

    run(story)


def test_an_answer_too_late_for_the_leader_is_kept_and_in_time_for_others() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        short, long = await bench.post(mlp_body(slo_ms=5)), await bench.post(mlp_body(slo_ms=500))
        bench.clock.advance(ms(6))
        await serve(bench)
        refused(short, 504, "deadline_exceeded_executing")
        assert marks(long) == [("shared", "shared")]
        assert marks(await bench.post(mlp_body())) == [("hit", "hit")]

    run(story)


def test_do_not_queue_waits_for_nobody() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        await bench.post(mlp_body())
        client = await bench.post(mlp_body(do_not_queue=True))
        assert [request.do_not_queue for request in bench.dispatcher.submitted] == [False, True]
        await serve(bench)
        assert "cache" not in client.json

    run(story)


def test_an_unloaded_model_forgets_its_answers() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        await bench.post(mlp_body())
        await serve(bench)
        assert figures(bench)['cache_entries{model="mlp"}'] == 1
        await bench.post(b"", path="/v2/repository/models/mlp/unload")
        assert figures(bench)['cache_entries{model="mlp"}'] == 0
        refused(await bench.post(mlp_body()), 503, "model_unavailable")

    run(story)


def test_a_new_version_does_not_answer_with_the_old_ones_outputs() -> None:
    async def story() -> None:
        bench = Bench(shared_spec())
        await bench.post(mlp_body())
        await serve(bench)
        bench.catalog["mlp"] = shared_spec(version="2", content_hash="new")
        client = await bench.post(mlp_body())
        assert len(bench.dispatcher.submitted) == 2
        await serve(bench)
        assert (client.json["model_version"], client.json["cache"]) == ("2", "miss")

    run(story)


def test_an_early_no_is_not_said_where_an_answer_may_be_there() -> None:
    """Of a body in pieces: only the whole of it says whether."""

    async def story() -> None:
        bench = Bench(shared_spec())
        body, headers = binary_mlp()
        await bench.post(body, headers=headers)
        await serve(bench)
        bench.dispatcher.refusal = Rejected(Reason.SLO_INFEASIBLE_NOW, "no time")
        client = bench.client()
        client.start("POST", "/infer", {"content-length": str(len(body)), **headers})
        client.give(body[:-4], more=True)
        await settle()
        client.give(body[-4:])
        await settle()
        assert client.headers["x-cache"] == "hit"

    run(story)


def test_tenants_share_what_both_may_use_and_pay_for_what_they_executed() -> None:
    async def story() -> None:
        keys = {"shop": KEY, "lab": OTHER}
        tenants = {
            name: TenantSpec(keys=(key.line,), gpu_ms_per_s=1.0, gpu_ms_burst=10.0)
            for name, key in keys.items()
        }
        tenants["poor"] = TenantSpec(keys=(POOR.line,), models=("other",), requests_per_s=1)
        bench = Bench(shared_spec(), tenants=tenants)
        assert bench.keyring is not None
        leader = await bench.post(mlp_body(), headers=bearer(KEY))
        follower = await bench.post(mlp_body(), headers=bearer(OTHER))
        assert [request.tenant for request in bench.dispatcher.submitted] == ["shop"]
        await serve(bench)
        hit = await bench.post(mlp_body(), headers=bearer(OTHER))
        assert marks(leader, follower, hit)[2] == ("hit", "hit")
        refused(await bench.post(mlp_body(), headers=bearer(POOR)), 403, "forbidden")
        assert [tenant.num_open for tenant in bench.keyring.tenants.values()] == [0, 0, 0]

    run(story)


def test_a_hit_is_let_through_an_empty_device_quota_and_counts_as_a_request() -> None:
    async def story() -> None:
        spec = TenantSpec(
            keys=(KEY.line,),
            gpu_ms_per_s=0.001,
            gpu_ms_burst=1.0,
            requests_per_s=0.001,
            requests_burst=3,
        )
        bench = Bench(shared_spec(), tenants={"shop": spec})
        await bench.post(mlp_body(), headers=bearer(KEY))
        charge(bench)
        await serve(bench)
        other = mlp_body()
        other["inputs"][0]["data"] = [4, 3, 2, 1]
        refused(await bench.post(other, headers=bearer(KEY)), 429, "quota_exceeded")
        for _ in range(2):
            hit = await bench.post(mlp_body(), headers=bearer(KEY))
            assert marks(hit) == [("hit", "hit")]
        body = refused(await bench.post(mlp_body(), headers=bearer(KEY)), 429, "quota_exceeded")
        assert "requests/s" in body["detail"]

    run(story)


def charge(bench: Bench) -> None:
    """As if request 1 of shop had been measured to take 100 ms."""
    assert bench.device_time is not None
    arrived = RequestArrived(1, "mlp", 0, ms(50), elements=4, tenant="shop")
    bench.device_time.on_event(arrived, 0)
    infer = Infer(7, "mlp", 1, (1,), (1,), 0, 1, ms(1))
    bench.device_time.on_commands(arrived, [Send("w#1-1", infer)], 0)
    span = Span(0, ms(100), ms(100))
    none = Span(0, 0, 0)
    result = InferResult(7, Code.OK, "", 0, none, span, none)
    bench.device_time.on_event(ActionFinished("w#1-1", result), 0)


@pytest.mark.parametrize("model", ["mlp", "g"])
def test_answered_requests_leave_nothing_to_the_garbage_collector(model: str) -> None:
    """It comes late, and a body would wait for it."""

    async def story() -> None:
        group = GroupSpec(members=(MemberSpec("mlp"), MemberSpec("other")))
        bench = Bench(shared_spec(), model_spec("other"), groups={"g": group})

        def ask(data: list[int]) -> Exchange:
            body = mlp_body(model=model)
            body["inputs"][0]["data"] = data
            exchange = bench.app.infer.answer(
                [], json.dumps(body).encode(), write, arrival_ns=bench.clock.now
            )
            assert exchange is not None
            return exchange

        def write(reply: Reply, on_written: Callable[[], None]) -> None:
            on_written()

        gc.collect()
        gc.disable()
        try:
            known = {id(each) for each in gc.get_objects() if isinstance(each, Exchange)}
            for _ in range(3):  # leader, follower; later: hits
                ask([1, 2, 3, 4])
            bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
            ask([1, 2, 3, 4])
            refused_one = ask([4, 3, 2, 1])
            no = Rejected(Reason.SLO_INFEASIBLE_NOW, "no time")
            bench.dispatcher.submitted[1].on_done(no, None)
            if model == "g":  # passed on to the other member
                bench.dispatcher.submitted[2].on_done(no, None)
            gone = ask([5, 5, 5, 5])
            gone.hang_up()
            del refused_one, gone
            bench.dispatcher.submitted.clear()
            left = [each for each in gc.get_objects() if isinstance(each, Exchange)]
            assert [each for each in left if id(each) not in known] == []
        finally:
            gc.enable()

    run(story)


def test_the_protocols_configuration_says_that_answers_are_kept() -> None:
    async def story() -> None:
        bench = Bench(shared_spec(), model_spec("flight", sharing=SharingSpec()))
        assert (await bench.get("/v2/models/mlp/config")).json["response_cache"] == {"enable": True}
        assert "response_cache" not in (await bench.get("/v2/models/flight/config")).json

    run(story)
