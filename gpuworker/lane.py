"""One serial lane of a device: a thread that does accepted work in its windows, one at a time.

It owns the waiting: work is ordered by (earliest, arrival), starts no earlier than its
`earliest_ns`, and is refused once `latest_ns` has passed. It never reorders by choice, retries, or
looks into the work. Only the lane's thread touches the heap; the one thing shared is the inbox.
"""

import heapq
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from scheduler.actions import Code


class Work(Protocol):
    """One accepted action. Every method answers for its own failures and raises only for bugs.

    Exactly one of them reports: `refuse`, `run`, or a `prepare` that returned False.
    """

    @property
    def model(self) -> str: ...

    @property
    def earliest_ns(self) -> int: ...

    @property
    def latest_ns(self) -> int: ...

    @property
    def is_prepared(self) -> bool: ...

    def prepare(self) -> bool:
        """What may be done before the window opens. False: it failed and has been reported."""
        ...

    def run(self) -> None:
        """Do it and report."""
        ...

    def refuse(self, code: Code, message: str) -> None:
        """Report that it was not started."""
        ...


class Flush:
    """Refuse all that waits, with SHUTTING_DOWN; what runs is finished first."""


class Stop:
    """End the lane. Whatever still waits is refused as by Flush."""


Item = Work | Flush | Stop
# Waits this many nanoseconds (None: for ever) for an item; None when there was none.
Receive = Callable[[int | None], Item | None]


class Lane:
    """The lane without its thread: `run` returns when Stop has been received.

    `on_flushed` is told of each Flush once nothing of before it can come out of this lane any more.
    """

    def __init__(
        self,
        *,
        receive: Receive,
        clock: Callable[[], int],
        on_flushed: Callable[[], None] = lambda: None,
    ) -> None:
        self._receive = receive
        self._clock = clock
        self._on_flushed = on_flushed
        # All and only work received and not yet reported: (earliest_ns, arrival, work).
        self._heap: list[tuple[int, int, Work]] = []
        self._num_received = 0
        # (model, since when) of what runs; other threads may read it
        self.running: tuple[str, int] | None = None

    def run(self) -> None:
        wait_ns: int | None = None
        while True:
            item = self._receive(wait_ns)
            if item is None:
                wait_ns = self._advance()
            elif isinstance(item, Stop):
                self._flush()
                return
            else:
                if isinstance(item, Flush):
                    self._flush()
                    self._on_flushed()
                else:
                    heapq.heappush(self._heap, (item.earliest_ns, self._num_received, item))
                    self._num_received += 1
                wait_ns = 0  # see all that has arrived before choosing the first

    def _advance(self) -> int | None:
        """One step with the first in order; returns how long to listen before the next step."""
        if not self._heap:
            return None
        work = self._heap[0][2]
        now = self._clock()
        if now > work.latest_ns:
            heapq.heappop(self._heap)
            work.refuse(
                Code.TOO_LATE,
                f"{work.model}: {(now - work.latest_ns) / 1e6:.3f} ms after its window closed",
            )
            return 0
        if not work.is_prepared:
            if not work.prepare():
                heapq.heappop(self._heap)
            return 0
        if now < work.earliest_ns:
            return work.earliest_ns - now
        heapq.heappop(self._heap)
        self.running = work.model, now
        work.run()
        self.running = None
        return 0

    def _flush(self) -> None:
        while self._heap:
            _, _, work = heapq.heappop(self._heap)
            work.refuse(Code.SHUTTING_DOWN, f"{work.model}: the worker dropped its queue")


class LaneThread:
    """A lane in a thread of its own.

    `on_start` runs first, inside the thread; `on_death` is told of the exception that ended the
    thread, if one did: the lane is then gone and the process should be.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Callable[[], int],
        on_start: Callable[[], None],
        on_death: Callable[[str, BaseException], None],
        on_flushed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        # A queue in C whose timed `get` is both the wait for work and the wait for a window.
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._lane = Lane(receive=self._receive, clock=clock, on_flushed=on_flushed)
        self._on_start = on_start
        self._on_death = on_death
        self._thread = threading.Thread(target=self._main, name=f"lane-{name}", daemon=True)

    @property
    def running(self) -> tuple[str, int] | None:
        """The model that something is done for right now, and since when."""
        return self._lane.running

    def start(self) -> None:
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over work; callable from any thread, never blocks."""
        self._inbox.put(item)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end after Stop; whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            self._on_start()
            self._lane.run()
        except BaseException as error:
            self._on_death(self.name, error)

    def _receive(self, wait_ns: int | None) -> Item | None:
        if wait_ns is None:
            return self._inbox.get()
        if wait_ns <= 0 and self._inbox.empty():  # spares the exception
            return None
        try:
            return self._inbox.get(True, wait_ns / 1e9)
        except queue.Empty:
            return None
