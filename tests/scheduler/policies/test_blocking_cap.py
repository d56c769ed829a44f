"""Long batches keep off some devices while tighter classes are about.

"slow" takes 20 ms for one row, 50 for eight; "fast" 2 ms. Devices "a", "b", "c" join in that order.
"""

import pytest

from scheduler.events import Served
from scheduler.policies import parse
from scheduler.policies.batching.blocking_cap import REFRESH_NS
from scheduler.policies.batching.least_latest_start import MAX_CAPPED
from scheduler.simulation import SimulatedWorker
from tests.scenarios.world import World, merged, poisson
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, device_spec, model_spec, ms

SLOW = model_spec("slow", exec_ms={1: 20, 8: 50}, pages=1)
FAST = model_spec("fast", exec_ms={1: 2, 8: 4}, pages=1)
LATER_MS = 2 * REFRESH_NS / ms(1)


def with_devices(
    make_scheduler: MakeStory, workers: str, *specs: object, **options: object
) -> Story:
    story = make_scheduler(SLOW, FAST, *specs, **options)
    for worker in workers:
        story.join(worker, pages=100, resident=[spec.name for spec in story.specs])
    return story


def ask_fast(story: Story, request_id: int, *, at_ms: float, slo_ms: float = 15) -> None:
    """A request of the tight class, served at once, and the figures taken after it."""
    story.arrive(request_id, "fast", slo_ms=slo_ms, at_ms=at_ms)
    story.finish(story.infers[-1], at_ms=at_ms + 3)
    story.advance(at_ms + LATER_MS)


def workers_of(story: Story) -> list[str]:
    return [story.worker_of(infer) for infer in story.infers]


def test_a_device_is_kept_free_of_batches_that_a_tight_class_cannot_wait_for(
    make_scheduler: MakeStory,
) -> None:
    story = with_devices(make_scheduler, "ab")
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "slow", slo_ms=400)
    story.arrive(3, "slow", slo_ms=400)
    assert workers_of(story) == ["a"]
    story.arrive(4, "fast", slo_ms=15)
    assert workers_of(story) == ["a", "b"]
    story.finish(story.infers[1], at_ms=LATER_MS + 3)
    assert workers_of(story) == ["a"], "3 waits for a, though b is idle"
    story.finish(story.infers[0], at_ms=LATER_MS + 20.2)
    assert [infer.request_ids for infer in story.infers] == [(3,)]
    assert workers_of(story) == ["a"]


def test_without_the_cap_both_take_them(make_scheduler: MakeStory) -> None:
    policy = parse("remontoir:blocking_cap=false")
    story = with_devices(make_scheduler, "ab", policy=policy)
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "slow", slo_ms=400)
    story.arrive(3, "slow", slo_ms=400)
    assert workers_of(story) == ["a", "b"]


@pytest.mark.parametrize("slo_ms", [15, 29])
def test_classes_within_a_factor_of_two_do_not_cap_each_other(
    make_scheduler: MakeStory, slo_ms: float
) -> None:
    story = with_devices(make_scheduler, "ab")
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "slow", slo_ms=slo_ms + 20 if slo_ms == 29 else 400)
    story.arrive(3, "slow", slo_ms=28)
    assert workers_of(story) == ["a", "b"]


def test_elsewhere_batches_are_cut_to_what_the_tight_class_can_wait(
    make_scheduler: MakeStory,
) -> None:
    """One row in 10 ms, two in 16, eight in 50: with 30 ms, "fast" can wait 27.3."""
    story = with_devices(make_scheduler, "ab", model_spec("m", pages=1))
    ask_fast(story, 1, at_ms=0, slo_ms=30)
    story.arrive(2, "slow", slo_ms=400)
    story.arrive(3, "slow", slo_ms=400)
    assert workers_of(story) == ["a", "b"], "one row of it can be waited for"
    story.finish(story.infers[0], at_ms=LATER_MS + 20.2)
    story.finish(story.infers[0], at_ms=LATER_MS + 20.3)
    story.arrive(4, "m", slo_ms=400)
    story.arrive(5, "fast", slo_ms=40)
    for request_id in range(10, 26):
        story.arrive(request_id, "m", slo_ms=400)
    story.finish(story.infers[1], at_ms=LATER_MS + 23)
    assert [len(infer.request_ids) for infer in story.infers] == [1, 3]
    story.finish(story.infers[0], at_ms=LATER_MS + 31)
    assert [len(infer.request_ids) for infer in story.infers] == [3, 8]
    assert workers_of(story) == ["b", "a"]


