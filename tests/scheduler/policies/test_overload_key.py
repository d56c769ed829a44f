"""Who goes first when not everybody can be served, and when that is so."""

from collections.abc import Sequence

import pytest

from scheduler.events import Served
from scheduler.policies.batching import BatchPlan
from scheduler.policies.batching.least_latest_start import LeastLatestStart
from scheduler.policies.batching.overload_key import OVERLOADED, least_loss
from scheduler.simulation import SimulatedWorker
from tests.scenarios.world import World, merged, poisson
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, device_spec, model_spec, ms

SMALL = model_spec("small", exec_ms={1: 10, 8: 24}, pages=1)
LARGE = model_spec("large", exec_ms={1: 40, 8: 96}, pages=1)
SHORT = model_spec("short", exec_ms={1: 14, 4: 20}, pages=1)
CROWD = [model_spec(f"crowd{number}", exec_ms={1: 40, 8: 96}, pages=1) for number in range(30)]


def plan_of(story: Story, model: str, start_ms: float) -> BatchPlan:
    """All that waits of a model, as one batch."""
    state = story.scheduler.state
    queue = state.models[model].queues[""]
    requests = list(queue)
    device = state.devices["w"]
    expected_ns = device.exec_estimate(queue).plan[len(requests)]
    start_ns = story.now_ns + ms(start_ms)
    return BatchPlan(queue, requests, len(requests), len(requests), start_ns, expected_ns, start_ns)


def waiting(make_scheduler: MakeStory, slos_ms: dict[str, list[float]]) -> Story:
    """These wait behind 500 ms of other work, of models that were much asked for before."""
    blocker = model_spec("blocker", exec_ms={1: 600}, pages=1)
    story = make_scheduler(blocker, SMALL, LARGE, SHORT, *CROWD)
    story.join(pages=100, resident=[spec.name for spec in story.specs])
    story.arrive(0, "blocker", slo_ms=5_000)
    request_id = 0
    for model, listed in slos_ms.items():
        for _ in range(16):
            request_id += 1
            story.arrive(request_id, model, slo_ms=listed[-1] + 1_000)
            story.cancel(request_id)
    story.advance(100)
    for model, listed in slos_ms.items():
        for slo_ms in listed:
            request_id += 1
            story.arrive(request_id, model, slo_ms=slo_ms)
    return story


def first_of(story: Story, models: Sequence[str] = ("large", "small")) -> str:
    state = story.scheduler.state
    plans = [plan_of(story, model, 500) for model in models]
    return least_loss(state, plans, state.devices["w"], ms(0.7)).queue.model


def next_of(story: Story) -> str:
    """Of which model the batch is that is really sent next, 500 ms from now."""
    state = story.scheduler.state
    assert state.utilisation > OVERLOADED
    plan = LeastLatestStart().next_infer(state, state.devices["w"], story.now_ns)
    assert isinstance(plan, BatchPlan)
    return plan.queue.model


def test_who_loses_most_requests_per_millisecond_by_waiting_goes_first(
    make_scheduler: MakeStory,
) -> None:
    """After 96 ms of "large" all eight of "small" are late; after 24 of it, all of "large"."""
    story = waiting(make_scheduler, {"large": [600.0] * 8, "small": [600.0] * 8})
    assert first_of(story) == "small"


def test_who_can_wait_lets_others_go_first(make_scheduler: MakeStory) -> None:
    story = waiting(make_scheduler, {"large": [600.0] * 8, "small": [700.0] * 8})
    assert first_of(story) == "large"


def test_only_those_that_would_be_late_count(make_scheduler: MakeStory) -> None:
    """One of "small" against eight of "large": 1/24 against 8/96."""
    story = waiting(make_scheduler, {"large": [600.0] * 8, "small": [600.0] + [700.0] * 7})
    assert first_of(story) == "large"


def test_where_nobody_loses_the_least_latest_start_goes_first(make_scheduler: MakeStory) -> None:
    story = waiting(make_scheduler, {"large": [900.0], "small": [800.0]})
    assert first_of(story) == "small"
    other = waiting(make_scheduler, {"large": [800.0], "small": [800.0]})
    assert first_of(other) == "large"


