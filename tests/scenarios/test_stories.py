"""Numbered stories in virtual time: what clients see when workers, models and loads go wrong.

Capacity below means what one device can do in batches of eight: 160 requests of "m" a second.
"""

import random

import pytest

from scheduler.actions import Action, Code, EvictWeights, Infer, LoadWeights
from scheduler.events import (
    Expired,
    Failed,
    ModelAdded,
    ModelRemoved,
    Reason,
    Rejected,
    RequestCancelled,
    Send,
    Served,
    WorkerLost,
)
from scheduler.simulation import SimulatedWorker
from scheduler.spec import ModelSpec
from tests.scenarios.world import World, merged, poisson
from tests.scheduler.story import device_spec, model_spec, ms

CAPACITY = 160.0


def worker(
    worker_id: str,
    specs: list[ModelSpec],
    *,
    pages: int = 16,
    shared: bool = False,
    resident: bool = True,
    **options: object,
) -> SimulatedWorker:
    names = [spec.name for spec in specs] if resident else []
    return SimulatedWorker(
        worker_id,
        device_spec(pages=pages, shared=shared),
        specs,
        resident=names,
        **options,  # type: ignore[arg-type]
    )


def test_01_below_capacity_everyone_is_served() -> None:
    specs = [model_spec("m")]
    world = World(specs, [worker("w", specs, noise=0.02)])
    world.run(poisson(0.6 * CAPACITY, 10))
    assert world.share(Served) > 0.999
    assert world.late() == []


@pytest.mark.parametrize("load", [1.5, 3.0])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_02_in_overload_the_device_stays_useful_and_a_no_is_immediate(
    load: float, num_workers: int
) -> None:
    specs = [model_spec("m")]
    world = World(specs, [worker(f"w{i}", specs, noise=0.01, seed=i) for i in range(num_workers)])
    world.run(poisson(load * num_workers * CAPACITY, 4))
    served = world.share(Served) * len(world.asked)
    assert served / 4 > 0.9 * num_workers * CAPACITY
    assert world.share(Expired) < 0.01
    assert world.late() == []
    assert set(world.refused_after_ms()) == {0.0}


def test_03_tight_and_lax_classes_share_a_device() -> None:
    """3 ms of work within 50 ms (20 % of the time), and 30 ms within 450 (90 %): too much in all.
    The fast class is on time, the slow one gets what is left.
    """
    specs = [model_spec("fast", exec_ms={1: 3}), model_spec("slow", exec_ms={1: 30})]
    world = World(specs, [worker("w", specs, noise=0.01)])
    world.run(
        merged(
            poisson(0.2 / 0.003, 20, models=["fast"], slo_ms=50),
            poisson(0.9 / 0.030, 20, models=["slow"], slo_ms=450, seed=2, first_id=1_000_000),
        )
    )
    assert world.share(Served, "fast") > 0.99
    assert world.share(Expired, "slow") < 0.05  # the rest of what is too much is told at once
    useful_s = 0.003 * world.share(Served, "fast") * len(world.outcomes("fast"))
    useful_s += 0.030 * world.share(Served, "slow") * len(world.outcomes("slow"))
    assert useful_s / 20 > 0.9
    assert world.late() == []


@pytest.mark.parametrize("shared", [False, True])
def test_04_twelve_models_in_a_cache_for_three(shared: bool) -> None:
    specs = [model_spec(f"m{i}", exec_ms={1: 4, 4: 10}, load_ms=15) for i in range(12)]
    worker_ = worker("w", specs, pages=12, shared=shared, resident=False)
    world = World(specs, [worker_])
    world.run(poisson(25, 20, models=[spec.name for spec in specs], slo_ms=400))
    assert world.share(Served) > 0.98
    assert world.late() == []
    kinds = [c.action for _, _, commands in world.log for c in commands if isinstance(c, Send)]
    loads = sum(isinstance(action, LoadWeights) for action in kinds)
    evicts = sum(isinstance(action, EvictWeights) for action in kinds)
    assert loads - evicts == 3
    # The worker never had to say no: the mirror is true.
    assert world.scheduler.anomalies == {}


