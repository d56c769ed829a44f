"""The policies: small deterministic functions that read the state and return a decision.

They mutate nothing; `scheduler.Scheduler` applies what they decide and asks again until they
answer None. A policy is chosen by name from these dicts.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from scheduler.device import DeviceMirror
from scheduler.events import Rejected
from scheduler.policies.admission import Admission, AdmitAll, DeadlineFeasible
from scheduler.policies.batching import BatchPlan, FifoBatching, LeastLatestStart
from scheduler.policies.residency import DemandResidency, LoadPlan, LruResidency
from scheduler.request import Request
from scheduler.state import SchedulerState


class AdmissionPolicy(Protocol):
    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected: ...


class BatchingPolicy(Protocol):
    def next_infer(
        self, state: SchedulerState, device: DeviceMirror, now: int
    ) -> BatchPlan | None: ...


class ResidencyPolicy(Protocol):
    def next_load(
        self, state: SchedulerState, device: DeviceMirror, now: int
    ) -> LoadPlan | None: ...


ADMISSION: Mapping[str, Callable[[], AdmissionPolicy]] = {
    "deadline-feasible": DeadlineFeasible,
    "admit-all": AdmitAll,
}
BATCHING: Mapping[str, Callable[[], BatchingPolicy]] = {
    "least-latest-start": LeastLatestStart,
    "fifo": FifoBatching,
}
RESIDENCY: Mapping[str, Callable[[], ResidencyPolicy]] = {
    "demand": DemandResidency,
    "lru": LruResidency,
}
