"""Baseline: Clipper (NSDI '17), adaptive batching without profiles.

Source, model and differences: docs/policies.md.
"""

import msgspec

from scheduler.policies.admission.patience import Drops, patience_of
from scheduler.policies.batching import Rows
from scheduler.policies.batching.aimd import Aimd, Judged
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.lru import LruResidency
from scheduler.policies.schedule_ahead.fixed import Milliseconds, fixed_ms


class Clipper(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First come, first served, in batches whose largest size is found by trying."""

    # What is compared with the SLO to find it: a batch's execution (the paper), or the answers.
    judged: Judged = "execution"
    # When waiting requests are given up: the released source does it once they have expired.
    drops: Drops = "expired"
    # Rows of a batch, at most; None: the largest compiled size.
    max_batch: Rows | None = None
    # How long before a lane is predicted free its next action is sent; None: as configured.
    schedule_ahead_ms: Milliseconds | None = None

    def build(self) -> Policy:
        return Policy(
            name="clipper",
            admission=patience_of(self.drops),
            batching=Aimd(
                judged=self.judged,
                max_batch=self.max_batch,
                passes_over=self.drops == "infeasible",
            ),
            residency=LruResidency(),
            schedule_ahead=fixed_ms(self.schedule_ahead_ms),
            queue_order="arrival",
            waits_to_the_end=self.drops != "infeasible",
        )
