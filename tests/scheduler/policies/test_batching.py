"""Which requests share the next batch, and whose turn it is.

Each test fills a lane with one request ("blocker", 20 ms), lets others queue behind it, and looks
at what is sent when the blocker is done at 20 ms.
"""

import pytest

from scheduler.actions import Infer
from scheduler.events import Expired, Served
from scheduler.policies import Policy, parse
from scheduler.policies.batching.fifo import FifoBatching
from scheduler.policies.batching.least_latest_start import MAX_CANDIDATES
from scheduler.spec import SchedulerConfig
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import AHEAD_2_MS, Story, at, model_spec, ms

BLOCKER = model_spec("blocker", exec_ms={1: 20}, pages=1)
FIFO_BATCHES = parse(AHEAD_2_MS)._replace(batching=FifoBatching(), queue_order="arrival")
ONE_AT_A_TIME = SchedulerConfig(max_outstanding_infers=1)


def blocked(make_scheduler: MakeStory, *specs: object, policy: Policy | str = AHEAD_2_MS) -> Story:
    story = make_scheduler(BLOCKER, *specs, config=ONE_AT_A_TIME, policy=policy)
    story.join(pages=100, resident=[spec.name for spec in story.specs])
    story.arrive(0, "blocker", slo_ms=1_000)
    return story


def next_batch(story: Story, *, at_ms: float = 20) -> Infer:
    story.finish(story.infers[0], at_ms=at_ms)
    [infer] = story.infers
    return infer


# ---------------------------------------------------------------------- inside a model


def test_the_earliest_deadlines_share_the_batch(make_scheduler: MakeStory) -> None:
    """Mixed SLOs inside one model: neither arrival nor the first in the queue decides."""
    story = blocked(make_scheduler, model_spec("m", exec_ms={1: 10, 2: 12}))
    for request_id, slo_ms in ((1, 400), (2, 90), (3, 300), (4, 80)):
        story.arrive(request_id, slo_ms=slo_ms)
    assert next_batch(story).request_ids == (4, 2)


def test_equal_deadlines_are_served_in_order_of_arrival(make_scheduler: MakeStory) -> None:
    story = blocked(make_scheduler, model_spec("m", exec_ms={1: 10, 2: 12}))
    for request_id in (1, 2, 3):
        story.arrive(request_id, slo_ms=200)
    assert next_batch(story).request_ids == (1, 2)


def test_no_batch_is_larger_than_its_first_deadline_allows(make_scheduler: MakeStory) -> None:
    """From 20 ms on: 7 rows take 44.5, 6 take 39; the first is due at 60."""
    story = blocked(make_scheduler, model_spec("m"))
    for request_id in range(1, 9):
        story.arrive(request_id, slo_ms=60 if request_id == 1 else 500)
    infer = next_batch(story)
    assert infer.request_ids == (1, 2, 3, 4, 5, 6)
    assert infer.expected_duration_ns == ms(39)


def test_no_batch_is_planned_for_more_requests_than_wait(make_scheduler: MakeStory) -> None:
    story = blocked(make_scheduler, model_spec("m"))
    for request_id in (1, 2, 3):
        story.arrive(request_id, slo_ms=500)
    infer = next_batch(story)
    assert (infer.request_ids, infer.batch_size) == ((1, 2, 3), 3)


def test_a_padded_engine_executes_the_next_compiled_size(make_scheduler: MakeStory) -> None:
    story = blocked(make_scheduler, model_spec("m", exec_ms={1: 10, 4: 14}, exact=False))
    for request_id in (1, 2, 3):
        story.arrive(request_id, slo_ms=500)
    infer = next_batch(story)
    assert (infer.rows, infer.batch_size) == ((1, 1, 1), 4)
    assert infer.expected_duration_ns == ms(14)


def test_requests_of_several_rows_fill_a_batch_without_overflowing(
    make_scheduler: MakeStory,
) -> None:
    story = blocked(make_scheduler, model_spec("m", exec_ms={1: 10, 8: 24}))
    for request_id, rows in ((1, 3), (2, 4), (3, 2), (4, 1)):
        story.arrive(request_id, slo_ms=500, rows=rows)
    infer = next_batch(story)
    assert (infer.request_ids, infer.rows, infer.batch_size) == ((1, 2), (3, 4), 7)
    infer = next_batch(story, at_ms=50)
    assert (infer.request_ids, infer.rows) == ((3, 4), (2, 1))


def test_a_full_batch_of_one_request_is_sent_as_it_is(make_scheduler: MakeStory) -> None:
    story = blocked(make_scheduler, model_spec("m"))
    story.arrive(1, slo_ms=500, rows=8)
    story.arrive(2, slo_ms=500)
    assert next_batch(story).rows == (8,)


def test_different_batch_keys_never_share_a_batch(make_scheduler: MakeStory) -> None:
    story = blocked(make_scheduler, model_spec("m"))
    for request_id, key in ((1, "x"), (2, "y"), (3, "x")):
        story.arrive(request_id, slo_ms=500, batch_key=key)
    assert next_batch(story).request_ids == (1, 3)
    assert next_batch(story, at_ms=40).request_ids == (2,)


