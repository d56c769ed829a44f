"""Baseline: Nexus (SOSP '19), window dropping at a fixed batch.

Source, model and differences: docs/policies.md.
"""

import msgspec

from scheduler.policies.admission.admit_all import AdmitAll
from scheduler.policies.batching.window_drop import WindowDrop
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.lru import LruResidency
from scheduler.policies.schedule_ahead.fixed import Milliseconds, fixed_ms


class Nexus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The models in turn, each in batches of a fixed size; heads in its way are dropped."""

    # How long before a lane is predicted free its next action is sent; None: as configured.
    schedule_ahead_ms: Milliseconds | None = None

    def build(self) -> Policy:
        return Policy(
            name="nexus",
            admission=AdmitAll(),
            batching=WindowDrop(),
            residency=LruResidency(),
            schedule_ahead=fixed_ms(self.schedule_ahead_ms),
        )
