"""What is kept of requests, who may see it, and what is said of those that are not kept."""

from collections.abc import Iterator, Sequence

import pytest

from gateway.config import GatewayConfig
from gateway.observability.answered import Answered, OwnAnswer, told_to
from gateway.observability.phases import Passage, passage_of, phases
from gateway.observability.recent_requests import PER_TURN, RecentRequests
from gateway.observability.request_stories import entries_of, in_turns
from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantSpec
from scheduler.actions import Code, Infer, InferResult, Span
from scheduler.device import WeightsState
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Expired,
    Failed,
    Outcome,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
)
from scheduler.hindsight import LogEntry
from tests.gateway.http_doubles import (
    MLP_OUTPUTS,
    START_NS,
    Bench,
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

NOW = Rejected(Reason.SLO_INFEASIBLE_NOW, "3 requests of mlp are queued", predicted_ns=ms(41))


def answered(number: int, outcome: Outcome | OwnAnswer, *, took_ms: float = 3) -> Answered:
    arrival_ns = START_NS + ms(number)
    return Answered(
        f"r{number}", number, "mlp", "", arrival_ns, ms(10), arrival_ns + ms(took_ms), outcome, 1
    )


def last(steps: Iterator[Sequence[Answered]]) -> list[str]:
    *_, found = steps
    return [one.request_id for one in found]


def last_of(recent: RecentRequests) -> Sequence[Answered]:
    *_, found = recent.latest(60, everything)
    return found


def everything(answered: Answered) -> bool:
    return True


# ---------------------------------------------------------------------- the ring


def test_the_oldest_go_first() -> None:
    recent = RecentRequests(2, clock=lambda: START_NS, wall=lambda: 1_800_000_000)
    assert (len(recent), recent.is_full, recent.since) == (0, False, None)
    for number in range(1, 4):
        recent.note(answered(number, served()))
    assert (len(recent), recent.is_full) == (2, True)
    assert recent.named("r1", everything) == []
    assert [one.number for one in recent.named("r3", everything)] == [3]
    assert [one.request_id for one in recent.named("3", everything)] == ["r3"]
    assert recent.named("4", everything) == []
    assert recent.since == "2027-01-15T08:00:00.005+00:00"
    recent.note(answered(0, served()))
    *_, found = recent.by_number()
    assert list(found) == [3]


def test_strangers_push_nobody_out() -> None:
    recent = RecentRequests(2, clock=lambda: START_NS)
    recent.note(answered(1, served()))
    for number in range(2, 9):
        recent.note(answered(number, OwnAnswer("invalid", "unauthenticated", "no key")))
    assert [one.request_id for one in recent.named("r1", everything)] == ["r1"]
    assert len(recent) == 1


def test_the_worst_are_those_with_the_least_slack() -> None:
    recent = RecentRequests(100, clock=lambda: START_NS)
    assert last(recent.worst(3, everything)) == []
    for number, (outcome, took_ms) in enumerate(
        [
            (served(), 3.0),  # 7 ms to spare
            (served(), 9.0),  # 1 ms
            (NOW, 0.1),  # the prediction missed by 31 ms
            (Expired(Reason.DEADLINE_EXCEEDED_QUEUED, "too late"), 11.0),  # by 1 ms
            (Failed(Reason.ENGINE_ERROR, "NaN"), 2.0),  # none: it is no answer
            (OwnAnswer("rejected", "overloaded", "full"), 0.1),
            (OwnAnswer("invalid", "bad_request", "no JSON"), 0.1),
            (Cancelled(), 5.0),
            (served(), 9.0),
        ],
        1,
    ):
        recent.note(answered(number, outcome, took_ms=took_ms))
    worst = last(recent.worst(20, everything))
    assert worst == ["r3", "r4", "r6", "r5", "r9", "r2", "r1"]
    assert last(recent.worst(2, everything)) == ["r3", "r4"]
    assert last(recent.worst(2, lambda one: one.kind == "served")) == ["r9", "r2"]
    assert last(recent.latest(2, everything)) == ["r9", "r8"]
    assert last(recent.latest(2, lambda one: one.kind == "failed")) == ["r5"]


def test_the_worst_of_the_latest() -> None:
    async def story() -> None:
        bench = Bench()
        for number, slo_ms in enumerate((5, 50, 20)):
            headers = {"x-request-id": f"r{number}"}
            client = await bench.post(mlp_body(slo_ms=slo_ms), headers=headers)
            bench.dispatcher.submitted[-1].on_done(served(), MLP_OUTPUTS)
            await settle()
            assert client.status == 200

        async def ids(query: str) -> list[str]:
            listed = (await bench.get(f"/requests?{query}")).json["requests"]
            return [one["request_id"] for one in listed]

        assert await ids("worst=5") == ["r0", "r2", "r1"]
        assert await ids("latest=2") == ["r2", "r1"]
        assert await ids("worst=5&latest=2") == ["r2", "r1"]
        assert await ids("worst=1&latest=2") == ["r2"]

    run(story)


def test_a_large_ring_is_looked_through_in_turns() -> None:
    recent = RecentRequests(10 * PER_TURN, clock=lambda: START_NS)
    for number in range(1, 3 * PER_TURN + 1):
        recent.note(answered(number, served()))
    assert len(list(recent.worst(5, everything))) == 3
    assert len(list(recent.latest(5, lambda one: one.number == 1))) == 4
    assert len(list(recent.by_number())) == 4
    *_, entries = entries_of(last_of(recent), recent)
    assert len(entries) == 60

    async def story() -> None:
        found = await in_turns(recent.worst(1, everything))
        assert [one.number for one in found] == [3 * PER_TURN]

    run(story)


def test_figures_of_an_end() -> None:
    refusal = answered(1, NOW)
    assert (refusal.kind, refusal.reason, refusal.slack_ns) == (
        "rejected",
        "slo_infeasible_now",
        -ms(31),
    )
    unpredicted = answered(1, Rejected(Reason.NO_WORKER, "none"))
    assert (unpredicted.slack_ns, unpredicted.badness) == (None, 0)
    good = answered(1, served())
    assert (good.kind, good.reason, good.detail, good.slack_ns) == ("served", None, None, ms(7))
    gone = answered(1, Cancelled())
    assert (gone.kind, gone.reason, gone.detail, gone.slack_ns) == ("cancelled", None, None, None)


def test_listeners_are_told_in_turn() -> None:
    heard: list[str] = []
    assert told_to([]) is None
    tell = told_to([lambda one: heard.append("a"), lambda one: heard.append("b")])
    assert tell is not None
    tell(answered(1, served()))
    assert heard == ["a", "b"]


# ---------------------------------------------------------------------- the timeline


def names(told: list[tuple[str, int, int]]) -> list[str]:
    for _, begin_ns, end_ns in told:
        assert begin_ns <= end_ns
    return [name for name, _, _ in told]


def test_phases_of_one_that_was_served() -> None:
    one = answered(1, served(load_ns=ms(0.5)), took_ms=6)
    arrival = one.arrival_ns
    assert phases(one, Passage()) == [
        ("admit", arrival, arrival),
        ("load", arrival, arrival + ms(0.5)),
        ("queue", arrival + ms(0.5), arrival + ms(1.5)),
        ("input", arrival + ms(1.5), arrival + ms(1.75)),
        ("exec", arrival + ms(1.75), arrival + ms(3.75)),
        ("output", arrival + ms(3.75), arrival + ms(4.25)),
        ("answer", arrival + ms(4.25), one.answered_ns),
    ]


def test_phases_of_others() -> None:
    late = answered(1, Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, "late"), took_ms=10)
    assert names(phases(late, Passage())) == ["admit", "queue"]
    sent = Passage(late.arrival_ns + 1, late.arrival_ns + 2)
    assert names(phases(late, sent)) == ["admit", "queue", "worker"]
    early = Answered("r", 0, "mlp", "", START_NS, ms(10), START_NS + 5, NOW)
    assert phases(early, Passage()) == [("admit", START_NS, START_NS + 5)]
    shared = answered(1, served(worker_id=""))
    assert names(phases(shared, Passage())) == ["admit", "answer"]


