"""A tenant that floods the fleet does not take what another is guaranteed."""

import pytest

from scheduler.actions import Infer
from scheduler.events import RequestArrived, Served
from scheduler.simulation import SimulatedWorker
from scheduler.spec import ModelSpec, SchedulerConfig
from tests.scenarios.world import World, merged, poisson
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, device_spec, model_spec, ms

BOTH = SchedulerConfig(tenant_weights={"flood": 1, "victim": 1})
# 16 rows in 17.9 ms: 894 a second.
MODEL = {1: 2.9, 2: 3.9, 4: 5.9, 8: 9.9, 16: 17.9}
CAPACITY = 894


def asked(rate_per_s: float, tenant: str, models: list[str], seed: int) -> list[RequestArrived]:
    return [
        RequestArrived(
            request.request_id, request.model, request.arrival_ns, request.deadline_ns,
            elements=4, tenant=tenant,
        )
        for request in poisson(
            rate_per_s, 1, models=models, slo_ms=50, seed=seed, first_id=1_000_000 * seed
        )
    ]  # fmt: skip


def served_per_s(world: World, tenant: str) -> int:
    return sum(
        isinstance(world.outcome(request_id), Served)
        for request_id, request in world.asked.items()
        if request.tenant == tenant
    )


def flooded(specs: list[ModelSpec], victim_model: str, config: SchedulerConfig | None) -> World:
    worker = SimulatedWorker("w", device_spec(), specs, resident=[spec.name for spec in specs])
    world = World(specs, [worker], config)
    flooding = [spec.name for spec in specs][-2:]
    world.run(
        merged(
            asked(3 * CAPACITY, "flood", flooding, 1),
            asked(0.3 * CAPACITY, "victim", [victim_model], 2),
        )
    )
    return world


def test_of_one_model_the_other_tenant_gets_its_floor_and_nobody_is_worse_off() -> None:
    """A quarter of the device is owed to it, of 894 requests a second 223."""
    specs = [model_spec("m", exec_ms=MODEL, pages=1)]
    without, with_floors = flooded(specs, "m", None), flooded(specs, "m", BOTH)
    assert served_per_s(without, "victim") < 0.12 * CAPACITY
    assert served_per_s(with_floors, "victim") > 0.23 * CAPACITY
    total = served_per_s(with_floors, "victim") + served_per_s(with_floors, "flood")
    assert total > 0.97 * CAPACITY


def test_of_a_large_model_the_other_tenant_gets_its_floor() -> None:
    """In overload small models' requests are worth more; a quarter of the time is not theirs."""
    specs = [
        model_spec("large", exec_ms={1: 15, 4: 30}, pages=1),
        *(model_spec(f"small{i}", exec_ms=MODEL, pages=1) for i in range(2)),
    ]
    without, with_floors = flooded(specs, "large", None), flooded(specs, "large", BOTH)
    assert served_per_s(with_floors, "victim") > 0.25 * 1_000 / 15
    assert served_per_s(with_floors, "victim") > 2 * served_per_s(without, "victim")


# ---------------------------------------------------------------------- which batch


def owing(make_scheduler: MakeStory, *, exec_ms: dict[int, float] | None = None) -> Story:
    """The device is at work until 20 ms; "m" is in overload, and only "victim" is owed time."""
    m = model_spec("m", exec_ms=exec_ms or {1: 10, 2: 12, 4: 16}, pages=1)
    blocker = model_spec("blocker", exec_ms={1: 20}, pages=1)
    story = make_scheduler(
        blocker, m, config=SchedulerConfig(tenant_weights={"flood": 1, "victim": 1},
        max_outstanding_infers=1),
    )  # fmt: skip
    story.join(pages=100, resident=["blocker", "m"])
    accounts = story.scheduler.state.tenants
    assert accounts is not None
    story.arrive(0, "blocker", slo_ms=1_000)
    for request_id in range(1, 40):
        story.arrive(request_id, "m", slo_ms=200 + request_id, tenant="flood")
    assert story.scheduler.state.utilisation > 1
    dispatched = story.scheduler.state.devices["w"].outstanding
    charged = next(iter(dispatched.values())).requests
    charged[0].tenant = "flood"
    accounts.charge(charged, ms(500), 1, story.now_ns)
    return story


