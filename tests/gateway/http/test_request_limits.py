"""What the hot path takes from a client at most: bytes, time, and requests at once."""

import asyncio
import gzip
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.config import MEBIBYTE, GatewayConfig
from gateway.http.request_body import INFLATE_INPUT_BYTES, INFLATE_STEP_BYTES
from scheduler.spec import TensorSpec
from tests.gateway.http_doubles import (
    MLP_OUTPUTS,
    Bench,
    binary,
    binary_mlp,
    fp32,
    mlp_body,
    model_spec,
    refused,
    run,
    served,
    settle,
)

# ---------------------------------------------------------------------- limits


def test_too_many_open_requests_are_refused_with_our_own_body() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(max_open_requests=2))
        first = await bench.post(mlp_body())
        await bench.post(mlp_body())
        third = await bench.post(mlp_body())
        assert "2 requests are open" in refused(third, 503, "overloaded")["detail"]
        assert third.headers["retry-after"] == "1"
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        await settle()
        assert first.status == 200
        await bench.post(mlp_body())
        assert len(bench.dispatcher.submitted) == 3

    run(story)


def test_bodies_in_memory_are_bounded_all_together() -> None:
    async def story() -> None:
        spec = model_spec(inputs=(TensorSpec("x", "UINT8", (-1, -1)),))
        bench = Bench(spec, config=GatewayConfig(max_buffered_mb=1))

        def request(size: int) -> tuple[bytes, dict[str, str]]:
            tensor = {
                "name": "x",
                "shape": [1, size],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": size},
            }
            return binary(mlp_body(inputs=[tensor]), bytes(size))

        body, headers = request(MEBIBYTE // 2)
        first = await bench.post(body, headers=headers)
        second = await bench.post(body, headers=headers)
        assert "over the limit of 1048576" in refused(second, 503, "overloaded")["detail"]
        first.hang_up()
        await settle()
        assert bench.app.infer.memory.num_bytes == 0
        assert not (await bench.post(body, headers=headers)).is_answered

    run(story)


def test_an_announced_body_over_the_limit_is_refused_unread() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(max_body_mb=1))
        client = bench.client()
        client.start("POST", "/infer", {"content-length": str(MEBIBYTE + 1)})
        await settle()  # not a byte of the body has come
        body = refused(client, 413, "too_large")
        assert body["detail"] == "the body has 1048577 bytes, the limit is 1048576"
        assert client.headers["connection"] == "close"

    run(story)


def test_a_refused_body_is_read_on_so_that_the_answer_is_not_lost_in_a_reset() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(max_body_mb=1))
        client = bench.client()
        client.start("POST", "/infer", {"content-length": str(MEBIBYTE + 2)})
        await settle()
        assert client.is_answered
        for _ in range(2):
            client.give(bytes(MEBIBYTE // 2), more=True)
            await settle()
            assert not client.is_complete  # closing now would reset the connection
        client.give(b"ab")
        await settle()
        assert client.is_complete
        assert bench.timers.armed == []
        assert bench.app.infer.num_open == 0
        assert bench.app.infer.memory.num_bytes == 0

    run(story)


@pytest.mark.parametrize("end", ["time", "size", "hang-up"])
def test_a_refused_body_is_not_read_for_ever(end: str) -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(max_body_mb=1, body_timeout_ms=2500))
        client = bench.client()
        client.start("POST", "/infer", {"content-length": str(1 << 40)})
        await settle()
        (timer,) = bench.timers.armed
        assert timer.delay_s == 2.5
        match end:
            case "time":
                timer.fire()
            case "size":
                client.give(bytes(MEBIBYTE + 1), more=True)
            case _:
                client.hang_up()
        await settle()
        assert client.is_complete
        assert client.task is not None
        assert client.task.done()
        assert bench.timers.armed == []

    run(story)


def test_a_chunked_body_is_refused_at_the_first_byte_over_the_limit() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(max_body_mb=1))
        client = bench.client()
        client.start("POST", "/infer", {"transfer-encoding": "chunked"})
        client.give(bytes(MEBIBYTE), more=True)
        await settle()
        assert not client.is_answered
        client.give(b"\0", more=True)
        await settle()
        refused(client, 413, "too_large")
        assert client.headers["connection"] == "close"
        client.hang_up()
        await settle()
        assert bench.app.infer.memory.num_bytes == 0
        assert bench.timers.armed == []

    run(story)


