"""Symphony: a batch starts when waiting longer cannot let one more request in."""

import pytest

from scheduler.actions import Code
from scheduler.events import Expired, RequestsArrived
from scheduler.policies import PolicyError, parse
from tests.scheduler.closed_loop import RESNET_PER_S, ClosedLoop
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, at, model_spec


def idle(make_scheduler: MakeStory, policy: str = "symphony") -> Story:
    story = make_scheduler(policy=policy)
    story.join(resident=["m"])
    return story


def test_a_lone_request_waits_for_its_frontrun(make_scheduler: MakeStory) -> None:
    story = idle(make_scheduler)
    story.arrive(1, slo_ms=100)
    # By 99.3 with the margin; two would take 16 ms; 0.2 ms on the way.
    story.advance(83.09)
    assert story.infers == []
    story.advance(83.1)
    assert story.infers[0].request_ids == (1,)
    assert story.infers[0].earliest_ns == at(83.3 - 2)


def test_whoever_joins_brings_the_frontrun_forward(make_scheduler: MakeStory) -> None:
    story = idle(make_scheduler)
    story.arrive(1, slo_ms=100)
    story.arrive(2, slo_ms=100, at_ms=70)
    story.advance(77.09)  # three would take 22 ms
    assert story.infers == []
    story.advance(77.1)
    assert story.infers[0].request_ids == (1, 2)


def test_the_largest_batch_waits_for_nobody(make_scheduler: MakeStory) -> None:
    story = idle(make_scheduler)
    for request_id in range(1, 8):
        story.arrive(request_id, slo_ms=200)
    assert story.infers == []
    story.arrive(8, slo_ms=200)
    assert story.infers[0].request_ids == tuple(range(1, 9))


def test_the_first_to_become_late_goes_first(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"), policy="symphony")
    story.join(resident=["a", "b"])
    for request_id in range(1, 9):
        story.arrive(request_id, "a", slo_ms=200)
    for request_id in range(11, 19):
        story.arrive(request_id, "a", slo_ms=300)
    for request_id in range(21, 29):
        story.arrive(request_id, "b", slo_ms=250)
    story.advance(48.2)
    assert [infer.model for infer in story.infers] == ["a", "b"]


def test_heads_are_given_up_for_the_target_and_others_join_for_free(
    make_scheduler: MakeStory,
) -> None:
    story = idle(make_scheduler)
    for request_id in range(1, 9):
        story.arrive(request_id, slo_ms=200)  # in execution until 50.2
    story.arrive(9, slo_ms=78)
    for request_id in range(10, 18):
        story.arrive(request_id, slo_ms=110, at_ms=1)
    story.advance(48.2)
    # 9 alone could be served; its SLO allows a target of four, and four take until 78.9.
    assert story.infers[1].request_ids == tuple(range(10, 18))
    assert isinstance(story.outcomes[9], Expired)


def test_free_company_never_makes_the_first_late(make_scheduler: MakeStory) -> None:
    story = idle(make_scheduler, "symphony:gpus_per_model=0.5")
    for request_id in range(1, 9):
        story.arrive(request_id, slo_ms=200)
    for request_id in range(9, 17):
        # A third of the SLO is for four, which are in time: 39.1 ms are left, and six take 39.
        story.arrive(request_id, slo_ms=90)
    story.advance(48.2)
    assert story.infers[1].request_ids == tuple(range(9, 15))


def test_a_request_that_must_run_alone_waits_for_nobody(make_scheduler: MakeStory) -> None:
    story = idle(make_scheduler)
    story.arrive(1, slo_ms=300)
    story.arrive(2, slo_ms=300)
    story.advance(277.1)
    [infer] = story.infers
    story.finish(infer, at_ms=278, code=Code.ENGINE_ERROR)
    story.advance(286.2)
    assert [infer.request_ids for infer in story.infers] == [(1,), (2,)]


def test_what_one_device_leaves_another_waits_with(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="symphony")
    story.join("a", resident=["m"])
    story.join("b", resident=["m"])
    story.arrive(1, slo_ms=200)
    story.handle(RequestsArrived(tuple(story.arrival(i, slo_ms=200) for i in range(2, 11))))
    assert [infer.request_ids for infer in story.infers] == [tuple(range(1, 9))]
    story.advance(177.09)  # 199.3 less what three would take, and the way
    assert len(story.infers) == 1
    story.finish(story.infers[0])
    story.advance(177.1)
    assert story.infers[0].request_ids == (9, 10)


def test_nothing_is_deferred_where_nobody_can_make_it(make_scheduler: MakeStory) -> None:
    story = idle(make_scheduler)
    for request_id in range(1, 9):
        story.arrive(request_id, slo_ms=200)
    story.arrive(9, slo_ms=55)
    story.finish(story.infers[0], at_ms=50.2)
    assert story.infers == []
    assert isinstance(story.outcomes[9], Expired)


def test_the_number_of_devices_per_model_is_positive() -> None:
    with pytest.raises(PolicyError):
        parse("symphony:gpus_per_model=0")


def test_it_fills_its_batches() -> None:
    loop = ClosedLoop("symphony", slo_ms=100)
    assert loop.run(seconds=0.7) > 0.9 * RESNET_PER_S