def test_while_the_tight_class_is_silent_for_ten_seconds_it_counts_and_then_no_more(
    make_scheduler: MakeStory,
) -> None:
    story = with_devices(make_scheduler, "ab")
    ask_fast(story, 1, at_ms=0)
    for request_id, at_ms, taken_by in ((10, 9_900, ["a"]), (20, 10_200, ["a", "b"])):
        story.arrive(request_id, "slow", slo_ms=400, at_ms=at_ms)
        story.arrive(request_id + 1, "slow", slo_ms=400)
        assert workers_of(story) == taken_by
        while story.infers:
            story.finish(story.infers[0], at_ms=at_ms + 50)


def test_what_waits_is_looked_at_again_with_new_figures(make_scheduler: MakeStory) -> None:
    """The tight class falls silent while 3 waits behind 150 ms of others on the one device."""
    story = with_devices(make_scheduler, "ab", model_spec("long", exec_ms={1: 450}, pages=1))
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "long", slo_ms=2_000, at_ms=9_700)
    story.arrive(3, "slow", slo_ms=2_000)
    assert workers_of(story) == ["a"]
    story.advance(10_300)
    assert workers_of(story) == ["a", "b"]


def test_a_look_at_what_was_deferred_that_is_lost_would_be_noticed(
    make_scheduler: MakeStory,
) -> None:
    story = with_devices(make_scheduler, "ab")
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "slow", slo_ms=400)
    story.arrive(3, "slow", slo_ms=400)
    waiting = story.scheduler.devices["b"]
    at_ns, waiting.wake_at_ns = waiting.wake_at_ns, None
    assert story.scheduler.overlooked() == {"b": "what was deferred"}
    waiting.wake_at_ns = at_ns
    assert story.scheduler.overlooked() == {}


def test_a_class_is_capped_before_it_is_in_the_figures(make_scheduler: MakeStory) -> None:
    """15 and 60 ms were asked for when they were taken; 400 is twice as lax as both."""
    story = with_devices(make_scheduler, "ab")
    story.arrive(1, "fast", slo_ms=15)
    ask_fast(story, 2, at_ms=1, slo_ms=60)
    ask_fast(story, 3, at_ms=500, slo_ms=60)
    story.finish(story.infers[0])
    story.arrive(4, "fast", slo_ms=60)
    story.finish(story.infers[0])
    story.arrive(5, "slow", slo_ms=400)
    story.arrive(6, "slow", slo_ms=400)
    assert workers_of(story) == ["a"]


def test_the_first_that_hold_the_weights_may_run_long_batches(make_scheduler: MakeStory) -> None:
    """ "slow" is on "b" only: nobody before it in the order could run it instead."""
    story = make_scheduler(SLOW, FAST)
    story.join("a", resident=["fast"])
    story.join("b", resident=["fast", "slow"])
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "slow", slo_ms=30)
    assert workers_of(story) == ["b"]


def test_many_that_are_kept_off_a_device_do_not_hide_who_may_use_it(
    make_scheduler: MakeStory,
) -> None:
    others = [model_spec(f"s{i}", exec_ms={1: 20}, pages=1) for i in range(MAX_CAPPED - 1)]
    story = with_devices(make_scheduler, "ab", *others)
    ask_fast(story, 1, at_ms=0)
    for index, spec in enumerate(others):
        story.arrive(10 + index, spec.name, slo_ms=700 + index)
    story.arrive(2, "fast", slo_ms=2_000)
    assert workers_of(story) == ["a", "b"]
    assert story.infers[1].request_ids == (2,)


