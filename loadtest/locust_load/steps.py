"""Rates over time: steps that somebody wrote down, or a trace; and who is asked meanwhile.

Owns how a trace of loadtest/data becomes a rate per step and weights of models. How many of
Locust's users that takes is the shape's business.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from loadtest.workloads.trace_files import (
    WINDOW_S,
    TraceError,
    client_windows,
    gaps_s,
    minute_counts,
)

MINUTE_S = 60.0


class StepsError(ValueError):
    """Steps or a trace that cannot be played."""


class Step(NamedTuple):
    """`shares`: which share of the step's requests each source of the trace has sent, the largest
    sources of the whole trace first; empty where a trace does not tell.
    """

    rate_per_s: float
    length_s: float
    shares: Sequence[float] = ()

    def weights(self, models: Sequence[str]) -> dict[str, float]:
        """Sources dealt out to the models in turn; nothing where the step has no sources."""
        weights = dict.fromkeys(models, 0.0)
        for number, share in enumerate(self.shares):
            weights[models[number % len(models)]] += share
        return {model: weight for model, weight in weights.items() if weight > 0.0}


class Steps:
    """Steps one after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self._ends_s = list(accumulate(step.length_s for step in steps))

    @property
    def duration_s(self) -> float:
        return self._ends_s[-1]

    @property
    def peak_per_s(self) -> float:
        return max(step.rate_per_s for step in self.steps)

    def at(self, run_time_s: float) -> Step | None:
        """None after the last."""
        for step, end_s in zip(self.steps, self._ends_s, strict=True):
            if run_time_s < end_s:
                return step
        return None


def read_steps(text: str) -> Steps:
    """`10:30,50:60`: rate (or users) for so many seconds. Raises StepsError."""
    steps = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            rate, length = (float(number) for number in part.split(":"))
        except ValueError:
            rate = length = -1.0
        if not (0.0 <= rate < math.inf and 0.0 < length < math.inf):
            raise StepsError(f"--steps: {part!r} is not RATE:SECONDS, as in 10:30,50:60")
        steps.append(Step(rate, length))
    if not steps:
        raise StepsError("--steps names no step; it is written RATE:SECONDS,..., as in 10:30,50:60")
    return Steps(steps)


def trace_steps(file: str, *, step_s: float, peak_per_s: float) -> Steps:
    """One piece of the trace (a minute, or ServeGen's ten) lasts `step_s`; its busiest one has the
    rate `peak_per_s`. Which form the file has is read off its first line. Raises StepsError.
    """
    pieces = _pieces(file)
    peak = max(map(math.fsum, pieces), default=0.0)
    if peak <= 0.0:
        raise StepsError(f"--trace: {file} has no request")
    steps = []
    for piece in pieces:
        total = math.fsum(piece)
        shares = [count / total for count in piece] if total and len(piece) > 1 else []
        steps.append(Step(peak_per_s * total / peak, step_s, shares))
    return Steps(steps)


def _pieces(file: str) -> list[Sequence[float]]:
    """Requests of each source, piece of time by piece of time."""
    troubles = []
    for read in (_of_functions, _of_clients, _of_instants):
        try:
            return read(file)
        except TraceError as error:
            troubles.append(str(error))
    if len(set(troubles)) == 1:
        raise StepsError(f"--trace: {troubles[0]}")
    raise StepsError(
        f"--trace: {file} is neither minutes of functions ({troubles[0]}), nor windows of clients "
        f"({troubles[1]}), nor instants ({troubles[2]})"
    )


def _of_functions(file: str) -> list[Sequence[float]]:
    functions = minute_counts(file)
    return [[counts[minute] for counts in functions] for minute in range(len(functions[0]))]


def _of_clients(file: str) -> list[Sequence[float]]:
    clients = client_windows(file)
    num_windows = 1 + max(max(windows) for windows in clients)
    return [
        [windows[index].rate_per_s * WINDOW_S if index in windows else 0.0 for windows in clients]
        for index in range(num_windows)
    ]


def _of_instants(file: str) -> list[Sequence[float]]:
    minutes: list[int] = []
    for at_s in accumulate(gaps_s(file)[:-1], initial=0.0):
        minute = int(at_s // MINUTE_S)
        minutes.extend([0] * (minute + 1 - len(minutes)))
        minutes[minute] += 1
    return [[float(count)] for count in minutes]
