"""What the locustfile is made of, without Locust: mixes, steps, traces, payloads, counts."""

import json

import numpy as np
import pytest

from loadtest.locust_load.mix import MixError, Slo, read_mix, read_models, read_slos
from loadtest.locust_load.payloads import PayloadError, Protocol, payloads_of
from loadtest.locust_load.slo_counts import Outcome, SloCounts, outcome_of
from loadtest.locust_load.steps import StepsError, read_steps, trace_steps


def test_a_mix_has_models_by_weight_and_slos_by_model() -> None:
    mix = read_mix("magika:3, ppocr_cls", "magika=20,100:1,500:2")
    assert mix.models == {"magika": 3.0, "ppocr_cls": 1.0}
    assert mix.slos_of("magika") == [Slo(20.0, 1.0)]
    assert mix.slos_of("ppocr_cls") == [Slo(100.0, 1.0), Slo(500.0, 2.0)]


def test_models_without_an_slo_of_their_own_have_the_default() -> None:
    assert read_mix("", "magika=20").slos_of("other") == [Slo(100.0, 1.0)]


@pytest.mark.parametrize(
    ("text", "named"),
    [("0", "'0'"), ("5x", "'5x'"), ("10:-1", "'10:-1'"), ("m=", "'m='"), ("inf", "'inf'")],
)
def test_an_slo_that_is_none_is_named(text: str, named: str) -> None:
    with pytest.raises(MixError, match=rf"--slo-ms: {named} is not of the form \[MODEL=\]"):
        read_slos(f"50,{text}")


def test_a_model_that_is_named_twice_is_refused() -> None:
    with pytest.raises(MixError, match="--models: 'a:2' names no model, or one a second time"):
        read_models("a,a:2")


def test_steps_last_as_long_as_they_say() -> None:
    steps = read_steps("10:30, 50:60")
    assert (steps.duration_s, steps.peak_per_s) == (90.0, 50.0)
    rates = [step and step.rate_per_s for step in map(steps.at, (0.0, 29.9, 30.0, 89.9, 90.0))]
    assert rates == [10.0, 10.0, 50.0, 50.0, None]


@pytest.mark.parametrize("text", ["10", "10:0", "-1:5", "a:5", "1:2:3", ""])
def test_steps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(StepsError, match="RATE:SECONDS"):
        read_steps(text)


@pytest.mark.parametrize(
    ("file", "num_steps", "has_sources"),
    [
        ("azure2019_100fn_min480_959.csv.gz", 480, True),
        ("servegen_mm_image_client_windows.csv.gz", 144, True),
        ("azure_llm2023_code.csv.gz", 58, False),
    ],
)
def test_a_trace_becomes_steps_of_the_asked_peak(
    file: str, num_steps: int, has_sources: bool
) -> None:
    steps = trace_steps(file, step_s=0.5, peak_per_s=80.0)
    assert len(steps.steps) == num_steps
    assert steps.peak_per_s == pytest.approx(80.0)
    assert steps.duration_s == 0.5 * num_steps
    assert all(sum(step.shares) == pytest.approx(1.0) for step in steps.steps if step.shares)
    assert any(step.shares for step in steps.steps) is has_sources


def test_the_sources_of_a_trace_are_dealt_out_to_the_models() -> None:
    (step,) = read_steps("10:1").steps
    assert step.weights(["a", "b"]) == {}
    weights = step._replace(shares=[0.5, 0.3, 0.2, 0.0]).weights(["a", "b"])
    assert weights == pytest.approx({"a": 0.7, "b": 0.3})


def test_a_trace_that_is_not_there_is_named_once() -> None:
    with pytest.raises(StepsError, match=r"--trace: nowhere\.csv is not there") as caught:
        trace_steps("nowhere.csv", step_s=1.0, peak_per_s=1.0)
    assert str(caught.value).count("is not there") == 1


MODEL = {
    "name": "m",
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3, -1], "batch_axis": 0},
        {"name": "k", "datatype": "INT64", "shape": [-1], "batch_axis": 0},
    ],
}


