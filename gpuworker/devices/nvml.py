"""What one GPU says of itself: energy, power, clock, use, memory and heat, by NVML.

Owns nvidia-ml-py and a thread that asks it. Whoever wants to know gets the last sample at once, and
nobody ever waits for the driver. It must never stop a worker: without NVML there is no telemetry,
and what a card does not tell is None.

NVML sees whole cards: of a MIG slice it tells what the card does, as far as it then tells anything.
"""

import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from scheduler.spec import SECOND_NS
from scheduler.wire import CLOCK_LIMITS, DeviceSample

_log = logging.getLogger("gpuworker")

# Two samples for each ping of the gateway, which takes the last one along.
INTERVAL_S = 0.1
# A driver that hangs does not answer the thread either: what it said before is not the state now.
STALE_AFTER_NS = 1 * SECOND_NS
# At the end nobody waits longer for a driver that hangs.
JOIN_TIMEOUT_S = 1.0


def open_telemetry(
    pci_bus_id: str, *, nvml: Any = None, clock: Callable[[], int] = time.monotonic_ns
) -> "NvmlSampler | None":
    """Sample this GPU from now on; None, with one warning in the log, where that cannot be done.

    By its bus id (`CudaContext.pci_bus_id`): CUDA_VISIBLE_DEVICES renumbers the devices of CUDA,
    not those of NVML. `nvml` is nvidia-ml-py's module unless a test has another.
    """
    try:
        if nvml is None:
            nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        sampler = NvmlSampler(nvml, pci_bus_id, clock)
    except Exception as error:  # whatever it is, a worker serves as well without
        _log.warning("no telemetry of GPU %s: %s: %s", pci_bus_id, type(error).__name__, error)
        return None
    sampler.start()
    return sampler


class NvmlSampler:
    """A `gpuworker.backend.Telemetry`. Raises NVMLError where there is no such GPU."""

    def __init__(self, nvml: Any, pci_bus_id: str, clock: Callable[[], int]) -> None:
        self._nvml = nvml
        self._pci_bus_id = pci_bus_id
        self._clock = clock
        self._gpu = nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode())
        # Cards before Volta, and some laptops', do not count their energy.
        counts_energy = self._ask("nvmlDeviceGetTotalEnergyConsumption") is not None
        self._integral = None if counts_energy else EnergyIntegral()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
        self._sampled_ns = 0
        self._sample: DeviceSample | None = None
        self.sample()

    @property
    def last(self) -> DeviceSample | None:
        """The last sample; None while the driver does not answer any more."""
        if self._clock() - self._sampled_ns > STALE_AFTER_NS:
            return None
        return self._sample

    def sample(self) -> None:
        """Ask for everything, now."""
        use = self._ask("nvmlDeviceGetUtilizationRates")
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        power_mw = self._ask("nvmlDeviceGetPowerUsage")
        now = self._clock()
        if self._integral is None:
            energy_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        else:
            energy_mj = self._integral.add(power_mw, now)
        self._sample = DeviceSample(
            energy_mj=energy_mj,
            power_mw=power_mw,
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            utilisation_percent=None if use is None else use.gpu,
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            temperature_c=self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
            clock_limits=self._clock_limits(),
        )
        self._sampled_ns = now

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> None:
        """Return once the thread has ended, or this time has passed."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def close(self) -> None:
        """End the thread; `last` stays what it was until it is stale."""
        self._stopping.set()
        self.join(JOIN_TIMEOUT_S)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(INTERVAL_S):
                self.sample()
        except Exception:  # not what NVML says no with: ours, or the library's
            self._sample = None
            _log.warning("no telemetry of GPU %s any more", self._pci_bus_id, exc_info=True)
        with contextlib.suppress(Exception):
            self._nvml.nvmlShutdown()

    def _ask(self, function: str, *arguments: Any) -> Any:
        """None where this card, driver or version of nvidia-ml-py does not tell."""
        ask = getattr(self._nvml, function, None)
        if ask is None:
            return None
        try:
            return ask(self._gpu, *arguments)
        except self._nvml.NVMLError:
            return None

    def _clock_limits(self) -> tuple[str, ...] | None:
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # its name until driver 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if reasons is None:
            return None
        return tuple(name for bit, name in enumerate(CLOCK_LIMITS) if reasons >> bit & 1)


class EnergyIntegral:
    """The energy of a card that does not count it: the mean power from one sample to the next."""

    def __init__(self) -> None:
        self._energy_pj = 0  # a milliwatt for a nanosecond
        self._last: tuple[int, int] | None = None  # power in mW, when in ns

    def add(self, power_mw: int | None, now: int) -> int | None:
        """The energy in mJ until now; None while the power is not known, which is left out."""
        if power_mw is None:
            self._last = None
            return None
        if self._last is not None:
            last_mw, last_ns = self._last
            self._energy_pj += (last_mw + power_mw) * (now - last_ns) // 2
        self._last = power_mw, now
        return self._energy_pj // 10**9
