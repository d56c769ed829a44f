"""`remontoir gpu-check` as one command, rehearsed without a GPU: on stand-ins, and on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from loadtest.gpu_check import models, predictions
from loadtest.gpu_check.outcome import Document, Line, NotRun, exit_code_of, outcome_of, rows_of
from loadtest.gpu_check.predictions import Missed
from loadtest.gpu_check.product import is_near
from scheduler.actions import Code, Infer, InferResult, LoadResult, LoadWeights, Span
from scheduler.event_log import Handled
from scheduler.events import ActionFinished, Send, Tick
from tests.standin import driver
from tests.standin.driver import ROOT

SHORT = ("--quick", "--page-mb", "2", "--served", "mlp", "--cached", "2", "--seconds", "1")
PATIENT = ("--slo-ms", "1000")


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    reason = driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    return driver.environment(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def two_cores() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("server and client need a core each")


def gpu_check(
    out: Path, *arguments: str, **environ: str
) -> tuple["subprocess.CompletedProcess[str]", dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.gpu_check", *arguments, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    written = json.loads((out / "gpu-check.json").read_bytes())
    result = written["result"]
    assert isinstance(result, dict)
    return done, result


@pytest.mark.timeout(300)
def test_all_steps_in_one_command_on_stand_ins(
    tmp_path: Path, standins: dict[str, str], two_cores: None
) -> None:
    done, result = gpu_check(
        tmp_path, *SHORT, *PATIENT, "--load-mb", "4", "--models", "mlp", "--names", "3", **standins
    )
    assert result["not_run"] == [], done.stdout
    assert [step["step"] for step in result["steps"]] == ["pages", "engines", "product"]
    assert done.returncode == (1 if result["num_missed"] else 0)
    for step in result["steps"]:
        for line in step["lines"]:
            if "wrong" in line["what"] or "differ" in line["what"]:
                assert line["is_met"] is True, line
    assert "random LOADs: wrong bytes" in done.stdout
    assert "MISSED" in done.stdout or result["num_missed"] == 0
    product = result["steps"][-1]
    assert product["device"] == {"device": "cuda:0", "platform": "tensorrt_plan"}


@pytest.mark.timeout(300)
def test_the_product_through_a_cache_that_is_too_small_on_the_cpu(
    tmp_path: Path, two_cores: None
) -> None:
    done, result = gpu_check(
        tmp_path, "product", "--device", "cpu", *SHORT, *PATIENT, "--names", "4"
    )
    assert result["not_run"] == [], done.stdout
    [product] = result["steps"]
    figures = product["figures"]
    assert (figures["num_names"], figures["num_cached"], figures["cache_mb"]) == (4, 2, 12)
    assert [run["load"] for run in figures["runs"]] == [0.5, 0.9]
    for run in figures["runs"]:
        assert run["score"]["wrong"] == 0
        assert 0 < run["cold_share"] < 1
        assert run["exec_error"]["p1_ms"] <= run["exec_error"]["p99_ms"]
        assert run["load_error"]["num"] > 0


def test_a_broken_bar_is_exit_code_1_and_told_again(
    tmp_path: Path, standins: dict[str, str]
) -> None:
    done, result = gpu_check(
        tmp_path,
        *("pages", "--quick", "--page-mb", "2", "--load-mb", "4"),
        **standins,
        STANDIN_CORRUPT="150",
    )
    assert done.returncode == 1
    assert result["num_missed"] >= 1
    assert "MISSED pages: random LOADs: wrong bytes: 1, wanted 0" in done.stdout


def test_what_is_missing_is_one_line_and_exit_code_2(
    tmp_path: Path, standins: dict[str, str]
) -> None:
    done, result = gpu_check(tmp_path, "pages", **{**standins, "STANDIN_DEVICES": "0"})
    assert done.returncode == 2
    [not_run] = result["not_run"]
    assert "the driver shows 0 GPUs" in not_run["reason"]
    assert done.stdout.count("the driver shows 0 GPUs") == 1


def test_the_cpu_has_no_pages_to_check(tmp_path: Path) -> None:
    done, result = gpu_check(tmp_path, "pages", "--device", "cpu")
    assert done.returncode == 2
    assert result["not_run"][0]["is_missing"] is True


# --------------------------------------------------------------------------------------- outcome


def document(*is_met: bool | None) -> Document:
    lines = [Line("what", "1", "2", met) for met in is_met]
    return Document(step="pages", device={}, is_quick=True, figures={}, lines=lines)


@pytest.mark.parametrize(
    ("is_met", "not_run", "code"),
    [
        ((True, None), [], 0),
        ((True, False), [], 1),
        ((True,), [NotRun("engines", "no TensorRT", is_missing=True)], 2),
        ((False,), [NotRun("engines", "no TensorRT", is_missing=True)], 1),
        ((True,), [NotRun("engines", "it ended with signal 11", is_missing=False)], 1),
    ],
)
def test_exit_codes(is_met: tuple[bool | None, ...], not_run: list[NotRun], code: int) -> None:
    assert exit_code_of(outcome_of([document(*is_met)], not_run)) == code


def test_the_table_says_which_bar_was_missed() -> None:
    rows = rows_of(document(True, False, None).lines)
    assert [row[-1] for row in rows] == ["met", "MISSED", ""]


# ----------------------------------------------------------------------------------- predictions


def sent(action: Infer | LoadWeights) -> Handled:
    return Handled(0, Tick(), [Send("w", action)])


def finished(at_ns: int, result: InferResult | LoadResult) -> Handled:
    return Handled(at_ns, ActionFinished("w", result), [])


def test_errors_are_actual_minus_expected_of_what_went_well() -> None:
    infer = Infer(1, "m", 1, (1,), (1,), 0, 9, 100)
    load = LoadWeights(2, "m", 1, 0, 9, 50)
    failed = LoadWeights(3, "m", 1, 0, 9, 50)
    entries = [
        sent(infer),
        sent(load),
        sent(failed),
        finished(10, InferResult(1, Code.OK, exec=Span(0, 9, 130))),
        finished(11, LoadResult(2, Code.OK, load=Span(0, 9, 40))),
        finished(12, LoadResult(3, Code.LOAD_FAILED)),
    ]
    assert predictions.missed_of(entries) == [Missed("exec", 10, 30), Missed("load", 11, -10)]


def test_errors_of_nothing_are_none() -> None:
    assert predictions.errors_of([]) is None


# ---------------------------------------------------------------------------------------- models


def test_halved_weights_compute_nearly_the_same(tmp_path: Path) -> None:
    model = models.graphs.resnet((1, 1, 1, 1), input_type=1)
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)
    [right] = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    halved = models.halved(model)
    assert {tensor.data_type for tensor in halved.graph.initializer} == {10}  # FLOAT16
    [found] = ort.InferenceSession(halved.SerializeToString()).run(None, {"x": x})
    assert found.dtype == np.float32
    assert is_near(found, right)


def test_near_is_by_the_length_of_the_difference() -> None:
    right = np.array([3.0, 4.0], np.float32)
    assert is_near(np.array([3.0, 4.04], np.float32), right)
    assert not is_near(np.array([3.0, 4.06], np.float32), right)
    assert not is_near(np.array([np.nan, 4.0], np.float32), right)
    assert not is_near(right[:1], right)
