"""What the benchmark sends is what the gateway reads, by the gateway's own decoder."""

import msgspec
import numpy as np

from gateway.inference.body import decode_body
from loadtest.http1 import Shot
from loadtest.messages import (
    baseline_binary,
    read_baseline,
    read_remontoir,
    reason_of,
    remontoir_binary,
    remontoir_json_body,
)

ROW = np.array([[0.5, -1.25]], np.float32)


def test_a_binary_request_is_framed_as_the_gateway_reads_it():
    request = remontoir_binary("cnn", "x", ROW, slo_ms=85.5, port=8000)
    head, _, body = request.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
    assert int(headers[b"Content-Length"]) == len(body)
    decoded, binary = decode_body(body, headers[b"Inference-Header-Content-Length"])
    assert (decoded.model, decoded.slo_ms) == ("cnn", 85.5)
    assert decoded.inputs[0].shape == (1, 2)
    assert bytes(binary) == ROW.tobytes()
    assert decoded.parameters is not None
    assert decoded.parameters.binary_data_output


def test_a_json_request_carries_the_numbers():
    body, binary = decode_body(remontoir_json_body("mlp", "x", ROW, slo_ms=1000.0), None)
    assert bytes(body.inputs[0].data) == b"[0.5,-1.25]"
    assert binary == b""


def test_a_request_to_the_baseline_is_the_tensor_alone():
    head, _, body = baseline_binary("cnn", ROW, port=1).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /raw/cnn HTTP/1.1\r\n")
    assert body == ROW.tobytes()


def test_a_binary_reply_is_read_with_the_servers_own_account():
    slo = {"slo_ms": 9.0, "latency_ms": 7.0, "slack_ms": 2.0, "predicted_ms": 6.0}
    timing = {"queue": 1.0, "load": 0.0, "input": 0.1, "exec": 5.0, "output": 0.1}
    header = msgspec.json.encode({"slo": {**slo, "cold_start": True}, "timing_ms": timing})
    shot = Shot(0, 0, 0)
    shot.body, shot.json_length = header + ROW.tobytes(), len(header)
    answer = read_remontoir(shot)
    np.testing.assert_array_equal(answer.output, ROW.ravel())
    assert answer.account is not None
    assert (answer.account.slo.latency_ms, answer.account.slo.cold_start) == (7.0, True)
    assert answer.account.timing_ms.exec == 5.0


def test_a_reply_of_the_baseline_is_the_tensor_alone():
    shot = Shot(0, 0, 0)
    shot.body = ROW.tobytes()
    np.testing.assert_array_equal(read_baseline(shot).output, ROW.ravel())


def test_a_refusal_without_a_reason_is_no_crash():
    shot = Shot(0, 0, 0)
    for body in (b"", b"no", b"[]", b'{"detail": "x"}'):
        shot.body = body
        assert reason_of(shot) == ""
