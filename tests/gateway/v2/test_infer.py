"""Inference under /v2: what differs from /infer, by both ways through the server."""

import gzip
import json
import zlib
from typing import Any

import pytest

from gateway.inference.reply_encoding import LARGEST_COMPRESSED, compressed, encoding_of
from gateway.inference.target import NATIVE, Target, target_of, target_of_url
from scheduler.spec import TensorSpec
from tests.gateway import listening
from tests.gateway.http_doubles import (
    MLP_OUTPUTS,
    Bench,
    binary_mlp,
    fp32,
    mlp_body,
    model_spec,
    ms,
    outputs,
    run,
    served,
    settle,
)

PATH = "/v2/models/mlp/infer"
VERSIONED = "/v2/models/mlp/versions/1/infer"
RAW = {"inference-header-content-length": "0"}


def v2_body(**changes: Any) -> dict[str, Any]:
    body = mlp_body(**changes)
    del body["model"], body["slo_ms"]
    return body


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/infer", NATIVE),
        (PATH, Target("mlp", None)),
        (VERSIONED, Target("mlp", "1")),
        ("/v2/models/mlp/versions/one/infer", Target("mlp", "one")),
        ("/v2/models/infer/infer", Target("infer", None)),
        ("/v2/models//infer", None),
        ("/v2/models/a/b/infer", None),
        ("/v2/models/mlp/versions/1/2/infer", None),
        ("/v2/models/mlp/infer/", None),
        ("/v2/models/infer", None),
        ("/v2", None),
        ("/metrics", None),
    ],
)
def test_targets(path: str, target: Target | None) -> None:
    assert target_of(path) == target
    assert target_of_url(path.encode()) == target


@pytest.mark.parametrize("name", ["größe", "a%20b", "a?b", "x" * 300])
def test_urls_that_need_a_closer_look_take_the_long_way(name: str) -> None:
    assert target_of(f"/v2/models/{name}/infer") == Target(name, None)
    assert target_of_url(f"/v2/models/{name}/infer".encode()) is None


@pytest.mark.parametrize("path", [PATH, VERSIONED])
def test_the_path_names_the_model_whatever_the_body_says(path: str) -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(v2_body(model="other", model_name="another", id="7"), path=path)
        assert bench.dispatcher.submitted[0].model == "mlp"
        bench.clock.advance(ms(3))
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        await settle()
        assert client.status == 200
        assert client.headers["content-type"] == "application/json"
        assert (client.json["model_name"], client.json["model_version"]) == ("mlp", "1")
        assert client.json["id"] == "7"

    run(story)


@pytest.mark.parametrize(
    ("path", "status", "reason", "detail"),
    [
        ("/v2/models/nope/infer", 404, "not_found", "no model 'nope' is served here"),
        ("/v2/models/nope/versions/1/infer", 404, "not_found", "no model 'nope' is served here"),
        (
            "/v2/models/mlp/versions/2/infer",
            404,
            "not_found",
            "model mlp has no version '2' here; it has 1",
        ),
        ("/v2/models/bad/infer", 503, "model_unavailable", "model bad: not ONNX"),
    ],
)
def test_refusals_are_plain_json(path: str, status: int, reason: str, detail: str) -> None:
    async def story() -> None:
        bench = Bench(model_spec(), model_spec("bad", unavailable_reason="not ONNX"))
        client = await bench.post(v2_body(), path=path)
        assert client.status == status
        assert client.headers["content-type"] == "application/json"
        assert (client.json["reason"], client.json["error"]) == (reason, detail)
        assert client.json["type"] == f"urn:remontoir:error:{reason}"

    run(story)


def test_get_is_405_and_the_core_s_no_is_plain_json_too() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.get(PATH)
        assert (client.status, client.headers["content-type"]) == (405, "application/json")
        client = await bench.post(v2_body(parameters={"timeout": -1}), path=PATH)
        assert (client.status, client.headers["content-type"]) == (400, "application/json")

    run(story)


@pytest.mark.parametrize(
    ("headers", "parameters", "slo_ms"),
    [
        ({}, {}, 1000),
        ({}, {"timeout": 70_000}, 70),
        ({}, {"timeout": 0}, 1000),
        ({}, {"slo_ms": 60, "timeout": 70_000}, 60),
        ({"x-slo-ms": "50"}, {}, 50),
        ({"x-slo-ms": "50"}, {"timeout": 0}, 50),
        ({"x-slo-ms": "50"}, {"slo_ms": 60, "timeout": 70_000}, 60),
        ({"x-slo-ms": "50", "grpc-timeout": "40m"}, {"slo_ms": 60}, 40),
        ({}, {"slo_ms": 60, "priority": 1}, 60),
    ],
)
def test_the_parameters_go_before_the_header(
    headers: dict[str, str], parameters: dict[str, Any], slo_ms: float
) -> None:
    async def story() -> None:
        bench = Bench()
        await bench.post(v2_body(parameters=parameters), path=PATH, headers=headers)
        assert bench.dispatcher.submitted[0].slo_ns == ms(slo_ms)

    run(story)


