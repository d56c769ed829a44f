"""What share of the clairvoyant bound a run has reached: `remontoir simulate --bound`.

Owns which requests of a run the bound is asked for. How it is found: loadtest/bound.
"""

import numpy as np

from loadtest.scenario_setup import Crash, Setup
from loadtest.simulate import Run, window_of
from loadtest.stage import models_of
from loadtest.workloads import Closed
from scheduler.spec import MILLISECOND_NS, SECOND_NS

# Beyond it minutes pass, and shares no longer change.
MAX_REQUESTS = 20_000
FOR_EVER_NS = 1 << 62


def share_of_bound(run: Run) -> float | None:
    """Good requests per request that a clairvoyant scheduler could have served at the most.

    Over the first MAX_REQUESTS of the measured window. None for closed loops, whose requests depend
    on the answers, and for a window without a request that could be served.
    """
    from loadtest.bound.instance import Asked, Outage, batch_times, instance_of
    from loadtest.bound.shortest_path import upper_bound

    setup = run.case.setup
    if run.tables is None or any(isinstance(entry, Closed) for entry in setup.workload):
        return None
    requests = run.tables.requests.only("arrival_ns", "model", "slo_ns", "is_good")
    begin_ns, end_ns = window_of(run.case)
    arrivals = requests["arrival_ns"]
    inside = requests.rows((arrivals >= begin_ns) & (arrivals < end_ns))
    first = inside.rows(np.argsort(inside["arrival_ns"], kind="stable")[:MAX_REQUESTS])
    columns = (first["arrival_ns"].tolist(), first.texts("model"), first["slo_ns"].tolist())
    away_ns = round(min(devices.delay_ms for devices in setup.devices) * MILLISECOND_NS)
    client_ns = round(setup.client_delay_ms * MILLISECOND_NS)
    proven = upper_bound(
        instance_of(
            [Asked(*fields) for fields in zip(*columns, strict=True)],
            {model.name: batch_times(model) for model in models_of(setup)},
            num_devices=sum(devices.count for devices in setup.devices),
            before_ns=away_ns,
            after_ns=away_ns + client_ns,
            outages=[Outage(*outage) for outage in _outages(setup)],
        )
    )
    return int(np.count_nonzero(first["is_good"])) / proven.most if proven.most else None


def _outages(setup: Setup) -> list[tuple[int, int]]:
    return [
        (
            round(fault.at_s * SECOND_NS),
            FOR_EVER_NS if fault.down_s is None else round((fault.at_s + fault.down_s) * SECOND_NS),
        )
        for fault in setup.faults
        if isinstance(fault, Crash)
    ]
