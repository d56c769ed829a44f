"""Clockwork's INFER5: full batches, internal deadlines, load demand; each slip behind a flag."""

import pytest

from scheduler.events import Expired, Reason, Rejected, Served
from scheduler.scheduler import Scheduler
from tests.scheduler.closed_loop import RESNET_PER_S, ClosedLoop
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, actions_in, at, model_spec


def busy(make_scheduler: MakeStory, policy: str = "clockwork") -> Story:
    """One model "m" resident, and request 1 in execution from 0.2 to 10.2 ms."""
    story = make_scheduler(policy=policy)
    story.join(resident=["m"])
    story.arrive(1, slo_ms=200)
    assert story.infers[0].request_ids == (1,)
    return story


def ids(story: Story) -> list[tuple[int, ...]]:
    return [infer.request_ids for infer in story.infers]


def test_batches_are_full_powers_of_two_in_order_of_arrival(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    for request_id in range(2, 9):
        story.arrive(request_id, slo_ms=200)
    story.advance(0.2)
    assert ids(story) == [(1,), (2, 3, 4, 5)]
    story.finish(story.infers[0], at_ms=10.2)
    story.advance(28.2)
    assert ids(story) == [(2, 3, 4, 5), (6, 7)]
    story.finish(story.infers[0], at_ms=38.2)
    story.advance(44.2)
    assert ids(story) == [(6, 7), (8,)]


def test_what_no_worker_could_do_is_refused_before_any_internal_deadline(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(policy="clockwork")
    story.arrive(1)
    outcome = story.outcomes[1]
    assert isinstance(outcome, Rejected)
    assert outcome.reason is Reason.NO_WORKER


def test_nothing_is_copied_on_speculation(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    story.join("idle")
    scheduler = story.scheduler
    residency, device = scheduler.policy.residency, scheduler.devices["idle"]
    assert not residency.is_speculative
    model = scheduler.state.models["m"]
    assert residency.copy_of(scheduler.state, device, model, scheduler.now) is None


def test_sizes_that_were_not_compiled_are_not_used(make_scheduler: MakeStory) -> None:
    padded = model_spec("m", exec_ms={1: 4, 4: 8, 16: 20}, exact=False)
    story = make_scheduler(padded, policy="clockwork:max_batch=8,schedule_ahead_ms=2")
    story.join(resident=["m"])
    for request_id in range(1, 21):
        story.arrive(request_id, slo_ms=200)
    story.advance(2.2)
    assert ids(story) == [(1,), (2, 3, 4, 5)]


def test_no_more_than_schedule_ahead_is_outstanding(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler, "clockwork:schedule_ahead_ms=3")
    story.arrive(2, slo_ms=200)
    story.advance(7.1)
    assert ids(story) == [(1,)]
    story.advance(7.2)
    assert ids(story) == [(1,), (2,)]
    assert story.infers[1].latest_ns == at(10.2 + 3)


def test_many_short_ones_are_outstanding_at_once(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("m", exec_ms={1: 1}), policy="clockwork")
    story.join(resident=["m"])
    for request_id in range(1, 31):
        story.arrive(request_id, slo_ms=200)
    assert len(story.infers) == 10


def test_too_late_for_a_large_batch_is_in_time_for_a_small_one(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    story.arrive(2, slo_ms=30)
    story.arrive(3, slo_ms=200)
    story.advance(0.2)
    assert ids(story) == [(1,), (2,)]


def test_the_largest_full_batch_leaves_the_older_behind(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    story.arrive(2, slo_ms=30)
    story.arrive(3, slo_ms=200)
    story.arrive(4, slo_ms=200)
    story.advance(0.2)
    assert ids(story) == [(1,), (3, 4)]
    assert story.answered_at_ms[2] == 0.2
    outcome = story.outcomes[2]
    assert isinstance(outcome, Expired)
    assert outcome.reason is Reason.DEADLINE_EXCEEDED_QUEUED
    assert outcome.detail == "waited 0.2 ms, and was given up for a batch of 2"


def test_the_least_latest_start_goes_first(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"), policy="clockwork:schedule_ahead_ms=2")
    story.join(resident=["a", "b"])
    story.arrive(1, "a", slo_ms=200)
    story.arrive(2, "a", slo_ms=190)
    story.arrive(3, "b", slo_ms=170)
    story.advance(8.2)
    assert ids(story) == [(1,), (3,)]


def test_a_request_of_several_rows_is_a_batch_of_its_own(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    story.arrive(2, slo_ms=200, rows=3)
    story.advance(0.2)
    assert story.infers[1].rows == (3,)
    assert story.infers[1].batch_size == 3


def test_what_cannot_make_it_is_left_to_expire(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler)
    story.arrive(2, slo_ms=22)
    story.advance(6.9)
    assert 2 not in story.outcomes
    story.advance(7)
    assert isinstance(story.outcomes[2], Expired)
    assert story.answered_at_ms[2] == 7


# ------------------------------------------------------------------ slips, put back by a flag


def test_late_refusal_tells_nobody_before_the_internal_deadline(make_scheduler: MakeStory) -> None:
    story = busy(make_scheduler, "clockwork:late_refusal")
    story.arrive(2, slo_ms=30)
    story.arrive(3, slo_ms=200)
    story.arrive(4, slo_ms=200)
    story.arrive(5, slo_ms=21)
    story.advance(0.2)
    assert ids(story) == [(1,), (3, 4)]
    story.advance(20)
    assert story.answered_at_ms == {5: 16}
    story.finish(story.infers[0], at_ms=20)
    story.finish(story.infers[0], at_ms=24)
    assert ids(story) == []  # 2 could be executed now, but nobody looks at it any more
    story.advance(25)
    assert story.answered_at_ms[2] == 25


@pytest.mark.parametrize(("policy", "is_executed"), [("", False), (":deadline_floor", True)])
def test_deadline_floor_executes_what_is_lost(
    make_scheduler: MakeStory, policy: str, is_executed: bool
) -> None:
    story = make_scheduler(policy=f"clockwork{policy}")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=11)
    assert bool(story.infers) is is_executed
    if is_executed:
        story.finish(story.infers[0], at_ms=12)
        assert isinstance(story.outcomes[1], Served)
        assert story.answered_at_ms[1] == 12
    else:
        story.advance(1)
        assert isinstance(story.outcomes[1], Expired)


def test_a_margin_as_long_as_the_slo_is_left_out(make_scheduler: MakeStory) -> None:
    fast = model_spec("m", exec_ms={1: 1})
    for margin_ms, is_sent in ((5, True), (4.5, False)):
        story = make_scheduler(fast, policy=f"clockwork:margin_ms={margin_ms}")
        story.join(resident=["m"])
        story.arrive(1, slo_ms=5)
        assert bool(story.infers) is is_sent


@pytest.mark.parametrize("policy", ["clockwork:schedule_ahead_ms=1", "clockwork:stands_still"])
def test_a_schedule_ahead_of_a_millisecond_is_enough(
    make_scheduler: MakeStory, policy: str
) -> None:
    assert busy(make_scheduler, policy).infers


def test_stands_still_where_schedule_ahead_is_a_millisecond(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="clockwork:schedule_ahead_ms=1,stands_still")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=50)
    story.advance(35)
    assert story.infers == []
    assert isinstance(story.outcomes[1], Expired)


def two_devices(make_scheduler: MakeStory, policy: str) -> Story:
    story = make_scheduler(model_spec("busy"), model_spec("idle"), policy=policy)
    story.join("one", pages=4, resident=["busy"])
    story.join("two", pages=4, resident=["idle"])
    return story


def test_loads_never_stop_copies_a_model_that_is_served_well(make_scheduler: MakeStory) -> None:
    for policy, loaded, evicted in (
        ("clockwork", [], []),
        ("clockwork:loads_never_stop", ["busy"], ["idle"]),
    ):
        story = two_devices(make_scheduler, policy)
        story.arrive(1, "busy", slo_ms=200)
        story.arrive(2, "busy", slo_ms=200)  # waits for 1, a twentieth of its time
        assert [load.model for load in story.loads] == loaded
        assert [evict.model for evict in story.evicts] == evicted


def test_load_demand_never_expires(make_scheduler: MakeStory) -> None:
    for policy, loaded in (
        ("clockwork", []),
        ("clockwork:load_demand_never_expires", ["b"]),
    ):
        story = make_scheduler(model_spec("a"), model_spec("b"), policy=policy)
        story.join()
        story.arrive(1, "a", slo_ms=1_000)
        story.arrive(2, "b", slo_ms=1_000)
        story.finish(story.loads[0], at_ms=26)
        assert [load.model for load in story.loads] == loaded


# ------------------------------------------------------------------ residency


def test_what_one_device_cannot_do_in_time_is_copied(make_scheduler: MakeStory) -> None:
    story = two_devices(make_scheduler, "clockwork")
    for request_id in range(1, 25):
        commands = story.arrive(request_id, "busy", slo_ms=205)
        # Each is 10 ms of work in 200 ms: 5 of the 100 ms that a device does, and 1 ms is assumed.
        loaded = [type(action).__name__ for action in actions_in(commands)[-2:]]
        assert (loaded == ["EvictWeights", "LoadWeights"]) is (request_id == 21)
    assert story.worker_of(story.loads[0]) == "two"


def test_most_unmet_demand_is_loaded_first(make_scheduler: MakeStory) -> None:
    specs = [model_spec(name) for name in "abc"]
    story = make_scheduler(*specs, policy="clockwork")
    story.join()
    story.arrive(1, "a", slo_ms=500)
    story.arrive(2, "b", slo_ms=500)
    story.arrive(3, "c", slo_ms=500)
    story.arrive(4, "c", slo_ms=500)
    story.finish(story.loads[0], at_ms=20)
    assert [load.model for load in story.loads] == ["c"]


def test_idle_models_go_before_busy_ones(make_scheduler: MakeStory) -> None:
    specs = [model_spec(name, exec_ms={1: 10}) for name in ("busy", "old", "new", "wanted")]
    story = make_scheduler(*specs, policy="clockwork")
    story.join(pages=12, resident=["busy", "old", "new"])
    for request_id, model in ((1, "busy"), (2, "old"), (3, "new")):
        story.arrive(request_id, model, slo_ms=500, at_ms=20 * request_id)
        story.finish(story.infers[0])
    story.arrive(4, "new", slo_ms=500, at_ms=80)
    story.arrive(5, "busy", slo_ms=500)
    story.arrive(6, "busy", slo_ms=500)
    story.arrive(7, "wanted", slo_ms=500)
    assert [evict.model for evict in story.evicts] == ["old"]


def test_busy_models_go_where_no_other_can(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"), model_spec("c"), policy="clockwork")
    story.join(pages=8, resident=["a", "b"])
    story.arrive(1, "a", slo_ms=500)
    story.arrive(2, "b", slo_ms=500)  # waits behind a
    story.arrive(3, "c", slo_ms=500)
    assert [evict.model for evict in story.evicts] == ["b"]


def test_pinned_weights_and_weights_in_use_stay(make_scheduler: MakeStory) -> None:
    specs = [model_spec("kept", pinned=True), model_spec("used"), model_spec("c", pages=8)]
    story = make_scheduler(*specs, policy="clockwork")
    story.join(pages=8, resident=["kept", "used"])
    story.arrive(1, "used", slo_ms=500)
    story.arrive(2, "c", slo_ms=500)
    assert story.loads == []
    story.finish(story.infers[0], at_ms=10)
    assert story.loads == []  # half of the pages are pinned


# ------------------------------------------------------------------ the published shape


def test_the_published_collapse_at_10_ms_is_the_floor() -> None:
    """Section 6.1 at an SLO of 10 ms: what is executed is late, all of it."""
    loop = ClosedLoop("clockwork:deadline_floor,late_refusal", slo_ms=10)
    assert loop.run(seconds=0.7) == 0
    assert loop.ended["late"] > 100
    # With a short schedule_ahead the floor is below the SLO: single executions, all in time.
    loop = ClosedLoop("clockwork:deadline_floor,late_refusal,schedule_ahead_ms=3", slo_ms=10)
    assert loop.run(seconds=0.7) > 290
    assert loop.ended["late"] == 0


def test_a_shorter_schedule_ahead_gives_larger_batches() -> None:
    """Section 6.1 at 25 ms: what is committed early cannot be joined."""
    late = ClosedLoop("clockwork:deadline_floor,late_refusal", slo_ms=25)
    soon = ClosedLoop("clockwork:deadline_floor,late_refusal,schedule_ahead_ms=3", slo_ms=25)
    assert 420 < late.run(seconds=1) < 520
    assert 560 < soon.run(seconds=1) <= RESNET_PER_S
    assert soon.batches[8] > late.batches[8]


def test_from_50_ms_on_it_is_close_to_the_ceiling() -> None:
    assert ClosedLoop("clockwork", slo_ms=50).run(seconds=1) > 0.97 * RESNET_PER_S


def test_the_policy_bounds_what_is_outstanding_by_time_only() -> None:
    assert Scheduler(policy="clockwork").policy.max_outstanding_infers == 1_000
