"""Clockwork's batching as published: full batches of powers of two, in order of arrival.

Each model has, so to speak, one queue per batch size, which holds whoever could still be executed
in a batch of that size; a strategy is a pair of model and batch size, and the one with the least
latest start goes first (OSDI '20, section 5.3; the name is that of its source's scheduler).
"""

from heapq import heapify, heappop, heappush
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan, FinishedBatch
from scheduler.policies.batching.building import take
from scheduler.profile import ExecEstimate
from scheduler.request import Request
from scheduler.spec import MILLISECOND_NS
from scheduler.state import SchedulerState

# Nothing is taken to start earlier than this from now: its controller's loop and the way.
FUTURE_NS: Final = MILLISECOND_NS


class Infer5:
    """`max_batch` rows at most. What may start late is dropped by the worker `schedule_ahead` after
    its planned start.

    Estimates are the guard, close to the worst of the window (Clockwork: the 99th percentile of
    ten, in effect their maximum), for deadlines and for the lane alike. `stands_still`: as
    published, nothing is ever sent where schedule_ahead is not more than FUTURE_NS.
    """

    def __init__(self, *, max_batch: int, stands_still: bool = False) -> None:
        self._max_batch = max_batch
        self._stands_still = stands_still

    def next_infer(self, state: SchedulerState, device: DeviceMirror, now: int) -> BatchPlan | None:
        ahead_ns = device.schedule_ahead_ns
        start_ns = max(device.exec_lane.free_at(now), now + FUTURE_NS)
        if self._stands_still and start_ns >= now + ahead_ns:
            return None
        # (latest start, batch size, order, queues): of each model the most urgent strategy
        strategies: list[tuple[int, int, int, _Queues]] = []
        for order, queue in enumerate(device.ready_queues()):
            queues = _Queues(queue, device.exec_estimate(queue), self._max_batch, start_ns)
            if queues.requests:
                strategies.append((*queues.first_strategy(), order, queues))
        heapify(strategies)
        while strategies:
            _, size, order, queues = heappop(strategies)
            requests = queues.full_batch(size)
            if requests:
                return _plan(device, queues, requests, start_ns, now)
            most_urgent = queues.most_urgent(size - 1)
            if most_urgent is not None:
                heappush(strategies, (*most_urgent, order, queues))
        return None

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it: estimates are the device's."""


class _Queues:
    """The queues of one model, one per batch size, as they stand for a given start.

    Requests of several rows, which Clockwork has not, count as many; one that is larger than a
    batch is a batch by itself.
    """

    def __init__(
        self, queue: ModelQueue, estimate: ExecEstimate, max_batch: int, start_ns: int
    ) -> None:
        self.queue = queue
        self.estimate = estimate
        self.requests = [r for r in queue.in_order() if not r.is_given_up]
        # by size, ascending: index of the first request that a batch of that size can still serve
        self._first = {
            size: self._first_feasible(size, start_ns)
            for size in _powers_of_two(estimate, max_batch)
        }

    def first_strategy(self) -> tuple[int, int]:
        """(latest start, size) by the oldest request, whether or not it can still be served: that
        is found out when its model's turn comes. A model whose oldest has just become too late for
        a large batch so goes first, and its largest batch leaves the oldest behind.
        """
        size = max(self._first)
        return self.requests[0].deadline_ns - self.estimate.guard[size], size

    def most_urgent(self, max_size: int) -> tuple[int, int] | None:
        """(latest start, size) of the strategy that comes first, of sizes up to the given."""
        return min(
            (
                (self.requests[first].deadline_ns - self.estimate.guard[size], size)
                for size, first in self._first.items()
                if size <= max_size and first < len(self.requests)
            ),
            default=None,
        )

    def full_batch(self, min_size: int) -> list[Request]:
        """The first of the largest size that is full, as are all smaller; [] if that is too small.

        That may be larger than the strategy's own size, as published.
        """
        best: list[Request] = []
        for size, first in self._first.items():
            requests = take(self.requests[first:], size)
            if sum(request.rows for request in requests) < size:
                break
            best = requests if size >= min_size else []
        return best

    def older_than(self, request: Request) -> tuple[Request, ...]:
        """Those before it, which no batch will take any more."""
        return tuple(self.requests[: self.requests.index(request)])

    def _first_feasible(self, size: int, start_ns: int) -> int:
        for index, request in enumerate(self.requests):
            if request.deadline_ns >= start_ns + self.estimate.guard[max(size, request.rows)]:
                return index
        return len(self.requests)


def _powers_of_two(estimate: ExecEstimate, max_batch: int) -> list[int]:
    """Those that the engine executes as they are, up to the limit."""
    limit = min(max_batch, estimate.max_rows)
    sizes = [1 << power for power in range(limit.bit_length())]
    return [size for size in sizes if estimate.executed[size] == size]


def _plan(
    device: DeviceMirror, queues: _Queues, requests: list[Request], start_ns: int, now: int
) -> BatchPlan:
    rows = sum(request.rows for request in requests)
    return BatchPlan(
        queues.queue,
        requests,
        rows,
        queues.estimate.executed[rows],
        device.start_at(now),
        queues.estimate.guard[rows],
        start_ns + device.schedule_ahead_ns,
        queues.older_than(requests[0]),
    )
