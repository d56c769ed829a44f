"""The bound of a scenario's run: `bound_of(case)`.

Owns how a case's words become an instance, and which of its requests the bound is for. It plays
nothing and asks no policy: runs that differ in their policy alone have the same bound.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec

from loadtest.bound.ceiling import Loop, ceiling
from loadtest.bound.instance import Asked, Instance, Outage, Weights, batch_times, instance_of
from loadtest.scenario import Case
from loadtest.scenario_setup import Crash, Setup
from loadtest.stage import MEBIBYTE, models_of
from loadtest.workloads import Ask, Closed, open_loop
from loadtest.workloads.choice import matching_models
from scheduler.spec import MILLISECOND_NS, SECOND_NS, ModelSpec

MAX_REQUESTS = 20_000
FOR_EVER_NS = 1 << 60


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What no scheduler can pass.

    Of `num_requests` open-loop requests that arrive in [from_s, until_s), no more than `most` can
    be served in time, and a schedule exists that serves `found`; `gap` is their distance as a share
    of `most`, None where no schedule was looked for: if weights have to be loaded, or with crashes.
    `attainment` is most / num_requests, None without such requests. `is_whole` says that these are
    all of the measured window. Closed loops ask as they are answered: they can have no more than
    `closed_per_s` in the long run, if nobody else asked. `goodput_per_s` is both together.
    """

    goodput_per_s: float
    attainment: float | None
    num_requests: int
    most: int
    found: int
    iterations: int
    gap: float | None
    from_s: float
    until_s: float
    is_whole: bool
    counts_loads: bool
    closed_per_s: float


def bound_of(
    case: Case,
    *,
    max_requests: int = MAX_REQUESTS,
    from_s: float | None = None,
    iterations: int | None = None,
) -> Bound:
    """The bound of the first requests that arrive after the warm-up, or from `from_s` on.

    Where the weights of all models asked for do not fit a device, it is the lower of the bound that
    only executes and the one that also loads. Raises ValueError for a case that cannot be.
    """
    from loadtest.bound.shortest_path import upper_bound

    options = {} if iterations is None else {"iterations": iterations}
    begin_s = case.setup.warmup_s if from_s is None else from_s
    specs = models_of(case.setup)
    asks, is_whole = asks_of(case, begin_s=begin_s, max_requests=max_requests, models=specs)
    until_s = case.duration_s if is_whole else asks[-1].at_ns / SECOND_NS
    wanted = {ask.model for ask in asks}
    asked_for = [spec for spec in specs if spec.name in wanted]
    proven = upper_bound(instance_of_asks(case.setup, asks, asked_for), **options)
    most, steps = proven.most, proven.iterations
    counts_loads = bool(asks) and not fits(case.setup, asked_for)
    if counts_loads:
        loading = upper_bound(
            instance_of_asks(case.setup, asks, asked_for, counts_loads=True), **options
        )
        most, steps = min(most, loading.most), steps + loading.iterations
    closed = _loops(case.setup, specs)
    closed_per_s = _ceiling(case.setup, closed)
    goodput_per_s = most / (until_s - begin_s) if until_s > begin_s else 0.0
    if closed:  # in all no more than what the devices can do for whoever asks
        goodput_per_s = min(
            goodput_per_s + closed_per_s,
            _ceiling(case.setup, closed + _unlimited(case.setup, asks, asked_for)),
        )
    return Bound(
        goodput_per_s=goodput_per_s,
        attainment=most / len(asks) if asks else None,
        num_requests=len(asks),
        most=most,
        found=proven.found,
        iterations=steps,
        gap=None
        if counts_loads or _outages(case.setup) or not most
        else (most - proven.found) / most,
        from_s=begin_s,
        until_s=until_s,
        is_whole=is_whole,
        counts_loads=counts_loads,
        closed_per_s=closed_per_s,
    )


def asks_of(
    case: Case,
    *,
    begin_s: float,
    max_requests: int = MAX_REQUESTS,
    models: Sequence[ModelSpec] | None = None,
) -> tuple[list[Ask], bool]:
    """(the first open-loop requests from `begin_s` on, whether there are no others)."""
    specs = models_of(case.setup) if models is None else models
    arrivals = open_loop(
        case.setup.workload,
        duration_s=case.duration_s,
        seed=case.seed,
        models=[spec.name for spec in specs],
    )
    begin_ns = round(begin_s * SECOND_NS)
    later = (ask for ask in arrivals if ask.at_ns >= begin_ns)
    asks = list(islice(later, max_requests))
    return asks, next(later, None) is None


