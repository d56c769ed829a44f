"""The driver: requests leave when they are scheduled, whatever became of the others.

Owns the timing of a run. Latency counts from the schedule, so a server (or a client) that falls
behind cannot hide it (Tene's "coordinated omission"). Closed loops run beside: their clients'
schedule is the answer before. It reads no reply.
"""

import asyncio
import gc
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple, TypeVar

import uvloop

from loadtest.http1 import ConnectionPool, Shot
from loadtest.workloads import Ask, ClosedLoop
from scheduler.spec import SECOND_NS

# Timers fire up to a millisecond late, so the last stretch is polled. The core is the client's own.
POLL_NS = 1_500_000
# The first requests should not be the ones that find the client's caches cold.
LEAD_NS = 50_000_000
# A server that has refused so many connections in a row, for so long, is gone.
GONE_CONNECTIONS, GONE_NS = 20, 1_000_000_000

_T = TypeVar("_T")
_CANNOT_CONNECT = "cannot connect"


class Load(NamedTuple):
    """What is played against a server. `arrivals` are in time order; `group_of` says whose
    `requests` an ask gets, variants in turn; `before_ns[group]` are samples, in turn, of what a
    client does between its schedule and the send. `start_ns`, of CLOCK_MONOTONIC, is when time 0
    of the arrivals is; soon, if None.
    """

    host: str
    port: int
    arrivals: Iterable[Ask]
    requests: Sequence[Sequence[bytes]]
    group_of: Callable[[Ask], int] = lambda ask: ask.stream
    loops: Mapping[int, ClosedLoop] = {}  # a Mapping: nobody can change it
    starts: Sequence[Ask] = ()
    before_ns: Sequence[Sequence[int]] = ()
    after_ns: Callable[[Shot], int] = lambda _: 0
    connections: int = 64
    give_up_s: float = 2.0
    tls: ssl.SSLContext | None = None
    start_ns: int | None = None


class Played(NamedTuple):
    """Shots in the order of their sends. `stopped` says why not all was played, or nothing."""

    shots: list[Shot]
    start_ns: int
    stopped: str


class Stop:
    """Ends a run before its time, with what there is, from a signal handler of its event loop."""

    def __init__(self) -> None:
        self.why = ""

    def set(self, why: str) -> None:
        self.why = self.why or why


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
    load = Load(
        host="127.0.0.1",
        port=port,
        arrivals=arrivals,
        requests=requests,
        connections=connections,
        give_up_s=give_up_s,
    )
    return run_client(play(load)).shots


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


async def play(load: Load, stop: Stop | None = None) -> Played:
    """Raises OSError where nobody listens at the start."""
    return await _Run(load, stop or Stop()).play()


