"""Groups from the request to the reply, over puppets: verdicts are given by hand."""

from typing import Any

import pytest

from gateway.metrics.page import page_parts
from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantSpec
from gateway.variants.groups import Groups
from gateway.variants.groups_file import GroupsError, GroupSpec, MemberSpec
from scheduler.events import Quote, Reason, Rejected
from scheduler.spec import ModelSpec, TensorSpec
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

LARGE, MIDDLE, SMALL = "large", "middle", "small"
KEY, OTHER = new_key(), new_key()


def no(reason: Reason = Reason.SLO_INFEASIBLE_NOW, predicted_ms: float | None = 9) -> Rejected:
    predicted_ns = None if predicted_ms is None else ms(predicted_ms)
    return Rejected(reason, f"{predicted_ms} ms", predicted_ns=predicted_ns)


def late(reason: Reason = Reason.SLO_INFEASIBLE_NOW, predicted_ms: float | None = 9) -> Quote:
    return Quote(num_met=0, refusal=no(reason, predicted_ms))


def bench(*specs: ModelSpec, tenants: Any = None, **changes: Any) -> Bench:
    """Group `g` of three, the most accurate first."""
    members = tuple(MemberSpec(name) for name in (LARGE, MIDDLE, SMALL))
    return Bench(
        *(specs or [model_spec(name) for name in (LARGE, MIDDLE, SMALL)]),
        groups={"g": GroupSpec(members=members, **changes)},
        tenants=tenants,
    )


def body(**changes: Any) -> dict[str, Any]:
    return mlp_body(model="g", **changes)


def submitted(on: Bench) -> list[str]:
    return [request.model for request in on.dispatcher.submitted]


async def answer(on: Bench, outcome: Any = None, number: int = -1) -> None:
    tensors = MLP_OUTPUTS if outcome is None else None
    on.dispatcher.submitted[number].on_done(outcome or served(), tensors)
    await settle()


def figures(on: Bench) -> dict[str, float]:
    lines = "".join(page_parts(on.metrics)).splitlines()
    return {
        line.rpartition(" ")[0].removeprefix("remontoir_"): float(line.rpartition(" ")[2])
        for line in lines
        if not line.startswith("#")
    }


# ---------------------------------------------------------------------- best


def test_the_most_accurate_that_is_in_time_answers_under_the_groups_name() -> None:
    async def story() -> None:
        on = bench()
        client = await on.post(body())
        assert (submitted(on), on.dispatcher.asked) == ([LARGE], [LARGE])
        await answer(on)
        assert client.json["model_name"] == "g"
        assert (client.json["variant"], client.json["model_version"]) == (LARGE, "1")
        shown = figures(on)
        assert shown['requests_total{model="large",outcome="served",reason=""}'] == 1
        assert shown['group_requests_total{group="g",model="large"}'] == 1

    run(story)


def test_recent_requests_are_found_by_the_groups_name() -> None:
    async def story() -> None:
        on = bench()
        await on.post(body(id="mine"))
        await answer(on)
        listed = (await on.get("/requests?model=g")).json["requests"]
        assert [entry["model"] for entry in listed] == ["g"]
        assert (await on.get("/requests?model=nobody")).status == 404

    run(story)


def test_one_that_is_late_is_passed_over() -> None:
    async def story() -> None:
        on = bench()
        on.dispatcher.verdicts = {LARGE: late(), MIDDLE: late(Reason.COLD_MODEL)}
        client = await on.post(body(), path="/v2/models/g/infer")
        assert (submitted(on), on.dispatcher.asked) == ([SMALL], [LARGE, MIDDLE, SMALL])
        await answer(on)
        assert client.json["variant"] == SMALL

    run(story)


@pytest.mark.parametrize(
    ("verdicts", "asked"),
    [
        ({LARGE: late(predicted_ms=9), MIDDLE: late(predicted_ms=3), SMALL: late()}, MIDDLE),
        (
            {
                LARGE: late(Reason.COLD_MODEL, None),
                MIDDLE: late(Reason.NO_WORKER, None),
                SMALL: late(Reason.NO_WORKER, None),
            },
            SMALL,
        ),
    ],
)
def test_where_nobody_is_in_time_the_refusal_is_that_of_the_fastest(
    verdicts: dict[str, Quote | None], asked: str
) -> None:
    async def story() -> None:
        on = bench()
        on.dispatcher.verdicts = verdicts
        client = await on.post(body())
        assert submitted(on) == [asked]
        await answer(on, no(predicted_ms=3))
        assert refused(client, 429, "slo_infeasible_now")["predicted_ms"] == 3
        assert submitted(on) == [asked]

    run(story)


