"""Requests for models of other replicas, over sockets: who is asked, and what the client gets."""

import gzip
import json
import ssl
from pathlib import Path

import pytest

from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantSpec
from tests.gateway.http_doubles import fp32, ms, outputs, served
from tests.gateway.listening import Connection, run
from tests.gateway.replicas.stage import OWN, body_of, model_of, replicas

SERVED = served()
TLS = Path(__file__).parents[1] / "http" / "tls"
OUTPUTS = outputs(((1, 2), fp32(1, 2)))


async def error_of(client: Connection) -> tuple[int, str, str]:
    status, _, body = await client.answer()
    told = json.loads(body)
    return status, told["reason"], told["detail"]


@pytest.mark.parametrize("is_direct", [True, False])
def test_the_owner_is_asked_what_the_client_asked_and_its_answer_comes_back(
    is_direct: bool,
) -> None:
    async def story() -> None:
        async with replicas("a", is_direct=is_direct) as stage:
            model = stage.model_of("a", OWN)
            client = await stage.send(
                model, "x-slo-ms: 50\r\nx-own: thing\r\nx-request-id: r-1\r\norigin: http://o\r\n"
            )
            asked = await stage.puppets["a"].asked.get()
            assert asked.line == "POST /infer HTTP/1.1"
            assert asked.body == body_of(model)
            headers = asked.headers
            assert headers["x-slo-ms"] == "50"
            assert headers["x-own"] == "thing"
            assert headers["x-request-id"] == "r-1"
            assert "origin" not in headers
            assert headers["x-remontoir-hop"] == "1000"  # what a way takes until one was measured
            asked.answer(200, b'{"y": 1}', content_type="application/json", x_cache="miss")
            status, headers, body = await client.answer()
            assert (status, body) == (200, b'{"y": 1}')
            assert headers["x-cache"] == "miss"
            assert headers["x-remontoir-replica"] == "a"
            assert "x-remontoir-hop" not in headers
            assert stage.gateway.submitted.empty()
            assert stage.forwarding.results == {("a", "answered"): 1}
            assert stage.gateway.app.infer.num_open == 0

    run(story)


def test_a_reply_in_chunks_comes_back_with_its_length() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            (await stage.puppets["a"].asked.get()).answer_in_chunks(b'{"y": ', b"1}")
            status, headers, body = await client.answer()
            assert (status, headers["content-length"], body) == (200, "8", b'{"y": 1}')
            assert "transfer-encoding" not in headers

    run(story)


def test_own_models_are_served_here() -> None:
    async def story() -> None:
        async with replicas("a", serves=lambda s: [model_of(s, OWN, "a")]) as stage:
            client = await stage.send(stage.model_of(OWN, "a"))
            request = await stage.gateway.submitted.get()
            request.on_done(SERVED, OUTPUTS)
            status, headers, _ = await client.answer()
            assert status == 200
            assert "x-remontoir-replica" not in headers
            assert "x-remontoir-hop" not in headers

    run(story)


def test_routes_that_name_the_model_and_quotes_go_the_same_way() -> None:
    async def story() -> None:
        async with replicas("a") as stage:
            model = stage.model_of("a", OWN)
            client = await stage.gateway.connect()
            puppet = stage.puppets["a"]
            client.send(b"raw", path=f"/v2/models/{model}/versions/7/infer")
            asked = await puppet.asked.get()
            assert asked.line == f"POST /v2/models/{model}/versions/7/infer HTTP/1.1"
            asked.answer()
            await client.answer()
            client.send(json.dumps({"model": model}).encode(), path="/quote")
            asked = await puppet.asked.get()
            assert asked.line == "POST /quote HTTP/1.1"
            asked.answer()
            assert (await client.answer())[0] == 200
            assert puppet.num_connections == 1  # which is kept

    run(story)


def test_a_header_names_the_model_for_who_does_not_read_bodies() -> None:
    async def story() -> None:
        async with replicas("a", serves=lambda s: [model_of(s, OWN, "a")]) as stage:
            there, here = stage.model_of("a", OWN), stage.model_of(OWN, "a")
            client = await stage.send("whatever", f"x-remontoir-model: {there}\r\n")
            (await stage.puppets["a"].asked.get()).answer()
            assert (await client.answer())[0] == 200
            client = await stage.send(there, f"x-remontoir-model: {here}\r\n")
            assert await error_of(client) == (
                400,
                "bad_request",
                f"the body names model '{there}', header x-remontoir-model '{here}'",
            )

    run(story)


def test_a_body_that_was_encoded_is_sent_on_decoded() -> None:
    async def story() -> None:
        async with replicas("a") as stage:
            body = body_of(stage.model_of("a", OWN))
            client = await stage.gateway.connect()
            client.send(gzip.compress(body), headers="content-encoding: gzip\r\n")
            asked = await stage.puppets["a"].asked.get()
            assert asked.body == body
            assert "content-encoding" not in asked.headers
            asked.answer()
            assert (await client.answer())[0] == 200

    run(story)


