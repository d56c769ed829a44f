"""The open-loop driver: requests leave when they are scheduled, whatever became of the others.

Owns the timing of a run. Latency counts from the schedule, so a server (or a client) that falls
behind cannot hide it (Tene's "coordinated omission"). It reads no reply.
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import uvloop

from loadtest.http1 import ConnectionPool, Shot
from loadtest.workloads import Ask
from scheduler.spec import SECOND_NS

# Timers fire up to a millisecond late, so the last stretch is polled. The core is the client's own.
POLL_NS = 1_500_000
# The first requests should not be the ones that find the client's caches cold.
LEAD_NS = 50_000_000

_T = TypeVar("_T")


def drive(
    *,
    port: int,
    arrivals: Sequence[Ask],
    requests: Sequence[Sequence[bytes]],
    connections: int = 64,
    give_up_s: float = 2.0,
) -> list[Shot]:
    """Play arrivals against a server on this machine; returns what became of each, in order.

    `requests[stream]` are the variants of a stream's request, used in turn. What is not answered
    `give_up_s` after its schedule is hung up on.
    """
    return run_client(_drive(port, arrivals, requests, connections, int(give_up_s * SECOND_NS)))


def in_turn(*, port: int, requests: Sequence[bytes]) -> list[Shot]:
    """One request after the other on one connection: no queue anywhere."""
    return run_client(_in_turn(port, requests))


def run_client(work: Coroutine[Any, Any, _T]) -> _T:
    """Run on uvloop, with the garbage collector out of the way."""
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(work)
    finally:
        gc.enable()


async def _drive(
    port: int,
    arrivals: Sequence[Ask],
    requests: Sequence[Sequence[bytes]],
    connections: int,
    give_up_ns: int,
) -> list[Shot]:
    pool = ConnectionPool("127.0.0.1", port)
    await pool.warm(connections)
    start_ns = time.monotonic_ns() + LEAD_NS
    shots: list[Shot] = []
    num_done = 0
    all_done = asyncio.Event()

    def on_done(_: Shot) -> None:
        nonlocal num_done
        num_done += 1
        if num_done == len(arrivals):
            all_done.set()

    waiting: deque[Shot] = deque()
    sent_of_stream = [0] * len(requests)
    for ask in arrivals:
        at_ns, stream = start_ns + ask.at_ns, ask.stream
        await _sleep_until(at_ns)
        variants = requests[stream]
        variant = sent_of_stream[stream] % len(variants)
        sent_of_stream[stream] += 1
        shot = Shot(stream, variant, at_ns)
        shots.append(shot)
        waiting.append(shot)
        pool.send(shot, variants[variant], on_done)
        _give_up_overdue(pool, waiting, give_up_ns)
    while waiting and num_done < len(arrivals):
        _give_up_overdue(pool, waiting, give_up_ns)
        try:
            await asyncio.wait_for(all_done.wait(), 0.05)
        except TimeoutError:
            continue
    await pool.close()
    return shots


async def _in_turn(port: int, requests: Sequence[bytes]) -> list[Shot]:
    pool = ConnectionPool("127.0.0.1", port)
    shots = []
    for request in requests:
        shot = Shot(0, 0, time.monotonic_ns())
        done: asyncio.Future[Shot] = asyncio.get_running_loop().create_future()
        pool.send(shot, request, done.set_result)
        shots.append(await done)
    await pool.close()
    return shots


async def _sleep_until(at_ns: int) -> None:
    while True:
        left_ns = at_ns - time.monotonic_ns()
        if left_ns <= 0:
            return
        await asyncio.sleep((left_ns - POLL_NS) / SECOND_NS if left_ns > POLL_NS else 0)


def _give_up_overdue(pool: ConnectionPool, waiting: deque[Shot], give_up_ns: int) -> None:
    now = time.monotonic_ns()
    while waiting and (waiting[0].done_ns or now - waiting[0].at_ns > give_up_ns):
        shot = waiting.popleft()
        if not shot.done_ns:
            pool.give_up(shot)
