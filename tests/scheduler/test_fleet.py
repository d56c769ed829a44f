"""Workers and models come and go."""

import pytest

from scheduler.actions import Code
from scheduler.device import WeightsState
from scheduler.events import Expired, Failed, Reason, Rejected, Served
from scheduler.spec import ShapeProfile
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, at, model_spec, ms


def resident_at(story: Story, worker_id: str) -> set[str]:
    device = story.scheduler.devices[worker_id]
    return {name for name in device.weights if device.is_resident(name)}


def holders_of(story: Story, model: str) -> list[str]:
    return [device.worker_id for device in story.scheduler.state.models[model].holders]


# ---------------------------------------------------------------------- joining


def test_without_a_worker_everything_is_refused_at_once(scheduler: Story) -> None:
    scheduler.arrive(1)
    outcome = scheduler.outcomes[1]
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.retry_after_ns) == (Reason.NO_WORKER, ms(1_000))


def test_a_worker_that_re_joins_keeps_the_weights_it_truly_has(scheduler: Story) -> None:
    scheduler.join("w-1", resident=["m"])
    scheduler.lose("w-1", at_ms=5)
    scheduler.join("w-2", resident=["m"], at_ms=6)
    assert scheduler.scheduler.devices["w-2"].pages_free == 12
    scheduler.arrive(1, slo_ms=20)
    assert len(scheduler.infers) == 1
    assert scheduler.loads == []


def test_a_worker_that_re_joins_empty_loads_again(scheduler: Story) -> None:
    scheduler.join("w-1", resident=["m"])
    scheduler.lose("w-1", at_ms=5)
    scheduler.join("w-2", at_ms=6)
    scheduler.arrive(1, slo_ms=100)
    assert len(scheduler.loads) == 1


def test_a_late_result_of_the_old_incarnation_is_counted_and_ignored(scheduler: Story) -> None:
    scheduler.join("w-1", resident=["m"])
    scheduler.arrive(1, slo_ms=100)
    [infer] = scheduler.infers
    kept = dict(scheduler.sent)
    scheduler.lose("w-1", at_ms=5)
    scheduler.join("w-2", resident=["m"], at_ms=6)
    scheduler.sent.update(kept)
    scheduler.finish(infer, at_ms=10)
    assert scheduler.scheduler.anomalies == {"result_of_unknown_action": 1}


def test_two_workers_may_not_have_one_id(scheduler: Story) -> None:
    scheduler.join()
    with pytest.raises(ValueError, match="worker w joined twice"):
        scheduler.join()


def test_a_worker_that_brings_weights_takes_over_who_waits_for_them(scheduler: Story) -> None:
    scheduler.join("a")
    scheduler.arrive(1, slo_ms=200)
    scheduler.join("b", resident=["m"], at_ms=1)
    assert [scheduler.worker_of(infer) for infer in scheduler.infers] == ["b"]