def test_a_client_that_hangs_up_is_gone_at_the_owner_too() -> None:
    async def story() -> None:
        async with replicas("a") as stage:
            client = await stage.send(stage.model_of("a", OWN))
            await stage.puppets["a"].asked.get()
            client.close()
            await stage.puppets["a"].gone.get()
            assert stage.forwarding.results == {("a", "abandoned"): 1}
            assert stage.gateway.app.infer.num_open == 0

    run(story)


def test_what_came_from_a_peer_is_never_sent_on_and_its_slo_runs_since_then() -> None:
    async def story() -> None:
        async with replicas("a", serves=lambda s: [model_of(s, "a", OWN)]) as stage:
            model = stage.model_of("a", OWN)
            client = await stage.send(model, "x-remontoir-hop: 4000\r\n", slo_ms=50)
            request = await stage.gateway.submitted.get()
            assert request.arrival_ns == stage.clock.now - ms(4)
            stage.clock.advance(ms(3))
            request.on_done(SERVED, OUTPUTS)
            status, headers, body = await client.answer()
            assert (status, headers["x-remontoir-hop"]) == (200, "3000;50000")
            assert json.loads(body)["slo"]["latency_ms"] == 7
            client = await stage.send(model, "x-remontoir-hop: 86400000001\r\n")
            status, reason, detail = await error_of(client)
            assert (status, reason) == (400, "bad_request")
            assert "'86400000001': expected microseconds, at most 86400000000" in detail

    run(story)


def test_who_stands_in_serves_where_the_owner_refuses_connections() -> None:
    async def story() -> None:
        async with replicas("a", serves=lambda s: [model_of(s, "a", OWN)]) as stage:
            await stage.puppets["a"].close()
            client = await stage.send(stage.model_of("a", OWN))
            request = await stage.gateway.submitted.get()
            request.on_done(SERVED, OUTPUTS)
            assert (await client.answer())[0] == 200
            problem = stage.forwarding.peers["a"].problem
            assert problem is not None
            assert problem.startswith("cannot be reached: ")
            # From now on at once, until it answers /readyz again.
            await stage.send(stage.model_of("a", OWN))
            await stage.gateway.submitted.get()
            assert stage.forwarding.results == {("a", "failed"): 1}

    run(story)


def test_without_one_who_stands_in_the_answer_is_an_honest_503() -> None:
    async def story() -> None:
        async with replicas("a", copies=1) as stage:
            await stage.puppets["a"].close()
            client = await stage.send(stage.model_of("a"))
            status, headers, body = await client.answer()
            told = json.loads(body)
            assert (status, told["reason"]) == (503, "replica_unavailable")
            assert f"no replica that has model {stage.model_of('a')} answers: a: " in told["detail"]
            assert headers["retry-after"] == "1"

    run(story)


def test_a_replica_that_drains_is_left_alone_until_it_is_ready() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            model = stage.model_of("a", "b")
            a, b = stage.puppets["a"], stage.puppets["b"]
            client = await stage.send(model)
            (await a.asked.get()).answer(503, x_remontoir_reason="draining")
            (await b.asked.get()).answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "b"
            client = await stage.send(model)
            (await b.asked.get()).answer()
            await client.answer()
            stage.look("a")
            asked = await a.asked.get()
            assert asked.line == "GET /readyz HTTP/1.1"
            asked.answer()
            await stage.until(lambda: stage.forwarding.peers["a"].problem is None)
            client = await stage.send(model)
            (await a.asked.get()).answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "a"

    run(story)


def test_a_refusal_of_all_replicas_is_the_last_ones_own() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            (await stage.puppets["a"].asked.get()).answer(503, x_remontoir_reason="no_worker")
            refusal = (await stage.puppets["b"].asked.get()).answer
            refusal(503, b'{"reason": "starting"}', x_remontoir_reason="starting")
            status, headers, body = await client.answer()
            assert (status, body) == (503, b'{"reason": "starting"}')
            assert headers["x-remontoir-replica"] == "b"

    run(story)


def test_other_refusals_are_the_owners_last_word() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            asked = await stage.puppets["a"].asked.get()
            asked.answer(429, b"{}", x_remontoir_reason="slo_infeasible_now", retry_after="1")
            status, headers, _ = await client.answer()
            assert (status, headers["retry-after"]) == (429, "1")
            assert stage.puppets["b"].asked.empty()

    run(story)


def test_a_silent_owner_costs_the_slo_and_no_more() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"), slo_ms=50)
            await stage.puppets["a"].asked.get()
            stage.expire()
            status, reason, detail = await error_of(client)
            assert (status, reason) == (504, "deadline_exceeded_executing")
            assert detail == "a has not answered, the SLO is 50.000 ms"
            await stage.puppets["a"].gone.get()
            assert stage.forwarding.results == {("a", "late"): 1}

    run(story)


def test_a_peer_that_is_silent_for_a_second_is_left_and_the_next_is_asked() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))  # and an SLO only the owner knows
            a = stage.puppets["a"]
            await a.asked.get()
            stage.clock.advance(ms(500))
            stage.look("a")
            assert (await a.asked.get()).line == "GET /readyz HTTP/1.1"
            stage.clock.advance(ms(600))
            stage.look("a")
            (await stage.puppets["b"].asked.get()).answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "b"
            assert stage.forwarding.peers["a"].problem == "it has been silent for 1.1 s"

    run(story)