def log_of_two() -> list[LogEntry]:
    """Requests 1 and 2 share a batch after one that failed; 3 is refused."""
    arrivals = [RequestArrived(n, "mlp", START_NS + ms(n), START_NS + ms(n + 10)) for n in (1, 2)]
    infer = Infer(1, "mlp", 1, (1,), (1,), 0, 0, ms(2))
    again = Infer(2, "mlp", 4, (1, 2), (1, 1), 0, 0, ms(2))
    span = Span(START_NS + ms(4), START_NS + ms(5), ms(1))
    done = InferResult(2, Code.OK, "", START_NS + ms(3.5), span, span, span)
    return [
        (START_NS + ms(1.5), arrivals[0], [Send("w#1-1", infer)]),
        (START_NS + ms(2.5), RequestsArrived((arrivals[1],)), []),
        (
            START_NS + ms(3),
            ActionFinished("w#1-1", InferResult(1, Code.TOO_LATE)),
            [Send("w#1-1", again)],
        ),
        (
            START_NS + ms(3.8),
            RequestArrived(3, "mlp", START_NS + ms(3), START_NS + ms(13)),
            [Reply(3, NOW)],
        ),
        (
            START_NS + ms(5.5),
            ActionFinished("w#1-1", done),
            [Reply(1, served()), Reply(2, served())],
        ),
    ]


