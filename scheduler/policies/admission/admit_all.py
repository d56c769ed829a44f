"""Baseline: nobody is refused who could ever be served."""

from scheduler.events import Rejected
from scheduler.policies.admission import Admission
from scheduler.policies.admission.impossible import refuse_impossible
from scheduler.request import Request
from scheduler.state import SchedulerState


class AdmitAll:
    """Whatever a device could ever serve is queued."""

    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected:
        refused = refuse_impossible(state, request)
        return refused if refused is not None else Admission(now)