def test_a_peer_that_works_long_and_answers_probes_is_waited_for() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            a = stage.puppets["a"]
            work = await a.asked.get()
            for _ in range(4):
                stage.clock.advance(ms(500))
                stage.look("a")
                (await a.asked.get()).answer()
                await stage.until(lambda: stage.has_heard("a"))
            work.answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "a"

    run(story)


def test_an_answer_that_comes_after_the_slo_is_no_success() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            asked = await stage.puppets["a"].asked.get()
            stage.clock.advance(ms(51))
            asked.answer(200, x_remontoir_hop="40000;50000")
            status, reason, detail = await error_of(client)
            assert (status, reason) == (504, "deadline_exceeded_executing")
            assert detail == "a answered 51.000 ms after arrival, the SLO is 50.000 ms"

    run(story)


def test_the_way_is_measured_and_kept_free_for_the_next() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            (await stage.puppets["a"].asked.get()).answer(200, x_remontoir_hop="1;50000")
            await client.answer()  # of a new connection, which is no measure
            client = await stage.send(stage.model_of("a", "b"))
            asked = await stage.puppets["a"].asked.get()
            stage.clock.advance(ms(7))
            asked.answer(200, x_remontoir_hop="4000;50000")
            await client.answer()
            client = await stage.send(stage.model_of("a", "b"))
            assert (await stage.puppets["a"].asked.get()).headers["x-remontoir-hop"] == "3000"

    run(story)


def test_a_kept_connection_that_the_owner_closes_in_the_moment_of_its_use_is_no_loss() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            a = stage.puppets["a"]
            client = await stage.send(stage.model_of("a", "b"))
            (await a.asked.get()).answer()
            await client.answer()
            client = await stage.send(stage.model_of("a", "b"))
            (await a.asked.get()).hang_up()
            (await a.asked.get()).answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "a"
            assert a.num_connections == 2

    run(story)


def test_a_connection_that_breaks_under_a_request_has_the_next_asked() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            (await stage.puppets["a"].asked.get()).hang_up()
            (await stage.puppets["b"].asked.get()).answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "b"

    run(story)


def test_a_replica_without_workers_sends_its_own_models_to_who_stands_in() -> None:
    async def story() -> None:
        async with replicas("a", serves=lambda s: [model_of(s, OWN, "a")]) as stage:
            stage.gateway.bench.scheduler.devices.clear()
            client = await stage.send(stage.model_of(OWN, "a"))
            (await stage.puppets["a"].asked.get()).answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "a"

    run(story)


def test_keys_are_asked_for_at_the_first_replica_and_quotas_count_at_the_last() -> None:
    key = new_key()
    tenants = {"shop": TenantSpec(keys=(key.line,), requests_per_s=1, requests_burst=1)}

    async def story() -> None:
        async with replicas("a", "b", tenants=tenants) as stage:
            model = stage.model_of("a", "b")
            assert (await error_of(await stage.send(model)))[1] == "unauthenticated"
            for _ in range(3):
                client = await stage.send(model, f"authorization: Bearer {key.text}\r\n")
                asked = await stage.puppets["a"].asked.get()
                assert asked.headers["authorization"] == f"Bearer {key.text}"
                asked.answer()
                assert (await client.answer())[0] == 200

    run(story)


def test_other_replicas_are_on_the_metrics_page() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            stage.gateway.bench.metrics.watch_replicas(stage.forwarding)
            client = await stage.send(stage.model_of("a", "b"))
            (await stage.puppets["a"].asked.get()).answer()
            await client.answer()
            stage.forwarding.peers["b"].mark_unready("draining")
            page = (await stage.gateway.bench.get("/metrics")).body.decode()
            sent = 'remontoir_forwarded_requests_total{replica="a",result="answered"} 1'
            assert sent in page
            assert 'remontoir_replica_up{replica="a"} 1' in page
            assert 'remontoir_replica_up{replica="b"} 0' in page
            assert 'remontoir_replica_hop_seconds{replica="a"} 0.001' in page

    run(story)


def presenting(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{name}-cert.pem", TLS / f"{name}-key.pem")
    return context


def test_replicas_are_asked_over_tls_where_their_urls_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "first-cert.pem"))

    async def story() -> None:
        async with replicas("a", "b", tls=presenting("first")) as stage:
            client = await stage.send(stage.model_of("a", "b"))
            (await stage.puppets["a"].asked.get()).answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "a"

    run(story)


def test_a_replica_that_cannot_prove_itself_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "second-cert.pem"))

    async def story() -> None:
        async with replicas("a", copies=1, tls=presenting("first")) as stage:
            status, reason, detail = await error_of(await stage.send(stage.model_of("a")))
            assert (status, reason) == (503, "replica_unavailable")
            assert "CERTIFICATE_VERIFY_FAILED" in detail

    run(story)