def test_other_devices_take_their_part_of_the_others(make_scheduler: MakeStory) -> None:
    """With four devices, "small" waits for 24 ms of "large" and is in time."""
    story = waiting(make_scheduler, {"large": [600.0] * 8, "small": [560.0] * 8})
    assert first_of(story) == "small"
    for worker_id in ("x", "y", "z"):
        story.join(worker_id)
    assert first_of(story) == "large"


@pytest.mark.parametrize(("num_small", "first"), [(4, "crowd0"), (8, "small")])
def test_a_batch_that_grows_goes_behind_others_while_it_can_wait(
    make_scheduler: MakeStory, num_small: int, first: str
) -> None:
    """All would be late after the 2,880 ms of the crowd, and "small" is denser: 8 of it are as many
    as it ever has. 4 will be more, and can wait for eight other batches at least.
    """
    crowd = {spec.name: [2_000.0] * 8 for spec in CROWD}
    story = waiting(make_scheduler, {"small": [2_000.0] * num_small, **crowd})
    assert first_of(story, ["small", *crowd]) == first


def test_a_batch_that_grows_and_can_wait_no_longer_goes_first(make_scheduler: MakeStory) -> None:
    crowd = {spec.name: [2_000.0] * 8 for spec in CROWD}
    story = waiting(make_scheduler, {"small": [1_100.0] * 4, **crowd})
    assert first_of(story, ["small", *crowd]) == "small"


# ---------------------------------------------------------------------- short work beside long


@pytest.mark.parametrize(("num_small", "first"), [(4, "large"), (8, "small")])
def test_short_work_slips_in_before_long_unless_it_would_grow(
    make_scheduler: MakeStory, num_small: int, first: str
) -> None:
    """The large one can wait for either; a batch of 4 is in no hurry, and will be one of 8."""
    slos_ms = {"large": [640.0] * 8, "small": [1_000.0] * num_small}
    assert next_of(waiting(make_scheduler, slos_ms)) == first


def test_short_work_that_cannot_wait_slips_in_where_the_long_can(make_scheduler: MakeStory) -> None:
    """All of "large" are lost after both others, but not after "small" alone, of which one is lost
    after "large".
    """
    slos_ms = {
        "large": [632.0] * 8,
        "small": [560.0, 1_000.0, 1_000.0, 1_000.0],
        "short": [1_000.0] * 4,
    }
    story = waiting(make_scheduler, slos_ms)
    assert first_of(story, list(slos_ms)) == "large"
    assert next_of(story) == "small"


# ---------------------------------------------------------------------- when


def test_the_condition_follows_the_load_up_and_down_and_up_again() -> None:
    """A second of twice what the device can do, two of a third of it, a second of twice.

    It is made of arrivals alone. One made of losses would hold: dense batches first is a rule that
    loses requests itself, below saturation, too.
    """
    specs = [SMALL, LARGE]
    worker = SimulatedWorker("w", device_spec(), specs, resident=["small", "large"])
    world = World(specs, [worker])
    streams = []
    for load, from_ms, seconds in ((2, 1, 1), (0.33, 1_001, 2), (2, 3_001, 1)):
        for model, per_s, slo_ms in (("small", 333, 120), ("large", 83, 300)):
            stream = poisson(
                load * per_s / 2,
                seconds,
                models=[model],
                slo_ms=slo_ms,
                seed=len(streams),
                first_id=100_000 * len(streams),
                from_ms=from_ms,
            )
            streams.append(stream)
    overloaded = []
    for at_ms in (900, 2_900, 3_900):
        world.simulation.call_at(
            ms(at_ms), lambda: overloaded.append(world.scheduler.state.utilisation > OVERLOADED)
        )
    world.run(merged(*streams))
    assert overloaded == [True, False, True]


def served_by(policy: str) -> float:
    specs = [model_spec(f"m{i}", exec_ms={1: 6, 16: 21}, pages=1) for i in range(8)]
    names = [spec.name for spec in specs]
    workers = [
        SimulatedWorker(f"w{i}", device_spec(), specs, resident=names, seed=i) for i in range(2)
    ]
    world = World(specs, workers, policy=policy)
    world.run(poisson(2_500, 0.5, models=names, slo_ms=50))
    return world.share(Served)


def test_in_overload_it_serves_more() -> None:
    assert served_by("remontoir") > 1.02 * served_by("remontoir:overload_key=false")