def test_one_device_has_to_do_everything(make_scheduler: MakeStory) -> None:
    story = with_devices(make_scheduler, "a")
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "slow", slo_ms=400)
    assert workers_of(story) == ["a"]


@pytest.mark.parametrize("is_capped", [True, False])
def test_fast_and_slow_together(is_capped: bool) -> None:
    """Three devices; "slow" would keep 1.25 of them busy in its best batches, "fast" little."""
    specs = [SLOW, FAST]
    workers = [
        SimulatedWorker(name, device_spec(), specs, resident=["slow", "fast"], seed=index)
        for index, name in enumerate("abc")
    ]
    policy = "remontoir" if is_capped else "remontoir:blocking_cap=false"
    world = World(specs, workers, policy=policy)
    world.run(
        merged(
            poisson(400, 2, models=["fast"], slo_ms=12),
            poisson(200, 2, models=["slow"], slo_ms=400, seed=2, first_id=1_000_000),
        )
    )
    assert world.share(Served, "slow") > 0.99
    if is_capped:
        assert world.share(Served, "fast") > 0.98
    else:
        assert world.share(Served, "fast") < 0.9


def heavy(stray_slo_ms: float) -> World:
    """Two devices, 600 rows/s of 2.25 ms each in batches of eight: 1.35 of them. A stray request
    twice a second.
    """
    work = model_spec("work", exec_ms={1: 10, 8: 18}, pages=1)
    stray = model_spec("stray", exec_ms={1: 2}, pages=1)
    workers = [
        SimulatedWorker(name, device_spec(), [work, stray], resident=["work", "stray"], seed=index)
        for index, name in enumerate("ab")
    ]
    world = World([work, stray], workers)
    world.run(
        merged(
            poisson(600, 3, models=["work"], slo_ms=100),
            poisson(2, 3, models=["stray"], slo_ms=stray_slo_ms, seed=2, first_id=1_000_000),
        )
    )
    return world


def test_a_stray_tight_request_does_not_cost_the_others_a_device() -> None:
    assert heavy(8).share(Served, "work") > 0.98


def test_a_request_that_nothing_could_serve_protects_nobody() -> None:
    world = heavy(0.5)
    assert world.share(Served, "work") > 0.98
    assert world.share(Served, "stray") == 0


def test_a_device_that_is_lost_leaves_its_long_batches_to_another_at_once(
    make_scheduler: MakeStory,
) -> None:
    story = with_devices(make_scheduler, "ab")
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "slow", slo_ms=400)
    story.arrive(3, "slow", slo_ms=400)
    assert workers_of(story) == ["a"]
    story.lose("a")
    assert workers_of(story) == ["b"]


def test_a_tight_class_in_earnest_is_worth_some_of_the_others() -> None:
    """One in eight is tight: it is kept whole though long batches could use both devices."""
    work = model_spec("work", exec_ms={1: 10, 8: 18}, pages=1)
    tight = model_spec("tight", exec_ms={1: 1}, pages=1)
    workers = [
        SimulatedWorker(name, device_spec(), [work, tight], resident=["work", "tight"], seed=index)
        for index, name in enumerate("ab")
    ]
    world = World([work, tight], workers)
    world.run(
        merged(
            poisson(600, 3, models=["work"], slo_ms=100),
            poisson(80, 3, models=["tight"], slo_ms=8, seed=2, first_id=1_000_000),
        )
    )
    assert world.share(Served, "tight") > 0.95
    assert 0.6 < world.share(Served, "work") < 0.9


def test_a_device_that_joins_lets_others_look_at_what_they_deferred(
    make_scheduler: MakeStory,
) -> None:
    story = with_devices(make_scheduler, "ab")
    ask_fast(story, 1, at_ms=0)
    story.arrive(2, "slow", slo_ms=400)
    story.arrive(3, "slow", slo_ms=400)
    assert workers_of(story) == ["a"]
    story.join("c", pages=100)
    assert workers_of(story) == ["a"], "one device is enough for what slow asks"
