"""Baseline: first come, first served, one at a time."""

import msgspec

from scheduler.policies.admission.admit_all import AdmitAll
from scheduler.policies.batching.fifo import FifoBatching
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.lru import LruResidency
from scheduler.policies.schedule_ahead.fixed import FixedScheduleAhead
from scheduler.spec import MILLISECOND_NS


class Fifo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request that arrived first, in a batch of at most `max_batch` rows."""

    max_batch: int = 1
    schedule_ahead_ms: float | None = None

    def build(self) -> Policy:
        ahead_ms = self.schedule_ahead_ms
        return Policy(
            name="fifo",
            admission=AdmitAll(),
            batching=FifoBatching(self.max_batch),
            residency=LruResidency(),
            schedule_ahead=FixedScheduleAhead(
                None if ahead_ms is None else round(ahead_ms * MILLISECOND_NS)
            ),
            queue_order="arrival",
        )
