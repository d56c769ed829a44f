"""Baseline: earliest deadline first.

Source, model and differences: docs/policies.md.
"""

import msgspec

from scheduler.policies.admission.admit_all import AdmitAll
from scheduler.policies.batching import Rows
from scheduler.policies.batching.edf import EarliestDeadline
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.lru import LruResidency
from scheduler.policies.schedule_ahead.fixed import Milliseconds, fixed_ms


class Edf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The earliest deadline of all models, and as many of its model as that one has time for."""

    # Rows of a batch, at most; None: the largest compiled size.
    max_batch: Rows | None = None
    # How long before a lane is predicted free its next action is sent; None: as configured.
    schedule_ahead_ms: Milliseconds | None = None

    def build(self) -> Policy:
        return Policy(
            name="edf",
            admission=AdmitAll(),
            batching=EarliestDeadline(self.max_batch),
            residency=LruResidency(),
            schedule_ahead=fixed_ms(self.schedule_ahead_ms),
        )
