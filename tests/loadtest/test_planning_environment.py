"""The simulator as an environment: what steps return, how a fleet lives; and the guard's caps."""

from typing import Any

import pytest

from loadtest.planning.autoscalers import Oracle, Predictive, Reactive, Stabilised, Static
from loadtest.planning.environment import (
    Episode,
    FleetAction,
    FleetEnv,
    Observation,
    Policy,
    Rewards,
    play,
)
from loadtest.planning.guard import Guarded
from loadtest.scenario import Case
from loadtest.scenario_setup import Devices, Models, Profile, Setup
from loadtest.stage import models_of
from loadtest.workloads import Closed, Diurnal, Poisson, WorkloadEntry, open_loop

# A device does ten a second alone, and twenty in batches of four.
LINE = Profile(first_ms=100, each_ms=33, load_ms=20, weights_mb=100)
INTERVAL_S, LAUNCH_S, MOST = 5.0, 10.0, 8


def case(
    *workload: WorkloadEntry, devices: int = 2, duration_s: float = 100, policy: str = "remontoir"
) -> Case:
    setup = Setup(
        duration_s=duration_s,
        models=(Models(name="m", profile=LINE, max_batch=4),),
        workload=workload or (Poisson(models="m", slo_ms=800, rate_per_s=15),),
        devices=(Devices(count=devices, pages=20),),
    )
    return Case(scenario="t", setup=setup, policy=policy, duration_s=duration_s)


def env(of: Case, **more: Any) -> FleetEnv:
    return FleetEnv(of, interval_s=INTERVAL_S, launch_s=LAUNCH_S, max_devices=MOST, **more)


def waves(duration_s: float = 300) -> Case:
    """Between one device's load and five's."""
    entry = Diurnal(models="m", slo_ms=800, rate_per_s=30, amplitude=0.8, period_s=150)
    return case(entry, devices=3, duration_s=duration_s)


def test_a_run_is_played_step_by_step_and_every_request_counts_once() -> None:
    of = case()
    asked = len(list(open_loop(of.setup.workload, duration_s=100, seed=1, models=["m"])))
    environment = env(of, rewards=Rewards(per_good=2.0, per_device_s=0.5))
    seen, info = environment.reset()
    assert info == {}
    assert (seen.now_s, seen.serving, seen.starting, seen.arrived) == (0.0, 2, 0, 0)
    arrived = answered = steps = 0
    is_over = False
    while not is_over:
        seen, reward, is_over, is_truncated, info = environment.step(2)
        steps += 1
        assert seen.now_s == steps * INTERVAL_S
        assert reward == 2.0 * seen.good - 0.5 * info["device_s"]
        assert info["device_s"] == 2 * INTERVAL_S
        assert not is_truncated
        arrived += seen.arrived
        answered += seen.good + seen.missed
    assert (arrived, answered) == (asked, asked)
    assert steps in (20, 21)
    with pytest.raises(RuntimeError, match=r"reset\(\) begins a run"):
        environment.step(2)


