"""The hot path over puppets: every request here is moved by hand, none waits for time."""

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import GatewayConfig
from scheduler.events import Expired, Failed, Reason, Rejected
from scheduler.spec import TensorSpec
from scheduler.wire import TensorMeta
from tests.gateway.http_doubles import (
    MLP_OUTPUTS,
    Bench,
    binary_mlp,
    fp32,
    mlp_body,
    model_spec,
    ms,
    outputs,
    refused,
    run,
    served,
    settle,
)

# ---------------------------------------------------------------------- success


def test_a_request_reaches_the_dispatcher_as_it_was_sent() -> None:
    async def story() -> None:
        bench = Bench()
        arrival_ns = bench.clock.now
        await bench.post(mlp_body(do_not_queue=True))
        (request,) = bench.dispatcher.submitted
        assert (request.model, request.arrival_ns, request.slo_ns) == ("mlp", arrival_ns, ms(50))
        assert (request.rows, request.batch_key, request.elements) == (1, "", 4)
        assert request.tensors == (TensorMeta((1, 4), 16),)
        assert request.buffers == [fp32(1, 2, 3, 4)]
        assert request.do_not_queue is True

    run(story)


def test_outputs_come_with_the_promise_and_where_the_time_went() -> None:
    async def story() -> None:
        body = await Bench().served(mlp_body(id="42"), ((1, 2), fp32(0.5, 0.25)))
        assert body == {
            "model_name": "mlp",
            "model_version": "1",
            "outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.25]}],
            "slo": {
                "slo_ms": 50.0,
                "latency_ms": 3.0,
                "slack_ms": 47.0,
                "predicted_ms": 5.0,
                "cold_start": False,
            },
            "timing_ms": {"queue": 1.0, "load": 0.0, "input": 0.25, "exec": 2.0, "output": 0.5},
            "id": "42",
        }

    run(story)


def test_energy_is_told_where_the_device_tells_its_power() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        told = msgspec.structs.replace(MLP_OUTPUTS, energy_mj=12.5)
        bench.dispatcher.submitted[0].on_done(served(), told)
        await settle()
        assert client.json["energy_mj"] == 12.5

    run(story)


def test_an_answer_is_written_from_the_callback_and_the_task_ends() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        assert not client.is_answered
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        assert client.is_answered  # without a turn of the event loop
        await settle()
        assert client.task is not None
        assert client.task.done()
        assert bench.app.infer.num_open == 0
        assert bench.dispatcher.cancelled == []

    run(story)


def test_an_answer_may_come_before_submit_returns() -> None:
    async def story() -> None:
        bench = Bench()
        bench.dispatcher.answer_at_once = (served(), MLP_OUTPUTS)
        client = await bench.post(mlp_body())
        assert client.status == 200
        assert "id" not in client.json
        assert bench.app.infer.num_open == 0

    run(story)


def test_binary_tensors_in_and_out() -> None:
    async def story() -> None:
        bench = Bench()
        bench.dispatcher.answer_at_once = (served(), MLP_OUTPUTS)
        body, headers = binary_mlp(parameters={"binary_data_output": True})
        client = await bench.post(body, headers=headers)
        assert bench.dispatcher.submitted[0].buffers == [fp32(1, 2, 3, 4)]
        assert client.headers["content-type"] == "application/octet-stream"
        length = int(client.headers["inference-header-content-length"])
        header = json.loads(client.body[:length])
        assert client.body[length:] == fp32(0.5, 0.25)
        assert header["outputs"] == [
            {
                "name": "y",
                "shape": [1, 2],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 8},
            }
        ]
        assert header["slo"]["slo_ms"] == 50.0

    run(story)


def test_a_body_in_pieces_is_the_same_body() -> None:
    async def story() -> None:
        bench = Bench()
        body, headers = binary_mlp()
        client = bench.client()
        client.start("POST", "/infer", headers)  # no content-length: chunked
        for byte, more in itertools.zip_longest(body, [True] * (len(body) - 1), fillvalue=False):
            client.give(bytes([byte]), more=bool(more))
        await settle(2 * len(body))
        assert bench.dispatcher.submitted[0].buffers == [fp32(1, 2, 3, 4)]
        assert bench.timers.armed == []

    run(story)


@pytest.mark.parametrize("given", ["abc-123", "!~", "x" * 128])
def test_a_clients_request_id_is_returned(given: str) -> None:
    async def story() -> None:
        client = await Bench().post(b"", headers={"x-request-id": given})
        assert refused(client, 400, "bad_request")["request_id"] == given

    run(story)


@pytest.mark.parametrize("given", ["", "with space", "tab\t", "\xff", "x" * 129, "a\nb"])
def test_an_unsafe_request_id_is_replaced(given: str) -> None:
    async def story() -> None:
        bench = Bench()
        ids = {
            refused(await bench.post(b"", headers=headers), 400, "bad_request")["request_id"]
            for headers in ({"x-request-id": given}, {})
        }
        assert len(ids) == 2
        assert given not in ids

    run(story)