def test_one_that_is_refused_after_all_passes_the_request_on() -> None:
    async def story() -> None:
        on = bench()
        on.dispatcher.verdicts = {LARGE: late()}
        client = await on.post(body())
        await answer(on, no())
        await answer(on)
        assert submitted(on) == [MIDDLE, SMALL]
        assert client.json["variant"] == SMALL
        outcomes = [name for name in figures(on) if name.startswith("requests_total")]
        assert outcomes == ['requests_total{model="small",outcome="served",reason=""}']

    run(story)


def test_the_last_refusal_is_the_answer_and_what_concerns_the_request_is_it_at_once() -> None:
    async def story() -> None:
        on = bench()
        client = await on.post(body())
        for predicted_ms in (9, 6, 3):
            await answer(on, no(predicted_ms=predicted_ms))
        assert refused(client, 429, "slo_infeasible_now")["predicted_ms"] == 3
        assert submitted(on) == [LARGE, MIDDLE, SMALL]
        client = await on.post(body())
        await answer(on, Rejected(Reason.OVERLOADED, "too many"))
        refused(client, 503, "overloaded")
        assert len(submitted(on)) == 4

    run(story)


def test_a_client_that_has_gone_is_not_passed_on() -> None:
    async def story() -> None:
        on = bench()
        client = await on.post(body())
        client.hang_up()
        await settle()
        assert (on.dispatcher.cancelled, submitted(on)) == ([1], [LARGE])
        assert on.app.infer.num_open == 0

    run(story)


def test_members_that_cannot_be_served_or_are_too_small_are_left_out() -> None:
    async def story() -> None:
        on = bench(
            model_spec(LARGE, unavailable_reason="not ONNX"),
            model_spec(MIDDLE, batch_sizes=(1,)),
            model_spec(SMALL),
        )
        two = [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [1.0] * 8}]
        await on.post(body(inputs=two))
        await on.post(body())
        assert submitted(on) == [SMALL, MIDDLE]
        nine = [{"name": "x", "shape": [9, 4], "datatype": "FP32", "data": [1.0] * 36}]
        client = await on.post(body(inputs=nine))
        detail = refused(client, 400, "bad_request")["detail"]
        assert "model g takes at most 4 in one request" in detail
        on.catalog[MIDDLE] = model_spec(MIDDLE, unavailable_reason="unloaded by an operator")
        on.catalog[SMALL] = model_spec(SMALL, unavailable_reason="unloaded by an operator")
        detail = refused(await on.post(body()), 503, "model_unavailable")["detail"]
        assert detail == (
            "group g: none of its members can be served (large: not ONNX; "
            "middle: unloaded by an operator; small: unloaded by an operator)"
        )

    run(story)


def test_a_new_version_that_takes_other_inputs_is_left_out_with_its_reason() -> None:
    async def story() -> None:
        on = bench()
        on.catalog[LARGE] = model_spec(LARGE, inputs=(TensorSpec("x", "FP32", (-1, 8)),))
        await on.post(body())
        # the first that can be served says what the group takes
        reasons = [m["unavailable_reason"] for m in (await on.get("/groups/g")).json["members"]]
        assert reasons[0] is None
        assert reasons[1] == (
            "its input 0 is 'x' FP32 [-1, 4] (batch axis 0), "
            "that of large is 'x' FP32 [-1, 8] (batch axis 0)"
        )

    run(story)


def test_the_slo_is_the_requests_or_the_groups() -> None:
    async def story() -> None:
        on = bench(default_slo_ms=70)
        await on.post(body(slo_ms=None))
        await on.post(body(slo_ms=33))
        assert [request.slo_ns for request in on.dispatcher.submitted] == [ms(70), ms(33)]

    run(story)


def test_a_member_that_has_the_answer_needs_no_time() -> None:
    async def story() -> None:
        on = bench(shared_spec(name=LARGE), model_spec(MIDDLE), model_spec(SMALL))
        await on.post(body())
        await answer(on)
        on.dispatcher.verdicts = {LARGE: late()}
        client = await on.post(body())
        assert submitted(on) == [LARGE]
        assert (client.json["variant"], client.json["cache"]) == (LARGE, "hit")

    run(story)


def test_shared_answers_of_a_refused_member_leave_no_mark() -> None:
    async def story() -> None:
        on = bench(shared_spec(name=LARGE), model_spec(MIDDLE), model_spec(SMALL))
        client = await on.post(body())
        await answer(on, no())
        await answer(on)
        assert submitted(on) == [LARGE, MIDDLE]
        assert "cache" not in client.json
        assert client.json["variant"] == MIDDLE

    run(story)