def test_a_passage_is_that_of_the_last_execution() -> None:
    log = log_of_two()
    one = passage_of(log, answered(1, served(), took_ms=5))
    assert (one.heard_ns, one.sent_ns) == (START_NS + ms(1.5), START_NS + ms(3))
    assert one.infer is not None
    assert one.infer.action_id == 2
    assert one.result is log[-1][1].result  # type: ignore[union-attr]
    two = passage_of(log, answered(2, served(), took_ms=4))
    assert (two.heard_ns, two.sent_ns) == (START_NS + ms(2.5), START_NS + ms(3))
    told = phases(answered(2, served(), took_ms=4), two)
    assert names(told) == ["admit", "queue", "input", "exec", "output", "answer"]
    three = passage_of(log, answered(3, NOW))
    assert (three.heard_ns, three.result) == (START_NS + ms(3.8), None)
    assert passage_of(log, answered(0, NOW)) == Passage()


# ---------------------------------------------------------------------- over HTTP


def test_a_served_request_has_its_story() -> None:
    async def story() -> None:
        bench = Bench()
        bench.scheduler.devices["w#1-1"] = PuppetDevice({"mlp": WeightsState.RESIDENT})
        client = await bench.post(mlp_body(), headers={"x-request-id": "a/b:c"})
        bench.clock.advance(ms(3))
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        await settle()
        assert client.status == 200
        arrived = RequestArrived(1, "mlp", START_NS, START_NS + ms(50))
        infer = Infer(1, "mlp", 2, (1, 77), (1, 1), 0, 0, ms(2))
        span = Span(START_NS + ms(1), START_NS + ms(2), ms(1))
        done = ActionFinished("w#1-1", InferResult(1, Code.OK, "", START_NS, span, span, span))
        bench.scheduler.log = [
            (START_NS + ms(0.5), arrived, [Send("w#1-1", infer)]),
            (START_NS + ms(2.5), done, [Reply(1, served())]),
        ]
        listed = (await bench.get("/requests")).json
        [entry] = listed["requests"]
        assert (listed["kept"], entry["request_id"]) == (1, "a/b:c")
        assert listed["since"] == "2027-01-15T08:00:00.003+00:00"
        told = (await bench.get("/requests/a/b:c")).json
        assert {name: told[name] for name in entry} == entry
        assert (told["outcome"], told["slack_ms"], told["worker"]) == ("served", 47.0, "w#1-1")
        assert told["batch"] == {
            "rows": 1,
            "size": 2,
            "num_requests": 2,
            "requests": ["a/b:c"],
            "expected_exec_ms": 2.0,
        }
        assert told["timeline"][0] == {"phase": "admit", "begin_ms": 0.0, "end_ms": 0.5}
        assert "w#1-1: its weights were resident; idle." in told["story"]
        assert any("1 other request (one unknown)" in line for line in told["story"])
        assert told["story"][0].startswith(
            "Request a/b:c of mlp, 1 row, arrived at 2027-01-15T08:00"
        )
        assert told["story"][-1] == "The gateway wrote its answer 3.0 ms after arrival."
        assert (told["same_id"], told["remedy"]) == (1, None)

    run(story)