@pytest.mark.parametrize(
    ("body", "headers", "expected_ns"),
    [
        ({}, {}, ms(250)),
        ({}, {"x-slo-ms": "40"}, ms(40)),
        ({"slo_ms": 10}, {"x-slo-ms": "40"}, ms(10)),
        ({"parameters": {"timeout": 30000}}, {"x-slo-ms": "40"}, ms(30)),
        ({"slo_ms": 10}, {"grpc-timeout": "5m"}, ms(5)),
        ({"slo_ms": None}, {}, ms(250)),
    ],
)
def test_the_slo_is_found_where_the_contract_says(
    body: dict[str, Any], headers: dict[str, str], expected_ns: int
) -> None:
    async def story() -> None:
        bench = Bench(model_spec(default_slo_ns=ms(250)))
        request = mlp_body()
        del request["slo_ms"]
        await bench.post({**request, **body}, headers=headers)
        assert bench.dispatcher.submitted[0].slo_ns == expected_ns

    run(story)


def test_the_gateways_default_slo_is_the_last_resort() -> None:
    async def story() -> None:
        bench = Bench(config=GatewayConfig(default_slo_ms=750))
        await bench.post(mlp_body(slo_ms=None))
        assert bench.dispatcher.submitted[0].slo_ns == ms(750)

    run(story)


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        ({}, None, False),
        ({}, "true", True),
        ({}, "1", True),
        ({}, "false", False),
        ({"do_not_queue": True}, "0", True),
        ({"parameters": {"do_not_queue": True}}, None, True),
    ],
)
def test_not_queueing_is_asked_for_in_body_parameters_or_header(
    body: dict[str, Any], header: str | None, expected: bool
) -> None:
    async def story() -> None:
        bench = Bench()
        headers = {} if header is None else {"x-do-not-queue": header}
        await bench.post(mlp_body(**body), headers=headers)
        assert bench.dispatcher.submitted[0].do_not_queue is expected

    run(story)


# ---------------------------------------------------------------------- the core's no


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Rejected(Reason.SLO_INFEASIBLE_NOW, "61 ms", ms(11.2), ms(61)), 429),
        (Rejected(Reason.SLO_INFEASIBLE_EVER, "too short", min_slo_ns=ms(2)), 422),
        (Expired(Reason.DEADLINE_EXCEEDED_QUEUED, "late"), 504),
        (Failed(Reason.ENGINE_ERROR, "it raised"), 500),
        (Failed(Reason.WORKER_LOST, "w1 was lost", ms(100)), 503),
        (Failed(Reason.INVALID_INPUT, "not for this engine"), 400),
        (Failed(Reason.INTERNAL_ERROR, "the gateway stops"), 500),
    ],
)
def test_an_outcome_becomes_its_error(outcome: Rejected | Expired | Failed, status: int) -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        bench.dispatcher.submitted[0].on_done(outcome, None)
        body = refused(client, status, outcome.reason.value)
        assert (body["detail"], body["slo_ms"]) == (outcome.detail, 50.0)
        await settle()
        assert bench.app.infer.num_open == 0

    run(story)


def test_a_late_result_is_never_a_200() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        bench.clock.advance(ms(50) + 1)
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        refused(client, 504, "deadline_exceeded_executing")

    run(story)


def test_a_result_at_the_deadline_is_in_time() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        bench.clock.advance(ms(50))
        bench.dispatcher.submitted[0].on_done(served(), MLP_OUTPUTS)
        assert client.status == 200
        assert client.json["slo"]["slack_ms"] == 0

    run(story)


