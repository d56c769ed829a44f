import pytest

from loadtest.workload import Stream, poisson

FAST, SLOW = Stream("fast", 100.0), Stream("slow", 10.0)


def test_the_same_seed_gives_the_same_arrivals():
    assert poisson([FAST], duration_s=2, seed=5) == poisson([FAST], duration_s=2, seed=5)


def test_another_seed_gives_other_arrivals():
    assert poisson([FAST], duration_s=2, seed=5) != poisson([FAST], duration_s=2, seed=6)


def test_a_stream_does_not_change_when_another_is_added():
    alone = poisson([FAST], duration_s=2, seed=5)
    together = poisson([FAST, SLOW], duration_s=2, seed=5)
    assert [arrival for arrival in together if arrival.stream == 0] == alone


def test_arrivals_are_in_time_order_and_inside_the_run():
    arrivals = poisson([FAST, SLOW], duration_s=2, seed=5)
    assert arrivals == sorted(arrivals)
    assert arrivals[0].at_ns > 0
    assert arrivals[-1].at_ns < 2_000_000_000


def test_the_rate_is_the_mean_rate():
    # 10,000 expected, standard deviation 100
    assert 9_600 < len(poisson([FAST], duration_s=100, seed=1)) < 10_400


def test_a_rate_of_zero_is_refused_by_name():
    with pytest.raises(ValueError, match="stream idle: rate 0"):
        poisson([Stream("idle", 0.0)], duration_s=1, seed=1)
