"""Instants at which the core wants to be called: one per object, the latest word counts."""

from scheduler.timers import Timers
from scheduler.timers import Wakeable as Target


def test_no_timer_no_instant() -> None:
    timers = Timers()
    assert timers.next_at() is None
    assert timers.pop_due(10**18) is None


def test_the_earliest_comes_first_and_only_when_due() -> None:
    timers, late, early = Timers(), Target(), Target()
    timers.set(late, 20)
    timers.set(early, 10)
    assert timers.next_at() == 10
    assert timers.pop_due(9) is None
    assert timers.pop_due(20) is early
    assert timers.pop_due(20) is late
    assert timers.pop_due(20) is None


def test_equal_instants_come_in_the_order_set() -> None:
    timers, targets = Timers(), [Target() for _ in range(5)]
    for target in targets:
        timers.set(target, 7)
    assert [timers.pop_due(7) for _ in targets] == targets


def test_setting_again_replaces() -> None:
    timers, target = Timers(), Target()
    timers.set(target, 10)
    timers.set(target, 30)
    timers.set(target, 30)
    assert timers.pop_due(29) is None
    assert timers.pop_due(30) is target
    assert timers.pop_due(10**9) is None


def test_a_cleared_timer_never_fires_and_clearing_twice_is_harmless() -> None:
    timers, target = Timers(), Target()
    timers.set(target, 10)
    timers.clear(target)
    timers.clear(target)
    assert timers.next_at() is None
    timers.set(target, 10)
    assert timers.pop_due(10) is target
    assert target.wake_at_ns is None


def test_stale_entries_are_swept_and_the_live_ones_stay() -> None:
    timers, moving, still = Timers(), Target(), Target()
    timers.set(still, 5_000_000)
    for instant in range(10_000):
        timers.set(moving, instant)
    assert len(timers._heap) < 1_000
    assert timers.pop_due(9_999) is moving
    assert timers.pop_due(5_000_000) is still
    assert timers.next_at() is None
