"""Telemetry of a GPU, with a stand-in for nvidia-ml-py and a clock that is moved by hand."""

import logging
import threading
from typing import TYPE_CHECKING

import pytest

from gpuworker.devices.nvml import EnergyIntegral, NvmlSampler, open_telemetry
from scheduler.wire import CLOCK_LIMITS, DeviceSample
from tests.standin.pynvml import NOT_SUPPORTED, Card, Nvml, NVMLError

if TYPE_CHECKING:
    from gpuworker.devices.cuda_context import CudaContext

BUS_1 = "0000:01:00.0"
SECOND_NS = 1_000_000_000
AT_WORK = DeviceSample(
    energy_mj=1_000_000,
    power_mw=299_000,
    sm_clock_mhz=1410,
    utilisation_percent=93,
    memory_used_bytes=50 << 30,
    memory_total_bytes=80 << 30,
    temperature_c=67,
    clock_limits=(),
)


class ManualClock:
    now_ns = 7_000_000_000_000_001

    def __call__(self) -> int:
        return self.now_ns


class Rig:
    """One card, sampled when a test says so."""

    def __init__(self, card: Card | None = None, *missing: str) -> None:
        self.card = card or Card()
        self.nvml = Nvml(*missing, b01=self.card)
        self.clock = ManualClock()
        self.sampler = NvmlSampler(self.nvml, BUS_1, self.clock)

    def sample(self, after_s: float = 0.1) -> DeviceSample:
        self.clock.now_ns += round(after_s * SECOND_NS)
        self.sampler.sample()
        last = self.sampler.last
        assert last is not None
        return last


def test_a_sample_is_there_from_the_start_and_changes_only_with_the_next() -> None:
    rig = Rig()
    first = rig.sampler.last
    assert first == AT_WORK
    rig.card.power_mw = 70_000
    assert rig.sampler.last is first
    assert rig.sample().power_mw == 70_000


@pytest.mark.parametrize(
    ("figure", "fields"),
    [
        ("power_mw", ["power_mw"]),
        ("clocks_mhz", ["sm_clock_mhz"]),
        ("use", ["utilisation_percent"]),
        ("memory", ["memory_used_bytes", "memory_total_bytes"]),
        ("temperatures_c", ["temperature_c"]),
        ("reasons", ["clock_limits"]),
    ],
)
def test_what_a_card_does_not_tell_is_blank_and_the_rest_is_there(
    figure: str, fields: list[str]
) -> None:
    card = Card()
    setattr(card, figure, None)
    last = Rig(card).sampler.last
    assert last is not None
    for name in AT_WORK.__struct_fields__:
        assert getattr(last, name) == (None if name in fields else getattr(AT_WORK, name)), name


def test_what_holds_the_clocks_down_is_told_by_name() -> None:
    rig = Rig()
    rig.card.reasons = 0x4 | 0x20
    assert rig.sample().clock_limits == ("sw_power_cap", "sw_thermal_slowdown")
    rig.card.reasons = 1 << 40 | 0x1  # one that has no name yet, and an idle card
    assert rig.sample().clock_limits == ("gpu_idle",)
    rig.card.reasons = (1 << len(CLOCK_LIMITS)) - 1
    assert rig.sample().clock_limits == CLOCK_LIMITS


def test_an_old_package_knows_the_reasons_by_their_old_name() -> None:
    card = Card()
    card.reasons = 0x40
    rig = Rig(card, "nvmlDeviceGetCurrentClocksEventReasons")
    assert rig.sample().clock_limits == ("hw_thermal_slowdown",)
    rig = Rig(
        card,
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    )
    assert rig.sample().clock_limits is None


def test_a_card_that_does_not_count_its_energy_has_its_power_summed_up() -> None:
    card = Card()
    card.energy_mj, card.power_mw = None, 100_000
    rig = Rig(card)
    assert rig.sample(after_s=0.1).energy_mj == 10_000
    card.power_mw = 200_000
    assert rig.sample(after_s=0.2).energy_mj == 10_000 + 30_000


