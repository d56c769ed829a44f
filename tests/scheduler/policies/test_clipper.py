"""Clipper: the largest batch is found by adding one, and by taking a tenth off."""

import pytest

from scheduler.events import Expired
from scheduler.policies import parse
from scheduler.policies.batching.aimd import Aimd
from tests.scheduler.closed_loop import RESNET_PER_S, ClosedLoop
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, model_spec


def limit(story: Story) -> int:
    batching = story.scheduler.policy.batching
    assert isinstance(batching, Aimd)
    return batching.limit(story.scheduler.devices["w"], "m")


def flooded(make_scheduler: MakeStory, options: str = "", *, slo_ms: float = 5_000) -> Story:
    story = make_scheduler(policy=f"clipper{options}")
    story.join(resident=["m"])
    for request_id in range(1, 200):
        story.arrive(request_id, slo_ms=slo_ms)
    return story


def test_full_batches_in_time_let_it_grow_by_one(make_scheduler: MakeStory) -> None:
    story = flooded(make_scheduler)
    sizes = []
    for turn in range(1, 19):
        sizes.append(story.infers[0].batch_size)
        story.finish(story.infers[0], at_ms=60 * turn, took_ms=10)
    # Two are under way at once, and the second was formed before the first had told anything.
    assert sizes == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 8, 8]
    assert limit(story) == 8


def test_smaller_ones_say_nothing(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="clipper")
    story.join(resident=["m"])
    for request_id in (1, 2, 3):
        story.arrive(request_id)
        story.finish(story.infers[0])
        assert limit(story) == 2


def test_a_batch_that_takes_longer_than_the_slo_takes_a_tenth_off(
    make_scheduler: MakeStory,
) -> None:
    story = flooded(make_scheduler)
    for turn in range(1, 10):
        story.finish(story.infers[0], at_ms=60 * turn, took_ms=10)
    assert limit(story) == 6
    story.finish(story.infers[0], at_ms=5_700, took_ms=5_001)
    assert limit(story) == 5  # 5.4
    story.finish(story.infers[0], at_ms=11_000, took_ms=5_001)
    assert limit(story) == 4  # 4.86


def test_the_limit_never_falls_below_one(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="clipper:drops=never")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=12)
    story.finish(story.infers[0], at_ms=15, took_ms=14)
    assert limit(story) == 1


@pytest.mark.parametrize(("judged", "expected"), [("execution", 2), ("answer", 1)])
def test_queueing_counts_where_answers_are_judged(
    make_scheduler: MakeStory, judged: str, expected: int
) -> None:
    story = make_scheduler(policy=f"clipper:judged={judged},drops=never")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=12)
    story.finish(story.infers[0], at_ms=15, took_ms=10)
    assert limit(story) == expected


def test_the_limits_kept_are_bounded(make_scheduler: MakeStory) -> None:
    policy = parse("clipper")._replace(batching=Aimd(max_limits=1))
    story = make_scheduler(model_spec("m"), model_spec("n"), policy=policy)
    story.join(resident=["m", "n"])
    for request_id, model in enumerate("mn"):
        story.arrive(request_id, model)
        story.finish(story.infers[0])
    assert limit(story) == 1  # forgotten, and learnt anew


def test_max_batch_bounds_it(make_scheduler: MakeStory) -> None:
    story = flooded(make_scheduler, ":max_batch=3")
    for turn in range(1, 8):
        story.finish(story.infers[0], at_ms=60 * turn, took_ms=10)
    assert limit(story) == 3


def test_waiting_requests_are_given_up_once_they_have_expired(make_scheduler: MakeStory) -> None:
    story = flooded(make_scheduler, slo_ms=50)
    story.advance(49)
    assert 100 not in story.outcomes
    story.advance(50)
    assert isinstance(story.outcomes[100], Expired)


def test_who_could_not_make_it_is_passed_over_where_that_is_wanted(
    make_scheduler: MakeStory,
) -> None:
    for drops, second in (("expired", (2,)), ("infeasible", (3,))):
        story = make_scheduler(policy=f"clipper:drops={drops}")
        story.join(resident=["m"])
        story.arrive(1, slo_ms=500)
        story.arrive(2, slo_ms=20)
        story.arrive(3, slo_ms=500)
        story.advance(8.2)
        assert [infer.request_ids for infer in story.infers] == [(1,), second]


def test_each_model_is_served_in_order_of_arrival(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="clipper")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=500)
    story.arrive(2, slo_ms=900)
    story.arrive(3, slo_ms=100)
    story.finish(story.infers[0], at_ms=10)
    assert story.infers[0].request_ids == (2,)


def test_it_finds_the_largest_batch_without_a_profile() -> None:
    loop = ClosedLoop("clipper", slo_ms=500)
    assert loop.run(seconds=1, warm_up_s=1) > 0.9 * RESNET_PER_S
