"""The app behind a real server and real sockets, with a puppet for a dispatcher.

What ASGI leaves open is settled here: that uvicorn tells of a disconnect while a request waits,
ends `receive()` once an answer is out, and closes where an unread body is on its way. Each story is
told twice: through uvicorn's own protocol, and through ours.
"""

import json

import pytest

from gateway.config import MEBIBYTE, GatewayConfig
from scheduler.spec import TensorSpec
from tests.gateway.http_doubles import fp32, mlp_body, model_spec, outputs, served
from tests.gateway.listening import body_of, listening, run

MLP_OUTPUTS = outputs(((1, 2), fp32(0.5, 0.25)))
pytestmark = pytest.mark.parametrize("is_direct", [False, True], ids=["uvicorn", "direct"])


def bytes_request(size: int) -> tuple[bytes, str]:
    tensor = {
        "name": "x",
        "shape": [1, size],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    }
    header = body_of(mlp_body(inputs=[tensor], parameters={"binary_data_output": True}))
    return header, f"Inference-Header-Content-Length: {len(header)}\r\n"


BYTES_MODEL = model_spec(
    inputs=(TensorSpec("x", "UINT8", (-1, -1)),), outputs=(TensorSpec("y", "UINT8", (-1, -1)),)
)


def test_answers_come_back_one_after_the_other_on_one_connection(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            for number in ("1", "2", "3"):
                connection.send(body_of(mlp_body(id=number)))
                (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
                status, _, body = await connection.answer()
                assert (status, json.loads(body)["id"]) == (200, number)
            assert gateway.bench.dispatcher.cancelled == []

    run(story)


def test_pipelined_requests_are_answered_in_their_order(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            connection.send(body_of(mlp_body(id="1")))
            connection.send(body_of(mlp_body(id="2")))
            connection.send(b"{")
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            answers = [await connection.answer() for _ in range(3)]
            assert [status for status, _, _ in answers] == [200, 200, 400]
            assert [json.loads(body).get("id") for _, _, body in answers] == ["1", "2", None]

    run(story)


@pytest.mark.parametrize("size", [4, 3 * MEBIBYTE])
def test_a_client_that_hangs_up_frees_its_request(is_direct: bool, size: int) -> None:
    async def story() -> None:
        async with listening(is_direct, BYTES_MODEL) as gateway:
            connection = await gateway.connect()
            header, headers = bytes_request(size)
            connection.send(header + bytes(size), headers=headers)
            request = await gateway.submitted.get()
            connection.close()
            assert await gateway.cancelled.get() == request.request_id

    run(story)


def test_megabytes_travel_whole_in_both_directions(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, BYTES_MODEL) as gateway:
            connection = await gateway.connect()
            data = bytes(range(256)) * 8 * 1024  # 2 MiB
            header, headers = bytes_request(len(data))
            connection.send(header + data, headers=headers)
            request = await gateway.submitted.get()
            assert request.buffers[0] == data
            request.on_done(served(), outputs(((1, len(data)), data)))
            status, answer_headers, body = await connection.answer()
            assert status == 200
            assert body[int(answer_headers["inference-header-content-length"]) :] == data

    run(story)


def test_an_announced_body_over_the_limit_is_answered_unread_and_closed(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, config=GatewayConfig(body_timeout_ms=20)) as gateway:
            connection = await gateway.connect()
            connection.send(b"{", length=64 * MEBIBYTE + 1)
            status, headers, body = await connection.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert json.loads(body)["detail"].startswith("the body has 67108865 bytes")
            assert await connection.is_closed()

    run(story)


def test_a_client_that_writes_its_whole_body_first_still_gets_the_refusal(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, config=GatewayConfig(max_body_mb=16)) as gateway:
            connection = await gateway.connect()
            connection.send(bytes(16 * MEBIBYTE + 1))
            await connection.writer.drain()
            status, headers, _ = await connection.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert await connection.is_closed()

    run(story)


def test_a_body_that_stalls_is_answered_and_closed(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, config=GatewayConfig(body_timeout_ms=20)) as gateway:
            connection = await gateway.connect()
            connection.send(b"{", length=1000)
            status, headers, body = await connection.answer()
            assert (status, headers["connection"]) == (408, "close")
            assert json.loads(body)["reason"] == "timeout"
            assert await connection.is_closed()
            assert gateway.app.infer.num_open == 0

    run(story)


def test_a_bad_request_does_not_cost_the_connection(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            connection.send(b'{"slo_ms": NaN}')
            status, headers, _ = await connection.answer()
            assert (status, headers.get("connection")) == (400, None)
            connection.send(body_of(mlp_body()))
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[0] == 200

    run(story)


def test_too_many_clients_get_our_own_503(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct, config=GatewayConfig(max_open_requests=1)) as gateway:
            first, second = await gateway.connect(), await gateway.connect()
            first.send(body_of(mlp_body()))
            request = await gateway.submitted.get()
            second.send(body_of(mlp_body()))
            status, headers, body = await second.answer()
            assert (status, json.loads(body)["reason"]) == (503, "overloaded")
            assert headers["retry-after"] == "1"
            request.on_done(served(), MLP_OUTPUTS)
            assert (await first.answer())[0] == 200

    run(story)


def test_the_other_routes_are_behind_the_same_port(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            for path, status in (("/livez", 200), ("/models", 200), ("/infer", 405), ("/x", 404)):
                connection.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert (await connection.answer())[0] == status

    run(story)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/ready", "/models", "/ui", "/x"])
def test_head_is_get_without_the_body(is_direct: bool, path: str) -> None:
    """Load balancers probe with it. What comes next on the connection shows that no body came."""

    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            seen = []
            for method in ("GET", "HEAD", "GET"):
                connection.writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                status, headers, _ = await connection.answer(has_body=method != "HEAD")
                seen.append((status, headers["content-type"], headers["content-length"]))
            assert len(set(seen)) == 1

    run(story)


def test_a_route_without_get_says_what_was_asked(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            connection.writer.write(b"DELETE /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            status, headers, body = await connection.answer()
            assert (status, headers["allow"]) == (405, "get, head")
            assert json.loads(body)["detail"].startswith("DELETE is not answered")
            connection.writer.write(b"HEAD /quote HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await connection.answer(has_body=False))[0] == 405

    run(story)


def test_events_have_no_head(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            connection.writer.write(b"HEAD /ui/events HTTP/1.1\r\nHost: x\r\n\r\n")
            status, headers, _ = await connection.answer(has_body=False)
            assert (status, headers["allow"]) == (405, "get")  # `answer` lowers it

    run(story)


def test_while_draining_answers_end_their_connections(is_direct: bool) -> None:
    """What is in flight from before as well: its client must not send the next one here."""

    async def story() -> None:
        async with listening(is_direct) as gateway:
            waiting, asking = await gateway.connect(), await gateway.connect()
            waiting.send(body_of(mlp_body()))
            request = await gateway.submitted.get()
            gateway.bench.lifecycle.drain()
            asking.writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            for connection in (asking, waiting):
                if connection is waiting:
                    request.on_done(served(), MLP_OUTPUTS)
                status, headers, _ = await connection.answer()
                assert (status, headers["connection"]) == (200, "close")
                assert await connection.is_closed()
            later = await gateway.connect()
            later.send(body_of(mlp_body()))
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            status, headers, _ = await later.answer()
            assert (status, headers["connection"]) == (200, "close")

    run(story)


def test_while_draining_pipelined_requests_are_all_answered(is_direct: bool) -> None:
    if not is_direct:
        return  # uvicorn's own drops what comes after an answer that closes

    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            for number in ("1", "2"):
                connection.send(body_of(mlp_body(id=number)))
            first = await gateway.submitted.get()
            gateway.bench.lifecycle.drain()
            first.on_done(served(), MLP_OUTPUTS)
            status, headers, _ = await connection.answer()
            assert (status, headers.get("connection")) == (200, None)
            (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
            status, headers, _ = await connection.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await connection.is_closed()

    run(story)


def test_a_quote_over_the_wire(is_direct: bool) -> None:
    async def story() -> None:
        async with listening(is_direct) as gateway:
            connection = await gateway.connect()
            for path, body in (
                ("/quote", {"model": "mlp", "slo_ms": 50}),
                ("/infer", mlp_body(dry_run=True)),
                ("/v2/models/mlp/infer", mlp_body(dry_run=True)),
            ):
                connection.send(body_of(body), path=path)
                status, _, told = await connection.answer()
                assert (status, json.loads(told)["met"]) == (200, True)
            assert gateway.submitted.empty()

    run(story)
