"""Classes of requests: in overload the higher go first, and what they leave is the lower's."""

import pytest

from scheduler.actions import Infer
from scheduler.events import Rejected, RequestArrived, Served
from scheduler.priority import HIGH, LOW, NORMAL
from scheduler.simulation import SimulatedWorker
from scheduler.spec import ModelSpec, SchedulerConfig
from tests.scenarios.world import World, merged, poisson
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, device_spec, model_spec, replies_in

# 16 rows in 17.9 ms: 894 a second.
MODEL = {1: 2.9, 2: 3.9, 4: 5.9, 8: 9.9, 16: 17.9}
CAPACITY = 894
ONE = [model_spec("m", exec_ms=MODEL, pages=1)]
TWO = [model_spec(name, exec_ms=MODEL, pages=1) for name in ("m", "other")]


def asked(
    load: float,
    priority: int,
    models: list[str],
    seed: int,
    *,
    slo_ms: float = 50,
    seconds: float = 0.6,
) -> list[RequestArrived]:
    return [
        RequestArrived(
            request.request_id, request.model, request.arrival_ns, request.deadline_ns,
            elements=4, priority=priority,
        )
        for request in poisson(
            load * CAPACITY, seconds, models=models, slo_ms=slo_ms, seed=seed,
            first_id=1_000_000 * seed,
        )
    ]  # fmt: skip


def play(specs: list[ModelSpec], *streams: list[RequestArrived]) -> World:
    worker = SimulatedWorker("w", device_spec(), specs, resident=[spec.name for spec in specs])
    world = World(specs, [worker])
    world.run(merged(*streams))
    return world


def served(world: World, priority: int) -> int:
    return sum(
        isinstance(world.outcome(request_id), Served)
        for request_id, request in world.asked.items()
        if request.priority == priority
    )


def share(world: World, priority: int) -> float:
    num_asked = sum(request.priority == priority for request in world.asked.values())
    return served(world, priority) / num_asked


def test_of_one_model_the_high_are_served_whatever_the_others_ask() -> None:
    high = asked(0.3, HIGH, ["m"], 1)
    world = play(ONE, high, asked(3, NORMAL, ["m"], 2))
    assert share(world, HIGH) > 0.97
    as_usual = play(ONE, asked(0.3, NORMAL, ["m"], 1), asked(3, NORMAL, ["m"], 2))
    assert share(as_usual, NORMAL) < 0.35
    assert len(world.outcomes()) == len(as_usual.outcomes())
    total = served(world, HIGH) + served(world, NORMAL)
    assert total > 0.95 * served(as_usual, NORMAL)


def test_of_another_model_too() -> None:
    world = play(TWO, asked(0.3, HIGH, ["m"], 1), asked(3, NORMAL, ["other"], 2))
    assert share(world, HIGH) > 0.97


def test_the_low_have_what_is_left() -> None:
    world = play(TWO, asked(0.5, NORMAL, ["m", "other"], 1), asked(3, LOW, ["m", "other"], 2))
    assert share(world, NORMAL) > 0.95
    assert served(world, NORMAL) + served(world, LOW) > 0.85 * 0.6 * CAPACITY


@pytest.mark.parametrize("priority", [HIGH, LOW])
def test_alone_every_class_has_everything(priority: int) -> None:
    world = play(ONE, asked(2, priority, ["m"], 1))
    assert served(world, priority) == served(play(ONE, asked(2, NORMAL, ["m"], 1)), NORMAL)


def test_some_of_the_low_that_can_wait_cost_the_others_little() -> None:
    alone = play(ONE, asked(3, NORMAL, ["m"], 1))
    beside = play(ONE, asked(3, NORMAL, ["m"], 1), asked(0.03, LOW, ["m"], 2, slo_ms=1_000))
    assert served(beside, NORMAL) > 0.95 * served(alone, NORMAL)


def test_of_one_class_the_loose_do_not_shut_out_the_tight() -> None:
    def tight(priority: int) -> int:
        tight, loose = asked(1, priority, ["m"], 1), asked(2, priority, ["m"], 2, slo_ms=200)
        world = play(ONE, tight, loose)
        return sum(isinstance(world.outcome(each.request_id), Served) for each in tight)

    assert tight(HIGH) == tight(NORMAL)


# ---------------------------------------------------------------------- which batch, who is let in


