import pytest

from loadtest.reference import Loop, best_within

LOOPS = {
    1: Loop(1, 50.0, 20.0, 22.0),
    2: Loop(2, 55.0, 36.0, 40.0),
    4: Loop(4, 60.0, 66.0, 70.0),
    8: Loop(8, 70.0, 114.0, 120.0),
}


def test_capacity_is_the_best_batch_that_fits_the_slo():
    assert best_within(LOOPS, slo_ms=100.0).batch_size == 4
    assert best_within(LOOPS, slo_ms=114.0).batch_size == 8


def test_an_slo_that_nothing_fits_has_no_capacity():
    with pytest.raises(ValueError, match=r"not even batch 1 fits an SLO of 19\.0 ms"):
        best_within(LOOPS, slo_ms=19.0)