def test_who_cannot_make_it_does_not_hold_up_who_can(make_scheduler: MakeStory) -> None:
    """The blocker took 70 ms longer than planned: 1 is past saving, 2 is not."""
    story = blocked(make_scheduler, model_spec("m"))
    story.arrive(1, slo_ms=100.5)
    story.arrive(2, slo_ms=180)
    infer = next_batch(story, at_ms=90)
    assert infer.request_ids == (2,)
    story.advance(90.5)
    assert isinstance(story.outcomes[1], Expired)


def test_behind_who_cannot_make_it_one_of_many_rows_may_not_either(
    make_scheduler: MakeStory,
) -> None:
    """From 60 ms on: 1 is late even alone, and 2, of eight rows, takes 50 of its 45 ms."""
    story = blocked(make_scheduler, model_spec("m"))
    story.arrive(1, slo_ms=70.5)
    story.arrive(2, slo_ms=105, rows=8)
    story.finish(story.infers[0], at_ms=60)
    assert story.infers == []


def test_in_overload_a_head_is_given_up_for_a_larger_batch(make_scheduler: MakeStory) -> None:
    """From 20 ms on: with 1, due at 40, one row of 10 ms; without it eight in 50."""
    for num_waiting, taken in ((10, (1, 2)), (40, tuple(range(2, 10)))):
        story = blocked(make_scheduler, model_spec("m"))
        story.arrive(1, slo_ms=40)
        for request_id in range(2, num_waiting):
            story.arrive(request_id, slo_ms=400)
        assert next_batch(story).request_ids == taken


def test_what_probably_makes_it_is_tried_rather_than_idling(make_scheduler: MakeStory) -> None:
    """Plan 10 ms, guard 30 (one hiccup): 15 ms are left, and nothing else is to do."""
    story = blocked(make_scheduler, model_spec("m", exec_ms={1: 10}))
    story.finish(story.infers[0], at_ms=20)
    now_ms = 20.0
    for request_id, took_ms in enumerate([10, 10, 10, 10, 300], start=1):
        story.arrive(request_id, slo_ms=400)
        now_ms += took_ms + 1
        story.finish(story.infers[0], at_ms=now_ms, took_ms=took_ms)
    story.arrive(10, "blocker", slo_ms=1_000)
    story.arrive(11, slo_ms=60)
    infer = next_batch(story, at_ms=now_ms + 45)
    assert infer.request_ids == (11,)


# ---------------------------------------------------------------------- between models


def test_the_least_latest_start_goes_first(make_scheduler: MakeStory) -> None:
    """As many requests per millisecond on both sides: what must start first does."""
    pair, single = model_spec("pair", exec_ms={1: 30, 2: 40}), model_spec("single", exec_ms={1: 20})
    story = blocked(make_scheduler, pair, single)
    story.arrive(1, "single", slo_ms=195)
    for request_id in (2, 3):
        story.arrive(request_id, "pair", slo_ms=200)
    assert next_batch(story).model == "pair"


def test_short_work_slips_in_where_the_urgent_can_wait(make_scheduler: MakeStory) -> None:
    long, short = model_spec("long", exec_ms={1: 30}), model_spec("short", exec_ms={1: 3})
    story = blocked(make_scheduler, long, short)
    story.arrive(1, "long", slo_ms=100)
    story.arrive(2, "short", slo_ms=500)
    assert next_batch(story).model == "short"
    assert next_batch(story, at_ms=23).model == "long"


def test_the_urgent_goes_first_where_both_make_it(make_scheduler: MakeStory) -> None:
    long, short = model_spec("long", exec_ms={1: 30}), model_spec("short", exec_ms={1: 3})
    story = blocked(make_scheduler, long, short)
    story.arrive(1, "long", slo_ms=52)
    story.arrive(2, "short", slo_ms=80)
    assert next_batch(story).model == "long"
    assert next_batch(story, at_ms=50).model == "short"


def test_a_batch_is_cut_short_for_who_would_be_late_behind_it(make_scheduler: MakeStory) -> None:
    """From 60 ms on: "m" is due at 112, eight rows of it take 50 ms; "short" must start by 106."""
    story = blocked(make_scheduler, model_spec("m"), model_spec("short", exec_ms={1: 4}))
    for request_id in range(1, 9):
        story.arrive(request_id, "m", slo_ms=112)
    story.arrive(9, "short", slo_ms=110.5)
    first = next_batch(story, at_ms=60)
    assert first.request_ids == (1, 2, 3, 4, 5, 6, 7)
    assert next_batch(story, at_ms=104.7).model == "short"


