"""What the routes beside inference read of a body: how much, and for how long."""

import asyncio
import gzip

import pytest

from gateway.config import MEBIBYTE, GatewayConfig
from gateway.http.small_body import MAX_BODY_BYTES
from tests.gateway.http_doubles import Bench, Client, run, settle
from tests.gateway.listening import listening
from tests.gateway.listening import run as run_listening

INDEX = "/v2/repository/index"


def told(client: Client, status: int, reason: str) -> str:
    assert (client.status, client.json["reason"]) == (status, reason)
    assert client.headers["connection"] == "close"
    detail: str = client.json["detail"]
    return detail


def test_a_body_that_does_not_come_is_answered_when_its_time_is_over() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(body_timeout_ms=2500))
        client = bench.client()
        client.start("POST", INDEX, {"content-length": "10"})
        client.give(b"{", more=True)
        await settle()
        (timer,) = bench.timers.armed
        assert timer.delay_s == 2.5
        assert not client.is_answered
        timer.fire()
        await settle()
        assert told(client, 408, "timeout") == "the body was not complete after 2.5 s"
        assert bench.timers.armed == []

    run(story)


def test_what_is_over_the_limit_is_read_before_it_is_refused() -> None:
    async def story() -> None:
        bench = Bench()
        client = bench.client()
        client.start("POST", INDEX, {})
        for _ in range(3):
            client.give(bytes(MAX_BODY_BYTES), more=True)
            await settle()
            assert not client.is_answered
        client.give(b"")
        await settle()
        assert told(client, 413, "too_large") == "the body has over 65536 bytes, the limit here"

    run(story)


def test_what_never_ends_is_not_read_for_ever() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(max_body_mb=1))
        client = bench.client()
        client.start("POST", INDEX, {})
        client.give(bytes(MEBIBYTE + 1), more=True)
        await settle()
        assert told(client, 413, "too_large") == "the body has over 65536 bytes, the limit here"

    run(story)


def test_a_client_that_leaves_is_forgotten_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        bench = Bench()
        client = bench.client()
        client.start("POST", INDEX, {})
        client.give(b"{", more=True)
        client.hang_up()
        await settle()
        assert client.task is not None
        assert client.task.done()
        assert client.task.exception() is None
        assert bench.timers.armed == []

    run(story)
    assert not caplog.records


def test_a_compressed_body_is_read_within_the_limit() -> None:
    async def story() -> None:
        bench = Bench()
        for body, encoding, status in (
            (gzip.compress(b'{"ready": true}'), "gzip", 200),
            (gzip.compress(bytes(MAX_BODY_BYTES + 1)), "gzip", 413),
            (b"{}", "gzip", 400),
            (b"{}", "br", 415),
            (b"{}", "identity", 200),
        ):
            client = await bench.post(body, path=INDEX, headers={"content-encoding": encoding})
            assert client.status == status, client.body

    run(story)


def test_a_client_that_writes_too_much_gets_the_refusal_over_a_real_connection() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.send(bytes(16 * MEBIBYTE), path=INDEX)
            await connection.writer.drain()
            assert (await connection.answer())[0] == 413
            assert await connection.is_closed()
            while gateway.server.server_state.connections:  # noqa: ASYNC110  # no event says so
                await asyncio.sleep(0)

    run_listening(story)