@pytest.mark.parametrize("priority", [-1, 1.5, "high", 1 << 32])
def test_a_priority_is_a_number_from_zero(priority: object) -> None:
    async def story() -> None:
        client = await Bench().post(v2_body(parameters={"priority": priority}), path=PATH)
        assert client.status == 400
        assert "$.parameters.priority" in client.json["error"]

    run(story)


@pytest.mark.parametrize("name", ["classification", "shared_memory_region"])
def test_outputs_in_a_form_that_is_not_there_are_refused(name: str) -> None:
    async def story() -> None:
        asked = [{"name": "y", "parameters": {name: 3}}]
        client = await Bench().post(v2_body(outputs=asked), path=PATH)
        assert client.status == 400
        assert client.json["error"] == (f"output 'y' asks for {name}: this server does not have it")

    run(story)


class TestRawMode:
    def submitted(self, spec: Any, body: bytes) -> Any:
        """What came of it: (shape, bytes) of the input, or the error."""
        told: list[Any] = []

        async def story() -> None:
            bench = Bench(spec)
            client = await bench.post(body, path=PATH, headers=RAW)
            if bench.dispatcher.submitted:
                (submitted,) = bench.dispatcher.submitted
                assert submitted.rows == 1
                told.append((submitted.tensors[0].shape, bytes(submitted.buffers[0])))
            else:
                assert client.status == 400
                told.append(client.json["error"])

        run(story)
        return told[0]

    def test_the_batch_is_one_row_and_all_outputs_are_binary(self) -> None:
        data = fp32(1, 2, 3, 4)
        assert self.submitted(model_spec(), data) == ((1, 4), data)

        async def story() -> None:
            bench = Bench()
            client = await bench.post(data, path=PATH, headers=RAW)
            bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
            await settle()
            assert client.headers["content-type"] == "application/octet-stream"
            start = int(client.headers["inference-header-content-length"])
            assert client.body[start:] == fp32(0.5, 0.25)

        run(story)

    def test_one_free_size_follows_from_the_bytes(self) -> None:
        spec = model_spec(inputs=(TensorSpec("x", "UINT8", (-1, 2, -1)),))
        assert self.submitted(spec, b"abcdef") == ((1, 2, 3), b"abcdef")
        assert "5 elements do not fill shape [1, 2, -1]" in self.submitted(spec, b"abcde")

    def test_two_free_sizes_do_not(self) -> None:
        spec = model_spec(inputs=(TensorSpec("x", "UINT8", (-1, -1, -1)),))
        assert "has 2 free sizes" in self.submitted(spec, b"abcdef")

    def test_a_size_of_zero_beside_a_free_one(self) -> None:
        spec = model_spec(inputs=(TensorSpec("x", "UINT8", (-1, 0, -1)),))
        assert "do not fill" in self.submitted(spec, b"")

    def test_text_is_one_element_without_its_length(self) -> None:
        spec = model_spec(inputs=(TensorSpec("x", "BYTES", (-1, 1)),))
        assert self.submitted(spec, b"word") == ((1, 1), b"\4\0\0\0word")
        assert self.submitted(spec, b"") == ((1, 1), b"\0\0\0\0")

    def test_half_an_element(self) -> None:
        told = self.submitted(model_spec(), b"123")
        assert told == "input 'x': 3 bytes are no whole number of FP32 elements of 4 bytes"

    def test_too_little(self) -> None:
        assert "12 bytes, shape [1, 4] of FP32 needs 16" in self.submitted(
            model_spec(), fp32(1, 2, 3)
        )

    def test_a_model_with_two_inputs(self) -> None:
        inputs = (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("z", "FP32", (-1, 4)))
        assert "has 2" in self.submitted(model_spec(inputs=inputs), b"")

    def test_a_model_without_rows(self) -> None:
        spec = model_spec(inputs=(TensorSpec("x", "UINT8", (), None),))
        assert self.submitted(spec, b"a") == ((), b"a")

    def test_the_native_route_has_none(self) -> None:
        async def story() -> None:
            client = await Bench().post(b"", headers=RAW)
            assert client.status == 400

        run(story)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        (b"gzip", b"gzip"),
        (b" Deflate ", b"deflate"),
        (b"identity", None),
        (b"gzip, deflate, br", None),
        (b"gzip;q=0", None),
        (b"", None),
    ],
)
def test_replies_are_compressed_for_who_names_one_coding(
    accepted: bytes, encoding: bytes | None
) -> None:
    assert encoding_of(accepted) == encoding