def next_batch(story: Story, *, at_ms: float = 20) -> Infer:
    story.finish(story.infers[0], at_ms=at_ms)
    [infer] = story.infers
    return infer


def test_whoever_is_owed_goes_first_and_others_fill_the_batch(make_scheduler: MakeStory) -> None:
    story = owing(make_scheduler)
    story.arrive(100, "m", slo_ms=500, tenant="victim")
    story.arrive(101, "m", slo_ms=400, tenant="victim")
    assert next_batch(story).request_ids == (1, 2, 101, 100)


def test_no_more_than_the_first_deadline_allows(make_scheduler: MakeStory) -> None:
    story = owing(make_scheduler)
    story.arrive(100, "m", slo_ms=34, tenant="victim")
    story.arrive(101, "m", slo_ms=400, tenant="victim")
    assert next_batch(story).request_ids == (100, 101)


@pytest.mark.parametrize("slo_ms", [30.5, 21])
def test_who_is_owed_but_late_does_not_take_part(make_scheduler: MakeStory, slo_ms: float) -> None:
    story = owing(make_scheduler)
    story.arrive(100, "m", slo_ms=slo_ms, tenant="victim")
    assert 100 not in next_batch(story).request_ids


def test_one_of_several_rows_may_be_late_where_one_of_a_single_row_is_not(
    make_scheduler: MakeStory,
) -> None:
    """The device is late: at 21.5 ms, the four rows of 100 are not done by 38, one would be."""
    story = owing(make_scheduler)
    story.arrive(100, "m", slo_ms=38, rows=4, tenant="victim")
    story.arrive(101, "m", slo_ms=43, tenant="victim")
    infer = next_batch(story, at_ms=21.5)
    assert infer.request_ids[0] == 101
    assert 100 not in infer.request_ids


def test_whoever_is_to_run_alone_does(make_scheduler: MakeStory) -> None:
    story = owing(make_scheduler)
    for request_id in (100, 101):
        story.arrive(request_id, "m", slo_ms=400, tenant="victim")
    [suspect, other] = story.scheduler.state.models["m"].queues[""].of_tenant("victim")
    suspect.runs_alone = True
    assert next_batch(story).request_ids == (100,)
    assert other.state.value == "queued"


def test_the_blocking_cap_holds_for_whoever_is_owed(make_scheduler: MakeStory) -> None:
    """ "b" is kept free of batches longer than 27 ms; one row of "m" takes 10, eight take 50."""
    fast = model_spec("fast", exec_ms={1: 2}, pages=1)
    config = SchedulerConfig(tenant_weights={"flood": 1, "victim": 1}, max_outstanding_infers=1)
    story = make_scheduler(fast, model_spec("m", pages=1), config=config)
    for worker in "ab":
        story.join(worker, pages=100, resident=["fast", "m"])
    story.arrive(1, "fast", slo_ms=30)
    story.finish(story.infers[0], at_ms=3)
    for request_id in range(2, 80):
        story.arrive(request_id, "m", slo_ms=400, at_ms=200, tenant="flood")
    for request_id in range(100, 116):
        story.arrive(request_id, "m", slo_ms=400, tenant="victim")
    on_b = next(infer for infer in story.infers if story.worker_of(infer) == "b")
    accounts, device = story.scheduler.state.tenants, story.scheduler.devices["b"]
    assert accounts is not None
    accounts.charge(device.outstanding[on_b.action_id].requests, ms(1_000), 2, story.now_ns)
    story.finish(on_b, at_ms=215)
    on_b = next(infer for infer in story.infers if story.worker_of(infer) == "b")
    assert on_b.request_ids == (100, 101, 102)