def test_where_one_must_lose_more_requests_per_millisecond_win(make_scheduler: MakeStory) -> None:
    """The blocker overran: "long" for one request or "short" for four, not both."""
    long = model_spec("long", exec_ms={1: 60})
    short = model_spec("short", exec_ms={1: 5, 4: 14})
    story = blocked(make_scheduler, long, short)
    story.arrive(1, "long", slo_ms=102)
    for request_id in (2, 3, 4, 5):
        story.arrive(request_id, "short", slo_ms=95)
    assert next_batch(story, at_ms=40).model == "short"


def test_where_one_must_lose_the_long_urgent_batch_can_win(make_scheduler: MakeStory) -> None:
    crowd = model_spec("crowd", exec_ms={1: 20, 8: 40})
    single = model_spec("single", exec_ms={1: 39})
    story = blocked(make_scheduler, crowd, single)
    for request_id in range(1, 9):
        story.arrive(request_id, "crowd", slo_ms=90)
    story.arrive(9, "single", slo_ms=92)
    assert next_batch(story, at_ms=45).model == "crowd"


def test_of_many_models_the_most_urgent_is_found(make_scheduler: MakeStory) -> None:
    specs = [model_spec(f"m{i}", exec_ms={1: 5}) for i in range(2 * MAX_CANDIDATES)]
    story = blocked(make_scheduler, *specs)
    for index, spec in enumerate(specs):
        story.arrive(index + 1, spec.name, slo_ms=500 - index)
    assert next_batch(story).model == specs[-1].name


def test_many_hopeless_queues_do_not_hide_the_one_that_can_make_it(
    make_scheduler: MakeStory,
) -> None:
    specs = [model_spec(f"m{i}", exec_ms={1: 5}) for i in range(MAX_CANDIDATES + 4)]
    story = blocked(make_scheduler, *specs)
    for index, spec in enumerate(specs[:-1]):
        story.arrive(index + 1, spec.name, slo_ms=120)
    story.arrive(99, specs[-1].name, slo_ms=200)
    story.finish(story.infers[0], at_ms=114.5)
    story.advance(116)
    assert [infer.request_ids for infer in story.infers] == [(99,)]


def test_two_lanes_share_a_queue(make_scheduler: MakeStory) -> None:
    """Late binding: whoever is free first takes the next batch."""
    story = make_scheduler(config=ONE_AT_A_TIME)
    for worker in ("a", "b"):
        story.join(worker, resident=["m"])
    for request_id in range(8):
        story.arrive(request_id, slo_ms=300)
    assert [story.worker_of(infer) for infer in story.infers] == ["a", "b"]
    story.finish(story.infers[1], at_ms=9)
    assert [story.worker_of(infer) for infer in story.infers] == ["a", "b"]
    assert len(story.infers[1].request_ids) > 1


# ---------------------------------------------------------------------- ahead of time


@pytest.mark.parametrize("ahead_ms", [0, 0.05, 2, 500])
def test_any_schedule_ahead_serves_everything(make_scheduler: MakeStory, ahead_ms: float) -> None:
    """Shorter than the way to the worker, or longer than any batch: nothing stands still."""
    story = make_scheduler(config=SchedulerConfig(schedule_ahead_ns=ms(ahead_ms)))
    story.join(resident=["m"])
    for request_id in range(12):
        story.arrive(request_id, slo_ms=500)
    now_ms = 0.0
    while story.infers:
        now_ms += story.infers[0].expected_duration_ns / ms(1) + 3  # a slow way
        story.finish(story.infers[0], at_ms=now_ms)
        story.advance(now_ms + 0.1)
    assert len(story.outcomes) == 12
    assert all(isinstance(outcome, Served) for outcome in story.outcomes.values())


def test_the_next_batch_is_sent_before_the_lane_is_free(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in (1, 2, 3):
        scheduler.arrive(request_id, slo_ms=300)
    scheduler.advance(8.1)
    assert len(scheduler.infers) == 1
    scheduler.advance(8.2)  # 10.2 predicted, less 2
    assert [infer.request_ids for infer in scheduler.infers] == [(1,), (2, 3)]
    assert scheduler.infers[1].earliest_ns == at(10.2 - 2)


def test_no_more_than_two_are_committed_to_a_device(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(30):
        scheduler.arrive(request_id, slo_ms=2_000)
    scheduler.advance(200)
    assert len(scheduler.infers) == 2


# ---------------------------------------------------------------------- the baseline


def test_fifo_takes_the_first_that_came_and_all_that_fits(make_scheduler: MakeStory) -> None:
    story = blocked(make_scheduler, model_spec("m"), model_spec("n"), policy=FIFO_BATCHES)
    for request_id, model, slo_ms in ((1, "n", 500), (2, "m", 100), (3, "n", 400), (4, "m", 90)):
        story.arrive(request_id, model, slo_ms=slo_ms, at_ms=request_id)
    assert set(next_batch(story).request_ids) == {1, 3}
    assert set(next_batch(story, at_ms=36).request_ids) == {2, 4}


def test_fifo_has_nothing_to_do_without_requests(make_scheduler: MakeStory) -> None:
    story = blocked(make_scheduler, policy=FIFO_BATCHES)
    story.finish(story.infers[0], at_ms=20)
    assert story.infers == []
