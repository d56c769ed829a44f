"""What a core can do with a model and no server at all; multiples of that as numbers.

Owns the measurement, on the target's own cores and just before its server is asked, and its
rounding: one run has one capacity, so that repeats and configurations are asked the same.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from math import floor, log10
from typing import Any

import msgspec

from loadtest.driver.inputs import examples, inputs_of_file
from loadtest.driver.job import JobModel
from loadtest.driver.model_files import ModelFile
from loadtest.driver.multiples import Multiple
from loadtest.reference import session_of
from loadtest.workloads import SloShare, WorkloadEntry
from loadtest.workloads.entries import Requests
from loadtest.workloads.request_files import NO_SLO, read_requests
from loadtest.workloads.trace_files import TraceError
from scheduler.spec import MILLISECOND_NS

# Requests in one execution. Beyond 16 a CPU's rows get no cheaper, here and in Clockwork's table.
BATCH_SIZES = (1, 2, 4, 8, 16)
MEASURE_S, MIN_RUNS = 0.4, 5
MOST_SLOS = 50


class NoCapacity(ValueError):
    """A multiple that cannot become a number. The message names the model."""


class BareLoop(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of executions of so many requests at once, in milliseconds."""

    model: str
    exec_ms: dict[int, float]

    def capacity(self, slo_ms: float) -> float:
        """Requests per second, at the best batch size that fits the SLO. Raises NoCapacity."""
        fitting = {size: ms for size, ms in self.exec_ms.items() if ms <= slo_ms}
        if not fitting:
            raise NoCapacity(
                f"model {self.model!r}: one execution takes {self.exec_ms[1]:.3g} ms here, its SLO "
                f"is {slo_ms:g} ms: there is no capacity within it"
            )
        return max(size / ms * 1000 for size, ms in fitting.items())


def measure(
    model: JobModel,
    file: ModelFile,
    *,
    cpus: Sequence[int],
    measure_s: float = MEASURE_S,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> BareLoop:
    """Two seconds, with one thread. Raises InputError."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        inputs = inputs_of_file(file.path, model.name)
        session = session_of(file.path)
        exec_ms = {}
        for size in BATCH_SIZES:
            made = examples(
                inputs,
                model=model.name,
                rows=size * model.batch,
                count=1,
                seed=size,
                shapes=file.shapes,
                path=file.path,
            )
            exec_ms[size] = _median_ms(session, made.inputs[0], measure_s, clock)
    finally:
        os.sched_setaffinity(0, usable)
    return BareLoop(model=model.name, exec_ms=exec_ms)


def resolved(
    entries: Sequence[WorkloadEntry],
    multiples: Sequence[Multiple],
    loop_of: Callable[[str], BareLoop],
) -> tuple[WorkloadEntry, ...]:
    """The workload with numbers. SLOs first: capacity depends on them, the least of a mix. Raises
    NoCapacity.
    """
    found = list(entries)
    for multiple in sorted(multiples, key=lambda each: each.unit != "execution"):
        entry = found[multiple.entry]
        loop = loop_of(entry.models)
        if multiple.unit == "execution":
            slo_ms = _rounded(multiple.factor * loop.exec_ms[1], 3)
            if multiple.share is None:
                found[multiple.entry] = msgspec.structs.replace(entry, slo_ms=slo_ms)
            else:
                assert isinstance(entry.slo_ms, tuple)
                shares = list(entry.slo_ms)
                weight = shares[multiple.share].weight
                shares[multiple.share] = SloShare(slo_ms=slo_ms, weight=weight)
                found[multiple.entry] = msgspec.structs.replace(entry, slo_ms=tuple(shares))
        else:
            least_ms = min(slos_ms(entry))
            rate_per_s = _rounded(multiple.factor * loop.capacity(least_ms), 4)
            found[multiple.entry] = msgspec.structs.replace(entry, rate_per_s=rate_per_s)
    return tuple(found)


def slos_ms(entry: WorkloadEntry) -> list[float]:
    """All SLOs that an entry's requests may have. Raises ValueError, naming the entry, where there
    are too many for a row of results each.
    """
    if isinstance(entry, Requests) and entry.keeps_slos:
        return _slos_of_file(entry)
    return _of_entry(entry)


def _of_entry(entry: WorkloadEntry) -> list[float]:
    if isinstance(entry.slo_ms, tuple):
        return [share.slo_ms for share in entry.slo_ms]
    return [float(entry.slo_ms)]


def _slos_of_file(entry: Requests) -> list[float]:
    try:
        found = set(read_requests(entry.file).slo_ns)
    except TraceError as error:
        entry.refuse("file", str(error))
    own = _of_entry(entry) if NO_SLO in found else []
    slos = sorted({*own, *(slo_ns / MILLISECOND_NS for slo_ns in found - {NO_SLO})})
    if len(slos) > MOST_SLOS:
        entry.refuse(
            "file",
            f"{entry.file} has {len(slos):,} different SLOs, and each would be a row of results; "
            "keeps_slos: false gives all of them slo_ms",
        )
    return slos


def _median_ms(session: Any, feeds: Any, measure_s: float, clock: Callable[[], int]) -> float:
    session.run(None, feeds)
    durations: list[int] = []
    end_ns = clock() + int(measure_s * 1e9)
    while clock() < end_ns or len(durations) < MIN_RUNS:
        begin_ns = clock()
        session.run(None, feeds)
        durations.append(clock() - begin_ns)
    return statistics.median(durations) / 1e6


def _rounded(value: float, digits: int) -> float:
    return round(value, digits - 1 - floor(log10(value)))