def test_the_same_seed_is_the_same_run() -> None:
    environment = env(case(duration_s=30))
    first, second, other = (play(environment, Static(2), seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first.requests != other.requests


def test_a_device_serves_a_launch_after_it_was_asked_for_and_is_paid_for_meanwhile() -> None:
    environment = env(case(duration_s=60))
    environment.reset()
    seen, _, _, _, info = environment.step(4)
    assert (seen.serving, seen.starting, info["device_s"]) == (2, 2, 4 * INTERVAL_S)
    seen = environment.step(3)[0]  # one that does not serve yet is the first to go
    assert (seen.serving, seen.starting) == (3, 0)
    seen = environment.step(3)[0]
    assert (seen.serving, seen.starting) == (3, 0)


def test_a_device_that_goes_finishes_what_it_does() -> None:
    """Requests are refused for lack of devices, and none fails with one."""
    environment = env(case(Poisson(models="m", slo_ms=1600, rate_per_s=10), duration_s=60))
    environment.reset()
    seen = environment.step(2)[0]
    missed = 0
    for devices in (1, 2, 1, 2, 2, 1, 1, 2):
        seen = environment.step(devices)[0]
        missed += seen.missed
        assert seen.serving <= 2
    assert missed == 0


def test_large_batches_may_be_forbidden_while_it_runs() -> None:
    """Two devices do forty a second in batches of four, and twenty alone."""
    of = case(Poisson(models="m", slo_ms=800, rate_per_s=30), duration_s=60)
    free = play(env(of), lambda _: FleetAction(2))
    capped = play(env(of), lambda _: FleetAction(2, 1))
    assert free.attained > 0.97
    assert 0.5 < capped.attained < 0.75


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: env(case(Closed(models="m", slo_ms=9))), "open loops only"),
        (lambda: FleetEnv(case(), interval_s=0), "interval_s 0 is not positive"),
        (lambda: FleetEnv(case(), launch_s=-1), "launch_s -1 is negative"),
        (lambda: begun().step(9), "9 devices are not in 0 ... 8"),
        (lambda: begun().step(FleetAction(1, 0)), "max_batch 0 is less than 1"),
        (
            lambda: Guarded(Static(1), Static(1), cap=-1, cost_cap=0, interval_s=1, launch_s=1),
            "cap -1",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def begun() -> FleetEnv:
    environment = env(case())
    environment.reset()
    return environment


def seen(
    now_s: float, *, load: float = 0.0, serving: int = 1, recommended: int | None = None
) -> Observation:
    return Observation(now_s, load, serving, 0, 0, 0, 0, 0, None, recommended)


def test_a_fleet_grows_at_once_and_shrinks_when_nothing_wanted_more_for_a_while() -> None:
    stabilised = Stabilised(30)
    assert [stabilised(now, n) for now, n in ((0, 1), (10, 4), (20, 2), (40, 1), (41, 1))] == [
        1, 4, 4, 4, 2,
    ]  # fmt: skip


def test_rules_of_autoscalers() -> None:
    reactive = Reactive(target=0.5, max_devices=6)
    assert reactive(seen(0, load=1.05, serving=2)).devices == 2  # within the tolerance
    assert reactive(seen(10, load=1.2, serving=2)).devices == 3
    assert reactive(seen(20, load=50, serving=2)).devices == 6
    predictive = Predictive(max_devices=6)
    assert predictive(seen(0, serving=3)).devices == 3  # no advice yet: as it is
    assert predictive(seen(10, serving=3, recommended=5)).devices == 5
    of = waves()
    asks = list(open_loop(of.setup.workload, duration_s=300, seed=1, models=["m"]))
    oracle = Oracle(asks, models_of(of.setup), target=0.7, ahead_s=20, max_devices=MOST)
    assert oracle(seen(25)).devices > oracle(seen(100)).devices
    assert oracle(seen(1000)).devices == 1


class Adversary:
    """Behaves until an account has grown, then lets nearly everything go, and again."""

    def __call__(self, now: Observation) -> FleetAction:
        return FleetAction(5, None) if now.now_s % 150 < 100 else FleetAction(0, 1)


def flapping(now: Observation) -> FleetAction:
    return FleetAction(MOST if now.now_s % 20 < 10 else 0)


BAD: dict[str, Policy] = {
    "none": Static(0),
    "flapping": flapping,
    "adversary": Adversary(),
    "no batches": lambda _: FleetAction(4, 1),
    "too many": Static(MOST),
}
CAP, COST_CAP = 0.03, 0.1


@pytest.fixture(scope="module")
def trusted_alone() -> Episode:
    return play(env(waves()), Reactive(target=0.6, max_devices=MOST))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_policy_loses_no_more_than_its_cap(name: str, trusted_alone: Episode) -> None:
    trusted = Reactive(target=0.6, max_devices=MOST)
    guarded = Guarded(
        BAD[name], trusted, cap=CAP, cost_cap=COST_CAP, interval_s=INTERVAL_S, launch_s=LAUNCH_S
    )
    held = play(env(waves()), guarded)
    assert held.requests == trusted_alone.requests
    assert trusted_alone.good - held.good <= CAP * held.requests
    assert held.device_hours <= (1 + COST_CAP) * trusted_alone.device_hours * 1.02
    assert guarded.overruled > 10


@pytest.mark.parametrize("name", ["none", "flapping", "adversary"])
def test_without_the_guard_it_loses_more(name: str, trusted_alone: Episode) -> None:
    alone = play(env(waves()), BAD[name])
    assert trusted_alone.good - alone.good > 2 * CAP * alone.requests


def test_a_good_policy_has_its_way() -> None:
    """One that wants what the trusted one wants is never overruled."""
    guarded = Guarded(
        Reactive(target=0.6, max_devices=MOST),
        Reactive(target=0.6, max_devices=MOST),
        cap=0.0,
        cost_cap=0.0,
        interval_s=INTERVAL_S,
        launch_s=LAUNCH_S,
    )
    play(env(case(duration_s=60)), guarded)
    assert (guarded.overruled, guarded.lost) == (0, 0)
