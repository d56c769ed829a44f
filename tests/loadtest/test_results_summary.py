"""Figures of merit against numbers worked out by hand."""

import msgspec
import numpy as np
import pytest

from loadtest.results import Collector, Summary, interval, summarise
from loadtest.results.summary import percentile
from scheduler.actions import Code
from scheduler.events import Cancelled, Expired, Failed, Reason, Rejected
from tests.loadtest.results_story import (
    Script,
    infer,
    inferred,
    load,
    loaded,
    ms,
    not_inferred,
    scheduler_with,
    served,
)

LATE = Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, "")
FULL = Rejected(Reason.OVERLOADED, "")
COLD = Rejected(Reason.COLD_MODEL, "")


def script() -> Script:
    return Script(Collector(scheduler_with("w0")))


def summary(told: Script, begin_ms: float = 0, end_ms: float = 2000) -> Summary:
    return summarise(told.collector.tables(), (ms(begin_ms), ms(end_ms)))


def test_every_outcome_is_counted_once_and_attainment_is_of_all() -> None:
    told = script()
    told.arrive(100, *range(1, 11), slo_ms=10)
    told.answer(104, (1, served()), (2, served()), (3, served()))
    told.answer(111, (4, served()))  # at the client 1 ms late
    told.answer(112, (5, FULL), (6, COLD), (7, LATE))
    told.answer(113, (8, Failed(Reason.ENGINE_ERROR, "")), (9, Cancelled()))
    run = summary(told).run
    counts = (run.good, run.late, run.rejected, run.expired, run.failed, run.cancelled, run.open)
    assert counts == (3, 1, 2, 1, 1, 1, 1)
    assert sum(counts) == run.requests == 10
    assert run.attainment == 0.3
    assert run.goodput_per_s == 1.5  # three in two seconds
    assert run.reasons == {
        "cold_model": 1, "deadline_exceeded_executing": 1, "engine_error": 1, "overloaded": 1,
    }  # fmt: skip


def test_the_window_is_of_arrivals_and_ends_before_its_end() -> None:
    told = script()
    for request_id, at_ms in enumerate((0, 99.9, 100, 500, 1099.9, 1100), start=1):
        told.arrive(at_ms, request_id, slo_ms=1000)
    told.answer(1500, *[(i, served()) for i in range(1, 7)])  # just in time for 4
    run = summary(told, 100, 1100).run
    assert (run.requests, run.good, run.late) == (3, 2, 1)
    assert run.goodput_per_s == 2.0


def test_latencies_are_of_good_requests_and_refusals_of_rejected_ones() -> None:
    told = script()
    told.arrive(0, *range(1, 101), slo_ms=200)
    for number in range(1, 100):
        told.answer(number, (number, served()))
    told.answer(900, (100, served()))
    told.arrive(1000, 101, 102, 103)
    told.answer(1000.5, (101, FULL))
    told.answer(1002, (102, FULL))
    told.answer(1010, (103, LATE))
    run = summary(told).run
    assert (run.latency_p50_ms, run.latency_p99_ms, run.latency_p999_ms) == (50, 99, 99)
    assert (run.refusal_p50_ms, run.refusal_p99_ms) == (0.5, 2)


def test_streams_models_and_tenants_are_told_apart() -> None:
    told = script()
    told.arrive(0, 1, 2, model="a", stream=0, tenant="x")
    told.arrive(0, 3, model="b", stream=0, tenant="y")
    told.arrive(0, 4, model="b", stream=5, tenant="y")
    told.answer(5, (1, served()), (2, FULL), (3, served()), (4, served()))
    found = summary(told)
    assert {k: (g.requests, g.good) for k, g in found.streams.items()} == {0: (3, 2), 5: (1, 1)}
    assert {k: (g.requests, g.good) for k, g in found.models.items()} == {"a": (2, 1), "b": (2, 2)}
    assert {k: g.attainment for k, g in found.tenants.items()} == {"x": 0.5, "y": 1.0}
    assert [group.name for group in found.models.values()] == ["a", "b"]


