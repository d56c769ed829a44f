"""What becomes of a forwarded request whose client, or whose gateway, goes away."""

import asyncio

from tests.gateway.http_doubles import ms
from tests.gateway.listening import run
from tests.gateway.replicas.stage import replicas
from tests.gateway.replicas.test_forwarding import error_of


def test_a_gateway_that_stops_waits_for_what_its_peers_have() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            asked = await stage.puppets["a"].asked.get()
            idle = asyncio.ensure_future(stage.forwarding.wait_idle())
            await asyncio.sleep(0)
            assert not idle.done()
            asked.answer()
            assert (await client.answer())[0] == 200
            await idle

    run(story)


def test_who_still_waits_for_a_peer_when_the_gateway_ends_is_told_so() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            await stage.puppets["a"].asked.get()
            stage.forwarding.close()
            told = (503, "draining", "the gateway stops, and a has not answered yet")
            assert await error_of(client) == told
            await stage.puppets["a"].gone.get()
            assert stage.puppets["b"].num_connections == 0
            assert stage.gateway.app.infer.num_open == 0

    run(story)


def test_a_client_that_hangs_up_is_counted_where_its_request_was() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            await stage.puppets["a"].asked.get()
            client.close()
            await stage.puppets["a"].gone.get()
            assert stage.forwarding.results == {("a", "abandoned"): 1}
            page = (await stage.gateway.bench.get("/metrics")).body.decode()
            assert "remontoir_cancelled_total{" not in page
            assert "remontoir_requests_total{" not in page

    run(story)


def test_what_an_owner_had_for_minutes_before_it_ended_is_taken_by_who_stands_in() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"), slo_ms=600_000)
            asked = await stage.puppets["a"].asked.get()
            stage.clock.advance(ms(90_000))
            asked.hang_up()
            again = await stage.puppets["b"].asked.get()
            assert again.headers["x-remontoir-hop"] == "90001000"
            again.answer()
            assert (await client.answer())[0] == 200

    run(story)
