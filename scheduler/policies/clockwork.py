"""Baseline: Clockwork (OSDI '20), its scheduler INFER5 as published.

Source, model and differences: docs/policies.md.
"""

import msgspec

from scheduler.policies.admission.internal_deadline import FLOOR_NS, InternalDeadline
from scheduler.policies.batching import Rows
from scheduler.policies.batching.infer5 import Infer5
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.load_tracker import LoadTracker
from scheduler.policies.schedule_ahead.fixed import FixedScheduleAhead, Milliseconds
from scheduler.spec import MILLISECOND_NS

# schedule_ahead of both lanes bounds what is outstanding; nothing else does.
NO_LIMIT = 1_000


class Clockwork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The flags put back, one by one, what went wrong in the published source."""

    # Of both lanes, and the worker's drop window: the source's default.
    schedule_ahead_ms: Milliseconds = 10
    # Aimed at so long before the client's deadline: the source's buffer.
    margin_ms: Milliseconds = 5
    max_batch: Rows = 16
    # Capacity of the load tracker: the source takes its default SLO.
    default_slo_ms: Milliseconds = 100
    deadline_floor: bool = False  # deadlines are taken as no earlier than schedule_ahead + 5 ms
    late_refusal: bool = False  # nobody is refused before the internal deadline has passed
    stands_still: bool = False  # with schedule_ahead of 1 ms or less, nothing is ever sent
    loads_never_stop: bool = False  # a model with demand is loaded onto ever more devices
    load_demand_never_expires: bool = False  # LOADs for requests that they can no longer help

    def build(self) -> Policy:
        ahead_ns = round(self.schedule_ahead_ms * MILLISECOND_NS)
        tracker = LoadTracker(
            capacity_ns=round(self.default_slo_ms * MILLISECOND_NS),
            never_stops=self.loads_never_stop,
            never_expires=self.load_demand_never_expires,
        )
        return Policy(
            name="clockwork",
            admission=InternalDeadline(
                tracker=tracker,
                margin_ns=round(self.margin_ms * MILLISECOND_NS),
                floor_ns=ahead_ns + FLOOR_NS if self.deadline_floor else None,
            ),
            batching=Infer5(max_batch=self.max_batch, stands_still=self.stands_still),
            residency=tracker,
            schedule_ahead=FixedScheduleAhead(ahead_ns),
            queue_order="arrival",
            max_outstanding_infers=NO_LIMIT,
            waits_to_the_end=self.late_refusal,
        )
