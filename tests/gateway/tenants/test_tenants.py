"""Requests of tenants, from their headers to the scheduler and back, on a hand-driven clock."""

from typing import Any

import msgspec
import pytest

from gateway.config import GatewayConfig
from gateway.metrics.page import page_parts
from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantSpec
from scheduler.device import WeightsState
from scheduler.events import Expired, Reason, Rejected
from scheduler.priority import HIGH, LOW, NORMAL
from tests.gateway.http_doubles import (
    MLP_OUTPUTS,
    Bench,
    Client,
    PuppetDevice,
    binary_mlp,
    mlp_body,
    model_spec,
    ms,
    refused,
    run,
    served,
    settle,
)

KEY, OTHER = new_key(), new_key()
BEARER = {"authorization": f"Bearer {KEY.text}"}


def bench(*specs: Any, config: GatewayConfig | None = None, **settings: Any) -> Bench:
    """Tenant shop has `settings`; ops is an admin."""
    return Bench(
        *specs,
        config=config,
        tenants={
            "shop": TenantSpec(keys=(KEY.line,), **settings),
            "ops": TenantSpec(keys=(OTHER.line,), admin=True),
        },
    )


async def asked(on: Bench, body: dict[str, Any] | None = None, **headers: str) -> Client:
    return await on.post(body or mlp_body(), headers={**BEARER, **headers})


async def answered(on: Bench, outcome: Any, tensors: Any = None) -> None:
    on.dispatcher.submitted[-1].on_done(outcome, tensors)
    await settle()


def figures(on: Bench) -> dict[str, float]:
    lines = "".join(page_parts(on.metrics)).splitlines()
    return {
        line.rpartition(" ")[0].removeprefix("remontoir_"): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(("remontoir_tenant", "remontoir_unauth"))
    }


def test_with_a_key_a_request_is_served_for_its_tenant() -> None:
    async def story() -> None:
        on = bench()
        for headers in (BEARER, {"x-api-key": KEY.text}):
            client = await on.post(mlp_body(), headers=headers)
            assert on.dispatcher.submitted[-1].tenant == "shop"
            assert figures(on)['tenant_open_requests{tenant="shop"}'] == 1
            await answered(on, served(), MLP_OUTPUTS)
            assert client.status == 200
        assert figures(on)['tenant_requests_total{tenant="shop",outcome="served",reason=""}'] == 2
        assert figures(on)['tenant_open_requests{tenant="shop"}'] == 0

    run(story)


@pytest.mark.parametrize("path", ["/infer", "/v2/models/mlp/infer"])
def test_without_a_valid_key_it_is_401_and_says_how(path: str) -> None:
    async def story() -> None:
        on = bench()
        for headers, challenge in (
            ({}, 'Bearer realm="remontoir"'),
            ({"x-api-key": new_key().text}, 'Bearer realm="remontoir", error="invalid_token"'),
            ({**BEARER, "x-api-key": OTHER.text}, 'Bearer realm="remontoir", error="invalid_tok'),
        ):
            client = await on.post(mlp_body(), headers=headers, path=path)
            assert client.status == 401
            assert client.json["reason"] == "unauthenticated"
            assert client.headers["www-authenticate"].startswith(challenge)
            assert not any(KEY.text in str(message) for message in client.sent)
        assert on.dispatcher.submitted == []
        assert figures(on)['unauthenticated_total{kind="unknown"}'] == 1

    run(story)


def test_a_body_is_not_waited_for_without_a_key() -> None:
    async def story() -> None:
        on = bench()
        client = on.client()
        client.start("POST", "/infer", {"content-length": "1000000"})
        await settle()
        refused(client, 401, "unauthenticated")

    run(story)


def test_another_tenants_models_are_forbidden_whether_or_not_they_are_there() -> None:
    async def story() -> None:
        on = bench(model_spec(), model_spec("secret"), models=("mlp",))
        for name in ("secret", "nobody"):
            body = refused(await asked(on, mlp_body(model=name)), 403, "forbidden")
            assert body["detail"] == f"tenant shop may not use the model {name!r}"
            client = await on.post(mlp_body(), headers=BEARER, path=f"/v2/models/{name}/infer")
            assert client.status == 403
        assert on.dispatcher.submitted == []
        await asked(on)
        assert len(on.dispatcher.submitted) == 1

    run(story)


