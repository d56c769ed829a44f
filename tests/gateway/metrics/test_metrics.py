import platform
from collections.abc import Mapping, Sequence

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics.metrics import MAX_WORKER_NAMES, Metrics
from gateway.metrics.page import page_parts
from gateway.metrics.tallies import ROWS, Tally
from gateway.metrics.text import MODELS_PER_PART, ROWS_PER_PART
from gateway.workers.gpu_figures import FleetFigures, GpuFigures
from gateway.workers.link import Connection
from scheduler.actions import (
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Result,
    Span,
)
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    ModelAdded,
    ModelForgotten,
    Reply,
    Send,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.wire import DeviceSample
from tests.gateway.http_doubles import (
    PuppetDevice,
    PuppetScheduler,
    model_spec,
    ms,
    served,
)

NOW = ms(1000)


class Observed:
    """Metrics with what they show."""

    def __init__(self) -> None:
        self.metrics = Metrics(version="1.2.3", page_bytes=16 << 20)

    def event(self, event: Event, *commands: Command) -> None:
        self.metrics.on_event(event, NOW)
        self.metrics.on_commands(event, commands, NOW)

    def finished(self, result: Result, worker_id: str = "w#1-1") -> None:
        self.event(ActionFinished(worker_id, result))

    def value(self, name: str, *, prefix: str = "remontoir_", **labels: str) -> float | None:
        """Read by the client library's own parser."""
        for family in text_string_to_metric_families(self.page()):
            for sample in family.samples:
                if sample.name == f"{prefix}{name}" and sample.labels == labels:
                    return float(sample.value)
        return None

    def page(self) -> str:
        return "".join(page_parts(self.metrics))


def infer(action_id: int, *rows: int, expected_ns: int = ms(2)) -> Send:
    ids = tuple(range(len(rows)))
    return Send("w#1-1", Infer(action_id, "mlp", sum(rows), ids, rows, 0, 0, expected_ns))


def span(duration_ns: int) -> Span:
    return Span(0, duration_ns + 5, duration_ns)


