"""A storm of bad clients against one gateway with a real worker: everybody else is served, nobody
gets a 500, and what the storm took comes back: requests, bytes of bodies, files.

What each of them is told is tests/gateway's (http/test_strict_protocol.py, test_framing_fuzz.py,
test_small_body.py); here it is all of them at once, and the whole way.
"""

import asyncio
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.running import RunningGateway, running_gateway
from tests.gpuworker import onnx_models
from tests.system.clients import Connection, infer_body, metric, play, post, post_head
from tests.system.stages import open_files_of, resident_bytes, until

MEBIBYTE = 1024 * 1024
ROUNDS = 2  # of every kind of bad client, at once
# A tenth of the real one, so that slow bodies take a second.
SETTINGS = "body_timeout_ms: 1000\n"

ROW = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
BODY = infer_body("mlp", [ROW])
GOOD = post_head(len(BODY)) + BODY
PATHS = (
    "/infer",
    "/quote",
    "/v2/models/mlp/infer",
    "/v2/models/mlp/versions/1/infer",
    "/v2/repository/index",
    "/v2/repository/models/mlp/load",
    "/v2/repository/models/nobody/unload",
    "/models",
    "/livez",
    "/metrics",
    "/nowhere",
)
NUMBER = b"1" * (10 * MEBIBYTE)
BOMB = gzip.compress(bytes(256 * MEBIBYTE), 9)


def to(path: str, body: bytes, headers: str = "", *, length: int | None = None) -> bytes:
    """A POST; `length` is what it announces, if not the truth."""
    head = post_head(len(body) if length is None else length, headers)
    return head.replace(b"/infer", path.encode(), 1) + body


