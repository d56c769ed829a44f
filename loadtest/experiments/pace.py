"""How long jobs take, learnt from those that are done, and so how long the others will.

Owns the guess: seconds of wall time for a second of virtual time, of the same scenario, policy and
values if one was done (another seed), else of the same scenario and policy, and so on.
"""

from collections.abc import Iterable, Iterator

from loadtest.experiments.jobs import Job

Key = tuple[object, ...]
FIRST_GUESS = 0.5  # wall seconds per virtual second, before anything is known


class Pace:
    """Mean wall seconds per virtual second, by ever wider classes of jobs."""

    def __init__(self) -> None:
        self._sums: dict[Key, tuple[float, int]] = {}

    def heard(self, job: Job, wall_s: float) -> None:
        """A job was done in so long."""
        per_s = wall_s / job.case.duration_s
        for key in _keys(job):
            total, count = self._sums.get(key, (0.0, 0))
            self._sums[key] = (total + per_s, count + 1)

    def seconds_of(self, job: Job) -> float:
        """What it will take, by the narrowest class that is known."""
        for key in _keys(job):
            known = self._sums.get(key)
            if known is not None:
                return known[0] / known[1] * job.case.duration_s
        return FIRST_GUESS * job.case.duration_s

    def left_text(self, left: Iterable[Job], num_jobs: int) -> str:
        seconds = sum(self.seconds_of(job) for job in left) / num_jobs
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}:{rest:02d} left"


def _keys(job: Job) -> Iterator[Key]:
    case = job.case
    values = tuple(sorted((name, str(value)) for name, value in case.values.items()))
    yield (job.kind, case.scenario, case.policy, values)
    yield (job.kind, case.scenario, case.policy)
    yield (job.kind, case.scenario)
    yield (job.kind,)
    yield ()
