"""The formulas for batches: against results that are known, and against the simulator."""

import pytest

from loadtest.planning.batch_model import OneDevice, many_devices
from loadtest.planning.batch_model_check import Setting, compare, page


def test_without_batches_it_is_the_queue_of_the_textbook() -> None:
    """M/D/1: the mean wait is rho / (2 (1 - rho)) executions."""
    device = OneDevice(rate_per_s=70, exec_s=[0.01], max_batch=1)
    assert device.utilisation == pytest.approx(0.7)
    assert device.latencies().mean_s == pytest.approx(0.01 * (1 + 0.7 / 0.6), rel=0.005)
    assert device.left_behind[0] == pytest.approx(0.3, abs=1e-6)  # 1 - rho find nobody


def test_a_queue_that_grows_for_ever_has_no_latency() -> None:
    with pytest.raises(ValueError, match=r"1\.05 of what batches of 2 do"):
        OneDevice(rate_per_s=105, exec_s=[0.01, 0.02], max_batch=2)
    with pytest.raises(ValueError, match=r"max_batch 3 is not in 1 \.\.\. 2"):
        many_devices(1, [0.01, 0.02], max_batch=3, timeout_s=1)


def test_batches_that_close_by_time_or_when_they_are_full() -> None:
    rare = many_devices(0.001, [0.1, 0.1], max_batch=2, timeout_s=0.05)
    assert rare.mean_s == pytest.approx(0.15, rel=0.001)  # alone, after the whole timeout
    often = many_devices(10_000, [0.1, 0.1], max_batch=2, timeout_s=0.05)
    assert often.mean_s == pytest.approx(0.1, rel=0.01)
    assert often.within(0.099) == 0.0
    assert rare.within(0.2) == 1.0
    assert many_devices(5, [0.1], max_batch=1, timeout_s=9).percentile_s(0.99) == 0.1


@pytest.mark.parametrize("setting", [Setting(1, 4, 0.7), Setting(16, 4, 0.1, 20.0)])
def test_the_simulator_agrees(setting: Setting) -> None:
    compared = compare(setting, num_requests=1500, seeds=(1,))
    assert max(abs(error) for error in compared.errors[:2]) < 0.06
    text = page([("One", [compared])], "the command")
    assert f"| {setting.devices} | 4 | {setting.timeout_ms:.0f} ms |" in text
