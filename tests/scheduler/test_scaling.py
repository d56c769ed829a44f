"""Advice for an autoscaler, on a hand-driven clock: one sample a second, windows of ten."""

import math
from collections.abc import Callable

import pytest

from scheduler.scaling import WINDOW_NS, Sample, Scaling
from scheduler.spec import SECOND_NS


class Fleet:
    """Advice on one fleet, its load a function of the second."""

    def __init__(self, *, horizon_s: float = 60, target: float = 0.7, devices: int = 4) -> None:
        self.scaling = Scaling(horizon_ns=round(horizon_s * SECOND_NS), target_utilisation=target)
        self.devices = devices
        self.second = 0
        self.asked = self.refused = 0

    def run(
        self,
        seconds: int,
        load: Callable[[int], float] | float,
        *,
        asked: int = 0,
        refused: int = 0,
    ) -> Scaling:
        """So many seconds more, with so many requests asked and refused in each."""
        for _ in range(seconds):
            value = load(self.second) if callable(load) else load
            self.asked += asked
            self.refused += refused
            sample = Sample(value, self.devices, self.asked, self.refused)
            self.scaling.observe(sample, self.second * SECOND_NS)
            self.second += 1
        return self.scaling


def test_before_the_first_window_is_whole_there_is_no_advice() -> None:
    fleet = Fleet()
    assert fleet.scaling.refused_ratio == 0
    advice = fleet.run(10, 2.0)
    assert advice.offered_load is None
    assert advice.forecast is None
    assert advice.recommended_devices is None
    assert advice.utilisation is None
    assert fleet.run(1, 2.0).recommended_devices == 3


def test_a_steady_load_is_the_forecast_and_its_error_is_nothing() -> None:
    advice = Fleet(devices=4).run(600, 2.1)
    assert advice.offered_load == pytest.approx(2.1)
    assert advice.forecast == pytest.approx(2.1)
    assert advice.utilisation == pytest.approx(0.525)
    assert advice.predicted_utilisation == pytest.approx(0.525)
    assert advice.absolute_error == pytest.approx(0)
    assert advice.recommended_devices == 3  # at 0.7 each, and not a fourth by rounding


def test_without_work_one_device_is_enough() -> None:
    assert Fleet().run(60, 0.0).recommended_devices == 1


def test_without_a_device_there_is_a_load_and_no_utilisation() -> None:
    advice = Fleet(devices=0).run(60, 1.0)
    assert advice.utilisation is None
    assert advice.predicted_utilisation is None
    assert advice.recommended_devices == 2


def test_before_a_forecast_is_due_nobody_knows_its_error() -> None:
    fleet = Fleet(horizon_s=60)
    advice = fleet.run(65, 2.0)
    assert advice.forecast == pytest.approx(2.0)
    assert (advice.absolute_error, advice.bias) == (None, None)
    assert advice.recommended_devices == 3
    advice = fleet.run(10, 2.0)
    assert (advice.absolute_error, advice.bias) == (0, 0)


def test_a_ramp_is_foreseen_better_than_by_what_is_there_now() -> None:
    """+1 device a minute: a minute ahead, who believes in the present is wrong by one."""
    fleet = Fleet(horizon_s=60)
    advice = fleet.run(1200, lambda second: second / 60)
    assert advice.offered_load == pytest.approx(19.9, abs=0.2)
    assert advice.forecast is not None
    assert advice.forecast > 20.4
    assert advice.absolute_error is not None
    assert advice.absolute_error < 0.6
    # never fewer than what comes within the horizon needs
    assert advice.recommended_devices is not None
    assert advice.recommended_devices >= 30  # 21 at 0.7


def test_bursts_that_nobody_foresees_show_in_the_error_and_in_the_margin() -> None:
    fleet = Fleet(horizon_s=10, target=1.0)
    calm = fleet.run(300, 3.0).recommended_devices
    advice = fleet.run(300, lambda second: 6.0 if second // 10 % 2 else 0.0)
    assert calm == 3
    assert advice.absolute_error is not None
    assert advice.absolute_error > 2
    assert advice.bias is not None
    assert abs(advice.bias) < 2
    assert advice.recommended_devices is not None
    assert advice.recommended_devices >= 6


def test_a_step_is_a_bias_until_the_forecasts_made_before_it_are_due() -> None:
    fleet = Fleet(horizon_s=60)
    fleet.run(300, 1.0)
    bias = fleet.run(31, 5.0).bias
    assert bias is not None
    assert bias > 0.3
    assert fleet.run(900, 5.0).bias == pytest.approx(0, abs=0.05)


def test_refusals_do_not_make_the_load_smaller_and_are_a_share_of_the_last_minute() -> None:
    fleet = Fleet(devices=2)
    advice = fleet.run(120, 5.0, asked=100, refused=60)
    assert advice.refused_ratio == pytest.approx(0.6)
    assert advice.utilisation == 2.5
    assert fleet.run(100, 1.0, asked=100).refused_ratio == 0
    assert fleet.run(100, 0.0).refused_ratio == 0  # nobody asked


def test_after_a_sleep_no_trend_is_made_of_it() -> None:
    fleet = Fleet()
    fleet.run(100, lambda second: second / 10)
    fleet.second += 3600
    advice = fleet.run(11, 2.0)
    assert advice.offered_load == pytest.approx(2.0)
    assert advice.forecast == pytest.approx(2.0)


def test_a_day_takes_no_more_memory_than_an_hour() -> None:
    fleet = Fleet(horizon_s=120)
    sizes = []
    for _ in range(24):
        advice = fleet.run(3600, lambda second: 2 + math.sin(second / 3600))
        forecasters = (advice._persistence, advice._holt)
        sizes.append((len(advice._counts), *[len(f._due) for f in forecasters]))
    assert set(sizes) == {(7, 12, 12)}


def test_the_horizon_is_at_least_a_window() -> None:
    advice = Fleet(horizon_s=0.001).run(40, 1.0)
    assert advice.forecast == pytest.approx(1.0)
    assert WINDOW_NS == 10 * SECOND_NS
