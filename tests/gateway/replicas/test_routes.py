"""Routes about one model go to who has it, lists are of all replicas."""

import json
from typing import Any

from tests.gateway.listening import Connection, run
from tests.gateway.replicas.stage import OWN, Asked, Stage, model_of, replicas


async def ask(stage: Stage, method: str, path: str, body: bytes = b"") -> Connection:
    client = await stage.gateway.connect()
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    client.writer.write(head.encode() + body)
    return client


async def told(client: Connection) -> tuple[int, dict[str, str], Any]:
    status, headers, body = await client.answer()
    return status, headers, json.loads(body)


def entries(*names: str, by: str) -> bytes:
    return json.dumps({"models": [{"name": name, "by": by} for name in names]}).encode()


def test_a_model_is_shown_by_its_owner_and_by_who_stands_in_where_that_is_away() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            model = stage.model_of("a", "b")
            client = await ask(stage, "GET", f"/v2/models/{model}/config?x=1")
            asked = await stage.puppets["a"].asked.get()
            assert asked.line == f"GET /v2/models/{model}/config?x=1 HTTP/1.1"
            assert asked.headers["x-remontoir-hop"] == "0"
            asked.answer(200, b'{"of": "a"}')
            status, headers, body = await told(client)
            assert (status, headers["x-remontoir-replica"], body) == (200, "a", {"of": "a"})
            await stage.puppets["a"].close()
            client = await ask(stage, "GET", f"/models/{model}")
            (await stage.puppets["b"].asked.get()).answer(404, b'{"of": "b"}')
            assert (await told(client))[0] == 404

    run(story)


def test_own_models_are_shown_here() -> None:
    async def story() -> None:
        async with replicas("a", serves=lambda s: [model_of(s, OWN, "a")]) as stage:
            model = stage.model_of(OWN, "a")
            client = await ask(stage, "GET", f"/models/{model}")
            assert (await told(client))[2]["name"] == model

    run(story)


def test_without_a_replica_that_answers_it_is_an_honest_503() -> None:
    async def story() -> None:
        async with replicas("a", copies=1) as stage:
            await stage.puppets["a"].close()
            client = await ask(stage, "GET", f"/v2/models/{stage.model_of('a')}")
            status, _, body = await told(client)
            assert (status, body["reason"]) == (503, "replica_unavailable")

    run(story)


def test_a_change_is_made_at_all_that_have_the_model() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            model = stage.model_of("a", "b")
            path = f"/v2/repository/models/{model}/load"

            async def asked_both() -> list[Asked]:
                both = [await stage.puppets[name].asked.get() for name in "ab"]
                assert {asked.line for asked in both} == {f"POST {path} HTTP/1.1"}
                assert {asked.body for asked in both} == {b"{}"}
                return both

            client = await ask(stage, "POST", path, b"{}")
            first, second = await asked_both()
            first.answer(200, b'{"of": "a"}')
            second.answer(200, b'{"of": "b"}')
            assert (await told(client))[2] == {"of": "a"}
            client = await ask(stage, "POST", path, b"{}")
            first, second = await asked_both()
            first.answer(200, b'{"of": "a"}')
            second.answer(503, b'{"of": "b"}')
            status, headers, _ = await told(client)
            assert (status, headers["x-remontoir-replica"]) == (503, "b")
            stage.forwarding.peers["b"].mark_unready("draining")
            client = await ask(stage, "POST", path, b"{}")
            (await stage.puppets["a"].asked.get()).answer(200, b"{}")
            status, headers, _ = await told(client)
            assert (status, headers["x-remontoir-missing"]) == (200, "b")

    run(story)


def test_lists_have_each_model_once_as_its_owner_shows_it() -> None:
    async def story() -> None:
        async with replicas("a", "b", serves=lambda s: [model_of(s, OWN, "a")]) as stage:
            mine, of_a, of_b = (stage.model_of(*p) for p in ((OWN, "a"), ("a", "b"), ("b", "a")))
            client = await ask(stage, "GET", "/models")
            (await stage.puppets["a"].asked.get()).answer(200, entries(mine, of_a, of_b, by="a"))
            (await stage.puppets["b"].asked.get()).answer(200, entries(of_a, of_b, by="b"))
            _, headers, body = await told(client)
            shown = {entry["name"]: entry.get("by", OWN) for entry in body["models"]}
            assert shown == {mine: OWN, of_a: "a", of_b: "b"}
            assert "x-remontoir-missing" not in headers
            stage.forwarding.peers["b"].mark_unready("draining")
            client = await ask(stage, "POST", "/v2/repository/index")
            listed = json.dumps([{"name": of_b, "state": "READY"}]).encode()
            (await stage.puppets["a"].asked.get()).answer(200, listed)
            _, headers, body = await told(client)
            assert {entry["name"] for entry in body} == {mine, of_b}
            assert headers["x-remontoir-missing"] == "b"

    run(story)


def test_a_group_is_shown_by_its_owner_and_is_in_the_list_of_all() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            task, other = stage.model_of("a", "b"), stage.model_of("b", "a")
            client = await ask(stage, "GET", f"/groups/{task}")
            (await stage.puppets["a"].asked.get()).answer(200, b'{"of": "a"}')
            assert (await told(client))[2] == {"of": "a"}
            client = await ask(stage, "GET", "/groups")
            for name in "ab":
                shown = [{"name": task, "by": name}, {"name": other, "by": name}]
                asked = await stage.puppets[name].asked.get()
                asked.answer(200, json.dumps({"groups": shown}).encode())
            body = (await told(client))[2]
            assert {entry["name"]: entry["by"] for entry in body["groups"]} == {
                task: "a",
                other: "b",
            }

    run(story)


def test_a_request_is_known_to_who_served_it() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            a, b = stage.puppets["a"], stage.puppets["b"]
            client = await ask(stage, "GET", "/requests/r-1")
            asked = await a.asked.get()
            assert asked.line == "GET /requests/r-1 HTTP/1.1"
            asked.answer(404)
            (await b.asked.get()).answer(200, b'{"of": "b"}')
            status, headers, body = await told(client)
            assert (status, headers["x-remontoir-replica"], body) == (200, "b", {"of": "b"})
            client = await ask(stage, "POST", "/feedback", b'{"request_id": "r-1", "loss": 1}')
            for puppet in (a, b):
                asked = await puppet.asked.get()
                assert asked.body == b'{"request_id": "r-1", "loss": 1}'
                asked.answer(404)
            status, headers, body = await told(client)
            assert (status, body["reason"]) == (404, "not_found")
            assert "x-remontoir-replica" not in headers
            stage.forwarding.peers["a"].mark_unready("draining")
            client = await ask(stage, "GET", "/requests/r-1")
            (await b.asked.get()).answer(404)
            assert (await told(client))[1]["x-remontoir-missing"] == "a"
            client = await ask(stage, "POST", "/feedback", b"{}")  # nothing to look for
            assert (await told(client))[0] == 400

    run(story)


def test_what_came_from_a_peer_and_what_is_about_no_model_is_answered_here() -> None:
    async def story() -> None:
        async with replicas("a", "b") as stage:
            client = await stage.gateway.connect()
            head = f"GET /models/{stage.model_of('a', 'b')} HTTP/1.1\r\nhost: x\r\n"
            client.writer.write(f"{head}x-remontoir-hop: 0\r\n\r\n".encode())
            assert (await told(client))[0] == 404
            assert (await told(await ask(stage, "GET", "/livez")))[2] == {"live": True}
            client = await ask(stage, "POST", "/v2/repository/index", b"x" * 70_000)
            assert (await told(client))[0] == 413

    run(story)
