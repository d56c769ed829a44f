"""Whose batch goes first when not everybody can be served."""

from typing import Final

from scheduler.device import DeviceMirror
from scheduler.policies.batching import BatchPlan
from scheduler.priority import LOW
from scheduler.state import SchedulerState

# Offered load, as a share of the fleet, above which the key is used. Close to saturation chance
# makes crowds already.
OVERLOADED: Final = 0.9
# A batch is ripe where a row of it takes no more than so many times what the model's rows take in
# the batches that its rate and SLO allow: it would gain little by waiting for more.
RIPE: Final = 1.1
# So many other batches, of the usual length, may come before one that has to wait.
MAX_BEFORE: Final = 8


def least_loss(
    state: SchedulerState,
    plans: list[BatchPlan],
    device: DeviceMirror,
    margin_ns: int,
    *,
    lowest: int = LOW,
) -> BatchPlan:
    """The batch that would lose most requests per millisecond if it waited for the others' turn;
    of equals, the least latest start.

    The others' turn takes as long as all of them together. A batch that still grows, which will be
    worth more later, loses nothing as long as it can wait for some of them. Requests of classes
    below `lowest`, which only fill batches up, are no loss.
    """
    work_ns = 0
    for plan in plans:
        work_ns += plan.expected_ns
    before_ns = MAX_BEFORE * work_ns // len(plans)
    num_devices = len(state.devices)
    best = plans[0]
    best_loss = -1.0
    best_latest_ns = 0
    for plan in plans:
        guard_ns = device.exec_estimate(plan.queue).guard[plan.rows] + margin_ns
        others_ns = work_ns - plan.expected_ns
        done_ns = plan.start_ns + others_ns // num_devices + guard_ns
        latest_ns = plan.requests[0].deadline_ns - guard_ns
        lost = 0
        if latest_ns < plan.start_ns + before_ns // num_devices or is_ripe(state, plan):
            for request in plan.requests:
                if request.deadline_ns >= done_ns:
                    break
                if request.priority <= lowest:
                    lost += request.rows
        loss = lost / plan.expected_ns
        if loss > best_loss or (loss == best_loss and latest_ns < best_latest_ns):
            best, best_loss, best_latest_ns = plan, loss, latest_ns
    return best


def is_ripe(state: SchedulerState, plan: BatchPlan) -> bool:
    """Whether the batch would take little less time per row if it waited for more requests."""
    usual_ns = state.models[plan.queue.model].demand.ns_per_row
    return plan.expected_ns <= RIPE * usual_ns * plan.rows