def crowded(make_scheduler: MakeStory, priority: int = NORMAL, **settings: object) -> Story:
    """The device is at work until 20 ms; 39 requests of "m" wait, four of which take 16 ms."""
    m = model_spec("m", exec_ms={1: 10, 2: 12, 4: 16}, pages=1)
    blocker = model_spec("blocker", exec_ms={1: 20}, pages=1)
    config = SchedulerConfig(max_outstanding_infers=1, **settings)  # type: ignore[arg-type]
    story = make_scheduler(blocker, m, config=config)
    story.join(pages=100, resident=["blocker", "m"])
    story.arrive(0, "blocker", slo_ms=1_000)
    for request_id in range(1, 40):
        story.arrive(request_id, "m", slo_ms=200 + request_id, priority=priority, tenant="flood")
    assert story.scheduler.state.utilisation > 1
    return story


def next_batch(story: Story) -> Infer:
    story.finish(story.infers[0], at_ms=20)
    [infer] = story.infers
    return infer


def test_the_high_go_first_and_others_fill_the_batch(make_scheduler: MakeStory) -> None:
    story = crowded(make_scheduler)
    story.arrive(100, "m", slo_ms=500, priority=HIGH)
    story.arrive(101, "m", slo_ms=400, priority=HIGH)
    assert next_batch(story).request_ids == (1, 2, 101, 100)


def test_the_low_wait_for_the_usual_ones(make_scheduler: MakeStory) -> None:
    story = crowded(make_scheduler, LOW)
    for request_id in range(100, 104):
        story.arrive(request_id, "m", slo_ms=480, priority=NORMAL)
    assert next_batch(story).request_ids == (100, 101, 102, 103)


def test_the_low_go_where_nobody_else_can_be_in_time(make_scheduler: MakeStory) -> None:
    story = crowded(make_scheduler, LOW)
    story.arrive(100, "m", slo_ms=30.5, priority=NORMAL)
    assert next_batch(story).request_ids == (1, 2, 3, 4)


def test_a_floor_comes_before_a_class(make_scheduler: MakeStory) -> None:
    story = crowded(make_scheduler, tenant_weights={"flood": 0, "owed": 1})
    story.arrive(100, "m", slo_ms=400, priority=HIGH)
    story.arrive(101, "m", slo_ms=500, tenant="owed")
    assert next_batch(story).request_ids == (1, 2, 3, 101)


def test_whom_others_come_before_is_told_so_at_the_door(make_scheduler: MakeStory) -> None:
    """39 wait for 160 ms of the device. A higher class does not wait for them, a lower one does
    though they are due later.
    """
    story = crowded(make_scheduler)
    asked = ((100, 60, HIGH), (101, 100, NORMAL), (102, 100, LOW))
    answers = [
        replies_in(story.arrive(request_id, "m", slo_ms=slo_ms, priority=priority))
        for request_id, slo_ms, priority in asked
    ]
    assert answers[:2] == [{}, {}]
    assert isinstance(answers[2][102], Rejected)


def test_a_class_of_which_nobody_can_be_in_time_leaves_the_device_to_the_others(
    make_scheduler: MakeStory,
) -> None:
    """The device is late: at 21.5 ms, the four rows of 100 are not done by 38."""
    story = crowded(make_scheduler, LOW)
    story.arrive(100, "m", slo_ms=38, rows=4, priority=NORMAL)
    story.finish(story.infers[0], at_ms=21.5)
    [infer] = story.infers
    assert infer.request_ids == (1, 2, 3, 4)


def test_the_blocking_cap_holds_for_who_fills_up(make_scheduler: MakeStory) -> None:
    """ "b" is kept free of batches longer than 27 ms; one row of "m" takes 10, eight take 50."""
    fast = model_spec("fast", exec_ms={1: 2}, pages=1)
    config = SchedulerConfig(max_outstanding_infers=1)
    story = make_scheduler(fast, model_spec("m", pages=1), config=config)
    for worker in "ab":
        story.join(worker, pages=100, resident=["fast", "m"])
    story.arrive(1, "fast", slo_ms=30)
    story.finish(story.infers[0], at_ms=3)
    for request_id in range(2, 80):
        story.arrive(request_id, "m", slo_ms=400, at_ms=200)
    for request_id in (100, 101):
        story.arrive(request_id, "m", slo_ms=400, priority=HIGH)
    on_b = next(infer for infer in story.infers if story.worker_of(infer) == "b")
    story.finish(on_b, at_ms=215)
    on_b = next(infer for infer in story.infers if story.worker_of(infer) == "b")
    assert len(on_b.request_ids) == 3
    assert {100, 101} < set(on_b.request_ids)
