"""A fleet of one size, judged by playing: what it makes of the requests.

Owns what a point of a curve says, and the processes that play. It chooses no size.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import NamedTuple

import msgspec

from loadtest.planning.question import Question
from loadtest.results import Group
from loadtest.simulate import run
from loadtest.workloads import Ask
from scheduler.spec import MILLISECOND_NS, SECOND_NS


class Size(NamedTuple):
    """Of a fleet: `pages` are those of each device's cache."""

    devices: int
    pages: int


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet of one size did. Means over the seeds, but `attained` is the lowest of them.

    `busy` is the share of the devices' time in which they executed; `cold` that of the requests
    whose weights had to be loaded first.
    """

    devices: int
    pages: int
    attained: float
    attained_mean: float
    refused: float  # a no, at once or when it had become certain
    late: float
    p50_ms: float | None
    p99_ms: float | None
    busy: float
    cold: float
    loads_per_s: float
    wall_s: float


class Played(msgspec.Struct, frozen=True):
    """One run of one seed, as little of it as a Point needs; it crosses processes."""

    group: Group
    window_s: float
    wall_s: float


Evaluate = Callable[[Sequence[Size]], list[Point]]
Asks = dict[int, list[Ask] | None]  # by seed; None: what the case's own workload draws
OnDone = Callable[[], None]


@contextmanager
def evaluator(
    question: Question, asks: Asks, *, jobs: int, on_done: OnDone | None = None
) -> Iterator[Evaluate]:
    """Plays sizes, `jobs` at a time, each size once; `on_done` hears of every run that ended."""
    known: dict[Size, Point] = {}

    def finish(sizes: Sequence[Size], play: Callable[[list[_Job]], list[Played]]) -> list[Point]:
        new = [size for size in dict.fromkeys(sizes) if size not in known]
        played = play([(size, seed) for size in new for seed in asks])
        for index, size in enumerate(new):
            known[size] = _point(size, played[index * len(asks) : (index + 1) * len(asks)])
        return [known[size] for size in sizes]

    if jobs == 1:
        yield lambda sizes: finish(sizes, lambda todo: _here(question, asks, todo, on_done))
        return
    with ProcessPoolExecutor(
        jobs,
        mp_context=get_context("spawn"),
        initializer=_prepare,
        initargs=(question, asks),
    ) as pool:
        yield lambda sizes: finish(sizes, lambda todo: _in(pool, todo, on_done))


_Job = tuple[Size, int]
_given: tuple[Question, Asks] | None = None  # of a process of the pool: sent once, not per run


def _prepare(question: Question, asks: Asks) -> None:
    global _given
    _given = question, asks


def _job(job: _Job) -> Played:
    assert _given is not None
    question, asks = _given
    return _play(question, asks, job)


def _in(pool: ProcessPoolExecutor, todo: list[_Job], on_done: OnDone | None) -> list[Played]:
    running = {pool.submit(_job, job): index for index, job in enumerate(todo)}
    played: dict[int, Played] = {}
    for done in as_completed(running):
        played[running[done]] = done.result()
        if on_done is not None:
            on_done()
    return [played[index] for index in range(len(todo))]


def _here(question: Question, asks: Asks, todo: list[_Job], on_done: OnDone | None) -> list[Played]:
    played = []
    for job in todo:
        played.append(_play(question, asks, job))
        if on_done is not None:
            on_done()
    return played


def _play(question: Question, asks: Asks, job: _Job) -> Played:
    (devices, pages), seed = job
    case = question.sized(devices=devices, pages=pages, seed=seed)
    begin_s = time.perf_counter()
    played = run(case, asks=asks[seed])
    assert played.summary is not None
    window_s = (played.summary.window_end_ns - played.summary.window_begin_ns) / SECOND_NS
    return Played(played.summary.run, window_s, time.perf_counter() - begin_s)


def _point(size: Size, played: Sequence[Played]) -> Point:
    groups = [one.group for one in played]
    attained = [group.attainment or 0.0 for group in groups]

    def mean(figure: Callable[[Played], float]) -> float:
        return statistics.fmean(map(figure, played))

    def latency(figures: list[float | None]) -> float | None:
        there = [figure for figure in figures if figure is not None]
        return statistics.fmean(there) if there else None

    def busy_of(one: Played) -> float:
        busy_s = (one.group.exec_ms_per_good or 0.0) * one.group.good * MILLISECOND_NS / SECOND_NS
        return busy_s / (one.window_s * size.devices)

    def share(count: Callable[[Group], int]) -> float:
        return mean(lambda one: count(one.group) / max(1, one.group.requests))

    return Point(
        devices=size.devices,
        pages=size.pages,
        attained=min(attained),
        attained_mean=statistics.fmean(attained),
        refused=share(lambda group: group.rejected + group.expired + group.failed),
        late=share(lambda group: group.late),
        p50_ms=latency([group.latency_p50_ms for group in groups]),
        p99_ms=latency([group.latency_p99_ms for group in groups]),
        busy=mean(busy_of),
        cold=share(lambda group: group.cold),
        loads_per_s=mean(lambda one: one.group.loads_per_s or 0.0),
        wall_s=sum(one.wall_s for one in played),
    )
