"""Whose weights are loaded, and whose go for them."""

import pytest

from scheduler.actions import Code
from scheduler.events import Served
from scheduler.policies import Policy, parse
from scheduler.policies.residency.lru import LruResidency
from scheduler.spec import SchedulerConfig
from scheduler.state import MAX_PENDING_LOADS
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import AHEAD_2_MS, Story, model_spec

LRU = parse(AHEAD_2_MS)._replace(residency=LruResidency())


def loads(story: Story) -> list[str]:
    return [load.model for load in story.loads]


def evicts(story: Story) -> list[str]:
    return [evict.model for evict in story.evicts]


def busy_loading(
    make_scheduler: MakeStory, *names: str, policy: Policy | str = AHEAD_2_MS
) -> Story:
    """A device that loads "first" while others begin to wait; done at 20 ms."""
    specs = [model_spec(name, pages=1) for name in ("first", *names)]
    story = make_scheduler(*specs, policy=policy)
    story.join(pages=16)
    story.arrive(0, "first", slo_ms=1_000)
    assert loads(story) == ["first"]
    return story


def test_one_load_at_a_time_per_device(make_scheduler: MakeStory) -> None:
    story = busy_loading(make_scheduler, "a", "b")
    story.arrive(1, "a", slo_ms=1_000)
    story.arrive(2, "b", slo_ms=1_000)
    assert loads(story) == ["first"]


def test_the_largest_demand_per_load_time_is_loaded_first(make_scheduler: MakeStory) -> None:
    story = busy_loading(make_scheduler, "a", "b", "c")
    for request_id, name in enumerate("abbbcc", start=1):
        story.arrive(request_id, name, slo_ms=1_000)
    order = []
    for step in range(1, 4):
        story.finish(story.loads[0], at_ms=21.0 * step)
        order += loads(story)
    assert order == ["b", "c", "a"]


def test_demand_that_a_load_could_not_save_does_not_count(make_scheduler: MakeStory) -> None:
    """Three wait for "a" and one for "b"; when the lane is free, "a" would be too late for all."""
    story = busy_loading(make_scheduler, "a", "b")
    for request_id in (1, 2, 3):
        story.arrive(request_id, "a", slo_ms=90)
    story.arrive(4, "b", slo_ms=1_000)
    story.finish(story.loads[0], at_ms=75, took_ms=20)
    assert loads(story) == ["b"]


def test_demand_that_has_gone_is_not_loaded_for(make_scheduler: MakeStory) -> None:
    story = busy_loading(make_scheduler, "a")
    story.arrive(1, "a", slo_ms=1_000)
    story.cancel(1)
    story.finish(story.loads[0], at_ms=20)
    assert loads(story) == []


def test_the_least_valuable_weights_go(make_scheduler: MakeStory) -> None:
    """Recent use per page: "rare" was used once, "often" four times."""
    specs = [model_spec(name, pages=2) for name in ("often", "rare", "new")]
    story = make_scheduler(*specs)
    story.join(pages=4, resident=["often", "rare"])
    now_ms = 0.0
    for request_id, name in enumerate(["often", "often", "often", "rare"]):
        story.arrive(request_id, name, slo_ms=200, at_ms=now_ms)
        now_ms += 12
        story.finish(story.infers[0], at_ms=now_ms)
    story.arrive(9, "new", slo_ms=200)
    assert evicts(story) == ["rare"]


def test_the_baseline_evicts_the_least_recently_used(make_scheduler: MakeStory) -> None:
    specs = [model_spec(name, pages=2) for name in ("often", "rare", "new")]
    story = make_scheduler(*specs, policy=LRU)
    story.join(pages=4, resident=["often", "rare"])
    now_ms = 0.0
    for request_id, name in enumerate(["often", "often", "often", "rare"]):
        story.arrive(request_id, name, slo_ms=200, at_ms=now_ms)
        now_ms += 12
        story.finish(story.infers[0], at_ms=now_ms)
    story.arrive(9, "new", slo_ms=200)
    assert evicts(story) == ["often"]
    story.cancel(9)


def test_the_baseline_loads_nothing_that_nobody_waits_for(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("m", pinned=True), policy=LRU)
    story.join()
    assert loads(story) == []


def test_the_baseline_skips_what_cannot_be_loaded_yet(make_scheduler: MakeStory) -> None:
    story = busy_loading(make_scheduler, policy=LRU)
    story.finish(story.loads[0], at_ms=1, code=Code.LOAD_FAILED)
    assert loads(story) == []
    story.advance(101)
    assert loads(story) == ["first"]


