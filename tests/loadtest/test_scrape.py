import pytest

from loadtest.scrape import Scrape

BEFORE = """\
# HELP remontoir_loads_total LOADs finished.
remontoir_loads_total{model="a",result="ok"} 4.0
remontoir_loads_total{model="b",result="ok"} 1.0
remontoir_loads_total{model="b",result="failed"} 2.0
up 1
load_seconds_bucket{model="a",le="0.001"} 10.0
load_seconds_bucket{model="a",le="0.002"} 10.0
load_seconds_bucket{model="a",le="0.004"} 10.0
load_seconds_bucket{model="a",le="+Inf"} 10.0
"""
AFTER = """\
load_seconds_bucket{model="a",le="0.001"} 10.0
load_seconds_bucket{model="a",le="0.002"} 14.0
load_seconds_bucket{model="a",le="0.004"} 18.0
load_seconds_bucket{model="a",le="+Inf"} 18.0
"""


def test_a_sum_is_over_all_samples_with_the_given_labels():
    samples = Scrape(BEFORE)
    assert samples.sum("remontoir_loads_total") == 7
    assert samples.sum("remontoir_loads_total", result="ok") == 5
    assert samples.sum("remontoir_loads_total", model="b", result="failed") == 2
    assert samples.sum("up") == 1
    assert samples.sum("absent") == 0


@pytest.mark.parametrize(("rank", "seconds"), [(0.25, 0.0015), (0.5, 0.002), (0.75, 0.003)])
def test_a_quantile_is_of_what_came_since_and_linear_in_its_bucket(rank: float, seconds: float):
    assert Scrape(AFTER).quantile("load_seconds", rank, since=Scrape(BEFORE)) == seconds


def test_a_quantile_of_nothing_is_zero():
    assert Scrape(BEFORE).quantile("load_seconds", 0.5, since=Scrape(BEFORE)) == 0
