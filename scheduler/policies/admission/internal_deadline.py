"""Clockwork's admission: everyone, with a deadline some milliseconds before the client's.

A request is worth nothing late, so the scheduler aims early. Whether another copy of the weights is
due is noted here as well, where demand rises.
"""

from typing import Final

from scheduler.events import Rejected
from scheduler.policies.admission import Admission
from scheduler.policies.admission.impossible import refuse_impossible
from scheduler.policies.residency.load_tracker import LoadTracker
from scheduler.request import Request
from scheduler.spec import MILLISECOND_NS
from scheduler.state import SchedulerState

# Of the published floor: the deadline is never taken as earlier than schedule_ahead and this.
FLOOR_NS: Final = 5 * MILLISECOND_NS


class InternalDeadline:
    """Plan with `SLO - margin`, or with the SLO where that is not even the margin.

    `floor_ns` is the least SLO that is planned with (the published clamp); None: no floor.
    `tracker` says when those who hold the weights cannot keep up.
    """

    def __init__(
        self, *, tracker: LoadTracker, margin_ns: int, floor_ns: int | None = None
    ) -> None:
        self._margin_ns = margin_ns
        self._floor_ns = floor_ns
        self._tracker = tracker

    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected:
        refused = refuse_impossible(state, request)
        if refused is not None:
            return refused
        slo_ns = request.client_deadline_ns - request.arrival_ns
        if slo_ns > self._margin_ns:
            slo_ns -= self._margin_ns
        if self._floor_ns is not None:
            slo_ns = max(slo_ns, self._floor_ns)
        wants_replica = self._tracker.wants_replica(state, request)
        return Admission(now, wants_replica, request.arrival_ns + slo_ns)
