"""Refuse at arrival only what is certain to be late; the rest is refused once it is certain.

A prediction of what will be executed before a request is a guess about arrivals to come: refused by
it, requests are lost that a larger batch, another's refusal or an early end would have saved.
"""

from scheduler.events import Rejected
from scheduler.policies.admission import Admission
from scheduler.policies.admission.deadline_feasible import DeadlineFeasible
from scheduler.request import Request
from scheduler.state import SchedulerState


class CertainlyFeasible(DeadlineFeasible):
    """Late even if it were the next to start, on every device that holds the weights."""

    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected:
        model = state.models[request.model]
        best_ns = 0
        for device in model.holders:
            estimate = device.exec_estimate(request)
            if request.rows <= estimate.max_rows:
                finish_ns = device.start_at(now) + estimate.plan[request.rows]
                if finish_ns + state.margin_ns(device) <= request.deadline_ns and (
                    not best_ns or finish_ns < best_ns
                ):
                    best_ns = finish_ns
        if best_ns and state.num_queued < state.config.max_queued_requests:
            return Admission(best_ns)
        return super().decide(state, request, now)
