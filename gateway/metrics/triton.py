"""The same counts under Triton's names, nv_*: for its dashboards, HPA rules and perf_analyzer.

It owns the translation alone, and is on the page with the setting `triton_metrics` only. Triton's
names are of its docs/user_guide/metrics.md; what it has and we have not is left out, and not 0.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

from gateway.inference.answer_sharing import AnswerSharing
from gateway.metrics.tallies import ModelTallies
from gateway.metrics.text import (
    MODELS_PER_PART,
    Families,
    Rows,
    escaped,
    families,
    family_parts,
)
from gateway.v2.statistics import ModelStats, statistics_of
from gateway.views import LinkView, SchedulerView
from gateway.workers.gpu_figures import GpuFigures
from scheduler.spec import ModelSpec, public_name
from scheduler.wire import DeviceSample

PREFIX = "nv_"
# What our outcomes are in Triton's words. A deadline that passed in the queue is a rejection there.
_REASONS = {"rejected": "REJECTED", "expired": "REJECTED", "cancelled": "CANCELED"}
_FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

_GPUS: Families[DeviceSample] = (
    (
        "gpu_utilization",
        "gauge",
        "GPU utilization, 0.0 to 1.0.",
        lambda s: None if s.utilisation_percent is None else s.utilisation_percent / 100,
    ),
    ("gpu_memory_used_bytes", "gauge", "GPU memory in use.", lambda s: s.memory_used_bytes),
    ("gpu_memory_total_bytes", "gauge", "GPU memory.", lambda s: s.memory_total_bytes),
    (
        "gpu_power_usage",
        "gauge",
        "GPU power in watts.",
        lambda s: None if s.power_mw is None else s.power_mw / 1e3,
    ),
)

Told = list[tuple[str, ModelStats, Counter[str]]]  # labels, statistics, failures by reason


def page_parts(
    models: Mapping[str, ModelTallies],
    catalog: Mapping[str, ModelSpec],
    sharings: Mapping[str, AnswerSharing],
    scheduler: SchedulerView | None,
    link: LinkView | None,
) -> Iterator[str]:
    """Of the models of the catalogue, with the version that is served now."""
    told: Told = []
    names = iter(list(catalog))
    while part := list(itertools.islice(names, MODELS_PER_PART)):
        for name in part:
            spec = catalog.get(name)
            if spec is None:  # gone since the last part
                continue
            tallies = models.get(name)
            stats = statistics_of(spec, tallies, epoch_ns=0, sharing=sharings.get(name))
            labels = f'model="{escaped(name)}",version="{escaped(spec.version)}"'
            told.append((labels, stats, _failures(tallies)))
        yield ""  # others run in between
    yield from _inferences(told)
    if any(sharing.cache.max_bytes for sharing in sharings.values()):
        yield from _caches(told, sharings)
    if scheduler is not None:
        yield from _pending(scheduler, catalog)
    if link is not None:
        yield from _gpus(link.gpus)


def _failures(tallies: ModelTallies | None) -> Counter[str]:
    counts = Counter(dict.fromkeys(_FAILURE_REASONS, 0))
    if tallies is None:
        return counts
    for (outcome, reason), count in tallies.outcomes.items():
        if reason == "engine_error":
            counts["BACKEND"] += count
        elif outcome != "served":
            counts[_REASONS.get(outcome, "OTHER")] += count
    return counts


def _inferences(told: Told) -> Iterator[str]:
    yield from _counter(
        "inference_request_success",
        "Number of successful inference requests.",
        [(labels, stats.inference_stats.success.count) for labels, stats, _ in told],
    )
    yield from _counter(
        "inference_request_failure",
        "Number of failed inference requests, by reason.",
        [
            (f'{labels},reason="{reason}"', count)
            for labels, _, failures in told
            for reason, count in failures.items()
        ],
    )
    yield from _counter(
        "inference_count",
        "Number of inferences, a request of n rows is n of them.",
        [(labels, stats.inference_count) for labels, stats, _ in told],
    )
    yield from _counter(
        "inference_exec_count",
        "Number of batches executed.",
        [(labels, stats.execution_count) for labels, stats, _ in told],
    )
    for name, text, member in (
        ("request", "From the first sight to the answer", "success"),
        ("queue", "Waiting, without waiting for weights", "queue"),
        ("compute_input", "Input phases", "compute_input"),
        ("compute_infer", "Executions", "compute_infer"),
        ("compute_output", "Output phases", "compute_output"),
    ):
        yield from _counter(
            f"inference_{name}_duration_us",
            f"{text}, cumulative over requests, in microseconds.",
            [
                (labels, getattr(stats.inference_stats, member).ns // 1000)
                for labels, stats, _ in told
            ],
        )


def _caches(told: Told, sharings: Mapping[str, AnswerSharing]) -> Iterator[str]:
    cached = [
        (labels, stats.inference_stats)
        for labels, stats, _ in told
        if stats.name in sharings and sharings[stats.name].cache.max_bytes
    ]
    for name, text, member in (
        ("hit", "answers served from the cache", "cache_hit"),
        ("miss", "requests not found in the cache", "cache_miss"),
    ):
        plural = "hits" if name == "hit" else "misses"
        yield from _counter(
            f"cache_num_{plural}_per_model",
            f"Number of {text}.",
            [(labels, getattr(stats, member).count) for labels, stats in cached],
        )
        yield from _counter(
            f"cache_{name}_duration_per_model",
            f"What looking took of {text}, in microseconds.",
            [(labels, getattr(stats, member).ns // 1000) for labels, stats in cached],
        )


def _pending(scheduler: SchedulerView, catalog: Mapping[str, ModelSpec]) -> Iterator[str]:
    waiting: Counter[str] = Counter()
    for key in scheduler.models:
        waiting[public_name(key)] += scheduler.queue_depth(key)
    yield from family_parts(
        "inference_pending_request_count",
        "gauge",
        "Requests waiting for execution.",
        (
            (f'model="{escaped(name)}",version="{escaped(spec.version)}"', waiting[name])
            for name, spec in list(catalog.items())
        ),
        prefix=PREFIX,
    )


def _gpus(gpus: Mapping[str, GpuFigures]) -> Iterator[str]:
    """The worker's name stands for the card's UUID, which perf_analyzer only groups by."""
    cards = [
        (f'gpu_uuid="{escaped(name)}"', figures.sample)
        for name, figures in gpus.items()
        if figures.sample is not None
    ]
    return families(_GPUS, cards, prefix=PREFIX)


def _counter(name: str, text: str, rows: Rows) -> Iterator[str]:
    return family_parts(name, "counter", text, rows, prefix=PREFIX)
