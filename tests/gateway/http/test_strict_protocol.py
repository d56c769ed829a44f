"""Bytes that are no HTTP, or that two servers could read differently, over real sockets."""

import asyncio
import json
import logging

import pytest

from tests.gateway.http_doubles import fp32, mlp_body, outputs, served
from tests.gateway.listening import Gateway, body_of, listening, run

MLP_OUTPUTS = outputs(((1, 2), fp32(0.5, 0.25)))
BODY = body_of(mlp_body())
HEAD = b"POST /infer HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
GOOD = HEAD + LENGTH + b"\r\n" + BODY
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SIZE = b"%x" % len(BODY)
CHUNKS = SIZE + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
# The short way; and, for the query, uvicorn's own.
WAYS = pytest.mark.parametrize("path", [b"/infer", b"/infer?long=1"], ids=["direct", "cycle"])


def chunks(size_line: bytes) -> bytes:
    return HEAD + CHUNKED + b"\r\n" + size_line + b"\r\n" + BODY + b"\r\n0\r\n\r\n"


async def answer_next(gateway: Gateway) -> None:
    (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)


SMUGGLED = {
    "CL and TE": (HEAD + LENGTH + CHUNKED + b"\r\n" + CHUNKS, "can't be present with"),
    "TE and CL": (HEAD + CHUNKED + LENGTH + b"\r\n" + CHUNKS, "can't be present with"),
    "two CLs": (HEAD + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY, "Duplicate Content-Length"),
    "the same CL twice": (HEAD + LENGTH + LENGTH + b"\r\n" + BODY, "Duplicate Content-Length"),
    "a list of CLs": (HEAD + b"Content-Length: 3, 3\r\n\r\nabc", "Content-Length"),
    "CL +3": (HEAD + b"Content-Length: +3\r\n\r\nabc", "Content-Length"),
    "CL -3": (HEAD + b"Content-Length: -3\r\n\r\nabc", "Content-Length"),
    "CL 0x3": (HEAD + b"Content-Length: 0x3\r\n\r\nabc", "Content-Length"),
    "CL of 65 bits": (HEAD + b"Content-Length: 18446744073709551619\r\n\r\nabc", "overflow"),
    "CL empty": (HEAD + b"Content-Length: \r\n\r\nabc", "Content-Length"),
    "TE in HTTP/1.0": (chunks(SIZE).replace(b"HTTP/1.1", b"HTTP/1.0"), "HTTP/1.0"),
    "TE of two codings": (
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
        "'gzip, chunked': this server reads chunked alone",
    ),
    "TE in two headers": (
        HEAD + b"Transfer-Encoding: identity\r\n" + CHUNKED + b"\r\n" + CHUNKS,
        "'identity, chunked': this server reads chunked alone",
    ),
    "chunked not last": (HEAD + b"Transfer-Encoding: chunked, x\r\n\r\n" + CHUNKS, "Transfer-"),
    "TE unknown": (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS, "Transfer-Encoding"),
    "obs-fold": (HEAD + b"X-A: 1\r\n 2\r\n" + LENGTH + b"\r\n" + BODY, "whitespace"),
    "a bare LF": (GOOD.replace(b"Host: x\r\n", b"Host: x\n"), "CR"),
    "bare LFs": (GOOD.replace(b"\r\n", b"\n"), "CR"),
    "a bare CR": (GOOD.replace(b"Host: x\r\n", b"Host: x\r"), "LF"),
    "whitespace before a colon": (GOOD.replace(b"Content-Length:", b"Content-Length :"), "header"),
    "whitespace before a name": (GOOD.replace(b"Content-Length", b" Content-Length"), "whitespace"),
    "NUL in a header": (GOOD.replace(b"Host: x", b"Host: \0"), "header value"),
    "chunk size -1": (chunks(b"-1"), "chunk size"),
    "chunk size +": (chunks(b"+" + SIZE), "chunk size"),
    "chunk size 0x": (chunks(b"0x" + SIZE), "chunk size"),
    "chunk size and space": (chunks(SIZE + b" "), "chunk size"),
    "chunk size of 68 bits": (chunks(b"1" + b"0" * 16), "overflow"),
    "chunk size of none": (chunks(b""), "chunk size"),
    "a chunk line that ends in LF": (chunks(SIZE).replace(SIZE + b"\r\n", SIZE + b"\n"), "CR"),
    "bytes after a chunk": (chunks(SIZE).replace(b"\r\n0\r\n", b"XX\r\n0\r\n"), "chunk data"),
    "HTTP/0.9": (b"GET /livez\r\n\r\n", "HTTP/0.9"),
    "HTTP/2.0": (GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"), "HTTP/2.0"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), "method"),
    "a path that is not ASCII": (GOOD.replace(b"/infer", b"/\xff"), "url"),
    "no URL": (GOOD.replace(b"/infer", b"http://[::1/infer"), "url"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "words"), SMUGGLED.values(), ids=SMUGGLED)
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(
    data: bytes, words: str
) -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(data + GOOD)
            status, headers, body = await connection.answer()
            assert (status, headers["connection"]) == (400, "close")
            assert headers["content-type"] == "application/problem+json"
            error = json.loads(body)
            assert error["reason"] == headers["x-remontoir-reason"] == "bad_request"
            assert words in error["detail"]
            assert await connection.is_closed()
            assert gateway.submitted.empty()
            assert gateway.app.infer.num_open == 0
            assert gateway.app.infer.memory.num_bytes == 0

    run(story)


def test_below_v2_the_protocols_clients_can_read_it() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(b"GET /v2/models/mlp HTTP/1.1\r\nA : b\r\n\r\n")
            _, headers, body = await connection.answer()
            assert headers["content-type"] == "application/json"
            assert json.loads(body)["error"]

    run(story)


@WAYS
def test_a_request_is_answered_before_the_garbage_behind_it(path: bytes) -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(GOOD.replace(b"/infer", path) * 2 + b"GARBAGE\r\n\r\n")
            for _ in range(2):
                await answer_next(gateway)
                assert (await connection.answer())[0] == 200
            assert (await connection.answer())[0] == 400
            assert await connection.is_closed()

    run(story)


@WAYS
def test_a_body_that_breaks_off_in_nonsense_is_answered_in_its_turn(path: bytes) -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            bad = HEAD.replace(b"/infer", path) + CHUNKED + b"\r\n3\r\n{  \r\n"
            connection.writer.write(GOOD + bad)
            request = await gateway.submitted.get()
            connection.writer.write(b"zz\r\n")
            request.on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[0] == 200
            assert (await connection.answer())[0] == 400
            assert await connection.is_closed()
            assert gateway.app.infer.num_open == 0

    run(story)


def test_a_request_that_has_its_answer_gets_no_second_one() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n")
            assert (await connection.answer())[0] == 200
            connection.writer.write(b"zz\r\n")
            assert await connection.is_closed()

    run(story)


def test_a_refusal_reaches_a_client_that_goes_on_writing() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(HEAD + LENGTH + CHUNKED + b"\r\n" + bytes(8 << 20))
            await connection.writer.drain()
            assert (await connection.answer())[0] == 400
            assert await connection.is_closed()

    run(story)


def test_a_client_that_leaves_while_its_refusal_lingers() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(b"GARBAGE\r\n\r\n")
            assert (await connection.answer())[0] == 400
            connection.writer.transport.abort()
            while gateway.server.server_state.connections:  # noqa: ASYNC110  # no event says so
                await asyncio.sleep(0)

    run(story)


@pytest.mark.parametrize(
    "header", ["Host", "X-Slo-Ms", "Inference-Header-Content-Length", "Content-Encoding"]
)
@pytest.mark.parametrize("in_pieces", [False, True], ids=["one piece", "pieces"])
def test_a_header_that_says_how_to_read_the_rest_is_there_once(
    header: str, in_pieces: bool
) -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            twice = f"{header}: 5\r\n{header.lower()}: 7\r\n".encode()
            connection.writer.write(HEAD + twice + LENGTH + b"\r\n" + BODY[:20])
            if in_pieces:
                await asyncio.sleep(0)
            connection.writer.write(BODY[20:])
            status, _, body = await connection.answer()
            assert status == 400
            assert json.loads(body)["detail"] == f"header {header.lower()} is given twice"
            connection.writer.write(GOOD.replace(b"Host: x", b"X-A: 1\r\nX-A: 2"))
            await answer_next(gateway)
            assert (await connection.answer())[0] == 200

    run(story)


@pytest.mark.parametrize("in_pieces", [False, True], ids=["one piece", "pieces"])
@WAYS
def test_trailers_are_no_headers(path: bytes, in_pieces: bool) -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            head = HEAD.replace(b"/infer", path) + b"X-Request-Id: head\r\n" + CHUNKED + b"\r\n"
            connection.writer.write(head + SIZE + b"\r\n" + BODY)
            if in_pieces:
                while gateway.app.infer.num_open == 0:  # noqa: ASYNC110  # no event says so
                    await asyncio.sleep(0)
            trailers = b"X-Request-Id: trailer\r\nInference-Header-Content-Length: 3\r\n"
            connection.writer.write(b"\r\n0\r\n" + trailers + b"\r\n" + GOOD)
            await answer_next(gateway)
            status, headers, _ = await connection.answer()
            assert (status, headers["x-request-id"]) == (200, "head")
            await answer_next(gateway)  # the next is read as if nothing had been
            assert (await connection.answer())[0] == 200

    run(story)


@pytest.mark.parametrize("in_pieces", [False, True], ids=["one piece", "pieces"])
@WAYS
def test_a_wish_for_another_protocol_costs_nobody_the_body(path: bytes, in_pieces: bool) -> None:
    """Java's HTTP client sends one with its first request, whatever that is."""

    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            wish = HEAD.replace(b"/infer", path) + UPGRADE + LENGTH + b"\r\n"
            if in_pieces:
                connection.writer.write(wish[:-1])
                await asyncio.sleep(0)
                connection.writer.write(wish[-1:])
                await asyncio.sleep(0)
                connection.writer.write(BODY)
            else:
                connection.writer.write((wish + BODY) * 3)
            for _ in range(1 if in_pieces else 3):
                await answer_next(gateway)
                status, headers, _ = await connection.answer()
                assert (status, headers.get("connection")) == (200, None)
            connection.writer.write(GOOD)
            await answer_next(gateway)
            assert (await connection.answer())[0] == 200

    run(story)


def test_garbage_behind_a_wish_for_another_protocol() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(HEAD + UPGRADE + LENGTH + b"\r\n" + BODY + b"GARBAGE\r\n\r\n")
            await answer_next(gateway)
            assert (await connection.answer())[0] == 200
            assert (await connection.answer())[0] == 400

    run(story)


def test_there_is_no_tunnel() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.writer.write(b"CONNECT /infer HTTP/1.1\r\nHost: x\r\n\r\n" + GOOD)
            status, headers, _ = await connection.answer()
            assert (status, headers["connection"]) == (405, "close")
            assert await connection.is_closed()
            assert gateway.submitted.empty()

    run(story)


def test_our_own_bug_in_the_parsers_callbacks_is_a_500(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with listening(True) as gateway:

            def broken(*_: object, **__: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(gateway.app.infer, "answer", broken)
            connection = await gateway.connect()
            connection.writer.write(GOOD)
            assert (await connection.answer())[0] == 500
            assert await connection.is_closed()

    with caplog.at_level(logging.ERROR):
        run(story)
    assert "ZeroDivisionError" in caplog.text
