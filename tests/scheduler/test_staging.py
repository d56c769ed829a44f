"""A model that is about to take over is loaded beside the one it replaces, and tried in idle time.

It takes nothing from anybody: no page that somebody waits for, no moment of a lane that is wanted.
"""

import pytest

from scheduler.actions import Code, LoadWeights
from scheduler.events import Rejected, Served
from scheduler.staging import MAX_TRIAL_NS, NUM_TRIALS, TRIAL_WINDOW_NS
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, at, model_spec, ms

OLD = model_spec("m")
# Three batch sizes are tried: the fourth takes longer than a trial may.
EXEC_MS = {1: 2.0, 2: 3.0, 4: 5.0, 8: 40.0}
NEW = model_spec("m/2", exec_ms=EXEC_MS, content_hash="newer")


def staged(story: Story, *, replaces: str = "m") -> None:
    """The new version is served, offered by "w", and staged."""
    story.add(NEW)
    story.offer(NEW)
    story.stage("m/2", replaces)


def is_settled(story: Story, model: str = "m/2") -> bool:
    return story.scheduler.staging_of(model)[0]


def problem(story: Story, model: str = "m/2") -> str | None:
    return story.scheduler.staging_of(model)[1]


def trials(story: Story) -> list[tuple[str, int]]:
    """Model and batch size of the trials in flight."""
    return [(i.model, i.batch_size) for i in story.infers if not i.request_ids]


def run_trials(story: Story, *, factor: float = 1.0) -> list[int]:
    """Lets time pass until none is left; the batch sizes, in order."""
    sizes = []
    for _ in range(400):
        for infer in [i for i in story.infers if not i.request_ids]:
            sizes.append(infer.batch_size)
            took_ms = factor * EXEC_MS[infer.batch_size]
            story.finish(infer, at_ms=now_ms(story) + took_ms, took_ms=took_ms)
        story.advance(now_ms(story) + 5)
    return sizes


def now_ms(story: Story) -> float:
    return (story.now_ns - at(0)) / 1e6


def test_its_weights_come_to_where_the_old_ones_are(scheduler: Story) -> None:
    scheduler.join("w", resident=["m"])
    scheduler.join("other")
    staged(scheduler)
    scheduler.offer(NEW, "other")
    (load,) = scheduler.loads
    assert (load.model, scheduler.worker_of(load)) == ("m/2", "w")
    assert not is_settled(scheduler)
    scheduler.finish(load, at_ms=20)
    device = scheduler.scheduler.devices["w"]
    assert device.is_resident("m")
    assert device.is_resident("m/2")
    assert not is_settled(scheduler), "it was not tried yet"


def test_a_device_that_offers_it_later_gets_it_then(scheduler: Story) -> None:
    scheduler.join("w", resident=["m"])
    scheduler.join("late", resident=["m"])
    staged(scheduler)
    assert [scheduler.worker_of(load) for load in scheduler.loads] == ["w"]
    scheduler.offer(NEW, "late")
    assert [scheduler.worker_of(load) for load in scheduler.loads] == ["w", "late"]


def test_a_new_model_comes_onto_one_device_where_pages_are_free(scheduler: Story) -> None:
    scheduler.join("w", pages=16)
    scheduler.join("other", pages=16)
    scheduler.add(NEW)
    scheduler.offer(NEW)
    scheduler.offer(NEW, "other")
    scheduler.stage("m/2", "")
    assert len(scheduler.loads) == 1
    scheduler.finish(scheduler.loads[0], at_ms=20)
    assert len(scheduler.loads) == 0