def test_a_result_that_cannot_be_written_as_a_reply_is_a_500_for_its_client_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body())
        bench.dispatcher.submitted[0].on_done(served(), outputs(((1, 2), b"odd")))
        refused(client, 500, "internal_error")

    run(story)
    assert "no reply could be made" in caplog.text


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "not valid JSON: Input data was truncated, after 1 bytes"),
        (json.dumps(mlp_body()).encode()[:-1], "not valid JSON: Input data was truncated"),
        (b"not json", "not valid JSON: JSON is malformed"),
        (b"[]", "not an inference request: Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs":[]}', "the body names no model"),
        (b'{"inputs":[],"model":5}', "Expected `str | null`, got `int` - at `$.model`"),
        (
            b'{"slo_ms": NaN, "inputs":[]}',
            'NaN at byte 11 is no JSON number, near \'{"slo_ms": NaN',
        ),
        (b'{"slo_ms": -Infinity, "inputs":[]}', "-Infinity at byte 12 is no JSON number"),
        (b'{"slo_ms": Infinity, "inputs":[]}', "Infinity at byte 11 is no JSON number"),
        (b'{"inputs":[],"slo_ms":1e999}', "Number out of range - at `$.slo_ms`"),
        (b'{"inputs":[],"id":"\xff"}', "the body is not UTF-8"),
        (b'{"inputs":[],"x":' + b"[" * 100_000, "nested too deep"),
        (mlp_body(slo_ms=-1), "slo_ms is -1: expected"),
        (mlp_body(slo_ms=0), "slo_ms is 0: expected"),
        (mlp_body(slo_ms=1e18), "slo_ms is 1e+18: expected"),
        (mlp_body(slo_ms="50"), "slo_ms is '50': expected"),
        (mlp_body(slo_ms=True), "slo_ms is True: expected"),
        (mlp_body(inputs=[]), "model mlp needs input 'x'"),
        (mlp_body(outputs=[{"name": "z"}]), "model mlp has no output 'z'"),
        (mlp_body(do_not_queue="yes"), "Expected `bool`, got `str` - at `$.do_not_queue`"),
    ],
)
def test_a_malformed_body_is_refused_saying_what_and_where(
    body: bytes | dict[str, Any], message: str
) -> None:
    async def story() -> None:
        bench = Bench()
        detail = refused(await bench.post(body), 400, "bad_request")["detail"]
        assert message in detail
        assert bench.dispatcher.submitted == []
        assert bench.app.infer.num_open == 0

    run(story)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-slo-ms": "nan"}, "header x-slo-ms is 'nan'"),
        ({"x-do-not-queue": "maybe"}, "header x-do-not-queue is 'maybe'"),
        ({"grpc-timeout": "soon"}, "header grpc-timeout is 'soon'"),
        ({"inference-header-content-length": "-1"}, "Content-Length is '-1'"),
        ({"inference-header-content-length": "9" * 13}, "expected a number of bytes"),
        ({"inference-header-content-length": "9999"}, "is 9999, the body has"),
        ({"inference-header-content-length": "0"}, "the body is empty"),
        ({"inference-header-content-length": "10"}, "not valid JSON"),
    ],
)
def test_a_malformed_header_is_refused_by_name(headers: dict[str, str], message: str) -> None:
    async def story() -> None:
        request = mlp_body()
        del request["slo_ms"]
        client = await Bench().post(request, headers=headers)
        assert message in refused(client, 400, "bad_request")["detail"]

    run(story)


def test_an_unknown_model_is_not_found_and_no_label() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body(model="x" * 10_000))
        assert "no model 'xxx" in refused(client, 404, "not_found")["detail"]
        assert "xxx" not in (await bench.get("/metrics")).body.decode()

    run(story)


def test_a_broken_model_says_why_and_the_others_serve() -> None:
    async def story() -> None:
        bench = Bench(model_spec("good"), model_spec("bad", unavailable_reason="not an ONNX file"))
        client = await bench.post(mlp_body(model="bad"))
        body = refused(client, 503, "model_unavailable")
        assert body["detail"] == "model bad: not an ONNX file"
        assert "retry-after" not in client.headers
        await bench.post(mlp_body(model="good"))
        assert len(bench.dispatcher.submitted) == 1

    run(story)


def test_a_model_with_a_datatype_unknown_here_is_unavailable() -> None:
    async def story() -> None:
        bench = Bench(model_spec(outputs=(TensorSpec("y", "COMPLEX64", (-1, 2)),)))
        body = refused(await bench.post(mlp_body()), 503, "model_unavailable")
        assert body["detail"].startswith("model mlp: tensor 'y' is COMPLEX64")

    run(story)


def test_a_changed_catalogue_counts_from_the_next_request() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.post(mlp_body())
        bench.catalog["mlp"] = model_spec(inputs=(TensorSpec("x", "FP64", (-1, 4)),))
        refused(await bench.post(mlp_body()), 400, "bad_request")
        del bench.catalog["mlp"]
        refused(await bench.post(mlp_body()), 404, "not_found")

    run(story)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_another_method_is_told_which_is_right(method: str) -> None:
    async def story() -> None:
        client = await Bench().post(b"", method=method)
        refused(client, 405, "method_not_allowed")
        assert client.headers["allow"] == "POST"

    run(story)


# ---------------------------------------------------------------------- phases


def test_nothing_is_taken_before_and_after_serving() -> None:
    async def story() -> None:
        bench = Bench()
        bench.lifecycle.drain()
        await bench.post(mlp_body())
        assert len(bench.dispatcher.submitted) == 1  # draining still serves
        bench.lifecycle.refuse()
        client = await bench.post(mlp_body())
        refused(client, 503, "draining")
        assert client.headers["retry-after"] == "1"
        assert len(bench.dispatcher.submitted) == 1

        starting = Bench()
        starting.lifecycle.__init__()  # type: ignore[misc]  # as it was before serve()
        refused(await starting.post(mlp_body()), 503, "starting")

    run(story)


