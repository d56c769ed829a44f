"""What the product uses of pycuda, by cuda-bindings alone, for machines that lack pycuda.

Owns the place of `pycuda.driver` in such a process, so that the very code of the devices and
engines is what is checked. Only the check does this: a worker asks for pycuda. Names and rules are
pycuda's; what is made here is given back when the process ends.
"""

import builtins
import ctypes
import importlib.util
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from gpuworker.devices.cuda_memory import CudaError, call

_NAMES = (
    *("Context", "Device", "DeviceAllocation", "Error", "Event", "MemoryError", "Stream"),
    *("event_flags", "init", "mem_alloc", "mem_get_info", "memcpy_dtod_async", "memcpy_dtoh"),
    *("memcpy_dtoh_async", "memcpy_htod_async", "memset_d8", "pagelocked_empty"),
    "register_host_memory",
)


def stand_in_for_pycuda() -> bool:
    """Returns whether it was needed. Before anything of devices/ or engines/ is imported."""
    if _is_there("pycuda"):
        return False
    package, module = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")
    for name in _NAMES:
        setattr(module, name, globals()[name])
    package.__path__ = []
    package.driver = module  # type: ignore[attr-defined]
    sys.modules["pycuda"], sys.modules["pycuda.driver"] = package, module
    return True


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # what a module that was hidden on purpose gives
        return False


Error = CudaError


class MemoryError(CudaError):
    """The device, or what can be pinned, is full."""


def _taking_memory(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> int:
    try:
        return int(call(function, *arguments))
    except CudaError as error:
        if error.name == "CUDA_ERROR_OUT_OF_MEMORY":
            raise MemoryError(function.__name__, error.name) from error
        raise


class event_flags:
    DEFAULT = 0
    BLOCKING_SYNC = 1


class Context:
    def __init__(self, ordinal: int) -> None:
        self._handle = call(driver.cuDevicePrimaryCtxRetain, ordinal)

    def push(self) -> None:
        call(driver.cuCtxPushCurrent, self._handle)

    @staticmethod
    def pop() -> None:
        call(driver.cuCtxPopCurrent)

    @staticmethod
    def synchronize() -> None:
        call(driver.cuCtxSynchronize)


class Device:
    def __init__(self, ordinal: int) -> None:
        self._ordinal = int(call(driver.cuDeviceGet, ordinal))

    @staticmethod
    def count() -> int:
        return int(call(driver.cuDeviceGetCount))

    def name(self) -> str:
        name: bytes = call(driver.cuDeviceGetName, 256, self._ordinal)
        return name.split(b"\0")[0].decode()

    def pci_bus_id(self) -> str:
        name: bytes = call(driver.cuDeviceGetPCIBusId, 64, self._ordinal)
        return name.split(b"\0")[0].decode()

    def compute_capability(self) -> tuple[int, int]:
        kinds = driver.CUdevice_attribute
        major = kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        minor = kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        return (
            int(call(driver.cuDeviceGetAttribute, major, self._ordinal)),
            int(call(driver.cuDeviceGetAttribute, minor, self._ordinal)),
        )

    def retain_primary_context(self) -> Context:
        return Context(self._ordinal)


class Event:
    def __init__(self, flags: int = 0) -> None:
        self.handle = int(call(driver.cuEventCreate, flags))

    def record(self, stream: "Stream | None" = None) -> "Event":
        call(driver.cuEventRecord, self.handle, _handle_of(stream))
        return self

    def synchronize(self) -> "Event":
        call(driver.cuEventSynchronize, self.handle)
        return self

    def query(self) -> bool:
        (code,) = driver.cuEventQuery(self.handle)
        if code == driver.CUresult.CUDA_ERROR_NOT_READY:
            return False
        call(driver.cuEventQuery, self.handle)  # for its error
        return True

    def time_since(self, event: "Event") -> float:
        """Milliseconds."""
        return float(call(driver.cuEventElapsedTime, event.handle, self.handle))


class Stream:
    def __init__(self, flags: int = 0) -> None:
        self.handle = int(call(driver.cuStreamCreate, flags))

    def synchronize(self) -> None:
        call(driver.cuStreamSynchronize, self.handle)

    def wait_for_event(self, event: Event) -> None:
        call(driver.cuStreamWaitEvent, self.handle, event.handle, 0)


class DeviceAllocation:
    def __init__(self, num_bytes: int) -> None:
        self._address = _taking_memory(driver.cuMemAlloc, num_bytes)

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        call(driver.cuMemFree, self._address)


def init() -> None:
    call(driver.cuInit, 0)


def mem_get_info() -> tuple[int, int]:
    code, free, total = driver.cuMemGetInfo()
    if code != driver.CUresult.CUDA_SUCCESS:
        call(driver.cuMemGetInfo)  # for its error
    return int(free), int(total)


def mem_alloc(num_bytes: int) -> DeviceAllocation:
    return DeviceAllocation(num_bytes)


def memset_d8(to: int, value: int, num_bytes: int) -> None:
    call(driver.cuMemsetD8, to, value, num_bytes)


def memcpy_htod_async(to: int, source: npt.NDArray[Any], stream: Stream | None = None) -> None:
    call(driver.cuMemcpyHtoDAsync, to, _address_of(source), source.nbytes, _handle_of(stream))


def memcpy_dtoh_async(to: npt.NDArray[Any], source: int, stream: Stream | None = None) -> None:
    call(driver.cuMemcpyDtoHAsync, _address_of(to), source, to.nbytes, _handle_of(stream))


def memcpy_dtod_async(to: int, source: int, num_bytes: int, stream: Stream | None = None) -> None:
    call(driver.cuMemcpyDtoDAsync, to, source, num_bytes, _handle_of(stream))


def memcpy_dtoh(to: npt.NDArray[Any], source: int) -> None:
    call(driver.cuMemcpyDtoH, _address_of(to), source, to.nbytes)


def pagelocked_empty(num_bytes: int, dtype: type[np.uint8]) -> npt.NDArray[np.uint8]:
    address = _taking_memory(driver.cuMemHostAlloc, num_bytes, 0)
    memory = (ctypes.c_uint8 * num_bytes).from_address(address)
    free = weakref.finalize(memory, call, driver.cuMemFreeHost, address)
    free.atexit = False  # the context may be gone by then
    array: npt.NDArray[np.uint8] = np.frombuffer(memoryview(memory), dtype)
    return array


def register_host_memory(memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    call(driver.cuMemHostRegister, _address_of(memory), memory.nbytes, 0)
    return memory


def _address_of(array: npt.NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise builtins.ValueError("an array that is not contiguous cannot be copied as it is")
    return int(array.ctypes.data)


def _handle_of(stream: Stream | None) -> int:
    return 0 if stream is None else stream.handle
