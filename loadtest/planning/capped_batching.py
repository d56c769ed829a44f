"""A policy's batches, none larger than is allowed just now: what a batching policy acts on."""

from scheduler.device import DeviceMirror
from scheduler.policies import BatchingPolicy
from scheduler.policies.batching import BatchPlan, Deferred, FinishedBatch
from scheduler.policies.batching.building import take
from scheduler.state import SchedulerState


class CappedBatching:
    """`max_batch` may be set at any time; None: as the policy has it."""

    def __init__(self, inner: BatchingPolicy) -> None:
        self.max_batch: int | None = None
        self._inner = inner

    def next_infer(
        self, state: SchedulerState, device: DeviceMirror, now: int
    ) -> BatchPlan | Deferred | None:
        plan = self._inner.next_infer(state, device, now)
        if not isinstance(plan, BatchPlan) or self.max_batch is None or plan.rows <= self.max_batch:
            return plan
        requests = take(plan.requests, self.max_batch) or plan.requests[:1]
        rows = sum(request.rows for request in requests)
        estimate = device.exec_estimate(plan.queue)
        return plan._replace(
            requests=requests,
            rows=rows,
            executed_rows=estimate.executed[rows],
            expected_ns=estimate.plan[rows],
            given_up=(),  # they were to make room for the larger batch
        )

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        self._inner.on_finished(device, batch, now)