def test_a_body_of_exactly_the_limit_is_read() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(max_body_mb=1))
        client = await bench.post(b" " * (MEBIBYTE - 1) + b"x")
        refused(client, 400, "bad_request")

    run(story)


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
    ],
)
def test_a_compressed_body_is_read(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    async def story() -> None:
        bench = Bench()
        body, headers = binary_mlp()
        client = await bench.post(compress(body), headers={**headers, "content-encoding": encoding})
        assert bench.dispatcher.submitted[0].buffers == [fp32(1, 2, 3, 4)], client.sent

    run(story)


def test_identity_is_no_compression() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.post(mlp_body(), headers={"content-encoding": "identity"})
        assert len(bench.dispatcher.submitted) == 1

    run(story)


def test_a_large_compressed_body_comes_out_whole_in_many_steps() -> None:
    async def story() -> None:
        # long runs beside noise: steps end both for want of input and for want of room
        noise = bytes((i * i + (i >> 3)) & 0xFF for i in range(3 * INFLATE_INPUT_BYTES))
        plain = bytes(3 * INFLATE_STEP_BYTES) + noise + bytes(2 * INFLATE_STEP_BYTES)
        size = len(plain)
        spec = model_spec(inputs=(TensorSpec("x", "UINT8", (-1, -1)),))
        bench = Bench(spec)
        tensor = {
            "name": "x",
            "shape": [1, size],
            "datatype": "UINT8",
            "parameters": {"binary_data_size": size},
        }
        body, headers = binary(mlp_body(inputs=[tensor]), plain)
        client = await bench.post(
            gzip.compress(body), headers={**headers, "content-encoding": "gzip"}
        )
        await settle(100)
        assert client.sent == []
        assert bench.dispatcher.submitted[0].buffers[0] == plain

    run(story)


def test_a_gzip_bomb_is_refused_at_the_limit() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(max_body_mb=1))
        bomb = gzip.compress(bytes(64 * MEBIBYTE))
        assert len(bomb) < MEBIBYTE
        client = await bench.post(bomb, headers={"content-encoding": "gzip"})
        await settle(MEBIBYTE // INFLATE_STEP_BYTES + 8)
        body = refused(client, 413, "too_large")
        assert body["detail"] == "the body has over 1048576 bytes decompressed, the limit"

    run(story)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not gzip", "the body is not gzip: Error"),
        (gzip.compress(b"{}")[:-9], "the gzip body is cut off after 13 bytes"),
        (gzip.compress(b"{}") + b"tail", "4 bytes follow the end of the gzip body"),
        (b"", "the gzip body is cut off after 0 bytes"),
    ],
)
def test_a_damaged_compressed_body_is_refused(body: bytes, message: str) -> None:
    async def story() -> None:
        client = await Bench().post(body, headers={"content-encoding": "gzip"})
        assert message in refused(client, 400, "bad_request")["detail"]

    run(story)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "\xff"])
def test_another_encoding_is_refused_by_name(encoding: str) -> None:
    async def story() -> None:
        client = await Bench().post(mlp_body(), headers={"content-encoding": encoding})
        detail = refused(client, 415, "unsupported_media_type")["detail"]
        assert f"content-encoding is {encoding!r}" in detail

    run(story)