def test_without_the_log_the_facts_are_told() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.served(mlp_body(), ((1, 2), bytes(8)))
        bench.clock.advance(ms(1))
        client = await bench.post(mlp_body(model="nope"), headers={"x-request-id": "bad"})
        assert client.status == 404
        client = await bench.post(mlp_body(), headers={"x-request-id": "gone"})
        bench.clock.advance(ms(2))
        client.hang_up()
        await settle()
        listed = (await bench.get("/requests?latest=5")).json["requests"]
        assert [(one["outcome"], one["model"]) for one in listed] == [
            ("cancelled", "mlp"),
            ("invalid", None),
            ("served", "mlp"),
        ]
        told = (await bench.get(f"/requests/{listed[2]['request_id']}")).json
        assert told["story"][0].endswith(
            "of mlp arrived at 2027-01-15T08:00:00.000+00:00 and wanted its answer within 50.0 ms."
        )
        assert told["story"][1].startswith(
            "It was served 3.0 ms after arrival by w#1-1, in a batch"
        )
        assert told["story"][-1].startswith("What was around it is not known any more")
        assert told["batch"]["size"] is None
        bad = (await bench.get("/requests/bad")).json
        assert bad["story"][1] == (
            "It was refused 0 ms after arrival (not_found): no model 'nope' is served here."
        )
        gone = (await bench.get("/requests/gone")).json
        assert gone["story"][1] == "It was given up by its client 2.0 ms after arrival."
        assert (gone["timing_ms"], gone["batch"], gone["cold_start"]) == (None, None, None)

    run(story)


def test_a_request_refused_before_its_body_was_read_has_its_story() -> None:
    async def story() -> None:
        bench = Bench()
        bench.scheduler.devices["w#1-1"] = PuppetDevice({"mlp": WeightsState.RESIDENT})
        bench.dispatcher.refusal = NOW
        body, headers = binary_mlp(slo_ms=25)
        client = bench.client()
        client.start("POST", "/infer", {**headers, "x-request-id": "early"})
        client.give(body[:-4], more=True)
        await settle()
        assert client.status == 429
        told = (await bench.get("/requests/early")).json
        assert told["slack_ms"] == -16.0
        assert told["story"][2:] == [
            "w#1-1: its weights were resident; idle.",
            "It was refused 0 ms after arrival, before its body was read (slo_infeasible_now): "
            "3 requests of mlp are queued.",
            "The earliest finish was 41.0 ms after arrival, its SLO was 25.0 ms.",
        ]
        client.hang_up()
        await settle()

    run(story)


def test_of_several_with_one_id_the_latest_is_told() -> None:
    async def story() -> None:
        bench = Bench()
        for _ in range(2):
            await bench.post(b"{", headers={"x-request-id": "twice"})
            bench.clock.advance(ms(1))
        told = (await bench.get("/requests/twice")).json
        assert told["same_id"] == 2
        assert told["arrived_at"] == "2027-01-15T08:00:00.001+00:00"

    run(story)


def test_an_unknown_id_is_told_from_an_expired_one() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(recent_requests=2))
        waiting = await bench.post(mlp_body())
        body = refused(await bench.get("/requests/never"), 404, "not_found")
        assert body["detail"] == (
            "request 'never' is unknown: it is not among the last 0 answered, which are all since "
            "the start"
        )
        client = await bench.post(b"{")
        own = client.headers["x-request-id"]
        prefix, number = own.split("-")
        open_id = f"{prefix}-{int(number, 16) - 2:x}"
        body = refused(await bench.get(f"/requests/{open_id}"), 404, "not_found")
        assert body["detail"].endswith("ask again when it has one")
        for _ in range(2):
            await bench.post(b"{")
        body = refused(await bench.get(f"/requests/{own}"), 404, "not_found")
        assert (
            "has expired, or has no answer yet: it is not among the last 2 answered"
            in (body["detail"])
        )
        body = refused(await bench.get("/requests/never"), 404, "not_found")
        assert "'never' is unknown or has expired: it is not among the last 2" in body["detail"]
        for made_up in (f"{prefix}-ffff", f"{prefix}-0", f"{prefix}-x", "other-1"):
            body = refused(await bench.get(f"/requests/{made_up}"), 404, "not_found")
            assert "unknown" in body["detail"]
        waiting.hang_up()
        await settle()

    run(story)


