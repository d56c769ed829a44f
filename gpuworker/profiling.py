"""How long a model takes on the device that serves: executions by batch size and shape, and a load.

Owns the measuring. Its numbers seed the scheduler's estimates, which real durations soon replace;
so a few seconds per model are enough, and the median is what counts.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gpuworker.artifact_cache import SampleInputs
from gpuworker.engines.datatypes import Array
from gpuworker.sample_inputs import make_inputs
from gpuworker.shape_probe import ProbedModel
from scheduler.spec import MILLISECOND_NS, SECOND_NS, ShapeProfile, TensorSpec, shape_key_of

# A batch that takes longer is of no use to anybody with a deadline.
MAX_EXEC_NS = SECOND_NS
# In proportion to smaller batches; a larger one may be a little better than that.
HOPELESS_EXEC_NS = 3 * MAX_EXEC_NS // 2
# Per batch size and shape: enough for a median, and a few seconds for a model in all.
MEASURING_NS = 250 * MILLISECOND_NS
MIN_RUNS, MAX_RUNS = 3, 51
NUM_LOADS = 7

Measure = Callable[[Callable[[], Any]], int]


def measure(work: Callable[[], object]) -> int:
    """Median duration of `work` in ns, after one run that is not counted."""

    def timed() -> int:
        begin_ns = time.monotonic_ns()
        work()
        return time.monotonic_ns() - begin_ns

    return measure_reported(timed)


def measure_reported(work: Callable[[], int]) -> int:
    """The same of work that says itself how long it took, as a GPU does."""
    work()
    durations: list[int] = []
    while len(durations) < MIN_RUNS or (
        sum(durations) < MEASURING_NS and len(durations) < MAX_RUNS
    ):
        durations.append(work())
    return int(statistics.median(durations))


class Loadable(Protocol):
    """A session whose weights come and go."""

    @property
    def num_pages(self) -> int: ...
    def load(self, pages: Sequence[int]) -> int: ...
    def evict(self) -> None: ...


def measure_load(session: Loadable) -> int:
    """Median duration of a LOAD in ns, each into other pages than the one before.

    The session is resident before and after; the device has a page more than it needs.
    """
    durations = []
    for i in range(NUM_LOADS):
        session.evict()
        durations.append(session.load(range(i % 2, i % 2 + session.num_pages)))
    return int(statistics.median(durations))


def measure_shapes(
    run: Callable[[dict[str, Array]], object],
    probed: ProbedModel,
    batch_sizes: Sequence[int],
    measure: Measure = measure,
) -> tuple[ShapeProfile, ...]:
    """Execution times of every sample shape. All profiles name the same batch sizes.

    The first shape decides which: those up to the first that takes longer than MAX_EXEC_NS, which
    is left out unless it is 1. For the other shapes, a time that would be longer is extrapolated.
    """
    profiles: list[ShapeProfile] = []
    for sample in probed.samples:
        times: dict[int, int] = {}
        for size in batch_sizes if not profiles else tuple(profiles[0].exec_ns):
            if times and _extrapolated(times, size) > HOPELESS_EXEC_NS:
                if not profiles:
                    break
                times[size] = _extrapolated(times, size)
                continue
            inputs = make_inputs(probed.inputs, sample, rows=size)
            times[size] = measure(lambda inputs=inputs: run(inputs))  # type: ignore[misc]
            if times[size] > MAX_EXEC_NS and size > 1 and not profiles:
                del times[size]
                break
        profiles.append(
            ShapeProfile(
                shape_key=shape_key(probed.inputs, sample),
                elements=num_elements(probed.inputs, sample),
                exec_ns=times,
            )
        )
    return tuple(profiles)


def shape_key(inputs: Sequence[TensorSpec], sample: SampleInputs) -> str:
    """ "" for a model whose rows have one shape only."""
    is_fixed = all(
        size >= 0
        for tensor in inputs
        for axis, size in enumerate(tensor.shape)
        if axis != tensor.batch_axis
    )
    return "" if is_fixed else shape_key_of(sample.row_shapes)


def num_elements(inputs: Sequence[TensorSpec], sample: SampleInputs) -> int:
    """Elements of one row, in all inputs that have rows."""
    return sum(
        math.prod(shape)
        for tensor, shape in zip(inputs, sample.row_shapes, strict=True)
        if tensor.batch_axis is not None
    )


def _extrapolated(times: dict[int, int], size: int) -> int:
    """Proportional to the largest size that is known."""
    largest = max(times)
    return times[largest] * size // largest
