"""What results change, whatever their code: requests, weights, pages, lanes, estimates."""

import itertools

import pytest

from scheduler.actions import (
    NO_SPAN,
    Code,
    EvictResult,
    Infer,
    InferResult,
    LoadResult,
    Span,
)
from scheduler.device import WeightsState
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Expired,
    Failed,
    Outcome,
    Reason,
    Served,
)
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, actions_in, at, model_spec, ms, replies_in

# Codes after which a request may be tried once more.
RETRIED = [
    Code.TOO_LATE,
    Code.UNKNOWN_MODEL,
    Code.WEIGHTS_MISSING,
    Code.PAGES_EXHAUSTED,
    Code.WEIGHTS_IN_USE,
    Code.ALREADY_RESIDENT,
    Code.LOAD_FAILED,
    Code.MALFORMED,
]


def serve_all(story: Story, *, step_ms: float = 10) -> None:
    """Let the workers answer everything, one action after the other."""
    now_ms = (story.now_ns - at(0)) / ms(1)
    while story.sent:
        now_ms += step_ms
        story.finish(next(iter(story.sent.values())).action, at_ms=now_ms)


def is_served(outcome: Outcome) -> bool:
    return isinstance(outcome, Served)


# ---------------------------------------------------------------------- Infer


def test_one_bad_request_of_eight_fails_once_and_its_batch_mates_are_served(
    make_scheduler: MakeStory,
) -> None:
    scheduler = make_scheduler(model_spec(exec_ms={1: 10, 8: 24}))
    scheduler.join(resident=["m"])
    for request_id in range(9):
        scheduler.arrive(request_id, slo_ms=1_000)
    scheduler.finish(scheduler.infers[0], at_ms=10)
    [batch] = scheduler.infers
    assert batch.request_ids == (1, 2, 3, 4, 5, 6, 7, 8)
    scheduler.finish(batch, at_ms=60, code=Code.ENGINE_ERROR, message="NaN in row 3")
    asked_alone = 0
    now_ms = 60.0
    while scheduler.infers:
        infer = scheduler.infers[0]
        assert len(infer.request_ids) == 1
        asked_alone += 1
        now_ms += 10
        is_bad = infer.request_ids == (4,)
        code = Code.ENGINE_ERROR if is_bad else Code.OK
        scheduler.finish(infer, at_ms=now_ms, code=code, message="NaN in row 0" if is_bad else "")
    assert asked_alone == 8
    assert scheduler.outcomes[4] == Failed(Reason.ENGINE_ERROR, "NaN in row 0")
    others = [scheduler.outcomes[request_id] for request_id in range(9) if request_id != 4]
    assert all(map(is_served, others))


@pytest.mark.parametrize(
    ("code", "reason"),
    [(Code.ENGINE_ERROR, Reason.ENGINE_ERROR), (Code.INVALID_INPUT, Reason.INVALID_INPUT)],
)
def test_a_fault_of_the_input_is_not_tried_again(
    scheduler: Story, code: Code, reason: Reason
) -> None:
    scheduler.join(resident=["m"])
    [infer] = actions_in(scheduler.arrive(1))
    replies = replies_in(scheduler.finish(infer, at_ms=10, code=code, message="row 0"))
    assert replies == {1: Failed(reason, "row 0")}
    assert scheduler.sent == {}


@pytest.mark.parametrize("code", RETRIED)
def test_other_failures_are_tried_again_once(scheduler: Story, code: Code) -> None:
    scheduler.join(resident=["m"])
    [infer] = actions_in(scheduler.arrive(1, slo_ms=200))
    scheduler.finish(infer, at_ms=1, code=code)
    assert scheduler.outcomes == {}
    serve_all(scheduler)
    assert is_served(scheduler.outcomes[1])


