"""Our HTTP protocol over real sockets: what goes the short way, what does not, and how it ends.

Where uvicorn's own protocol must behave the same, the story is told of both.
"""

import asyncio
import gc
import gzip
import json
import logging
from collections.abc import Callable

import pytest

from gateway.http.protocol import JOINED_BODY_BYTES, DirectAnswer
from gateway.inference.tensors import ModelPlan
from scheduler.events import Reason, Rejected
from scheduler.spec import TensorSpec
from tests.gateway.http_doubles import fp32, mlp_body, model_spec, outputs, served
from tests.gateway.listening import Connection, Gateway, body_of, listening, run

MLP_OUTPUTS = outputs(((1, 2), fp32(0.5, 0.25)))
BOTH = pytest.mark.parametrize("is_direct", [False, True], ids=["uvicorn", "direct"])
BYTES_OUT = model_spec(outputs=(TensorSpec("y", "UINT8", (-1, -1)),))


async def open_requests(gateway: Gateway, number: int) -> None:
    while gateway.app.infer.num_open != number:  # noqa: ASYNC110  # no event says so
        await asyncio.sleep(0)


async def answered(gateway: Gateway, connection: Connection) -> int:
    (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
    return (await connection.answer())[0]


def test_a_request_in_one_piece_costs_no_task() -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            connection.send(body_of(mlp_body()))
            request = await gateway.submitted.get()
            assert not gateway.server.server_state.tasks
            request.on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[0] == 200
            assert gateway.app.infer.num_open == 0
            assert gateway.app.infer.memory.num_bytes == 0
            assert gateway.server.server_state.total_requests == 1

    run(story)


@pytest.mark.parametrize("is_refused", [False, True])
def test_what_is_answered_is_not_left_to_the_garbage_collector(is_refused: bool) -> None:
    async def story() -> None:
        async with listening(True) as gateway:
            connection = await gateway.connect()
            for _ in range(10):
                connection.send(b"{" if is_refused else body_of(mlp_body()))
                if not is_refused:
                    (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
                    gateway.bench.dispatcher.submitted.clear()
                await connection.answer()
            assert num_alive() - before == 1  # the connection's last

    def num_alive() -> int:
        return sum(type(thing) is DirectAnswer for thing in gc.get_objects())

    gc.collect()
    before = num_alive()  # of tests whose closed loops still hold a connection
    gc.disable()
    try:
        run(story)
    finally:
        gc.enable()


@pytest.mark.parametrize("request_body", [mlp_body(id="7"), {"inputs": 3}, {"model": "nobody"}])
def test_both_ways_write_the_same(request_body: dict[str, object]) -> None:
    async def heads() -> None:
        seen = []
        for is_direct in (False, True):
            async with listening(is_direct) as gateway:
                connection = await gateway.connect()
                connection.send(body_of(request_body), headers="X-Request-Id: one\r\n")
                if request_body.get("id"):
                    (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
                status, headers, body = await connection.answer()
                headers.pop("date", None)
                seen.append((status, list(headers.items()), body))
        assert seen[0] == seen[1]

    run(heads)


@BOTH
def test_a_body_that_comes_in_pieces(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            body = body_of(mlp_body())
            connection.send(body[:10], length=len(body))
            await open_requests(gateway, 1)
            connection.writer.write(body[10:])
            assert await answered(gateway, connection) == 200
            connection.send(body)  # in one piece, after that
            assert await answered(gateway, connection) == 200

    run(story)


@BOTH
def test_a_client_that_waits_for_100_continue_is_told_to(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            body = body_of(mlp_body())
            connection.send(length=len(body), headers="Expect: 100-continue\r\n")
            assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"
            assert await connection.line() == b"\r\n"
            connection.writer.write(body)
            assert await answered(gateway, connection) == 200

    run(story)


@BOTH
def test_an_encoded_body_in_one_piece(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            body = gzip.compress(body_of(mlp_body()))
            connection.send(body, headers="Content-Encoding: gzip\r\n")
            assert await answered(gateway, connection) == 200
            assert gateway.app.infer.num_open == 0

    run(story)


@BOTH
@pytest.mark.parametrize(
    ("version", "headers"), [("1.0", ""), ("1.1", "Connection: close\r\n")], ids=["1.0", "close"]
)
def test_a_client_that_wants_no_second_answer(is_direct: bool, version: str, headers: str) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            connection.send(body_of(mlp_body()), headers=headers, version=version)
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            status, answer_headers, _ = await connection.answer()
            assert (status, answer_headers["connection"]) == (200, "close")
            assert await connection.is_closed()

    run(story)


@BOTH
def test_what_follows_a_last_request_is_not_served(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            connection.send(b"{", headers="Connection: close\r\n")
            connection.send(body_of(mlp_body()))
            assert (await connection.answer())[0] == 400
            assert await connection.is_closed()
            assert gateway.submitted.empty()

    run(story)


@BOTH
def test_other_routes_between_inferences_on_one_connection(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            for _ in range(2):
                connection.send(body_of(mlp_body()))
                connection.writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await answered(gateway, connection) == 200
                assert (await connection.answer())[0] == 200

    run(story)


@BOTH
def test_a_client_that_does_not_read_gets_its_answers_when_it_does(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, BYTES_OUT) as gateway:
            connection = await gateway.connect()
            data = bytes(8 << 20)
            assert len(data) > JOINED_BODY_BYTES
            body = body_of(mlp_body(parameters={"binary_data_output": True}))
            for _ in range(2):
                connection.send(body)
                request = await gateway.submitted.get()
                request.on_done(served(), outputs(((1, len(data)), data)))
            for _ in range(2):
                status, headers, reply = await connection.answer()
                assert status == 200
                assert reply[int(headers["inference-header-content-length"]) :] == data
            await open_requests(gateway, 0)

    run(story)


@BOTH
def test_a_client_that_never_reads_and_goes_leaves_nothing(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, BYTES_OUT) as gateway:
            connection = await gateway.connect()
            data = bytes(8 << 20)
            for _ in range(2):
                connection.send(body_of(mlp_body(parameters={"binary_data_output": True})))
                request = await gateway.submitted.get()
                request.on_done(served(), outputs(((1, len(data)), data)))
            connection.writer.transport.abort()
            await open_requests(gateway, 0)
            assert gateway.app.infer.memory.num_bytes == 0

    run(story)


@BOTH
def test_an_idle_connection_is_closed_and_a_waiting_one_is_not(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, keep_alive_s=0) as gateway:
            connection = await gateway.connect()
            connection.send(body_of(mlp_body()))
            request = await gateway.submitted.get()
            await asyncio.sleep(0)
            request.on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[0] == 200
            assert await connection.is_closed()

    run(story)


@BOTH
def test_a_server_that_stops_answers_and_closes(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            busy, idle = await gateway.connect(), await gateway.connect()
            idle.send(body_of(mlp_body()))
            assert await answered(gateway, idle) == 200
            busy.send(body_of(mlp_body()))
            request = await gateway.submitted.get()
            stopping = asyncio.create_task(gateway.server.shutdown())
            assert await idle.is_closed()
            request.on_done(served(), MLP_OUTPUTS)
            status, headers, _ = await busy.answer()
            assert (status, headers["connection"]) == (200, "close")
            await stopping

    run(story)


def test_our_own_bug_is_answered_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with listening(True) as gateway:

            def broken(*_: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(ModelPlan, "read_inputs", broken)
            connection = await gateway.connect()
            connection.send(body_of(mlp_body()))
            status, _, body = await connection.answer()
            assert (status, json.loads(body)["reason"]) == (500, "internal_error")
            assert gateway.app.infer.num_open == 0

    with caplog.at_level(logging.ERROR):
        run(story)
    assert "ZeroDivisionError" in caplog.text


@BOTH
def test_bytes_that_are_no_http(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            connection.writer.write(b"POST /infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz")
            assert (await connection.answer())[0] == 400
            assert await connection.is_closed()
            await open_requests(gateway, 0)

    run(story)


# ---------------------------------------------------------------------- bodies in several pieces

PIECES = [b"x" * 9, b"y" * 70_000, b"z" * 70_000]
BYTES_IN = model_spec(
    inputs=(TensorSpec("x", "UINT8", (-1, 140_009)),), outputs=(TensorSpec("y", "FP32", (-1, 2)),)
)


def binary_upload(slo_ms: float) -> tuple[bytes, str]:
    """JSON header and HTTP header of a request whose tensor is PIECES."""
    size = sum(map(len, PIECES))
    tensor = {
        "name": "x",
        "shape": [1, size],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    }
    header = body_of({"model": "mlp", "slo_ms": slo_ms, "inputs": [tensor]})
    return header, f"Inference-Header-Content-Length: {len(header)}\r\n"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # no event says so
        await asyncio.sleep(0)


def test_pieces_that_follow_each_other_cost_no_task_and_time_counts_from_the_first() -> None:
    async def story() -> None:
        async with listening(True, BYTES_IN) as gateway:
            bench, memory = gateway.bench, gateway.app.infer.memory
            connection = await gateway.connect()
            header, headers = binary_upload(80)
            connection.send(header, length=len(header) + 140_009, headers=headers)
            await until(lambda: bool(bench.dispatcher.foreseen))
            arrival_ns = bench.clock.now
            bench.clock.advance(3_000_000)
            for piece in PIECES:
                connection.writer.write(piece)
            request = await gateway.submitted.get()
            assert not gateway.server.server_state.tasks
            assert request.arrival_ns == arrival_ns
            assert bytes(request.buffers[0]) == b"".join(PIECES)
            assert memory.num_bytes == len(header) + 140_009
            request.on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[0] == 200
            assert memory.num_bytes == 0

    run(story)


def test_the_rest_of_a_refused_upload_is_thrown_away_and_the_connection_goes_on() -> None:
    async def story() -> None:
        async with listening(True, BYTES_IN) as gateway:
            bench = gateway.bench
            bench.dispatcher.refusal = Rejected(
                Reason.SLO_INFEASIBLE_NOW, "40 are queued", retry_after_ns=7_000_000
            )
            connection = await gateway.connect()
            header, headers = binary_upload(80)
            connection.send(header + PIECES[0], length=len(header) + 140_009, headers=headers)
            assert (await connection.answer())[0] == 429  # before the rest is sent
            assert gateway.app.infer.memory.num_bytes == 0
            assert gateway.app.infer.num_open == 0
            bench.dispatcher.refusal = None
            # the rest, and a next request in the same breath
            connection.writer.write(PIECES[1] + PIECES[2][:-1])
            connection.writer.write(PIECES[2][-1:])
            connection.send(header + b"".join(PIECES), headers=headers)
            assert await answered(gateway, connection) == 200
            assert gateway.server.server_state.total_requests == 2

    run(story)


def test_a_client_that_goes_away_in_mid_upload_leaves_nothing_behind() -> None:
    async def story() -> None:
        async with listening(True, BYTES_IN) as gateway:
            connection = await gateway.connect()
            header, headers = binary_upload(80)
            connection.send(header + PIECES[0], length=len(header) + 140_009, headers=headers)
            memory = gateway.app.infer.memory
            await until(lambda: memory.num_bytes == len(header) + 9)
            connection.close()
            await until(lambda: memory.num_bytes == 0)
            assert gateway.app.infer.num_open == 0
            assert gateway.submitted.empty()

    run(story)


def test_a_server_that_stops_lets_an_upload_finish() -> None:
    async def story() -> None:
        async with listening(True, BYTES_IN) as gateway:
            connection = await gateway.connect()
            header, headers = binary_upload(80)
            connection.send(header + PIECES[0], length=len(header) + 140_009, headers=headers)
            await until(lambda: gateway.app.infer.memory.num_bytes == len(header) + 9)
            (protocol,) = gateway.server.server_state.connections
            protocol.shutdown()
            connection.writer.write(PIECES[1] + PIECES[2])
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            status, answer_headers, _ = await connection.answer()
            assert (status, answer_headers["connection"]) == (200, "close")

    run(story)
