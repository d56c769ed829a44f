"""Where TensorRT's memory comes from: an engine's weights from its address range, the rest plain.

Owns what TensorRT's allocator callbacks answer. While an engine is deserialised its allocations are
laid one after the other into the range that is lent to it; the pages under it lend their memory for
that time only (engines/tensorrt_session.py). Everything else, which is little, is ordinary device
memory that stays.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator

from cuda.bindings import driver

from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.cuda_memory import call
from gpuworker.devices.host import AddressRange

_log = logging.getLogger("gpuworker.tensorrt")

MIN_ALIGNMENT = 256


class WeightsLayout:
    """What an engine has taken of a range: `used_bytes` from its start, in `num_blocks`.

    `missing_bytes` is what did not fit any more.
    """

    def __init__(self, addresses: AddressRange) -> None:
        self.addresses = addresses
        self.used_bytes = 0
        self.num_blocks = 0
        self.missing_bytes = 0

    def take(self, num_bytes: int, alignment: int) -> int:
        """An address, or 0 where no room is left."""
        alignment = max(alignment, MIN_ALIGNMENT)
        begin = -(-self.used_bytes // alignment) * alignment
        if begin + num_bytes > self.addresses.num_bytes:
            self.missing_bytes += num_bytes
            return 0
        self.used_bytes = begin + num_bytes
        self.num_blocks += 1
        return self.addresses.address + begin


class EngineMemory:
    """`allocate` and `deallocate` are TensorRT's, from any thread, its own too; they never raise.

    `refused` is what could not be had since it was last emptied: TensorRT itself does not tell.
    """

    def __init__(self, context: CudaContext) -> None:
        self.refused = ""
        self._context = context
        self._lock = threading.Lock()
        self._layout: WeightsLayout | None = None
        self._ranges: list[AddressRange] = []  # of engines: what lies there is not ours to free
        self._plain: dict[int, int] = {}  # address → bytes

    @property
    def plain_bytes(self) -> int:
        """Device memory beside the pages that engines and contexts hold."""
        with self._lock:
            return sum(self._plain.values())

    def forget(self, addresses: AddressRange) -> None:
        """The engine whose weights lay there is gone."""
        with self._lock:
            self._ranges.remove(addresses)

    @contextlib.contextmanager
    def weights_in(self, addresses: AddressRange) -> Iterator[WeightsLayout]:
        """What is allocated within goes into this range, whose pages are mapped meanwhile."""
        layout = WeightsLayout(addresses)
        with self._lock:
            assert self._layout is None, "two engines are deserialised at once"
            self._layout = layout
            self._ranges.append(addresses)
        try:
            yield layout
        finally:
            with self._lock:
                self._layout = None

    def allocate(self, num_bytes: int, alignment: int) -> int:
        try:
            with self._lock:
                if not num_bytes:
                    return 0
                if self._layout is not None:
                    return self._layout.take(num_bytes, alignment)
                self._context.bind_thread()
                # Not by pycuda, which takes only threads that have its own stack of contexts.
                address = int(call(driver.cuMemAlloc, num_bytes))
                self._plain[address] = num_bytes
                return address
        except Exception as error:  # an exception must not pass through TensorRT's C++
            self.refused = f"{num_bytes} bytes of device memory: {error}"
            _log.error("TensorRT asked for %s", self.refused)
            return 0

    def deallocate(self, address: int) -> bool:
        try:
            with self._lock:
                if address in self._plain:
                    self._context.bind_thread()
                    call(driver.cuMemFree, address)
                    del self._plain[address]
                    return True
                return not address or any(
                    0 <= address - range_.address < range_.num_bytes for range_ in self._ranges
                )
        except Exception as error:  # as above
            _log.error("freeing %#x for TensorRT: %s", address, error)
            return False
