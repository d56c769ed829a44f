"""One GPU of this process: its primary context, streams, timed events and pinned memory.

Owns what pycuda is used for. The context is the device's primary one, which TensorRT's runtime uses
as well. It is made current in the thread that makes this object; every other thread that works with
the device says `bind_thread` first. pycuda and cuda-bindings are imported here and in
devices/cuda_memory.py, and nowhere where there may be no GPU.
"""

import atexit
import contextlib
from typing import Any, NamedTuple

import numpy as np
import pycuda.driver as cuda
from cuda.bindings import driver

from gpuworker.backend import DeviceLost
from gpuworker.config import MEBIBYTE, ConfigError
from gpuworker.devices.cuda_memory import CudaError, call
from gpuworker.devices.pages import Bytes


class GpuKind(NamedTuple):
    """What plans and profiles of one GPU hold for: others of the same kind."""

    name: str
    compute_capability: str


def describe(ordinal: int) -> GpuKind:
    """Without a context, which would take hundreds of MiB of it. Raises ConfigError."""
    device = _device(ordinal)
    major, minor = device.compute_capability()
    return GpuKind(device.name(), f"{major}.{minor}")


def _device(ordinal: int) -> Any:
    cuda.init()
    count = cuda.Device.count()
    if ordinal >= count:
        raise ConfigError(f"--device cuda:{ordinal}: this machine has {count} CUDA devices")
    return cuda.Device(ordinal)


class CudaContext:
    """Raises ConfigError where there is no such device, or one without virtual memory, and
    DeviceLost where it does not work, or has no memory for a context.
    """

    def __init__(self, ordinal: int) -> None:
        device = _device(ordinal)
        attribute = driver.CUdevice_attribute
        if not call(
            driver.cuDeviceGetAttribute,
            attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
            ordinal,
        ):
            raise ConfigError(
                f"--device cuda:{ordinal}: {device.name()} has no virtual memory management"
            )
        self.ordinal = ordinal
        self.kind = describe(ordinal)
        self.name = self.kind.name
        # Other libraries number the devices otherwise; by this they all know them.
        self.pci_bus_id: str = device.pci_bus_id()
        try:
            self._context = device.retain_primary_context()
            self._context.push()
        except cuda.Error as error:
            raise DeviceLost(f"{self.name} (cuda:{ordinal}) gives no context: {error}") from error
        # pycuda aborts a process that ends with a context on its stack, whatever it ends for.
        atexit.register(self.close)
        self._handle = call(driver.cuCtxGetCurrent)
        # What is pinned, by address: it must not be given back to the system before it is unpinned.
        self._pinned: list[tuple[int, Bytes]] = []

    def bind_thread(self) -> None:
        """Make the context current in the calling thread."""
        call(driver.cuCtxSetCurrent, self._handle)

    def stream(self) -> Any:
        """A pycuda Stream that waits for no other, the default stream included."""
        return cuda.Stream(flags=driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)

    def event(self) -> Any:
        """A pycuda Event that notes the time, and is waited for without burning a core."""
        return cuda.Event(cuda.event_flags.BLOCKING_SYNC)

    def free_bytes(self) -> int:
        return int(cuda.mem_get_info()[0])

    def total_bytes(self) -> int:
        return int(cuda.mem_get_info()[1])

    def pinned(self, num_bytes: int) -> Bytes:
        """Memory of the host that the device copies from and to by itself. Raises MemoryError."""
        try:
            memory: Bytes = cuda.pagelocked_empty(max(1, num_bytes), np.uint8)
        except cuda.MemoryError as error:
            raise MemoryError(f"{num_bytes >> 20} MiB of pinned memory: {error}") from error
        return memory

    def pin(self, memory: Bytes) -> None:
        """Pin memory that is there already, until the context is closed. Raises MemoryError."""
        # Not by pycuda.register_host_memory: up to 2026.1 it gives back one reference too many.
        address: int = memory.ctypes.data
        try:
            call(driver.cuMemHostRegister, address, memory.nbytes, 0)
        except CudaError as error:
            held = sum(each.nbytes for _, each in self._pinned)
            raise MemoryError(
                f"{memory.nbytes / MEBIBYTE:.1f} MiB of the host's memory cannot be pinned, beside"
                f" {held / MEBIBYTE:.1f} MiB that are: {error}"
            ) from error
        self._pinned.append((address, memory))

    def unpin(self, memory: Bytes) -> None:
        """It is ordinary memory again. Nothing of the device may use it any more."""
        address: int = memory.ctypes.data
        self._pinned = [each for each in self._pinned if each[0] != address]
        call(driver.cuMemHostUnregister, address)

    def _unpin(self) -> None:
        while self._pinned:
            address, _memory = self._pinned.pop()
            call(driver.cuMemHostUnregister, address)

    def close(self) -> None:
        """Nothing of the device may be used any more."""
        atexit.unregister(self.close)
        # A device that is lost refuses both, and pycuda then aborts a process that ends by itself:
        # its owner must end it at once.
        with contextlib.suppress(CudaError):
            self._unpin()
        with contextlib.suppress(cuda.Error):
            self._context.pop()