@pytest.mark.parametrize("code", [Code.PAGES_EXHAUSTED, Code.MALFORMED])
def test_a_second_failure_is_final(scheduler: Story, code: Code) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=200)
    scheduler.finish(scheduler.infers[0], at_ms=1, code=code)
    scheduler.finish(scheduler.infers[0], at_ms=2, code=code, message="why")
    detail = f"{code.name.lower()} after a retry: why"
    assert scheduler.outcomes[1] == Failed(Reason.ENGINE_ERROR, detail)


def test_too_late_twice_is_a_missed_deadline(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=200)
    scheduler.finish(scheduler.infers[0], at_ms=1, code=Code.TOO_LATE)
    scheduler.finish(scheduler.infers[0], at_ms=2, code=Code.TOO_LATE, message="by 3 ms")
    detail = "no device could start it in time, twice: by 3 ms"
    assert scheduler.outcomes[1] == Expired(Reason.DEADLINE_EXCEEDED_QUEUED, detail)


def test_a_failure_without_time_for_another_try_expires_at_once(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=20)
    scheduler.finish(scheduler.infers[0], at_ms=12, code=Code.TOO_LATE)
    outcome = scheduler.outcomes[1]
    assert isinstance(outcome, Expired)
    assert outcome.reason is Reason.DEADLINE_EXCEEDED_QUEUED
    assert scheduler.infers == []


def test_a_retry_takes_another_device_that_has_the_weights(scheduler: Story) -> None:
    scheduler.join("a", resident=["m"])
    scheduler.join("b", resident=["m"])
    scheduler.arrive(1, slo_ms=200)
    [infer] = scheduler.infers
    assert scheduler.worker_of(infer) == "a"
    scheduler.arrive(2, slo_ms=200)
    scheduler.finish(scheduler.infers[1], at_ms=10)
    scheduler.finish(infer, at_ms=11, code=Code.WEIGHTS_MISSING)
    [again] = scheduler.infers
    assert (scheduler.worker_of(again), again.request_ids) == ("b", (1,))


