"""What a collector writes down, to the nanosecond, of events played by hand."""

import pytest

from loadtest.results import Collector, Tables
from loadtest.results.tables import ACTION_COLUMNS, DEVICE_COLUMNS, REQUEST_COLUMNS, Table
from scheduler.actions import Code, EvictResult
from scheduler.events import (
    Cancelled,
    Expired,
    Failed,
    Reason,
    Rejected,
    RequestArrived,
    RequestsArrived,
    WorkerJoined,
    WorkerLost,
)
from tests.loadtest.results_story import (
    Script,
    evict,
    infer,
    inferred,
    load,
    loaded,
    ms,
    not_inferred,
    scheduler_with,
    served,
)


def collector(**options: int) -> Collector:
    return Collector(scheduler_with("w0", "w1"), **options)


def row(table: Table, index: int) -> dict[str, object]:
    """As words and numbers."""
    return {
        name: table.texts(name)[index] if name in table.names else table[name][index].item()
        for name in table.columns
    }


# ---------------------------------------------------------------------- requests


def test_a_served_request_is_written_with_everything_its_answer_says() -> None:
    seen = collector(client_delay_ns=ms(0.3))
    script = Script(seen)
    script.arrive(1, 7, model="resnet", slo_ms=10, stream=2, tenant="acme")
    script.answer(9, (7, served("w1", 4, cold=True)))
    assert row(seen.tables().requests, 0) == {
        "request_id": 7,
        "stream": 2,
        "model": "resnet",
        "tenant": "acme",
        "arrival_ns": 1_000_000,
        "slo_ns": 10_000_000,
        "answered_ns": 9_300_000,
        "outcome": "served",
        "reason": "",
        "is_good": True,
        "worker": "w1",
        "batch_rows": 4,
        "is_cold": True,
        "predicted_ns": 9_000_000,
        "queue_ns": 1_000_000,
        "load_ns": 2_000_000,
        "exec_ns": 5_000_000,
    }


@pytest.mark.parametrize(("answered_ms", "is_good"), [(9.7, True), (9.700001, False)])
def test_good_is_what_the_client_has_within_the_slo(answered_ms: float, is_good: bool) -> None:
    seen = collector(client_delay_ns=ms(0.3))
    script = Script(seen)
    script.arrive(0, 1, slo_ms=10)
    script.answer(answered_ms, (1, served()))
    requests = seen.tables().requests
    assert requests["is_good"].tolist() == [is_good]
    assert requests.texts("outcome").tolist() == ["served"]


@pytest.mark.parametrize(
    ("outcome", "name", "reason", "predicted_ns"),
    [
        (Rejected(Reason.OVERLOADED, "x", predicted_ns=5), "rejected", "overloaded", 5),
        (Rejected(Reason.COLD_MODEL, "x"), "rejected", "cold_model", -1),
        (Expired(Reason.NO_WORKER, "x"), "expired", "no_worker", -1),
        (Failed(Reason.ENGINE_ERROR, "x"), "failed", "engine_error", -1),
        (Cancelled(), "cancelled", "", -1),
    ],
)
def test_every_other_outcome_has_its_name_and_reason(outcome, name, reason, predicted_ns) -> None:
    seen = collector()
    script = Script(seen)
    script.arrive(0, 1)
    script.answer(3, (1, outcome))
    found = row(seen.tables().requests, 0)
    assert (found["outcome"], found["reason"], found["predicted_ns"]) == (
        name, reason, predicted_ns,
    )  # fmt: skip
    assert (found["answered_ns"], found["is_good"], found["worker"]) == (ms(3), False, "")


def test_requests_are_ordered_by_id_and_those_open_are_said_to_be() -> None:
    seen = collector()
    script = Script(seen)
    script.arrive(0, 1, 2, 3)
    script.answer(5, (3, served()), (2, served()))
    requests = seen.tables().requests
    assert requests["request_id"].tolist() == [1, 2, 3]
    assert requests.texts("outcome").tolist() == ["open", "served", "served"]
    assert requests["answered_ns"].tolist() == [-1, ms(5), ms(5)]
    script.answer(6, (1, served()))
    assert seen.num_answered == 3
    assert seen.tables().requests["answered_ns"].tolist() == [ms(6), ms(5), ms(5)]


