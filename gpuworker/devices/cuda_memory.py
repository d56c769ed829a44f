"""The driver's virtual memory: physical pages, address ranges, and which page lies under which.

Owns the calls that pycuda does not have, through cuda-bindings, and what their errors mean. All of
it works on the device whose context is current in the calling thread (devices/cuda_context.py).
Addresses and handles are integers.
"""

from collections.abc import Callable
from typing import Any

from cuda.bindings import driver

from gpuworker.devices.host import DeviceError

# A range that is mapped again soon after it was unmapped can answer NOT_READY for a moment.
MAX_NOT_READY = 16

_SUCCESS = driver.CUresult.CUDA_SUCCESS


class CudaError(DeviceError):
    """The driver refused; `name` is its word for it, as CUDA_ERROR_OUT_OF_MEMORY."""

    def __init__(self, call: str, name: str) -> None:
        super().__init__(f"{call}: {name}")
        self.name = name


class VirtualMemory:
    """Of one device. `num_not_ready` counts how often access had to be asked for again."""

    def __init__(self, ordinal: int) -> None:
        self._page_kind = driver.CUmemAllocationProp()
        self._page_kind.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._page_kind.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._page_kind.location.id = ordinal
        self._access = driver.CUmemAccessDesc()
        self._access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._access.location.id = ordinal
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self.num_not_ready = 0

    def granularity(self) -> int:
        """Bytes that the size of a page must be a multiple of."""
        kind = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        return int(call(driver.cuMemGetAllocationGranularity, self._page_kind, kind))

    def create(self, num_bytes: int) -> int:
        """A physical page. Raises CudaError CUDA_ERROR_OUT_OF_MEMORY where there is none."""
        return int(call(driver.cuMemCreate, num_bytes, self._page_kind, 0))

    def release(self, page: int) -> None:
        call(driver.cuMemRelease, page)

    def reserve(self, num_bytes: int) -> int:
        """Addresses that nothing lies under, aligned as mappings must be."""
        return int(call(driver.cuMemAddressReserve, num_bytes, 0, 0, 0))

    def give_back(self, address: int, num_bytes: int) -> None:
        call(driver.cuMemAddressFree, address, num_bytes)

    def map(self, address: int, num_bytes: int, page: int) -> None:
        """Lay a page under the address; it cannot be used before `allow`."""
        call(driver.cuMemMap, address, num_bytes, 0, page, 0)

    def allow(self, address: int, num_bytes: int) -> None:
        """Let the device read and write what is mapped there, any number of pages at once."""
        for _ in range(MAX_NOT_READY):
            (code,) = driver.cuMemSetAccess(address, num_bytes, [self._access], 1)
            if code == _SUCCESS:
                return
            if code != driver.CUresult.CUDA_ERROR_NOT_READY:
                break
            self.num_not_ready += 1
            call(driver.cuCtxSynchronize)
        raise CudaError("cuMemSetAccess", name_of(code))

    def unmap(self, address: int, num_bytes: int) -> None:
        """Take away the page that lies there, the whole of it."""
        call(driver.cuMemUnmap, address, num_bytes)


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What a function of cuda-bindings returns beside its code. Raises CudaError."""
    code, *values = function(*arguments)
    if code != _SUCCESS:
        raise CudaError(function.__name__, name_of(code))
    return values[0] if values else None


def fault() -> str | None:
    """What broke the device of this thread for good, or None.

    After such an error every call answers with it, and only the end of the process helps.
    """
    (code,) = driver.cuStreamQuery(0)
    is_alive = code in (_SUCCESS, driver.CUresult.CUDA_ERROR_NOT_READY)
    return None if is_alive else name_of(code)


def name_of(code: Any) -> str:
    """The driver's word for a code, as CUDA_ERROR_OUT_OF_MEMORY."""
    _, name = driver.cuGetErrorName(code)
    return name.decode() if isinstance(name, bytes) else str(code)
