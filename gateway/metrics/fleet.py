"""Workers, their devices and lanes on the metrics page: what the scheduler and the link know.

It owns names and texts of these families; figures are read when the page is made.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from gateway.metrics.metrics import Metrics, name_of
from gateway.metrics.text import MODELS_PER_PART, escaped, family, header
from gateway.views import DeviceView, LinkView, SchedulerView
from gateway.workers.gpu_figures import GpuFigures
from scheduler.scaling import Scaling
from scheduler.spec import public_name
from scheduler.wire import CLOCK_LIMITS, DeviceSample

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


def workers(metrics: Metrics) -> Iterator[str]:
    """Who is there, and what their lanes did."""
    up = [(f'worker="{escaped(name)}"', min(1, n)) for name, n in metrics.workers.items()]
    yield family("worker_up", "gauge", "1 while a worker of this name serves.", up)
    lanes = [(f'worker="{escaped(name)}"', lanes) for name, lanes in metrics.lanes.items()]
    busy = [(f'{labels},lane="exec"', lane.exec_ns / 1e9) for labels, lane in lanes]
    busy += [(f'{labels},lane="load"', lane.load_ns / 1e9) for labels, lane in lanes]
    yield family(
        "lane_busy_seconds_total",
        "counter",
        "Time in which the lane had a batch in any phase (exec), or a LOAD (load).",
        busy,
    )
    yield family(
        "lane_idle_with_work_seconds_total",
        "counter",
        "Time in which the exec lane was idle though its next request, loaded, was there before.",
        [(labels, lane.idle_with_work_ns / 1e9) for labels, lane in lanes],
    )


def scaling(advice: Scaling) -> str:
    """Nothing for what is not known yet: an autoscaler must not take it for a 0."""
    gauges = (
        (
            "offered_load_devices",
            "Devices that what arrived in the last ten seconds would keep busy, in the batches its "
            "rates and SLOs allow; refused or not.",
            advice.offered_load,
        ),
        (
            "utilisation_ratio",
            "Offered load over the devices there are; above 1 it cannot be served.",
            advice.utilisation,
        ),
        (
            "load_forecast_devices",
            "The offered load one scaling_horizon_s from now, as foreseen.",
            advice.forecast,
        ),
        (
            "predicted_utilisation_ratio",
            "The forecast over the devices there are.",
            advice.predicted_utilisation,
        ),
        (
            "load_forecast_absolute_error_devices",
            "Mean absolute error of the forecasts that came due lately.",
            advice.absolute_error,
        ),
        (
            "load_forecast_bias_devices",
            "Mean of actual minus forecast, of the same; above 0 too little was foreseen.",
            advice.bias,
        ),
        (
            "refused_slo_ratio",
            "Requests with a promise of the last minute that were refused, as a share.",
            advice.refused_ratio,
        ),
        (
            "recommended_devices",
            "Devices for the forecast and its usual error at scaling_target_utilisation.",
            advice.recommended_devices,
        ),
    )
    return "".join(
        family(name, "gauge", text, [("", value)])
        for name, text, value in gauges
        if value is not None
    )


def link_parts(link: LinkView) -> Iterator[str]:
    """What the link knows of the workers, and what nobody understood."""
    connections = [(f'worker="{escaped(c.name)}"', c) for c in link.connections()]
    yield family(
        "worker_clock_offset_seconds",
        "gauge",
        "Clock of the worker minus clock of the gateway: steady, whatever it is.",
        [(labels, connection.clock_offset_ns / 1e9) for labels, connection in connections],
    )
    yield family(
        "worker_round_trip_seconds",
        "gauge",
        "Shortest way to the worker and back, of the last ten seconds; the offset is as exact.",
        [(labels, connection.rtt_ns / 1e9) for labels, connection in connections],
    )
    yield _odd_messages(link)
    yield _refused_connections(link)
    yield from _gpus(link.gpus)


def _odd_messages(link: LinkView) -> str:
    return family(
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
    return family(
        "worker_connections_refused_total",
        "counter",
        "Connections to the workers' port turned away, by why (docs/security.md).",
        [(f'reason="{reason}"', count) for reason, count in link.refused_connections.items()],
    )


def _gpus(gpus: Mapping[str, GpuFigures]) -> Iterator[str]:
    """Nothing at all for a figure that no GPU tells: there may be none."""
    told = [(f'worker="{escaped(name)}"', figures) for name, figures in gpus.items()]
    energy = [(labels, g.energy_mj / 1e3) for labels, g in told if g.energy_mj is not None]
    if energy:
        yield family(
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
            yield family(name, "gauge", text, known)
    limits = [
        (f'{labels},reason="{reason}"', int(reason in sample.clock_limits))
        for labels, sample in samples
        if sample.clock_limits is not None
        for reason in CLOCK_LIMITS
    ]
    if limits:
        yield family(
            "gpu_clock_limited", "gauge", "1 while this holds the card's clocks down.", limits
        )


def scheduler_parts(scheduler: SchedulerView) -> Iterator[str]:
    """Queues, pages and lanes as the scheduler has them now."""
    yield header("queue_depth", "gauge", "Requests waiting.")
    keys_of: dict[str, list[str]] = {}  # of all versions of a model
    for key in scheduler.models:
        keys_of.setdefault(public_name(key), []).append(key)
    models = iter(keys_of.items())
    while part := list(itertools.islice(models, MODELS_PER_PART * 8)):
        known = scheduler.models  # one may have been removed since the last part
        rows = [
            (escaped(name), sum(scheduler.queue_depth(key) for key in keys if key in known))
            for name, keys in part
        ]
        yield "".join(f'remontoir_queue_depth{{model="{name}"}} {depth}\n' for name, depth in rows)
    by_state: Counter[tuple[str, str]] = Counter()
    for worker_id, device in scheduler.devices.items():
        for state, count in device.pages_by_state().items():
            by_state[escaped(name_of(worker_id)), state] += count
    yield family(
        "weights_pages",
        "gauge",
        "Pages of the weights cache, by state.",
        (
            (f'worker="{worker}",state="{state}"', count)
            for (worker, state), count in by_state.items()
        ),
    )
    # By name: of two incarnations, the later.
    devices = {f'worker="{escaped(name_of(k))}"': d for k, d in scheduler.devices.items()}
    yield from _lanes(list(devices.items()))
    yield family(
        "anomalies_total",
        "counter",
        "Unexpected input of workers, by kind.",
        ((f'kind="{escaped(kind)}"', count) for kind, count in scheduler.anomalies.items()),
    )


def _lanes(devices: list[tuple[str, DeviceView]]) -> Iterator[str]:
    yield family(
        "schedule_ahead_seconds",
        "gauge",
        "How long before its lane is predicted free a device is sent its next execution.",
        [(labels, device.schedule_ahead_ns / 1e9) for labels, device in devices],
    )
    yield family(
        "gap_rate",
        "gauge",
        "Of the executions held back until then, lately, the share that found the lane run dry.",
        [(labels, device.gap_rate) for labels, device in devices],
    )
    yield family(
        "held_executions_total",
        "counter",
        "Executions held back until schedule_ahead before the lane was to be free.",
        [(labels, device.num_held) for labels, device in devices],
    )
    yield family(
        "held_executions_late_total",
        "counter",
        "Of them, those that reached the worker after the lane had run dry.",
        [(labels, device.num_held_late) for labels, device in devices],
    )
    yield family(
        "outliers_total",
        "counter",
        "Executions and LOADs that took over three times the usual: clipped in the estimates.",
        [(labels, device.num_outliers) for labels, device in devices],
    )
