"""From a scenario's words to models, workers and faults."""

import msgspec
import pytest

from loadtest.scenario_setup import Crash, Devices, Models, Profile, Setup, SpikeTimes, Stall
from loadtest.stage import check, models_of, schedule_faults, workers_of
from loadtest.workloads import Poisson
from scheduler.events import Event, WorkerJoined, WorkerLost
from scheduler.scheduler import Scheduler
from scheduler.simulation import Simulation
from scheduler.spec import SECOND_NS

LINE = Profile(first_ms=4, each_ms=1, load_ms=10, weights_mb=60)  # four pages of 16 MiB
ANY = Poisson(models="m*", slo_ms=50.0, rate_per_s=10.0)


def setup(
    *models: Models,
    devices: tuple[Devices, ...] = (Devices(),),
    faults: tuple[Crash | Stall, ...] = (),
) -> Setup:
    some = models or (Models(name="m", profile=LINE, count=4),)
    return Setup(duration_s=10.0, models=some, workload=(ANY,), devices=devices, faults=faults)


def resident(devices: Devices, *, num_models: int = 4) -> list[tuple[str, ...]]:
    of = setup(Models(name="m", profile=LINE, count=num_models), devices=(devices,))
    return [worker.joined().resident for worker in workers_of(of, models_of(of), seed=1)]


def test_models_are_named_by_number_or_alone() -> None:
    models = models_of(
        setup(
            Models(name="m", profile=LINE, count=3, max_batch=8),
            Models(name="only", profile="v100/resnet50_v2", pinned=True, runs_exact_batch=True),
        )
    )
    assert [model.name for model in models] == ["m0", "m1", "m2", "only"]
    assert models[0].profile.shapes[0].exec_ns == {1: 4e6, 2: 5e6, 4: 7e6, 8: 11e6}
    assert models[0].num_pages(16 * 2**20) == 4
    assert len({model.content_hash for model in models}) == 4
    only = models[3]
    assert (only.batch_sizes, only.is_pinned, only.runs_exact_batch) == (
        (1, 2, 4, 8, 16),
        True,
        True,
    )


def test_a_glob_takes_every_row_of_the_table_that_it_matches() -> None:
    models = models_of(
        setup(
            Models(name="{profile}-", profile="v100/resnet*_v2", without=("*152*", "*18*"), count=2)
        )
    )
    names = [model.name for model in models]
    assert "resnet50_v2-0" in names
    assert "resnet50_v2-1" in names
    assert not any("152" in name or "18" in name for name in names)
    assert len(models_of(setup(Models(name="{profile}", profile="v100/*")))) == 64


def test_a_catalogue_gives_what_was_measured(tmp_path_factory: pytest.TempPathFactory) -> None:
    [spec] = models_of(setup(Models(name="m", profile=LINE)))
    measured = msgspec.structs.replace(spec, name="resnet")
    path = tmp_path_factory.mktemp("models") / "catalogue.json"
    path.write_bytes(msgspec.json.encode([measured]))
    profile = Profile(catalogue=str(path), model="resnet")
    [model] = models_of(setup(Models(name="mine", profile=profile)))
    assert model.name == "mine"
    assert model.profile == spec.profile


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            Models(name="m", profile="resnet50_v2"),
            "profile 'resnet50_v2' does not begin with v100/",
        ),
        (Models(name="m", profile="v100/resnet51"), "v100/resnet51 is not one of the table's 64"),
        (Models(name="{profile}", profile="v100/fish*"), "no profile is like 'v100/fish\\*'"),
        (Models(name="{profile}", profile="a100/*"), "no profile is like 'a100/\\*'"),
        (Models(name="m", profile="v100/resnet50_v2", max_batch=7), "max_batch 7 is not one of"),
        (Models(name="x", profile=LINE), "'m\\*' matches none of 1: x"),
    ],
)
def test_what_cannot_be_built_is_refused_before_a_run(models: Models, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(setup(models))


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="the name 'm1' is given twice"):
        check(setup(Models(name="m", profile=LINE, count=2), Models(name="m1", profile=LINE)))