def test_05_a_worker_is_killed_in_mid_batch_and_comes_back() -> None:
    """The gateway notices after a second. Short SLOs: 504 at the deadline; long ones: 503 when it
    is noticed; then 503 at once until the worker is back, with its weights.
    """
    specs = [model_spec("m")]
    world = World(specs, [worker("w-1", specs)])
    requests = merged(
        poisson(50, 4, slo_ms=200), poisson(20, 4, slo_ms=3_000, seed=2, first_id=1_000_000)
    )
    source = iter(requests)
    world.run(source, until_ms=1_000)
    world.simulation.lose("w-1")
    world.simulation.at(ms(2_000), WorkerLost("w-1", "silent for 1 s"))
    world.run(source, until_ms=2_500)
    world.simulation.join(worker("w-2", specs))
    world.run(source)
    reasons = world.reasons()
    assert reasons["deadline_exceeded_executing"] > 0
    assert reasons["worker_lost"] > 10
    assert reasons["no_worker"] > 20
    back = [i for i, request in world.asked.items() if request.arrival_ns > ms(2_600)]
    assert all(isinstance(world.outcome(i), Served) for i in back)
    assert world.late() == []


def test_06_of_two_workers_one_is_lost_and_the_other_takes_over() -> None:
    specs = [model_spec("m")]
    world = World(specs, [worker("a", specs), worker("b", specs)])
    source = iter(list(poisson(0.5 * CAPACITY, 3, slo_ms=500)))
    world.run(source, until_ms=1_000)
    world.simulation.lose("a")
    world.simulation.at(ms(1_200), WorkerLost("a", "its connection is gone"))
    world.run(source)
    assert world.share(Served) > 0.98
    assert world.reasons()["engine_error"] == 0


def test_07_one_input_in_fifty_breaks_the_engine() -> None:
    """Its batch fails; it alone is answered 500, its batch-mates are executed again and served."""
    specs = [model_spec("m")]
    bad = {i for i in range(1, 1_000) if i % 50 == 0}

    def fail(action: Action) -> Code | None:
        is_bad = isinstance(action, Infer) and not bad.isdisjoint(action.request_ids)
        return Code.ENGINE_ERROR if is_bad else None

    world = World(specs, [worker("w", specs, fail=fail)])
    world.run(poisson(0.4 * CAPACITY, 10, slo_ms=1_000))
    failed = {i for i in world.asked if isinstance(world.outcome(i), Failed)}
    assert failed == bad & set(world.asked)
    assert all(isinstance(world.outcome(i), Served) for i in set(world.asked) - bad)


def test_08_a_model_is_replaced_and_removed_under_load() -> None:
    old, new = model_spec("m"), model_spec("m", content_hash="newer", exec_ms={1: 5, 8: 20})
    world = World([old], [worker("old", [old])])
    source = iter(list(poisson(60, 4, slo_ms=300)))
    world.run(source, until_ms=1_000)
    world.simulation.join(worker("new", [new], resident=False))
    world.simulation.at(ms(1_500), ModelAdded(new))
    world.simulation.at(ms(3_000), ModelRemoved("m", "taken out of the repository"))
    world.run(source)
    for request_id, request in world.asked.items():
        outcome = world.outcome(request_id)
        if request.arrival_ns > ms(3_000):
            assert isinstance(outcome, Rejected)
        elif ms(1_600) < request.arrival_ns < ms(2_900):
            assert isinstance(outcome, Served)
            assert outcome.worker_id == "new"
    assert {d.pages_free for d in world.scheduler.devices.values()} == {16}


def test_09_hiccups_do_not_spoil_the_rest() -> None:
    """One execution in a hundred takes ten times as long."""
    specs = [model_spec("m")]
    chance = random.Random(3)
    slow = worker("w", specs)
    vary = slow._vary
    slow._vary = lambda d: vary(d * 10 if chance.random() < 0.01 else d)  # type: ignore[method-assign]
    world = World(specs, [slow])
    world.run(poisson(0.5 * CAPACITY, 20, slo_ms=250))
    assert world.share(Served) > 0.9
    assert world.late() == []