def test_a_counter_that_fails_for_once_is_not_replaced() -> None:
    rig = Rig()
    rig.card.energy_mj = None
    assert rig.sample().energy_mj is None
    rig.card.energy_mj = 1_000_500
    assert rig.sample().energy_mj == 1_000_500


def test_time_without_a_known_power_is_left_out_of_the_sum() -> None:
    integral = EnergyIntegral()
    assert integral.add(None, 0) is None
    assert integral.add(100_000, SECOND_NS) == 0
    assert integral.add(100_000, 2 * SECOND_NS) == 100_000
    assert integral.add(None, 3 * SECOND_NS) is None
    assert integral.add(50_000, 9 * SECOND_NS) == 100_000
    assert integral.add(50_000, 10 * SECOND_NS) == 150_000


def test_what_a_driver_said_before_it_hung_is_not_told_as_the_present() -> None:
    rig = Rig()
    rig.clock.now_ns += SECOND_NS
    assert rig.sampler.last is not None
    rig.clock.now_ns += 1
    assert rig.sampler.last is None
    assert rig.sample() == AT_WORK


def test_a_card_that_is_lost_tells_nothing_and_stops_nothing() -> None:
    rig = Rig()
    rig.nvml.breaks_with = NVMLError(15)
    assert rig.sample() == DeviceSample()


def test_it_is_the_card_of_the_context_whatever_its_number(cuda_context: "CudaContext") -> None:
    """CUDA's device 0 may be NVML's second: CUDA_VISIBLE_DEVICES hid the first."""
    hidden, ours = Card(), Card()
    ours.power_mw = 123_000
    nvml = Nvml(**{"b00": hidden, f"b{cuda_context.pci_bus_id[5:7]}": ours})
    telemetry = open_telemetry(cuda_context.pci_bus_id, nvml=nvml)
    assert telemetry is not None
    assert telemetry.last is not None
    assert telemetry.last.power_mw == 123_000
    telemetry.close()


def test_the_thread_ends_when_it_is_closed_and_gives_the_library_back() -> None:
    nvml = Nvml(b01=Card())
    telemetry = open_telemetry(BUS_1, nvml=nvml)
    assert telemetry is not None
    assert nvml.is_up
    assert "nvml" in [thread.name for thread in threading.enumerate()]
    telemetry.close()
    telemetry.close()
    assert not nvml.is_up
    assert "nvml" not in [thread.name for thread in threading.enumerate()]


def test_a_thread_that_breaks_says_so_once_and_leaves_no_sample(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nvml = Nvml(b01=Card())
    telemetry = open_telemetry(BUS_1, nvml=nvml)
    assert telemetry is not None
    nvml.breaks_with = RuntimeError("a bug of the library")
    telemetry.join()
    assert telemetry.last is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"no telemetry of GPU {BUS_1} any more"
    telemetry.close()


@pytest.mark.parametrize(
    ("nvml", "words"),
    [
        (Nvml(), "NVMLError: error 6"),  # no such card
        (object(), "AttributeError: "),  # not the package at all
    ],
)
def test_without_nvml_there_is_one_warning_and_no_telemetry(
    nvml: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_telemetry(BUS_1, nvml=nvml) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"no telemetry of GPU {BUS_1}: {words}")


def test_a_driver_that_does_not_start_is_no_telemetry() -> None:
    nvml = Nvml(b01=Card())
    nvml.breaks_with = NVMLError(NOT_SUPPORTED)
    assert open_telemetry(BUS_1, nvml=nvml) is None


def test_without_the_package_or_the_card_there_is_no_telemetry() -> None:
    """The real package where it is installed: no machine has a card at this bus id."""
    assert open_telemetry("ffff:ff:1f.7") is None


def test_the_real_package_has_what_is_asked_of_it() -> None:
    pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    for name in (
        *("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetClockInfo"),
        *("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"),
        *("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetTemperature"),
        "nvmlDeviceGetCurrentClocksEventReasons",
    ):
        assert callable(getattr(pynvml, name)), name
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_TEMPERATURE_GPU) == (1, 0)
    assert issubclass(pynvml.NVMLError, Exception)
