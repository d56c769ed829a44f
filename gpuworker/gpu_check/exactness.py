"""What engines compute over pages: near to ONNX Runtime's answers, and the same bit for bit after
every LOAD into other pages. And do their weights truly lie there?
"""

import random
from collections.abc import Sequence

import msgspec
import numpy as np

from gpuworker.gpu_check.engine import Array, CheckedEngine, EngineDevice
from gpuworker.gpu_check.lines import MEGABYTE, Line, Spread, digits, spread

MAX_ERROR = 1e-2  # TF32 has 10 bits of mantissa, over fifty layers


class Exactness(msgspec.Struct, frozen=True, kw_only=True):
    """One engine. `first_exec` are executions right after a LOAD."""

    name: str
    weights_bytes: int
    scratch_bytes: int
    has_graph: bool
    relative_error: float
    depends_on_pages: bool
    num_loads: int
    num_compared: int
    num_different: int
    first_exec: Spread | None
    load: Spread | None


class _Tally:
    def __init__(self) -> None:
        self.num_compared = self.num_different = 0
        self.first_exec_ms: list[float] = []
        self.load_ms: list[float] = []


def measure_exactness(
    device: EngineDevice, engines: Sequence[CheckedEngine], *, num_steps: int, seed: int = 1
) -> list[Exactness]:
    """A random walk of LOADs and EVICTs. None is resident before or after. Raises DeviceError."""
    chance = random.Random(seed)
    tallies = [_Tally() for _ in engines]
    first = [_alone(engine) for engine in engines]
    depends = [
        _depends_on_pages(device, engine, outputs)
        for engine, outputs in zip(engines, first, strict=True)
    ]
    free_pages = list(range(device.pages.total_pages))
    resident: dict[int, list[int]] = {}

    def evict(number: int) -> None:
        engines[number].session.evict()
        free_pages.extend(resident.pop(number))

    for _ in range(num_steps):
        number = chance.randrange(len(engines))
        engine, tally = engines[number], tallies[number]
        if number in resident and chance.random() < 0.75:
            evict(number)
        if number not in resident:
            while len(free_pages) < engine.session.num_pages:
                evict(chance.choice(list(resident)))
            chance.shuffle(free_pages)
            resident[number] = [free_pages.pop() for _ in range(engine.session.num_pages)]
            tally.load_ms.append(engine.session.load(resident[number]) / 1e6)
            tally.first_exec_ms.append(engine.run())
        tally.num_compared += 1
        tally.num_different += not _are_equal(engine.fresh_outputs(), first[number])
    while resident:
        evict(next(iter(resident)))
    return [
        Exactness(
            name=engine.reference.name,
            weights_bytes=engine.facts.weights_bytes,
            scratch_bytes=engine.facts.scratch_bytes,
            has_graph=engine.has_graph,
            relative_error=_relative_error(engine, outputs),
            depends_on_pages=is_dependent,
            num_loads=len(tally.load_ms),
            num_compared=tally.num_compared,
            num_different=tally.num_different,
            first_exec=spread(tally.first_exec_ms) if tally.first_exec_ms else None,
            load=spread(tally.load_ms) if tally.load_ms else None,
        )
        for engine, outputs, is_dependent, tally in zip(
            engines, first, depends, tallies, strict=True
        )
    ]


def lines_of(found: Exactness) -> list[Line]:
    graph = "one CUDA graph" if found.has_graph else "no CUDA graph"
    error = found.relative_error
    lines = [
        Line(
            f"{found.name}: weights in pages; scratch; launched as",
            f"{digits(found.weights_bytes / MEGABYTE)} MB;"
            f" {digits(found.scratch_bytes / MEGABYTE)} MB; {graph}",
        ),
        Line(
            f"{found.name}: error relative to ONNX Runtime on the CPU",
            f"{error:.2g}",
            f"< {MAX_ERROR:g}",
            error < MAX_ERROR,
        ),
        Line(
            f"{found.name}: with zeros in its pages its outputs change",
            "yes" if found.depends_on_pages else "no: weights lie elsewhere",
            "yes",
            found.depends_on_pages,
        ),
        Line(
            f"{found.name}: outputs that differ by a bit, {found.num_loads:,} LOADs",
            f"{found.num_different:,} of {found.num_compared:,}",
            "0",
            found.num_different == 0 < found.num_loads,
        ),
    ]
    if found.load is not None and found.first_exec is not None:
        times = (found.load, found.first_exec)
        text = "; ".join(f"{digits(t.p50_ms)} / {digits(t.p99_ms)} ms" for t in times)
        lines.append(Line(f"{found.name}: LOAD, and first execution after it, p50 / p99", text))
    return lines


def _alone(engine: CheckedEngine) -> list[Array]:
    engine.session.load(range(engine.session.num_pages))
    outputs = engine.fresh_outputs()
    engine.session.evict()
    return outputs


def _depends_on_pages(
    device: EngineDevice, engine: CheckedEngine, outputs: Sequence[Array]
) -> bool:
    """Zeros through a second range that shows the same pages: do the outputs change?"""
    pages, num_pages = device.pages, engine.session.num_pages
    chosen = range(num_pages)
    engine.session.load(chosen)
    other = pages.reserve(num_pages * pages.page_bytes)
    pages.load(other, chosen, np.zeros(other.num_bytes, np.uint8))
    zeroed = engine.fresh_outputs()
    pages.unload(other)
    engine.session.evict()
    return not _are_equal(zeroed, outputs)


def _relative_error(engine: CheckedEngine, outputs: Sequence[Array]) -> float:
    """Of the worst output: the length of the difference, of the length of what it should be."""
    worst = 0.0
    for ours, theirs in zip(outputs, engine.reference.outputs.values(), strict=True):
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            return float("inf")
        right = theirs.astype(np.float64).ravel()
        difference = np.linalg.norm(ours.astype(np.float64).ravel() - right)
        worst = max(worst, float(difference / (np.linalg.norm(right) + 1e-30)))
    return worst


def _are_equal(ours: Sequence[Array], theirs: Sequence[Array]) -> bool:
    """Bit for bit."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
