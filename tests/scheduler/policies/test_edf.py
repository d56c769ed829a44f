"""Earliest deadline first over all models."""

from scheduler.events import Expired
from tests.scheduler.closed_loop import RESNET_PER_S, ClosedLoop
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import model_spec


def test_the_earliest_deadline_goes_first_with_all_it_has_time_for(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"), policy="edf")
    story.join(resident=["a", "b"])
    story.arrive(1, "a", slo_ms=900)
    for request_id in range(2, 6):
        story.arrive(request_id, "a", slo_ms=200 + request_id)
    for request_id in range(6, 11):
        story.arrive(request_id, "b", slo_ms=30 + request_id)  # three take until 32.9 ms
    story.advance(8.2)
    assert [infer.request_ids for infer in story.infers] == [(1,), (6, 7, 8)]
    assert story.scheduler.num_queued == 6


def test_max_batch_bounds_it(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="edf:max_batch=2")
    story.join(resident=["m"])
    for request_id in range(1, 6):
        story.arrive(request_id, slo_ms=500)
    story.advance(8.2)
    assert story.infers[1].request_ids == (2, 3)


def test_who_cannot_make_it_is_passed_over_and_expires(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="edf")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=500)
    story.arrive(2, slo_ms=20)
    story.arrive(3, slo_ms=500)
    story.advance(8.2)
    assert story.infers[1].request_ids == (3,)
    assert 2 not in story.outcomes or story.answered_at_ms[2] >= 8.2
    story.advance(10)
    assert isinstance(story.outcomes[2], Expired)


def test_nothing_is_sent_where_nobody_can_make_it(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="edf")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=500)
    story.arrive(2, slo_ms=20.5)
    story.finish(story.infers[0], at_ms=10.3)
    assert story.infers == []
    story.advance(10.5)
    assert isinstance(story.outcomes[2], Expired)


def test_the_pages_of_a_removed_model_go_to_who_waits(make_scheduler: MakeStory) -> None:
    """Nothing looked for a LOAD before the eviction was answered."""
    story = make_scheduler(model_spec("kept", pinned=True), model_spec("m"), policy="edf")
    story.join(pages=4, resident=["kept"])
    story.arrive(1, slo_ms=500)
    assert story.loads == []
    story.remove("kept")
    assert [load.model for load in story.loads] == ["m"]


def test_its_batches_are_full_where_there_is_time() -> None:
    loop = ClosedLoop("edf", slo_ms=500)
    assert loop.run(seconds=0.7) > 0.95 * RESNET_PER_S
    assert loop.batches[8] > 0.9 * loop.batches.total()
