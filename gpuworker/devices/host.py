"""The CPU as a device: fixed pages of one memfd, mapped under address ranges that never change.

Owns the physical pages and every mapping of them. A range is reserved once (unreadable addresses);
`map` lays pages under it, `unmap` takes them away, and the addresses stay what they were, so an
engine may keep pointers into a range for as long as it lives. Which page belongs to whom is the
page cache's business: this module never counts, chooses or remembers pages. Touching an unmapped
range is a segmentation fault by design; never put accessible memory there "to be safe".
"""

import ctypes
import mmap
import os
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from gpuworker.config import ConfigError

Bytes = npt.NDArray[np.uint8]

# x86's (and most ARM64's) large page: with it a 16 MiB page costs 8 page-table entries, not 4,096.
HUGE_PAGE_BYTES = 2 * 1024 * 1024

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_POPULATE = 0x8000
_PROT_NONE = 0
_MADV_COLLAPSE = 25  # Linux 6.1: make huge pages now, whatever the system's default is
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class DeviceError(Exception):
    """The operating system refused memory or a mapping."""


class AddressRange(msgspec.Struct, frozen=True):
    """Addresses reserved for one model: `num_bytes` is a whole number of pages."""

    address: int
    num_bytes: int

    def bytes_at(self, offset: int, num_bytes: int) -> Bytes:
        """A view of part of the range. Reading it while the range is unmapped kills the process."""
        if offset < 0 or num_bytes < 0 or offset + num_bytes > self.num_bytes:
            raise ValueError(
                f"{num_bytes} bytes at {offset} are not inside a range of {self.num_bytes} bytes"
            )
        raw = (ctypes.c_ubyte * num_bytes).from_address(self.address + offset)
        return np.ctypeslib.as_array(raw)


