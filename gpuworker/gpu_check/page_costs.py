"""What the driver asks for laying a page under an address, for access to it, and for taking it
away: with the GPU idle, and while a kernel runs that none of it concerns.
"""

import time
from collections.abc import Sequence

import msgspec
import pycuda.driver as cuda

from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.cuda_memory import VirtualMemory
from gpuworker.gpu_check.busy_kernel import BusyKernel
from gpuworker.gpu_check.lines import Line, digits

NUM_PAGES = 16
BUSY_NS = 30_000_000  # several times what all calls of one round take


class PageCost(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds for each page, medians over rounds; `num_overlapped` counts rounds after which
    the kernel was still running, of those in which one ran.
    """

    page_bytes: int
    is_busy: bool
    map_us: float
    allow_us: float
    unmap_us: float
    num_rounds: int
    num_overlapped: int


def measure_page_costs(
    context: CudaContext, *, page_bytes: int, num_rounds: int
) -> tuple[PageCost, PageCost]:
    """Idle and busy. Raises CudaError."""
    memory = VirtualMemory(context.ordinal)
    stream, kernel = context.stream(), BusyKernel()
    pages = [memory.create(page_bytes) for _ in range(NUM_PAGES)]
    address = memory.reserve(NUM_PAGES * page_bytes)
    costs = []
    for is_busy in (False, True):
        rounds: list[tuple[float, float, float]] = []
        num_overlapped = 0
        for number in range(num_rounds + 1):  # the first is not counted
            if is_busy:
                kernel.spin(stream, BUSY_NS)
            rounds.append(_round(memory, address, page_bytes, pages))
            num_overlapped += is_busy and number > 0 and not _is_done(stream)
            cuda.Context.synchronize()
        mapped, allowed, unmapped = (_median(each) for each in zip(*rounds[1:], strict=True))
        costs.append(
            PageCost(
                page_bytes=page_bytes,
                is_busy=is_busy,
                map_us=mapped,
                allow_us=allowed,
                unmap_us=unmapped,
                num_rounds=num_rounds,
                num_overlapped=num_overlapped,
            )
        )
    memory.give_back(address, NUM_PAGES * page_bytes)
    for page in pages:
        memory.release(page)
    return costs[0], costs[1]


def lines_of(costs: Sequence[PageCost]) -> list[Line]:
    lines = []
    for cost in costs:
        state = "while a kernel runs" if cost.is_busy else "idle"
        times = " / ".join(digits(us) for us in (cost.map_us, cost.allow_us, cost.unmap_us))
        what = f"{cost.page_bytes >> 20} MiB page, {state}: map / access / unmap, each page"
        lines.append(Line(what, f"{times} us"))
        if cost.is_busy:
            ran_on = f"{cost.num_overlapped} of {cost.num_rounds} kernels of {BUSY_NS // 10**6} ms"
            lines.append(Line("... do these calls wait for it?", f"{ran_on} still ran afterwards"))
    return lines


def _round(
    memory: VirtualMemory, address: int, page_bytes: int, pages: list[int]
) -> tuple[float, float, float]:
    begin = time.perf_counter_ns()
    for number, page in enumerate(pages):
        memory.map(address + number * page_bytes, page_bytes, page)
    mapped = time.perf_counter_ns()
    memory.allow(address, len(pages) * page_bytes)
    allowed = time.perf_counter_ns()
    for number in range(len(pages)):
        memory.unmap(address + number * page_bytes, page_bytes)
    unmapped = time.perf_counter_ns()
    scale = 1000 * len(pages)
    return (mapped - begin) / scale, (allowed - mapped) / scale, (unmapped - allowed) / scale


def _is_done(stream: cuda.Stream) -> bool:
    event = cuda.Event()
    event.record(stream)
    return event.query()


def _median(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2]
