"""From a scenario's words to the things of a run: models, workers, faults.

Owns how names are given and who is resident where. It plays nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from loadtest import profiles
from loadtest.scenario_setup import Crash, Devices, Models, Profile, Setup
from loadtest.workloads import closed_loops, open_loop
from scheduler.actions import Action, Code
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation, Spikes
from scheduler.spec import MILLISECOND_NS, SECOND_NS, DeviceSpec, ModelSpec

V100 = "v100/"
MEBIBYTE = 2**20


def models_of(setup: Setup) -> list[ModelSpec]:
    """All models, in the order of the file. Raises ValueError for a name that is given twice."""
    specs = [spec for models in setup.models for spec in _models(models)]
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise ValueError(f"models: the name {spec.name!r} is given twice")
        seen.add(spec.name)
    return specs


def workers_of(setup: Setup, models: Sequence[ModelSpec], seed: int) -> list[SimulatedWorker]:
    """One worker per device: w0, w1, ... Raises ValueError where residents do not fit."""
    num_workers = sum(devices.count for devices in setup.devices)
    kinds = [devices for devices in setup.devices for _ in range(devices.count)]
    return [
        worker_of(
            f"w{number}",
            devices,
            models,
            seed=seed,
            resident=_residents(devices, models, number, num_workers),
        )
        for number, devices in enumerate(kinds)
    ]


def check(setup: Setup) -> None:
    """Build all that a run would, and raise ValueError for what cannot be: an unknown profile, a
    glob that matches nothing, residents that do not fit, crashes that overlap.
    """
    models = models_of(setup)
    names = [model.name for model in models]
    open_loop(setup.workload, duration_s=setup.duration_s, seed=1, models=names)
    closed_loops(setup.workload, duration_s=setup.duration_s, seed=1, models=names)
    simulation = Simulation(Scheduler(), workers_of(setup, models, 1))
    schedule_faults(setup, simulation, models, seed=1, duration_s=setup.duration_s)


def schedule_faults(
    setup: Setup,
    simulation: Simulation,
    models: Sequence[ModelSpec],
    *,
    seed: int,
    duration_s: float,
) -> None:
    """Enter crashes, returns and stalls. A worker is back under an id of its own: w0.1, w0.2."""
    kinds = [devices for devices in setup.devices for _ in range(devices.count)]
    ids = [f"w{number}" for number in range(len(kinds))]
    crashes = sorted((f for f in setup.faults if isinstance(f, Crash)), key=lambda f: f.at_s)
    back_s = [0.0] * len(kinds)
    num_crashes = [0] * len(kinds)
    for crash in crashes:
        number = crash.worker
        if crash.at_s < back_s[number]:
            raise ValueError(
                f"faults: worker {number} crashes at {crash.at_s} s, and is down until "
                f"{back_s[number]} s"
            )
        simulation.crash(
            ids[number],
            at_ns=_s(crash.at_s),
            detect_ns=_ms(crash.detect_ms),
            reason=f"silent for {crash.detect_ms:g} ms",
        )
        if crash.down_s is None:
            back_s[number] = float("inf")
            continue
        back_s[number] = crash.at_s + crash.down_s
        num_crashes[number] += 1
        ids[number] = f"w{number}.{num_crashes[number]}"
        worker = worker_of(ids[number], kinds[number], models, seed=seed, resident=())
        simulation.call_at(_s(back_s[number]), _Join(simulation, worker))
    for fault in setup.faults:
        if isinstance(fault, Crash):
            continue
        at_s = fault.at_s
        while at_s < duration_s:
            simulation.stall(_s(at_s), _ms(fault.stall_ms))
            if fault.every_s is None:
                break
            at_s += fault.every_s


class _Join:
    """A worker that joins when it is called."""

    def __init__(self, simulation: Simulation, worker: SimulatedWorker) -> None:
        self._simulation = simulation
        self._worker = worker

    def __call__(self) -> None:
        self._simulation.join(self._worker)


def _models(models: Models) -> Iterable[ModelSpec]:
    if isinstance(models.profile, str) and "*" in models.profile:
        glob = models.profile.removeprefix(V100)
        rows = [
            row
            for row in profiles.v100_names()
            if fnmatchcase(row, glob) and not any(fnmatchcase(row, out) for out in models.without)
        ]
        if not models.profile.startswith(V100) or not rows:
            raise ValueError(f"models: no profile is like {models.profile!r}")
        for row in rows:
            make = profiles.v100(
                row, max_batch=models.max_batch, runs_exact_batch=models.runs_exact_batch
            )
            yield from _alike(make, models.name.replace("{profile}", row), models)
    else:
        yield from _alike(_maker(models), models.name, models)


def _alike(make: profiles.ModelMaker, name: str, models: Models) -> Iterable[ModelSpec]:
    names = [name] if models.count == 1 else [f"{name}{i}" for i in range(models.count)]
    return [make(each, is_pinned=models.pinned) for each in names]


def _maker(models: Models) -> profiles.ModelMaker:
    profile = models.profile
    if isinstance(profile, str):
        if not profile.startswith(V100):
            raise ValueError(
                f"models: {models.name}: profile {profile!r} does not begin with v100/"
            )
        return profiles.v100(
            profile.removeprefix(V100),
            max_batch=models.max_batch,
            runs_exact_batch=models.runs_exact_batch,
        )
    if profile.catalogue is not None:
        assert profile.model is not None
        return profiles.catalogue(profile.catalogue, profile.model)
    return _line(profile, models)


def _line(profile: Profile, models: Models) -> profiles.ModelMaker:
    assert profile.first_ms is not None
    assert profile.each_ms is not None
    assert profile.load_ms is not None
    assert profile.weights_mb is not None
    return profiles.linear(
        first_ms=profile.first_ms,
        each_ms=profile.each_ms,
        load_ms=profile.load_ms,
        weights_mb=profile.weights_mb,
        max_batch=models.max_batch,
        runs_exact_batch=models.runs_exact_batch,
    )


def worker_of(
    worker_id: str,
    devices: Devices,
    models: Sequence[ModelSpec],
    *,
    seed: int,
    resident: Iterable[str],
    fail: Callable[[Action], Code | None] | None = None,
) -> SimulatedWorker:
    """One worker of a kind; `fail` as SimulatedWorker has it."""
    spikes = devices.spikes
    return SimulatedWorker(
        worker_id,
        DeviceSpec(
            kind="simulated",
            page_bytes=devices.page_mb * MEBIBYTE,
            total_pages=devices.pages,
            shares_exec_core=devices.shares_exec_core,
        ),
        models,
        seed=f"{seed}/{worker_id}",
        noise=devices.exec_noise,
        load_noise=devices.load_noise,
        spikes=(
            None
            if spikes is None
            else Spikes(spikes.probability, _ms(spikes.min_ms), _ms(spikes.max_ms))
        ),
        delay_ns=_ms(devices.delay_ms),
        jitter_ns=_ms(devices.jitter_ms),
        fail=fail,
        resident=resident,
    )


def _residents(
    devices: Devices, models: Sequence[ModelSpec], number: int, num_workers: int
) -> list[str]:
    """`fit`: every num_workers-th model from its own number on first, so that all are spread over
    the devices; then the others in order, while there are pages.
    """
    if devices.resident == "none":
        return []
    if devices.resident == "all":
        return [model.name for model in models]
    own = list(models[number::num_workers])
    others = [model for index, model in enumerate(models) if index % num_workers != number]
    resident, pages_free = [], devices.pages
    for model in own + others:
        num_pages = model.num_pages(devices.page_mb * MEBIBYTE)
        if num_pages <= pages_free:
            resident.append(model.name)
            pages_free -= num_pages
    return resident


def _ms(milliseconds: float) -> int:
    return round(milliseconds * MILLISECOND_NS)


def _s(seconds: float) -> int:
    return round(seconds * SECOND_NS)
