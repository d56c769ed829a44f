"""Baseline: the dynamic batcher of the Triton Inference Server.

Source, model and differences: docs/policies.md.
"""

from typing import Annotated

import msgspec

from scheduler.policies.admission.patience import NEVER_NS, Patience
from scheduler.policies.batching.queue_delay import QueueDelay
from scheduler.policies.protocols import Policy
from scheduler.policies.residency.lru import LruResidency
from scheduler.policies.schedule_ahead.fixed import Milliseconds, fixed_ms

NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Triton(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options as in its model configuration, 0 and their defaults included; it knows no SLO."""

    # How long a batch may wait for more requests, once its first has arrived.
    max_queue_delay_us: NotNegative = 0
    # A batch that need not wait for more, in rows; 0: the largest.
    preferred_batch_size: NotNegative = 0
    # Rows of a batch, at most; 0: the largest compiled size.
    max_batch_size: NotNegative = 0
    # Waiting requests are rejected after so long; 0: never (its timeout_action REJECT).
    default_timeout_us: NotNegative = 0
    # How long before a lane is predicted free its next action is sent; None: as configured.
    schedule_ahead_ms: Milliseconds | None = None

    def build(self) -> Policy:
        return Policy(
            name="triton",
            admission=Patience(self.default_timeout_us * 1_000 or NEVER_NS),
            batching=QueueDelay(
                delay_ns=self.max_queue_delay_us * 1_000,
                preferred=self.preferred_batch_size or None,
                max_batch=self.max_batch_size or None,
            ),
            residency=LruResidency(),
            schedule_ahead=fixed_ms(self.schedule_ahead_ms),
            queue_order="arrival",
            waits_to_the_end=True,
        )
