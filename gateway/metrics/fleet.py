"""Workers, their devices and lanes on the metrics page: what the scheduler and the link know.

It owns names and texts of these families; figures are read when the page is made.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

from gateway.metrics.metrics import Metrics, name_of
from gateway.metrics.text import MODELS_PER_PART, Families, escaped, families, family, header
from gateway.views import ConnectionView, DeviceView, LinkView, SchedulerView
from gateway.workers.gpu_figures import GpuFigures
from scheduler.scaling import Scaling
from scheduler.spec import public_name
from scheduler.wire import CLOCK_LIMITS, DeviceSample

# Of a card that does not tell a figure, there is none.
_GPUS: Families[DeviceSample] = (
    (
        "gpu_power_watts",
        "gauge",
        "Power of the whole card.",
        lambda s: None if s.power_mw is None else s.power_mw / 1e3,
    ),
    (
        "gpu_sm_clock_hertz",
        "gauge",
        "Clock of the multiprocessors.",
        lambda s: None if s.sm_clock_mhz is None else s.sm_clock_mhz * 10**6,
    ),
    (
        "gpu_utilisation_ratio",
        "gauge",
        "Share of the time in which anything executed, by NVML.",
        lambda s: None if s.utilisation_percent is None else s.utilisation_percent / 100,
    ),
    (
        "gpu_memory_used_bytes",
        "gauge",
        "Memory in use, by whomever.",
        lambda s: s.memory_used_bytes,
    ),
    ("gpu_memory_total_bytes", "gauge", "Memory of the card.", lambda s: s.memory_total_bytes),
    ("gpu_temperature_celsius", "gauge", "Temperature of the card.", lambda s: s.temperature_c),
)
_ENERGY: Families[GpuFigures] = (
    (
        "gpu_energy_joules_total",
        "counter",
        "Energy of the whole card while its worker was connected, idle or not.",
        lambda g: None if g.energy_mj is None else g.energy_mj / 1e3,
    ),
)
_CONNECTIONS: Families[ConnectionView] = (
    (
        "worker_clock_offset_seconds",
        "gauge",
        "Clock of the worker minus clock of the gateway: steady, whatever it is.",
        lambda c: c.clock_offset_ns / 1e9,
    ),
    (
        "worker_round_trip_seconds",
        "gauge",
        "Shortest way to the worker and back, of the last ten seconds; the offset is as exact.",
        lambda c: c.rtt_ns / 1e9,
    ),
)
_LANES: Families[DeviceView] = (
    (
        "schedule_ahead_seconds",
        "gauge",
        "How long before its lane is predicted free a device is sent its next execution.",
        lambda d: d.schedule_ahead_ns / 1e9,
    ),
    (
        "gap_rate",
        "gauge",
        "Of the executions held back until then, lately, the share that found the lane run dry.",
        lambda d: d.gap_rate,
    ),
    (
        "held_executions_total",
        "counter",
        "Executions held back until schedule_ahead before the lane was to be free.",
        lambda d: d.num_held,
    ),
    (
        "held_executions_late_total",
        "counter",
        "Of them, those that reached the worker after the lane had run dry.",
        lambda d: d.num_held_late,
    ),
    (
        "outliers_total",
        "counter",
        "Executions and LOADs that took over three times the usual: clipped in the estimates.",
        lambda d: d.num_outliers,
    ),
)
# Nothing for what is not known yet: an autoscaler must not take it for a 0.
_SCALING: Families[Scaling] = (
    (
        "offered_load_devices",
        "gauge",
        "Devices that what arrived in the last ten seconds would keep busy, in the batches its "
        "rates and SLOs allow; refused or not.",
        lambda a: a.offered_load,
    ),
    (
        "utilisation_ratio",
        "gauge",
        "Offered load over the devices there are; above 1 it cannot be served.",
        lambda a: a.utilisation,
    ),
    (
        "load_forecast_devices",
        "gauge",
        "The offered load one scaling_horizon_s from now, as foreseen.",
        lambda a: a.forecast,
    ),
    (
        "predicted_utilisation_ratio",
        "gauge",
        "The forecast over the devices there are.",
        lambda a: a.predicted_utilisation,
    ),
    (
        "load_forecast_absolute_error_devices",
        "gauge",
        "Mean absolute error of the forecasts that came due lately.",
        lambda a: a.absolute_error,
    ),
    (
        "load_forecast_bias_devices",
        "gauge",
        "Mean of actual minus forecast, of the same; above 0 too little was foreseen.",
        lambda a: a.bias,
    ),
    (
        "refused_slo_ratio",
        "gauge",
        "Requests with a promise of the last minute that were refused, as a share.",
        lambda a: a.refused_ratio,
    ),
    (
        "recommended_devices",
        "gauge",
        "Devices for the forecast and its usual error at scaling_target_utilisation.",
        lambda a: a.recommended_devices,
    ),
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


def scaling_parts(advice: Scaling) -> Iterator[str]:
    return families(_SCALING, [("", advice)])


def link_parts(link: LinkView) -> Iterator[str]:
    """What the link knows of the workers, and what nobody understood."""
    connections = [(f'worker="{escaped(c.name)}"', c) for c in link.connections()]
    yield from families(_CONNECTIONS, connections)
    yield _odd_messages(link)
    yield _refused_connections(link)
    yield from _gpus(link.gpus)


def _odd_messages(link: LinkView) -> str:
    return family(
        "odd_worker_messages_total",
        "counter",
        "Messages that were malformed, came from no worker of ours, could not be read by one, or "
        "came from one that a later gateway of this name has had (superseded).",
        [
            ('kind="malformed"', link.malformed_frames),
            ('kind="unknown_sender"', link.unknown_senders),
            ('kind="unreadable_there"', link.unreadable_replies),
            ('kind="superseded"', link.num_superseded),
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
    yield from families(_ENERGY, told)
    samples = [(labels, g.sample) for labels, g in told if g.sample is not None]
    yield from families(_GPUS, samples)
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
    yield from families(_LANES, list(devices.items()))
    yield family(
        "anomalies_total",
        "counter",
        "Unexpected input of workers, by kind.",
        ((f'kind="{escaped(kind)}"', count) for kind, count in scheduler.anomalies.items()),
    )
