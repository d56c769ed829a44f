"""Triton's names on the metrics page: its words, labels and units; only when asked for."""

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from gateway.config import GatewayConfig
from gateway.metrics.page import page_parts
from gateway.workers.gpu_figures import FleetFigures
from scheduler.actions import Code, Infer, InferResult, Span
from scheduler.events import ActionFinished, Send, Tick
from scheduler.spec import SharingSpec
from scheduler.wire import DeviceSample
from tests.gateway.http_doubles import Bench, model_spec, ms, served
from tests.gateway.metrics.test_metrics import GpuLink

MLP = {"model": "mlp", "version": "1"}


def samples(bench: Bench) -> Iterator[tuple[str, dict[str, str], float]]:
    page = "".join(page_parts(bench.metrics))
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.startswith("nv_"):
                yield sample.name, sample.labels, sample.value


def value(bench: Bench, name: str, **labels: str) -> float | None:
    # the parser adds _total to counters, which Triton's names have not
    wanted = (name, f"{name}_total")
    found = [v for n, has, v in samples(bench) if n in wanted and has == labels]
    return found[0] if found else None


def bench_with(*, is_shown: bool = True) -> Bench:
    cached = model_spec("cached", sharing=SharingSpec(cache_bytes=1 << 20))
    config = GatewayConfig(triton_metrics=is_shown)
    return Bench(model_spec(), model_spec("idle"), cached, config=config)


def test_it_is_off_unless_asked_for() -> None:
    assert not list(samples(bench_with(is_shown=False)))


def test_counts_and_cumulative_microseconds_have_tritons_names() -> None:
    bench = bench_with()
    metrics = bench.metrics
    tallies = metrics.of_model("mlp")
    for _ in range(3):
        tallies.observe_served(served(queue_ns=ms(1)), latency_ns=ms(4), slo_ns=ms(50))
    send = Send("w#1-1", Infer(1, "mlp", 4, (1, 2, 3), (1, 1, 2), 0, 0, 0))
    metrics.on_event(Tick(), 0)
    metrics.on_commands(Tick(), [send], 0)
    phases = [Span(0, n, n) for n in (ms(0.25), ms(2), ms(0.5))]
    metrics.on_event(ActionFinished("w#1-1", InferResult(1, Code.OK, "", 0, *phases)), 1)
    assert value(bench, "nv_inference_request_success", **MLP) == 3
    assert value(bench, "nv_inference_count", **MLP) == 4
    assert value(bench, "nv_inference_exec_count", **MLP) == 1
    assert value(bench, "nv_inference_request_duration_us", **MLP) == 12_000
    assert value(bench, "nv_inference_queue_duration_us", **MLP) == 3_000
    assert value(bench, "nv_inference_compute_input_duration_us", **MLP) == 750
    assert value(bench, "nv_inference_compute_infer_duration_us", **MLP) == 6_000
    assert value(bench, "nv_inference_compute_output_duration_us", **MLP) == 1_500
    assert value(bench, "nv_inference_pending_request_count", **MLP) == 3
    assert value(bench, "nv_inference_count", model="idle", version="1") == 0


def test_failures_have_tritons_four_reasons() -> None:
    bench = bench_with()
    tallies = bench.metrics.of_model("mlp")
    for outcome, reason in (
        ("rejected", "slo_infeasible_now"),
        ("expired", "deadline_exceeded_queued"),
        ("cancelled", "queued"),
        ("failed", "engine_error"),
        ("failed", "worker_lost"),
        ("invalid", "bad_request"),
    ):
        tallies.observe_refused(outcome, reason, latency_ns=ms(1))
    for reason, count in {"REJECTED": 2, "CANCELED": 1, "BACKEND": 1, "OTHER": 2}.items():
        assert value(bench, "nv_inference_request_failure", **MLP, reason=reason) == count


def test_what_perf_analyzer_collects_of_gpus_is_there() -> None:
    bench, link = bench_with(), GpuLink()
    bench.metrics.watch_link(link)
    assert isinstance(link.fleet, FleetFigures)
    link.fleet.observe("w", DeviceSample(10_000, 299_500, 1410, 93, 50 << 30, 80 << 30, 67, ()))
    link.fleet.observe("silent", DeviceSample())
    assert value(bench, "nv_gpu_utilization", gpu_uuid="w") == 0.93
    assert value(bench, "nv_gpu_memory_used_bytes", gpu_uuid="w") == 50 << 30
    assert value(bench, "nv_gpu_memory_total_bytes", gpu_uuid="w") == 80 << 30
    assert value(bench, "nv_gpu_power_usage", gpu_uuid="w") == 299.5
    assert value(bench, "nv_gpu_power_usage", gpu_uuid="silent") is None


def test_caches_are_shown_where_there_is_one() -> None:
    bench, labels = bench_with(), {"model": "cached", "version": "1"}
    assert value(bench, "nv_cache_num_hits_per_model", **labels) is None
    sharing = bench.app.infer.plans.plan_of("cached").sharing
    assert sharing is not None
    bench.metrics.of_model("cached")
    sharing.counts["hit"] += 2
    sharing.lookup_ns["hit"] += 7_000
    sharing.counts["miss"] += 1
    assert value(bench, "nv_cache_num_hits_per_model", **labels) == 2
    assert value(bench, "nv_cache_hit_duration_per_model", **labels) == 7
    assert value(bench, "nv_cache_num_misses_per_model", **labels) == 1
    assert value(bench, "nv_cache_num_hits_per_model", **MLP) is None