def test_an_early_no_of_a_member_is_none_of_the_group() -> None:
    async def story() -> None:
        on = bench()
        on.dispatcher.refusal = no()
        data, headers = binary_mlp(model="g")
        client = on.client()
        client.start("POST", "/infer", {"content-length": str(len(data)), **headers})
        client.give(data[:-4], more=True)
        await settle()
        client.give(data[-4:])
        await settle()
        assert submitted(on) == [LARGE]

    run(story)


# ---------------------------------------------------------------------- tenants


def test_the_right_to_a_group_is_its_own_and_takes_its_members_with_it() -> None:
    async def story() -> None:
        on = bench(
            tenants={
                "shop": TenantSpec(keys=(KEY.line,), models=("g",), gpu_ms_per_s=1000.0),
                "lab": TenantSpec(keys=(OTHER.line,), models=(LARGE,)),
            }
        )
        assert on.keyring is not None
        shop, lab = ({"authorization": f"Bearer {key.text}"} for key in (KEY, OTHER))
        client = await on.post(body(), headers={**shop, "x-request-id": "a"})
        refused(await on.post(mlp_body(model=LARGE), headers=shop), 403, "forbidden")
        refused(await on.post(body(), headers=lab), 403, "forbidden")
        await answer(on, no())  # what was held for the large one is held no more
        await answer(on)
        assert client.json["variant"] == MIDDLE
        quota = on.keyring.tenants["shop"]
        assert quota.hold(ms(1000), on.clock.now) == ms(1000)  # all of it is there
        assert [g["name"] for g in (await on.get("/groups", **shop)).json["groups"]] == ["g"]
        assert (await on.get("/groups", **lab)).json["groups"] == []
        refused(await on.get("/groups/g", **lab), 403, "forbidden")
        judged = {"request_id": "a", "loss": 1}
        refused(await on.post(judged, path="/feedback", headers=lab), 404, "not_found")
        assert (await on.post(judged, path="/feedback", headers=shop)).status == 200

    run(story)


# ---------------------------------------------------------------------- questions


def test_dry_runs_and_quotes_are_of_the_member_that_would_be_chosen() -> None:
    async def story() -> None:
        on = bench()
        on.dispatcher.verdicts = {LARGE: late()}
        told: list[Client] = [
            await on.post(body(dry_run=True)),
            await on.post({"model": "g", "slo_ms": 50, "rows": 2}, path="/quote"),
        ]
        assert [question[0] for question in on.dispatcher.quoted] == [MIDDLE, MIDDLE]
        for client in told:
            assert (client.json["model_name"], client.json["variant"]) == ("g", MIDDLE)
        assert submitted(on) == []

    run(story)


# ---------------------------------------------------------------------- exp3 and feedback


def test_exp3_chooses_among_those_in_time_and_learns_from_feedback() -> None:
    async def story() -> None:
        on = bench(selection="exp3", eta=0.3, seed=3)
        on.dispatcher.verdicts = {LARGE: late()}
        chosen = []
        for number in range(300):
            client = await on.post(body(), headers={"x-request-id": f"r{number}"})
            await answer(on)
            variant = client.json["variant"]
            chosen.append(variant)
            judged = {"request_id": f"r{number}", "loss": 0.9 if variant == MIDDLE else 0.1}
            told = await on.post(judged, path="/feedback")
            assert told.json == {
                "request_id": f"r{number}",
                "group": "g",
                "model": variant,
                "loss": judged["loss"],
            }
        assert LARGE not in chosen
        assert MIDDLE in chosen
        assert chosen[100:].count(SMALL) > 170
        members = {m["model"]: m for m in (await on.get("/groups/g")).json["members"]}
        assert members[SMALL]["mean_loss"] == pytest.approx(0.1)
        assert members[SMALL]["probability"] > 5 * members[MIDDLE]["probability"]
        assert members[LARGE]["mean_loss"] is None
        shown = figures(on)
        assert shown['group_feedback_total{group="g",model="small"}'] == chosen.count(SMALL)
        assert shown['group_probability{group="g",model="middle"}'] < 0.1
        assert shown["feedback_waiting"] == 0

    run(story)