# ---------------------------------------------------------------------- any input

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.binary(max_size=60), st.sampled_from(["0", "1", "7", "60", None]))
def test_any_bytes_are_answered_with_a_400(body: bytes, length: str | None) -> None:
    async def story() -> None:
        headers = {} if length is None else {"inference-header-content-length": length}
        refused(await Bench().post(body, headers=headers), 400, "bad_request")

    run(story)


@given(st.dictionaries(st.sampled_from(sorted(mlp_body(id="", outputs=[]))), JSON_VALUES))
def test_any_member_may_be_anything_and_the_request_is_answered_or_taken(
    members: dict[str, Any],
) -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(mlp_body(**members))
        if client.is_answered:
            assert client.status in (400, 404)
            assert bench.dispatcher.submitted == []
        else:
            assert len(bench.dispatcher.submitted) == 1

    run(story)


@given(
    st.dictionaries(
        st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), JSON_VALUES
    )
)
def test_any_tensor_is_answered_with_a_400_or_taken(members: dict[str, Any]) -> None:
    async def story() -> None:
        bench = Bench()
        tensor = {**mlp_body()["inputs"][0], **members}
        client = await bench.post(mlp_body(inputs=[tensor]))
        if client.is_answered:
            refused(client, 400, "bad_request")
        else:
            assert bench.dispatcher.submitted[0].tensors == (TensorMeta((1, 4), 16),)

    run(story)


# ---------------------------------------------------------------------- a no before the upload


def test_a_certain_no_does_not_wait_for_the_tensors() -> None:
    async def story() -> None:
        bench = Bench()
        bench.dispatcher.refusal = Rejected(
            Reason.SLO_INFEASIBLE_NOW, "40 are queued", retry_after_ns=ms(7), predicted_ns=ms(90)
        )
        body, headers = binary_mlp(slo_ms=80)
        client = bench.client()
        client.start("POST", "/infer", {"content-length": str(len(body)), **headers})
        client.give(body[:-4], more=True)
        await settle()
        assert (client.status, client.json["reason"]) == (429, "slo_infeasible_now")
        assert client.json["retry_after_ms"] == 7
        assert bench.dispatcher.foreseen == [("mlp", ms(80), 1, "", 4)]
        assert bench.dispatcher.submitted == []
        assert client.task is not None
        await client.task
        assert bench.app.infer.memory.num_bytes == 0

    run(story)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param({"slo_ms": -1}, id="a bad SLO"),
        pytest.param({"model": "nobody"}, id="an unknown model"),
        pytest.param({"model": None}, id="no model"),
    ],
)
def test_what_is_wrong_is_told_when_the_body_is_complete(spoil: dict[str, Any]) -> None:
    async def story() -> None:
        bench = Bench()
        body, headers = binary_mlp(**spoil)
        client = bench.client()
        client.start("POST", "/infer", {"content-length": str(len(body)), **headers})
        client.give(body[:-4], more=True)
        await settle()
        assert not client.is_answered
        assert bench.dispatcher.foreseen == []
        client.give(body[-4:])
        await settle()
        assert client.status in (400, 404)

    run(story)


def test_a_length_of_thousands_of_digits_is_its_clients_fault_alone() -> None:
    """Python refuses to read more than 4,300."""

    async def story() -> None:
        bench = Bench()
        body, headers = binary_mlp()
        headers["inference-header-content-length"] = f"{1:012}" + "0" * 5_000
        client = bench.client()
        client.start("POST", "/infer", {"content-length": str(len(body)), **headers})
        client.give(body[:-4], more=True)
        await settle()
        assert bench.app.infer.num_open == 1
        client.give(body[-4:])
        await settle()
        assert (client.status, client.json["reason"]) == (400, "bad_request")
        assert client.task is not None
        await client.task
        assert bench.app.infer.num_open == 0

    run(story)


def test_a_body_that_is_not_there_when_the_server_stops_is_told_so() -> None:
    async def story() -> None:
        bench = Bench()
        client = bench.client()
        client.start("POST", "/infer", {"content-length": "1000"})
        client.give(b"{", more=True)
        await settle()
        assert client.task is not None
        client.task.cancel()
        await settle()
        assert (client.status, client.json["reason"]) == (503, "draining")
        assert bench.app.infer.num_open == 0

    run(story)


def test_a_header_that_is_not_all_there_is_not_judged() -> None:
    async def story() -> None:
        bench = Bench()
        body, headers = binary_mlp()
        client = bench.client()
        client.start("POST", "/infer", {"content-length": str(len(body)), **headers})
        client.give(body[:9], more=True)
        client.give(body[9:])
        await settle()
        assert bench.dispatcher.foreseen == []
        assert len(bench.dispatcher.submitted) == 1

    run(story)