def test_work_and_errors_come_from_actions() -> None:
    told = script()
    told.arrive(0, 1, 2, 3, 4, model="a", slo_ms=30)
    told.arrive(0, 5, model="b", slo_ms=30)
    told.send(0, load(1, start_ms=2, model="b"))
    told.finish(10, loaded(1, 2, 10))
    told.send(0, infer(2, 1, 2, 3, start_ms=2, model="a"))  # planned to end at 7
    told.finish(8, inferred(2, 2.1, 7.5), [(i, served(rows=3)) for i in (1, 2, 3)])
    told.send(8, infer(3, 4, start_ms=10, model="a"))
    told.finish(15, inferred(3, 10, 14), [(4, served())])
    told.send(8, infer(4, 5, start_ms=15, model="b"))
    told.finish(20, not_inferred(4, Code.TOO_LATE, 20))
    told.answer(31, (5, LATE))
    found = summary(told)
    run = found.run
    assert run.mean_batch == 2.0
    assert run.loads_per_s == 0.5
    assert run.exec_ms_per_good == pytest.approx((5.4 + 4) / 4)
    assert (run.prediction_error_p1_us, run.prediction_error_p99_us) == (-1000, 400)
    assert (run.completion_error_p1_us, run.completion_error_p99_us) == (-1000, 500)
    assert (found.models["a"].loads_per_s, found.models["b"].loads_per_s) == (0, 0.5)
    assert found.models["b"].exec_ms_per_good is None
    assert found.models["b"].prediction_error_p50_us is None


def test_actions_of_the_warm_up_do_not_count() -> None:
    told = script()
    told.send(0, infer(1, 1, start_ms=1), infer(2, 2, start_ms=7))
    told.send(100, infer(3, 3, start_ms=101))
    told.finish(200, inferred(1, 1, 99))
    told.finish(200, inferred(3, 101, 107))
    run = summary(told, 100, 1100).run
    assert run.prediction_error_p1_us == run.prediction_error_p99_us == 1000


def test_a_streams_mean_batch_counts_a_batch_once_however_many_see_it() -> None:
    told = script()
    told.arrive(0, *range(1, 5))
    told.answer(5, *[(i, served(rows=3)) for i in (1, 2, 3)], (4, served(rows=1)))
    assert summary(told).streams[0].mean_batch == pytest.approx(2.0)


def test_nothing_to_measure_is_none_and_not_zero() -> None:
    run = summary(script()).run
    assert (run.requests, run.goodput_per_s) == (0, 0.0)
    assert run.attainment is run.latency_p50_ms is run.mean_batch is run.exec_ms_per_good is None
    assert summary(script()).streams == {}


def test_the_cores_wall_time_is_shared_among_all_requests() -> None:
    told = script()
    told.arrive(0, 1, 2, 3, 4)
    tables = told.collector.tables()
    assert summarise(tables, (0, 10), handle_wall_ns=60_000).handle_us == 15
    assert summarise(tables, (0, 10)).handle_us is None
    assert summarise(tables, (0, 10)).outliers is None
    assert summarise(tables, (0, 10), outliers=3).outliers == 3
    assert summarise(script().collector.tables(), (0, 10), handle_wall_ns=1).handle_us is None


def test_an_empty_window_is_an_error_with_its_ends() -> None:
    with pytest.raises(ValueError, match=r"\[5 ns, 5 ns\) is empty"):
        summarise(script().collector.tables(), (5, 5))


def test_a_summary_is_json() -> None:
    found = summary(script())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Summary) == found


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1, 9)]
)
def test_a_percentile_is_an_observed_value(share: float, value: int) -> None:
    assert percentile(np.array([9, 3, 1, 2]), share) == value


@pytest.mark.parametrize(
    ("values", "mean", "half_width"),
    [
        ([1.0, 2.0, 3.0], 2.0, 4.302653 / 3**0.5),
        ([5.0] * 8, 5.0, 0.0),
        ([float(i) for i in range(31)], 15.0, 2.042272 * (992 / 12) ** 0.5 / 31**0.5),
        ([0.0, 2.0] * 30, 1.0, 2.042272 * (60 / 59 / 60) ** 0.5),
    ],
)
def test_an_interval_is_students_t(values: list[float], mean: float, half_width: float) -> None:
    assert interval(values) == pytest.approx((mean, half_width), rel=1e-6)


def test_an_interval_reads_as_mean_and_half_width() -> None:
    assert str(interval([600.0, 610.0, 620.0])) == "610 ± 25"


def test_two_seeds_are_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 3 seeds, not 2"):
        interval([1.0, 2.0])
