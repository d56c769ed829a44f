"""Refused at the door: as early as it is certain, with the reason and the figures."""

import pytest

from scheduler.actions import Code
from scheduler.events import Expired, Reason, Rejected, Served
from scheduler.policies import Policy, parse
from scheduler.policies.admission.admit_all import AdmitAll
from scheduler.spec import SECOND_NS, SchedulerConfig
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import AHEAD_2_MS, Story, model_spec, ms

ADMIT_ALL = parse(AHEAD_2_MS)._replace(admission=AdmitAll())


def refusal(story: Story, request_id: int) -> Rejected:
    outcome = story.outcomes[request_id]
    assert isinstance(outcome, Rejected), outcome
    return outcome


# ---------------------------------------------------------------------- never


@pytest.mark.parametrize("policy", ["remontoir", ADMIT_ALL])
def test_what_no_load_would_change_is_refused_by_every_policy(
    make_scheduler: MakeStory, policy: Policy | str
) -> None:
    story = make_scheduler(model_spec("m"), model_spec("huge", pages=17), policy=policy)
    story.arrive(1)
    assert refusal(story, 1).reason is Reason.NO_WORKER
    story.join(specs=[model_spec("huge", pages=17)])
    story.arrive(2)
    assert refusal(story, 2).reason is Reason.MODEL_UNAVAILABLE
    story.arrive(3, "huge")
    assert refusal(story, 3).reason is Reason.LARGER_THAN_CACHE
    assert refusal(story, 3).detail == "huge needs 17 pages, the cache of w has 16"
    story.join("v", resident=["m"])
    story.arrive(4, rows=9)
    assert refusal(story, 4) == Rejected(
        Reason.INVALID_INPUT, "9 rows, m takes at most 8 a request"
    )
    story.arrive(5, rows=0)
    assert refusal(story, 5).reason is Reason.INVALID_INPUT


@pytest.mark.parametrize("slo_ms", [0.000001, 1, 10.4])
def test_an_slo_shorter_than_the_best_case_says_the_shortest_that_can_be(
    scheduler: Story, slo_ms: float
) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=slo_ms)
    refused = refusal(scheduler, 1)
    assert refused.reason is Reason.SLO_INFEASIBLE_EVER
    assert refused.min_slo_ns == refused.predicted_ns == ms(10.5)
    assert refused.retry_after_ns is None
    assert scheduler.loads == []


def test_the_shortest_slo_is_of_the_fastest_device(scheduler: Story) -> None:
    scheduler.join("slow", specs=[model_spec(exec_ms={1: 100, 8: 800})])
    scheduler.join("fast", specs=[model_spec(exec_ms={1: 1, 8: 8})], resident=["m"])
    scheduler.arrive(1, slo_ms=20)
    assert [scheduler.worker_of(infer) for infer in scheduler.infers] == ["fast"]
    scheduler.arrive(2, slo_ms=1)
    assert refusal(scheduler, 2).min_slo_ns == ms(1.5)


def test_too_many_queued_requests_are_refused(make_scheduler: MakeStory) -> None:
    story = make_scheduler(config=SchedulerConfig(max_queued_requests=2))
    story.join(resident=["m"])
    for request_id in range(4):
        story.arrive(request_id, slo_ms=5_000)
    refused = refusal(story, 3)
    assert refused.reason is Reason.OVERLOADED
    assert refused.detail == "2 requests are queued, the limit"
    assert refused.retry_after_ns == SECOND_NS


# ---------------------------------------------------------------------- now


