"""One GPU of this process: its primary context, streams, timed events and pinned memory.

Owns what pycuda is used for. The context is the device's primary one, which TensorRT's runtime uses
as well. It is made current in the thread that makes this object; every other thread that works with
the device says `bind_thread` first. pycuda and cuda-bindings are imported here and in
devices/cuda_memory.py, and nowhere where there may be no GPU.
"""

import atexit
from typing import Any

import numpy as np
import pycuda.driver as cuda
from cuda.bindings import driver

from gpuworker.config import ConfigError
from gpuworker.devices.cuda_memory import call
from gpuworker.devices.pages import Bytes


class CudaContext:
    """Raises ConfigError where there is no such device, or one without virtual memory."""

    def __init__(self, ordinal: int) -> None:
        cuda.init()
        count = cuda.Device.count()
        if ordinal >= count:
            raise ConfigError(f"--device cuda:{ordinal}: this machine has {count} CUDA devices")
        device = cuda.Device(ordinal)
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
        self.name: str = device.name()
        major, minor = device.compute_capability()
        self.compute_capability = f"{major}.{minor}"
        self._context = device.retain_primary_context()
        self._context.push()
        # pycuda aborts a process that ends with a context on its stack, whatever it ends for.
        atexit.register(self.close)
        self._handle = call(driver.cuCtxGetCurrent)

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

    def pin(self, memory: Bytes) -> Bytes:
        """Pin memory that is there already; it stays pinned as long as what is returned lives.

        Raises MemoryError.
        """
        try:
            pinned: Bytes = cuda.register_host_memory(memory)
        except cuda.Error as error:
            raise MemoryError(f"pinning {memory.nbytes >> 20} MiB: {error}") from error
        return pinned

    def close(self) -> None:
        """Nothing of the device may be used any more."""
        atexit.unregister(self.close)
        self._context.pop()
