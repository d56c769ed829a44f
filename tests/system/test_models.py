"""Real models through a real worker: one broken, one that throws, and more than fit its cache."""

import asyncio
import os
import random
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.gateway.running import RunningGateway, running_gateway
from tests.gpuworker import onnx_models
from tests.gpuworker.onnx_models import write_model
from tests.system.clients import Answer, Connection, ask_all, infer_body, metric, play, post
from tests.system.zoo import WIDE, Rows, expected_of_wide, wide_weights

TABLE_ROWS = 8  # of the model `lookup`: an index beyond makes its engine throw
MANY = 64
# Plain ONNX Runtime's own sums differ from numpy's by this much (the README's promise).
RTOL, ATOL = 1e-4, 1e-5
INPUTS = np.random.default_rng(7).standard_normal((16, 64)).astype(np.float32)


def mlp_body() -> bytes:
    return infer_body(
        "mlp", [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]
    )


def lookup_body(*ids: int) -> bytes:
    tensor = {"name": "ids", "shape": [1, 4], "datatype": "INT64", "data": [*ids]}
    return infer_body("lookup", [tensor])


def wide_body(model: str, x: Rows) -> bytes:
    """Binary outputs: the bits themselves."""
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.reshape(-1).tolist()}
    return infer_body(model, [tensor], parameters={"binary_data_output": True})


def output_bytes(answer: Answer) -> bytes:
    assert answer.status == 200, answer.json
    return answer.body[int(answer.headers["inference-header-content-length"]) :]


def rows_of(data: bytes) -> Rows:
    return np.frombuffer(data, np.float32).reshape(-1, 10)


def test_a_file_that_is_no_model_is_unavailable_with_its_reason_and_the_others_serve(
    zoo: RunningGateway,
) -> None:
    told = {m["name"]: m for m in httpx.get(f"{zoo.url}/models").json()["models"]}
    assert set(told) == {"mlp", "lookup", "broken", *WIDE}
    reason = told["broken"]["unavailable_reason"]
    assert reason
    assert told["broken"]["profile"] is None
    assert [name for name, m in told.items() if m["unavailable_reason"]] == ["broken"]
    answer = post(zoo.url, infer_body("broken", []))
    assert answer.verdict == "503 model_unavailable"
    assert answer.json["detail"] == f"model broken: {reason}"
    assert "retry-after" not in answer.headers  # it will not mend itself
    assert httpx.get(f"{zoo.url}/models/broken").json()["unavailable_reason"] == reason
    assert post(zoo.url, mlp_body()).status == 200


def test_an_input_that_makes_the_engine_throw_fails_alone_and_its_batch_mates_are_right(
    zoo: RunningGateway,
) -> None:
    """Repeated until a batch with such an input in it has failed, and was taken apart."""
    chance = random.Random(7)
    good = [tuple(chance.randrange(TABLE_ROWS) for _ in range(4)) for _ in range(MANY)]
    expected = {ids: post(zoo.url, lookup_body(*ids)).json["outputs"] for ids in good}

    def failures() -> float:
        return metric(zoo.url, "action_results_total", action="infer", code="engine_error")

    async def one_round() -> int:
        """The number of inputs that made it throw."""
        asked = [ids if n % 8 else (0, 1, TABLE_ROWS + n, 2) for n, ids in enumerate(good)]
        answers = await ask_all(zoo.url, [lookup_body(*ids) for ids in asked])
        for number, (ids, answer) in enumerate(zip(asked, answers, strict=True)):
            if number % 8:
                assert answer.status == 200, answer.json
                got = np.array(answer.json["outputs"][0]["data"])
                np.testing.assert_allclose(got, expected[ids][0]["data"], rtol=RTOL, atol=ATOL)
            else:
                assert answer.verdict == "500 engine_error"
                assert f"{TABLE_ROWS + number}" in answer.json["detail"]
        return MANY // 8

    async def story() -> None:
        before = failures()
        bad = 0
        for _ in range(50):
            bad += await one_round()
            if failures() - before > bad:  # one for the batch, and one for each bad input alone
                return
        pytest.fail("no batch ever had a bad input in it")

    play(story)
    assert post(zoo.url, mlp_body()).status == 200


def test_outputs_are_the_same_bits_before_and_after_evictions(zoo: RunningGateway) -> None:
    """One request at a time, so each is a batch of its own size; five rounds over all models."""
    evictions_before = metric(zoo.url, "evictions_total")
    first: dict[tuple[str, int], bytes] = {}
    for _ in range(5):
        for model in WIDE:
            for rows in (1, 3):
                answer = post(zoo.url, wide_body(model, INPUTS[:rows]))
                output = output_bytes(answer)
                assert first.setdefault((model, rows), output) == output
    for (model, rows), output in first.items():
        expected = expected_of_wide(wide_weights(model), INPUTS[:rows])
        np.testing.assert_allclose(rows_of(output), expected, rtol=RTOL, atol=ATOL)
    # eight pages of weights in a cache of four: every round moved some out
    assert metric(zoo.url, "evictions_total") - evictions_before >= 5
    assert metric(zoo.url, "weights_pages") == 4
    assert metric(zoo.url, "anomalies_total") == 0


def test_many_clients_through_a_cache_that_is_too_small_get_no_wrong_output(
    zoo: RunningGateway,
) -> None:
    """Sixteen clients ask random models for random rows; batches form as they will."""
    expected = {model: expected_of_wide(wide_weights(model), INPUTS) for model in WIDE}
    evictions_before = metric(zoo.url, "evictions_total")
    served = 0

    async def client(number: int) -> None:
        nonlocal served
        chance = random.Random(number)
        connection = await Connection.open(zoo.url)
        for _ in range(25):
            model = chance.choice(list(WIDE))
            row = chance.randrange(len(INPUTS))
            answer = await connection.ask(wide_body(model, INPUTS[row : row + 1]))
            got = rows_of(output_bytes(answer))
            np.testing.assert_allclose(got[0], expected[model][row], rtol=RTOL, atol=ATOL)
            served += 1
        connection.close()

    async def story() -> None:
        await asyncio.gather(*[client(number) for number in range(16)])

    play(story, hang_s=100)
    assert served == 400
    assert metric(zoo.url, "evictions_total") > evictions_before
    assert metric(zoo.url, "anomalies_total") == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_two_cpus_share_an_execution_where_that_is_asked_for(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "mlp", onnx_models.mlp(), "max_batch_size: 1")
    flags = ("--models", str(tmp_path / "models"), "--intra-op-threads", "2", "--device", "cpu")
    with running_gateway(*flags, "--drain-s", "0", scratch=tmp_path) as gateway:
        answer = post(gateway.url, mlp_body())
        assert answer.status == 200, answer.json
        [worker] = gateway.child_pids()
        command = Path(f"/proc/{worker}/cmdline").read_text().split("\0")
        assert command[command.index("--intra-op-threads") + 1] == "2"
