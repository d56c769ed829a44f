"""Quotes and dry runs about models of other replicas: they ask about an SLO, and have none."""

import json

import pytest

from tests.gateway.http_doubles import ms
from tests.gateway.listening import run
from tests.gateway.replicas.stage import OWN, body_of, model_of, replicas


@pytest.mark.parametrize(
    ("path", "headers", "more"),
    [
        ("/quote", "", {}),
        ("/infer", "x-dry-run: true\r\n", {}),
        ("/infer", "", {"dry_run": True}),
        ("/infer", "", {"parameters": {"dry_run": True}}),
    ],
)
def test_a_question_about_a_short_slo_is_answered_however_long_the_way(
    path: str, headers: str, more: dict[str, object]
) -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.gateway.connect()
            client.send(
                body_of(stage.model_of("a", "b"), slo_ms=0.5, **more), path=path, headers=headers
            )
            asked = await stage.puppets["a"].asked.get()
            assert stage.timers.armed == []
            stage.clock.advance(ms(3))
            asked.answer(200, b'{"met": false}', x_remontoir_hop="1000;0")
            status, _, body = await client.answer()
            assert (status, body) == (200, b'{"met": false}')

    run(story)


def test_the_owner_says_that_a_question_had_no_slo() -> None:
    async def story() -> None:
        async with replicas("a", serves=lambda s: [model_of(s, OWN, "a")]) as stage:
            client = await stage.gateway.connect()
            body = json.dumps({"model": stage.model_of(OWN, "a"), "slo_ms": 50}).encode()
            client.send(body, path="/quote", headers="x-remontoir-hop: 4000\r\n")
            status, headers, _ = await client.answer()
            assert (status, headers["x-remontoir-hop"]) == (200, "1;0")

    run(story)
