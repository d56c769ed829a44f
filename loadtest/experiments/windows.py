"""Windows inside one run in which a bound is taken, where a run goes through several regimes."""

from collections.abc import Iterable, Sequence

import msgspec

from loadtest.experiments.jobs import Job, bounds
from loadtest.results import Table
from loadtest.results.tables import Mask
from loadtest.scenario import Case
from loadtest.simulate import window_of
from scheduler.spec import SECOND_NS


def windows_of(case: Case, shares: Sequence[float], length_s: float) -> list[tuple[float, float]]:
    """(begin, end) in seconds of the run; shorter where they would touch each other."""
    begin_ns, end_ns = window_of(case)
    begin_s, end_s = begin_ns / SECOND_NS, end_ns / SECOND_NS
    length_s = min(length_s, (end_s - begin_s) / (2 * len(shares)))
    found = []
    for share in shares:
        at_s = round(begin_s + share * (end_s - begin_s - length_s), 3)
        found.append((at_s, round(at_s + length_s, 3)))
    return found


def window_jobs(
    experiment: str, played: Iterable[Case], shares: Sequence[float], length_s: float
) -> list[Job]:
    """A bound for each window, first seed."""
    found = []
    for job in bounds(experiment, played):
        for begin_s, end_s in windows_of(job.case, shares, length_s):
            found.append(msgspec.structs.replace(job, window_s=(begin_s, end_s)))
    return found


def at_windows(requests: Table, begin_s: float, end_s: float) -> Mask:
    arrival_ns = requests["arrival_ns"]
    mask: Mask = (arrival_ns >= begin_s * SECOND_NS) & (arrival_ns < end_s * SECOND_NS)
    return mask