def test_a_new_model_takes_nobodys_pages(scheduler: Story) -> None:
    scheduler.join(pages=7, resident=["m"])
    staged(scheduler, replaces="")
    assert scheduler.loads == scheduler.evicts == []
    assert is_settled(scheduler), "waiting would be of no use"


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_it_takes_the_pages_of_who_is_idle_only(
    make_scheduler: MakeStory, is_waited_for: bool
) -> None:
    story = make_scheduler(OLD, model_spec("idle"))
    story.join(pages=8, resident=["m", "idle"])
    if is_waited_for:
        for request_id in range(1, 4):
            story.arrive(request_id, "idle")
    staged(story)
    assert [evict.model for evict in story.evicts] == ([] if is_waited_for else ["idle"])
    assert is_settled(story) is is_waited_for


def test_it_never_takes_the_pages_of_the_one_it_replaces(scheduler: Story) -> None:
    scheduler.join(pages=7, resident=["m"])
    staged(scheduler)
    assert scheduler.evicts == scheduler.loads == []
    assert is_settled(scheduler)


def test_a_load_that_somebody_waits_for_goes_first(make_scheduler: MakeStory) -> None:
    story = make_scheduler(OLD, model_spec("wanted"))
    story.join(resident=["m"])
    story.arrive(1, "wanted", slo_ms=100)
    staged(story)
    assert [load.model for load in story.loads] == ["wanted"]
    story.finish(story.loads[0], at_ms=20)
    assert [load.model for load in story.loads] == ["m/2"]


def test_what_replaces_a_cold_model_need_not_be_loaded(scheduler: Story) -> None:
    scheduler.join()
    staged(scheduler)
    assert scheduler.loads == []
    assert is_settled(scheduler)


