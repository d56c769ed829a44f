"""A LOAD beside a plain copy of the same bytes from pinned memory, in turn, by size.

Both see the same minute of the machine. A LOAD is timed as its caller sees it: pages mapped, bytes
there.
"""

import random
import time

import msgspec
import numpy as np
import pycuda.driver as cuda

from gpuworker.devices.cuda import CudaPages
from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.pages import Bytes
from gpuworker.gpu_check.lines import MEGABYTE, Line, Spread, at_most, digits, spread

NUM_WARM = 3  # the first find pages and buffers that were never touched

MAX_LOAD_RATIO = 1.1  # of the copy: mapping must hide behind it
MAX_LOAD_TAIL = 1.1  # p99 of p50: what makes a LOAD something to plan with


class Loads(msgspec.Struct, frozen=True, kw_only=True):
    num_bytes: int
    num_pages: int
    load: Spread
    copy: Spread
    evict: Spread

    @property
    def copy_gb_per_s(self) -> float:
        return self.num_bytes / self.copy.p50_ms / 1e6


def measure_loads(
    context: CudaContext, pages: CudaPages, *, num_bytes: int, num_loads: int, seed: int = 1
) -> Loads:
    """Into random pages. Raises CudaError, MemoryError."""
    chance = random.Random(seed)
    blob = context.pinned(num_bytes)
    fill(blob, seed)
    plain = cuda.mem_alloc(num_bytes)
    stream = context.stream()
    addresses = pages.reserve(num_bytes)
    num_pages = addresses.num_bytes // pages.page_bytes
    load_ms, copy_ms, evict_ms = [], [], []
    for _ in range(NUM_WARM + num_loads):
        chosen = chance.sample(range(pages.total_pages), num_pages)
        begin = time.perf_counter_ns()
        pages.load(addresses, chosen, blob)
        loaded = time.perf_counter_ns()
        pages.unload(addresses)
        evicted = time.perf_counter_ns()
        cuda.memcpy_htod_async(int(plain), blob, stream)
        stream.synchronize()
        copied = time.perf_counter_ns()
        load_ms.append((loaded - begin) / 1e6)
        evict_ms.append((evicted - loaded) / 1e6)
        copy_ms.append((copied - evicted) / 1e6)
    plain.free()
    return Loads(
        num_bytes=num_bytes,
        num_pages=num_pages,
        load=spread(load_ms[NUM_WARM:]),
        copy=spread(copy_ms[NUM_WARM:]),
        evict=spread(evict_ms[NUM_WARM:]),
    )


def lines_of(loads: Loads) -> list[Line]:
    what = f"LOAD of {digits(loads.num_bytes / MEGABYTE)} MB ({loads.num_pages} pages)"
    copy = f"{MAX_LOAD_RATIO} x a pinned copy at {digits(loads.copy_gb_per_s)} GB/s"
    p50_ms, p99_ms = loads.load.p50_ms, loads.load.p99_ms
    return [
        at_most(f"{what}, p50", p50_ms, MAX_LOAD_RATIO * loads.copy.p50_ms, "ms", copy),
        at_most(f"{what}, p99", p99_ms, MAX_LOAD_TAIL * p50_ms, "ms", f"{MAX_LOAD_TAIL} x p50"),
        Line("... its EVICT, p50 / p99", _both(loads.evict)),
    ]


def fill(memory: Bytes, seed: int) -> None:
    """Bytes that no other seed gives, and no page has by chance."""
    words = memory[: memory.nbytes // 8 * 8].view(np.uint64)
    words[:] = np.random.default_rng(seed).integers(0, 1 << 64, words.size, np.uint64)
    memory[words.nbytes :] = seed % 256


def _both(times: Spread) -> str:
    return f"{digits(times.p50_ms)} / {digits(times.p99_ms)} ms"