def test_those_of_a_failed_batch_share_a_batch_again(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(5):
        scheduler.arrive(request_id, slo_ms=500)
    scheduler.finish(scheduler.infers[0], at_ms=10)
    [batch] = scheduler.infers
    scheduler.finish(batch, at_ms=12, code=Code.TOO_LATE)
    [again] = scheduler.infers
    assert again.request_ids == batch.request_ids == (1, 2, 3, 4)


def test_cancelled_members_of_a_failed_batch_are_not_tried_again(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(3):
        scheduler.arrive(request_id, slo_ms=500)
    scheduler.finish(scheduler.infers[0], at_ms=10)
    scheduler.cancel(1)
    scheduler.finish(scheduler.infers[0], at_ms=12, code=Code.ENGINE_ERROR)
    assert [infer.request_ids for infer in scheduler.infers] == [(2,)]
    assert scheduler.outcomes[1] == Cancelled()


def test_a_deadline_is_answered_without_waiting_for_the_execution(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=20)
    [infer] = scheduler.infers
    scheduler.advance(19.99)
    assert scheduler.outcomes == {}
    scheduler.advance(20)
    detail = "still executing after 20.0 ms"
    assert scheduler.outcomes[1] == Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, detail)
    assert scheduler.finish(infer, at_ms=25, took_ms=24) == []


def test_each_member_of_a_batch_has_its_own_deadline(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(0, slo_ms=500)
    scheduler.arrive(1, slo_ms=80)
    scheduler.arrive(2, slo_ms=500)
    scheduler.finish(scheduler.infers[0], at_ms=10)
    [infer] = scheduler.infers
    assert infer.request_ids == (1, 2)
    scheduler.finish(infer, at_ms=90)
    assert scheduler.answered_at_ms == {0: 10, 1: 80, 2: 90}
    assert isinstance(scheduler.outcomes[1], Expired)
    assert is_served(scheduler.outcomes[2])


def test_measured_durations_become_estimates(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(3):
        scheduler.arrive(request_id, slo_ms=500)
        now_ms = 20.0 * (request_id + 1)
        scheduler.finish(scheduler.infers[0], at_ms=now_ms, took_ms=12)
    assert scheduler.scheduler.estimate_ns("m", 1) == ms(12)


def test_an_execution_far_above_the_usual_is_counted(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    device = scheduler.scheduler.devices["w"]
    for request_id, took_ms in enumerate((10, 10, 10, 100)):
        assert device.num_outliers == 0
        scheduler.arrive(request_id, slo_ms=500)
        scheduler.finish(scheduler.infers[0], at_ms=110 * (request_id + 1), took_ms=took_ms)
    assert device.num_outliers == 1


def test_waiting_behind_another_batch_does_not_count_as_execution(scheduler: Story) -> None:
    """The second was begun (its input) while the first still ran: its time is from there on."""
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=500)
    scheduler.arrive(2, slo_ms=500)
    scheduler.advance(8.3)
    first, second = scheduler.infers
    scheduler.finish(first, at_ms=10)
    input_span = Span(at(8.5), at(8.6), ms(0.1))
    result = InferResult(
        second.action_id,
        Code.OK,
        "",
        at(8.5),
        input_span,
        Span(at(10), at(20), ms(10)),
        Span(at(20), at(20.5), ms(0.5)),
    )
    del scheduler.sent[second.action_id]
    scheduler.handle(ActionFinished("w", result), 21)
    assert scheduler.scheduler.estimate_ns("m", 1) == ms(10.5)


@pytest.mark.parametrize("instant", [0, -(2**62), 2**62])
def test_instants_that_cannot_be_do_no_harm(scheduler: Story, instant: int) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1)
    span = Span(instant, instant, 0)
    result = InferResult(scheduler.infers[0].action_id, Code.OK, "", instant, span, span, span)
    scheduler.sent.clear()
    scheduler.handle(ActionFinished("w", result), 10)
    assert is_served(scheduler.outcomes[1])
    device = scheduler.scheduler.devices["w"]
    assert device.reply_delay_ns <= ms(10)
    assert device.previous_done_ns <= at(10)
    scheduler.arrive(2, slo_ms=40)
    assert len(scheduler.infers) == 1


# ---------------------------------------------------------------------- weights


def test_weights_that_are_missing_are_loaded_again(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=300)
    scheduler.finish(scheduler.infers[0], at_ms=1, code=Code.WEIGHTS_MISSING)
    [load] = scheduler.loads
    assert scheduler.scheduler.devices["w"].pages_free == 12
    scheduler.finish(load, at_ms=25)
    scheduler.finish(scheduler.infers[0], at_ms=40)
    assert is_served(scheduler.outcomes[1])
    assert scheduler.scheduler.anomalies == {"weights_missing": 1}


def test_a_late_word_about_an_old_generation_is_ignored(scheduler: Story) -> None:
    """Two Infers find no weights; when the second says so, they have been loaded again."""
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=300)
    scheduler.arrive(2, slo_ms=300)
    scheduler.advance(8.3)
    first, second = scheduler.infers
    scheduler.finish(first, at_ms=9, code=Code.WEIGHTS_MISSING)
    scheduler.finish(scheduler.loads[0], at_ms=30)
    assert scheduler.scheduler.devices["w"].is_resident("m")
    scheduler.finish(second, at_ms=31, code=Code.WEIGHTS_MISSING)
    assert scheduler.scheduler.devices["w"].is_resident("m")
    assert scheduler.loads == []
    serve_all(scheduler)
    assert all(map(is_served, scheduler.outcomes.values()))


def test_two_infers_that_find_no_weights_make_one_load(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=300)
    scheduler.arrive(2, slo_ms=300)
    scheduler.advance(8.3)
    for infer in list(scheduler.infers):
        scheduler.finish(infer, at_ms=9, code=Code.WEIGHTS_MISSING)
    assert len(scheduler.loads) == 1
    assert scheduler.scheduler.devices["w"].pages_free == 12


@pytest.mark.parametrize(
    "code",
    [c for c in Code if c not in (Code.OK, Code.ALREADY_RESIDENT, Code.TOO_LATE)],
)
def test_a_failed_load_gives_its_pages_back_and_is_tried_again_later(
    scheduler: Story, code: Code
) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=500)
    scheduler.finish(scheduler.loads[0], at_ms=5, code=code)
    device = scheduler.scheduler.devices["w"]
    assert (device.pages_free, device.weights_state("m")) == (16, WeightsState.ABSENT)
    if code is Code.SHUTTING_DOWN:
        assert isinstance(scheduler.outcomes[1], Failed)
        return
    assert scheduler.loads == []
    scheduler.advance(104.9)
    assert scheduler.loads == []
    scheduler.advance(105.1)
    assert len(scheduler.loads) == 1


