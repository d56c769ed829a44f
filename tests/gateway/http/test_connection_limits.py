"""What a connection may take before there is a request, over sockets; timers are fired by hand."""

import asyncio
import json
from collections.abc import Callable

import pytest

from gateway.http.limited_protocol import MAX_TURNED_AWAY, ConnectionLimits
from tests.gateway.http_doubles import Timers, fp32, mlp_body, outputs, served
from tests.gateway.listening import Connection, Gateway, body_of, listening, run

MLP_OUTPUTS = outputs(((1, 2), fp32(0.5, 0.25)))
BODY = body_of(mlp_body())
HEAD = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(BODY)
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # no event says so
        await asyncio.sleep(0)


async def answered(gateway: Gateway, connection: Connection) -> int:
    (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
    return (await connection.answer())[0]


async def refusal(connection: Connection) -> tuple[int, str, str]:
    status, headers, body = await connection.answer()
    assert headers["connection"] == "close"
    assert await connection.is_closed()
    problem = json.loads(body)
    assert problem["status"] == status
    return status, problem["reason"], problem["detail"]


# ---------------------------------------------------------------------- heads


@pytest.mark.parametrize("begin", [b"P", b"POST /infer HTTP/1.1\r\n", HEAD], ids=range(3))
def test_a_head_that_does_not_come_to_its_end_in_time_is_408(begin: bytes) -> None:
    async def story() -> None:
        timers = Timers()
        limits = ConnectionLimits(head_timeout_s=2.5, call_later=timers)
        async with listening(True, limits=limits) as gateway:
            connection = await gateway.connect()
            connection.writer.write(begin)
            await until(lambda: bool(timers.armed))
            [timer] = timers.armed
            assert timer.delay_s == 2.5
            timer.fire()
            assert await refusal(connection) == (
                408,
                "timeout",
                "the header was not complete after 2.5 s",
            )

    run(story)


def test_more_of_a_head_does_not_buy_more_time_and_its_end_does() -> None:
    async def story() -> None:
        timers = Timers()
        async with listening(True, limits=ConnectionLimits(call_later=timers)) as gateway:
            connection = await gateway.connect()
            for begin in (HEAD[:1], HEAD[1:9], HEAD[9:]):
                connection.writer.write(begin)
                await until(lambda: bool(timers.armed))
            assert len(timers.armed) == 1
            connection.writer.write(b"\r\n" + BODY)
            assert await answered(gateway, connection) == 200
            assert timers.armed == []
            connection.send(BODY)  # in one piece: no timer at all
            request = await gateway.submitted.get()
            assert timers.armed == []
            request.on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[0] == 200

    run(story)


def test_a_client_that_goes_away_in_mid_head_leaves_no_timer() -> None:
    async def story() -> None:
        timers = Timers()
        async with listening(True, limits=ConnectionLimits(call_later=timers)) as gateway:
            connection = await gateway.connect()
            connection.writer.write(HEAD)
            await until(lambda: bool(timers.armed))
            connection.close()
            await until(lambda: not timers.armed)

    run(story)


def test_a_slow_head_behind_a_request_is_refused_after_that_is_answered() -> None:
    async def story() -> None:
        timers = Timers()
        async with listening(True, limits=ConnectionLimits(call_later=timers)) as gateway:
            connection = await gateway.connect()
            connection.writer.write(HEAD + b"\r\n" + BODY + HEAD)
            request = await gateway.submitted.get()
            await until(lambda: bool(timers.armed))
            timers.armed[0].fire()
            request.on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[0] == 200
            assert (await refusal(connection))[:2] == (408, "timeout")

    run(story)


@pytest.mark.parametrize(
    "long",
    [
        b"X-Long: " + b"x" * 5_000,
        b"\r\n".join(b"X-%d: y" % number for number in range(500)),
        b"X-Long: " + b"x" * 300_000,
    ],
    ids=["a long value", "many headers", "larger than what is read at once"],
)
@pytest.mark.parametrize("is_cut", [False, True], ids=["in one piece", "cut in two"])
def test_a_head_over_the_limit_is_431(long: bytes, is_cut: bool) -> None:
    async def story() -> None:
        timers = Timers()
        limits = ConnectionLimits(max_head_bytes=4096, call_later=timers)
        async with listening(True, limits=limits) as gateway:
            connection = await gateway.connect()
            if is_cut:
                connection.writer.write(HEAD)
                await until(lambda: bool(timers.armed))
            connection.writer.write((b"" if is_cut else HEAD) + long + b"\r\n\r\n" + BODY)
            assert await refusal(connection) == (
                431,
                "headers_too_large",
                "the header has over 4096 bytes, the limit of this gateway",
            )
            assert timers.armed == []
            assert gateway.submitted.empty()

    run(story)


def test_a_large_body_is_not_taken_for_a_head() -> None:
    async def story() -> None:
        limits = ConnectionLimits(max_head_bytes=200)
        async with listening(True, limits=limits) as gateway:
            connection = await gateway.connect()
            padded = BODY + b" " * 300_000
            connection.send(padded)
            assert await answered(gateway, connection) == 200
            connection.writer.write(CHUNKED + b"%x\r\n" % len(padded) + padded)
            await asyncio.sleep(0)
            connection.writer.write(b"\r\n0\r\n\r\n")
            connection.writer.write(LIVEZ[:5])  # a begun head in the same breath as a large body
            assert await answered(gateway, connection) == 200
            connection.writer.write(LIVEZ[5:])
            assert (await connection.answer())[0] == 200

    run(story)


@pytest.mark.parametrize("trailer", [b"X: y\r\n" * 4_000, b"X: " + b"y" * 40_000])
def test_trailers_over_the_limit_are_431(trailer: bytes) -> None:
    async def story() -> None:
        limits = ConnectionLimits(max_head_bytes=4096)
        async with listening(True, limits=limits) as gateway:
            connection = await gateway.connect()
            connection.writer.write(CHUNKED + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n")
            await until(lambda: gateway.app.infer.num_open == 1)
            connection.writer.write(trailer)
            assert (await refusal(connection))[:2] == (431, "headers_too_large")
            await until(lambda: gateway.app.infer.num_open == 0)
            assert gateway.app.infer.memory.num_bytes == 0

    run(story)


# ---------------------------------------------------------------------- connections


def test_one_connection_too_many_is_told_so_when_it_asks_and_the_others_go_on() -> None:
    async def story() -> None:
        async with listening(True, limits=ConnectionLimits(max_connections=2)) as gateway:
            first, second = await gateway.connect(), await gateway.connect()
            state = gateway.server.server_state
            await until(lambda: len(state.connections) == 2)
            third = await gateway.connect()
            third.send(BODY)
            status, headers, body = await third.answer()
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
            problem = json.loads(body)
            assert problem["reason"] == "overloaded"
            assert problem["detail"] == "2 connections are open, the most this gateway takes"
            assert await third.is_closed()
            assert gateway.submitted.empty()
            second.send(BODY)
            assert await answered(gateway, second) == 200
            first.close()
            await until(lambda: len(state.connections) == 1)
            fourth = await gateway.connect()
            fourth.send(BODY)
            assert await answered(gateway, fourth) == 200

    run(story)


def test_a_full_gateway_is_alive_and_says_so_to_a_kubelet() -> None:
    async def story() -> None:
        async with listening(True, limits=ConnectionLimits(max_connections=0)) as gateway:
            probe = await gateway.connect()
            probe.writer.write(LIVEZ)
            status, headers, body = await probe.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert json.loads(body) == {"live": True}
            assert await probe.is_closed()
            other = await gateway.connect()
            other.writer.write(LIVEZ.replace(b"livez", b"readyz"))
            assert (await refusal(other))[:2] == (503, "overloaded")
            assert not gateway.server.server_state.connections

    run(story)


def test_a_flood_is_cut_off_and_leaves_nothing() -> None:
    async def story() -> None:
        async with listening(True, limits=ConnectionLimits(max_connections=0)) as gateway:
            turned_away = gateway.server.config.http_protocol_class.turned_away  # type: ignore[union-attr]
            crowd = [await gateway.connect() for _ in range(MAX_TURNED_AWAY)]
            await until(lambda: len(turned_away) == MAX_TURNED_AWAY)
            one_more = await gateway.connect()
            assert await one_more.is_closed()
            for connection in crowd:
                connection.close()
            await until(lambda: not turned_away)
            assert not gateway.server.server_state.connections

    run(story)


def test_empty_lines_do_not_keep_an_idle_connection_open() -> None:
    async def story() -> None:
        async with listening(True, keep_alive_s=0) as gateway:
            connection = await gateway.connect()
            connection.send(BODY)
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            connection.writer.write(b"\r\n")
            assert (await connection.answer())[0] == 200
            assert await connection.is_closed()

    run(story)


def test_who_connects_and_says_nothing_is_closed_as_an_idle_one() -> None:
    async def story() -> None:
        limits = ConnectionLimits(head_timeout_s=0)
        async with listening(True, keep_alive_s=0, limits=limits) as gateway:
            assert await (await gateway.connect()).is_closed()

    run(story)