def test_what_cannot_make_it_behind_the_others_is_refused_at_once(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(40):
        scheduler.arrive(request_id, slo_ms=60)
    outcomes = scheduler.outcomes
    assert 0 < len(outcomes) < 40
    assert set(scheduler.answered_at_ms.values()) == {0}
    refused = refusal(scheduler, 39)
    assert refused.reason is Reason.SLO_INFEASIBLE_NOW
    # One in flight, then seven that wait and itself.
    assert refused.detail == "7 requests of m are queued: predicted 60.9 ms, SLO 60.0 ms"
    assert refused.predicted_ns == ms(0.2 + 10 + 50 + 0.7)
    assert refused.retry_after_ns == ms(1)


def test_all_that_was_admitted_is_served_in_time_when_durations_hold(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(40):
        scheduler.arrive(request_id, slo_ms=100)
    refused = set(scheduler.outcomes)
    now_ms = 0.2
    while scheduler.infers:
        now_ms += scheduler.infers[0].expected_duration_ns / ms(1)
        scheduler.finish(scheduler.infers[0], at_ms=now_ms)
    admitted = {i: o for i, o in scheduler.outcomes.items() if i not in refused}
    assert len(admitted) == 15, "one, a full batch behind it, and six more"
    assert all(isinstance(outcome, Served) for outcome in admitted.values())


def test_an_earlier_deadline_is_admitted_where_a_later_one_waits(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(12):
        scheduler.arrive(request_id, slo_ms=1_000)
    scheduler.arrive(99, slo_ms=40)
    assert 99 not in scheduler.outcomes
    scheduler.finish(scheduler.infers[0], at_ms=10)
    assert scheduler.infers[0].request_ids[0] == 99


def test_equal_deadlines_are_counted_before_a_newcomer(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(0, slo_ms=200)
    for request_id in range(1, 200):
        scheduler.arrive(request_id, slo_ms=100)
    queued = scheduler.scheduler.queue_depth("m")
    assert 8 <= queued <= 16  # about 90 ms of batches of 8 in 50


def test_requests_of_several_rows_count_by_their_rows(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(10):
        scheduler.arrive(request_id, slo_ms=120, rows=4)
    assert 2 <= scheduler.scheduler.num_open <= 5
    assert scheduler.scheduler.num_open + len(scheduler.outcomes) == 10


def test_what_waits_of_other_models_is_no_reason_to_refuse(make_scheduler: MakeStory) -> None:
    """Four times 30 ms in 97: one must lose, but who it is depends on what comes meanwhile."""
    story = make_scheduler(
        model_spec("a", exec_ms={1: 30}, pages=1), model_spec("b", exec_ms={1: 30}, pages=1)
    )
    story.join(resident=["a", "b"])
    for request_id in range(3):
        story.arrive(request_id, "a", slo_ms=95)
    story.arrive(9, "b", slo_ms=97)
    assert story.outcomes == {}
    for at_ms in (30.2, 60.2, 90.2):
        story.finish(story.infers[0], at_ms=at_ms)
    kinds = sorted(type(outcome).__name__ for outcome in story.outcomes.values())
    assert kinds == ["Expired", "Served", "Served", "Served"]


def test_one_that_competes_may_queue_more_than_it_could_be_served(
    make_scheduler: MakeStory,
) -> None:
    """With more to choose from, it fills a batch that is still in time when its turn comes."""
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(resident=["a", "b"])
    for request_id in range(20):
        story.arrive(request_id, "a", slo_ms=60)
    alone = story.scheduler.queue_depth("a")
    for request_id in range(100, 106):
        story.arrive(request_id, "b", slo_ms=60)
    for request_id in range(20, 40):
        story.arrive(request_id, "a", slo_ms=60)
    assert (alone, story.scheduler.queue_depth("a")) == (7, 13)


def test_work_that_can_wait_is_not_in_the_way(make_scheduler: MakeStory) -> None:
    story = make_scheduler(
        model_spec("a", exec_ms={1: 30}, pages=1), model_spec("b", exec_ms={1: 30}, pages=1)
    )
    story.join(resident=["a", "b"])
    for request_id in range(4):
        story.arrive(request_id, "a", slo_ms=1_000)
    story.arrive(9, "b", slo_ms=70)
    assert 9 not in story.outcomes


def test_other_queues_that_cannot_run_here_are_not_in_the_way(make_scheduler: MakeStory) -> None:
    """Stale entries, other batch keys and models gone from the device do not confuse the sum."""
    story = make_scheduler(model_spec("a", pages=1), model_spec("b", pages=1))
    story.join(resident=["a", "b"])
    story.arrive(1, "a", slo_ms=60)
    story.arrive(2, "a", slo_ms=60, batch_key="x")
    story.arrive(3, "b", slo_ms=500)
    story.cancel(2)
    story.arrive(4, "b", slo_ms=40)
    assert 4 not in story.outcomes


def test_three_devices_take_three_times_as_much(make_scheduler: MakeStory) -> None:
    taken = []
    for workers in ("a", "abc"):
        story = make_scheduler()
        for worker in workers:
            story.join(worker, resident=["m"])
        for request_id in range(60):
            story.arrive(request_id, slo_ms=60)
        taken.append(story.scheduler.num_open)
    assert taken == [8, 24]


def test_overload_does_not_end_in_small_batches(make_scheduler: MakeStory) -> None:
    """Three times what one device can do in batches of eight: what is admitted is served, and the
    device does nearly what it can. (Requests admitted for full batches, executed in small ones
    because each batch's first was at its limit, once were late by the hundred.)
    """
    story = make_scheduler()
    story.join(resident=["m"])
    now_ms, request_id, busy_until_ms = 0.0, 0, 0.2
    while now_ms < 2_000:
        request_id += 1
        now_ms = request_id * 2.0833
        while story.infers and busy_until_ms + story.infers[0].expected_duration_ns / 1e6 <= now_ms:
            busy_until_ms += story.infers[0].expected_duration_ns / 1e6
            story.finish(story.infers[0], at_ms=busy_until_ms)
        if not story.infers:
            busy_until_ms = now_ms + 0.2
        story.arrive(request_id, slo_ms=250, at_ms=now_ms)
    served = sum(isinstance(outcome, Served) for outcome in story.outcomes.values())
    expired = sum(isinstance(outcome, Expired) for outcome in story.outcomes.values())
    assert served > 0.95 * 2_000 / 6.25 - 8
    assert expired <= 2


# ---------------------------------------------------------------------- cold


def test_a_cold_model_is_refused_with_the_time_its_load_takes(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=25)
    refused = refusal(scheduler, 1)
    assert refused.reason is Reason.COLD_MODEL
    assert refused.load_ns == ms(20)
    assert refused.predicted_ns == ms(0.2 + 20 + 10 + 0.7)
    assert [load.model for load in scheduler.loads] == ["m"]  # for who tries again


def test_the_last_cold_request_that_is_admitted_is_also_loaded_for(scheduler: Story) -> None:
    """To the nanosecond: what admission lets in, residency counts as worth a LOAD."""
    scheduler.join()
    scheduler.arrive(1, slo_ms=30.9 - 0.000001)
    assert refusal(scheduler, 1).reason is Reason.COLD_MODEL
    scheduler.arrive(2, slo_ms=30.9)
    assert len(scheduler.loads) == 1


def test_a_load_on_its_way_is_counted_to_its_predicted_end(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=100)
    scheduler.arrive(2, slo_ms=40, at_ms=10)
    assert 2 not in scheduler.outcomes
    scheduler.arrive(3, slo_ms=12, at_ms=10)
    assert refusal(scheduler, 3).reason is Reason.COLD_MODEL


def test_loads_that_others_wait_for_are_counted(make_scheduler: MakeStory) -> None:
    story = make_scheduler(*(model_spec(f"m{i}", load_ms=50) for i in range(4)))
    story.join()
    for request_id in range(3):
        story.arrive(request_id, f"m{request_id}", slo_ms=1_000)
    story.arrive(9, "m3", slo_ms=150)
    assert refusal(story, 9).reason is Reason.COLD_MODEL


def test_after_a_failed_load_the_model_is_refused_until_it_may_be_tried_again(
    scheduler: Story,
) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=50)
    scheduler.finish(scheduler.loads[0], at_ms=1, code=Code.LOAD_FAILED)
    scheduler.arrive(2, slo_ms=50, at_ms=2)
    refused = refusal(scheduler, 2)
    assert refused.reason is Reason.COLD_MODEL
    assert "no device can make room" in refused.detail
    scheduler.arrive(3, slo_ms=50, at_ms=102)
    assert len(scheduler.loads) == 1


def test_a_model_that_does_not_fit_one_device_waits_for_another(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("m", pages=8))
    story.join("small", pages=4)
    story.join("large", pages=8)
    story.arrive(1, slo_ms=100)
    assert [story.worker_of(load) for load in story.loads] == ["large"]


def test_where_pinned_weights_fill_the_cache_the_no_is_immediate(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("p", pinned=True), model_spec("m"))
    story.join("full", pages=7, resident=["p"])
    story.arrive(1, "m", slo_ms=5_000)
    refused = refusal(story, 1)
    assert refused.reason is Reason.COLD_MODEL
    assert "no device can make room" in refused.detail
    story.join("free", pages=4)
    story.arrive(2, "m", slo_ms=5_000)
    assert [story.worker_of(load) for load in story.loads] == ["free"]


# ---------------------------------------------------------------------- replicas


def test_another_copy_is_made_where_one_device_cannot_keep_up(scheduler: Story) -> None:
    scheduler.join("a", resident=["m"])
    scheduler.join("b")
    for request_id in range(40):
        scheduler.arrive(request_id, slo_ms=80)
    assert [scheduler.worker_of(load) for load in scheduler.loads] == ["b"]


def test_no_other_copy_is_made_while_one_keeps_up(scheduler: Story) -> None:
    """Clockwork loaded wherever there was any demand at all."""
    scheduler.join("a", resident=["m"])
    scheduler.join("b")
    for request_id in range(40):
        now_ms = 11.0 * request_id
        scheduler.arrive(request_id, slo_ms=80, at_ms=now_ms)
        scheduler.finish(scheduler.infers[0], at_ms=now_ms + 10.2)
    assert scheduler.loads == []
    assert len(scheduler.outcomes) == 40


# ---------------------------------------------------------------------- estimates that went wrong


def test_one_slow_execution_does_not_shut_the_model_out_for_ever(scheduler: Story) -> None:
    """The first run took 400 ms instead of 10: refused for a while, then tried again."""
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=1_000)
    scheduler.finish(scheduler.infers[0], at_ms=400, took_ms=400)
    scheduler.arrive(2, slo_ms=100, at_ms=500)
    assert refusal(scheduler, 2).reason is Reason.SLO_INFEASIBLE_EVER
    scheduler.arrive(3, slo_ms=100, at_ms=1_501)  # refused by the old figures, which are dropped
    scheduler.arrive(4, slo_ms=100, at_ms=1_502)
    scheduler.finish(scheduler.infers[0], at_ms=1_513)
    assert isinstance(scheduler.outcomes[4], Served)


def test_one_slow_answer_does_not_shut_all_models_out_for_ever(scheduler: Story) -> None:
    """The first result took 300 ms to be heard of; the margin it leaves is given up in time."""
    scheduler.join(resident=["m"])
    device = scheduler.scheduler.devices["w"]
    scheduler.arrive(1, slo_ms=1_000)
    scheduler.finish(scheduler.infers[0], at_ms=10)
    device.observe_delays(command_ns=1, reply_ns=ms(300))
    scheduler.arrive(2, slo_ms=100, at_ms=20)
    assert refusal(scheduler, 2).reason is Reason.SLO_INFEASIBLE_NOW
    scheduler.arrive(3, slo_ms=100, at_ms=1_021)
    scheduler.arrive(4, slo_ms=100, at_ms=1_022)
    assert 4 not in scheduler.outcomes


def test_one_slow_load_does_not_shut_the_model_out_for_ever(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(pages=4)
    story.arrive(1, "a", slo_ms=5_000)
    story.finish(story.loads[0], at_ms=2_000, took_ms=2_000)
    story.finish(story.infers[0], at_ms=2_010)
    story.arrive(2, "b", slo_ms=200)
    story.finish(story.evicts[0], at_ms=2_011)
    story.finish(story.loads[0], at_ms=2_031)
    story.finish(story.infers[0], at_ms=2_041)
    story.arrive(3, "a", slo_ms=200, at_ms=2_050)
    assert refusal(story, 3).reason is Reason.COLD_MODEL
    story.arrive(4, "a", slo_ms=200, at_ms=3_100)
    story.arrive(5, "a", slo_ms=200, at_ms=3_101)
    assert [load.model for load in story.loads] == ["a"]


def test_refusals_under_load_do_not_drop_what_is_measured_all_the_time(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    now_ms = 0.0
    for request_id in range(0, 300, 3):
        for extra in range(3):
            scheduler.arrive(request_id + extra, slo_ms=45, at_ms=now_ms)
        now_ms += 20
        scheduler.finish(scheduler.infers[0], at_ms=now_ms, took_ms=19.8)
    assert scheduler.scheduler.devices["w"].estimates("m").first.num_samples > 10


# ---------------------------------------------------------------------- the baseline


def test_admit_all_queues_what_cannot_make_it_and_lets_it_expire(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(policy=ADMIT_ALL)
    story.join(resident=["m"])
    for request_id in range(40):
        story.arrive(request_id, slo_ms=60)
    assert story.outcomes == {}
    story.advance(50)
    late = [outcome for outcome in story.outcomes.values() if isinstance(outcome, Expired)]
    assert len(late) > 20
    assert {outcome.reason for outcome in late} == {Reason.DEADLINE_EXCEEDED_QUEUED}


def test_a_load_is_not_stretched_by_shorter_work(make_scheduler: MakeStory) -> None:
    """Short work has taken half of the lane: a wait for the lane is stretched, a LOAD is not."""
    quick, slow = model_spec("quick", exec_ms={1: 2}), model_spec("slow", exec_ms={1: 30})
    cold = model_spec("cold", exec_ms={1: 30})
    story = make_scheduler(quick, slow, cold)
    story.join(resident=["quick", "slow"])
    story.arrive(0, "slow", slo_ms=500)
    story.finish(story.infers[0], at_ms=30.2)
    for number in range(1, 1_500):
        story.arrive(number, "quick", slo_ms=500, at_ms=40 + 4 * number)
        story.finish(story.infers[0], at_ms=40 + 4 * number + 2.3)
    story.arrive(2_000, "cold", slo_ms=60)
    assert 2_000 not in story.outcomes  # 20 to load, 30 to execute
