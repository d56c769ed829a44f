"""What is refused before it is sent: more than this driver can send, or than this machine can hold.

Owns the ceiling of a run and the sums. A driver that falls behind measures itself; one that runs
out of memory loses what it has measured.
"""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from loadtest.driver import ceiling
from loadtest.driver.ceiling import Ceiling, KnownCeilings
from loadtest.driver.job_file import Case, JobError
from loadtest.driver.plans import REPLY_HEAD_BYTES, Planned
from loadtest.workloads import open_loop

# Of a request until the run's end: the objects of its ask, its shot and its answer. Measured: 480.
REQUEST_BYTES = 500
# Digits of a number in JSON, for its four bytes.
JSON_FACTOR = 5
# The reading of all answers afterwards takes as much again.
MOST_OF_MEMORY = 0.5
MEMINFO = Path("/proc/meminfo")


class Limits:
    """`say` is told what a measurement of a ceiling found, `step` what it does at the moment."""

    def __init__(
        self,
        *,
        given_per_s: float | None,
        known: KnownCeilings,
        log_dir: Path,
        say: Callable[[str], None],
        step: Callable[[str], None],
        measure: Callable[..., Ceiling] = ceiling.measure,
    ) -> None:
        self._given_per_s = given_per_s
        self._known = known
        self._log_dir = log_dir
        self._say = say
        self._step = step
        self._measure = measure
        self._measured: dict[tuple[int, int], Ceiling | None] = {}  # by size, processes: this run's

    def check(self, case: Case, plan: Planned, cpus: tuple[int, ...]) -> float | None:
        """The ceiling in requests per second, None where it is not known. Raises JobError for a
        rate beyond it, and for more answers than memory has room for.
        """
        largest = max(len(text) for group in plan.plan.groups for text in group.requests)
        size, processes = ceiling.rounded_bytes(largest), case.job.processes
        declared_per_s = sum(getattr(entry, "rate_per_s", 0.0) for entry in plan.plan.entries)
        ceiling_per_s = self._given_per_s
        if ceiling_per_s is None:
            found = self._known.find(size, processes, cpus)
            # a busy machine may have had a lower one: before it refuses, it is measured anew
            if found is None or found.rate_per_s < declared_per_s <= ceiling.MOST_RATE:
                found = self._better(found, case, size, processes, cpus)
            ceiling_per_s = None if found is None else found.rate_per_s
        most_per_s = ceiling_per_s or ceiling.MOST_RATE
        duration_s = case.job.duration_s
        most = int(most_per_s * duration_s)
        if declared_per_s > most_per_s:
            raise JobError(
                _too_fast(f"{declared_per_s:,.0f}", ceiling_per_s, size, processes, cpus)
            )
        reply_bytes = _reply_bytes(case, plan)
        free_bytes = available_bytes()
        room = int(min(1e9, MOST_OF_MEMORY * free_bytes / (REQUEST_BYTES + reply_bytes)))
        arrivals = open_loop(
            plan.plan.entries, duration_s=duration_s, seed=case.seed, models=plan.plan.models
        )
        # counted only as far as something follows from it: an hour may have a billion
        count = sum(1 for _ in islice(arrivals, min(most, room) + 1))
        if count > most:
            asked = f"more than {most_per_s:,.0f}"
            raise JobError(_too_fast(asked, ceiling_per_s, size, processes, cpus))
        if count > room:
            raise JobError(
                f"more than {room:,} answers of about {reply_bytes:,.0f} bytes would be kept until "
                f"the end of a measurement, in half of the {free_bytes / 1e9:.1f} GB that this "
                "machine has available. A shorter duration_s, or a lower rate, needs less"
            )
        return ceiling_per_s

    def _better(
        self, known: Ceiling | None, case: Case, size: int, processes: int, cpus: Sequence[int]
    ) -> Ceiling | None:
        """A higher one than is known, measured once in a run, or the one that is known."""
        key = (size, processes)
        if key not in self._measured:
            self._measured[key] = self._found(case, size, processes, cpus)
        found = self._measured[key]
        if found is None or (known is not None and known.rate_per_s >= found.rate_per_s):
            return known
        try:
            self._known.keep(found)
        except OSError as error:
            self._say(f"... which the next run measures again: it cannot be kept: {error}")
        return found

    def _found(self, case: Case, size: int, processes: int, cpus: Sequence[int]) -> Ceiling | None:
        """None where it cannot be known now: each row has the driver's own error all the same."""
        self._say(f"the driver's ceiling for requests of {size:,} bytes is measured ...")
        try:
            found = self._measure(
                request_bytes=size,
                processes=processes,
                server_cpus=case.job.target.cpus if case.job.target.url is None else str(cpus[0]),
                client_cpus=cpus,
                log_dir=self._log_dir,
                on_step=lambda text: self._step(f"ceiling: {text}"),
            )
        except ceiling.TooBusy as error:
            self._say(f"... {error}; rates up to {ceiling.MOST_RATE:,.0f}/s are tried")
            return None
        self._say(
            f"... it is {found.rate_per_s:,.0f}/s, sent within {found.error_p99_ms:.2f} ms (p99)"
        )
        return found


def _reply_bytes(case: Case, plan: Planned) -> float:
    """The most that an answer is expected to have; of outputs that nobody knows, nothing."""
    values = max(
        (
            sum(array.nbytes for array in group.expected[0].values())
            for group in plan.plan.groups
            if group.expected
        ),
        default=0,
    )
    return REPLY_HEAD_BYTES + values * (JSON_FACTOR if case.job.spoken.endswith("json") else 1)


def _too_fast(
    asked: str, ceiling_per_s: float | None, size: int, processes: int, cpus: Sequence[int]
) -> str:
    if ceiling_per_s is None:
        return (
            f"{asked} requests/s are asked for; this driver's ceiling is not known, since others "
            f"are at work on this machine, and more than {ceiling.MOST_RATE:,.0f}/s are not even "
            "tried"
        )
    return (
        f"{asked} requests/s are asked for; with {processes} process(es) on CPU(s) "
        f"{', '.join(map(str, cpus))} this driver keeps its schedule up to {ceiling_per_s:,.0f}/s "
        f"for requests of up to {size:,} bytes (remontoir bench ceiling). More `processes`, on "
        "more cores, send more"
    )


def available_bytes(meminfo: Path = MEMINFO) -> float:
    """Infinity where the kernel does not say."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return math.inf
