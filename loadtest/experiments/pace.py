"""How long jobs take, learnt from those that are done, and so how long the others will.

Owns the guess: seconds of wall time for a request, of the same scenario, policy and values if one
was done (another seed), else of the same scenario and policy, and so on.
"""

from collections.abc import Iterable, Iterator

from loadtest.experiments.jobs import Job
from loadtest.workloads import Closed

Key = tuple[object, ...]
FIRST_GUESS_S = 50e-6  # of a request, before anything is known
# Of streams whose rate is not written in the scenario: clients, and what a trace's scale makes.
CLOSED_PER_S, UNKNOWN_PER_S = 5_000.0, 2_000.0


class Pace:
    """Mean wall seconds per request, by ever wider classes of jobs."""

    def __init__(self) -> None:
        self._sums: dict[Key, tuple[float, float]] = {}

    def heard(self, job: Job, wall_s: float) -> None:
        """A job was done in so long."""
        size = _size(job)
        for key in _keys(job):
            seconds, requests = self._sums.get(key, (0.0, 0.0))
            self._sums[key] = (seconds + wall_s, requests + size)

    def seconds_of(self, job: Job) -> float:
        """What it will take, by the narrowest class that is known."""
        for key in _keys(job):
            known = self._sums.get(key)
            if known is not None:
                return known[0] / known[1] * _size(job)
        return FIRST_GUESS_S * _size(job)

    def left_text(self, left: Iterable[Job], num_jobs: int) -> str:
        seconds = sum(self.seconds_of(job) for job in left) / num_jobs
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}:{rest:02d} left"


def _size(job: Job) -> float:
    """About how many requests it is about."""
    rate_per_s = sum(
        CLOSED_PER_S if isinstance(entry, Closed) else getattr(entry, "rate_per_s", UNKNOWN_PER_S)
        for entry in job.case.setup.workload
    )
    found = max(1.0, rate_per_s * job.case.duration_s)
    return min(found, float(job.max_requests)) if job.kind == "bound" else found


def _keys(job: Job) -> Iterator[Key]:
    case = job.case
    values = tuple(sorted((name, str(value)) for name, value in case.values.items()))
    yield (job.kind, case.scenario, case.policy, values)
    yield (job.kind, case.scenario, case.policy)
    yield (job.kind, case.scenario)
    yield (job.kind,)
