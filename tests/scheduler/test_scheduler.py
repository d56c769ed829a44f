"""The contract of the core: one `now` per call, one reply per request, the same every time."""

import math

import pytest

from scheduler.actions import Code, EvictResult, Infer, InferResult, LoadResult, LoadWeights
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    RequestsArrived,
    Send,
    Served,
    Tick,
)
from scheduler.policies import PolicyError
from scheduler.scheduler import Scheduler
from scheduler.spec import SchedulerConfig
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import START_NS, Story, actions_in, at, model_spec, ms, replies_in


def test_a_request_is_sent_at_once_and_served(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    [infer] = actions_in(scheduler.arrive(1, slo_ms=50))
    assert isinstance(infer, Infer)
    assert (infer.model, infer.request_ids, infer.rows, infer.batch_size) == ("m", (1,), (1,), 1)
    assert infer.expected_duration_ns == ms(10)
    commands = scheduler.finish(infer, at_ms=10.5)
    assert replies_in(commands) == {
        1: Served(
            worker_id="w",
            batch_rows=1,
            is_cold_start=False,
            predicted_ns=ms(10.2),
            queue_ns=ms(0.5),
            load_ns=0,
            input_ns=0,
            exec_ns=ms(10),
            output_ns=0,
        )
    }


def test_a_window_is_around_the_predicted_start_and_never_simply_now(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    [infer] = actions_in(scheduler.arrive(1, slo_ms=50, at_ms=5))
    assert isinstance(infer, Infer)
    # It starts 0.2 ms from now; earliest is 2 ms less, latest leaves 10 ms and margins of 0.7 ms.
    assert infer.earliest_ns == at(5.2 - 2)
    assert infer.latest_ns == at(55 - 10 - 0.7)


def test_a_cold_request_is_loaded_first_and_its_answer_says_so(scheduler: Story) -> None:
    scheduler.join()
    [load] = actions_in(scheduler.arrive(1, slo_ms=100))
    assert isinstance(load, LoadWeights)
    assert (load.model, load.num_pages, load.expected_duration_ns) == ("m", 4, ms(20))
    [infer] = actions_in(scheduler.finish(load, at_ms=21))
    assert isinstance(infer, Infer)
    scheduler.finish(infer, at_ms=32)
    served = scheduler.outcomes[1]
    assert isinstance(served, Served)
    assert served.is_cold_start
    assert (served.load_ns, served.queue_ns) == (ms(21), ms(1))


def test_now_may_not_go_back(scheduler: Story) -> None:
    scheduler.scheduler.handle(Tick(), at(5))
    with pytest.raises(ValueError, match="now went back"):
        scheduler.scheduler.handle(Tick(), at(5) - 1)


def test_a_request_id_may_not_be_used_twice_at_a_time(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1)
    with pytest.raises(ValueError, match="request id 1 is already open"):
        scheduler.scheduler.handle(RequestArrived(1, "m", at(0), at(50)), at(0))


def test_a_request_id_may_be_used_again_after_its_answer(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    core = scheduler.scheduler
    for _ in range(2):
        core.handle(RequestArrived(1, "m", START_NS, START_NS + ms(50)), START_NS)
        core.handle(RequestCancelled(1), START_NS)
    assert core.num_open == 0
    scheduler.sent.clear()


def test_a_wakeup_is_later_than_the_last_event(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=20)
    wakeup = scheduler.scheduler.next_wakeup()
    assert wakeup == at(20)
    # An event at the instant of the wake-up does what the wake-up was for.
    assert replies_in(scheduler.handle(Tick(), 20)).keys() == {1}
    assert scheduler.scheduler.next_wakeup() is None


def test_asking_for_the_wakeup_changes_nothing(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(4):
        scheduler.arrive(request_id, slo_ms=60)
    assert {scheduler.scheduler.next_wakeup() for _ in range(5)} == {at(10.2 - 2)}


def test_unknown_and_unavailable_models_are_refused(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec(), model_spec("broken", unavailable_reason="not ONNX"))
    story.join()
    story.arrive(1, "never heard of")
    story.arrive(2, "broken")
    for request_id, detail in ((1, "never heard of: is not served"), (2, "broken: not ONNX")):
        assert story.outcomes[request_id] == Rejected(Reason.MODEL_UNAVAILABLE, detail)


def test_a_request_that_asks_not_to_queue_is_served_or_refused_at_once(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    assert len(actions_in(scheduler.arrive(1, do_not_queue=True))) == 1
    [reply] = scheduler.arrive(2, do_not_queue=True)
    assert isinstance(reply, Reply)
    refused = reply.outcome
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.WOULD_QUEUE
    assert refused.retry_after_ns == refused.predicted_ns == ms(20.2)
    assert scheduler.scheduler.num_queued == 0


def test_a_request_that_asks_not_to_queue_does_not_wait_for_a_load(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1, do_not_queue=True)
    outcome = scheduler.outcomes[1]
    assert isinstance(outcome, Rejected)
    assert outcome.reason is Reason.WOULD_QUEUE
    # Its weights are on their way for the next one.
    scheduler.finish(scheduler.loads[0], at_ms=21)
    assert len(actions_in(scheduler.arrive(2, do_not_queue=True))) == 1


def test_a_refused_do_not_queue_leaves_those_who_wait_in_place(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1)
    scheduler.arrive(2, slo_ms=90)
    scheduler.arrive(3, slo_ms=40, do_not_queue=True)
    assert isinstance(scheduler.outcomes[3], Rejected)
    assert scheduler.scheduler.queue_depth("m") == 1
    scheduler.finish(scheduler.infers[0], at_ms=10)
    assert [infer.request_ids for infer in scheduler.infers] == [(2,)]


# ---------------------------------------------------------------------- cancelling


def test_a_cancelled_request_leaves_its_queue(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in (1, 2, 3):
        scheduler.arrive(request_id)
    for request_id in (3, 2):  # behind the head, and the head
        assert replies_in(scheduler.cancel(request_id)) == {request_id: Cancelled()}
    assert scheduler.scheduler.num_queued == 0
    scheduler.finish(scheduler.infers[0], at_ms=10)
    assert scheduler.infers == []


def test_a_request_cancelled_in_flight_is_answered_once_and_its_output_ignored(
    scheduler: Story,
) -> None:
    scheduler.join(resident=["m"])
    [infer] = actions_in(scheduler.arrive(1))
    assert replies_in(scheduler.cancel(1)) == {1: Cancelled()}
    assert scheduler.cancel(1) == []
    assert scheduler.finish(infer, at_ms=10) == []


def test_cancelling_what_was_never_asked_is_harmless(scheduler: Story) -> None:
    assert scheduler.cancel(99) == []


def test_cancelling_those_who_protect_weights_lets_others_load(make_scheduler: MakeStory) -> None:
    """Room for one model; "a" stays while requests wait for it, and goes when they have gone."""
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(pages=4, resident=["a"])
    story.arrive(1, "a", slo_ms=500)
    for request_id in (2, 3):
        story.arrive(request_id, "a", slo_ms=500)
    story.arrive(4, "b", slo_ms=500)
    story.finish(story.infers[0], at_ms=10)
    assert story.loads == []
    story.cancel(2)
    story.cancel(3)
    for infer in list(story.infers):
        story.finish(infer, at_ms=20)
    assert [evict.model for evict in story.evicts] == ["a"]
    assert [load.model for load in story.loads] == ["b"]


# ---------------------------------------------------------------------- remote input


@pytest.mark.parametrize("kind", [InferResult, LoadResult, EvictResult])
@pytest.mark.parametrize("code", Code)
def test_a_result_of_an_unknown_action_is_counted(
    scheduler: Story, kind: type[InferResult], code: Code
) -> None:
    scheduler.join(resident=["m"])
    assert scheduler.handle(ActionFinished("w", kind(99, code))) == []
    assert scheduler.handle(ActionFinished("nobody", kind(99, code))) == []
    assert scheduler.scheduler.anomalies == {"result_of_unknown_action": 2}


def test_a_second_result_is_counted_and_ignored(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    [infer] = actions_in(scheduler.arrive(1))
    scheduler.finish(infer, at_ms=10)
    again = ActionFinished("w", InferResult(infer.action_id, Code.ENGINE_ERROR))
    assert scheduler.handle(again) == []
    assert scheduler.scheduler.anomalies == {"result_of_unknown_action": 1}


# ---------------------------------------------------------------------- reading


def test_what_can_be_read(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec(), config=SchedulerConfig())
    core = story.scheduler
    assert core.estimate_ns("m", 1) is None
    story.join(resident=["m"])
    for request_id in (1, 2, 3):
        story.arrive(request_id)
    assert core.models == {"m": model_spec()}
    assert list(core.devices) == ["w"]
    assert core.devices["w"].pages_by_state()["resident"] == 4
    assert (core.num_open, core.num_queued, core.queue_depth("m")) == (3, 2, 2)
    assert core.open_request_ids() == [1, 2, 3]
    assert core.estimate_ns("m", 2) == ms(16)
    assert core.now == story.now_ns


def test_the_offered_load_is_what_arrives_also_what_is_refused(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec(), config=SchedulerConfig())
    core = story.scheduler
    story.join(resident=["m"])
    assert (core.num_serving, core.offered_load(core.now)) == (1, 0)
    answers = [story.arrive(number, slo_ms=30, at_ms=2 * number) for number in range(1, 1001)]
    assert any(replies_in(commands) for commands in answers)  # nothing ever finishes: refusals
    load = core.offered_load(core.now)
    assert load > 1.5
    assert core.offered_load(core.now + ms(2_000)) == pytest.approx(load * math.exp(-2), rel=0.1)
    assert core.offered_load(core.now) == load


def test_the_story_of_a_request_is_its_events_and_commands(make_scheduler: MakeStory) -> None:
    story = make_scheduler(config=SchedulerConfig(story_length=4))
    story.join(resident=["m"])
    [infer] = actions_in(story.arrive(1, at_ms=3))
    story.arrive(2)
    story.finish(infer, at_ms=13)
    told = story.scheduler.story(1)
    assert [(now - START_NS, type(event).__name__) for now, event, _ in told] == [
        (ms(3), "RequestArrived"),
        (ms(13), "ActionFinished"),
    ]
    assert told[0][2] == [Send("w", infer)]
    for request_id in range(3, 8):
        story.arrive(request_id)
    assert story.scheduler.story(1) == []  # only the last few are kept


def test_the_same_events_give_the_same_commands() -> None:
    def life() -> list[object]:
        story = Story(model_spec("a"), model_spec("b"), model_spec("c"))
        commands: list[object] = []
        for worker in ("x", "y"):
            commands += story.join(worker, pages=8, resident=["a"])
        for request_id in range(60):
            commands += story.arrive(request_id, "abc"[request_id % 3], at_ms=request_id * 1.5)
            if request_id % 4 == 3 and story.sent:
                action = next(iter(story.sent.values())).action
                commands += story.finish(action, at_ms=request_id * 1.5 + 1)
        return commands

    assert life() == life()


def test_policies_are_chosen_by_name() -> None:
    with pytest.raises(PolicyError, match="never heard of"):
        Scheduler(policy="never heard of")


# ---------------------------------------------------------------------- foreseeing


def test_a_refusal_can_be_foreseen_and_nothing_is_queued(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    core = scheduler.scheduler
    assert core.foresee(scheduler.arrival(1, slo_ms=50), scheduler.now_ns) is None
    foreseen = core.foresee(scheduler.arrival(2, slo_ms=5), scheduler.now_ns)
    assert core.num_open == 0
    scheduler.arrive(2, slo_ms=5)
    assert scheduler.outcomes[2] == foreseen


def test_what_is_not_served_is_not_foreseen(make_scheduler: MakeStory) -> None:
    """It is refused when it arrives, with the words that belong to that."""
    story = make_scheduler(model_spec("broken", unavailable_reason="why"))
    for model in ("broken", "never heard of"):
        assert story.scheduler.foresee(story.arrival(1, model), story.now_ns) is None


def test_a_refusal_by_figures_that_hang_on_nothing_is_foreseen_too(scheduler: Story) -> None:
    assert scheduler.scheduler.foresee(scheduler.arrival(1), scheduler.now_ns) == Rejected(
        Reason.NO_WORKER, "no worker is connected", retry_after_ns=ms(1_000)
    )


# ---------------------------------------------------------------------- together


def test_requests_that_arrive_together_share_a_batch(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    together = RequestsArrived(tuple(scheduler.arrival(i) for i in range(1, 5)))
    [infer] = actions_in(scheduler.handle(together))
    assert isinstance(infer, Infer)
    assert infer.request_ids == (1, 2, 3, 4)
    assert [type(event) for _, event, _ in scheduler.scheduler.story(3)] == [RequestsArrived]


def test_requests_that_arrive_together_are_answered_one_by_one(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("m"), model_spec("n"))
    story.join(resident=["m"])
    story.arrive(0, "m")
    together = RequestsArrived(
        (
            story.arrival(1, "never heard of"),
            story.arrival(2, "m", slo_ms=1),
            story.arrival(3, "n", do_not_queue=True),
            story.arrival(4, "m", do_not_queue=True),
            story.arrival(5, "n"),
        )
    )
    replies = replies_in(story.handle(together))
    assert replies.keys() == {1, 2, 3, 4}
    assert [load.model for load in story.loads] == ["n"]


def test_nobody_arrives_in_an_empty_crowd(scheduler: Story) -> None:
    assert scheduler.handle(RequestsArrived(())) == []


def test_who_is_turned_away_does_not_keep_weights_in_place(make_scheduler: MakeStory) -> None:
    """ "a" is asked for by one who will not wait, "b" by one who will: room for one of them."""
    story = make_scheduler(model_spec("a"), model_spec("b"), model_spec("c", exec_ms={1: 90}))
    story.join(pages=8, resident=["a", "c"])
    story.arrive(0, "c", slo_ms=900)
    together = (
        story.arrival(1, "a", slo_ms=900, do_not_queue=True),
        story.arrival(2, "b", slo_ms=900),
    )
    story.handle(RequestsArrived(together))
    assert isinstance(story.outcomes[1], Rejected)
    assert [load.model for load in story.loads] == ["b"]


# ---------------------------------------------------------------------- what counts as load


def test_what_could_never_be_served_is_no_load(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(200):
        scheduler.arrive(request_id, slo_ms=0.5, at_ms=request_id)
    assert scheduler.scheduler.state.utilisation == 0
    for request_id in range(200, 400):
        scheduler.arrive(request_id, slo_ms=50, at_ms=request_id)
    assert scheduler.scheduler.state.utilisation > 1


def test_a_refusal_before_the_payload_has_come_is_load(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(40):
        scheduler.arrive(request_id, slo_ms=200)
    before = scheduler.scheduler.state.models["m"].demand
    core = scheduler.scheduler
    refused = [core.foresee(scheduler.arrival(99, slo_ms=12), scheduler.now_ns) for _ in range(64)]
    assert all(refusal is not None for refusal in refused)
    assert before.slo_ns < ms(100)  # it has followed them


def test_a_device_about_to_stop_is_no_capacity(scheduler: Story) -> None:
    scheduler.join("w", resident=["m"])
    scheduler.join("v", resident=["m"])
    for request_id in range(100):
        scheduler.arrive(request_id, slo_ms=50, at_ms=10 * request_id)
    core = scheduler.scheduler
    before = core.state.utilisation
    [infer, *_] = scheduler.infers
    scheduler.finish(infer, code=Code.SHUTTING_DOWN)
    assert core.state.num_serving == 1
    assert core.state.utilisation == pytest.approx(2 * before)
