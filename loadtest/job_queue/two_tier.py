"""Two-tier scheduling of benchmark jobs (InferBench, section 4.3.2, algorithm 1): decisions only.

Tier 1, when a job is submitted: which follower. Tier 2, when a follower is free: which of its jobs.
Both are functions of values, so the leader and the simulation decide alike.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

# A job that has waited for so many times its own length, and at least so long, goes first: under
# shortest job first alone a long job waits as long as short ones keep coming.
PATIENCE = 20.0
LEAST_PATIENCE_S = 1800.0


class Placement(StrEnum):
    LEAST_BACKLOG = "least-backlog"
    ROUND_ROBIN = "round-robin"


class Order(StrEnum):
    SHORTEST_FIRST = "shortest-first"
    FIRST_COME = "first-come"


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A job that nobody runs yet, or again. `estimated_s` is how long it is expected to run."""

    job_id: str
    number: int  # in order of submission
    submitted_s: float
    estimated_s: float
    follower: str | None = None


class Follower(msgspec.Struct, frozen=True, kw_only=True):
    """`backlog_s`: what its waiting jobs, and what is left of the one it runs, are expected to
    take. A host that somebody else uses is not idle, and gets nothing new while others are.
    """

    name: str
    backlog_s: float
    is_idle_host: bool = True


def place(followers: Sequence[Follower], placement: Placement, num_placed: int) -> str | None:
    """Tier 1: the follower of the next job, or None if there is none. `num_placed` jobs went
    before, which is all that round robin needs to know.
    """
    if not followers:
        return None
    if placement is Placement.ROUND_ROBIN:
        return sorted(follower.name for follower in followers)[num_placed % len(followers)]
    idle = [follower for follower in followers if follower.is_idle_host]
    return min(idle or followers, key=lambda follower: (follower.backlog_s, follower.name)).name


def choose(waiting: Sequence[Waiting], order: Order, now_s: float) -> Waiting | None:
    """Tier 2: which of a follower's waiting jobs is next."""
    if not waiting:
        return None
    if order is Order.FIRST_COME:
        return min(waiting, key=lambda job: job.number)
    overdue = [job for job in waiting if now_s - job.submitted_s > patience_s(job.estimated_s)]
    if overdue:
        return min(overdue, key=lambda job: job.number)
    return min(waiting, key=lambda job: (job.estimated_s, job.number))


def patience_s(estimated_s: float) -> float:
    """After so long a job no longer lets shorter ones pass."""
    return max(LEAST_PATIENCE_S, PATIENCE * estimated_s)


def steal(queues: Mapping[str, Sequence[Waiting]], order: Order, now_s: float) -> Waiting | None:
    """For a follower that has nothing to do: a job of the queue that would last longest."""
    longest = max(
        (queue for queue in queues.values() if queue),
        key=lambda queue: (sum(job.estimated_s for job in queue), queue[0].job_id),
        default=(),
    )
    return choose(longest, order, now_s)
