"""Replicas that were told different lists: while lists change, or by a mistake."""

from tests.gateway.listening import run
from tests.gateway.replicas.stage import OWN, model_of, replicas
from tests.gateway.replicas.test_forwarding import error_of


def test_a_replica_that_was_told_another_list_is_passed_over_and_stays_up() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.send(stage.model_of("a", "b"))
            refusal = (await stage.puppets["a"].asked.get()).answer
            refusal(503, x_remontoir_reason="replica_unavailable")
            (await stage.puppets["b"].asked.get()).answer()
            assert (await client.answer())[1]["x-remontoir-replica"] == "b"
            assert stage.forwarding.peers["a"].problem is None

    run(story)


def test_what_a_peer_with_another_list_asks_for_is_not_called_unknown() -> None:
    async def story() -> None:
        async with replicas("a", "b", serves=lambda s: [model_of(s, OWN, "a")]) as stage:
            model = stage.model_of("a", "b")
            client = await stage.send(model, "x-remontoir-hop: 4000\r\n")
            status, reason, detail = await error_of(client)
            assert (status, reason) == (503, "replica_unavailable")
            assert f"asked for model {model}, which its list of replicas gives to a and b" in detail
            client = await stage.send(stage.model_of("b", OWN), "x-remontoir-hop: 4000\r\n")
            assert (await error_of(client))[:2] == (404, "not_found")  # ours, and there is none

    run(story)
