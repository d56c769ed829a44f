"""The bound that a run is compared with, over a window of at most 20,000 requests.

Owns which requests are in the window: those of open loops that arrive after the warm-up, from the
first on, or in a window that is given. A bound of a part of the requests, with devices to
themselves, is one for that part of any run.
"""

from collections.abc import Iterable
from itertools import islice

from loadtest.bound.instance import Asked, Instance, Outage, Weights, batch_times, instance_of
from loadtest.results import Tables
from loadtest.scenario import Case
from loadtest.scenario_setup import Crash
from loadtest.simulate import window_of
from loadtest.stage import MEBIBYTE, models_of
from loadtest.workloads import Ask, Closed, open_loop
from scheduler.spec import MILLISECOND_NS, SECOND_NS, ModelSpec

MAX_REQUESTS = 20_000
Window = tuple[float, float]


def asked_in_window(case: Case, window_s: Window | None = None) -> list[Ask]:
    """The first MAX_REQUESTS requests of open loops in the measured part, or in that window."""
    begin_ns, end_ns = window_of(case)
    if window_s is not None:
        begin_ns, end_ns = (round(at_s * SECOND_NS) for at_s in window_s)
    names = [model.name for model in models_of(case.setup)]
    arrivals = open_loop(
        case.setup.workload, duration_s=case.duration_s, seed=case.seed, models=names
    )
    return list(islice(_between(arrivals, begin_ns, end_ns), MAX_REQUESTS))


def window_figures(case: Case, tables: Tables) -> dict[str, float]:
    """Of a run: how many requests of the bound's window there were, and how many of them good."""
    asked = asked_in_window(case)
    if not asked:
        return {}
    delay_ns = round(case.setup.client_delay_ms * MILLISECOND_NS)
    requests = tables.requests
    arrival_ns = requests["arrival_ns"] - delay_ns
    inside = (arrival_ns >= asked[0].at_ns) & (arrival_ns <= asked[-1].at_ns)
    for stream, entry in enumerate(case.setup.workload):
        if isinstance(entry, Closed):
            inside &= requests["stream"] != stream
    return {
        "window_asked": float(inside.sum()),
        "window_good": float((inside & requests["is_good"]).sum()),
    }


def bound_figures(case: Case, window_s: Window | None = None) -> dict[str, float]:
    """The clairvoyant bound: `most` of `asked` can be good, `found` can certainly be.

    Where the weights of all that is asked for do not fit the devices, `most` is the smaller of the
    bound that only executes (`most_executed`) and the one that also loads (`most_loaded`).
    """
    from loadtest.bound.shortest_path import upper_bound

    asked = asked_in_window(case, window_s)
    if not asked:
        return {}
    models = _models_of(case, asked)
    executed = upper_bound(_instance(case, asked, models))
    figures = {
        "begin_s": asked[0].at_ns / SECOND_NS if window_s is None else window_s[0],
        "asked": float(len(asked)),
        "most": float(executed.most),
        "found": float(executed.found),
        "most_executed": float(executed.most),
    }
    if not _fits(case, models):
        loaded = upper_bound(_instance(case, asked, models, has_weights=True))
        figures["most_loaded"] = float(loaded.most)
        figures["most"] = float(min(executed.most, loaded.most))
    return figures


def _instance(
    case: Case, asked: Iterable[Ask], models: list[ModelSpec], *, has_weights: bool = False
) -> Instance:
    setup = case.setup
    before_ns = round(min(devices.delay_ms for devices in setup.devices) * MILLISECOND_NS)
    client_ns = round(setup.client_delay_ms * MILLISECOND_NS)
    page_bytes = setup.devices[0].page_mb * MEBIBYTE
    return instance_of(
        (Asked(ask.at_ns + client_ns, ask.model, ask.slo_ns) for ask in asked),
        {spec.name: batch_times(spec) for spec in models},
        num_devices=sum(devices.count for devices in setup.devices),
        before_ns=before_ns,
        after_ns=before_ns + client_ns,
        outages=[_outage(crash, case) for crash in setup.faults if isinstance(crash, Crash)],
        weights=(
            {
                spec.name: Weights(spec.num_pages(page_bytes), spec.profile.load_ns)
                for spec in models
            }
            if has_weights
            else None
        ),
        pages_per_device=setup.devices[0].pages if has_weights else 0,
    )


def _models_of(case: Case, asked: Iterable[Ask]) -> list[ModelSpec]:
    wanted = {ask.model for ask in asked}
    return [spec for spec in models_of(case.setup) if spec.name in wanted]


def _fits(case: Case, models: Iterable[ModelSpec]) -> bool:
    """Whether each device could keep all of these, or began with all."""
    if all(devices.resident == "all" for devices in case.setup.devices):
        return True
    page_bytes = case.setup.devices[0].page_mb * MEBIBYTE
    least = min(devices.pages for devices in case.setup.devices)
    return sum(spec.num_pages(page_bytes) for spec in models) <= least


def _outage(crash: Crash, case: Case) -> Outage:
    until_s = case.duration_s * 2 if crash.down_s is None else crash.at_s + crash.down_s
    return Outage(round(crash.at_s * SECOND_NS), round(until_s * SECOND_NS))


def _between(arrivals: Iterable[Ask], begin_ns: int, end_ns: int) -> Iterable[Ask]:
    for ask in arrivals:
        if ask.at_ns >= end_ns:
            return
        if ask.at_ns >= begin_ns:
            yield ask
