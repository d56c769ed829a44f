import pytest

from scheduler.lane_shares import HALF_LIFE_NS, MAX_SHARE, LaneShares
from scheduler.spec import MILLISECOND_NS

MS = MILLISECOND_NS


def busy(shares: LaneShares, *, single_ms: int, share: float, for_ms: int) -> None:
    """Work of that length keeps the lane for this share of the time, up to `for_ms`."""
    for at_ms in range(0, for_ms, 100):
        shares.add(single_ns=single_ms * MS, duration_ns=int(share * 100 * MS), now=at_ms * MS)


def test_the_share_of_shorter_work_is_what_it_was_lately() -> None:
    shares = LaneShares()
    busy(shares, single_ms=3, share=0.3, for_ms=20_000)
    busy(shares, single_ms=30, share=0.6, for_ms=20_000)
    now = 20_000 * MS
    assert shares.share_of_shorter(30 * MS, now) == pytest.approx(0.3, rel=0.05)
    assert shares.share_of_shorter(3 * MS, now) == 0.0
    assert shares.share_of_shorter(300 * MS, now) == MAX_SHARE


def test_it_fades_when_the_short_work_stops() -> None:
    shares = LaneShares()
    busy(shares, single_ms=3, share=0.4, for_ms=20_000)
    busy(shares, single_ms=30, share=0.5, for_ms=20_000)
    now = 20_000 * MS
    before = shares.share_of_shorter(30 * MS, now)
    after = shares.share_of_shorter(30 * MS, now + HALF_LIFE_NS)
    assert after == pytest.approx(before / 2)


def test_a_lane_with_one_kind_of_work_has_no_shorter_one() -> None:
    shares = LaneShares()
    assert shares.share_of_shorter(MS, 0) == 0.0
    busy(shares, single_ms=3, share=0.9, for_ms=5_000)
    assert shares.share_of_shorter(30 * MS, 5_000 * MS) == 0.0