def test_a_binary_payload_has_the_bytes_that_its_header_says() -> None:
    first, second = payloads_of(
        MODEL, protocol=Protocol.BINARY, rows=2, dynamic_size=5, count=2, seed=1
    )
    assert first.path == "/infer"
    assert first.body != second.body
    size = int(first.headers["inference-header-content-length"])
    header = json.loads(first.body[:size])
    assert header["model"] == "m"
    assert [tensor["shape"] for tensor in header["inputs"]] == [[2, 3, 5], [2]]
    sizes = [tensor["parameters"]["binary_data_size"] for tensor in header["inputs"]]
    assert sizes == [2 * 3 * 5 * 4, 2 * 8]
    assert len(first.body) == size + sum(sizes)


def test_a_v2_payload_names_its_model_in_the_path() -> None:
    (payload,) = payloads_of(
        {**MODEL, "name": "a b"}, protocol=Protocol.V2_JSON, rows=1, dynamic_size=2, count=1, seed=1
    )
    assert payload.path == "/v2/models/a%20b/infer"
    body = json.loads(payload.body)
    assert "model" not in body
    assert np.shape(body["inputs"][0]["data"]) == (6,)


def test_a_model_of_strings_is_refused_by_name() -> None:
    words = {"name": "w", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}]}
    with pytest.raises(PayloadError, match="model w: input text is BYTES"):
        payloads_of(words, protocol=Protocol.JSON, rows=1, dynamic_size=1, count=1, seed=1)


@pytest.mark.parametrize(
    ("status", "reason", "latency_ms", "outcome"),
    [
        (200, "", 50.0, Outcome.IN_TIME),
        (200, "", 50.1, Outcome.LATE),
        (429, "", 1.0, Outcome.REFUSED),
        (503, "", 1.0, Outcome.REFUSED),
        (422, "slo_infeasible_ever", 1.0, Outcome.REFUSED),
        (422, "", 1.0, Outcome.FAILED),
        (504, "", 50.0, Outcome.EXPIRED),
        (500, "", 1.0, Outcome.FAILED),
        (0, "", 10_000.0, Outcome.FAILED),
    ],
)
def test_an_outcome_is_by_status_and_the_clients_clock(
    status: int, reason: str, latency_ms: float, outcome: Outcome
) -> None:
    assert outcome_of(status, reason, latency_ms=latency_ms, slo_ms=50.0) is outcome


def test_what_workers_have_taken_adds_up_at_the_master() -> None:
    workers = SloCounts(), SloCounts()
    workers[0].count("a", Outcome.IN_TIME, latency_ms=5.0, now_s=1.0)
    workers[0].count("a", Outcome.REFUSED, latency_ms=2.0, now_s=1.5)
    workers[1].count("a", Outcome.REFUSED, latency_ms=4.0, now_s=1.0)
    workers[1].count("b", Outcome.UNSENT, latency_ms=0.0, now_s=2.0)
    master = SloCounts()
    for worker in workers:
        master.add(worker.take(), now_s=10.0)
        master.add(worker.take(), now_s=12.0)  # nothing twice
    workers[0].count("a", Outcome.IN_TIME, latency_ms=5.0, now_s=3.0)
    master.add(workers[0].take(), now_s=14.0)
    rows = {row.name: row for row in master.rows(14.0)}
    assert list(rows) == ["a", "b", "all"]
    assert rows["a"].refused_after_ms == 3.0
    total = rows["all"]
    assert (total.due, total.in_time, total.refused, total.unsent) == (5, 2, 2, 1)
    assert total.attainment == master.attainment == 0.4
    assert total.goodput_per_s == 0.5  # two, from the 10th to the 14th second


def test_goodput_now_forgets_what_is_ten_seconds_old() -> None:
    counts = SloCounts()
    for second in range(30):
        counts.tick(float(second))
        if second < 15:
            counts.count("a", Outcome.IN_TIME, latency_ms=1.0, now_s=second + 0.5)
    assert counts.rows(15.0)[-1].goodput_now_per_s == pytest.approx(0.0, abs=0.8)
    assert counts.rows(29.5)[-1].goodput_now_per_s == 0.0
    counts.clear()
    assert counts.rows(30.0) == []
    assert counts.attainment is None
