"""A GPU as a device: physical pages made once, mapped under address ranges that never change.

Owns the pages and every mapping of them. All pages are mapped once more, for good, side by side at
a linear range: a LOAD copies to those addresses at once and maps the model's range meanwhile, so
that no mapping stands before the first byte (LOAD = max(copy, map)). No page is created, released
or zeroed after the start, and any free pages serve any model. Which page belongs to whom is the
page cache's business.
"""

import time
from collections.abc import Sequence

import numpy as np
import pycuda.driver as cuda

from gpuworker.config import ConfigError
from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.cuda_memory import CudaError, VirtualMemory
from gpuworker.devices.host import AddressRange, DeviceError
from gpuworker.devices.pages import Bytes

MEBIBYTE = 1024 * 1024


class CudaPages:
    """A `gpuworker.devices.pages.WeightPages`. Raises ConfigError where the card is too small.

    `blob`s should be pinned memory: the driver copies others through a buffer of its own, slower.
    """

    def __init__(self, context: CudaContext, *, page_bytes: int, total_pages: int) -> None:
        if total_pages < 1:
            raise ValueError(f"a cache needs at least one page, not {total_pages}")
        self._memory = VirtualMemory(context.ordinal)
        granularity = self._memory.granularity()
        if page_bytes <= 0 or page_bytes % granularity:
            raise ConfigError(
                f"--page-mb: a page of {page_bytes} bytes is no multiple of the"
                f" {granularity} bytes that {context.name} maps at a time"
            )
        needed, free = page_bytes * total_pages, context.free_bytes()
        if needed > free:
            raise ConfigError(
                f"a weights cache of {needed // MEBIBYTE} MiB does not fit onto {context.name}:"
                f" {free // MEBIBYTE} of {context.total_bytes() // MEBIBYTE} MiB are free"
            )
        self.page_bytes = page_bytes
        self.total_pages = total_pages
        self._stream = context.stream()
        self._begin, self._end = context.event(), context.event()
        self._handles: list[int] = []
        # All and only reservations that are not given back: (address, bytes).
        self._reservations: list[tuple[int, int]] = []
        # All and only ranges that have pages, by address, with their bytes.
        self._mapped: dict[int, int] = {}
        # Those whose memory is none of the pages, with it.
        self._aside: dict[int, list[int]] = {}
        try:
            for _ in range(total_pages):
                self._handles.append(self._memory.create(page_bytes))
            linear = self.reserve(needed)
            self._lay(linear, range(total_pages))
        except CudaError as error:
            self.close()
            raise ConfigError(
                f"a weights cache of {needed // MEBIBYTE} MiB on {context.name}: {error}"
            ) from error
        self._linear = linear.address

    @property
    def num_not_ready(self) -> int:
        """How often the driver had to be asked again for access to what it had just mapped."""
        return self._memory.num_not_ready

    def reserve(self, num_bytes: int) -> AddressRange:
        num_bytes = max(1, -(-num_bytes // self.page_bytes)) * self.page_bytes
        address = self._memory.reserve(num_bytes)
        self._reservations.append((address, num_bytes))
        return AddressRange(address, num_bytes)

    def load(self, addresses: AddressRange, pages: Sequence[int], blob: Bytes) -> int:
        self._check(addresses, pages)
        if blob.nbytes > addresses.num_bytes:
            raise ValueError(f"{blob.nbytes} bytes for a range of {addresses.num_bytes} bytes")
        begin_ns = time.monotonic_ns()
        self._begin.record(self._stream)
        for number, page in enumerate(pages):
            part = blob[number * self.page_bytes : (number + 1) * self.page_bytes]
            if part.nbytes:
                cuda.memcpy_htod_async(self._linear + page * self.page_bytes, part, self._stream)
        self._end.record(self._stream)
        try:
            self._lay(addresses, pages)
        finally:
            # Also where mapping failed: the pages are given to others, whose bytes come next.
            self._end.synchronize()
        copied_ns = int(self._end.time_since(self._begin) * 1e6)
        return max(copied_ns, time.monotonic_ns() - begin_ns)

    def map(self, addresses: AddressRange, pages: Sequence[int]) -> None:
        """Lay pages under the range and copy nothing: for an engine that writes its weights."""
        self._check(addresses, pages)
        self._lay(addresses, pages)

    def map_aside(self, addresses: AddressRange) -> None:
        """As `map`, with memory that is none of the pages; `unload` gives it back. Raises
        DeviceError.
        """
        num_pages = addresses.num_bytes // self.page_bytes
        handles: list[int] = []
        try:
            for _ in range(num_pages):
                handles.append(self._memory.create(self.page_bytes))
            self._lay_handles(addresses, handles)
        except CudaError as error:
            for handle in handles:
                self._memory.release(handle)
            raise DeviceError(
                f"{addresses.num_bytes // MEBIBYTE} MiB beside the weights cache, to make an engine"
                f" in: {error}"
            ) from error
        self._aside[addresses.address] = handles

    def give_back(self, addresses: AddressRange) -> None:
        """The addresses are free again. Nothing may point into them any more."""
        reservation = (addresses.address, addresses.num_bytes)
        self._reservations.remove(reservation)
        self._memory.give_back(*reservation)

    def unload(self, addresses: AddressRange) -> None:
        self._take_away(addresses.address, self._mapped.pop(addresses.address))
        for handle in self._aside.pop(addresses.address, ()):
            self._memory.release(handle)

    def read(self, addresses: AddressRange, num_bytes: int) -> Bytes:
        if num_bytes > addresses.num_bytes:
            raise ValueError(f"{num_bytes} bytes of a range of {addresses.num_bytes} bytes")
        content = np.empty(num_bytes, np.uint8)
        cuda.memcpy_dtoh(content, addresses.address)
        return content

    def close(self) -> None:
        while self._mapped:
            self._take_away(*self._mapped.popitem())
        while self._reservations:
            self._memory.give_back(*self._reservations.pop())
        while self._handles:
            self._memory.release(self._handles.pop())

    def _check(self, addresses: AddressRange, pages: Sequence[int]) -> None:
        if len(pages) * self.page_bytes != addresses.num_bytes:
            raise ValueError(
                f"{len(pages)} pages of {self.page_bytes} bytes for a range of"
                f" {addresses.num_bytes} bytes"
            )
        if not all(0 <= page < self.total_pages for page in pages):
            raise ValueError(f"pages {list(pages)} are not all in 0..{self.total_pages - 1}")
        if addresses.address in self._mapped:
            raise DeviceError(f"the range at {addresses.address:#x} has pages already")

    def _lay(self, addresses: AddressRange, pages: Sequence[int]) -> None:
        self._lay_handles(addresses, [self._handles[page] for page in pages])

    def _lay_handles(self, addresses: AddressRange, handles: Sequence[int]) -> None:
        """All of them, or if the driver refuses one, none."""
        num_mapped = 0
        try:
            for number, handle in enumerate(handles):
                address = addresses.address + number * self.page_bytes
                self._memory.map(address, self.page_bytes, handle)
                num_mapped += 1
            self._memory.allow(addresses.address, addresses.num_bytes)
        except CudaError:
            self._take_away(addresses.address, num_mapped * self.page_bytes)
            raise
        self._mapped[addresses.address] = addresses.num_bytes

    def _take_away(self, address: int, num_bytes: int) -> None:
        for offset in range(0, num_bytes, self.page_bytes):
            self._memory.unmap(address + offset, self.page_bytes)