def test_residents_are_all_or_none_or_as_many_as_fit_each_device_with_its_own_share_first() -> None:
    assert resident(Devices(pages=16, resident="none")) == [()]
    assert resident(Devices(pages=16, resident="all")) == [("m0", "m1", "m2", "m3")]
    assert resident(Devices(count=2, pages=12, resident="fit")) == [
        ("m0", "m2", "m1"),
        ("m1", "m3", "m0"),
    ]
    assert resident(Devices(count=2, pages=5, resident="fit")) == [("m0",), ("m1",)]
    with pytest.raises(ValueError, match="w0: its 4 resident models need 16 pages, it has 12"):
        check(setup(devices=(Devices(pages=12, resident="all"),)))


def test_workers_are_counted_through_and_each_has_its_own_chance() -> None:
    of = setup(
        devices=(
            Devices(count=2, exec_noise=0.1, delay_ms=0.5, jitter_ms=0.25),
            Devices(pages=8, page_mb=2, shares_exec_core=True),
        )
    )
    workers = workers_of(of, models_of(of), seed=1)
    assert [worker.worker_id for worker in workers] == ["w0", "w1", "w2"]
    assert (workers[0].orders.delay_ns, workers[0].results.jitter_ns) == (500_000, 250_000)
    spec = workers[2].device
    assert (spec.total_pages, spec.page_bytes, spec.shares_exec_core) == (8, 2 * 2**20, True)
    again = workers_of(of, models_of(of), seed=1)
    arrivals = [[link.arrival_of(0) for link in (w.orders, w.results)] for w in workers[:2]]
    assert arrivals == [[w.orders.arrival_of(0), w.results.arrival_of(0)] for w in again[:2]]
    assert len({instant for pair in arrivals for instant in pair}) == 4


def test_spikes_are_the_devices() -> None:
    spikes = SpikeTimes(probability=1.0, min_ms=2.0, max_ms=3.0)
    of = setup(devices=(Devices(spikes=spikes),))
    [worker] = workers_of(of, models_of(of), seed=1)
    assert worker._spikes == (1.0, 2_000_000, 3_000_000)


def membership(*faults: Crash | Stall) -> list[tuple[float, str, str]]:
    """(second, event, worker) of a run with two devices in which nobody asks anything."""
    seen: list[tuple[float, str, str]] = []

    def watch(now: int, event: Event, _commands: object) -> None:
        if isinstance(event, WorkerJoined | WorkerLost):
            seen.append((now / SECOND_NS, type(event).__name__, event.worker_id))

    of = setup(devices=(Devices(count=2, resident="fit"),), faults=faults)
    models = models_of(of)
    simulation = Simulation(Scheduler(models=models), workers_of(of, models, 1), observer=watch)
    schedule_faults(of, simulation, models, seed=1, duration_s=10.0)
    simulation.run()
    return [entry for entry in seen if entry[0] > 0]


def test_a_worker_that_crashes_is_missed_later_and_comes_back_under_another_id() -> None:
    assert membership(
        Crash(worker=1, at_s=5.0, down_s=1.0, detect_ms=100.0),
        Crash(worker=1, at_s=2.0, down_s=1.0, detect_ms=1500.0),
        Crash(worker=0, at_s=3.0),
    ) == [
        (3.0, "WorkerJoined", "w1.1"),
        (3.5, "WorkerLost", "w1"),
        (4.0, "WorkerLost", "w0"),
        (5.1, "WorkerLost", "w1.1"),
        (6.0, "WorkerJoined", "w1.2"),
    ]


def test_a_worker_that_is_down_cannot_crash() -> None:
    crashes = (Crash(worker=0, at_s=2.0, down_s=3.0), Crash(worker=0, at_s=4.0))
    with pytest.raises(ValueError, match=r"worker 0 crashes at 4.0 s, and is down until 5.0 s"):
        membership(*crashes)
    with pytest.raises(ValueError, match="is down until inf s"):
        membership(Crash(worker=0, at_s=2.0), Crash(worker=0, at_s=4.0))


def test_a_stall_may_come_again() -> None:
    crash = Crash(worker=0, at_s=6.0, detect_ms=50.0)
    assert membership(crash) == [(6.05, "WorkerLost", "w0")]
    once = Stall(at_s=2.0, stall_ms=100.0)
    assert membership(crash, once) == [(6.05, "WorkerLost", "w0")]
    every = Stall(at_s=2.0, stall_ms=100.0, every_s=2.0)
    assert membership(crash, every) == [(6.1, "WorkerLost", "w0")]
