"""Triton's dynamic batcher: preferred sizes, a queue delay, and no notion of an SLO."""

from scheduler.events import Expired, Served
from tests.scheduler.closed_loop import RESNET_PER_S, ClosedLoop
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, model_spec


def start(make_scheduler: MakeStory, options: str = "") -> Story:
    story = make_scheduler(model_spec("a"), model_spec("b"), policy=f"triton{options}")
    story.join(resident=["a", "b"])
    return story


def test_without_a_delay_whatever_waits_goes_first_come_first_served(
    make_scheduler: MakeStory,
) -> None:
    story = start(make_scheduler)
    story.arrive(1, "a")
    story.arrive(2, "b", at_ms=1)
    for request_id in range(3, 7):
        story.arrive(request_id, "a", at_ms=2)
    story.arrive(7, "b", at_ms=3)
    story.advance(8.2)
    assert [infer.request_ids for infer in story.infers] == [(1,), (2, 7)]


def test_the_first_waits_for_company_as_long_as_the_delay(make_scheduler: MakeStory) -> None:
    story = start(make_scheduler, ":max_queue_delay_us=3000")
    story.arrive(1, "a", at_ms=1)
    story.arrive(2, "a", at_ms=3)
    story.advance(3.99)
    assert story.infers == []
    story.advance(4)
    assert story.infers[0].request_ids == (1, 2)


def test_a_preferred_batch_does_not_wait(make_scheduler: MakeStory) -> None:
    story = start(make_scheduler, ":max_queue_delay_us=3000,preferred_batch_size=2")
    story.arrive(1, "a", at_ms=1)
    story.arrive(2, "b", at_ms=1)
    story.arrive(3, "b", at_ms=2)
    assert [infer.request_ids for infer in story.infers] == [(2, 3)]


def test_no_batch_is_larger_than_the_maximum(make_scheduler: MakeStory) -> None:
    story = start(make_scheduler, ":max_queue_delay_us=3000,max_batch_size=3")
    for request_id in range(1, 5):
        story.arrive(request_id, "a")
    assert story.infers[0].request_ids == (1, 2, 3)


def test_late_ones_are_executed_all_the_same(make_scheduler: MakeStory) -> None:
    story = start(make_scheduler)
    story.arrive(1, "a", slo_ms=20)
    story.arrive(2, "b", slo_ms=20)
    story.finish(story.infers[0], at_ms=25)
    story.finish(story.infers[0], at_ms=35)
    assert all(isinstance(story.outcomes[i], Served) for i in (1, 2))


def test_the_default_timeout_rejects_who_waits_too_long(make_scheduler: MakeStory) -> None:
    story = start(make_scheduler, ":default_timeout_us=5000,max_queue_delay_us=60000")
    story.arrive(1, "a", slo_ms=100)
    story.advance(5)
    assert isinstance(story.outcomes[1], Expired)
    assert story.answered_at_ms[1] == 5


def test_all_or_nothing_around_the_time_that_all_clients_wait() -> None:
    """240 clients wait 240 / 643 s each: an SLO above that is met by all, one below by none."""
    loop = ClosedLoop("triton", slo_ms=500)
    assert loop.run(seconds=0.7) > 0.95 * RESNET_PER_S
    loop = ClosedLoop("triton", slo_ms=250)
    assert loop.run(seconds=0.7) == 0
