"""Clipper's adaptive batching: a batch grows while it meets the SLO, else shrinks.

Additive increase, multiplicative decrease of the largest batch (NSDI '17, section 4.3): one row
more after a full batch in time, a tenth less after one that was not.
"""

from typing import Literal

from scheduler.device import DeviceMirror
from scheduler.policies.batching import BatchPlan, FinishedBatch
from scheduler.policies.batching.fifo import first_of_all
from scheduler.state import SchedulerState

INCREASE = 1.0
DECREASE = 0.9
# Limits kept, one per model and worker; workers come and go, so there is a bound.
MAX_LIMITS = 65_536

# What is compared with the SLO: the batch's execution (the paper's "latency to process a batch"),
# or the answer of each of its requests, queueing included.
Judged = Literal["execution", "answer"]


class Aimd:
    """A limit per model and device, found without a profile. First come, first served.

    `passes_over`: see fifo.first_of_all.
    """

    def __init__(
        self,
        *,
        judged: Judged = "execution",
        max_batch: int | None = None,
        passes_over: bool = False,
        max_limits: int = MAX_LIMITS,
    ) -> None:
        self._judged = judged
        self._max_batch = max_batch
        self._passes_over = passes_over
        self._max_limits = max_limits
        # by (worker id, model); the one that changed longest ago first
        self._limits: dict[tuple[str, str], float] = {}

    def next_infer(self, state: SchedulerState, device: DeviceMirror, now: int) -> BatchPlan | None:
        return first_of_all(state, device, now, self.limit, passes_over=self._passes_over)

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        key = (device.worker_id, batch.model)
        limit = self._limits.pop(key, 1.0)
        if not self._is_in_time(batch):
            limit = max(1.0, limit * DECREASE)
        elif batch.rows >= int(limit):  # smaller ones say nothing of a larger limit
            most = device.estimates(batch.model).first.max_rows
            limit = min(limit + INCREASE, self._max_batch or most, most)
        self._limits[key] = limit
        if len(self._limits) > self._max_limits:
            del self._limits[next(iter(self._limits))]

    def limit(self, device: DeviceMirror, model: str) -> int:
        """Rows of the next batch, at most."""
        return int(self._limits.get((device.worker_id, model), 1.0))

    def _is_in_time(self, batch: FinishedBatch) -> bool:
        if self._judged == "answer":
            return batch.num_in_time == len(batch.requests)
        return all(
            batch.duration_ns <= request.client_deadline_ns - request.arrival_ns
            for request in batch.requests
        )
