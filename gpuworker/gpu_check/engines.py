"""Step "engines": TensorRT engines over the pages, alone and beside each other."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from gpuworker.devices.cuda_context import CudaContext
from gpuworker.engines.tensorrt_api import TensorRt
from gpuworker.gpu_check import exactness, exec_times
from gpuworker.gpu_check.engine import (
    CheckedEngine,
    EngineDevice,
    PlanFacts,
    Reference,
    plan_of,
    range_bytes,
)
from gpuworker.gpu_check.exactness import Exactness
from gpuworker.gpu_check.exec_times import ExecTimes
from gpuworker.gpu_check.lines import MEGABYTE, Line, digits

AT_ONCE = (2, 4)


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    num_steps: int
    num_runs: int


FULL = Lengths(num_steps=1_000, num_runs=10_000)
QUICK = Lengths(num_steps=60, num_runs=100)


class Built(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    build_s: float
    plan_bytes: int


class EnginesFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The largest model is the last; `plain_bytes` is what TensorRT took beside the pages."""

    tensorrt: str
    page_bytes: int
    total_pages: int
    plain_bytes: int
    built: list[Built]
    exactness: list[Exactness]
    exec_times: list[ExecTimes]


def measure_engines(
    context: CudaContext,
    api: TensorRt,
    references: Sequence[Reference],
    lengths: Lengths,
    *,
    page_bytes: int,
    timing_cache: Path,
    say: Callable[[str], None],
) -> EnginesFigures:
    """References by size, the largest last. Raises BuildError, EngineRefused, DeviceError,
    MemoryError, ConfigError.
    """
    plans, built = [], []
    for reference in references:
        say(f"building a plan of {reference.name} with TensorRT {api.version}")
        begin_s = time.monotonic()
        plan = plan_of(api, reference, timing_cache)
        plans.append(plan)
        build_s = time.monotonic() - begin_s
        built.append(Built(name=reference.name, build_s=build_s, plan_bytes=len(plan)))
    # The largest in four copies, each as large as a plan might turn out to be.
    most_pages = -(-max(range_bytes(plan) for plan in plans) // page_bytes)
    device = EngineDevice(
        context, api, page_bytes=page_bytes, total_pages=max(AT_ONCE) * most_pages
    )
    engines: list[CheckedEngine] = []
    try:
        facts = [device.facts(*each) for each in zip(plans, references, strict=True)]
        for each in zip(plans, facts, references, strict=True):
            say(f"an engine of {each[2].name}")
            engines.append(CheckedEngine(device, *each))
        say(f"{lengths.num_steps:,} steps of LOAD, EVICT and comparing outputs")
        exact = exactness.measure_exactness(device, engines, num_steps=lengths.num_steps)
        times = _exec_times(device, engines, plans[-1], facts[-1], lengths, say)
        return EnginesFigures(
            tensorrt=api.version,
            page_bytes=page_bytes,
            total_pages=device.pages.total_pages,
            plain_bytes=device.memory.plain_bytes,
            built=built,
            exactness=exact,
            exec_times=times,
        )
    finally:
        while engines:
            engines.pop().close()
        device.close()


def lines_of(figures: EnginesFigures) -> list[Line]:
    lines = [
        Line(
            f"{built.name}: built with TensorRT {figures.tensorrt}",
            f"{digits(built.build_s)} s, a plan of {digits(built.plan_bytes / MEGABYTE)} MB",
        )
        for built in figures.built
    ]
    plain = f"{digits(figures.plain_bytes / MEGABYTE)} MB"
    lines.append(Line("what TensorRT took beside pages and scratch", plain))
    lines += [line for found in figures.exactness for line in exactness.lines_of(found)]
    largest = figures.built[-1].name
    for found in figures.exec_times:
        # A kernel of microseconds has the clock's own grain in its tail, and others are no promise.
        has_bar = found.name == largest and "at once" not in found.situation
        lines += exec_times.lines_of(found, has_bar=has_bar)
    return lines


def _exec_times(
    device: EngineDevice,
    engines: list[CheckedEngine],
    plan: bytes,
    facts: PlanFacts,
    lengths: Lengths,
    say: Callable[[str], None],
) -> list[ExecTimes]:
    """All alone; the largest, the last, in company. Adds the copies that it makes to `engines`."""
    times = []
    for engine in engines:
        say(f"{lengths.num_runs:,} executions of {engine.reference.name} alone")
        times.append(exec_times.measure_alone(engine, lengths.num_runs))
    largest = engines[-1]
    say(f"{lengths.num_runs:,} executions of {largest.reference.name} while LOADs run")
    times.append(exec_times.measure_while_loading(device, largest, lengths.num_runs))
    alike = [largest]
    while len(alike) < max(AT_ONCE):
        alike.append(CheckedEngine(device, plan, facts, largest.reference))
        engines.append(alike[-1])
    for number in AT_ONCE:
        say(f"{number} engines of {largest.reference.name} at once")
        num_runs = max(1, lengths.num_runs // number)
        times.append(exec_times.measure_at_once(alike[:number], num_runs))
    return times