def test_the_batches_of_its_profile_are_tried_and_correct_the_estimates(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    (trial,) = scheduler.infers
    assert (trial.model, trial.rows, trial.request_ids, trial.sample) == ("m/2", (), (), 0)
    assert trial.latest_ns - trial.earliest_ns <= TRIAL_WINDOW_NS + ms(1)
    assert run_trials(scheduler, factor=2.0) == [
        *[1] * NUM_TRIALS,
        *[2] * NUM_TRIALS,
        *[4] * NUM_TRIALS,
    ]
    assert is_settled(scheduler)
    assert problem(scheduler) is None
    estimate = scheduler.scheduler.devices["w"].estimates("m/2").first
    assert [round(estimate.plan[rows] / ms(1)) for rows in (1, 2, 4)] == [4, 6, 10]
    assert round(estimate.plan[8] / ms(1)) == 80, "borrowed from the largest that was tried"


def test_trials_go_on_after_one_that_was_over_before_it_was_to_begin(
    make_scheduler: MakeStory,
) -> None:
    """Its lane is predicted busy a while longer: the next look must be planned for then."""
    story = make_scheduler(OLD, policy="remontoir:schedule_ahead_ms=0")
    story.join(resident=["m"])
    staged(story)
    story.finish(story.loads[0], at_ms=20)
    for _ in range(3 * NUM_TRIALS):
        (trial,) = story.infers
        story.finish(trial, took_ms=0.001)
        story.advance(now_ms(story) + 400)
    assert is_settled(story)


def test_trials_leave_nearly_all_of_the_time_to_others(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    scheduler.finish(scheduler.infers[0], at_ms=22, took_ms=2)
    assert trials(scheduler) == []
    scheduler.advance(22 + 19 * 2 - 0.5)
    assert trials(scheduler) == []
    scheduler.advance(22 + 19 * 2)
    assert trials(scheduler) == [("m/2", 1)]


def test_one_row_is_tried_however_long_it_takes(scheduler: Story) -> None:
    slow = model_spec("m/2", exec_ms={1: 50, 2: 90}, content_hash="newer")
    scheduler.join(resident=["m"])
    scheduler.add(slow)
    scheduler.offer(slow)
    scheduler.stage("m/2", "m")
    scheduler.finish(scheduler.loads[0], at_ms=20)
    assert trials(scheduler) == [("m/2", 1)]
    assert scheduler.infers[0].expected_duration_ns > MAX_TRIAL_NS


def test_no_trial_while_there_is_something_else_to_do(make_scheduler: MakeStory) -> None:
    story = make_scheduler(OLD, model_spec("wanted"))
    story.join(resident=["m"])
    staged(story)
    story.arrive(1, slo_ms=100)
    story.arrive(2, "wanted", slo_ms=200)
    story.finish(story.loads[0], at_ms=5)
    assert trials(story) == [], "the lane is busy"
    story.finish(story.infers[0], at_ms=10)
    assert [load.model for load in story.loads] == ["wanted"]
    assert trials(story) == [], "somebody waits for a LOAD"
    story.finish(story.loads[0], at_ms=25)
    story.finish(story.infers[0], at_ms=35)
    assert trials(story) == [("m/2", 1)]


def test_who_comes_during_a_trial_waits_for_its_end_and_no_longer(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    scheduler.arrive(1, slo_ms=100, at_ms=20.5)
    scheduler.finish(scheduler.infers[0], at_ms=22, took_ms=2)
    assert [infer.request_ids for infer in scheduler.infers] == [(1,)]
    scheduler.finish(scheduler.infers[0], at_ms=32)
    assert isinstance(scheduler.outcomes[1], Served)


def test_a_trial_that_came_too_late_is_tried_again(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    scheduler.finish(scheduler.infers[0], at_ms=22, code=Code.TOO_LATE)
    assert trials(scheduler) == []
    scheduler.advance(32)
    assert trials(scheduler) == [("m/2", 1)]
    assert problem(scheduler) is None


@pytest.mark.parametrize("code", [Code.ENGINE_ERROR, Code.INVALID_INPUT])
def test_a_trial_that_fails_is_the_last_and_says_why(scheduler: Story, code: Code) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    scheduler.finish(scheduler.infers[0], at_ms=22, code=code, message="it is no model")
    assert problem(scheduler) == "a batch of 1 failed on w: it is no model"
    scheduler.advance(1000)
    assert trials(scheduler) == []


def test_weights_that_cannot_be_copied_are_a_problem(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20, code=Code.LOAD_FAILED, message="no memory")
    assert problem(scheduler) == "its weights could not be loaded on w: no memory"
    assert is_settled(scheduler)


def test_trials_of_weights_that_left_are_dropped(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    scheduler.finish(scheduler.infers[0], at_ms=22, code=Code.WEIGHTS_MISSING)
    assert is_settled(scheduler)
    assert problem(scheduler) is None


def test_trials_end_with_the_staging(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    scheduler.end_staging("m/2")
    scheduler.end_staging("m/2")
    scheduler.finish(scheduler.infers[0], at_ms=22)
    scheduler.advance(1000)
    assert trials(scheduler) == []
    assert is_settled(scheduler)


@pytest.mark.parametrize("code", [Code.OK, Code.TOO_LATE, Code.ENGINE_ERROR])
def test_a_trial_of_before_is_not_taken_for_one_of_now(scheduler: Story, code: Code) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20)
    scheduler.remove("m/2")
    scheduler.finish(scheduler.infers[0], at_ms=22, code=code)
    assert trials(scheduler) == []


def test_a_trial_whose_weights_left_before_its_turn_is_not_sent(make_scheduler: MakeStory) -> None:
    story = make_scheduler(OLD, model_spec("wanted"))
    story.join(pages=8, resident=["m"])
    staged(story)
    story.arrive(1, slo_ms=100)
    story.finish(story.loads[0], at_ms=5)
    story.arrive(2, "wanted", slo_ms=200)
    assert [evict.model for evict in story.evicts] == ["m/2"]
    story.finish(story.infers[0], at_ms=10)
    story.finish(story.loads[0], at_ms=30)
    story.finish(story.infers[0], at_ms=40)
    assert trials(story) == []
    assert is_settled(story)


def test_staging_what_is_resident_already_only_tries_it(scheduler: Story) -> None:
    scheduler.add(NEW)
    scheduler.join(resident=["m", "m/2"], specs=[OLD, NEW])
    scheduler.stage("m/2", "m")
    assert scheduler.loads == []
    assert trials(scheduler) == [("m/2", 1)]


def test_new_weights_are_worth_as_much_as_the_old(make_scheduler: MakeStory) -> None:
    """Else the next LOAD of anybody would take their pages before the first request has come."""
    story = make_scheduler(OLD, model_spec("idle"), model_spec("wanted"))
    story.join(pages=12, resident=["m", "idle"])
    story.arrive(1)
    story.finish(story.infers[0], at_ms=10)
    staged(story)
    story.finish(story.loads[0], at_ms=30)
    story.arrive(2, "wanted", slo_ms=200)
    assert [evict.model for evict in story.evicts] == ["idle"]


def test_an_offer_serves_who_waits(scheduler: Story) -> None:
    scheduler.join(specs=[])
    scheduler.arrive(1)
    assert isinstance(scheduler.outcomes[1], Rejected)
    scheduler.offer(OLD)
    scheduler.arrive(2)
    (load,) = scheduler.loads
    assert isinstance(load, LoadWeights)
    scheduler.finish(load, at_ms=20)
    scheduler.finish(scheduler.infers[0], at_ms=30)
    assert isinstance(scheduler.outcomes[2], Served)


def test_an_offer_of_what_was_unloaded_meanwhile_is_released(scheduler: Story) -> None:
    scheduler.join(specs=[])
    scheduler.unload("m")
    scheduler.offer(OLD)
    assert [release.model for release in scheduler.releases] == ["m"]


def test_offers_that_cannot_be_used_are_counted(scheduler: Story) -> None:
    scheduler.join()
    scheduler.offer(OLD)
    scheduler.offer(model_spec("x", shapes=()))
    scheduler.add(model_spec("y"))
    scheduler.offer(model_spec("y", content_hash="another"))
    scheduler.offer(NEW, "nobody")
    scheduler.offer(model_spec("z"))
    assert scheduler.scheduler.anomalies == {
        "offered_twice": 1,
        "offered_without_profile": 1,
        "offered_with_other_content": 1,
    }
    assert "z" in scheduler.scheduler.devices["w"].offered


def test_what_is_not_served_cannot_be_staged(scheduler: Story) -> None:
    scheduler.stage("nope", "m")
    assert scheduler.scheduler.anomalies == {"unknown_model_staged": 1}


def test_a_worker_that_leaves_holds_nothing_up(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    staged(scheduler)
    scheduler.finish(scheduler.loads[0], at_ms=20, code=Code.SHUTTING_DOWN)
    scheduler.offer(model_spec("more"))
    assert is_settled(scheduler)


def test_nothing_is_left_of_a_model_that_is_forgotten(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.arrive(1)
    scheduler.forget("m")
    scheduler.finish(scheduler.infers[0], at_ms=10)
    scheduler.unload()
    scheduler.forget("m")
    scheduler.finish(scheduler.evicts[0], at_ms=11)
    scheduler.forget("m")
    scheduler.finish(scheduler.releases[0], at_ms=12)
    assert scheduler.scheduler.anomalies == {"forgotten_too_early": 3}
    scheduler.forget("m")
    device = scheduler.scheduler.devices["w"]
    assert (device.offered, device.weights, device.released) == ({}, {}, {})
    assert scheduler.scheduler.state.unloaded == {}
    scheduler.offer(OLD)
    assert scheduler.releases == []


def test_a_failed_load_of_a_forgotten_model_is_not_waited_for(make_scheduler: MakeStory) -> None:
    story = make_scheduler(OLD, model_spec("other"))
    story.join()
    story.arrive(1, slo_ms=30)
    story.finish(story.loads[0], at_ms=20, code=Code.LOAD_FAILED)
    story.unload("m")
    story.finish(story.releases[0], at_ms=21)
    story.forget("m")
    story.arrive(2, "other", slo_ms=100)
    assert [load.model for load in story.loads] == ["other"]