def instance_of_asks(
    setup: Setup,
    asks: Iterable[Ask],
    models: Sequence[ModelSpec],
    *,
    counts_loads: bool = False,
) -> Instance:
    """The instance of these requests on the setup's devices, as far as it can be better than it is.

    Messages take their delay without jitter, the least of all devices; a crashed device is away
    until it is back; durations are the profile's (loadtest/bound/instance.py says what that means
    under noise); stalls of the gateway are left out.
    """
    away_ns = _ms(min(devices.delay_ms for devices in setup.devices))
    client_ns = _ms(setup.client_delay_ms)
    return instance_of(
        # An SLO counts from the arrival at the gateway.
        (Asked(ask.at_ns + client_ns, ask.model, ask.slo_ns) for ask in asks),
        {spec.name: batch_times(spec) for spec in models},
        num_devices=sum(devices.count for devices in setup.devices),
        before_ns=away_ns,
        after_ns=away_ns + client_ns,
        outages=_outages(setup),
        weights=(
            {
                spec.name: Weights(_least_pages(setup, spec), max(1, spec.profile.load_ns))
                for spec in models
            }
            if counts_loads
            else None
        ),
        pages_per_device=max(devices.pages for devices in setup.devices) if counts_loads else 0,
    )


def fits(setup: Setup, models: Sequence[ModelSpec]) -> bool:
    """Whether every device can keep all of these models at once."""
    return all(
        sum(spec.num_pages(devices.page_mb * MEBIBYTE) for spec in models) <= devices.pages
        for devices in setup.devices
    )


def _least_pages(setup: Setup, spec: ModelSpec) -> int:
    return min(spec.num_pages(devices.page_mb * MEBIBYTE) for devices in setup.devices)


def _outages(setup: Setup) -> list[Outage]:
    return [
        Outage(
            round(crash.at_s * SECOND_NS),
            FOR_EVER_NS if crash.down_s is None else round((crash.at_s + crash.down_s) * SECOND_NS),
        )
        for crash in setup.faults
        if isinstance(crash, Crash)
    ]


def _ceiling(setup: Setup, loops: Sequence[Loop]) -> float:
    return ceiling(loops, num_devices=sum(devices.count for devices in setup.devices))


def _loops(setup: Setup, models: Sequence[ModelSpec]) -> list[Loop]:
    """The closed loops' clients, per entry and model."""
    of_name = {spec.name: spec for spec in models}
    closed = [entry for entry in setup.workload if isinstance(entry, Closed)]
    pairs = [
        (entry, of_name[name]) for entry in closed for name in matching_models(entry, [*of_name])
    ]
    clients_of = Counter[str]()
    for entry, spec in pairs:
        clients_of[spec.name] += entry.clients
    is_shared = len(closed) < len(setup.workload)  # open loops may ask the same models
    return [
        _loop(
            setup,
            spec,
            _longest_slo_ms(entry),
            clients=entry.clients,
            think_ms=entry.think_ms,
            max_rows=None if is_shared else clients_of[spec.name],
        )
        for entry, spec in pairs
    ]


def _unlimited(setup: Setup, asks: Iterable[Ask], models: Sequence[ModelSpec]) -> list[Loop]:
    """Who asks for these as often as one likes."""
    of_name = {spec.name: spec for spec in models}
    kinds = sorted({(ask.model, ask.slo_ns) for ask in asks})
    return [_loop(setup, of_name[name], slo_ns / MILLISECOND_NS) for name, slo_ns in kinds]


def _loop(
    setup: Setup,
    spec: ModelSpec,
    slo_ms: float,
    *,
    clients: int | None = None,
    think_ms: float = 0.0,
    max_rows: int | None = None,
) -> Loop:
    away_ns = _ms(min(devices.delay_ms for devices in setup.devices))
    client_ns = _ms(setup.client_delay_ms)
    return Loop(
        table=batch_times(spec),
        slo_ns=_ms(slo_ms),
        clients=clients,
        before_ns=away_ns,
        after_ns=away_ns + client_ns,
        think_ns=_ms(think_ms) + client_ns,  # and the way to the gateway
        max_rows=max_rows,
    )


def _longest_slo_ms(entry: Closed) -> float:
    if isinstance(entry.slo_ms, int | float):
        return entry.slo_ms
    return max(share.slo_ms for share in entry.slo_ms)


def _ms(milliseconds: float) -> int:
    return round(milliseconds * MILLISECOND_NS)