def test_what_is_bounded_is_shown() -> None:
    async def story() -> None:
        bench = Bench()
        body, headers = binary_mlp()
        client = await bench.post(body, headers=headers)
        page = (await bench.get("/metrics")).body.decode()
        assert "\nremontoir_http_requests_open 1\n" in page
        assert f"\nremontoir_http_body_bytes {len(body)}\n" in page
        client.hang_up()
        await settle()
        page = (await bench.get("/metrics")).body.decode()
        assert "\nremontoir_http_requests_open 0\n" in page
        assert "\nremontoir_http_body_bytes 0\n" in page

    run(story)


# ---------------------------------------------------------------------- slow and gone clients


def test_a_body_that_does_not_come_is_answered_when_its_time_is_over() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(body_timeout_ms=2500))
        client = bench.client()
        client.start("POST", "/infer", {"content-length": "1000"})
        client.give(b"{", more=True)
        await settle()
        (timer,) = bench.timers.armed
        assert timer.delay_s == 2.5
        client.give(b'"model"', more=True)
        await settle()
        assert not client.is_answered
        timer.fire()
        assert refused(client, 408, "timeout")["detail"] == "the body was not complete after 2.5 s"
        assert client.headers["connection"] == "close"
        await settle()
        assert bench.app.infer.num_open == 0
        assert bench.app.infer.memory.num_bytes == 0
        assert bench.timers.armed == []
        assert bench.dispatcher.submitted == []

    run(story)


def test_a_body_in_one_piece_arms_no_timer() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.post(mlp_body())
        assert bench.timers.armed == []

    run(story)


def test_a_client_that_hangs_up_frees_its_queued_request() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        client.hang_up()
        await settle()
        assert bench.dispatcher.cancelled == [1]
        assert client.sent == []
        assert bench.app.infer.num_open == 0
        page = (await bench.get("/metrics")).body.decode()
        assert (
            'remontoir_requests_total{model="mlp",outcome="cancelled",reason="queued"} 1\n' in page
        )

    run(story)


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_client_that_hangs_up_before_its_body_is_complete_is_forgotten(pieces: int) -> None:
    async def story() -> None:
        bench = Bench()
        client = bench.client()
        client.start("POST", "/infer", {})
        for _ in range(pieces):
            client.give(b"{", more=True)
        client.hang_up()
        await settle()
        assert client.task is not None
        assert client.task.done()
        assert client.sent == []
        assert bench.dispatcher.submitted == []
        assert bench.app.infer.num_open == 0
        assert bench.timers.armed == []

    run(story)


def test_a_cancelled_task_frees_its_request() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        assert client.task is not None
        client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.task
        assert bench.dispatcher.cancelled == [1]
        assert bench.app.infer.num_open == 0

    run(story)


def test_an_answer_waits_for_a_client_that_reads_slowly() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        client.writable.clear()
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        await settle()
        assert client.sent == []
        assert len(bench.app.infer.writing) == 1
        client.writable.set()
        await settle()
        assert client.status == 200
        assert client.json["outputs"][0]["data"] == [0.5, 0.25]
        await settle()
        assert bench.app.infer.writing == set()
        assert bench.dispatcher.cancelled == []

    run(story)


def test_a_bug_of_ours_is_a_500_and_is_raised() -> None:
    async def story() -> None:
        bench = Bench()

        def broken(*_: Any) -> None:
            raise ZeroDivisionError("a bug")

        bench.dispatcher.submit = broken  # type: ignore[method-assign]
        client = await bench.post(mlp_body())
        refused(client, 500, "internal_error")
        assert client.task is not None
        assert isinstance(client.task.exception(), ZeroDivisionError)
        assert bench.app.infer.num_open == 0

    run(story)


def test_an_answer_that_cannot_be_written_ends_its_task(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())

        async def broken(message: Mapping[str, Any]) -> None:
            raise RuntimeError("the server does not like it")

        client.override_send = broken
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)  # and does not raise
        await settle()
        assert client.task is not None
        assert client.task.cancelled()
        assert bench.app.infer.num_open == 0

    run(story)
    assert "could not be written" in caplog.text
