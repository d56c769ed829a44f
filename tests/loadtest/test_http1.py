"""The client against puppet servers on real sockets."""

import asyncio
from collections.abc import Awaitable, Callable

from loadtest.http1 import ConnectionPool, Shot

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def shots_with(behaviour: Behaviour, count: int = 1) -> list[Shot]:
    """Sends one request after the other to a server that behaves so; what became of them."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaviour(reader, writer)
        finally:
            writer.close()

    async def play() -> list[Shot]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pool = ConnectionPool("127.0.0.1", server.sockets[0].getsockname()[1])
        shots = []
        for _ in range(count):
            shot = Shot(0, 0, 0)
            done = asyncio.get_running_loop().create_future()
            pool.send(shot, REQUEST, done.set_result)
            await done
            shots.append(shot)
        await pool.close()
        server.close()
        await server.wait_closed()
        return shots

    return asyncio.run(play())


async def take(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\n")


def test_a_reply_is_read_and_its_connection_used_again():
    connections = []

    async def behaviour(reader, writer):
        connections.append(writer)
        for _ in range(2):
            await take(reader)
            writer.write(OK)
        await reader.read()

    first, second = shots_with(behaviour, count=2)
    assert (first.status, first.body, first.json_length) == (200, b"ok", None)
    assert second.body == b"ok"
    assert 0 < first.sent_ns <= first.done_ns <= second.sent_ns
    assert len(connections) == 1


def test_the_length_of_the_json_part_is_noted():
    async def behaviour(reader, writer):
        await take(reader)
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nInference-Header-Content-Length: 1\r\n\r\n"))
        await reader.read()

    (shot,) = shots_with(behaviour)
    assert shot.json_length == 1


def test_a_chunked_reply_is_joined():
    async def behaviour(reader, writer):
        await take(reader)
        writer.write(b"HTTP/1.1 429 x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n")
        await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    (shot,) = shots_with(behaviour)
    assert (shot.status, shot.body) == (429, b"ab")


def test_a_connection_closed_without_a_reply_is_no_answer():
    async def behaviour(reader, writer):
        await take(reader)

    (shot,) = shots_with(behaviour)
    assert (shot.status, shot.trouble) == (0, "connection closed without a reply")


def test_what_is_not_http_is_no_answer():
    async def behaviour(reader, writer):
        await take(reader)
        writer.write(b"hello\r\n\r\n")
        await reader.read()

    (shot,) = shots_with(behaviour)
    assert shot.status == 0
    assert shot.trouble.startswith("unreadable reply")


def test_a_kept_alive_connection_that_closes_at_its_next_use_is_tried_again_once():
    num_requests = 0

    async def behaviour(reader, writer):
        nonlocal num_requests
        for _ in range(2):
            await take(reader)
            num_requests += 1
            if num_requests == 2:
                return  # hangs up instead of answering
            writer.write(OK)
        await reader.read()

    first, second = shots_with(behaviour, count=2)
    assert (first.status, first.is_retry) == (200, False)
    assert (second.status, second.is_retry) == (200, True)
    assert num_requests == 3


def test_giving_up_hangs_up():
    async def play() -> tuple[Shot, bytes]:
        arrived = asyncio.Event()
        seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            await take(reader)
            arrived.set()
            try:
                seen.set_result(await reader.read())
            except ConnectionResetError:
                seen.set_result(b"")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pool = ConnectionPool("127.0.0.1", server.sockets[0].getsockname()[1])
        shot = Shot(0, 0, 0)
        done = asyncio.get_running_loop().create_future()
        pool.send(shot, REQUEST, done.set_result)
        await arrived.wait()
        pool.give_up(shot)
        await done
        server_saw = await seen
        await pool.close()
        server.close()
        return shot, server_saw

    shot, server_saw = asyncio.run(play())
    assert (shot.status, shot.trouble) == (0, "gave up")
    assert server_saw == b""


def test_nobody_listening_is_no_answer():
    async def play() -> Shot:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        shot = Shot(0, 0, 0)
        done = asyncio.get_running_loop().create_future()
        ConnectionPool("127.0.0.1", port).send(shot, REQUEST, done.set_result)
        await done
        return shot

    assert asyncio.run(play()).trouble.startswith("cannot connect")


def test_a_send_in_the_moment_a_connection_opens_takes_it_from_nobody():
    serving = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        try:
            while True:
                await take(reader)
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def play() -> list[Shot]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        shots: list[Shot] = []
        for _ in range(20):
            pool = ConnectionPool("127.0.0.1", server.sockets[0].getsockname()[1])
            done: list[Shot] = []
            shots += [Shot(0, 0, 0), Shot(0, 0, 0)]
            pool.send(shots[-2], REQUEST, done.append)
            while not pool.num_opened:  # noqa: ASYNC110  # this very turn of the loop is meant
                await asyncio.sleep(0)
            pool.send(shots[-1], REQUEST, done.append)
            while len(done) < 2:  # noqa: ASYNC110  # bounded by the test's own timeout
                await asyncio.sleep(0)
            await pool.close()
        await asyncio.gather(*serving)
        server.close()
        await server.wait_closed()
        return shots

    assert [(shot.status, shot.trouble) for shot in asyncio.run(play())] == [(200, "")] * 40
