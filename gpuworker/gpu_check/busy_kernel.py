"""A kernel that keeps a GPU busy for a given time, without a compiler: what others wait for.

Owns its code, which is PTX that the driver compiles for the card that is there.
"""

import ctypes
from typing import Any

from cuda.bindings import driver

from gpuworker.devices.cuda_memory import call

# %globaltimer is a clock in ns, so this needs no knowledge of the card's frequency.
_PTX = b"""
.version 6.3
.target sm_70
.address_size 64
.visible .entry spin(.param .u64 duration)
{
    .reg .u64 %begin, %now, %passed, %wanted;
    .reg .pred %goes_on;
    ld.param.u64 %wanted, [duration];
    mov.u64 %begin, %globaltimer;
again:
    mov.u64 %now, %globaltimer;
    sub.u64 %passed, %now, %begin;
    setp.lt.u64 %goes_on, %passed, %wanted;
    @%goes_on bra again;
    ret;
}
\0"""


class BusyKernel:
    """Of the current context. Raises CudaError where the driver does not take it."""

    def __init__(self) -> None:
        self._module = call(driver.cuModuleLoadData, _PTX)
        self._spin = call(driver.cuModuleGetFunction, self._module, b"spin")

    def spin(self, stream: Any, duration_ns: int) -> None:
        """Enqueue a kernel of one thread that takes so long."""
        parameters = ((duration_ns,), (ctypes.c_uint64,))
        grid, block = (1, 1, 1), (1, 1, 1)
        call(driver.cuLaunchKernel, self._spin, *grid, *block, 0, stream.handle, parameters, 0)