def test_a_load_that_fails_again_and_again_is_tried_ever_more_rarely(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=86_400_000)
    tried_ms = []
    for _ in range(10):
        tried_ms.append(scheduler.now_ns - at(0))
        scheduler.finish(scheduler.loads[0], code=Code.LOAD_FAILED)
        wakeup = scheduler.scheduler.next_wakeup()
        assert wakeup is not None
        scheduler.advance((wakeup - at(0)) / ms(1))
    gaps = [(b - a) / ms(1) for a, b in itertools.pairwise(tried_ms)]
    assert gaps == [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]


def test_each_of_two_failing_loads_is_tried_again_at_its_own_time(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join()
    story.arrive(1, "a", slo_ms=2_000)
    story.finish(story.loads[0], at_ms=10, code=Code.LOAD_FAILED)  # again at 110
    story.arrive(2, "b", slo_ms=2_000, at_ms=50)
    story.finish(story.loads[0], at_ms=60, code=Code.LOAD_FAILED)  # again at 160
    story.advance(109.9)
    assert story.loads == []
    story.advance(110)
    assert [load.model for load in story.loads] == ["a"]
    story.finish(story.loads[0], at_ms=112, code=Code.LOAD_FAILED)
    story.advance(160)
    assert [load.model for load in story.loads] == ["b"]


def test_a_wake_up_for_the_exec_lane_does_not_replace_one_for_a_retry(
    make_scheduler: MakeStory,
) -> None:
    """ "a" runs all the time, "b" waits for its second LOAD: it comes when it is due."""
    story = make_scheduler(model_spec("a", exec_ms={1: 80}), model_spec("b"))
    story.join(resident=["a"])
    story.arrive(1, "a", slo_ms=5_000)
    story.arrive(2, "a", slo_ms=5_000)
    story.arrive(3, "b", slo_ms=5_000)
    story.finish(story.loads[0], at_ms=1, code=Code.LOAD_FAILED)
    story.finish(story.infers[0], at_ms=80)
    story.advance(101)
    assert [load.model for load in story.loads] == ["b"]


def test_a_load_that_came_too_late_is_sent_again_while_it_can_help(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=100)
    scheduler.finish(scheduler.loads[0], at_ms=5, code=Code.TOO_LATE)
    assert len(scheduler.loads) == 1
    scheduler.finish(scheduler.loads[0], at_ms=80, code=Code.TOO_LATE)
    assert scheduler.loads == []
    scheduler.advance(90)
    assert isinstance(scheduler.outcomes[1], Expired)


def test_a_load_of_what_is_there_already_counts_as_loaded(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=100)
    scheduler.finish(scheduler.loads[0], at_ms=5, code=Code.ALREADY_RESIDENT)
    assert [infer.request_ids for infer in scheduler.infers] == [(1,)]
    # Nothing was copied, so nothing was learnt of how long that takes.
    assert scheduler.scheduler.devices["w"].estimates("m").load_plan_ns == ms(20)


def test_a_load_that_failed_goes_to_another_device(scheduler: Story) -> None:
    scheduler.join("a")
    scheduler.join("b")
    scheduler.arrive(1, slo_ms=200)
    [load] = scheduler.loads
    assert scheduler.worker_of(load) == "a"
    scheduler.finish(load, at_ms=1, code=Code.LOAD_FAILED)
    [load] = scheduler.loads
    assert scheduler.worker_of(load) == "b"


def test_measured_loads_become_estimates(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=200)
    scheduler.finish(scheduler.loads[0], at_ms=31, took_ms=30)
    assert scheduler.scheduler.devices["w"].estimates("m").load_plan_ns == ms(30)


def test_a_load_far_above_the_usual_is_counted(scheduler: Story) -> None:
    """The weights are lost with every execution, and loaded again for the next request."""
    scheduler.join()
    device = scheduler.scheduler.devices["w"]
    for request_id, took_ms in enumerate((20, 20, 20, 200)):
        assert device.num_outliers == 0
        scheduler.arrive(request_id, slo_ms=10_000)
        scheduler.finish(scheduler.loads[0], at_ms=200 * (request_id + 1), took_ms=took_ms)
        scheduler.finish(scheduler.infers[0], code=Code.WEIGHTS_MISSING)
    assert device.num_outliers == 1


# ---------------------------------------------------------------------- evictions


def evicting_story(make_scheduler: MakeStory) -> Story:
    """A cache for one model: "a" is resident and idle, "b" is asked for."""
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(pages=4, resident=["a"])
    story.arrive(1, "b", slo_ms=300)
    return story


def test_evict_goes_before_load_and_its_pages_count_at_once(make_scheduler: MakeStory) -> None:
    story = evicting_story(make_scheduler)
    actions = [type(send.action).__name__ for send in story.sent.values()]
    assert actions == ["EvictWeights", "LoadWeights"]
    assert story.evicts[0].earliest_ns == story.loads[0].earliest_ns
    assert story.scheduler.devices["w"].pages_free == 0
    story.finish(story.evicts[0], at_ms=1)
    assert story.scheduler.devices["w"].weights_state("a") is WeightsState.ABSENT
    assert story.scheduler.devices["w"].pages_free == 0


@pytest.mark.parametrize(
    "code", [c for c in Code if c not in (Code.OK, Code.WEIGHTS_MISSING, Code.SHUTTING_DOWN)]
)
def test_a_refused_eviction_leaves_the_weights_and_the_load_fails_by_itself(
    make_scheduler: MakeStory, code: Code
) -> None:
    story = evicting_story(make_scheduler)
    story.finish(story.evicts[0], at_ms=1, code=code)
    device = story.scheduler.devices["w"]
    assert device.is_resident("a")
    assert device.pages_free == -4
    story.finish(story.loads[0], at_ms=1.5, code=Code.PAGES_EXHAUSTED)
    assert device.pages_free == 0
    story.arrive(2, "a", slo_ms=300, at_ms=2)
    assert [infer.request_ids for infer in story.infers] == [(2,)]
    serve_all(story, step_ms=40)
    assert is_served(story.outcomes[2])


def test_an_eviction_of_what_was_not_there_is_done(make_scheduler: MakeStory) -> None:
    story = evicting_story(make_scheduler)
    story.finish(story.evicts[0], at_ms=1, code=Code.WEIGHTS_MISSING)
    device = story.scheduler.devices["w"]
    assert (device.weights_state("a"), device.pages_free) == (WeightsState.ABSENT, 0)
    assert story.scheduler.anomalies == {"evict_weights_missing": 1}


def test_a_request_for_weights_on_their_way_out_waits_for_them_to_come_back(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b", load_ms=5))
    story.join(pages=4, resident=["a"])
    story.arrive(1, "b", slo_ms=300)
    story.arrive(2, "a", slo_ms=300)
    story.finish(story.evicts[0], at_ms=1)
    story.finish(story.loads[0], at_ms=6)
    serve_all(story)
    assert all(map(is_served, story.outcomes.values()))


# ---------------------------------------------------------------------- wrong kind


def test_a_result_of_another_kind_is_a_failure_of_its_action(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=300)
    wrong = LoadResult(scheduler.infers[0].action_id, Code.OK, "", 0, NO_SPAN)
    del scheduler.sent[wrong.action_id]
    scheduler.handle(ActionFinished("w", wrong), 5)
    assert scheduler.scheduler.anomalies == {"result_of_another_kind": 1}
    serve_all(scheduler)
    assert is_served(scheduler.outcomes[1])


def test_a_load_answered_by_another_kind_has_failed(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1, slo_ms=300)
    wrong = EvictResult(scheduler.loads[0].action_id, Code.OK)
    scheduler.sent.clear()
    scheduler.handle(ActionFinished("w", wrong), 5)
    assert scheduler.scheduler.devices["w"].pages_free == 16
    assert scheduler.scheduler.anomalies["result_of_another_kind"] == 1


def test_an_eviction_answered_by_another_kind_has_failed(make_scheduler: MakeStory) -> None:
    story = evicting_story(make_scheduler)
    wrong = InferResult(story.evicts[0].action_id, Code.OK)
    del story.sent[wrong.action_id]
    story.handle(ActionFinished("w", wrong), 1)
    assert story.scheduler.devices["w"].is_resident("a")


# ---------------------------------------------------------------------- a worker that stops


def test_a_worker_that_shuts_down_gets_no_more_work(scheduler: Story) -> None:
    """One runs, one is queued at the worker, one here; another worker takes over what is open."""
    scheduler.join("a", resident=["m"])
    for request_id in (1, 2):
        scheduler.arrive(request_id, slo_ms=300)
    scheduler.advance(8.3)
    scheduler.arrive(3, slo_ms=300)
    running, queued = scheduler.infers
    scheduler.join("b", resident=["m"])
    scheduler.finish(queued, at_ms=9, code=Code.SHUTTING_DOWN)
    assert {scheduler.worker_of(infer) for infer in scheduler.infers if infer != running} == {"b"}
    assert replies_in(scheduler.finish(running, at_ms=10)).keys() == {1}
    for request_id in (4, 5, 6):
        scheduler.arrive(request_id, slo_ms=300)
    assert "a" not in {scheduler.worker_of(infer) for infer in scheduler.infers}
    scheduler.lose("a", at_ms=11)
    serve_all(scheduler)
    assert all(map(is_served, scheduler.outcomes.values()))


def test_without_another_worker_a_shut_down_is_answered_at_once(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in (1, 2):
        scheduler.arrive(request_id, slo_ms=300)
    scheduler.finish(scheduler.infers[0], at_ms=1, code=Code.SHUTTING_DOWN)
    for outcome in scheduler.outcomes.values():
        assert isinstance(outcome, Failed)
        assert outcome.reason is Reason.WORKER_LOST
        assert outcome.retry_after_ns == ms(1_000)
    assert len(scheduler.outcomes) == 2


def test_weights_that_arrive_at_a_worker_that_shuts_down_are_not_used(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(resident=["a"])
    story.arrive(1, "b", slo_ms=300)
    story.arrive(2, "a", slo_ms=300)
    story.finish(story.infers[0], at_ms=1, code=Code.SHUTTING_DOWN)
    story.finish(story.loads[0], at_ms=20)
    assert story.infers == []
    assert story.scheduler.devices["w"].is_resident("b")
    assert len(story.outcomes) == 2


def test_infer_of_a_padded_engine_says_how_many_rows_it_executes(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("m", exec_ms={1: 10, 4: 12, 8: 20}, exact=False))
    story.join(resident=["m"])
    for request_id in range(4):
        story.arrive(request_id, slo_ms=500)
    story.finish(story.infers[0], at_ms=10)
    [infer] = story.infers
    assert isinstance(infer, Infer)
    assert (infer.rows, infer.batch_size, infer.expected_duration_ns) == ((1, 1, 1), 4, ms(12))
    story.finish(infer, at_ms=30, took_ms=18)
    # Measured with three rows, learnt for the compiled size of four.
    assert story.scheduler.estimate_ns("m", 4) == ms(18)
