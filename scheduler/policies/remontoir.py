"""The default: what the product is for."""

import msgspec

from scheduler.policies.admission.certain import CertainlyFeasible
from scheduler.policies.admission.deadline_feasible import DeadlineFeasible
from scheduler.policies.batching.least_latest_start import LeastLatestStart
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.demand import DemandResidency
from scheduler.policies.schedule_ahead.fixed import FixedScheduleAhead
from scheduler.policies.schedule_ahead.gap_tracker import GapTracker
from scheduler.spec import MILLISECOND_NS


class Remontoir(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Earliest deadline first per model, least latest start across models, refusals at arrival."""

    schedule_ahead_ms: float | None = None  # fixed at that; None: found per device

    certain: bool = True
    blocking_cap: bool = True
    overload_key: bool = True

    def build(self) -> Policy:
        ahead_ms = self.schedule_ahead_ms
        return Policy(
            name="remontoir",
            admission=CertainlyFeasible() if self.certain else DeadlineFeasible(),
            batching=LeastLatestStart(
                blocking_cap=self.blocking_cap, overload_key=self.overload_key
            ),
            residency=DemandResidency(),
            schedule_ahead=(
                GapTracker()
                if ahead_ms is None
                else FixedScheduleAhead(round(ahead_ms * MILLISECOND_NS))
            ),
        )