def test_the_slo_is_the_bodys_the_headers_the_tenants_then_the_models() -> None:
    async def story() -> None:
        on = bench(model_spec(default_slo_ns=ms(200)), default_slo_ms=80, min_slo_ms=10)
        without = {k: v for k, v in mlp_body().items() if k != "slo_ms"}
        for body, headers, slo_ms in (
            (mlp_body(slo_ms=50), {"x-slo-ms": "60"}, 50),
            (without, {"x-slo-ms": "60"}, 60),
            (without, {}, 80),
            (without, {"grpc-timeout": "70m"}, 70),
        ):
            await asked(on, body, **headers)
            assert on.dispatcher.submitted[-1].slo_ns == ms(slo_ms)

        plain = bench(model_spec(default_slo_ns=ms(200)))
        await asked(plain, without)
        assert plain.dispatcher.submitted[-1].slo_ns == ms(200)
        raised = bench(model_spec(default_slo_ns=ms(3)), min_slo_ms=10)
        await asked(raised, without)
        assert raised.dispatcher.submitted[-1].slo_ns == ms(10)

    run(story)


def test_an_slo_under_the_tenants_minimum_is_403_with_both_figures() -> None:
    async def story() -> None:
        on = bench(min_slo_ms=10)
        body = refused(await asked(on, mlp_body(slo_ms=5)), 403, "slo_below_tenant_minimum")
        assert (body["slo_ms"], body["min_slo_ms"]) == (5.0, 10.0)
        await asked(on, mlp_body(slo_ms=10))
        assert len(on.dispatcher.submitted) == 1

    run(story)


@pytest.mark.parametrize(
    ("of_tenant", "asked_for", "expected"),
    [
        ("normal", None, NORMAL), ("normal", 0, NORMAL), ("normal", 1, NORMAL), ("normal", 3, LOW),
        ("high", None, HIGH), ("high", 1, HIGH), ("high", 2, NORMAL), ("high", 7, LOW),
        ("low", None, LOW), ("low", 1, LOW), ("low", 2, LOW),
    ],
)  # fmt: skip
def test_a_request_has_its_tenants_class_or_a_lower_one(
    of_tenant: Any, asked_for: int | None, expected: int
) -> None:
    async def story() -> None:
        on = bench(priority=of_tenant)
        wishes = {} if asked_for is None else {"parameters": {"priority": asked_for}}
        await asked(on, mlp_body(**wishes))
        assert on.dispatcher.submitted[-1].priority == expected

    run(story)


@pytest.mark.parametrize(
    ("of_model", "asked_for", "expected"),
    [(LOW, 0, LOW), (HIGH, 0, HIGH), (HIGH, 2, NORMAL), (NORMAL, 1, HIGH)],
)
def test_without_tenants_it_has_what_it_asks_for_or_its_models(
    of_model: int, asked_for: int, expected: int
) -> None:
    async def story() -> None:
        on = Bench(msgspec.structs.replace(model_spec(), priority=of_model))
        await on.post(mlp_body(parameters={"priority": asked_for}))
        assert on.dispatcher.submitted[-1].priority == expected

    run(story)


def test_a_model_may_lower_its_tenants_class() -> None:
    async def story() -> None:
        for of_model, expected in ((LOW, LOW), (HIGH, NORMAL)):
            on = bench(msgspec.structs.replace(model_spec(), priority=of_model))
            await asked(on)
            assert on.dispatcher.submitted[-1].priority == expected

    run(story)


def test_over_its_rate_a_tenant_hears_exactly_when_and_the_others_go_on() -> None:
    async def story() -> None:
        on = bench(requests_per_s=0.4)
        await asked(on)
        on.clock.advance(ms(0.25))
        client = await asked(on)
        body = refused(client, 429, "quota_exceeded")
        assert body["retry_after_ms"] == 2499.75
        assert client.headers["retry-after"] == "3"
        await on.post(mlp_body(), headers={"x-api-key": OTHER.text})
        assert [each.tenant for each in on.dispatcher.submitted] == ["shop", "ops"]
        on.clock.advance(ms(2499.75))
        await asked(on)
        assert len(on.dispatcher.submitted) == 3

    run(story)


def test_the_status_for_shedding_is_not_that_of_quotas() -> None:
    async def story() -> None:
        on = bench(config=GatewayConfig(shed_status=503), requests_per_s=1)
        await asked(on)
        refused(await asked(on), 429, "quota_exceeded")

    run(story)


