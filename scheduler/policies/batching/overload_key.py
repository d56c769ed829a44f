"""Whose batch goes first when not everybody can be served."""

from typing import Final

from scheduler.device import DeviceMirror
from scheduler.policies.batching import BatchPlan

# Offered load, as a share of the fleet, above which the key is used. Close to saturation chance
# makes crowds already.
OVERLOADED: Final = 0.9


def least_loss(
    plans: list[BatchPlan], device: DeviceMirror, num_devices: int, margin_ns: int
) -> BatchPlan:
    """The batch that would lose most requests per millisecond if it waited for the others' turn;
    of equals, the least latest start.
    """
    work_ns = 0
    for plan in plans:
        work_ns += plan.expected_ns
    best = plans[0]
    best_loss = -1.0
    best_latest_ns = 0
    for plan in plans:
        guard_ns = device.exec_estimate(plan.queue).guard[plan.rows] + margin_ns
        done_ns = plan.start_ns + (work_ns - plan.expected_ns) // num_devices + guard_ns
        lost = 0
        for request in plan.requests:
            if request.deadline_ns >= done_ns:
                break
            lost += request.rows
        loss = lost / plan.expected_ns
        latest_ns = plan.requests[0].deadline_ns - guard_ns
        if loss > best_loss or (loss == best_loss and latest_ns < best_latest_ns):
            best, best_loss, best_latest_ns = plan, loss, latest_ns
    return best
