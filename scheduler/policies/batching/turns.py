"""Which of several batches goes first, by their latest starts and what waits behind them."""

from typing import Final

from scheduler.device import DeviceMirror
from scheduler.policies.batching import BatchPlan
from scheduler.policies.batching.building import build

# Requests of one queue looked at for how long it can wait.
MAX_BEHIND: Final = 16
# Work is short beside other work that takes this much longer.
SHORTER: Final = 2


def least_latest_start(plans: list[BatchPlan], device: DeviceMirror, margin_ns: int) -> BatchPlan:
    chosen = plans[0]
    least_ns = _latest_start(chosen, device, margin_ns)
    for plan in plans:
        latest_ns = _latest_start(plan, device, margin_ns)
        if latest_ns < least_ns:
            chosen, least_ns = plan, latest_ns
    return chosen


def first_of(
    urgent: BatchPlan, other: BatchPlan, margin_ns: int, device: DeviceMirror, *, may_grow: bool
) -> BatchPlan:
    """Which of two batches goes first, when `other` may not be able to wait for `urgent`.
    `may_grow`: if it can, it should, and be a larger one then.
    """
    is_denser = other.rows * urgent.expected_ns > urgent.rows * other.expected_ns
    if SHORTER * other.expected_ns > urgent.expected_ns or not is_denser:
        return urgent
    can_wait = _latest_start(urgent, device, margin_ns) >= urgent.start_ns + other.expected_ns
    if can_wait and not may_grow:
        return other
    wait_ns = _latest_start_of_all(other, device, margin_ns) - urgent.start_ns
    if urgent.expected_ns <= wait_ns:
        return urgent
    if can_wait or urgent.queue.only_class is None:  # a shorter one may be of a lower class
        return other
    shorter = build(urgent.queue, device, urgent.start_ns, margin_ns, max_ns=wait_ns)
    if shorter is not None and shorter.expected_ns <= wait_ns:
        return shorter
    return other


def _latest_start(plan: BatchPlan, device: DeviceMirror, margin_ns: int) -> int:
    guard_ns = device.exec_estimate(plan.queue).guard[plan.rows]
    return plan.requests[0].deadline_ns - guard_ns - margin_ns


def _latest_start_of_all(plan: BatchPlan, device: DeviceMirror, margin_ns: int) -> int:
    """The same so that those who wait behind the batch in its queue are in time as well."""
    estimate = device.exec_estimate(plan.queue)
    guard_ns = estimate.guard[1] - estimate.plan[1] + margin_ns
    rows = 0
    latest_ns = _latest_start(plan, device, margin_ns)
    for request in plan.queue.run_from(plan.requests[0], MAX_BEHIND):
        rows += request.rows
        latest_ns = min(latest_ns, request.deadline_ns - estimate.time_for(rows) - guard_ns)
    return latest_ns
