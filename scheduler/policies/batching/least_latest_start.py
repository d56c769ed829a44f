"""The next Infer for a device: which queue, which requests, how many rows.

Work-conserving: a lane that is about to be free gets the most urgent work there is. Urgent means
the least latest feasible start, `deadline - guard - margin` (Clockwork's strategy priority,
Symphony's invalid-after).
"""

from heapq import heappush
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.policies.batching import BatchPlan, Deferred, FinishedBatch
from scheduler.policies.batching.blocking_cap import BlockingCap
from scheduler.policies.batching.building import build
from scheduler.policies.batching.overload_key import OVERLOADED, is_ripe, least_loss
from scheduler.policies.batching.preferred import RANKS, USUAL, build_preferred
from scheduler.policies.batching.turns import first_of, least_latest_start
from scheduler.priority import NORMAL
from scheduler.state import SchedulerState

# Queues compared for one decision.
MAX_CANDIDATES: Final = 8
# The same in overload: whoever loses most, or is owed time, may be none of the most urgent.
MAX_IN_OVERLOAD: Final = 32
# Queues passed over for one decision, since the blocking cap keeps them off the device.
MAX_CAPPED: Final = 512
# Offered load, as a share of the fleet, below which no request is given up for a larger batch.
WORTHLESS: Final = 0.01


class LeastLatestStart:
    """Least latest-feasible-start first, with two looks around, since a batch cannot be preempted.

    Short work with more requests per millisecond goes first where the most urgent can wait for it
    (in overload the urgent head is always a long one at its limit, and short work would be deferred
    into that crowd; but there a batch that can wait and would grow by it does, since fourteen rows
    of a model that is much asked for cost what four batches of one would). And before a long batch
    starts, the shorter queues whose latest start falls inside it are looked at: the batch is cut
    short or waits if that loses nothing; if one side must lose, the side with more requests per
    millisecond wins.
    """

    def __init__(self, *, blocking_cap: bool = True, overload_key: bool = True) -> None:
        self._cap = BlockingCap() if blocking_cap else None
        self._has_overload_key = overload_key

    def next_infer(
        self, state: SchedulerState, device: DeviceMirror, now: int
    ) -> BatchPlan | Deferred | None:
        if device.peek_ready() is None:
            return None
        cap = self._cap
        if cap is not None:
            cap.refresh(state, now)
        start_ns = device.start_at(now)
        margin_ns = state.margin_ns(device)
        # What a request is worth in time of devices: what one takes, the more the idler they are.
        utilisation = state.utilisation
        scarcity = 1 / min(1.0, utilisation) if utilisation > WORTHLESS else 0.0
        owed: list[str] = []
        max_candidates = MAX_CANDIDATES
        is_overloaded = utilisation > OVERLOADED
        if is_overloaded:
            max_candidates = MAX_IN_OVERLOAD
            if state.tenants is not None:
                owed = state.tenants.owed(len(state.devices), now)
        taken: list[tuple[int, int, ModelQueue]] = []
        seen: set[ModelQueue] = set()
        # By rank: of each only what the higher have left.
        plans: list[list[BatchPlan]] = [[] for _ in RANKS]
        num_capped = 0
        unsure: list[tuple[ModelQueue, int | None]] = []
        while len(taken) - num_capped < max_candidates and num_capped < MAX_CAPPED:
            entry = device.pop_ready()
            if entry is None:
                break
            queue = entry[2]
            if queue in seen:
                continue
            seen.add(queue)
            taken.append(entry)
            estimate = device.exec_estimate(queue)
            max_ns: int | None = None
            if cap is not None:
                head = queue.head
                assert head is not None
                max_ns = cap.longest_ns(
                    state.models[queue.model],
                    device,
                    head.deadline_ns - head.arrival_ns,
                    estimate.plan[estimate.max_rows],
                )
                if max_ns is not None and estimate.plan[head.rows] > max_ns:
                    num_capped += 1
                    continue
            unsure.append((queue, max_ns))
            drop_ns = int(state.models[queue.model].demand.ns_per_row * scarcity)
            rank, plan = USUAL, None
            if owed or (is_overloaded and queue.only_class != NORMAL):
                rank, plan = build_preferred(
                    queue,
                    device,
                    start_ns,
                    margin_ns,
                    owed=owed,
                    drop_ns=drop_ns,
                    max_ns=max_ns,
                )
            if plan is None:
                plan = build(queue, device, start_ns, margin_ns, drop_ns=drop_ns, max_ns=max_ns)
            if plan is not None:
                plans[rank].append(plan)
        for entry in taken:
            heappush(device.ready, entry)
        for rank, of_rank in enumerate(plans):
            if of_rank:
                if rank < USUAL:
                    return least_latest_start(of_rank, device, margin_ns)
                return self._choose(state, of_rank, device, margin_ns, rank - USUAL + NORMAL)
        # Nothing is sure to make it, and the lane would idle: try what probably does.
        for queue, max_ns in unsure:
            chosen = build(queue, device, start_ns, margin_ns, max_ns=max_ns, cautious=False)
            if chosen is not None:
                return chosen
        if num_capped:
            assert cap is not None
            return Deferred(cap.until_ns)
        return None

    def _choose(
        self,
        state: SchedulerState,
        plans: list[BatchPlan],
        device: DeviceMirror,
        margin_ns: int,
        lowest: int,
    ) -> BatchPlan:
        chosen = plans[0]
        if len(plans) == 1:
            return chosen
        is_overloaded = self._has_overload_key and state.utilisation > OVERLOADED
        if is_overloaded:
            chosen = least_loss(state, plans, device, margin_ns, lowest=lowest)
        else:
            chosen = least_latest_start(plans, device, margin_ns)
        for plan in plans:
            if plan.queue is not chosen.queue:
                may_grow = is_overloaded and not is_ripe(state, plan)
                chosen = first_of(chosen, plan, margin_ns, device, may_grow=may_grow)
        return chosen

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """Nothing to learn from it: estimates are the device's."""