def test_none_are_kept_where_none_are_wanted() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(recent_requests=0))
        assert bench.app.infer.on_answered is None
        await bench.post(b"{", headers={"x-request-id": "mine"})
        for path in ("/requests", "/requests/mine"):
            body = refused(await bench.get(path), 404, "not_found")
            assert body["detail"] == "no requests are kept here: recent_requests is 0"

    run(story)


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("worst=0", 400, "worst is '0': expected a number from 1 to 1000"),
        ("latest=1001", 400, "latest is '1001': expected a number from 1 to 1000"),
        ("worst=x", 400, "worst is 'x': expected a number from 1 to 1000"),
        ("worst=1&latest=0", 400, "latest is '0': expected a number from 1 to 1000"),
        ("worst=1&worst=2", 400, "parameter worst is there twice"),
        ("limit=1", 400, "parameter 'limit' is not known here; known are worst, latest, model,"),
        ("outcome=good", 400, "outcome is 'good': expected one of served, rejected, expired,"),
        ("model=nope", 404, "no model 'nope' is served here"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused(query: str, status: int, detail: str) -> None:
    async def story() -> None:
        client = await Bench().get(f"/requests?{query}")
        assert client.status == status
        assert client.json["detail"].startswith(detail)

    run(story)


def test_tenants_see_their_own_and_an_admin_all() -> None:
    keys = {name: new_key() for name in ("one", "two", "boss")}
    tenants = {
        "one": TenantSpec(keys=(keys["one"].line,), models=("mlp",)),
        "two": TenantSpec(keys=(keys["two"].line,)),
        "boss": TenantSpec(keys=(keys["boss"].line,), admin=True),
    }

    async def story() -> None:
        bench = Bench(model_spec(), model_spec("secret"), tenants=tenants)

        def auth(name: str) -> dict[str, str]:
            return {"x-api-key": keys[name].text}

        for name, model in (("one", "mlp"), ("two", "secret")):
            client = await bench.post(
                mlp_body(model=model), headers={**auth(name), "x-request-id": f"of-{name}"}
            )
            bench.clock.advance(ms(1))
            bench.dispatcher.submitted[-1].on_done(NOW, None)
            await settle()
            assert client.status == 429

        async def seen(name: str, query: str = "") -> list[str]:
            listed = (await bench.get(f"/requests{query}", **auth(name))).json["requests"]
            return [one["request_id"] for one in listed]

        assert await seen("one") == ["of-one"]
        assert await seen("boss", "?worst=5&tenant=two") == ["of-two"]
        assert await seen("boss", "?model=mlp") == ["of-one"]
        assert len(await seen("boss")) == 2
        assert (await bench.get("/requests/of-two", **auth("one"))).status == 404
        assert (await bench.get("/requests/of-two", **auth("boss"))).status == 200
        assert (await bench.get("/requests?model=secret", **auth("one"))).status == 403
        assert (await bench.get("/requests")).status == 401
        # in whose batch it was, and what else ran, is not told
        infer = Infer(1, "secret", 1, (2,), (1,), 0, 0, ms(2))
        arrived = RequestArrived(1, "mlp", START_NS, START_NS + ms(50))
        bench.scheduler.log = [
            (START_NS - 1, RequestArrived(2, "secret", 0, 1), [Send("w#1-1", infer)]),
            (START_NS, arrived, [Reply(1, NOW)]),
        ]
        bench.scheduler.devices["w#1-1"] = PuppetDevice({"mlp": WeightsState.RESIDENT})
        told = (await bench.get("/requests/of-one", **auth("one"))).json["story"]
        assert any("with 1 row of another model." in line for line in told)
        assert not any("secret" in line for line in told)
        assert told[-1] == "The gateway wrote its answer 1.0 ms after arrival: slo_infeasible_now."
        told = (await bench.get("/requests/of-one", **auth("boss"))).json["story"]
        assert any("with 1 row of secret." in line for line in told)

    run(story)
