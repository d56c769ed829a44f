"""Nexus: a fixed target batch, and the heads dropped that stand in its way."""

from scheduler.events import Expired
from tests.scheduler.closed_loop import RESNET_PER_S, ClosedLoop
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, model_spec


def busy(make_scheduler: MakeStory) -> Story:
    story = make_scheduler(policy="nexus")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=500)
    return story


def test_the_target_fits_twice_into_the_slo(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    for request_id in range(2, 12):
        story.arrive(request_id, slo_ms=60)  # (60 - 0.7) / 2: four take 28 ms, five 33.5
    story.advance(8.2)
    assert story.infers[1].request_ids == (2, 3, 4, 5)


def test_heads_that_cannot_wait_for_the_whole_window_are_given_up(
    make_scheduler: MakeStory,
) -> None:
    story = busy(make_scheduler)
    story.arrive(2, slo_ms=30)
    story.arrive(3, slo_ms=30)
    for request_id in range(4, 8):
        story.arrive(request_id, slo_ms=100)
    story.advance(8.2)
    # Alone 2 would be in time. The target of its SLO is one row, and it is the first: served.
    assert story.infers[1].request_ids == (2,)
    story.finish(story.infers[0], at_ms=10.2)
    story.advance(18.2)
    assert story.infers[1].request_ids == (4, 5, 6, 7)
    assert isinstance(story.outcomes[3], Expired)
    assert story.answered_at_ms[3] == 18.2


def test_the_window_shrinks_with_the_queue(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    story.arrive(2, slo_ms=60)
    story.arrive(3, slo_ms=60)
    story.advance(8.2)
    assert story.infers[1].request_ids == (2, 3)


def test_one_row_is_the_least_target(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    story.arrive(2, slo_ms=21)
    story.advance(8.2)
    assert story.infers[1].request_ids == (2,)


def test_nobody_is_executed_in_vain(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    story.arrive(2, slo_ms=20.5)
    story.finish(story.infers[0], at_ms=10.3)
    assert story.infers == []
    story.advance(11)
    assert isinstance(story.outcomes[2], Expired)


def test_models_take_turns(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"), policy="nexus")
    story.join(resident=["a", "b"])
    story.arrive(0, "a", slo_ms=900)
    for request_id in range(1, 25):
        story.arrive(request_id, "a", slo_ms=900)
    for request_id in range(25, 50):
        story.arrive(request_id, "b", slo_ms=800)
    turns = []
    for turn in range(4):
        story.advance(8.2 + 50 * turn)
        story.finish(story.infers[0], at_ms=10.2 + 50 * turn)
        turns.append(story.infers[0].model)
    assert turns == ["b", "a", "b", "a"]


def test_it_comes_close_to_the_ceiling_where_the_target_is_the_largest() -> None:
    assert ClosedLoop("nexus", slo_ms=100).run(seconds=0.7) > 0.9 * RESNET_PER_S
