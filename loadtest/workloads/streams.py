"""From workload entries to requests: each entry's own chance, one order of time for all.

Owns how a seed becomes a stream's chance. It materialises nothing: millions of requests are an
iterator.
"""

import math
import random
from collections.abc import Iterator, Sequence
from heapq import merge
from typing import assert_never

from loadtest.workloads import processes, replays, request_files
from loadtest.workloads.ask import Ask
from loadtest.workloads.choice import matching_models, slo_chooser
from loadtest.workloads.closed_loop import ClosedLoop
from loadtest.workloads.entries import (
    AzureFunctions,
    AzureLlm,
    Closed,
    Diurnal,
    Entry,
    Gamma,
    OnOff,
    OpenEntry,
    Poisson,
    Requests,
    ServeGen,
    Spread,
    WorkloadEntry,
)
from scheduler.spec import SECOND_NS


def open_loop(
    entries: Sequence[WorkloadEntry],
    *,
    duration_s: float,
    seed: int,
    models: Sequence[str] | None = None,
) -> Iterator[Ask]:
    """All requests of the open-loop entries, in time order; closed loops are passed over.

    `models` are the names that the entries' globs are matched with; without it an entry's `models`
    is one name. Raises ValueError, before the first request, for an entry that cannot be played.
    """
    _refuse_equal_names(entries)
    sources = [
        _requests_of(entry, stream, matching_models(entry, models), duration_s, seed)
        for stream, entry in enumerate(entries)
        if not isinstance(entry, Closed)
    ]
    return sources[0] if len(sources) == 1 else merge(*sources)


def closed_loops(
    entries: Sequence[WorkloadEntry],
    *,
    duration_s: float,
    seed: int,
    models: Sequence[str] | None = None,
) -> dict[int, ClosedLoop]:
    """The closed-loop entries by stream, which is what an Ask names. Raises as `open_loop` does."""
    _refuse_equal_names(entries)
    return {
        stream: ClosedLoop(
            entry,
            stream=stream,
            models=matching_models(entry, models),
            start_ns=round(entry.start_s * SECOND_NS),
            stop_ns=round(_stop_s(entry, duration_s) * SECOND_NS),
            seed=_label(entry, stream, seed),
        )
        for stream, entry in enumerate(entries)
        if isinstance(entry, Closed)
    }


def _requests_of(
    entry: OpenEntry, stream: int, models: Sequence[str], duration_s: float, seed: int
) -> Iterator[Ask]:
    label = _label(entry, stream, seed)

    def chances(purpose: str) -> random.Random:
        return random.Random(f"{label}/{purpose}" if purpose else label)

    span_s = max(0.0, _stop_s(entry, duration_s) - entry.start_s)
    if isinstance(entry, Requests):
        return request_files.asks(entry, stream, models, span_s, chances)
    arrivals = _arrivals(entry, models, span_s, chances)
    return _asks(entry, stream, arrivals, chances("slo"))


def _arrivals(
    entry: OpenEntry, models: Sequence[str], span_s: float, chances: processes.Chances
) -> processes.Arrivals:
    match entry:
        case Poisson():
            return processes.poisson(entry, models, span_s, chances)
        case Gamma():
            return processes.gamma(entry, models, span_s, chances)
        case OnOff():
            return processes.on_off(entry, models, span_s, chances)
        case Diurnal():
            return processes.diurnal(entry, models, span_s, chances)
        case Spread():
            return processes.spread(entry, models, span_s, chances)
        case AzureFunctions():
            return replays.azure_functions(entry, models, span_s, chances)
        case AzureLlm():
            return replays.azure_llm(entry, models, span_s, chances)
        case ServeGen():
            return replays.servegen(entry, models, span_s, chances)
        case Requests():
            raise AssertionError("its rows have SLOs of their own")
        case _:
            assert_never(entry)


def _asks(
    entry: Entry, stream: int, arrivals: processes.Arrivals, chance: random.Random
) -> Iterator[Ask]:
    start_s, tenant, priority = entry.start_s, entry.tenant, entry.priority_class
    slo = slo_chooser(entry, chance)
    if isinstance(slo, int):
        for at_s, model in arrivals:
            at_ns = int((start_s + at_s) * SECOND_NS)
            yield Ask(at_ns, model, slo, stream, tenant, priority=priority)
    else:
        for at_s, model in arrivals:
            at_ns = int((start_s + at_s) * SECOND_NS)
            yield Ask(at_ns, model, slo(), stream, tenant, priority=priority)


def _stop_s(entry: Entry, duration_s: float) -> float:
    return min(duration_s, math.inf if entry.stop_s is None else entry.stop_s)


def _label(entry: Entry, stream: int, seed: int) -> str:
    """What a stream's chance is seeded with: nothing of any other stream."""
    return f"{seed}/{entry.name or stream}"


def _refuse_equal_names(entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            entry.refuse("name", f"{entry.name!r} is given twice, which would be the same chance")
        if entry.name:
            seen.add(entry.name)