def test_large_replies_are_not() -> None:
    assert compressed(bytes(LARGEST_COMPRESSED), b"gzip") is not None
    assert compressed(bytes(LARGEST_COMPRESSED + 1), b"gzip") is None

    async def story() -> None:
        rows = LARGEST_COMPRESSED // 4
        spec = model_spec(outputs=(TensorSpec("y", "FP32", (-1, -1)),))
        bench = Bench(spec)
        body = v2_body(parameters={"binary_data_output": True})
        client = await bench.post(body, path=PATH, headers={"accept-encoding": "gzip"})
        bench.dispatcher.submitted[0].on_done(served(), outputs(((1, rows), bytes(4 * rows))))
        await settle()
        assert client.status == 200
        assert "content-encoding" not in client.headers
        assert client.headers["content-length"] == str(len(client.body))

    run(story)


@pytest.mark.parametrize("is_direct", [False, True])
@pytest.mark.parametrize(
    ("coding", "undo"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_codings_both_ways(is_direct: bool, coding: str, undo: Any) -> None:
    async def story() -> None:
        body, framing = binary_mlp(parameters={"binary_data_output": True})
        packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
        length = framing["inference-header-content-length"]
        async with listening.listening(is_direct) as gateway:
            connection = await gateway.connect()
            for is_packed in (True, False):
                headers = (
                    f"Inference-Header-Content-Length: {length}\r\nAccept-Encoding: {coding}\r\n"
                )
                headers += f"Content-Encoding: {coding}\r\n" if is_packed else ""
                connection.send(packed if is_packed else body, headers=headers, path=VERSIONED)
                submitted = await gateway.submitted.get()
                submitted.on_done(served(), MLP_OUTPUTS)
                status, told, answer = await connection.answer()
                assert (status, told["content-encoding"]) == (200, coding)
                start = int(told["inference-header-content-length"])
                plain = undo(answer)
                assert json.loads(plain[:start])["model_name"] == "mlp"
                assert plain[start:] == fp32(0.5, 0.25)

    listening.run(story)


def test_both_ways_through_the_server_answer_the_same_bytes() -> None:
    stories = [
        (PATH, json.dumps(v2_body()).encode(), ""),
        (VERSIONED, json.dumps(v2_body(id="1")).encode(), "x-slo-ms: 50\r\n"),
        (PATH, fp32(1, 2, 3, 4), "Inference-Header-Content-Length: 0\r\n"),
        ("/v2/models/mlp/versions/9/infer", b"{}", ""),
        ("/v2/models/nope/infer", b"{}", ""),
        (PATH, b"{", ""),
        ("/v2/models/m%6cp/infer", json.dumps(v2_body()).encode(), ""),
        (PATH + "?a=b", json.dumps(v2_body()).encode(), ""),
    ]
    answers: dict[bool, list[Any]] = {False: [], True: []}

    async def story(is_direct: bool) -> None:
        async with listening.listening(is_direct) as gateway:
            connection = await gateway.connect()
            for path, body, headers in stories:
                connection.send(body, headers=f"x-request-id: a\r\n{headers}", path=path)
                if b"{}" != body != b"{":
                    (await gateway.submitted.get()).on_done(served(), MLP_OUTPUTS)
                status, told, answer = await connection.answer()
                answers[is_direct].append((status, told, answer))

    listening.run(lambda: story(False))
    listening.run(lambda: story(True))
    assert answers[True] == answers[False]
    assert [status for status, _, _ in answers[True]] == [200, 200, 200, 404, 404, 400, 200, 200]


def test_a_body_in_pieces_keeps_its_model() -> None:
    async def story() -> None:
        body, framing = binary_mlp()
        length = framing["inference-header-content-length"]
        async with listening.listening(True) as gateway:
            connection = await gateway.connect()
            headers = f"Inference-Header-Content-Length: {length}\r\n"
            connection.send(body[:-8], length=len(body), headers=headers, path=VERSIONED)
            await connection.writer.drain()
            connection.writer.write(body[-8:])
            submitted = await gateway.submitted.get()
            assert submitted.model == "mlp"
            # judged by the first piece too, unless both came at once
            assert {told[0] for told in gateway.bench.dispatcher.foreseen} <= {"mlp"}
            submitted.on_done(served(), MLP_OUTPUTS)
            assert (await connection.answer())[0] == 200

    listening.run(story)
