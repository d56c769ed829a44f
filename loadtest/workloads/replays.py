"""Arrivals after traces: minute counts of Azure Functions, gaps of an LLM trace, ServeGen clients.

Owns how a trace becomes arrivals at our models: which function or client asks which model, and by
what the rate is multiplied. The files are trace_files.py's. Each call reads its trace at once, so
that what is wrong with it shows before a run begins.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import accumulate, count, pairwise

from loadtest.workloads.entries import AzureFunctions, AzureLlm, ReplayEntry, ServeGen
from loadtest.workloads.processes import Arrivals, Chances, gamma_residual, with_models
from loadtest.workloads.trace_files import (
    TraceError,
    Window,
    client_windows,
    gaps_s,
    minute_counts,
)


def azure_functions(
    entry: AzureFunctions, models: Sequence[str], span_s: float, chances: Chances
) -> Arrivals:
    """Clockwork's "azure" workload (artifact, workload/azure.h; OSDI 2020, section 6.5).

    Also with a minute of another length, the rate is count * scale / 60 per second.
    """
    try:
        functions = minute_counts(entry.file)
    except TraceError as error:
        entry.refuse("file", str(error))
    num_minutes = len(functions[0])
    if entry.first_minute >= num_minutes:
        entry.refuse("first_minute", f"{entry.first_minute} is not among {num_minutes} minutes")
    homes = models_of_functions(len(functions), models, entry.split, chances("models"))
    scale = _scale(
        entry,
        lambda minute: sum(counts[minute] for counts in functions) / 60,
        _pieces(entry.first_minute, num_minutes, entry.minute_s, span_s),
    )
    pieces = _pieces(entry.first_minute, num_minutes, entry.minute_s, span_s)
    return _by_minute(functions, homes, pieces, scale, chances(""))


def azure_llm(entry: AzureLlm, models: Sequence[str], span_s: float, chances: Chances) -> Arrivals:
    try:
        gaps = gaps_s(entry.file)
    except TraceError as error:
        entry.refuse("file", str(error))
    scale = entry.scale or 1.0
    if entry.scale_to_rate_per_s is not None:
        scale = entry.scale_to_rate_per_s * math.fsum(gaps) / len(gaps)
    return with_models(_by_gaps(gaps, scale, span_s), models, entry.skew, chances)


def servegen(entry: ServeGen, models: Sequence[str], span_s: float, chances: Chances) -> Arrivals:
    try:
        clients = client_windows(entry.file)
    except TraceError as error:
        entry.refuse("file", str(error))
    num_windows = 1 + max(max(windows) for windows in clients)

    def rate_per_s(index: int) -> float:
        return sum(windows[index].rate_per_s for windows in clients if index in windows)

    scale = _scale(entry, rate_per_s, _pieces(0, num_windows, entry.window_s, span_s))
    shuffled = list(models)
    chances("models").shuffle(shuffled)
    return merge(
        *(
            _by_windows(
                windows,
                shuffled[client % len(shuffled)],
                _pieces(0, num_windows, entry.window_s, span_s),
                scale,
                chances(f"client{client}"),
            )
            for client, windows in enumerate(clients)
        )
    )


def models_of_functions(
    num_functions: int, models: Sequence[str], split: int, chance: random.Random
) -> list[tuple[str, ...]]:
    """Which models each function asks, evenly; function 0 has the most invocations.

    With split 0 each has one model, and functions in a row share it (Clockwork). With split n each
    has n or n + 1 models in a row: if n <= models per function <= n + 1, all models are asked, and
    each by one function.
    """
    shuffled = list(models)
    chance.shuffle(shuffled)
    num_models = len(shuffled)
    if not split:
        return [(shuffled[i * num_models // num_functions],) for i in range(num_functions)]
    # In whole numbers: position i is i * models / functions, held between i * n and i * (n + 1).
    step = min(max(num_models, split * num_functions), (split + 1) * num_functions)
    bounds = [i * step // num_functions for i in range(num_functions + 1)]
    return [
        tuple(dict.fromkeys(shuffled[i % num_models] for i in range(first, end)))
        for first, end in pairwise(bounds)
    ]


def _pieces(
    first: int, num_pieces: int, length_s: float, span_s: float
) -> Iterator[tuple[int, float]]:
    """(piece of the trace, second at which it ends), from the first one, wrapping round."""
    for number in count():
        if number * length_s >= span_s:
            return
        yield (first + number) % num_pieces, min(span_s, (number + 1) * length_s)


def _scale(
    entry: ReplayEntry,
    rate_per_s: Callable[[int], float],
    pieces: Iterator[tuple[int, float]],
) -> float:
    """By what the rates of the trace are multiplied."""
    if entry.scale_to_rate_per_s is None:
        return entry.scale or 1.0
    num_requests = start_s = 0.0
    for piece, end_s in pieces:
        num_requests += rate_per_s(piece) * (end_s - start_s)
        start_s = end_s
    if start_s and not num_requests:
        entry.refuse("file", f"{entry.file} has no request in the {start_s} s that are replayed")
    return entry.scale_to_rate_per_s * start_s / num_requests if num_requests else 1.0


def _by_minute(
    functions: Sequence[Sequence[int]],
    homes: Sequence[tuple[str, ...]],
    pieces: Iterator[tuple[int, float]],
    scale: float,
    chance: random.Random,
) -> Arrivals:
    """All functions as one process: a unit-exponential gap is used up at the rate of each minute.

    Each arrival draws its function by the minute's counts: as many processes, merged.
    """
    uniform, gap = chance.random, chance.expovariate
    at_s = 0.0
    unit_gap = gap(1.0)
    for minute, end_s in pieces:
        active = [index for index, counts in enumerate(functions) if counts[minute]]
        bounds = list(accumulate(functions[index][minute] for index in active))
        if not active:
            at_s = end_s
            continue
        rate_per_s = bounds[-1] * scale / 60
        homes_active = [homes[index] for index in active]
        num_invocations = bounds[-1]
        while unit_gap < (end_s - at_s) * rate_per_s:
            at_s += unit_gap / rate_per_s
            asked = homes_active[bisect_right(bounds, uniform() * num_invocations)]
            yield at_s, asked[0] if len(asked) == 1 else asked[int(uniform() * len(asked))]
            unit_gap = gap(1.0)
        unit_gap -= (end_s - at_s) * rate_per_s
        at_s = end_s


def _by_gaps(gaps: Sequence[float], scale: float, span_s: float) -> Iterator[float]:
    at_s = 0.0
    while True:
        for gap_s in gaps:
            if at_s >= span_s:
                return
            yield at_s
            at_s += gap_s / scale


def _by_windows(
    windows: Mapping[int, Window],
    model: str,
    pieces: Iterator[tuple[int, float]],
    scale: float,
    chance: random.Random,
) -> Arrivals:
    """One client: gaps of mean 1 and the window's distribution, used up at the window's rate."""
    at_s = 0.0
    unit_gap: float | None = None
    for index, end_s in pieces:
        window = windows.get(index)
        if window is not None:
            rate_per_s = window.rate_per_s * scale
            draw = _unit_gaps(window, chance)
            if unit_gap is None:
                unit_gap = _residual(window, chance)
            while unit_gap < (end_s - at_s) * rate_per_s:
                at_s += unit_gap / rate_per_s
                yield at_s, model
                unit_gap = draw()
            unit_gap -= (end_s - at_s) * rate_per_s
        at_s = end_s


def _unit_gaps(window: Window, chance: random.Random) -> Callable[[], float]:
    """Gaps of mean 1."""
    shape = window.shape
    if window.family == "gamma":
        return lambda: chance.gammavariate(shape, 1 / shape)
    if window.family == "weibull":
        scale = 1 / math.gamma(1 + 1 / shape)
        return lambda: chance.weibullvariate(scale, shape)
    return lambda: chance.expovariate(1.0)


def _residual(window: Window, chance: random.Random) -> float:
    """What is left of the gap that a random instant falls into, as in `gamma_residual`."""
    shape = window.shape
    if window.family == "weibull":
        biased = math.pow(chance.gammavariate(1 + 1 / shape, 1.0), 1 / shape)
        return chance.random() * biased / math.gamma(1 + 1 / shape)
    return gamma_residual(shape, chance)