class HostPages:
    """`total_pages` pages of `page_bytes`, all of them in memory from the start.

    Raises ConfigError where the machine has not that much memory. Not thread-safe for one range;
    different ranges may be mapped and unmapped by different threads.
    """

    def __init__(self, *, page_bytes: int, total_pages: int) -> None:
        if page_bytes <= 0 or page_bytes % mmap.PAGESIZE:
            raise ValueError(f"page size {page_bytes} is not a multiple of {mmap.PAGESIZE} bytes")
        if total_pages < 1:
            raise ValueError(f"a cache needs at least one page, not {total_pages}")
        self.page_bytes = page_bytes
        self.total_pages = total_pages
        num_bytes = page_bytes * total_pages
        available = memory_available_bytes()
        if num_bytes > available:
            raise ConfigError(
                f"a weights cache of {num_bytes >> 20} MiB does not fit into memory:"
                f" {available >> 20} MiB are available"
            )
        # All and only reservations that are not given back: (address, bytes) as mmap returned them.
        self._reservations: list[tuple[int, int]] = []
        self._fd = os.memfd_create("weights-pages")
        try:
            os.ftruncate(self._fd, num_bytes)
            self.has_huge_pages = self._fault_in(num_bytes)
        except OSError as error:
            os.close(self._fd)
            raise DeviceError(f"a cache of {num_bytes >> 20} MiB: {error}") from error

    def _fault_in(self, num_bytes: int) -> bool:
        """Give every page memory now, in huge pages where the kernel can; whether it could."""
        linear = self.reserve(num_bytes)
        _mmap(
            linear.address,
            num_bytes,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_SHARED | _MAP_FIXED,
            self._fd,
            0,
        )
        # The kernel does not collapse what is wholly empty: one byte in each must exist first.
        linear.bytes_at(0, num_bytes)[::HUGE_PAGE_BYTES] = 0
        has_huge_pages = bool(_libc.madvise(linear.address, num_bytes, _MADV_COLLAPSE) == 0)
        os.posix_fallocate(self._fd, 0, num_bytes)
        self._give_back(*self._reservations.pop())
        return has_huge_pages

    def reserve(self, num_bytes: int) -> AddressRange:
        """Addresses for `num_bytes`, rounded up to whole pages; unreadable until mapped."""
        num_bytes = max(1, -(-num_bytes // self.page_bytes)) * self.page_bytes
        reserved_bytes = num_bytes + HUGE_PAGE_BYTES
        start = _mmap(
            None,
            reserved_bytes,
            _PROT_NONE,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE,
            -1,
            0,
        )
        self._reservations.append((start, reserved_bytes))
        aligned = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        return AddressRange(aligned, num_bytes)

    def map(self, addresses: AddressRange, pages: Sequence[int]) -> None:
        """Lay `pages` under the range, in that order. What they hold is whatever was there before.

        Page-table entries are made here (MAP_POPULATE), so that an execution never takes a fault.
        """
        if len(pages) * self.page_bytes != addresses.num_bytes:
            raise ValueError(
                f"{len(pages)} pages of {self.page_bytes} bytes for a range of"
                f" {addresses.num_bytes} bytes"
            )
        if not all(0 <= page < self.total_pages for page in pages):
            raise ValueError(f"pages {list(pages)} are not all in 0..{self.total_pages - 1}")
        try:
            for i, page in enumerate(pages):
                _mmap(
                    addresses.address + i * self.page_bytes,
                    self.page_bytes,
                    mmap.PROT_READ | mmap.PROT_WRITE,
                    mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE,
                    self._fd,
                    page * self.page_bytes,
                )
        except DeviceError:
            self.unmap(addresses)
            raise

    def unmap(self, addresses: AddressRange) -> None:
        """Take the pages away; the addresses stay reserved and become unreadable."""
        _mmap(
            addresses.address,
            addresses.num_bytes,
            _PROT_NONE,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE,
            -1,
            0,
        )

    def load(self, addresses: AddressRange, pages: Sequence[int], blob: Bytes) -> int:
        """Map and copy; how long that took in ns. If it raises, nothing is mapped."""
        if blob.nbytes > addresses.num_bytes:
            raise ValueError(f"{blob.nbytes} bytes for a range of {addresses.num_bytes} bytes")
        begin_ns = time.monotonic_ns()
        self.map(addresses, pages)
        try:
            self.copy_in(addresses, blob)
        except BaseException:
            self.unmap(addresses)
            raise
        return time.monotonic_ns() - begin_ns

    def load_aside(self, addresses: AddressRange, blob: Bytes) -> None:
        """As `load`, into memory that is none of the pages; `unmap` gives it back."""
        _mmap(
            addresses.address,
            addresses.num_bytes,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED,
            -1,
            0,
        )
        self.copy_in(addresses, blob)

    def give_back(self, addresses: AddressRange) -> None:
        """The addresses are free again. Nothing may point into them any more."""
        for reservation in self._reservations:
            start, num_bytes = reservation
            if start <= addresses.address < start + num_bytes:
                self._reservations.remove(reservation)
                self._give_back(start, num_bytes)
                return

    def unload(self, addresses: AddressRange) -> None:
        self.unmap(addresses)

    def read(self, addresses: AddressRange, num_bytes: int) -> Bytes:
        return addresses.bytes_at(0, num_bytes).copy()

    def copy_in(self, addresses: AddressRange, blob: Bytes) -> None:
        """Copy `blob` to the start of a mapped range. Other threads run meanwhile."""
        np.copyto(addresses.bytes_at(0, blob.nbytes), blob)

    def close(self) -> None:
        """Give everything back. Nothing may point into any range any more."""
        while self._reservations:
            self._give_back(*self._reservations.pop())
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @staticmethod
    def _give_back(start: int, num_bytes: int) -> None:
        if _libc.munmap(start, num_bytes) != 0:
            raise DeviceError(f"munmap of {num_bytes} bytes: {os.strerror(ctypes.get_errno())}")


def _mmap(
    address: int | None, num_bytes: int, protection: int, flags: int, fd: int, offset: int
) -> int:
    mapped = _libc.mmap(address, num_bytes, protection, flags, fd, offset)
    if mapped == _MAP_FAILED:
        raise DeviceError(f"mmap of {num_bytes} bytes: {os.strerror(ctypes.get_errno())}")
    return int(mapped)


def memory_available_bytes() -> int:
    """What Linux says can be taken without swapping."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise DeviceError("/proc/meminfo has no MemAvailable")
