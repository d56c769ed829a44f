"""The page that Prometheus reads: what gateway/metrics.py counted, in the text format 0.0.4.

It owns metric names, labels and the text. It must never hold the event loop: the page comes in
parts of a few models each, and whoever sends it lets others run in between. (prometheus_client
writes such a page from a collector in 2.8 s for 1,000 models, up to 0.7 s of it in one piece.)
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from gateway.answer_sharing import AnswerSharing
from gateway.gpu_figures import GpuFigures
from gateway.keyring import Keyring
from gateway.metrics import Metrics, name_of
from gateway.tallies import ModelTallies, Tally
from gateway.views import DeviceView, HttpView, LinkView, SchedulerView
from scheduler.wire import CLOCK_LIMITS, DeviceSample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Models per part: under half a millisecond.
MODELS_PER_PART = 32

# Of a card that does not tell a figure, there is none.
_GPU_GAUGES: Sequence[tuple[str, str, Callable[[DeviceSample], float | None]]] = (
    (
        "gpu_power_watts",
        "Power of the whole card.",
        lambda sample: None if sample.power_mw is None else sample.power_mw / 1e3,
    ),
    (
        "gpu_sm_clock_hertz",
        "Clock of the multiprocessors.",
        lambda sample: None if sample.sm_clock_mhz is None else sample.sm_clock_mhz * 10**6,
    ),
    (
        "gpu_utilisation_ratio",
        "Share of the time in which anything executed, by NVML.",
        lambda sample: (
            None if sample.utilisation_percent is None else sample.utilisation_percent / 100
        ),
    ),
    (
        "gpu_memory_used_bytes",
        "Memory in use, by whomever.",
        lambda sample: sample.memory_used_bytes,
    ),
    ("gpu_memory_total_bytes", "Memory of the card.", lambda sample: sample.memory_total_bytes),
    ("gpu_temperature_celsius", "Temperature of the card.", lambda sample: sample.temperature_c),
)

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
Models = list[tuple[str, ModelTallies]]  # label value, tallies
Rows = Iterable[tuple[str, float]]  # labels as they stand in the braces, value


def page_parts(metrics: Metrics) -> Iterator[str]:
    """The page, in parts. Figures are as they are when their part is made."""
    models = [(_escaped(name), tallies) for name, tallies in metrics.models.items()]
    yield _family(
        "build_info", "gauge", "Always 1.", [(f'version="{_escaped(metrics.version)}"', 1)]
    )
    yield from _requests(models, metrics.unnamed)
    for name, text, tally_of in (
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
            "slack_seconds",
            "SLO minus latency of served requests: how much of the promise was left.",
            lambda tallies: tallies.slack_ns,
        ),
        (
            "exec_duration_seconds",
            "Device time of one execution of one batch.",
            lambda tallies: tallies.exec_ns,
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
    ):
        yield from _histograms(name, text, models, tally_of)
    yield _header("prediction_error_seconds", "histogram", "Actual minus predicted, by what.")
    for kind, tally in metrics.errors_ns.items():
        yield _histogram("prediction_error_seconds", f'kind="{kind}"', tally)
    yield from _actions(models, metrics)
    up = [(f'worker="{_escaped(name)}"', min(1, n)) for name, n in metrics.workers.items()]
    yield _family("worker_up", "gauge", "1 while a worker of this name serves.", up)
    yield _family("weights_page_bytes", "gauge", "Size of a page.", [("", metrics.page_bytes)])
    if metrics.http is not None:
        yield from _http(metrics.http)
    if metrics.link is not None:
        yield _odd_messages(metrics.link)
        yield _refused_connections(metrics.link)
        yield from _gpus(metrics.link.gpus)
    if metrics.keyring is not None:
        yield from _tenants(metrics.keyring)
    if metrics.sharings:
        yield from _sharings(metrics.sharings)
    if metrics.scheduler is not None:
        yield from _gauges(metrics.scheduler)


def _requests(models: Models, unnamed: Counter[tuple[str, str]]) -> Iterator[str]:
    answered = [
        (model, outcome, reason, count)
        for model, outcomes in [("", unnamed), *((name, t.outcomes) for name, t in models)]
        for (outcome, reason), count in outcomes.items()
    ]
    yield _family(
        "requests_total",
        "counter",
        "Requests answered, by model (empty: none of the catalogue), outcome and reason.",
        (
            (f'model="{model}",outcome="{outcome}",reason="{reason}"', count)
            for model, outcome, reason, count in answered
        ),
    )
    yield _family(
        "rejections_total",
        "counter",
        "Requests refused before execution.",
        (
            (f'model="{model}",reason="{reason}"', count)
            for model, outcome, reason, count in answered
            if outcome == "rejected"
        ),
    )
    yield _family(
        "cancelled_total",
        "counter",
        "Requests whose client hung up, by where they were then: reading, queued, executing.",
        (
            (f'model="{model}",where="{where}"', count)
            for model, outcome, where, count in answered
            if outcome == "cancelled"
        ),
    )
    yield _family(
        "quotes_total",
        "counter",
        "Quotes and dry runs answered, by the reason of a no; empty for a yes.",
        (
            (f'model="{name}",reason="{reason}"', count)
            for name, tallies in models
            for reason, count in tallies.quotes.items()
        ),
    )
    yield _family(
        "cold_starts_total",
        "counter",
        "Served requests that waited for weights.",
        ((f'model="{name}"', tallies.cold_starts) for name, tallies in models),
    )


def _actions(models: Models, metrics: Metrics) -> Iterator[str]:
    loads = [(f'model="{name}",result="ok"', tallies.loads) for name, tallies in models]
    loads += [(f'model="{name}",result="failed"', t.load_failures) for name, t in models]
    yield _family("loads_total", "counter", "LOADs finished.", loads)
    yield _family(
        "evictions_total",
        "counter",
        "EVICTs finished.",
        ((f'model="{name}"', tallies.evictions) for name, tallies in models),
    )
    yield _family(
        "action_results_total",
        "counter",
        "Results of actions, by code.",
        (
            (f'action="{action}",code="{code}"', count)
            for (action, code), count in metrics.results.items()
        ),
    )


def _tenants(keyring: Keyring) -> Iterator[str]:
    """Names are of the tenants file, so there are as many as it has; keys are never among them."""
    tenants = list(keyring.tenants.values())
    yield _header(
        "tenant_requests_total",
        "counter",
        "Inference requests answered, by tenant, outcome and reason.",
    )
    rest = iter(tenants)
    while part := list(itertools.islice(rest, MODELS_PER_PART)):
        yield "".join(
            f'remontoir_tenant_requests_total{{tenant="{tenant.name}",outcome="{outcome}",'
            f'reason="{reason}"}} {count}\n'
            for tenant in part
            for (outcome, reason), count in tenant.outcomes.items()
        )
    yield _family(
        "tenant_device_seconds_total",
        "counter",
        "Device time that the tenant's requests were measured to take, shared by rows in a batch.",
        ((f'tenant="{tenant.name}"', tenant.device_ns / 1e9) for tenant in tenants),
    )
    yield _family(
        "tenant_open_requests",
        "gauge",
        "Inference requests of the tenant without an answer.",
        ((f'tenant="{tenant.name}"', tenant.num_open) for tenant in tenants),
    )
    yield _family(
        "unauthenticated_total",
        "counter",
        "Requests without a valid API key, by what was wrong.",
        ((f'kind="{kind}"', count) for kind, count in keyring.refused.items()),
    )


def _http(http: HttpView) -> Iterator[str]:
    """What `max_open_requests` and `max_buffered_mb` bound."""
    text = "Inference requests that were seen and are not answered yet."
    yield _family("http_requests_open", "gauge", text, [("", http.num_open)])
    text = "Bytes of request bodies in memory."
    yield _family("http_body_bytes", "gauge", text, [("", http.num_body_bytes)])


def _sharings(sharings: Mapping[str, AnswerSharing]) -> Iterator[str]:
    models = [(f'model="{_escaped(name)}"', sharing) for name, sharing in sharings.items()]
    yield _family(
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
    yield _family(
        "single_flight_waiting",
        "gauge",
        "Requests that wait now for the execution of another.",
        [(model, sharing.num_waiting) for model, sharing in models],
    )
    caches = [(model, sharing.cache) for model, sharing in models if sharing.cache.max_bytes]
    if not caches:
        return
    yield _family(
        "cache_bytes",
        "gauge",
        "Memory of the answers kept.",
        [(model, cache.num_bytes) for model, cache in caches],
    )
    yield _family(
        "cache_max_bytes",
        "gauge",
        "Most that it may be.",
        [(model, cache.max_bytes) for model, cache in caches],
    )
    yield _family(
        "cache_entries", "gauge", "Answers kept.", [(model, len(cache)) for model, cache in caches]
    )
    yield _family(
        "cache_evictions_total",
        "counter",
        "Answers that went to make room, the least recently used first.",
        [(model, cache.num_evicted) for model, cache in caches],
    )
    yield _family(
        "cache_too_large_total",
        "counter",
        "Answers not kept, since one alone is over the limit.",
        [(model, cache.num_too_large) for model, cache in caches],
    )


def _odd_messages(link: LinkView) -> str:
    return _family(
        "odd_worker_messages_total",
        "counter",
        "Messages that were malformed, came from no worker of ours, or could not be read by one.",
        [
            ('kind="malformed"', link.malformed_frames),
            ('kind="unknown_sender"', link.unknown_senders),
            ('kind="unreadable_there"', link.unreadable_replies),
        ],
    )


def _refused_connections(link: LinkView) -> str:
    return _family(
        "worker_connections_refused_total",
        "counter",
        "Connections to the workers' port turned away, by why (docs/security.md).",
        [(f'reason="{reason}"', count) for reason, count in link.refused_connections.items()],
    )


def _gpus(gpus: Mapping[str, GpuFigures]) -> Iterator[str]:
    """Nothing at all for a figure that no GPU tells: there may be none."""
    told = [(f'worker="{_escaped(name)}"', figures) for name, figures in gpus.items()]
    energy = [(labels, g.energy_mj / 1e3) for labels, g in told if g.energy_mj is not None]
    if energy:
        yield _family(
            "gpu_energy_joules_total",
            "counter",
            "Energy of the whole card while its worker was connected, idle or not.",
            energy,
        )
    samples = [(labels, g.sample) for labels, g in told if g.sample is not None]
    for name, text, value_of in _GPU_GAUGES:
        values = [(labels, value_of(sample)) for labels, sample in samples]
        known = [(labels, value) for labels, value in values if value is not None]
        if known:
            yield _family(name, "gauge", text, known)
    limits = [
        (f'{labels},reason="{reason}"', int(reason in sample.clock_limits))
        for labels, sample in samples
        if sample.clock_limits is not None
        for reason in CLOCK_LIMITS
    ]
    if limits:
        yield _family(
            "gpu_clock_limited", "gauge", "1 while this holds the card's clocks down.", limits
        )


def _gauges(scheduler: SchedulerView) -> Iterator[str]:
    yield _header("queue_depth", "gauge", "Requests waiting.")
    keys_of: dict[str, list[str]] = {}  # of all versions of a model
    for key in scheduler.models:
        keys_of.setdefault(key.partition("/")[0], []).append(key)
    models = iter(keys_of.items())
    while part := list(itertools.islice(models, MODELS_PER_PART * 8)):
        known = scheduler.models  # one may have been removed since the last part
        rows = [
            (_escaped(name), sum(scheduler.queue_depth(key) for key in keys if key in known))
            for name, keys in part
        ]
        yield "".join(f'remontoir_queue_depth{{model="{name}"}} {depth}\n' for name, depth in rows)
    by_state: Counter[tuple[str, str]] = Counter()
    for worker_id, device in scheduler.devices.items():
        for state, count in device.pages_by_state().items():
            by_state[_escaped(name_of(worker_id)), state] += count
    yield _family(
        "weights_pages",
        "gauge",
        "Pages of the weights cache, by state.",
        (
            (f'worker="{worker}",state="{state}"', count)
            for (worker, state), count in by_state.items()
        ),
    )
    # By name: of two incarnations, the later.
    devices = {f'worker="{_escaped(name_of(k))}"': d for k, d in scheduler.devices.items()}
    yield from _lanes(list(devices.items()))
    yield _family(
        "anomalies_total",
        "counter",
        "Unexpected input of workers, by kind.",
        ((f'kind="{_escaped(kind)}"', count) for kind, count in scheduler.anomalies.items()),
    )


def _lanes(devices: list[tuple[str, DeviceView]]) -> Iterator[str]:
    yield _family(
        "schedule_ahead_seconds",
        "gauge",
        "How long before its lane is predicted free a device is sent its next execution.",
        [(labels, device.schedule_ahead_ns / 1e9) for labels, device in devices],
    )
    yield _family(
        "gap_rate",
        "gauge",
        "Of the executions held back until then, lately, the share that found the lane run dry.",
        [(labels, device.gap_rate) for labels, device in devices],
    )
    yield _family(
        "held_executions_total",
        "counter",
        "Executions held back until schedule_ahead before the lane was to be free.",
        [(labels, device.num_held) for labels, device in devices],
    )
    yield _family(
        "held_executions_late_total",
        "counter",
        "Of them, those that reached the worker after the lane had run dry.",
        [(labels, device.num_held_late) for labels, device in devices],
    )
    yield _family(
        "outliers_total",
        "counter",
        "Executions and LOADs that took over three times the usual: clipped in the estimates.",
        [(labels, device.num_outliers) for labels, device in devices],
    )


def _histograms(
    name: str, text: str, models: Models, tally_of: Callable[[ModelTallies], Tally]
) -> Iterator[str]:
    yield _header(name, "histogram", text)
    rest = iter(models)
    while part := list(itertools.islice(rest, MODELS_PER_PART)):
        yield "".join(
            _histogram(name, f'model="{model}"', tally_of(tallies)) for model, tallies in part
        )


def _histogram(name: str, labels: str, tally: Tally) -> str:
    """Nothing for a tally without observations: most models have neither loads nor requests."""
    count = sum(tally.counts)
    if count == 0:
        return ""
    prefix = f'remontoir_{name}_bucket{{{labels},le="'
    cumulative = itertools.accumulate(tally.counts)
    lines = [
        f'{prefix}{label}"}} {number}\n'
        for label, number in zip([*tally.buckets.labels, "+Inf"], cumulative, strict=True)
    ]
    lines.append(f"remontoir_{name}_count{{{labels}}} {count}\n")
    if not tally.buckets.is_signed:  # a sum that may fall reads as a restart
        total = tally.total / tally.buckets.scale
        lines.append(f"remontoir_{name}_sum{{{labels}}} {total!r}\n")
    return "".join(lines)


def _family(name: str, kind: str, text: str, rows: Rows) -> str:
    lines = [
        f"remontoir_{name}{{{labels}}} {value}\n" if labels else f"remontoir_{name} {value}\n"
        for labels, value in rows
    ]
    return _header(name, kind, text) + "".join(lines)


def _header(name: str, kind: str, text: str) -> str:
    return f"# HELP remontoir_{name} {text}\n# TYPE remontoir_{name} {kind}\n"


def _escaped(value: str) -> str:
    return value.translate(_ESCAPES)