def test_a_request_nobody_announced_is_taken_from_its_event() -> None:
    seen = collector(origin_ns=ms(100))
    one = RequestArrived(1, "m", ms(101), ms(111))
    two = RequestArrived(2, "n", ms(102), ms(122))
    seen(ms(101), one, [])
    seen(ms(102), RequestsArrived((two,)), [])
    Script(seen).answer(108, (1, served()), (2, served()))
    requests = seen.tables().requests
    assert requests.texts("model").tolist() == ["m", "n"]
    assert requests["arrival_ns"].tolist() == [ms(1), ms(2)]
    assert requests["slo_ns"].tolist() == [ms(10), ms(20)]
    assert requests["answered_ns"].tolist() == [ms(8), ms(8)]
    assert requests["stream"].tolist() == [0, 0]


def test_an_answer_to_nobody_is_an_error_that_names_the_request() -> None:
    with pytest.raises(ValueError, match="request 5 was answered and had not arrived, or twice"):
        Script(collector()).answer(1, (5, served()))


# ---------------------------------------------------------------------- actions


def test_an_execution_is_written_with_plan_and_truth() -> None:
    seen = collector()
    script = Script(seen)
    script.arrive(0, 1, 2, 3, slo_ms=10)
    script.send(1, infer(11, 1, 2, 3, start_ms=3, padded=4))
    late = [(1, served()), (2, served()), (3, Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, ""))]
    script.finish(9, inferred(11, 3.5, 8.75), late)
    assert row(seen.tables().actions, 0) == {
        "action_id": 11,
        "worker": "w0",
        "kind": "infer",
        "model": "m",
        "rows": 3,
        "executed_rows": 4,
        "num_requests": 3,
        "sent_ns": ms(1),
        "planned_start_ns": ms(3),
        "expected_ns": ms(5),
        "begin_ns": ms(3.5),
        "end_ns": ms(8.75),
        "heard_ns": ms(9),
        "code": "OK",
        "num_good": 2,
    }


def test_loads_and_evicts_are_actions_too() -> None:
    seen = collector()
    script = Script(seen)
    script.send(0, evict(1, "old"), load(2, start_ms=2))
    script.finish(1, EvictResult(1, Code.OK, "", ms(0.5)))
    script.finish(11, loaded(2, 2, 10.5))
    first, second = (row(seen.tables().actions, index) for index in (0, 1))
    assert (first["kind"], first["model"], first["begin_ns"]) == ("evict", "old", ms(0.5))
    assert (second["kind"], second["expected_ns"], second["end_ns"]) == ("load", ms(8), ms(10.5))
    assert (second["rows"], second["num_requests"]) == (0, 0)


def test_what_did_not_run_has_a_code_and_no_span() -> None:
    seen = collector()
    script = Script(seen)
    script.send(0, infer(1, 5, start_ms=1), load(2, start_ms=1))
    script.send(0, infer(3, 6, start_ms=1), worker_id="w1")
    script.send(0, infer(4, 7, start_ms=1))
    script.finish(4, not_inferred(1, Code.TOO_LATE, 3))
    seen(ms(5), WorkerLost("w1", "gone"), [])
    script.finish(6, inferred(3, 1, 2), worker_id="w1")  # crossed the loss: not written twice
    script.finish(7, loaded(2, 1, 1, Code.LOAD_FAILED))
    actions = seen.tables().actions
    assert actions.texts("code").tolist() == ["TOO_LATE", "LOAD_FAILED", "LOST", "OPEN"]
    assert actions["begin_ns"].tolist() == actions["end_ns"].tolist() == [-1] * 4
    assert actions["heard_ns"].tolist() == [ms(4), ms(7), ms(5), -1]


# ---------------------------------------------------------------------- devices