def test_a_tally_counts_a_value_on_a_bound_below_it() -> None:
    tally = Tally(ROWS)
    for value in (0, 1, 2, 64, 65):
        tally.observe(value)
    assert tally.counts == [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert tally.total == 132


def test_served_requests_are_counted_with_their_figures() -> None:
    observed = Observed()
    tallies = observed.metrics.of_model("mlp")
    figures = served(predicted_ns=ms(5), queue_ns=ms(1.5), is_cold_start=True)
    tallies.observe_served(figures, latency_ns=ms(4), slo_ns=ms(50))
    tallies.observe_served(served(), latency_ns=ms(6), slo_ns=ms(50))
    assert observed.value("requests_total", model="mlp", outcome="served", reason="") == 2
    assert observed.value("cold_starts_total", model="mlp") == 1
    assert observed.value("request_duration_seconds_count", model="mlp") == 2
    assert observed.value("request_duration_seconds_sum", model="mlp") == pytest.approx(0.01)
    assert observed.value("request_duration_seconds_bucket", model="mlp", le="0.005") == 1
    assert observed.value("queue_duration_seconds_bucket", model="mlp", le="0.002") == 2
    assert observed.value("slack_seconds_bucket", model="mlp", le="0.05") == 2
    assert observed.value("slack_seconds_bucket", model="mlp", le="0.02") == 0
    # the first was 1 ms faster than predicted, the second 1 ms slower
    error = {"kind": "request"}
    assert observed.value("prediction_error_seconds_bucket", **error, le="-0.001") == 1
    assert observed.value("prediction_error_seconds_bucket", **error, le="0.0") == 1
    assert observed.value("prediction_error_seconds_bucket", **error, le="0.001") == 2
    assert observed.value("prediction_error_seconds_count", **error) == 2
    # a sum that falls would read as a restart
    assert observed.value("prediction_error_seconds_sum", **error) is None


def test_refusals_are_counted_by_outcome_and_reason() -> None:
    observed = Observed()
    tallies = observed.metrics.of_model("mlp")
    tallies.observe_refused("rejected", "cold_model", latency_ns=ms(0.1))
    tallies.observe_refused("expired", "deadline_exceeded_queued", latency_ns=ms(50))
    observed.metrics.observe_unnamed("invalid", "not_found", latency_ns=ms(0.1))
    observed.metrics.observe_unnamed("rejected", "overloaded", latency_ns=ms(0.3))
    rejected = {"model": "mlp", "reason": "cold_model"}
    assert observed.value("requests_total", outcome="rejected", **rejected) == 1
    assert observed.value("rejections_total", **rejected) == 1
    assert observed.value("rejections_total", model="", reason="overloaded") == 1
    assert observed.value("rejections_total", model="", reason="not_found") is None
    assert observed.value("requests_total", model="", outcome="invalid", reason="not_found") == 1
    assert observed.value("request_duration_seconds_bucket", model="mlp", le="0.0005") == 1


def test_executions_are_counted_with_rows_duration_and_error_of_the_prediction() -> None:
    observed = Observed()
    observed.event(Tick(), infer(1, 1, 2), Reply(1, served()))
    observed.finished(InferResult(1, Code.OK, exec=span(ms(3))))
    assert observed.value("batch_size_bucket", model="mlp", le="2.0") == 0
    assert observed.value("batch_size_bucket", model="mlp", le="3.0") == 1
    assert observed.value("exec_duration_seconds_sum", model="mlp") == pytest.approx(0.003)
    error = {"kind": "exec"}  # 1 ms above what was expected
    assert observed.value("prediction_error_seconds_bucket", **error, le="0.0005") == 0
    assert observed.value("prediction_error_seconds_bucket", **error, le="0.001") == 1
    assert observed.value("action_results_total", action="infer", code="ok") == 1


def test_loads_and_evictions_are_counted() -> None:
    observed = Observed()
    observed.event(
        Tick(),
        Send("w#1-1", LoadWeights(1, "mlp", 2, 0, 0, ms(10))),
        Send("w#1-1", LoadWeights(2, "mlp", 2, 0, 0, ms(10))),
        Send("w#1-1", EvictWeights(3, "mlp", 0, 0)),
        Send("w#1-1", EvictWeights(4, "mlp", 0, 0)),
    )
    observed.finished(LoadResult(1, Code.OK, load=span(ms(8))))
    observed.finished(LoadResult(2, Code.LOAD_FAILED))
    observed.finished(EvictResult(3, Code.OK))
    observed.finished(EvictResult(4, Code.WEIGHTS_IN_USE))
    assert observed.value("loads_total", model="mlp", result="ok") == 1
    assert observed.value("loads_total", model="mlp", result="failed") == 1
    assert observed.value("load_duration_seconds_sum", model="mlp") == pytest.approx(0.008)
    error = {"kind": "load"}  # 2 ms below
    assert observed.value("prediction_error_seconds_bucket", **error, le="-0.005") == 0
    assert observed.value("prediction_error_seconds_bucket", **error, le="-0.002") == 1
    assert observed.value("evictions_total", model="mlp") == 1
    assert observed.value("action_results_total", action="evict", code="weights_in_use") == 1


def test_a_failed_execution_has_no_duration() -> None:
    observed = Observed()
    observed.event(Tick(), infer(1, 1))
    observed.finished(InferResult(1, Code.TOO_LATE))
    assert observed.value("exec_duration_seconds_count", model="mlp") is None
    assert observed.value("action_results_total", action="infer", code="too_late") == 1


def test_unknown_doubled_and_orphaned_results_are_not_counted() -> None:
    observed = Observed()
    observed.event(Tick(), infer(1, 1), infer(2, 1))
    observed.finished(InferResult(9, Code.OK, exec=span(ms(3))))
    observed.finished(InferResult(1, Code.OK, exec=span(ms(3))), worker_id="other#1-1")
    observed.finished(InferResult(1, Code.OK, exec=span(ms(3))))
    observed.finished(InferResult(1, Code.OK, exec=span(ms(3))))
    observed.event(WorkerLost("w#1-1", "silent"))
    observed.finished(InferResult(2, Code.OK, exec=span(ms(3))))
    assert observed.value("exec_duration_seconds_count", model="mlp") == 1
    assert observed.metrics._sent == {}


def test_a_promise_is_met_late_rejected_or_failed_and_clients_faults_are_none_of_them() -> None:
    observed = Observed()
    tallies = observed.metrics.of_model("mlp")
    tallies.observe_served(served(), latency_ns=ms(4), slo_ns=ms(50))
    for outcome, reason in (
        ("expired", "deadline_exceeded_queued"),
        ("expired", "deadline_exceeded_executing"),
        ("rejected", "slo_infeasible_now"),
        ("rejected", "cold_model"),
        ("rejected", "larger_than_cache"),
        ("failed", "engine_error"),
        # the client's own
        ("rejected", "slo_infeasible_ever"),
        ("rejected", "would_queue"),
        ("rejected", "quota_exceeded"),
        ("failed", "invalid_input"),
        ("invalid", "bad_request"),
        ("cancelled", "queued"),
    ):
        tallies.observe_refused(outcome, reason, latency_ns=ms(1))
    observed.metrics.observe_unnamed("rejected", "overloaded", latency_ns=ms(1))
    for result, count in {"met": 1, "late": 2, "rejected": 3, "failed": 1}.items():
        assert observed.value("slo_requests_total", model="mlp", result=result) == count
    for result, count in {"met": 0, "late": 0, "rejected": 1, "failed": 0}.items():
        assert observed.value("slo_requests_total", model="", result=result) == count
    assert observed.metrics.totals.num_served == 1


def test_what_a_no_took_is_shown_by_its_reason() -> None:
    observed = Observed()
    tallies = observed.metrics.of_model("mlp")
    tallies.observe_refused("rejected", "cold_model", latency_ns=ms(0.15))
    tallies.observe_refused("expired", "deadline_exceeded_queued", latency_ns=ms(50))
    observed.metrics.observe_unnamed("rejected", "overloaded", latency_ns=ms(0.05))
    name = "refusal_duration_seconds"
    assert observed.value(f"{name}_bucket", reason="cold_model", le="0.0001") == 0
    assert observed.value(f"{name}_bucket", reason="cold_model", le="0.0002") == 1
    assert observed.value(f"{name}_bucket", reason="overloaded", le="5e-05") == 1
    assert observed.value(f"{name}_count", reason="deadline_exceeded_queued") is None


def test_every_phase_is_a_histogram() -> None:
    observed = Observed()
    tallies = observed.metrics.of_model("mlp")
    cold = served(is_cold_start=True, load_ns=ms(9))
    tallies.observe_served(cold, latency_ns=ms(14), slo_ns=ms(50))
    tallies.observe_served(served(), latency_ns=ms(4), slo_ns=ms(50))
    observed.event(Tick(), infer(1, 1))
    observed.finished(
        InferResult(1, Code.OK, input=span(ms(0.04)), exec=span(ms(3)), output=span(ms(0.3)))
    )
    assert observed.value("load_wait_duration_seconds_count", model="mlp") == 1
    assert observed.value("load_wait_duration_seconds_sum", model="mlp") == 0.009
    assert observed.value("input_duration_seconds_bucket", model="mlp", le="5e-05") == 1
    assert observed.value("output_duration_seconds_bucket", model="mlp", le="0.0002") == 0
    assert observed.value("output_duration_seconds_bucket", model="mlp", le="0.0005") == 1
    assert observed.value("exec_duration_seconds_count", model="mlp") == 1


def test_bytes_of_weights_are_counted_as_they_come_and_go() -> None:
    observed = Observed()
    observed.event(ModelAdded(model_spec()))  # 20 MiB
    orders = [LoadWeights(1, "mlp", 2, 0, 0, 0), EvictWeights(2, "mlp", 0, 0)]
    observed.event(Tick(), *[Send("w#1-1", order) for order in orders])
    observed.finished(LoadResult(1, Code.OK, load=Span(ms(10), ms(18), ms(8))))
    observed.finished(EvictResult(2, Code.OK))
    assert observed.value("weights_loaded_bytes_total", model="mlp") == 20 << 20
    assert observed.value("weights_evicted_bytes_total", model="mlp") == 20 << 20
    assert observed.value("lane_busy_seconds_total", worker="w", lane="load") == 0.008
    observed.event(ModelForgotten("mlp"))
    observed.event(Tick(), Send("w#1-1", LoadWeights(3, "mlp", 2, 0, 0, 0)))
    observed.finished(LoadResult(3, Code.OK))
    assert observed.value("weights_loaded_bytes_total", model="mlp") == 20 << 20


def joined(worker_id: str) -> WorkerJoined:
    return WorkerJoined(worker_id, PuppetDevice({}).spec, (), ())


def test_a_worker_is_up_by_its_name_whatever_its_incarnation() -> None:
    observed = Observed()
    observed.event(joined("w#1-1"))
    assert observed.value("worker_up", worker="w") == 1
    observed.event(joined("w#2-1"))  # it is back before the loss of the first is noticed
    observed.event(WorkerLost("w#1-1", "silent"))
    assert observed.value("worker_up", worker="w") == 1
    observed.event(WorkerLost("w#2-1", "silent"))
    assert observed.value("worker_up", worker="w") == 0


def test_workers_names_are_bounded() -> None:
    observed = Observed()
    for number in range(MAX_WORKER_NAMES + 5):
        observed.event(joined(f"w{number}#1-1"))
    assert observed.value("worker_up", worker="w0") == 1
    assert observed.value("worker_up", worker=f"w{MAX_WORKER_NAMES}") is None


def test_gauges_are_read_from_the_scheduler() -> None:
    observed = Observed()
    assert observed.value("queue_depth", model="mlp") is None
    scheduler = PuppetScheduler({"mlp": model_spec()})
    scheduler.devices = {"w#1-1": PuppetDevice({}), "w#2-1": PuppetDevice({})}
    scheduler.anomalies = {"unknown_action": 4}
    observed.metrics.watch(scheduler)
    assert observed.value("queue_depth", model="mlp") == 3
    assert observed.value("weights_pages", worker="w", state="free") == 124
    assert observed.value("weights_page_bytes") == 16 << 20
    assert observed.value("anomalies_total", kind="unknown_action") == 4
    assert observed.value("schedule_ahead_seconds", worker="w") == 0.00025
    assert observed.value("gap_rate", worker="w") == 0.1
    assert observed.value("held_executions_total", worker="w") == 50
    assert observed.value("held_executions_late_total", worker="w") == 5
    assert observed.value("outliers_total", worker="w") == 2
    python = platform.python_version()
    assert observed.value("build_info", version="1.2.3", python=python) == 1


def test_odd_messages_of_workers_are_read_from_the_link() -> None:
    class Link:
        malformed_frames = 3
        unknown_senders = 2
        unreadable_replies = num_superseded = 1
        refused_connections: Mapping[str, int] = {"unknown_key": 4}
        gpus: Mapping[str, GpuFigures] = {}

        def connections(self) -> Sequence[Connection]:
            return [Connection("w#1-1", "w", rtt_ns=80_000, clock_offset_ns=-ms(1500))]

    observed = Observed()
    assert observed.value("odd_worker_messages_total", kind="malformed") is None
    observed.metrics.watch_link(Link())
    assert observed.value("odd_worker_messages_total", kind="malformed") == 3
    assert observed.value("odd_worker_messages_total", kind="unknown_sender") == 2
    assert observed.value("odd_worker_messages_total", kind="unreadable_there") == 1
    assert observed.value("worker_connections_refused_total", reason="unknown_key") == 4
    assert observed.value("worker_clock_offset_seconds", worker="w") == -1.5
    assert observed.value("worker_round_trip_seconds", worker="w") == 0.00008


class GpuLink:
    """Workers whose GPUs have said something."""

    malformed_frames = unknown_senders = unreadable_replies = num_superseded = 0
    refused_connections: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.fleet = FleetFigures()
        self.gpus: Mapping[str, GpuFigures] = self.fleet.by_name

    def connections(self) -> Sequence[Connection]:
        return []


def test_what_gpus_say_of_themselves_is_shown_in_base_units() -> None:
    observed, link = Observed(), GpuLink()
    observed.metrics.watch_link(link)
    told = DeviceSample(
        10_000, 299_500, 1410, 93, 50 << 30, 80 << 30, 67, ("sw_power_cap", "of a later version")
    )
    link.fleet.observe("w", told)
    link.fleet.observe("w", msgspec.structs.replace(told, energy_mj=12_500))
    assert observed.value("gpu_energy_joules_total", worker="w") == 2.5
    assert observed.value("gpu_power_watts", worker="w") == 299.5
    assert observed.value("gpu_sm_clock_hertz", worker="w") == 1.41e9
    assert observed.value("gpu_utilisation_ratio", worker="w") == 0.93
    assert observed.value("gpu_memory_used_bytes", worker="w") == 50 << 30
    assert observed.value("gpu_memory_total_bytes", worker="w") == 80 << 30
    assert observed.value("gpu_temperature_celsius", worker="w") == 67
    assert observed.value("gpu_clock_limited", worker="w", reason="sw_power_cap") == 1
    assert observed.value("gpu_clock_limited", worker="w", reason="hw_slowdown") == 0
    assert "of a later version" not in observed.page()  # a worker does not choose labels either


def test_a_figure_that_a_gpu_does_not_tell_is_absent_and_not_zero() -> None:
    observed, link = Observed(), GpuLink()
    observed.metrics.watch_link(link)
    link.fleet.observe("w", DeviceSample(power_mw=0))
    assert observed.value("gpu_power_watts", worker="w") == 0
    assert [name for name in observed.page().split() if name.startswith("remontoir_gpu_")] == [
        "remontoir_gpu_power_watts",
        "remontoir_gpu_power_watts",
        'remontoir_gpu_power_watts{worker="w"}',
    ]


def test_a_fleet_of_cpus_has_nothing_of_gpus_on_its_page() -> None:
    observed, link = Observed(), GpuLink()
    observed.metrics.watch_link(link)
    link.fleet.observe("w", None)
    link.fleet.disconnect("w")
    assert "remontoir_gpu_" not in observed.page()


def test_energy_goes_on_from_one_worker_of_a_name_to_the_next() -> None:
    observed, link = Observed(), GpuLink()
    observed.metrics.watch_link(link)

    def told(energy_mj: int | None) -> float | None:
        link.fleet.observe("w", DeviceSample(energy_mj=energy_mj))
        return observed.value("gpu_energy_joules_total", worker="w")

    assert told(None) is None
    assert told(700_000) == 0
    assert told(701_000) == 1
    assert told(None) == 1
    assert told(703_000) == 3
    link.fleet.disconnect("w")
    assert observed.value("gpu_energy_joules_total", worker="w") == 3
    assert told(900_000) == 3  # what the card used meanwhile was not for us
    assert told(901_000) == 4
    link.fleet.disconnect("w")
    assert told(0) == 4  # a sampler that sums up powers starts at nothing
    assert told(2_000) == 6
    assert told(500) == 6  # a counter that fell: never down
    assert told(1_500) == 7


def test_gauges_of_a_gpu_go_with_its_worker() -> None:
    observed, link = Observed(), GpuLink()
    observed.metrics.watch_link(link)
    link.fleet.observe("w", DeviceSample(energy_mj=1, power_mw=70_000))
    link.fleet.disconnect("w")
    assert observed.value("gpu_power_watts", worker="w") is None
    assert observed.value("gpu_energy_joules_total", worker="w") == 0


def test_every_family_has_the_prefix_its_unit_and_a_text_and_comes_once() -> None:
    observed = Observed()
    observed.metrics.watch(PuppetScheduler({}))
    families = list(text_string_to_metric_families(observed.page()))
    for family in families:
        assert family.name.startswith(("remontoir_", "process_"))
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_batch_size"))
    names = [family.name for family in families]
    assert len(set(names)) == len(names) == 36


def test_names_with_quotes_and_line_breaks_do_not_break_the_page() -> None:
    observed = Observed()
    name = 'a"b\\c\nd'
    observed.metrics.of_model(name).observe_refused("rejected", "cold_model", latency_ns=ms(1))
    assert observed.value("rejections_total", model=name, reason="cold_model") == 1


def test_a_page_of_many_models_comes_in_small_parts_and_whole() -> None:
    observed = Observed()
    names = [f"m{number}" for number in range(3 * MODELS_PER_PART + 1)]
    for name in names:
        tallies = observed.metrics.of_model(name)
        tallies.observe_served(served(), latency_ns=ms(4), slo_ns=ms(50))
    parts = list(page_parts(observed.metrics))
    line = "remontoir_request_duration_seconds_count"
    per_part = [part.count(line) for part in parts if line in part]
    assert per_part == [MODELS_PER_PART, MODELS_PER_PART, MODELS_PER_PART, 1]
    assert observed.value("requests_total", model=names[-1], outcome="served", reason="") == 1


def test_rows_of_many_models_come_in_parts_too() -> None:
    observed = Observed()
    for number in range(ROWS_PER_PART + 1):
        observed.metrics.of_model(f"m{number}").loads += 1
    parts = [p for p in page_parts(observed.metrics) if "remontoir_loads_total{" in p]
    assert [part.count("\n") for part in parts] == [ROWS_PER_PART, ROWS_PER_PART, 2]
    assert observed.value("loads_total", model=f"m{ROWS_PER_PART}", result="ok") == 1


def test_models_without_traffic_take_no_room() -> None:
    observed = Observed()
    observed.metrics.of_model("mlp")
    assert "seconds_bucket" not in observed.page()