def picture(*shape: int, size: int = 0) -> bytes:
    tensor = {
        "name": "x",
        "shape": [*shape],
        "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    }
    header = infer_body("conv", [tensor])
    return to("/infer", header + bytes(size), f"Inference-Header-Content-Length: {len(header)}\r\n")


# What is sent, by what it is. All of it is answered.
REFUSED: dict[str, Callable[[str], bytes]] = {
    "no JSON": lambda path: to(path, b"{"),
    "deep nesting": lambda path: to(path, b'{"inputs":' + b"[" * 60_000),
    "a long number": lambda path: to(path, b'{"slo_ms": ' + NUMBER + b"}"),
    "a bomb": lambda path: to(path, BOMB, "Content-Encoding: gzip\r\n"),
    "an unknown coding": lambda path: to(path, b"{}", "Content-Encoding: br\r\n"),
    "CL and TE": lambda path: to(path, b"0\r\n\r\n", "Transfer-Encoding: chunked\r\n"),
    "whitespace before a colon": lambda path: to(path, b"{}", "X-A : 1\r\n"),
    "a bare LF": lambda path: to(path, b"{}", "X-A: 1\n"),
    "obs-fold": lambda path: to(path, b"{}", "X-A: 1\r\n 2\r\n"),
    "garbage behind it": lambda path: to(path, b"{") + b"GARBAGE\r\n\r\n",
    "a chunk size of 17 digits": lambda path: (
        to(path, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        + b"1" + b"0" * 16 + b"\r\n"
    ),
    "a wish for HTTP/2": lambda path: to(path, b"{", "Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    "a slow body": lambda path: to(path, b"{", length=10),
}  # fmt: skip
SHAPES = (
    picture(1, 3, 0, 2**70),
    picture(1, 3, 2**40, 2**40),
    picture(1, 3, 10**4000, 10**4000),
    picture(1, 3, 2, 2, size=47),
    picture(2**31, 3, 1, 1, size=12),
    picture(1, 3, -1, 2, size=24),
    picture(1, 3, size=12),
    picture(size=4),
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    home: Path = tmp_path_factory.mktemp("storm")
    onnx_models.write_model(home / "models", "mlp", onnx_models.mlp())
    onnx_models.write_model(home / "models", "conv", onnx_models.conv())
    (home / "settings.yaml").write_text(SETTINGS)
    flags = ("--models", str(home / "models"), "--config", str(home / "settings.yaml"))
    with running_gateway(*flags, "--drain-s", "0", scratch=home) as running:
        yield running


@pytest.fixture(autouse=True)
def everything_comes_back(gateway: RunningGateway) -> Iterator[None]:
    pid, url, workers = gateway.process.pid, gateway.url, gateway.child_pids()
    post(url, BODY)
    num_files = open_files_of(pid)
    yield
    assert post(url, BODY).status == 200
    until(lambda: metric(url, "http_requests_open") == 0, "open requests end")
    until(lambda: metric(url, "http_body_bytes") == 0, "bodies are freed")
    until(lambda: metric(url, "queue_depth") == 0, "queues are empty")
    # the page's own connection is one of them, or was
    until(lambda: open_files_of(pid) <= num_files + 1, "connections are closed")
    for reason in ("internal_error", "engine_error", "worker_lost"):
        assert metric(url, "requests_total", reason=reason) == 0
    assert gateway.child_pids() == workers


async def first_status(connection: Connection) -> int | None:
    """Of the answer that comes; None where the server closes instead."""
    try:
        return (await connection.answer()).status
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
    finally:
        connection.close()


async def told(url: str, data: bytes) -> int | None:
    connection = await Connection.open(url)
    connection.writer.write(data)
    return await first_status(connection)


async def served_meanwhile(url: str, storm: "asyncio.Future[list[int | None]]") -> int:
    """Good requests, one after the other, until the storm is over; returns how many."""
    connection = await Connection.open(url)
    number = 0
    while not storm.done():
        assert (await connection.ask(BODY)).status == 200
        number += 1
    connection.close()
    return number


def test_every_bad_body_on_every_route_at_once(gateway: RunningGateway) -> None:
    url = gateway.url

    async def story() -> None:
        for kind, data_of in REFUSED.items():  # all routes at once, and several of each
            storm = asyncio.gather(
                *(told(url, data_of(path)) for path in PATHS for _ in range(ROUNDS))
            )
            number = await served_meanwhile(url, storm)
            statuses = {path: storm.result()[i * ROUNDS] for i, path in enumerate(PATHS)}
            assert number, kind
            assert all(s is not None and s < 500 for s in storm.result()), (kind, statuses)
            # Routes without a body do not look at one; the others refuse it.
            assert all(statuses[path] >= 400 for path in PATHS[:5]), (kind, statuses)  # type: ignore[operator]

    before = resident_bytes(gateway.process.pid)
    play(story)
    # Less than two of the bodies that were read at once.
    assert resident_bytes(gateway.process.pid) < before + 128 * MEBIBYTE


def test_shapes_of_all_sorts_are_refused(gateway: RunningGateway) -> None:
    async def story() -> None:
        assert set(await asyncio.gather(*(told(gateway.url, data) for data in SHAPES))) == {400}

    play(story)


@pytest.mark.parametrize("how", ["half-closed", "reset"])
@pytest.mark.parametrize("where", ["in the head", "in the body", "after it"])
def test_clients_that_leave(gateway: RunningGateway, how: str, where: str) -> None:
    """One that closes its side has left: nothing tells it from one that closed both."""
    cut = {"in the head": 20, "in the body": len(GOOD) - 9, "after it": len(GOOD)}[where]

    async def leave(path: str) -> None:
        connection = await Connection.open(gateway.url)
        connection.writer.write(GOOD.replace(b"/infer", path.encode(), 1)[:cut])
        await connection.writer.drain()
        if how == "reset":
            connection.writer.transport.abort()
        else:
            connection.writer.write_eof()
            await first_status(connection)

    async def story() -> None:
        await asyncio.gather(*(leave(path) for path in PATHS for _ in range(10)))

    play(story)


ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(GOOD)),
            st.integers(0, 12),
            st.one_of(
                st.binary(max_size=12),
                st.sampled_from([b"\r\n", b"\n", b"\0", b":", b" ", b"9" * 20, b"\r\n\r\n", b"-1"]),
                st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n"]),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(PATHS),
)
def test_any_bytes_are_answered_or_the_connection_ends(
    gateway: RunningGateway, cuts: list[tuple[int, int, bytes]], path: str
) -> None:
    data = GOOD
    for start, length, put in cuts:
        data = data[:start] + put + data[start + length :]
    data = data.replace(b"/infer", path.encode(), 1)

    async def story() -> None:
        connection = await Connection.open(gateway.url)
        connection.writer.write(data)
        connection.writer.write_eof()  # or a cut that leaves it unfinished would wait a second
        said = await connection.rest()
        for status in ANSWER.findall(said):
            assert int(status) < 500, said
        connection.close()

    play(story)


def test_pipelined_requests_are_answered_in_order_among_bad_ones(gateway: RunningGateway) -> None:
    async def story() -> None:
        connection = await Connection.open(gateway.url)
        bad = to("/infer", b"{")
        other = to("/v2/repository/index", b"")
        connection.writer.write((GOOD + bad + other) * 20 + b"GARBAGE\r\n\r\n")
        for _ in range(20):
            for expected in (200, 400, 200):
                assert (await connection.answer()).status == expected
        last = await connection.answer()
        assert (last.status, json.loads(last.body)["reason"]) == (400, "bad_request")
        connection.close()

    play(story)
