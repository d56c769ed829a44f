"""When a lane will be free, as far as is known."""

import pytest

from scheduler.work_tracker import WorkTracker


def test_an_idle_lane_is_free_now() -> None:
    assert WorkTracker().free_at(70) == 70


def test_outstanding_work_adds_up_from_its_start() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=10)
    lane.add(2, start_ns=110, duration_ns=5)
    assert (len(lane), lane.outstanding_ns) == (2, 15)
    assert lane.free_at(90) == 115


def test_a_completion_is_the_new_anchor() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=10)
    lane.add(2, start_ns=110, duration_ns=10)
    lane.finish(1, 117)
    assert lane.free_at(117) == 127


def test_an_overdue_head_counts_as_finishing_now() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=10)
    lane.add(2, start_ns=110, duration_ns=10)
    assert lane.free_at(150) == 160


def test_work_past_its_end_is_not_free_before_now() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=10)
    assert lane.free_at(111) == 111


def test_an_action_that_never_ran_leaves_the_anchor() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=10)
    lane.finish(1, 0)
    assert lane.free_at(90) == 100


def test_an_action_that_overtook_the_head_leaves_its_anchor() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=50)
    lane.add(2, start_ns=150, duration_ns=10)
    lane.finish(2, 120)
    assert lane.free_at(120) == 150
    assert 1 in lane
    assert 2 not in lane


def test_the_anchor_never_goes_back() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=10)
    lane.add(2, start_ns=100, duration_ns=10)
    lane.finish(1, 50)
    assert lane.free_at(0) == 110


def test_an_idle_lane_does_not_start_in_the_past() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=10)
    lane.finish(1, 110)
    lane.add(2, start_ns=105, duration_ns=10)
    assert lane.free_at(0) == 120


def test_an_unknown_action_is_the_callers_bug() -> None:
    lane = WorkTracker()
    lane.add(1, start_ns=100, duration_ns=10)
    with pytest.raises(KeyError):
        lane.finish(2, 105)


def test_a_head_is_not_overdue_before_its_end_could_have_been_heard_of() -> None:
    """Heard of 3 ms later: until then the lane is taken to be where the plan has it."""
    tracker = WorkTracker()
    tracker.lag_ns = 3
    tracker.add(1, start_ns=100, duration_ns=10)
    tracker.add(2, start_ns=110, duration_ns=10)
    assert [tracker.free_at(now) for now in (105, 112, 113, 114, 120, 130)] == [
        *(120, 120, 120),  # until 113
        *(121, 127, 137),  # it must have ended, but cannot have before now - 3
    ]


def test_a_head_is_overdue_once_its_end_should_have_been_heard_of() -> None:
    tracker = WorkTracker()
    tracker.lag_ns = 3
    assert not tracker.is_overdue(500)
    tracker.add(1, start_ns=100, duration_ns=10)
    assert [tracker.is_overdue(now) for now in (109, 113, 114)] == [False, False, True]
