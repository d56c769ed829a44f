"""For systems that know no deadlines: how long a request may wait, and what becomes of it then."""

from typing import Literal

from scheduler.events import Rejected
from scheduler.policies.admission import Admission
from scheduler.policies.admission.impossible import refuse_impossible
from scheduler.request import Request
from scheduler.spec import SECOND_NS
from scheduler.state import SchedulerState

# When waiting requests are given up: once they could not be executed in time any more; once their
# deadline has passed (as Clipper's released source does); never.
Drops = Literal["infeasible", "expired", "never"]

# "Never", for a request: a bound so that nobody waits for ever where no device comes back.
NEVER_NS = 3_600 * SECOND_NS


class Patience:
    """Everyone is let in, and may wait so long, whatever the SLO; None: as long as the SLO says."""

    def __init__(self, patience_ns: int | None = None) -> None:
        self._patience_ns = patience_ns

    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected:
        refused = refuse_impossible(state, request)
        if refused is not None:
            return refused
        if self._patience_ns is None:
            return Admission(now)
        return Admission(now, deadline_ns=request.arrival_ns + self._patience_ns)


def patience_of(drops: Drops) -> Patience:
    """The same for a way to drop; "expired" needs Policy.waits_to_the_end as well."""
    return Patience(NEVER_NS if drops == "never" else None)
