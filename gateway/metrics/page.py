"""The page that Prometheus reads: what metrics.py counted, in the text format 0.0.4.

It owns metric names, labels and the text. It must never hold the event loop: the page comes in
parts of a few models each, and whoever sends it lets others run in between. (prometheus_client
writes such a page from a collector in 2.8 s for 1,000 models, up to 0.7 s of it in one piece.)
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from gateway.inference.answer_sharing import AnswerSharing
from gateway.inference.prediction_cache import PredictionCache
from gateway.metrics import fleet as metrics_fleet
from gateway.metrics import groups as metrics_groups
from gateway.metrics import process_figures
from gateway.metrics import replicas as metrics_replicas
from gateway.metrics import triton as triton_metrics
from gateway.metrics.metrics import Metrics
from gateway.metrics.slo_results import results_of
from gateway.metrics.tallies import ModelTallies, Tally
from gateway.metrics.text import (
    Families,
    Models,
    escaped,
    families,
    family,
    family_parts,
    header,
    histogram,
    histograms,
)
from gateway.tenants.keyring import Keyring
from gateway.views import HttpView

_HISTOGRAMS: Sequence[tuple[str, str, Callable[[ModelTallies], Tally]]] = (
    (
        "request_duration_seconds",
        "From the first sight of a request to its answer, whatever it was.",
        lambda tallies: tallies.request_ns,
    ),
    (
        "queue_duration_seconds",
        "Arrival to the start of the input phase, without waiting for a LOAD; served only.",
        lambda tallies: tallies.queue_ns,
    ),
    (
        "load_wait_duration_seconds",
        "What of a served request's wait was a LOAD; of those that waited for one.",
        lambda tallies: tallies.load_wait_ns,
    ),
    (
        "slack_seconds",
        "SLO minus latency of served requests: how much of the promise was left.",
        lambda tallies: tallies.slack_ns,
    ),
    (
        "input_duration_seconds",
        "Device time of one batch's input phase: its rows gathered and copied in.",
        lambda tallies: tallies.input_ns,
    ),
    (
        "exec_duration_seconds",
        "Device time of one execution of one batch.",
        lambda tallies: tallies.exec_ns,
    ),
    (
        "output_duration_seconds",
        "Device time of one batch's output phase: its rows copied out.",
        lambda tallies: tallies.output_ns,
    ),
    (
        "load_duration_seconds",
        "Device time of one LOAD of a model's weights.",
        lambda tallies: tallies.load_ns,
    ),
    (
        "batch_size",
        "Rows of each batch sent to a worker, without padding.",
        lambda tallies: tallies.batch_rows,
    ),
)
_CACHES: Families[PredictionCache] = (
    ("cache_bytes", "gauge", "Memory of the answers kept.", lambda c: c.num_bytes),
    ("cache_max_bytes", "gauge", "Most that it may be.", lambda c: c.max_bytes),
    ("cache_entries", "gauge", "Answers kept.", len),
    (
        "cache_evictions_total",
        "counter",
        "Answers that went to make room, the least recently used first.",
        lambda c: c.num_evicted,
    ),
    (
        "cache_too_large_total",
        "counter",
        "Answers not kept, since one alone is over the limit.",
        lambda c: c.num_too_large,
    ),
)


def page_parts(metrics: Metrics) -> Iterator[str]:
    """The page, in parts. Figures are as they are when their part is made."""
    models = [(escaped(name), tallies) for name, tallies in metrics.models.items()]
    yield _build_info(metrics.version)
    yield from _requests(models, metrics.unnamed)
    yield from _slo_results(models, metrics.unnamed)
    for name, text, tally_of in _HISTOGRAMS:
        yield from histograms(name, text, models, tally_of)
    yield header(
        "refusal_duration_seconds", "histogram", "From first sight to the no, by its reason."
    )
    for reason, tally in list(metrics.totals.refusals.items()):
        yield histogram("refusal_duration_seconds", f'reason="{reason}"', tally)
    yield header("prediction_error_seconds", "histogram", "Actual minus predicted, by what.")
    for kind, tally in metrics.errors_ns.items():
        yield histogram("prediction_error_seconds", f'kind="{kind}"', tally)
    yield from _actions(models, metrics)
    yield from metrics_fleet.workers(metrics)
    yield family("weights_page_bytes", "gauge", "Size of a page.", [("", metrics.page_bytes)])
    if metrics.http is not None:
        yield from _http(metrics.http)
    if metrics.loop_lag is not None:
        text = "How late the event loop came to what was due: everybody's requests waited as long."
        yield header("event_loop_lag_seconds", "histogram", text)
        yield histogram("event_loop_lag_seconds", "", metrics.loop_lag.tally)
    if metrics.link is not None:
        yield from metrics_fleet.link_parts(metrics.link)
    if metrics.keyring is not None:
        yield from _tenants(metrics.keyring)
    if metrics.replicas is not None:
        yield from metrics_replicas.replica_parts(metrics.replicas)
    if metrics.groups and metrics.feedback is not None:
        yield from metrics_groups.group_parts(metrics.groups, metrics.feedback)
    if metrics.sharings:
        yield from _sharings(metrics.sharings)
    if metrics.scheduler is not None:
        yield from metrics_fleet.scheduler_parts(metrics.scheduler)
    if metrics.scaling is not None:
        yield from metrics_fleet.scaling_parts(metrics.scaling)
    yield process_figures.page()
    if metrics.triton_catalog is not None:
        yield from triton_metrics.page_parts(
            metrics.models,
            metrics.triton_catalog,
            metrics.sharings,
            metrics.scheduler,
            metrics.link,
        )


def _build_info(version: str) -> str:
    labels = f'version="{escaped(version)}",python="{platform.python_version()}"'
    return family("build_info", "gauge", "Always 1.", [(labels, 1)])


def _requests(models: Models, unnamed: Counter[tuple[str, str]]) -> Iterator[str]:
    answered = [
        (model, outcome, reason, count)
        for model, outcomes in [("", unnamed), *((name, t.outcomes) for name, t in models)]
        for (outcome, reason), count in outcomes.items()
    ]
    yield from family_parts(
        "requests_total",
        "counter",
        "Requests answered, by model (empty: none of the catalogue), outcome and reason.",
        (
            (f'model="{model}",outcome="{outcome}",reason="{reason}"', count)
            for model, outcome, reason, count in answered
        ),
    )
    yield from family_parts(
        "rejections_total",
        "counter",
        "Requests refused before execution.",
        (
            (f'model="{model}",reason="{reason}"', count)
            for model, outcome, reason, count in answered
            if outcome == "rejected"
        ),
    )
    yield from family_parts(
        "cancelled_total",
        "counter",
        "Requests whose client hung up, by where they were then: reading, queued, executing.",
        (
            (f'model="{model}",where="{where}"', count)
            for model, outcome, where, count in answered
            if outcome == "cancelled"
        ),
    )
    yield from family_parts(
        "quotes_total",
        "counter",
        "Quotes and dry runs answered, by the reason of a no; empty for a yes.",
        (
            (f'model="{name}",reason="{reason}"', count)
            for name, tallies in models
            for reason, count in list(tallies.quotes.items())
        ),
    )
    yield from family_parts(
        "cold_starts_total",
        "counter",
        "Served requests that waited for weights.",
        ((f'model="{name}"', tallies.cold_starts) for name, tallies in models),
    )


def _slo_results(models: Models, unnamed: Counter[tuple[str, str]]) -> Iterator[str]:
    """Every result of every model that was asked for, also those that are 0: a ratio of rates
    needs both its sides.
    """
    rows = (
        (f'model="{model}",result="{result}"', count)
        for model, outcomes in [("", unnamed), *((name, t.outcomes) for name, t in models)]
        for result, count in results_of(outcomes).items()
    )
    yield from family_parts(
        "slo_requests_total",
        "counter",
        "Requests with a promise, by what became of it: met, late, rejected, failed.",
        rows,
    )


def _actions(models: Models, metrics: Metrics) -> Iterator[str]:
    loads = (
        (f'model="{name}",result="{result}"', count)
        for name, tallies in models
        for result, count in (("ok", tallies.loads), ("failed", tallies.load_failures))
    )
    yield from family_parts("loads_total", "counter", "LOADs finished.", loads)
    yield family(
        "reloads_total",
        "counter",
        "Versions that were to take over, by what came of it: reloaded, rolled_back, failed.",
        (
            (f'model="{escaped(name)}",outcome="{outcome}"', count)
            for (name, outcome), count in metrics.reloads.items()
        ),
    )
    yield from family_parts(
        "evictions_total",
        "counter",
        "EVICTs finished.",
        ((f'model="{name}"', tallies.evictions) for name, tallies in models),
    )
    yield from family_parts(
        "weights_loaded_bytes_total",
        "counter",
        "Bytes of weights that LOADs have copied.",
        ((f'model="{name}"', tallies.loaded_bytes) for name, tallies in models),
    )
    yield from family_parts(
        "weights_evicted_bytes_total",
        "counter",
        "Bytes of weights that EVICTs have given up: what must be copied again.",
        ((f'model="{name}"', tallies.evicted_bytes) for name, tallies in models),
    )
    yield family(
        "action_results_total",
        "counter",
        "Results of actions, by code.",
        (
            (f'action="{action}",code="{code.name.lower()}"', count)
            for (action, code), count in metrics.results.items()
        ),
    )


def _tenants(keyring: Keyring) -> Iterator[str]:
    """Names are of the tenants file, so there are as many as it has; keys are never among them."""
    tenants = list(keyring.tenants.values())
    yield from family_parts(
        "tenant_requests_total",
        "counter",
        "Inference requests answered, by tenant, outcome and reason.",
        (
            (f'tenant="{tenant.name}",outcome="{outcome}",reason="{reason}"', count)
            for tenant in tenants
            for (outcome, reason), count in list(tenant.outcomes.items())
        ),
    )
    yield from family_parts(
        "tenant_slo_requests_total",
        "counter",
        "Requests with a promise, by tenant and what became of it.",
        (
            (f'tenant="{tenant.name}",result="{result}"', count)
            for tenant in tenants
            for result, count in results_of(tenant.outcomes).items()
        ),
    )
    yield family(
        "tenant_device_seconds_total",
        "counter",
        "Device time that the tenant's requests were measured to take, shared by rows in a batch.",
        ((f'tenant="{tenant.name}"', tenant.device_ns / 1e9) for tenant in tenants),
    )
    yield family(
        "tenant_open_requests",
        "gauge",
        "Inference requests of the tenant without an answer.",
        ((f'tenant="{tenant.name}"', tenant.num_open) for tenant in tenants),
    )
    yield family(
        "unauthenticated_total",
        "counter",
        "Requests without a valid API key, by what was wrong.",
        ((f'kind="{kind}"', count) for kind, count in keyring.refused.items()),
    )


def _http(http: HttpView) -> Iterator[str]:
    """What `max_open_requests` and `max_buffered_mb` bound."""
    text = "Inference requests that were seen and are not answered yet."
    yield family("http_requests_open", "gauge", text, [("", http.num_open)])
    text = "Bytes of request bodies in memory."
    yield family("http_body_bytes", "gauge", text, [("", http.num_body_bytes)])


def _sharings(sharings: Mapping[str, AnswerSharing]) -> Iterator[str]:
    models = [(f'model="{escaped(name)}"', sharing) for name, sharing in sharings.items()]
    yield family(
        "cache_requests_total",
        "counter",
        "Requests served, of models whose answers are shared, by where the answer came from: the "
        "cache (hit), another request's execution (shared), an execution of its own (miss).",
        (
            (f'{model},result="{result}"', count)
            for model, sharing in models
            for result, count in sharing.counts.items()
        ),
    )
    yield family(
        "single_flight_waiting",
        "gauge",
        "Requests that wait now for the execution of another.",
        [(model, sharing.num_waiting) for model, sharing in models],
    )
    caches = [(model, sharing.cache) for model, sharing in models if sharing.cache.max_bytes]
    yield from families(_CACHES, caches)
