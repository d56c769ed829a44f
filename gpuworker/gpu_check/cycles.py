"""Thousands of LOADs and EVICTs in random order, into random pages: is every byte where it belongs?

Every byte of a model is read back just before its EVICT, so that what a later LOAD would have
overwritten shows as well.
"""

import random
from collections.abc import Sequence

import msgspec
import numpy as np
import pycuda.driver as cuda

from gpuworker.devices.cuda import CudaPages
from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.host import AddressRange
from gpuworker.devices.pages import Bytes
from gpuworker.gpu_check.lines import MEGABYTE, Line, digits
from gpuworker.gpu_check.loads import fill

NUM_MODELS = 24


class Cycles(msgspec.Struct, frozen=True, kw_only=True):
    """`free_*_bytes`: of the device, before the first LOAD, after the last, and the least."""

    num_loads: int
    num_checked: int
    checked_bytes: int
    wrong_bytes: int
    num_placements: int
    free_first_bytes: int
    free_last_bytes: int
    free_least_bytes: int


class _Model:
    def __init__(self, context: CudaContext, pages: CudaPages, num_bytes: int, seed: int) -> None:
        self.blob: Bytes = context.pinned(num_bytes)
        fill(self.blob, seed)
        self.addresses: AddressRange = pages.reserve(num_bytes)
        self.num_pages = self.addresses.num_bytes // pages.page_bytes


def measure_cycles(
    context: CudaContext,
    pages: CudaPages,
    *,
    sizes: Sequence[int],
    num_loads: int,
    seed: int = 1,
) -> Cycles:
    """Models of so many bytes each, more of them than there are pages for. Raises CudaError."""
    chance = random.Random(seed)
    models = [
        _Model(context, pages, num_bytes, 1000 + number) for number, num_bytes in enumerate(sizes)
    ]
    read = context.pinned(max(sizes))
    free_pages = list(range(pages.total_pages))
    # All and only models that have pages, and which.
    resident: dict[int, list[int]] = {}
    placements: set[tuple[int, ...]] = set()
    num_checked = checked_bytes = wrong_bytes = 0

    def evict(number: int) -> None:
        nonlocal num_checked, checked_bytes, wrong_bytes
        model = models[number]
        found = read[: model.blob.nbytes]
        cuda.memcpy_dtoh(found, model.addresses.address)
        wrong_bytes += _num_different(found, model.blob)
        num_checked += 1
        checked_bytes += found.nbytes
        pages.unload(model.addresses)
        free_pages.extend(resident.pop(number))

    # The driver takes memory for its tables where nothing was mapped before: that is not a leak.
    for model in models:
        pages.map(model.addresses, range(model.num_pages))
        pages.unload(model.addresses)
    first = least = context.free_bytes()
    for _ in range(num_loads):
        number = chance.choice([n for n in range(len(models)) if n not in resident])
        model = models[number]
        while len(free_pages) < model.num_pages:
            evict(chance.choice(list(resident)))
        chance.shuffle(free_pages)
        taken = [free_pages.pop() for _ in range(model.num_pages)]
        pages.load(model.addresses, taken, model.blob)
        resident[number] = taken
        placements.add((number, *taken))
        least = min(least, context.free_bytes())
    while resident:
        evict(next(iter(resident)))
    return Cycles(
        num_loads=num_loads,
        num_checked=num_checked,
        checked_bytes=checked_bytes,
        wrong_bytes=wrong_bytes,
        num_placements=len(placements),
        free_first_bytes=first,
        free_last_bytes=context.free_bytes(),
        free_least_bytes=least,
    )


def lines_of(cycles: Cycles, *, wanted: int) -> list[Line]:
    first, last, least = (
        f"{free / MEGABYTE:,.3f}"
        for free in (cycles.free_first_bytes, cycles.free_last_bytes, cycles.free_least_bytes)
    )
    is_flat = cycles.free_first_bytes == cycles.free_last_bytes == cycles.free_least_bytes
    return [
        Line(
            f"random LOADs, each read back whole before its EVICT"
            f" ({digits(cycles.checked_bytes / 1e9)} GB, {cycles.num_placements} placements)",
            f"{cycles.num_checked:,} of {cycles.num_loads:,}",
            f">= {wanted:,}",
            cycles.num_checked == cycles.num_loads >= wanted,
        ),
        Line("random LOADs: wrong bytes", f"{cycles.wrong_bytes:,}", "0", cycles.wrong_bytes == 0),
        Line(
            "random LOADs: free memory, first / last / least",
            f"{first} / {last} / {least} MB",
            "all equal",
            is_flat,
        ),
    ]


def random_sizes(largest_bytes: int, seed: int = 1) -> list[int]:
    """From a twentieth of this on, in whole words of eight bytes."""
    chance = random.Random(seed)
    return [chance.randint(largest_bytes // 20, largest_bytes) // 8 * 8 for _ in range(NUM_MODELS)]


def _num_different(found: Bytes, right: Bytes) -> int:
    """Eight bytes at a time; which of them it is only where they are not equal."""
    if np.array_equal(found.view(np.uint64), right.view(np.uint64)):
        return 0
    return int(np.count_nonzero(found != right))
