"""Queues, deadlines and answers."""

from scheduler.events import Expired, Reason, Served
from scheduler.policies import parse
from scheduler.policies.admission.admit_all import AdmitAll
from scheduler.spec import SchedulerConfig
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import AHEAD_2_MS, at, model_spec

ADMIT_ALL = parse(AHEAD_2_MS)._replace(admission=AdmitAll())
ONE_AT_A_TIME = SchedulerConfig(max_outstanding_infers=1)


def test_a_queued_request_expires_when_no_device_could_make_it_any_more(
    make_scheduler: MakeStory,
) -> None:
    """Not at its deadline but when it is certain: 10 ms before."""
    story = make_scheduler(policy=ADMIT_ALL, config=ONE_AT_A_TIME)
    story.join(resident=["m"])
    story.arrive(1, slo_ms=5_000)
    story.arrive(2, slo_ms=60, at_ms=0)
    story.advance(49.9)
    assert story.outcomes == {}
    story.advance(50)
    waited = "waited 50.0 ms for a device; too late to execute now"
    assert story.outcomes[2] == Expired(Reason.DEADLINE_EXCEEDED_QUEUED, waited)


def test_those_behind_an_expired_head_expire_at_their_own_time(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy=ADMIT_ALL, config=ONE_AT_A_TIME)
    story.join(resident=["m"])
    story.arrive(0, slo_ms=5_000)
    for request_id, slo_ms in ((1, 60), (2, 80), (3, 60)):
        story.arrive(request_id, slo_ms=slo_ms)
    story.advance(100)
    assert story.answered_at_ms == {1: 50, 3: 50, 2: 70}


def test_what_a_faster_device_can_still_make_does_not_expire(make_scheduler: MakeStory) -> None:
    """The slow device joined first and stands for the model; the fast one takes 1 ms."""
    story = make_scheduler(config=ONE_AT_A_TIME)
    story.join("slow", specs=[model_spec(exec_ms={1: 50, 8: 400})], resident=["m"])
    story.join("fast", specs=[model_spec(exec_ms={1: 5, 8: 40})], resident=["m"])
    story.arrive(0, slo_ms=30)
    assert [story.worker_of(infer) for infer in story.infers] == ["fast"]
    story.arrive(1, slo_ms=30)
    story.advance(4)
    assert story.outcomes == {}
    story.finish(story.infers[0], at_ms=5)
    assert [infer.request_ids for infer in story.infers] == [(1,)]
    story.finish(story.infers[0], at_ms=10)
    assert isinstance(story.outcomes[1], Served)


def test_the_expiry_of_a_faster_device_is_set_in_the_end(make_scheduler: MakeStory) -> None:
    story = make_scheduler(config=ONE_AT_A_TIME)
    story.join("slow", specs=[model_spec(exec_ms={1: 50, 8: 400})], resident=["m"])
    story.join("fast", specs=[model_spec(exec_ms={1: 5, 8: 40})], resident=["m"])
    story.arrive(0, slo_ms=30)
    story.arrive(1, slo_ms=30)
    story.advance(24.9)
    assert story.outcomes == {}
    assert story.scheduler.next_wakeup() == at(25)
    story.advance(25)
    assert isinstance(story.outcomes[1], Expired)


def test_expiry_lets_others_use_what_was_kept(make_scheduler: MakeStory) -> None:
    """ "a" is protected by a request that can no longer be met; then "b" takes the pages."""
    story = make_scheduler(model_spec("a"), model_spec("b"), config=ONE_AT_A_TIME)
    story.join(pages=4, resident=["a"])
    story.arrive(1, "a", slo_ms=5_000)
    story.arrive(2, "a", slo_ms=40)
    story.arrive(3, "b", slo_ms=5_000)
    story.finish(story.infers[0], at_ms=29.5, took_ms=10)
    assert (story.infers, story.loads) == ([], [])
    story.advance(30)
    assert isinstance(story.outcomes[2], Expired)
    assert [load.model for load in story.loads] == ["b"]


def test_a_new_head_moves_the_expiry(make_scheduler: MakeStory) -> None:
    scheduler = make_scheduler(config=ONE_AT_A_TIME)
    scheduler.join(resident=["m"])
    scheduler.arrive(0, slo_ms=5_000)
    scheduler.arrive(1, slo_ms=200)
    scheduler.arrive(2, slo_ms=90)
    scheduler.cancel(2)
    scheduler.advance(150)
    assert 1 not in scheduler.outcomes
    scheduler.advance(190)
    assert isinstance(scheduler.outcomes[1], Expired)