def test_resident_models_that_make_no_sense_are_counted(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b", unavailable_reason="why"))
    story.join(pages=3, resident=["a", "a", "b", "never heard of"])
    assert resident_at(story, "w") == {"a"}
    assert story.scheduler.anomalies == {
        "resident_but_not_offered": 2,
        "resident_beyond_the_cache": 1,
    }


@pytest.mark.parametrize(
    "shapes", [[], [ShapeProfile("", 4, {})]], ids=["no shape", "no measurement"]
)
def test_a_model_offered_without_a_profile_is_not_used(
    scheduler: Story, shapes: list[ShapeProfile]
) -> None:
    scheduler.join(specs=[model_spec(shapes=shapes)], resident=["m"])
    scheduler.arrive(1)
    outcome = scheduler.outcomes[1]
    assert isinstance(outcome, Rejected)
    assert outcome.reason is Reason.MODEL_UNAVAILABLE
    assert scheduler.scheduler.anomalies["offered_without_profile"] == 1


@pytest.mark.parametrize(
    "other",
    [model_spec(content_hash="other"), model_spec(exec_ms={1: 10})],
    ids=["another content", "smaller batches"],
)
def test_a_model_offered_with_another_content_is_not_used_and_evicted(
    scheduler: Story, other: object
) -> None:
    scheduler.join(specs=[other], resident=["m"])  # type: ignore[list-item]
    assert [evict.model for evict in scheduler.evicts] == ["m"]
    scheduler.arrive(1)
    assert isinstance(scheduler.outcomes[1], Rejected)
    assert scheduler.scheduler.anomalies == {"offered_with_other_content": 1}
    scheduler.lose()


def test_weights_of_a_model_that_is_not_served_yet_are_kept_for_it(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("a"))
    story.join(specs=[model_spec("a"), model_spec("b")], resident=["b"])
    story.add(model_spec("b"))
    assert holders_of(story, "b") == ["w"]
    story.arrive(1, "b", slo_ms=30)
    assert len(story.infers) == 1


# ---------------------------------------------------------------------- losing


def test_the_loss_of_an_unknown_worker_is_counted(scheduler: Story) -> None:
    assert scheduler.lose("nobody") == []
    assert scheduler.scheduler.anomalies == {"unknown_worker_lost": 1}


def test_another_worker_takes_over_what_was_in_flight_and_queued(scheduler: Story) -> None:
    scheduler.join("a", resident=["m"])
    for request_id in range(4):
        scheduler.arrive(request_id, slo_ms=300)
    scheduler.join("b", at_ms=1)
    scheduler.lose("a", at_ms=5)
    [load] = scheduler.loads
    assert scheduler.worker_of(load) == "b"
    scheduler.finish(load, at_ms=26)
    scheduler.finish(scheduler.infers[0], at_ms=60)
    assert scheduler.outcomes.keys() == {0, 1, 2, 3}
    assert all(isinstance(outcome, Served) for outcome in scheduler.outcomes.values())


def test_a_lost_request_is_answered_503_at_once_while_time_is_left(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in (1, 2):
        scheduler.arrive(request_id, slo_ms=300)
    scheduler.lose(at_ms=5)
    why = "worker w was lost (silent for 1 s), and no other can make it"
    failed = Failed(Reason.WORKER_LOST, why, retry_after_ns=ms(1_000))
    assert scheduler.outcomes == {1: failed, 2: failed}
    assert scheduler.answered_at_ms == {1: 5, 2: 5}


def test_a_lost_request_is_answered_504_at_its_deadline(scheduler: Story) -> None:
    """The loss is noticed after a second: by then the deadline has passed."""
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=50)
    scheduler.lose(at_ms=1_000)
    outcome = scheduler.outcomes[1]
    assert isinstance(outcome, Expired)
    assert outcome.reason is Reason.DEADLINE_EXCEEDED_EXECUTING
    assert scheduler.answered_at_ms[1] == 50


def test_what_no_other_worker_can_make_is_answered_at_once(scheduler: Story) -> None:
    """ "b" would have to load for 20 ms: enough for 300 ms, not for 30."""
    scheduler.join("a", resident=["m"])
    scheduler.arrive(1, slo_ms=30)
    scheduler.arrive(2, slo_ms=300)
    scheduler.arrive(3, slo_ms=31)
    scheduler.join("b", at_ms=1)
    scheduler.lose("a", at_ms=2)
    assert scheduler.answered_at_ms == {1: 2, 3: 2}
    for request_id in (1, 3):
        outcome = scheduler.outcomes[request_id]
        assert isinstance(outcome, Failed)
        assert outcome.reason is Reason.WORKER_LOST
    assert len(scheduler.loads) == 1


def test_a_request_lost_twice_is_given_up(scheduler: Story) -> None:
    for worker in "abc":
        scheduler.join(worker, resident=["m"])
    scheduler.arrive(1, slo_ms=500)
    scheduler.lose("a", at_ms=1)
    assert scheduler.outcomes == {}
    scheduler.lose("b", at_ms=2)
    outcome = scheduler.outcomes[1]
    assert isinstance(outcome, Failed)
    assert outcome.reason is Reason.WORKER_LOST


def test_who_only_waited_is_not_given_up_by_a_second_loss(scheduler: Story) -> None:
    for worker in "abc":
        scheduler.join(worker)
    scheduler.arrive(1, slo_ms=500)
    for worker, lost_at_ms in (("a", 1), ("b", 2)):
        assert [scheduler.worker_of(load) for load in scheduler.loads] == [worker]
        scheduler.lose(worker, at_ms=lost_at_ms)
    assert [scheduler.worker_of(load) for load in scheduler.loads] == ["c"]
    assert scheduler.outcomes == {}


def test_those_with_other_weights_elsewhere_stay_where_they_are(scheduler: Story) -> None:
    scheduler.join("a", resident=["m"])
    scheduler.join("b", resident=["m"])
    for request_id in range(8):
        scheduler.arrive(request_id, slo_ms=400)
    scheduler.lose("a", at_ms=3)
    for finished_at_ms in (10, 60):
        scheduler.finish(scheduler.infers[0], at_ms=finished_at_ms)
    assert len(scheduler.outcomes) == 8
    assert all(isinstance(outcome, Served) for outcome in scheduler.outcomes.values())


def test_the_loss_of_one_worker_does_not_confuse_models_only_it_had(
    make_scheduler: MakeStory,
) -> None:
    """ "n" waits for a LOAD on "a" while "m" is in flight there; only "m" is offered by "b"."""
    story = make_scheduler(model_spec("m"), model_spec("n"))
    story.join("a", resident=["m"])
    story.join("b", specs=[model_spec("m")])
    story.arrive(1, "m", slo_ms=500)
    story.arrive(2, "n", slo_ms=500)
    story.finish(story.loads[0], at_ms=1, code=Code.LOAD_FAILED)
    story.lose("a", at_ms=2)
    assert isinstance(story.outcomes[2], Failed)
    assert [(load.model, story.worker_of(load)) for load in story.loads] == [("m", "b")]


def test_a_model_too_large_for_those_who_are_left_is_answered_at_once(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("m", pages=8))
    story.join("large", resident=["m"])
    story.join("small", pages=4)
    for request_id in (1, 2):
        story.arrive(request_id, slo_ms=5_000)
    story.lose("large", at_ms=1)
    assert story.answered_at_ms == {1: 1, 2: 1}


def test_a_pinned_model_moves_to_another_worker(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("m", pinned=True))
    story.join("a")
    story.join("b")
    story.finish(story.loads[0], at_ms=20)
    assert story.loads == []
    story.lose("a", at_ms=30)
    assert [story.worker_of(load) for load in story.loads] == ["b"]


# ---------------------------------------------------------------------- models


def test_a_removed_model_answers_who_waits_and_serves_who_is_in_flight(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in (1, 2):
        scheduler.arrive(request_id)
    scheduler.remove(at_ms=1)
    failed = Failed(Reason.MODEL_UNAVAILABLE, "m was removed: test")
    assert scheduler.outcomes == {2: failed}
    assert scheduler.evicts == []
    scheduler.finish(scheduler.infers[0], at_ms=10)
    assert isinstance(scheduler.outcomes[1], Served)
    assert len(scheduler.evicts) == 1, "idle now: its weights go"
    scheduler.finish(scheduler.evicts[0], at_ms=11)
    assert scheduler.scheduler.devices["w"].pages_free == 16
    assert scheduler.scheduler.next_wakeup() is None


def test_a_removed_model_that_is_idle_is_evicted_at_once(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.remove()
    assert len(scheduler.evicts) == 1
    scheduler.arrive(1)
    assert isinstance(scheduler.outcomes[1], Rejected)


def test_a_model_removed_while_loading_is_evicted_once_loaded(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1)
    scheduler.remove(at_ms=1)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    assert len(scheduler.evicts) == 1
    scheduler.finish(scheduler.evicts[0], at_ms=21)
    assert scheduler.scheduler.devices["w"].pages_free == 16


def test_an_eviction_of_a_removed_model_that_is_refused_is_not_repeated_for_ever(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(pages=4, resident=["a"])
    story.remove("a")
    story.finish(story.evicts[0], at_ms=1, code=Code.WEIGHTS_IN_USE)
    assert story.sent == {}
    story.arrive(1, "b", slo_ms=200)  # wants the room: then it is tried again
    assert [evict.model for evict in story.evicts] == ["a"]


def test_a_request_in_flight_for_a_removed_model_is_not_tried_again(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=300)
    scheduler.remove(at_ms=1)
    scheduler.finish(scheduler.infers[0], at_ms=2, code=Code.TOO_LATE)
    assert scheduler.outcomes[1] == Failed(Reason.MODEL_UNAVAILABLE, "m was removed")


def test_nor_when_the_model_is_there_again_with_another_content(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=300)
    scheduler.add(model_spec(content_hash="newer"), at_ms=1)
    scheduler.join("new", specs=[model_spec(content_hash="newer")], resident=["m"])
    scheduler.lose("w", at_ms=2)
    outcome = scheduler.outcomes[1]
    assert isinstance(outcome, Failed)
    assert scheduler.infers == []


def test_the_worker_of_a_removed_model_may_be_lost(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1, slo_ms=300)
    scheduler.remove(at_ms=1)
    scheduler.lose(at_ms=2)
    assert isinstance(scheduler.outcomes[1], Failed)


def test_the_load_of_a_removed_model_may_fail(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1)
    scheduler.remove(at_ms=1)
    scheduler.finish(scheduler.loads[0], at_ms=2, code=Code.LOAD_FAILED)
    assert scheduler.sent == {}
    assert scheduler.scheduler.devices["w"].pages_free == 16


def test_a_model_served_again_while_its_weights_are_on_their_way_out(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.remove()
    scheduler.add(model_spec(), at_ms=1)
    scheduler.arrive(1, slo_ms=300)
    scheduler.finish(scheduler.evicts[0], at_ms=2)
    scheduler.finish(scheduler.loads[0], at_ms=25)
    assert [infer.request_ids for infer in scheduler.infers] == [(1,)]


def test_a_model_served_again_uses_what_is_still_there(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1)
    scheduler.remove(at_ms=1)
    scheduler.add(model_spec(), at_ms=2)
    scheduler.finish(scheduler.infers[0], at_ms=10)
    assert scheduler.evicts == []
    scheduler.arrive(2, slo_ms=30)
    assert len(scheduler.infers) == 1


def test_a_model_served_again_while_loading_waits_for_that_load(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1)
    scheduler.remove(at_ms=1)
    scheduler.add(model_spec(), at_ms=2)
    scheduler.arrive(2, slo_ms=100, at_ms=3)
    assert len(scheduler.loads) == 1
    scheduler.finish(scheduler.loads[0], at_ms=20)
    assert [infer.request_ids for infer in scheduler.infers] == [(2,)]


def test_a_replaced_model_is_not_served_from_the_old_weights(scheduler: Story) -> None:
    scheduler.join("old", resident=["m"])
    scheduler.add(model_spec(content_hash="newer"))
    assert holders_of(scheduler, "m") == []
    assert [scheduler.worker_of(evict) for evict in scheduler.evicts] == ["old"]
    scheduler.join("new", specs=[model_spec(content_hash="newer")])
    scheduler.arrive(1, slo_ms=200)
    assert [scheduler.worker_of(load) for load in scheduler.loads] == ["new"]
    scheduler.finish(scheduler.evicts[0], at_ms=1)
    scheduler.lose("old", at_ms=2)  # it no longer offers the model, which is not an error


def test_a_model_is_offered_by_the_workers_that_have_it_when_it_is_added(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("a"))
    story.join(specs=[model_spec("a"), model_spec("b")])
    story.add(model_spec("b", pinned=True))
    assert [load.model for load in story.loads] == ["b"]


def test_a_worker_that_stops_is_not_offered_new_models(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"))
    story.join(specs=[model_spec("a"), model_spec("b")], resident=["a", "b"])
    story.arrive(1, "a")
    story.finish(story.infers[0], at_ms=1, code=Code.SHUTTING_DOWN)
    story.add(model_spec("b"))
    story.arrive(2, "b")
    assert isinstance(story.outcomes[2], Rejected)


def test_removing_or_pinning_what_is_not_served_is_counted(scheduler: Story) -> None:
    assert scheduler.remove("never heard of") == []
    assert scheduler.pin("never heard of") == []
    assert scheduler.scheduler.anomalies == {"unknown_model_removed": 1, "unknown_model_pinned": 1}


def test_timers_of_a_removed_queue_never_fire(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in (1, 2, 3):
        scheduler.arrive(request_id, slo_ms=60)
    scheduler.remove(at_ms=1)
    scheduler.add(model_spec(), at_ms=2)
    scheduler.finish(scheduler.infers[0], at_ms=10)
    assert scheduler.scheduler.next_wakeup() is None
    scheduler.advance(500)
    assert len(scheduler.outcomes) == 3


# ---------------------------------------------------------------------- pinning


def test_pinning_loads_and_keeps(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(pages=4)
    story.pin("a")
    story.finish(story.loads[0], at_ms=20)
    story.arrive(1, "b", slo_ms=1_000)
    assert story.evicts == []
    assert story.scheduler.devices["w"].weights_state("a") is WeightsState.RESIDENT


def test_unpinning_lets_those_who_wait_in(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"))
    story.join(pages=4, resident=["a"])
    story.arrive(1, "a", slo_ms=1_000)
    story.arrive(2, "b", slo_ms=1_000)
    story.pin("a")
    story.finish(story.infers[0], at_ms=10)
    assert story.loads == []
    story.pin("a", False)
    assert [evict.model for evict in story.evicts] == ["a"]
    assert [load.model for load in story.loads] == ["b"]


def test_a_pinned_model_whose_load_failed_is_tried_again(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("m", pinned=True))
    story.join()
    story.finish(story.loads[0], at_ms=5, code=Code.LOAD_FAILED)
    story.advance(105)
    assert len(story.loads) == 1


def test_a_window_for_a_pinned_load_never_closes(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("m", pinned=True))
    story.join()
    assert story.loads[0].latest_ns > at(10 * 86_400_000)
