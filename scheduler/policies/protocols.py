"""The seams of the scheduler, and the named set of strategies that fills them.

A strategy reads the state and returns a decision; it changes nothing but what it keeps itself.
`scheduler.Scheduler` applies what is decided and asks again until the answer is None. Strategies
hold state of one scheduler (batch sizes learnt, deficits), so a Policy is built per scheduler.
"""

from typing import Literal, NamedTuple, Protocol

from scheduler.device import DeviceMirror
from scheduler.events import Rejected
from scheduler.policies.admission import Admission
from scheduler.policies.batching import BatchPlan, Deferred, FinishedBatch
from scheduler.policies.residency import LoadPlan
from scheduler.request import Request
from scheduler.state import ModelState, SchedulerState


class AdmissionPolicy(Protocol):
    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected:
        """Let the request in or refuse it. Asked at arrival, and again when its worker was lost."""


class BatchingPolicy(Protocol):
    def next_infer(
        self, state: SchedulerState, device: DeviceMirror, now: int
    ) -> BatchPlan | Deferred | None:
        """The next batch for a device whose lane is about to be free; None where there is none."""

    def on_finished(self, device: DeviceMirror, batch: FinishedBatch, now: int) -> None:
        """A batch of this policy was executed there."""


class ResidencyPolicy(Protocol):
    is_speculative: bool
    """Whether it may want a LOAD that no request waits for, so that it is asked without that too,
    now and then.
    """

    def next_load(self, state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
        """The next LOAD for a device whose load lane is about to be free, with what must go."""

    def copy_of(
        self, state: SchedulerState, device: DeviceMirror, model: ModelState, now: int
    ) -> LoadPlan | None:
        """A further copy of a model that waits elsewhere, for a device with nothing to do. Asked
        only if `is_speculative`.
        """


class ScheduleAhead(Protocol):
    def first_ns(self, configured_ns: int) -> int:
        """`schedule_ahead` of a device that has just joined."""

    def on_held(self, device: DeviceMirror, late_ns: int, now: int) -> None:
        """An order that was held back until `schedule_ahead` reached its worker so long after the
        execution before it had ended (in time if not positive); may set `device.schedule_ahead_ns`.
        """


class Policy(NamedTuple):
    """A named set. `queue_order` is in which order batching sees the requests of one model."""

    name: str
    admission: AdmissionPolicy
    batching: BatchingPolicy
    residency: ResidencyPolicy
    schedule_ahead: ScheduleAhead
    queue_order: Literal["deadline", "arrival"] = "deadline"
    # Infers sent to one device and not yet answered; None: SchedulerConfig.max_outstanding_infers.
    max_outstanding_infers: int | None = None
    # A queued request is given up at its deadline, not when it could not be executed in time.
    waits_to_the_end: bool = False


class PolicySet(Protocol):
    """What a file of this folder has under its policy's name: its options, and how it is built."""

    def build(self) -> Policy: ...
