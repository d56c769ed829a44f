"""Stories of requests that a real worker has executed: one timeline across two processes."""

import itertools
from typing import Any

import httpx
import pytest

from tests.gateway.running import RunningGateway
from tests.system.clients import infer_body, post

MLP = [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]
# Instants of the other process are known to a part of a round trip.
CLOCK_ERROR_MS = 1.0


def story_of(zoo: RunningGateway, request_id: str) -> Any:
    reply = httpx.get(f"{zoo.url}/requests/{request_id}")
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_phases_of_a_request_follow_each_other_and_make_up_its_latency(
    zoo: RunningGateway,
) -> None:
    answer = post(zoo.url, infer_body("mlp", MLP))
    assert answer.status == 200
    told = story_of(zoo, answer.headers["x-request-id"])
    assert told["latency_ms"] == answer.json["slo"]["latency_ms"]
    assert told["timing_ms"] == answer.json["timing_ms"]
    assert told["predicted_ms"] == answer.json["slo"]["predicted_ms"]
    phases = {phase["phase"]: phase for phase in told["timeline"]}
    assert list(phases) == [
        name
        for name in ("admit", "load", "queue", "input", "exec", "output", "answer")
        if name != "load" or told["cold_start"]
    ]
    timeline = list(phases.values())
    assert timeline[0]["begin_ms"] == 0
    assert timeline[-1]["end_ms"] == pytest.approx(told["latency_ms"])
    for before, after in itertools.pairwise(timeline):
        assert before["begin_ms"] <= before["end_ms"]
        assert before["end_ms"] <= after["begin_ms"] + CLOCK_ERROR_MS
    assert phases["exec"]["end_ms"] - phases["exec"]["begin_ms"] == pytest.approx(
        told["timing_ms"]["exec"], abs=0.01
    )
    assert told["batch"]["requests"] == [told["request_id"]]
    assert told["story"][0].startswith(f"Request {told['request_id']} of mlp, 1 row, arrived at ")
    assert any(line.startswith("It was served ") for line in told["story"])
    assert told["story"][-1].startswith("The gateway wrote its answer ")


def test_a_refusal_names_the_earliest_finish_and_the_weights(zoo: RunningGateway) -> None:
    answer = post(zoo.url, infer_body("mlp", MLP, slo_ms=0.01))
    assert answer.verdict == "422 slo_infeasible_ever"
    told = story_of(zoo, answer.headers["x-request-id"])
    assert (told["outcome"], told["reason"]) == ("rejected", "slo_infeasible_ever")
    assert any("its weights were " in line for line in told["story"])
    assert any(line.startswith("No SLO below ") for line in told["story"])
    worst = httpx.get(f"{zoo.url}/requests", params={"worst": 1000, "outcome": "rejected"}).json()
    assert told["request_id"] in {entry["request_id"] for entry in worst["requests"]}
