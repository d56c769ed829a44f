"""A metrics page with every family on it that there is, each with a sample.

For whoever reads names: dashboards, alert rules and docs are checked against it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from gateway.config import GatewayConfig
from gateway.metrics.loop_lag import LoopLag
from gateway.metrics.page import page_parts
from gateway.tenants.tenants_file import TenantSpec
from gateway.variants.feedback import Feedback
from gateway.variants.groups import Group
from gateway.variants.groups_file import GroupSpec, MemberSpec
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
    Span,
)
from scheduler.events import ActionFinished, ModelAdded, Send, Tick, WorkerJoined
from scheduler.scaling import Sample, Scaling
from scheduler.spec import SECOND_NS, SharingSpec
from scheduler.wire import DeviceSample
from tests.gateway.http_doubles import Bench, PuppetDevice, model_spec, ms, served


class Family(NamedTuple):
    """`labels` are those of any of its samples; `text` is what HELP says."""

    kind: str
    text: str
    labels: frozenset[str]


class _Peer:
    problem: str | None = None
    hop_ns = 1_000_000
    num_sent = 1


class _Replicas:
    peers = {"gateway-1": _Peer()}  # noqa: RUF012 - read only
    results = {("gateway-1", "answered"): 1}  # noqa: RUF012


class _Link:
    malformed_frames = unknown_senders = unreadable_replies = num_superseded = 1
    refused_connections: Mapping[str, int] = {"unknown_key": 1}

    def __init__(self) -> None:
        fleet = FleetFigures()
        told = DeviceSample(1, 299_500, 1410, 93, 50 << 30, 80 << 30, 67, ("sw_power_cap",))
        fleet.observe("w", told)
        self.gpus: Mapping[str, GpuFigures] = fleet.by_name

    def connections(self) -> Sequence[Connection]:
        return [Connection("w#1-1", "w", 80_000, 5)]


def full_page(*, triton_metrics: bool = False) -> str:
    spec = model_spec(sharing=SharingSpec(cache_bytes=1 << 20))
    bench = Bench(
        spec,
        config=GatewayConfig(triton_metrics=triton_metrics),
        tenants={"a": TenantSpec()},
    )
    metrics = bench.metrics
    bench.scheduler.devices = {"w#1-1": PuppetDevice({})}
    bench.scheduler.anomalies = {"result_of_unknown_action": 1}
    bench.app.infer.plans.plan_of("mlp")  # its sharing
    assert bench.keyring is not None
    bench.keyring.refused["missing"] += 1
    bench.keyring.tenants["a"].outcomes["served", ""] += 1
    metrics.watch_link(_Link())
    group = Group("g", GroupSpec(members=(MemberSpec(model="mlp"),), selection="exp3"))
    metrics.watch_groups({"g": group}, Feedback())
    metrics.watch_replicas(_Replicas())
    lag = LoopLag(clock=bench.clock, call_later=bench.timers)
    metrics.watch_loop(lag)
    lag.start()
    bench.timers.armed[-1].fire()
    scaling = Scaling(horizon_ns=SECOND_NS, target_utilisation=0.7)
    metrics.watch_scaling(scaling)
    for second in range(21):  # until the first forecast is due
        scaling.observe(Sample(1.0, 1, 0, 0), second * SECOND_NS)
    tallies = metrics.of_model("mlp")
    cold = served(is_cold_start=True, load_ns=ms(5))
    tallies.observe_served(cold, latency_ns=ms(4), slo_ns=ms(50))
    tallies.observe_refused("rejected", "cold_model", latency_ns=ms(1))
    tallies.observe_refused("cancelled", "queued", latency_ns=ms(1))
    tallies.quotes[""] += 1
    metrics.reloads["mlp", "failed"] += 1
    for event in (WorkerJoined("w#1-1", PuppetDevice({}).spec, (), ()), ModelAdded(spec)):
        metrics.on_event(event, 0)
    actions = (
        Infer(1, "mlp", 1, (1,), (1,), 0, 0, 0),
        LoadWeights(2, "mlp", 2, 0, 0, 0),
        EvictWeights(3, "mlp", 0, 0),
    )
    metrics.on_commands(Tick(), [Send("w#1-1", action) for action in actions], 0)
    span = Span(5, 9, 4)
    for result in (
        InferResult(1, Code.OK, "", 0, span, span, span),
        LoadResult(2, Code.OK, "", 0, span),
        EvictResult(3, Code.OK),
    ):
        metrics.on_event(ActionFinished("w#1-1", result), 0)
    return "".join(page_parts(metrics))


def families(page: str) -> dict[str, Family]:
    """By the name that HELP has, which is what a reader looks for. Every one has a sample."""
    found: dict[str, Family] = {}
    helped = {line.split(" ", 3)[2] for line in page.splitlines() if line.startswith("# HELP ")}
    for family in text_string_to_metric_families(page):
        name = family.name if family.name in helped else f"{family.name}_total"
        labels = frozenset(label for sample in family.samples for label in sample.labels)
        assert family.samples, f"{name} has no sample: it belongs into full_page()"
        found[name] = Family(family.type, family.documentation, labels)
    assert set(found) == helped
    return found
