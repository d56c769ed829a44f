"""Who leaves makes room, and who does not want to wait is told at once; against a real server."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.system.clients import Connection, ask_on_new_connection, bytes_body, metric, play
from tests.system.puppets import PuppetWorker
from tests.system.stages import Stage, joined, open_stage, until

MODEL = "cifar_wideresnet16_10"
NUM_PLACES = 22
V2_PATH = f"/v2/models/{MODEL}/infer"
BODY = bytes_body(MODEL, b"x")


def whole(path: str, body: bytes) -> bytes:
    """A request of one piece: the short way through the server."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(path: str, body: bytes) -> bytes:
    """The same through ASGI, which a body of unknown length takes."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked"
    return f"{head}\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


async def fill_the_lane(stage: Stage, puppet: PuppetWorker) -> list[Connection]:
    """Two executions in flight: whoever comes now is queued."""
    first = [await Connection.open(stage.url) for _ in range(2)]
    for number, connection in enumerate(first, 1):
        connection.send(bytes_body(MODEL, b"first"))
        await asyncio.to_thread(puppet.wait_for_requests, number)
    return first


@pytest.mark.parametrize(
    ("form", "path"), [(whole, "/infer"), (chunked, "/infer"), (whole, V2_PATH)]
)
def test_clients_that_hang_up_while_queued_make_room_for_another(
    tmp_path: Path, form: Callable[[str, bytes], bytes], path: str
) -> None:
    """Each place is taken, so that the other is refused; it is served once they have left."""
    settings = f"max_open_requests: {NUM_PLACES}\n"
    flags = ("--drain-s", "0", "--log-level", "error")
    with open_stage(tmp_path, *flags, settings=settings) as stage:

        async def story() -> None:
            with joined(stage, [MODEL], is_holding=True) as puppet:
                first = await fill_the_lane(stage, puppet)
                leaving = [await Connection.open(stage.url) for _ in range(NUM_PLACES - 2)]
                for connection in leaving:
                    connection.writer.write(form(path, BODY))
                await asyncio.to_thread(until, lambda: queued(stage) == NUM_PLACES - 2, "queued")
                refused = await ask_on_new_connection(stage.url, BODY)
                assert refused.verdict == "503 overloaded"

                for connection in leaving:
                    connection.close()
                await asyncio.to_thread(until, lambda: queued(stage) == 0, "their places are free")
                assert cancelled(stage, "queued") == NUM_PLACES - 2
                other = await Connection.open(stage.url)
                other.send(bytes_body(MODEL, b"other"))
                await asyncio.to_thread(until, lambda: queued(stage) == 1, "the other is let in")

                first.pop().close()  # its execution goes on, for nobody
                await asyncio.to_thread(until, lambda: cancelled(stage, "executing") == 1, "told")
                puppet.release()
                assert (await other.answer()).verdict == "200"
                assert (await first[0].answer()).verdict == "200"
                assert puppet.num_ordered == 3  # no worker has heard of those who left

        play(story)


def queued(stage: Stage) -> float:
    return metric(stage.url, "queue_depth", model=MODEL)


def cancelled(stage: Stage, where: str) -> float:
    return metric(stage.url, "cancelled_total", model=MODEL, where=where)


# ---------------------------------------------------------------------- now or not at all


def test_do_not_queue_runs_at_once_or_is_refused_at_once(stage: Stage) -> None:
    """By header, member and parameter, on both routes; a quote and a dry run say the same."""
    member = json.loads(bytes_body(MODEL, b"x", do_not_queue=True))
    parameter = json.loads(bytes_body(MODEL, b"x", parameters={"do_not_queue": True}))
    ways = [
        ("/infer", member, {}),
        ("/infer", parameter, {}),
        ("/infer", json.loads(BODY), {"x-do-not-queue": "true"}),
        (V2_PATH, parameter, {}),
        (V2_PATH, json.loads(BODY), {"x-do-not-queue": "1"}),
    ]

    def ask(path: str, body: object, headers: dict[str, str]) -> httpx.Response:
        return httpx.post(f"{stage.url}{path}", json=body, headers=headers, timeout=30)

    def ask_all_ways() -> list[httpx.Response]:
        return [ask(*way) for way in ways]

    def ask_first() -> list[str]:
        question = {"model": MODEL, "slo_ms": 60_000, "do_not_queue": True}
        dry = {"x-dry-run": "true"}
        told = [ask("/quote", question, {})]
        told += [ask(path, body, headers | dry) for path, body, headers in ways]
        assert {answer.status_code for answer in told} == {200}
        refusals = [answer.json()["refusal"] for answer in told]
        return ["" if refusal is None else refusal["reason"] for refusal in refusals]

    async def story() -> None:
        with joined(stage, [MODEL], is_holding=True) as puppet:
            first = await fill_the_lane(stage, puppet)
            assert await asyncio.to_thread(ask_first) == ["would_queue"] * 6
            for answer in await asyncio.to_thread(ask_all_ways):
                assert (answer.status_code, answer.json()["reason"]) == (429, "would_queue")
                assert "retry-after" in answer.headers
            assert queued(stage) == 0
            puppet.release()
            for connection in first:
                assert (await connection.answer()).status == 200
            puppet.is_holding = False
            assert await asyncio.to_thread(ask_first) == [""] * 6
            for answer in await asyncio.to_thread(ask_all_ways):
                assert answer.status_code == 200
            assert puppet.num_ordered == 2 + len(ways)  # and not one for a question

    play(story)
