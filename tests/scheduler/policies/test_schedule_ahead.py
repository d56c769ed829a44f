"""How long before a lane is free its next action is sent, and what of it is learnt."""

import pytest

from scheduler.device import INITIAL_DELAY_NS, DeviceMirror
from scheduler.policies.schedule_ahead.fixed import FixedScheduleAhead
from scheduler.policies.schedule_ahead.gap_tracker import (
    MAX_NS,
    RUN_IN_TIME,
    STEP_NS,
    TARGET_GAP_RATE,
    GapTracker,
)
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, device_spec, model_spec, ms


@pytest.fixture
def device() -> DeviceMirror:
    return DeviceMirror("w", device_spec(), {}, schedule_ahead_ns=INITIAL_DELAY_NS)


def test_a_late_order_raises_it_by_a_step_and_one_in_time_lowers_it_by_a_tenth(
    device: DeviceMirror,
) -> None:
    tracker = GapTracker()
    tracker.on_held(device, 30_000, 0)
    assert device.schedule_ahead_ns == INITIAL_DELAY_NS + 18_000
    tracker.on_held(device, -100, 0)
    assert device.schedule_ahead_ns == INITIAL_DELAY_NS + 16_000


def test_a_few_microseconds_are_not_late(device: DeviceMirror) -> None:
    GapTracker().on_held(device, 20_000, 0)
    assert device.schedule_ahead_ns == INITIAL_DELAY_NS
    assert device.gap_rate == 0


def test_the_measured_delay_is_taken_as_it_is(device: DeviceMirror) -> None:
    """No steps are needed to learn that a worker is far."""
    device.observe_delays(command_ns=ms(3), reply_ns=ms(3))
    GapTracker().on_held(device, -1, 0)
    assert device.schedule_ahead_ns == ms(3)


def test_it_never_goes_below_the_delay_nor_above_its_bound(device: DeviceMirror) -> None:
    tracker = GapTracker()
    for _ in range(1_000):
        tracker.on_held(device, ms(1), 0)
    assert device.schedule_ahead_ns == MAX_NS
    for _ in range(100_000):
        tracker.on_held(device, -1, 0)
    assert device.schedule_ahead_ns == INITIAL_DELAY_NS


def test_a_value_far_too_high_comes_down_by_tenths(device: DeviceMirror) -> None:
    device.ahead_extra_ns = float(ms(8))
    tracker = GapTracker()
    for _ in range(RUN_IN_TIME):
        tracker.on_held(device, -1, 0)
    lowered_ns = ms(8) - RUN_IN_TIME * STEP_NS * TARGET_GAP_RATE
    assert device.schedule_ahead_ns == INITIAL_DELAY_NS + int(0.9 * lowered_ns)


def test_a_fixed_one_stays_and_the_rate_of_gaps_is_told(device: DeviceMirror) -> None:
    fixed = FixedScheduleAhead(ms(5))
    device.schedule_ahead_ns = fixed.first_ns(ms(2))
    for _ in range(500):
        fixed.on_held(device, ms(1), 0)
    assert device.schedule_ahead_ns == ms(5)
    assert device.gap_rate == pytest.approx(1, abs=1e-3)


def queue_three(make_scheduler: MakeStory) -> Story:
    """One executes from 0.2 to 10.2 ms, two wait."""
    story = make_scheduler(model_spec(exec_ms={1: 10}), policy="remontoir")
    story.join(resident=["m"])
    for request_id in (1, 2, 3):
        story.arrive(request_id, slo_ms=300)
    return story


def test_an_order_held_back_that_finds_the_lane_dry_raises_it(make_scheduler: MakeStory) -> None:
    """Sent at 10.0 for a lane predicted free at 10.2, received at 10.2; the lane ran dry at 9."""
    story = queue_three(make_scheduler)
    story.advance(10)
    first, second = story.infers
    story.finish(first, at_ms=10.1, took_ms=8.8)
    device = story.scheduler.devices["w"]
    before_ns = device.ahead_extra_ns
    story.finish(second, at_ms=21, took_ms=10)
    assert device.ahead_extra_ns > before_ns


def test_who_came_late_says_nothing_of_it(make_scheduler: MakeStory) -> None:
    """Request 2 arrives 0.1 ms before the lane is free: no schedule_ahead would have helped."""
    story = make_scheduler(model_spec(exec_ms={1: 10}), policy="remontoir")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=300)
    story.arrive(2, slo_ms=300, at_ms=10.1)
    first, second = story.infers
    story.finish(first, at_ms=10.2)
    story.finish(second, at_ms=21, took_ms=10)
    device = story.scheduler.devices["w"]
    assert (device.ahead_extra_ns, device.gap_rate) == (0, 0)
