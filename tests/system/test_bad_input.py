"""What no client should send, sent to a running server: refused in words, and nothing else happens.

The words of each single check are tests/gateway's. Here it is the whole way, and what comes after:
the next good request is served, and the memory is as it was.
"""

import gzip
import http.client
import json
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from tests.gateway.running import RunningGateway
from tests.system.clients import (
    Connection,
    address_of,
    infer_body,
    metric,
    play,
    post,
)
from tests.system.stages import Stage, joined, resident_bytes

MEBIBYTE = 1024 * 1024
MAX_BODY_BYTES = 64 * MEBIBYTE
ROW = [0.5] * 64


def mlp_body(**changed: object) -> bytes:
    tensor = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ROW}
    return infer_body("mlp", [tensor | changed])


def with_slo(literal: str) -> bytes:
    """A good request but for its SLO, as the client wrote it."""
    return mlp_body().replace(b'"slo_ms": 60000', b'"slo_ms": ' + literal.encode())


@pytest.fixture(autouse=True)
def the_next_good_request_is_served(zoo: RunningGateway) -> Iterator[None]:
    yield
    assert post(zoo.url, mlp_body()).status == 200


GOOD = mlp_body()
BAD_REQUESTS = {
    "empty": (b"", "the body is empty: expected a JSON object"),
    "truncated": (GOOD[:-20], "the body is not valid JSON: "),
    "truncated in a number": (GOOD[: GOOD.index(b"0.5") + 2], "the body is not valid JSON: "),
    "not UTF-8": (GOOD.replace(b'"mlp"', b'"\xff"'), "the body is not UTF-8: "),
    "nested": (b'{"inputs": [], "more": ' + b"[" * 100_000, "the body is nested too deep"),
    "nested data": (GOOD.replace(b"[0.5", b"[" * 100_000 + b"0.5"), "the body is nested too deep"),
    "another datatype": (
        mlp_body(datatype="INT64", data=[1] * 64),
        "'x' is 'INT64', model mlp takes FP32",
    ),
    "no datatype": (mlp_body(datatype="FP33"), "'x' is 'FP33', model mlp takes FP32"),
    "another shape": (
        mlp_body(shape=[1, 65], data=[0.5] * 65),
        "'x' has shape [1, 65], model mlp takes [-1, 64]",
    ),
    "another rank": (mlp_body(shape=[64]), "'x' has shape [64], model mlp takes"),
    "negative shape": (mlp_body(shape=[-1, 64]), "'x' has -1 rows"),
    "enormous shape": (mlp_body(shape=[2**62, 2**62]), str(2**62)),
    "too few values": (mlp_body(data=ROW[1:]), "data has 63 elements"),
    "too many values": (mlp_body(data=[*ROW, 1.0]), "data has 65 elements"),
    "text for numbers": (mlp_body(data=["a"] * 64), 'data[0] is "a": not FP32'),
    "another input": (mlp_body(name="z"), "no input 'z'"),
    "no input": (infer_body("mlp", []), "needs input 'x'"),
    "SLO NaN": (with_slo("NaN"), "NaN at byte "),
    "SLO as text": (with_slo('"NaN"'), "slo_ms is 'NaN'"),
    "SLO infinite": (with_slo("1e400"), "$.slo_ms"),
    "SLO negative": (with_slo("-5"), "slo_ms is -5"),
    "SLO zero": (with_slo("0"), "slo_ms is 0"),
    "SLO of 1e18": (with_slo("1e18"), "slo_ms is 1e+18"),
    "SLO true": (with_slo("true"), "slo_ms is True"),
}


