"""What the product uses of cuda-bindings (13.x), which has no types of its own.

Every function returns its code and then its values.
"""

from collections.abc import Sequence
from enum import IntEnum

class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_READY = 600

class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102

class CUmemAllocationType(IntEnum):
    CU_MEM_ALLOCATION_TYPE_PINNED = 1

class CUmemLocationType(IntEnum):
    CU_MEM_LOCATION_TYPE_DEVICE = 1

class CUmemAccess_flags(IntEnum):
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3

class CUmemAllocationGranularity_flags(IntEnum):
    CU_MEM_ALLOC_GRANULARITY_RECOMMENDED = 1

class CUstream_flags(IntEnum):
    CU_STREAM_NON_BLOCKING = 1

class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

class CUmemLocation:
    type: CUmemLocationType
    id: int

class CUmemAllocationProp:
    type: CUmemAllocationType
    location: CUmemLocation

class CUmemAccessDesc:
    location: CUmemLocation
    flags: CUmemAccess_flags

class CUdeviceptr:
    def __int__(self) -> int: ...

class CUmemGenericAllocationHandle:
    def __int__(self) -> int: ...

class CUcontext:
    def __int__(self) -> int: ...

class CUgraph: ...
class CUgraphExec: ...

def cuGetErrorName(error: CUresult) -> tuple[CUresult, bytes]: ...
def cuDeviceGetAttribute(attrib: CUdevice_attribute, dev: int) -> tuple[CUresult, int]: ...
def cuCtxGetCurrent() -> tuple[CUresult, CUcontext]: ...
def cuCtxSetCurrent(ctx: CUcontext) -> tuple[CUresult]: ...
def cuCtxSynchronize() -> tuple[CUresult]: ...
def cuStreamQuery(hStream: int) -> tuple[CUresult]: ...
def cuMemGetAllocationGranularity(
    prop: CUmemAllocationProp, option: CUmemAllocationGranularity_flags
) -> tuple[CUresult, int]: ...
def cuMemCreate(
    size: int, prop: CUmemAllocationProp, flags: int
) -> tuple[CUresult, CUmemGenericAllocationHandle]: ...
def cuMemRelease(handle: int) -> tuple[CUresult]: ...
def cuMemAddressReserve(
    size: int, alignment: int, addr: int, flags: int
) -> tuple[CUresult, CUdeviceptr]: ...
def cuMemAddressFree(ptr: int, size: int) -> tuple[CUresult]: ...
def cuMemMap(ptr: int, size: int, offset: int, handle: int, flags: int) -> tuple[CUresult]: ...
def cuMemSetAccess(
    ptr: int, size: int, desc: Sequence[CUmemAccessDesc], count: int
) -> tuple[CUresult]: ...
def cuMemUnmap(ptr: int, size: int) -> tuple[CUresult]: ...
def cuStreamBeginCapture(hStream: int, mode: CUstreamCaptureMode) -> tuple[CUresult]: ...
def cuStreamEndCapture(hStream: int) -> tuple[CUresult, CUgraph]: ...
def cuGraphInstantiate(graph: CUgraph, flags: int) -> tuple[CUresult, CUgraphExec]: ...
def cuGraphLaunch(hGraphExec: CUgraphExec, hStream: int) -> tuple[CUresult]: ...
def cuGraphDestroy(hGraph: CUgraph) -> tuple[CUresult]: ...
def cuGraphExecDestroy(hGraphExec: CUgraphExec) -> tuple[CUresult]: ...