def test_10_clients_that_hang_up_cost_nothing_but_what_runs() -> None:
    specs = [model_spec("m")]
    world = World(specs, [worker("w", specs)])
    requests = list(poisson(2 * CAPACITY, 3, slo_ms=200))
    for request in requests[::2]:
        world.simulation.at(request.arrival_ns + ms(5), RequestCancelled(request.request_id))
    world.run(requests)
    stayed = [world.outcome(request.request_id) for request in requests[1::2]]
    assert sum(isinstance(outcome, Served) for outcome in stayed) / len(stayed) > 0.98


def test_11_a_load_that_always_fails_harms_nobody_else() -> None:
    specs = [model_spec("good"), model_spec("bad")]

    def fail(action: Action) -> Code | None:
        is_bad = isinstance(action, LoadWeights) and action.model == "bad"
        return Code.LOAD_FAILED if is_bad else None

    world = World(specs, [worker("w", specs, resident=False, fail=fail)])
    world.run(poisson(60, 10, models=["good", "bad"], slo_ms=300))
    assert world.share(Served, "good") > 0.99
    assert world.share(Rejected, "bad") + world.share(Expired, "bad") == 1.0


def test_12_evictions_and_loads_that_fail_at_random_keep_the_book_true() -> None:
    specs = [model_spec(f"m{i}", exec_ms={1: 4}, load_ms=15) for i in range(6)]
    chance = random.Random(5)
    codes = [Code.WEIGHTS_IN_USE, Code.LOAD_FAILED, Code.PAGES_EXHAUSTED, Code.TOO_LATE]

    def fail(action: Action) -> Code | None:
        return chance.choice(codes) if chance.random() < 0.1 else None

    world = World(specs, [worker("w", specs, pages=12, resident=False, fail=fail)])
    world.run(poisson(25, 20, models=[spec.name for spec in specs], slo_ms=500))
    device = world.scheduler.devices["w"]
    assert sum(device.pages_by_state().values()) == 12
    assert world.share(Served) > 0.9


def test_13_a_fleet_starts_cold_and_spreads() -> None:
    """Four empty devices, two models, more work than one device can do: copies are made."""
    specs = [model_spec("m"), model_spec("n")]
    world = World(specs, [worker(f"w{i}", specs, pages=8, resident=False) for i in range(4)])
    world.run(poisson(2.5 * CAPACITY, 5, models=["m", "n"], slo_ms=200))
    copies = {name: len(model.holders) for name, model in world.scheduler.state.models.items()}
    assert sum(copies.values()) >= 4
    late_half = [i for i, request in world.asked.items() if request.arrival_ns > ms(2_500)]
    served = sum(isinstance(world.outcome(i), Served) for i in late_half)
    assert served / len(late_half) > 0.95


def test_14_a_quiet_spell_after_a_slow_one_is_not_held_against_the_model() -> None:
    """For half a second everything takes twenty times as long; a minute later nobody remembers."""
    specs = [model_spec("m")]
    slow = worker("w", specs)
    vary = slow._vary
    world = World(specs, [slow])
    slow._vary = lambda d: vary(d * 20 if world.simulation.now < ms(500) else d)  # type: ignore[method-assign]
    world.run(poisson(20, 5, slo_ms=100))
    late_half = [i for i, request in world.asked.items() if request.arrival_ns > ms(3_500)]
    assert all(isinstance(world.outcome(i), Served) for i in late_half)


def test_15_a_model_that_is_refused_for_being_cold_is_loaded_for_those_who_try_again() -> None:
    """8 ms of LOAD do not fit an SLO of 6 ms, 3 ms of execution do. Nobody may wait for it, so no
    queue asks for it; the second request is served all the same.
    """
    specs = [model_spec("m", exec_ms={1: 3}, load_ms=8)]
    world = World(specs, [worker("w", specs, resident=False)])
    world.run(poisson(20, 2, models=["m"], slo_ms=6))
    refused = [o for o in world.outcomes("m") if isinstance(o, Rejected)]
    assert refused
    assert refused[0].reason is Reason.COLD_MODEL
    assert world.share(Served, "m") > 0.85