@pytest.mark.parametrize(("body", "words"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_a_400_that_says_what(
    zoo: RunningGateway, body: bytes, words: str
) -> None:
    answer = post(zoo.url, body)
    assert answer.verdict == "400 bad_request"
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json["detail"]


@pytest.mark.parametrize("num_bytes", [0, 255, 257])
def test_binary_data_of_another_length_are_refused(zoo: RunningGateway, num_bytes: int) -> None:
    tensor = {
        "name": "x",
        "shape": [1, 64],
        "datatype": "FP32",
        "parameters": {"binary_data_size": num_bytes},
    }
    head = infer_body("mlp", [tensor])
    length = str(len(head))
    answer = post(zoo.url, head + bytes(num_bytes), **{"inference-header-content-length": length})
    assert answer.verdict == "400 bad_request"
    assert str(num_bytes) in answer.json["detail"]


def test_binary_data_that_end_early_are_refused(zoo: RunningGateway) -> None:
    tensor = {
        "name": "x",
        "shape": [1, 64],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 256},
    }
    head = infer_body("mlp", [tensor])
    length = str(len(head))
    answer = post(zoo.url, head + bytes(255), **{"inference-header-content-length": length})
    assert answer.verdict == "400 bad_request"


@pytest.mark.parametrize("header", ["nan", "-1", "0", "1e18", "inf"])
def test_an_slo_in_a_header_is_as_strict(zoo: RunningGateway, header: str) -> None:
    body = mlp_body().replace(b'"slo_ms": 60000', b'"x": 0')
    answer = post(zoo.url, body, **{"x-slo-ms": header})
    assert answer.verdict == "400 bad_request"
    assert answer.json["detail"].startswith("header x-slo-ms is ")


def test_nan_among_the_data_is_named(zoo: RunningGateway) -> None:
    body = mlp_body().replace(b"0.5", b"NaN", 1)
    answer = post(zoo.url, body)
    assert answer.verdict == "400 bad_request"
    assert "NaN at byte " in answer.json["detail"]


def test_an_unknown_model_is_a_404_and_no_label(zoo: RunningGateway) -> None:
    before = metric(zoo.url, "requests_total", reason="not_found")
    answer = post(zoo.url, infer_body("no-such-model", []))
    assert answer.verdict == "404 not_found"
    assert answer.json["detail"] == "no model 'no-such-model' is served here"
    assert metric(zoo.url, "requests_total", reason="not_found", model="") == before + 1


def test_one_byte_over_64_mib_is_refused_and_leaves_no_memory(zoo: RunningGateway) -> None:
    """Announced; not announced; and the largest body that is read to its end. Three rounds."""

    def too_large_in_chunks() -> str:
        connection = http.client.HTTPConnection(*address_of(zoo.url), timeout=60)
        chunks = [bytes(MEBIBYTE)] * 64 + [b"\0"]
        connection.request("POST", "/infer", body=iter(chunks), encode_chunked=True)
        response = connection.getresponse()
        reason = json.loads(response.read())["reason"]
        connection.close()
        return f"{response.status} {reason}"

    def all_three() -> list[str]:
        announced = post(zoo.url, bytes(MAX_BODY_BYTES + 1)).verdict
        whole = post(zoo.url, bytes(MAX_BODY_BYTES)).verdict
        return [announced, too_large_in_chunks(), whole]

    refused = ["413 too_large", "413 too_large", "400 bad_request"]
    assert all_three() == refused  # after which the server has grown as far as it needs
    before = resident_bytes(zoo.process.pid)
    for _ in range(3):
        assert all_three() == refused
    # Less than one body: nothing of nine is kept, but for what the allocator has in pieces.
    assert resident_bytes(zoo.process.pid) < before + 60 * MEBIBYTE


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_at_the_limit(zoo: RunningGateway, encoding: str) -> None:
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = compress(bytes(256 * MEBIBYTE), 9)
    assert len(bomb) < MEBIBYTE
    answer = post(zoo.url, bomb, **{"content-encoding": encoding})
    assert answer.verdict == "413 too_large"
    assert "decompressed" in answer.json["detail"]


def test_a_bomb_leaves_no_memory(zoo: RunningGateway) -> None:
    bomb = gzip.compress(bytes(256 * MEBIBYTE), 9)
    headers = {"content-encoding": "gzip"}
    assert post(zoo.url, bomb, **headers).status == 413
    before = resident_bytes(zoo.process.pid)
    for _ in range(4):
        assert post(zoo.url, bomb, **headers).status == 413
    assert resident_bytes(zoo.process.pid) < before + 24 * MEBIBYTE


def test_a_body_that_is_not_what_it_says_is_refused(zoo: RunningGateway) -> None:
    assert post(zoo.url, mlp_body(), **{"content-encoding": "gzip"}).verdict == "400 bad_request"
    cut_off = gzip.compress(mlp_body())[:-9]
    assert post(zoo.url, cut_off, **{"content-encoding": "gzip"}).verdict == "400 bad_request"
    answer = post(zoo.url, mlp_body(), **{"content-encoding": "br"})
    assert answer.verdict == "415 unsupported_media_type"


def test_a_compressed_request_is_served(zoo: RunningGateway) -> None:
    answer = post(zoo.url, gzip.compress(mlp_body()), **{"content-encoding": "gzip"})
    assert answer.status == 200
    assert np.array(answer.json["outputs"][0]["data"]).shape == (10,)


def test_a_body_that_never_ends_is_given_up_while_others_are_served(stage: Stage) -> None:
    """A slow-loris holds its connection for `body_timeout_ms`, and holds up nobody."""
    model = "resnet50_v2"

    async def story() -> None:
        slow = [await Connection.open(stage.url) for _ in range(50)]
        for connection in slow:
            connection.send(b"{", length=1000)
        other = await Connection.open(stage.url)
        tensor = {"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [0]}
        assert (await other.ask(infer_body(model, [tensor]))).status == 200
        for connection in slow:
            connection.writer.write(b" ")  # a sign of life is no excuse
        for connection in slow:
            answer = await connection.answer()
            assert answer.verdict == "408 timeout"
            assert answer.headers["connection"] == "close"
            connection.close()
        assert (await other.ask(infer_body(model, [tensor]))).status == 200
        other.close()

    with joined(stage, [model]):
        play(story)