class _Run:
    """One load while it is played."""

    def __init__(self, load: Load, stop: Stop) -> None:
        self._load = load
        self._stop = stop
        self._pool = ConnectionPool(load.host, load.port, tls=load.tls)
        self._shots: list[Shot] = []
        self._num_done = 0
        self._waiting: deque[Shot] = deque()  # all and only sent ones, until seen answered
        self._give_up_ns = int(load.give_up_s * SECOND_NS)
        self._num_of_group = [0] * len(load.requests)
        # all and only asks that were drawn and not sent: (send_ns, number, ask, group, index)
        self._due: list[tuple[int, int, Ask, int, int]] = []
        self._number = 0
        self._wake = asyncio.Event()
        self._num_unconnected, self._unconnected_ns = 0, 0
        self._start_ns = 0

    async def play(self) -> Played:
        load = self._load
        await self._pool.warm(load.connections)
        self._start_ns = load.start_ns or time.monotonic_ns() + LEAD_NS
        arrivals = iter(load.arrivals)
        upcoming = next(arrivals, None)
        for ask in load.starts:
            self._enter(ask)
        while not self._stop.why:
            # what is drawn later is sent later: a client's own work can only delay a send
            while upcoming is not None and (
                not self._due or self._start_ns + upcoming.at_ns <= self._due[0][0]
            ):
                self._enter(upcoming)
                upcoming = next(arrivals, None)
            if not self._due:
                if upcoming is None and (self._num_done == len(self._shots) or self._is_overdue()):
                    break
                await self._wait(50_000_000)
            else:
                await self._send_next()
            self._give_up_overdue()
        if self._stop.why:  # what was under way is nobody's fault, and no result
            self._shots = [shot for shot in self._shots if shot.done_ns]
        await self._pool.close()
        return Played(self._shots, self._start_ns, self._stop.why)

    def _enter(self, ask: Ask) -> None:
        group = self._load.group_of(ask)
        index = self._num_of_group[group]
        self._num_of_group[group] += 1
        before_ns = self._load.before_ns[group] if self._load.before_ns else (0,)
        send_ns = self._start_ns + ask.at_ns + before_ns[index % len(before_ns)]
        heappush(self._due, (send_ns, self._number, ask, group, index))
        self._number += 1

    async def _send_next(self) -> None:
        """Sends the next one that is due, or comes back earlier if something happened."""
        left_ns = self._due[0][0] - time.monotonic_ns()
        if left_ns > POLL_NS:
            await self._wait(left_ns - POLL_NS)
            return
        if left_ns > 0:
            await asyncio.sleep(0)
            return
        _, _, ask, group, index = heappop(self._due)
        variants = self._load.requests[group]
        shot = Shot(group, index % len(variants), self._start_ns + ask.at_ns)
        shot.turn = index
        if ask.client >= 0:
            shot.ask = ask
        self._shots.append(shot)
        self._waiting.append(shot)
        self._pool.send(shot, variants[shot.variant], self._on_done)
        if self._num_of_group[group] % 8 == 0:
            await asyncio.sleep(0)  # many that are due together: let answers in between

    async def _wait(self, most_ns: int) -> None:
        """Until something is answered that a client waits for, and not for ever."""
        if self._due and not self._load.loops:  # no request depends on an answer
            await asyncio.sleep(most_ns / SECOND_NS)
            return
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), most_ns / SECOND_NS)
        except TimeoutError:
            return

    def _on_done(self, shot: Shot) -> None:
        self._num_done += 1
        self._watch_for_the_end(shot)
        if shot.ask is not None and not self._stop.why:
            answered_ns = shot.done_ns + self._load.after_ns(shot) - self._start_ns
            following = self._load.loops[shot.ask.stream].next_after(shot.ask, answered_ns)
            if following is not None:
                self._enter(following)
        self._wake.set()

    def _watch_for_the_end(self, shot: Shot) -> None:
        """A server that is gone answers nobody: the rest of the run would only say so again."""
        if shot.status or not shot.trouble.startswith(_CANNOT_CONNECT):
            self._num_unconnected = 0
            return
        if not self._num_unconnected:
            self._unconnected_ns = shot.done_ns
        self._num_unconnected += 1
        gone_ns = shot.done_ns - self._unconnected_ns
        if self._num_unconnected >= GONE_CONNECTIONS and gone_ns >= GONE_NS:
            at_s = (self._unconnected_ns - self._start_ns) / SECOND_NS
            self._stop.set(f"the server took no connection from {at_s:.1f} s on: {shot.trouble}")

    def _is_overdue(self) -> bool:
        """Whatever does not even connect by then is not waited for."""
        last_ns = max((shot.at_ns for shot in self._waiting), default=0)
        return time.monotonic_ns() - last_ns > self._give_up_ns + GONE_NS

    def _give_up_overdue(self) -> None:
        now, waiting = time.monotonic_ns(), self._waiting
        while waiting and (waiting[0].done_ns or now - waiting[0].at_ns > self._give_up_ns):
            shot = waiting.popleft()
            if not shot.done_ns:
                shot.trouble = "gave up"
                self._pool.give_up(shot)


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
