import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tenants.token_bucket import TokenBucket

START = 1_000_000_007


def test_it_is_full_at_first_and_then_gives_what_flows_in() -> None:
    bucket = TokenBucket(rate=3, capacity=100, now=START)
    assert bucket.take(60, START) == 0
    assert bucket.take(60, START) == 7  # 20 are missing, at 3 per ns
    assert bucket.take(60, START + 6) == 1
    assert bucket.take(60, START + 7) == 0
    assert bucket.take(2, START + 7) == 1  # one is left of the 21
    assert bucket.take(1, START + 7) == 0


def test_it_holds_no_more_than_its_capacity_however_long_nobody_came() -> None:
    bucket = TokenBucket(rate=3, capacity=100, now=START)
    assert bucket.take(100, START + 10**15) == 0
    assert bucket.take(1, START + 10**15) == 1


def test_more_than_it_holds_is_let_in_when_full_and_leaves_a_debt() -> None:
    bucket = TokenBucket(rate=10, capacity=100, now=START)
    assert bucket.take(250, START) == 0
    assert bucket.take(250, START) == 25  # until it is full again
    assert bucket.take(1, START) == 16


def test_what_is_given_back_can_be_had_again_and_a_charge_may_go_below_zero() -> None:
    bucket = TokenBucket(rate=1, capacity=100, now=START)
    assert bucket.take(80, START) == 0
    bucket.give_back(80)
    bucket.give_back(80)  # never above its capacity
    bucket.charge(150)
    assert bucket.take(10, START) == 60


def test_time_that_goes_back_changes_nothing() -> None:
    bucket = TokenBucket(rate=1, capacity=100, now=START)
    bucket.take(100, START)
    assert bucket.take(10, START - 50) == 10
    assert bucket.take(10, START + 10) == 0


def test_a_change_keeps_what_was_used() -> None:
    bucket = TokenBucket(rate=1, capacity=100, now=START)
    bucket.take(70, START)
    bucket.change(rate=2, capacity=20, now=START)  # 30 were left
    assert bucket.take(20, START) == 0
    assert bucket.take(20, START) == 10


@given(
    rate=st.integers(1, 10**6),
    capacity=st.integers(1, 10**15),
    amounts=st.lists(st.integers(0, 10**15), max_size=8),
    amount=st.integers(0, 10**15),
)
def test_the_wait_it_names_is_exact(
    rate: int, capacity: int, amounts: list[int], amount: int
) -> None:
    bucket = TokenBucket(rate=rate, capacity=capacity, now=START)
    for earlier in amounts:
        bucket.charge(earlier)
    wait_ns = bucket.take(amount, START)
    if wait_ns == 0:
        return
    assert bucket.take(amount, START + wait_ns - 1) == 1
    assert bucket.take(amount, START + wait_ns) == 0


@pytest.mark.parametrize(("per_s", "requests"), [(0.5, 30), (3, 180), (7.5, 450)])
def test_over_a_minute_exactly_the_rate_comes_through(per_s: float, requests: int) -> None:
    unit = 10**12
    bucket = TokenBucket(rate=round(per_s * 1000), capacity=2 * unit, now=0)
    assert bucket.take(2 * unit, 0) == 0
    now = num = 0
    while True:
        wait_ns = bucket.take(unit, now)
        now += wait_ns
        if now > 60 * 10**9:
            break
        num += wait_ns == 0
    assert num == requests
