"""Step "pages": virtual memory and copies alone. No TensorRT, no model."""

from collections.abc import Callable, Sequence

import msgspec

from gpuworker.devices.cuda import MEBIBYTE, CudaPages
from gpuworker.devices.cuda_context import CudaContext
from gpuworker.gpu_check import cycles, loads, page_costs
from gpuworker.gpu_check.cycles import Cycles
from gpuworker.gpu_check.lines import MEGABYTE, Line
from gpuworker.gpu_check.loads import Loads
from gpuworker.gpu_check.page_costs import PageCost

SIZES_MB = (100, 200, 400)
SMALL_PAGE_BYTES = 2 * MEBIBYTE  # the driver's own grain: what smaller pages would cost


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    num_loads: int
    num_rounds: int
    num_cycles: int


FULL = Lengths(num_loads=300, num_rounds=20, num_cycles=5_000)
QUICK = Lengths(num_loads=30, num_rounds=5, num_cycles=300)


class PagesFigures(msgspec.Struct, frozen=True, kw_only=True):
    page_bytes: int
    total_pages: int
    num_not_ready: int
    loads: list[Loads]
    page_costs: list[PageCost]
    cycles: Cycles


def measure_pages(
    context: CudaContext,
    lengths: Lengths,
    *,
    page_bytes: int,
    sizes_mb: Sequence[int],
    say: Callable[[str], None],
) -> PagesFigures:
    """Raises ConfigError, DeviceError, MemoryError."""
    largest = max(sizes_mb) * MEGABYTE
    pages = CudaPages(context, page_bytes=page_bytes, total_pages=2 * -(-largest // page_bytes))
    measured: list[Loads] = []
    costs: list[PageCost] = []
    try:
        for size_mb in sizes_mb:
            say(f"LOADs of {size_mb} MB beside plain copies of the same bytes")
            found = loads.measure_loads(
                context, pages, num_bytes=size_mb * MEGABYTE, num_loads=lengths.num_loads
            )
            measured.append(found)
        for size in sorted({SMALL_PAGE_BYTES, page_bytes}):
            say(f"what the driver asks for a page of {size // MEBIBYTE} MiB")
            costs += page_costs.measure_page_costs(
                context, page_bytes=size, num_rounds=lengths.num_rounds
            )
        say(f"{lengths.num_cycles:,} random LOADs and EVICTs")
        cycled = cycles.measure_cycles(
            context,
            pages,
            sizes=cycles.random_sizes(largest // 4),
            num_loads=lengths.num_cycles,
        )
        return PagesFigures(
            page_bytes=page_bytes,
            total_pages=pages.total_pages,
            num_not_ready=pages.num_not_ready,
            loads=measured,
            page_costs=costs,
            cycles=cycled,
        )
    finally:
        pages.close()


def lines_of(figures: PagesFigures, lengths: Lengths) -> list[Line]:
    lines = [line for found in figures.loads for line in loads.lines_of(found)]
    lines += page_costs.lines_of(figures.page_costs)
    lines += cycles.lines_of(figures.cycles, wanted=lengths.num_cycles)
    again = f"{figures.num_not_ready:,}"
    lines.append(Line("access that the driver had to be asked for again (NOT_READY)", again))
    return lines
