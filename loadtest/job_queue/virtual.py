"""The queue of benchmark jobs in virtual time: jobs arrive, followers run one at a time.

Owns the clock and who runs what; every decision is two_tier.py's, as in the leader.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from loadtest.job_queue.two_tier import (
    Follower,
    Order,
    Placement,
    Waiting,
    choose,
    place,
    steal,
)


class PlayedJob(NamedTuple):
    """`estimated_s` is what the leader believes; `runs_s` what it takes."""

    submitted_s: float
    runs_s: float
    estimated_s: float


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """`steals`: a follower with nothing to do takes a job from the longest queue."""

    placement: Placement = Placement.LEAST_BACKLOG
    order: Order = Order.SHORTEST_FIRST
    steals: bool = False

    @property
    def name(self) -> str:
        return f"{self.placement} + {self.order}" + " + stealing" * self.steals


class Playback(NamedTuple):
    """Seconds from submission to end, by job."""

    completion_s: tuple[float, ...]

    @property
    def mean_s(self) -> float:
        return sum(self.completion_s) / len(self.completion_s)


class _Host:
    """One follower: what waits for it, and what it runs until when."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: list[Waiting] = []
        self.running: Waiting | None = None
        self.began_s = 0.0

    def backlog_s(self, now_s: float) -> float:
        left_s = 0.0
        if self.running is not None:
            left_s = max(0.0, self.running.estimated_s - (now_s - self.began_s))
        return left_s + sum(job.estimated_s for job in self.waiting)


def play(jobs: Sequence[PlayedJob], *, followers: int, rules: Rules) -> Playback:
    """Run all jobs to their end. `jobs` are in order of submission."""
    hosts = {f"f{index:03}": _Host(f"f{index:03}") for index in range(followers)}
    ended_s = [0.0] * len(jobs)
    events: list[tuple[float, int, str, int]] = [
        (job.submitted_s, 1, "", number) for number, job in enumerate(jobs)
    ]  # at the same instant, ends (0) come before submissions (1)
    heapq.heapify(events)

    def start_next(host: _Host, now_s: float) -> None:
        job = choose(host.waiting, rules.order, now_s)
        if job is None and rules.steals:
            job = steal({h.name: h.waiting for h in hosts.values()}, rules.order, now_s)
        if job is None:
            return
        owner = hosts[job.follower or host.name]
        owner.waiting.remove(job)
        host.running, host.began_s = job, now_s
        end_s = now_s + jobs[job.number].runs_s
        heapq.heappush(events, (end_s, 0, host.name, job.number))

    while events:
        now_s, kind, name, number = heapq.heappop(events)
        if kind == 0:
            ended_s[number] = now_s
            hosts[name].running = None
            start_next(hosts[name], now_s)
            continue
        found = place(
            [Follower(name=h.name, backlog_s=h.backlog_s(now_s)) for h in hosts.values()],
            rules.placement,
            number,
        )
        assert found is not None  # there is at least one follower
        host = hosts[found]
        host.waiting.append(
            Waiting(
                job_id=str(number),
                number=number,
                submitted_s=now_s,
                estimated_s=jobs[number].estimated_s,
                follower=found,
            )
        )
        if host.running is None:
            start_next(host, now_s)
        elif rules.steals:
            for other in hosts.values():
                if other.running is None:
                    start_next(other, now_s)
                    break
    return Playback(tuple(end - job.submitted_s for end, job in zip(ended_s, jobs, strict=True)))
