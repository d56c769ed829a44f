"""ClockOffset: which ping is believed, and how instants cross the border."""

import pytest

from gateway.workers.clock_offset import MAX_INSTANT_NS, SAMPLE_WINDOW_NS, ClockOffset
from scheduler.actions import (
    NO_SPAN,
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Span,
)

AHEAD_NS = 5_000_000  # the worker's clock in these tests is this much ahead


def ahead() -> ClockOffset:
    offset = ClockOffset()
    assert offset.add(sent_ns=1000, received_ns=5_001_100, replied_ns=5_001_150, now=1250)
    return offset


def test_equal_ways_there_and_back_give_the_exact_offset() -> None:
    offset = ahead()
    assert (offset.offset_ns, offset.rtt_ns) == (AHEAD_NS, 200)


def test_the_smallest_round_trip_is_believed_over_later_slower_ones() -> None:
    offset = ahead()
    assert offset.add(sent_ns=2000, received_ns=5_009_000, replied_ns=5_009_000, now=9100)
    assert (offset.offset_ns, offset.rtt_ns) == (AHEAD_NS, 200)


def test_a_smaller_round_trip_replaces_the_estimate() -> None:
    offset = ahead()
    assert offset.add(sent_ns=3000, received_ns=5_003_080, replied_ns=5_003_080, now=3100)
    assert (offset.offset_ns, offset.rtt_ns) == (5_000_030, 100)


def test_the_best_sample_is_forgotten_when_it_leaves_the_window() -> None:
    offset = ahead()
    late_ns = 2000 + SAMPLE_WINDOW_NS
    assert offset.add(
        sent_ns=late_ns,
        received_ns=late_ns + 7_000_300,
        replied_ns=late_ns + 7_000_300,
        now=late_ns + 600,
    )
    assert (offset.offset_ns, offset.rtt_ns) == (7_000_000, 600)


def test_the_second_best_serves_once_the_best_is_too_old() -> None:
    offset = ahead()
    assert offset.add(sent_ns=2000, received_ns=2300, replied_ns=2300, now=2600)  # 600 around
    assert offset.add(sent_ns=3000, received_ns=3900, replied_ns=3900, now=4800)  # 1800 around
    late_ns = 1251 + SAMPLE_WINDOW_NS  # the first sample is out, the second is not
    assert offset.add(sent_ns=late_ns - 5000, received_ns=0, replied_ns=0, now=late_ns)
    assert (offset.offset_ns, offset.rtt_ns) == (0, 600)


@pytest.mark.parametrize(
    ("sent_ns", "received_ns", "replied_ns", "now"),
    [
        (2000, 50, 60, 1000),  # answered before it was sent
        (1000, 50, 40, 2000),  # replied before it was received
        (1000, 50, 5050, 2000),  # held for longer than it was away
    ],
)
def test_pongs_that_contradict_themselves_teach_nothing(
    sent_ns: int, received_ns: int, replied_ns: int, now: int
) -> None:
    offset = ahead()
    assert not offset.add(sent_ns=sent_ns, received_ns=received_ns, replied_ns=replied_ns, now=now)
    assert (offset.offset_ns, offset.num_samples) == (AHEAD_NS, 1)


@pytest.mark.parametrize(
    ("action", "converted"),
    [
        (
            Infer(7, "m", 2, (1, 2), (1, 1), 100, 200, 50),
            Infer(7, "m", 2, (1, 2), (1, 1), 5_000_100, 5_000_200, 50),
        ),
        (LoadWeights(8, "m", 3, 100, 200, 50), LoadWeights(8, "m", 3, 5_000_100, 5_000_200, 50)),
        (EvictWeights(9, "m", 100, 200), EvictWeights(9, "m", 5_000_100, 5_000_200)),
    ],
)
def test_windows_leave_on_the_workers_clock(action: Action, converted: Action) -> None:
    assert ahead().action_for_worker(action) == converted


def test_windows_saturate_at_zero_and_at_never() -> None:
    offset = ahead()
    assert offset.to_worker_ns(MAX_INSTANT_NS) == MAX_INSTANT_NS
    assert offset.to_worker_ns(MAX_INSTANT_NS - 1) == MAX_INSTANT_NS
    behind = ClockOffset()
    behind.add(sent_ns=5_000_000, received_ns=100, replied_ns=100, now=5_000_200)
    assert behind.offset_ns == -5_000_000
    assert behind.to_worker_ns(10) == 0
    assert behind.to_worker_ns(MAX_INSTANT_NS) == MAX_INSTANT_NS


def test_results_arrive_on_our_clock_with_device_time_untouched() -> None:
    result = InferResult(
        7, Code.OK, "", 5_000_010, Span(5_000_020, 5_000_030, 9), Span(5_000_030, 5_000_070, 39)
    )
    assert ahead().result_for_gateway(result, now=1000) == InferResult(
        7, Code.OK, "", 10, Span(20, 30, 9), Span(30, 70, 39), NO_SPAN
    )
    told = InferResult(7, Code.OK, "", 5_000_010, clock_mhz=1410, power_mw=299_000)
    assert ahead().result_for_gateway(told, now=1000) == InferResult(
        7, Code.OK, "", 10, clock_mhz=1410, power_mw=299_000
    )
    loaded = LoadResult(8, Code.OK, "", 5_000_010, Span(5_000_020, 5_000_030, 9))
    assert ahead().result_for_gateway(loaded, now=1000) == LoadResult(
        8, Code.OK, "", 10, Span(20, 30, 9)
    )
    evicted = EvictResult(9, Code.OK, "done", 5_000_010)
    assert ahead().result_for_gateway(evicted, now=1000) == EvictResult(9, Code.OK, "done", 10)


def test_phases_that_were_not_reached_stay_without_a_span() -> None:
    result = InferResult(7, Code.TOO_LATE, "too late")
    assert ahead().result_for_gateway(result, now=1000) == result


def test_nothing_a_worker_reports_lies_in_our_future_or_before_time() -> None:
    result = LoadResult(8, Code.OK, "", 1, Span(4_000_000, 5_000_900, 9))
    assert ahead().result_for_gateway(result, now=500) == LoadResult(
        8, Code.OK, "", 0, Span(0, 500, 9)
    )