def test_exp3_passes_a_refused_request_on_to_another_in_time() -> None:
    async def story() -> None:
        on = bench(selection="exp3")
        client = await on.post(body())
        await answer(on, no())
        await answer(on, no())
        await answer(on)
        assert sorted(submitted(on)) == [LARGE, MIDDLE, SMALL]
        assert client.json["variant"] == submitted(on)[-1]

    run(story)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "feedback has the members `request_id`"),
        ({"request_id": "a"}, "and `loss`, a number in [0, 1]"),
        ({"loss": 1}, "feedback has the members `request_id`"),
        ({"request_id": "a", "loss": 1.5}, "Expected `float` <= 1.0"),
        ({"request_id": "a", "loss": -0.1}, "Expected `float` >= 0.0"),
        ({"request_id": "a", "loss": "bad"}, "Expected `float | null`"),
        ({"request_id": "a", "loss": 1, "label": "cat"}, "unknown field `label`"),
    ],
)
def test_feedback_that_cannot_be_read_is_a_400(given: dict[str, object], why: str) -> None:
    async def story() -> None:
        client = await bench().post(given, path="/feedback")
        assert why in refused(client, 400, "bad_request")["detail"]

    run(story)


def test_feedback_on_what_never_was_or_was_no_groups_answer_is_a_404() -> None:
    async def story() -> None:
        on = bench()
        client = await on.post(mlp_body(model=SMALL), headers={"x-request-id": "a"})
        await answer(on)
        assert client.status == 200
        assert "variant" not in client.json
        for request_id in ("a", "b"):
            judged = {"request_id": request_id, "loss": 0}
            refused(await on.post(judged, path="/feedback"), 404, "not_found")

    run(story)


# ---------------------------------------------------------------------- shown as a model


def test_a_group_is_found_as_a_model_and_not_listed_as_one() -> None:
    async def story() -> None:
        on = bench()
        assert [m["name"] for m in (await on.get("/models")).json["models"]] == [
            LARGE,
            MIDDLE,
            SMALL,
        ]
        shown = (await on.get("/models/g")).json
        assert (shown["name"], shown["version"], shown["platform"]) == ("g", "", "group")
        metadata = (await on.get("/v2/models/g")).json
        assert (metadata["name"], metadata["versions"]) == ("g", [])
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert (await on.get("/v2/models/g/config")).json["name"] == "g"
        stats = (await on.get("/v2/models/g/stats")).json["model_stats"]
        assert [model["name"] for model in stats] == [LARGE, MIDDLE, SMALL]
        for path in ("/v2/models/g/versions/1", "/v2/models/g/versions/1/infer"):
            client = await (on.post(body(), path=path) if "infer" in path else on.get(path))
            assert client.status == 404
            assert client.json["detail"] == "g is a group, which has no versions"
        refused(await on.get("/groups/other"), 404, "not_found")
        assert (await on.get("/groups")).json["groups"][0]["members"][0]["model"] == LARGE

    run(story)


# ---------------------------------------------------------------------- at the start


def checked(*specs: ModelSpec) -> str:
    """What is wrong with a group `g` of large and small."""
    group = GroupSpec(members=(MemberSpec(LARGE), MemberSpec(SMALL)))
    try:
        Groups({"g": group}, {spec.name: spec for spec in specs}).check()
    except GroupsError as error:
        return str(error)
    return ""


def test_members_that_agree_may_differ_in_everything_else() -> None:
    small = model_spec(SMALL, version="7", batch_sizes=(1,), platform="tensorrt_plan")
    assert checked(model_spec(LARGE), small) == ""
    assert checked(model_spec(LARGE), model_spec(SMALL, unavailable_reason="x", inputs=())) == ""


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ((model_spec(LARGE),), "there is no model 'small'; there are large"),
        (
            (model_spec(LARGE), model_spec(SMALL), model_spec("g")),
            "a model has this name too",
        ),
        (
            (model_spec(LARGE), model_spec(SMALL, inputs=(TensorSpec("x", "FP16", (-1, 4)),))),
            "small cannot be a member: its input 0 is 'x' FP16 [-1, 4] (batch axis 0), "
            "that of large is 'x' FP32 [-1, 4] (batch axis 0)",
        ),
        (
            (model_spec(LARGE), model_spec(SMALL, outputs=())),
            "it has 0 outputs (), large has 1 (y)",
        ),
        (
            (
                model_spec(LARGE),
                model_spec(SMALL, outputs=(TensorSpec("y", "FP32", (-1, 2), None),)),
            ),
            "its output 0 is 'y' FP32 [-1, 2] (batch axis none), that of large",
        ),
        (
            (model_spec(LARGE), model_spec(SMALL, outputs=(TensorSpec("y", "C64", (-1, 2)),))),
            "tensor 'y' is C64, which this gateway does not know",
        ),
    ],
)
def test_what_can_never_be_a_group_is_said_by_name(specs: tuple[ModelSpec, ...], why: str) -> None:
    assert why in checked(*specs)
    assert checked(*specs).startswith("group g: ")