def test_a_concurrency_limit_counts_until_the_answer_or_the_hang_up() -> None:
    async def story() -> None:
        on = bench(max_concurrent=1)
        first = await asked(on)
        refused(await asked(on), 429, "quota_exceeded")
        first.hang_up()
        await settle()
        second = await asked(on)
        await answered(on, served(), MLP_OUTPUTS)
        assert second.status == 200
        await asked(on)
        assert len(on.dispatcher.submitted) == 3

    run(story)


def test_device_time_is_held_while_a_request_is_open() -> None:
    """One row takes 1 ms by the profile."""

    async def story() -> None:
        on = bench(gpu_ms_per_s=10, gpu_ms_burst=2)
        await asked(on)
        await asked(on)
        body = refused(await asked(on), 429, "quota_exceeded")
        assert body["retry_after_ms"] == 100.0
        assert "this request takes about 1.000 ms" in body["detail"]
        # expired in the queue, it took nothing
        await answered(on, Expired(Reason.DEADLINE_EXCEEDED_QUEUED, "late"))
        await asked(on)
        assert len(on.dispatcher.submitted) == 3

    run(story)


def test_what_was_refused_costs_nothing_and_what_was_malformed_counts() -> None:
    async def story() -> None:
        on = bench(requests_per_s=1)
        for _ in range(3):
            client = await asked(on)
            await answered(on, Rejected(Reason.SLO_INFEASIBLE_NOW, "busy", retry_after_ns=ms(5)))
            refused(client, 429, "slo_infeasible_now")
        refused(await asked(on, mlp_body(inputs=[])), 400, "bad_request")
        refused(await asked(on), 429, "quota_exceeded")
        counted = figures(on)
        for outcome, reason, count in (
            ("rejected", "slo_infeasible_now", 3),
            ("invalid", "bad_request", 1),
            ("rejected", "quota_exceeded", 1),
        ):
            labels = f'tenant="shop",outcome="{outcome}",reason="{reason}"'
            assert counted[f"tenant_requests_total{{{labels}}}"] == count

    run(story)


def test_an_upload_is_foreseen_for_its_tenant() -> None:
    async def story() -> None:
        on = bench(model_spec(), model_spec("secret"), models=("mlp",), default_slo_ms=70)
        body, headers = binary_mlp(slo_ms=None)
        for name in ("mlp", "secret"):
            client = on.client()
            path = f"/v2/models/{name}/infer"
            client.start("POST", path, {**BEARER, **headers, "content-length": str(len(body))})
            client.give(body[:-4], more=True)
            await settle()
        assert on.dispatcher.foreseen == [("mlp", ms(70), 1, "", 4)]

    run(story)


# ------------------------------------------------------------------ the other routes


def test_probes_need_no_key_and_everything_else_does() -> None:
    async def story() -> None:
        on = bench()
        on.scheduler.devices["w#1-1"] = PuppetDevice({})
        probes = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
        for path in (*probes, "/docs", "/openapi.json"):  # a browser has no key to send
            assert (await on.get(path)).status == 200
        for path in (
            *("/models", "/models/mlp", "/metrics", "/docs/nothing", "/nowhere"),
            *("/v2", "/v2/models/mlp", "/v2/models/mlp/ready", "/v2/models/stats"),
        ):
            client = await on.get(path)
            assert client.status == 401, path
            is_v2 = path.startswith("/v2")
            media_type = "application/json" if is_v2 else "application/problem+json"
            assert client.headers["content-type"] == media_type
            assert client.headers["x-request-id"] == client.json["request_id"]
        assert (await on.get("/models", **BEARER)).status == 200
        assert (await on.get("/nowhere", **BEARER)).status == 404

    run(story)


def test_lists_show_what_the_tenant_may_use() -> None:
    async def story() -> None:
        on = bench(model_spec(), model_spec("secret"), models=("m*",))
        both = ["mlp", "secret"]
        for headers, names in ((BEARER, ["mlp"]), ({"x-api-key": OTHER.text}, both)):
            models = (await on.get("/models", **headers)).json["models"]
            stats = (await on.get("/v2/models/stats", **headers)).json["model_stats"]
            posted = await on.post(b"", headers=headers, path="/v2/repository/index")
            for entries in (models, stats, posted.json):
                assert [entry["name"] for entry in entries] == names
        for path in ("/models/secret", "/v2/models/secret", "/v2/models/secret/versions/1/stats"):
            assert (await on.get(path, **BEARER)).status == 403
            assert (await on.get(path, **{"x-api-key": OTHER.text})).status == 200

    run(story)