def test_a_sample_has_the_pages_of_every_device() -> None:
    scheduler = scheduler_with("w0", "w1")
    seen = Collector(scheduler, origin_ns=ms(10))
    scheduler.devices["w0"].pages_free = 6
    scheduler.devices["w0"].schedule_ahead_ns = ms(4)
    seen.sample(ms(110), scheduler)
    devices = seen.tables().devices
    assert devices.texts("worker").tolist() == ["w0", "w1"]
    assert devices["at_ns"].tolist() == [ms(100), ms(100)]
    assert devices["pages_free"].tolist() == [6, 16]
    assert devices["pages_resident"].tolist() == [10, 0]
    assert devices["schedule_ahead_ns"].tolist() == [ms(4), ms(2)]


def test_busy_shares_are_exact_between_samples() -> None:
    scheduler = scheduler_with("w0", "w1")
    seen = Collector(scheduler)
    script = Script(seen)
    script.send(0, infer(1, 5, start_ms=2), infer(2, 6, start_ms=8), load(3, start_ms=5))
    for at_ms in (10, 20, 30, 40):
        seen.sample(ms(at_ms), scheduler)
    script.finish(30, loaded(3, 5, 25))
    script.finish(30, inferred(2, 8, 14))
    script.finish(30, inferred(1, 2, 7))
    devices = seen.tables().devices
    of_w0 = devices.rows(devices.has("worker", "w0"))
    assert of_w0["exec_busy_share"].tolist() == pytest.approx([0.7, 0.4, 0, 0])
    assert of_w0["load_busy_share"].tolist() == pytest.approx([0.5, 1, 0.5, 0])
    of_w1 = devices.rows(devices.has("worker", "w1"))
    assert of_w1["exec_busy_share"].tolist() == [0, 0, 0, 0]


def test_the_first_share_of_a_worker_that_joins_later_is_of_its_own_time() -> None:
    scheduler = scheduler_with("w0")
    seen = Collector(scheduler, origin_ns=ms(100))
    script = Script(seen)
    joined = WorkerJoined("w1", scheduler.devices["w0"].spec, (), ())
    seen(ms(1130), joined, scheduler.handle(joined, ms(1130)))
    script.send(1130, infer(1, 5, start_ms=1130), load(2, start_ms=1135), worker_id="w1")
    seen.sample(ms(1150), scheduler)
    script.finish(1150, inferred(1, 1130, 1140), worker_id="w1")
    script.finish(1150, loaded(2, 1135, 1150), worker_id="w1")
    devices = seen.tables().devices
    of_w1 = devices.rows(devices.has("worker", "w1"))
    assert of_w1["exec_busy_share"].tolist() == pytest.approx([0.5])
    assert of_w1["load_busy_share"].tolist() == pytest.approx([0.75])


# ---------------------------------------------------------------------- tables


def test_an_empty_run_has_all_columns() -> None:
    tables = collector().tables()
    assert [list(table.columns) for table in tables.named().values()] == [
        list(REQUEST_COLUMNS), list(ACTION_COLUMNS), list(DEVICE_COLUMNS),
    ]  # fmt: skip
    assert isinstance(tables, Tables)
    assert [len(table) for table in tables.named().values()] == [0, 0, 0]
    assert tables.requests.texts("model").tolist() == []


def test_columns_of_different_length_are_no_table() -> None:
    requests = collector().tables().requests
    seen = collector()
    Script(seen).arrive(0, 1)
    more = seen.tables().requests
    with pytest.raises(ValueError, match=r"differ in length: \{'slo_ns': 1, 'stream': 0\}"):
        Table({"slo_ns": more["slo_ns"], "stream": requests["stream"]})


def test_a_word_that_does_not_occur_matches_nothing() -> None:
    seen = collector()
    Script(seen).arrive(0, 1)
    requests = seen.tables().requests
    assert requests.code("model", "m") == 0
    assert requests.code("model", "never") == -1
    assert requests.has("model", "never").tolist() == [False]
