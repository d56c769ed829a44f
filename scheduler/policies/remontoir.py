"""The default: what the product is for."""

import msgspec

from scheduler.policies.admission.deadline_feasible import DeadlineFeasible
from scheduler.policies.batching.least_latest_start import LeastLatestStart
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.demand import DemandResidency
from scheduler.policies.schedule_ahead.fixed import FixedScheduleAhead, Milliseconds
from scheduler.policies.schedule_ahead.gap_tracker import GapTracker
from scheduler.spec import MILLISECOND_NS


class Remontoir(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Earliest deadline first per model, least latest start across models, refusals at arrival."""

    schedule_ahead_ms: Milliseconds | None = None  # fixed at that; None: found per device
    blocking_cap: bool = True  # keep devices free of batches longer than the tight SLOs can wait
    overload_key: bool = True  # in overload whoever would lose most goes first

    def build(self) -> Policy:
        ahead_ms = self.schedule_ahead_ms
        return Policy(
            name="remontoir",
            admission=DeadlineFeasible(),
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