def test_what_changes_something_needs_an_admin() -> None:
    async def story() -> None:
        on = bench()
        on.scheduler.devices["w#1-1"] = PuppetDevice({"mlp": WeightsState.RESIDENT})
        path = "/v2/repository/models/mlp/load"
        client = await on.post(b"", headers=BEARER, path=path)
        assert client.status == 403
        assert client.json["detail"] == (
            f"POST {path} needs a tenant with `admin: true`, shop has not"
        )
        assert on.dispatcher.fed == []
        client = await on.post(b"", headers={"x-api-key": OTHER.text}, path=path)
        assert client.status == 200
        # what is not there yet is closed as well
        assert (await on.post(b"", headers=BEARER, path="/v2/something/new")).status == 403

    run(story)


def test_metrics_show_all_tenants_and_so_are_not_for_each() -> None:
    async def story() -> None:
        on = bench()
        assert (await on.get("/metrics", **BEARER)).status == 403
        assert (await on.get("/metrics", **{"x-api-key": OTHER.text})).status == 200
        assert (await bench(metrics=True).get("/metrics", **BEARER)).status == 200
        is_open = bench(config=GatewayConfig(open_metrics=True))
        assert (await is_open.get("/metrics")).status == 200
        assert (await is_open.get("/models")).status == 401

    run(story)


@pytest.mark.parametrize("end", ["\n", "\r", "\x00"])
def test_a_path_that_only_looks_like_another_is_no_way_round(end: str) -> None:
    """A route's pattern may match before a last line feed."""

    async def story() -> None:
        on = bench(model_spec(), model_spec("secret"), models=("m*",))
        for path in (
            *("/metrics", "/ui/events", "/models", "/models/secret", "/requests"),
            *("/v2/models/secret", "/v2/models/secret/config", "/v2/models/secret/stats"),
            *("/v2/models/secret/ready", "/v2/models/secret/versions/1/stats"),
        ):
            assert (await on.get(path + end, **BEARER)).status in (403, 404), path

    run(story)


def test_two_keys_are_a_400_on_every_route() -> None:
    async def story() -> None:
        on = bench()
        client = on.client()
        client.start(
            "GET",
            "/models",
            [("x-api-key", OTHER.text), ("x-api-key", KEY.text)],
        )
        client.give(b"")
        await settle()
        assert (client.status, client.json["detail"]) == (400, "header x-api-key is given twice")

    run(story)


def test_what_no_device_could_do_counts() -> None:
    async def story() -> None:
        on = bench(requests_per_s=1)
        client = await asked(on)
        await answered(on, Rejected(Reason.SLO_INFEASIBLE_EVER, "too short", min_slo_ns=ms(5)))
        refused(client, 422, "slo_infeasible_ever")
        refused(await asked(on), 429, "quota_exceeded")

    run(story)


def test_without_tenants_there_is_nothing_of_them() -> None:
    async def story() -> None:
        on = Bench()
        client = await on.post(mlp_body(), headers={"authorization": "Basic dTpw"})
        await answered(on, served(), MLP_OUTPUTS)
        assert client.status == 200
        assert on.dispatcher.submitted[-1].tenant == ""
        assert figures(on) == {}

    run(story)


def test_a_quote_is_a_tenants_too_and_takes_no_device_time_from_it() -> None:
    async def story() -> None:
        on = bench(
            model_spec(),
            model_spec("secret"),
            models=("mlp",),
            default_slo_ms=70,
            min_slo_ms=10,
            gpu_ms_per_s=10,
        )
        client = await on.post({"model": "mlp"}, path="/quote")
        assert refused(client, 401, "unauthenticated")

        async def quoted(**body: Any) -> Client:
            return await on.post({"model": "mlp", **body}, path="/quote", headers=BEARER)

        refused(await quoted(model="secret"), 403, "forbidden")
        refused(await quoted(slo_ms=9), 403, "slo_below_tenant_minimum")
        for _ in range(200):  # of a millisecond each: twenty times what it may use in a second
            client = await quoted()
            assert (client.status, client.json["slo_ms"]) == (200, 70)
        assert on.dispatcher.quoted_flags[-1] == (False, 1, "shop")
        assert figures(on)['tenant_open_requests{tenant="shop"}'] == 0
        client = await asked(on, mlp_body(dry_run=True))
        assert client.json["met"] is True

    run(story)
