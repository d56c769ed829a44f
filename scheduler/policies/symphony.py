"""Baseline: Symphony (arXiv 2308.07470), deferred batching.

Source, model and differences: docs/policies.md.
"""

from typing import Annotated

import msgspec

from scheduler.policies.admission.admit_all import AdmitAll
from scheduler.policies.batching.deferred import DeferredBatching
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.lru import LruResidency
from scheduler.policies.schedule_ahead.fixed import Milliseconds, fixed_ms


class Symphony(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A batch starts when waiting longer could not let one more request in."""

    # The n of the target batch, the largest b with l(b) * (1 + 1/n) <= SLO; the source measures it.
    gpus_per_model: Annotated[float, msgspec.Meta(gt=0)] = 1
    # How long before a lane is predicted free its next action is sent; None: as configured.
    schedule_ahead_ms: Milliseconds | None = None

    def build(self) -> Policy:
        return Policy(
            name="symphony",
            admission=AdmitAll(),
            batching=DeferredBatching(gpus_per_model=self.gpus_per_model),
            residency=LruResidency(),
            schedule_ahead=fixed_ms(self.schedule_ahead_ms),
        )
