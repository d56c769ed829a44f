"""One process of the driver: it gets a plan, plays it at the agreed instant, gives figures back.

Owns the process: its cores, its files' limit, how it is told to start and to stop. Requests are
made before and replies are read after, so that a run has the core to itself.
"""

import contextlib
import os
import resource
import signal
import ssl
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from multiprocessing.connection import Connection
from typing import NamedTuple

from loadtest.driver.client_stages import Stages
from loadtest.driver.figures import Part, part_of
from loadtest.driver.inputs import Arrays
from loadtest.driver.job_target import Spoken
from loadtest.driver.protocols import reader
from loadtest.http1 import Shot
from loadtest.openloop import Load, Played, Stop, play, run_client
from loadtest.processes import end_with_parent
from loadtest.workloads import Ask, ClosedLoop, WorkloadEntry, closed_loops, open_loop

# Between the word to start and the first request: processes hear it at different times.
START_NS = 100_000_000


class Group(NamedTuple):
    """Requests that differ in their inputs only: those of one entry, model and SLO."""

    entry: int
    model: str
    slo_ns: int
    requests: list[bytes]
    expected: list[Arrays]


class Plan(NamedTuple):
    """All that a process needs; `part` of `parts` processes that share the workload."""

    host: str
    port: int
    is_tls: bool
    target: Spoken
    entries: tuple[WorkloadEntry, ...]
    models: tuple[str, ...]
    groups: list[Group]
    stages: Stages
    duration_s: float
    warm_up_s: float
    give_up_s: float
    connections: int
    seed: int
    cpus: tuple[int, ...]
    part: int = 0
    parts: int = 1


class Outcome(NamedTuple):
    """`parts[i]` are the figures of group i. `played_s` is how long there was load."""

    parts: list[Part]
    played_s: float
    stopped: str


class Failed(NamedTuple):
    """The process could not do its work; the message says why."""

    message: str


def shoot(plan: Plan, pipe: Connection) -> None:
    """The process' main function: "ready" goes out, an instant of CLOCK_MONOTONIC comes in, an
    Outcome or Failed goes out.
    """
    stop = Stop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    signal.signal(signal.SIGTERM, lambda *_: stop.set("stopped"))
    end_with_parent(signal.SIGTERM)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, plan.cpus)
    _allow_many_files()
    try:
        if plan.warm_up_s > 0:
            run_client(play(_load(plan, plan.warm_up_s, seed=-1 - plan.seed), stop))
        load = _load(plan, plan.duration_s, seed=plan.seed)
        pipe.send("ready")
        load = load._replace(start_ns=pipe.recv())
        pipe.send(_outcome(plan, run_client(play(load, stop))))
    except OSError as error:
        name = f"{plan.host}:{plan.port}"
        with contextlib.suppress(OSError):  # whoever started us is gone, too
            pipe.send(Failed(f"{name}: {error.strerror or error}"))
    except EOFError:
        return  # whoever started us is gone


def start_soon() -> int:
    """The instant at which all processes are to start."""
    return time.monotonic_ns() + START_NS


def groups_index(groups: list[Group]) -> dict[tuple[int, str, int], int]:
    return {(group.entry, group.model, group.slo_ns): i for i, group in enumerate(groups)}


def _load(plan: Plan, duration_s: float, *, seed: int) -> Load:
    index = groups_index(plan.groups)
    stages = plan.stages
    loops = closed_loops(plan.entries, duration_s=duration_s, seed=seed, models=plan.models)
    arrivals = open_loop(plan.entries, duration_s=duration_s, seed=seed, models=plan.models)
    befores = [stages.before(len(group.requests[0])) for group in plan.groups]
    return Load(
        host=plan.host,
        port=plan.port,
        arrivals=_own(plan, arrivals),
        requests=[group.requests for group in plan.groups],
        group_of=lambda ask: index[ask.stream, ask.model, ask.slo_ns],
        loops=loops,
        starts=list(_starts(plan, loops)),
        before_ns=[[sum(before.values()) for before in of_group] for of_group in befores],
        after_ns=lambda shot: sum(stages.after(len(shot.body), shot.turn).values()),
        connections=max(1, plan.connections // plan.parts),
        give_up_s=plan.give_up_s,
        tls=ssl.create_default_context() if plan.is_tls else None,
    )


def _own(plan: Plan, arrivals: Iterator[Ask]) -> Iterator[Ask]:
    return arrivals if plan.parts == 1 else islice(arrivals, plan.part, None, plan.parts)


def _starts(plan: Plan, loops: Mapping[int, ClosedLoop]) -> Iterator[Ask]:
    for loop in loops.values():
        for ask in loop.starts():
            if ask.client % plan.parts == plan.part:
                yield ask


def _outcome(plan: Plan, played: Played) -> Outcome:
    of_group: list[list[Shot]] = [[] for _ in plan.groups]
    for shot in played.shots:
        of_group[shot.stream].append(shot)
    read = reader(plan.target)
    parts = []
    for group, shots in zip(plan.groups, of_group, strict=True):
        befores = plan.stages.before(len(group.requests[0]))
        parts.append(
            part_of(
                shots,
                slo_ns=group.slo_ns,
                read=read,
                expected=group.expected,
                before_ns=lambda shot, of_group=befores: of_group[shot.turn % len(of_group)],  # type: ignore[misc]
                after_ns=lambda shot: plan.stages.after(len(shot.body), shot.turn),
            )
        )
    last_ns = max((shot.at_ns for shot in played.shots), default=played.start_ns)
    played_s = plan.duration_s if not played.stopped else (last_ns - played.start_ns) / 1e9
    return Outcome(parts, max(played_s, 1e-3), played.stopped)


def _allow_many_files() -> None:
    """A server that answers nobody has a connection open for every request of `give_up_s`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