def test_as_many_go_as_are_needed_and_no_more(make_scheduler: MakeStory) -> None:
    specs = [model_spec(name, pages=2) for name in "abcd"]
    story = make_scheduler(*specs, model_spec("large", pages=5))
    story.join(pages=9, resident=list("abcd"))
    story.arrive(1, "large", slo_ms=500)
    assert len(evicts(story)) == 2
    assert story.scheduler.devices["w"].pages_free == 0


def test_weights_with_work_in_flight_never_go(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(pages=4, resident=["a"])
    story.arrive(1, "a", slo_ms=500)
    story.arrive(2, "b", slo_ms=500)
    assert (evicts(story), loads(story)) == ([], [])
    story.finish(story.infers[0], at_ms=10)
    assert (evicts(story), loads(story)) == (["a"], ["b"])


def test_weights_that_requests_wait_for_go_only_for_twice_as_many(
    make_scheduler: MakeStory,
) -> None:
    config = SchedulerConfig(max_outstanding_infers=1)
    story = make_scheduler(model_spec("a"), model_spec("b"), model_spec("c"), config=config)
    story.join(pages=8, resident=["a", "c"])
    story.arrive(0, "c", slo_ms=5_000)  # keeps the lane, and "c" in place
    story.arrive(1, "a", slo_ms=5_000)
    story.arrive(2, "b", slo_ms=5_000)
    assert loads(story) == []
    story.arrive(3, "b", slo_ms=5_000)
    assert (evicts(story), loads(story)) == (["a"], ["b"])
    story.finish(story.evicts[0], at_ms=1)
    for action in (story.loads[0], story.infers[0]):
        story.finish(action, at_ms=30)
    while story.sent:
        story.finish(next(iter(story.sent.values())).action)
    assert all(isinstance(outcome, Served) for outcome in story.outcomes.values())


def test_what_is_displaced_goes_to_another_device(make_scheduler: MakeStory) -> None:
    config = SchedulerConfig(max_outstanding_infers=1)
    a, b, c = model_spec("a"), model_spec("b"), model_spec("c")
    story = make_scheduler(a, b, c, config=config)
    story.join("one", pages=8, resident=["a", "c"])
    story.join("two", pages=4, specs=[a])
    story.arrive(0, "c", slo_ms=5_000)
    story.arrive(1, "a", slo_ms=5_000)
    story.arrive(2, "b", slo_ms=5_000)
    story.arrive(3, "b", slo_ms=5_000)
    assert {(load.model, story.worker_of(load)) for load in story.loads} == {
        ("b", "one"),
        ("a", "two"),
    }


def test_one_of_two_copies_goes_even_while_requests_wait(make_scheduler: MakeStory) -> None:
    config = SchedulerConfig(max_outstanding_infers=1)
    story = make_scheduler(model_spec("a"), model_spec("b"), model_spec("c"), config=config)
    story.join("one", pages=8, resident=["a", "c"])
    story.join("two", pages=4, resident=["a"], specs=[story.specs[0]])
    story.arrive(0, "c", slo_ms=5_000)
    story.arrive(1, "a", slo_ms=5_000)
    story.arrive(2, "a", slo_ms=5_000)
    story.arrive(3, "b", slo_ms=5_000)
    assert [(evict.model, story.worker_of(evict)) for evict in story.evicts] == [("a", "one")]


def test_pinned_weights_never_go(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a", pinned=True), model_spec("b"))
    story.join(pages=4, resident=["a"])
    for request_id in range(4):
        story.arrive(request_id, "b", slo_ms=500)
    assert evicts(story) == []
    story.advance(500)
    assert len(story.outcomes) == 4


def test_a_pinned_model_is_loaded_when_others_make_room(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("p", pinned=True))
    story.join(pages=4, specs=[story.specs[0]], resident=["a"])
    story.join("v", pages=4, resident=["a"])
    assert [(load.model, story.worker_of(load)) for load in story.loads] == [("p", "v")]


def test_a_pinned_model_that_finds_no_room_waits_for_it(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("p"))
    story.join(pages=4, resident=["a"])
    story.arrive(1, "a", slo_ms=500)
    story.pin("p")
    assert loads(story) == []
    story.finish(story.infers[0], at_ms=10)
    assert (evicts(story), loads(story)) == (["a"], ["p"])


def test_demand_comes_before_a_pin(make_scheduler: MakeStory) -> None:
    story = busy_loading(make_scheduler, "asked", "pinned")
    story.pin("pinned")
    story.arrive(1, "asked", slo_ms=1_000)
    story.finish(story.loads[0], at_ms=20)
    assert loads(story) == ["asked"]
    story.finish(story.loads[0], at_ms=40)
    assert loads(story) == ["pinned"]


@pytest.mark.parametrize("busy", [True, False])
def test_a_model_asked_for_again_and_again_does_not_hide_the_others(
    make_scheduler: MakeStory, busy: bool
) -> None:
    """Every change of demand is filed anew; only the last one counts."""
    story = busy_loading(make_scheduler, "popular", "other")
    for request_id in range(1, 4 * MAX_PENDING_LOADS):
        story.arrive(2 * request_id, "popular", slo_ms=1_000)
        if busy:
            story.cancel(2 * request_id)
    story.arrive(1, "other", slo_ms=1_000)
    assert [model.spec.name for model in story.scheduler.state.wanted()].count("popular") <= 1
    story.finish(story.loads[0], at_ms=1, code=Code.LOAD_FAILED)
    assert len(loads(story)) == 1
    assert len(story.scheduler.state._wanted) <= 2 * 3 + MAX_PENDING_LOADS + 1
    for request_id in story.scheduler.open_request_ids():
        story.cancel(request_id)


def test_on_a_shared_core_a_load_waits_for_the_execution(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(shared=True, resident=["a"])
    story.arrive(1, "a", slo_ms=500)
    story.arrive(2, "b", slo_ms=500)
    assert loads(story) == []
    story.advance(8.3)  # the lane is predicted free at 10.2, less 2 of schedule-ahead
    assert loads(story) == ["b"]
    assert story.loads[0].earliest_ns == story.infers[0].earliest_ns + 10_000_000
    story.finish(story.infers[0], at_ms=10.2)
    story.finish(story.loads[0], at_ms=30.2)
    assert [infer.request_ids for infer in story.infers] == [(2,)]


def test_on_a_shared_core_an_execution_waits_for_the_load(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(shared=True, resident=["a"])
    story.arrive(1, "b", slo_ms=500)
    story.arrive(2, "a", slo_ms=500)
    assert (loads(story), story.infers) == (["b"], [])
    story.advance(18.3)
    assert [infer.request_ids for infer in story.infers] == [(2,)]


def test_with_lanes_of_their_own_loads_and_executions_overlap(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(resident=["a"])
    story.arrive(1, "b", slo_ms=500)
    story.arrive(2, "a", slo_ms=500)
    assert (loads(story), len(story.infers)) == (["b"], 1)


@pytest.mark.parametrize("policy", [AHEAD_2_MS, LRU])
def test_who_fits_nowhere_here_does_not_stand_in_the_way(
    make_scheduler: MakeStory, policy: Policy | str
) -> None:
    """More wait for "large", which "small" could never hold, and "big" is at its own LOAD."""
    specs = [model_spec("first", pages=1), model_spec("large", pages=12), model_spec("b", pages=1)]
    story = make_scheduler(*specs, policy=policy)
    story.join("big", pages=13)
    story.arrive(0, "first", slo_ms=1_000)
    for request_id in (1, 2, 3):
        story.arrive(request_id, "large", slo_ms=1_000)
    story.arrive(4, "b", slo_ms=1_000)
    story.join("small", pages=4)
    assert {(load.model, story.worker_of(load)) for load in story.loads} == {
        ("first", "big"),
        ("b", "small"),
    }


@pytest.mark.parametrize("policy", [AHEAD_2_MS, LRU])
def test_who_finds_no_room_now_does_not_stand_in_the_way(
    make_scheduler: MakeStory, policy: Policy | str
) -> None:
    """ "large" needs the pages of what executes; "b" needs one that is free."""
    specs = [model_spec("busy", pages=4), model_spec("large", pages=8), model_spec("b", pages=1)]
    story = make_scheduler(*specs, policy=policy)
    story.join(pages=9, resident=["busy"])
    story.arrive(0, "busy", slo_ms=1_000)
    for request_id in (1, 2, 3):
        story.arrive(request_id, "large", slo_ms=1_000)
    story.arrive(4, "b", slo_ms=1_000)
    assert loads(story) == ["b"]
