"""Baseline: first come, first served, one at a time.

Source, model and differences: docs/policies.md.
"""

import msgspec

from scheduler.policies.admission.patience import Drops, patience_of
from scheduler.policies.batching import Rows
from scheduler.policies.batching.fifo import FifoBatching
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.lru import LruResidency
from scheduler.policies.schedule_ahead.fixed import Milliseconds, fixed_ms


class Fifo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request that arrived first, in a batch of at most `max_batch` rows."""

    max_batch: Rows = 1
    # When waiting requests are given up.
    drops: Drops = "infeasible"
    # How long before a lane is predicted free its next action is sent; None: as configured.
    schedule_ahead_ms: Milliseconds | None = None

    def build(self) -> Policy:
        return Policy(
            name="fifo",
            admission=patience_of(self.drops),
            batching=FifoBatching(self.max_batch, passes_over=self.drops == "infeasible"),
            residency=LruResidency(),
            schedule_ahead=fixed_ms(self.schedule_ahead_ms),
            queue_order="arrival",
            waits_to_the_end=self.drops != "infeasible",
        )
