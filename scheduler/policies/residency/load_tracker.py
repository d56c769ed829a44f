"""Clockwork's residency: LOAD by unmet demand, EVICT the idle first, least recently used.

Demand is work: what a request takes alone, in proportion to the time it has (OSDI '20, section 5.3,
and the source's LoadTracker). The sums are done when they are asked for; nothing is remembered.
"""

from typing import Final

from scheduler.device import DeviceMirror, Outstanding, Weights, WeightsState
from scheduler.policies.residency import LoadPlan, LoadsWhatIsWanted
from scheduler.policies.residency.room import can_load
from scheduler.request import Request
from scheduler.spec import MILLISECOND_NS
from scheduler.state import ModelState, SchedulerState

# A request that is older justifies no LOAD (the source's max_loadweights_slo).
MAX_LOAD_SLO_NS: Final = 25 * MILLISECOND_NS
# Kept free between the end of an execution and the SLO (the source's buffer).
BUFFER_NS: Final = 5 * MILLISECOND_NS
# A device is taken to have at least so much to do, so that its share of the work has a size.
LEAST_OUTSTANDING_NS: Final = MILLISECOND_NS


class LoadTracker(LoadsWhatIsWanted):
    """`capacity_ns`: how much work a device does in time; the source takes the usual SLO.

    `never_stops`: as published, a model with any demand is loaded onto ever more devices.
    `never_expires`: as published, demand counts until its request is sent or given up.
    """

    def __init__(
        self, *, capacity_ns: int, never_stops: bool = False, never_expires: bool = False
    ) -> None:
        self._capacity_ns = capacity_ns
        self._never_stops = never_stops
        self._never_expires = never_expires

    def next_load(self, state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
        unmet: list[tuple[float, int, ModelState]] = []
        outstanding_ns: dict[DeviceMirror, float] = {}
        for model in state.waiting.values():
            if not (model.wants_load and can_load(device, model, now)):
                continue
            demand_ns = self._load_demand_ns(model, device, now)
            if demand_ns == 0:
                continue
            if model.holders:
                outstanding_ns = outstanding_ns or self._outstanding_ns(state)
                demand_ns *= self._unmet_share(model, outstanding_ns)
            record = device.weights.get(model.name)
            unmet.append((demand_ns, record.last_used_ns if record is not None else 0, model))
        for _, _, model in sorted(unmet, key=_priority, reverse=True):
            plan = _make_room(state, device, model)
            if plan is not None:
                return plan
        return None

    def wants_replica(self, state: SchedulerState, request: Request) -> bool:
        """Whether those who hold the weights have more to do than they can in time, so that one
        more device should. Asked before the request is queued: its own work is not counted.
        """
        model = state.models[request.model]
        if not model.holders or len(model.holders) == len(model.offered_by):
            return False
        return self._never_stops or self._unmet_share(model, self._outstanding_ns(state)) > 0

    def _load_demand_ns(self, model: ModelState, device: DeviceMirror, now: int) -> float:
        """Work of those who wait, and have not waited too long for a LOAD to be of use."""
        load_ns = device.estimates(model.name).load_plan_ns
        ahead_ns = device.schedule_ahead_ns
        demand_ns = 0.0
        for queue in model.queues.values():
            guard = device.exec_estimate(queue).guard
            for request in queue:
                slo_ns = request.client_deadline_ns - request.arrival_ns
                spare_ns = slo_ns - (load_ns + guard[1] + BUFFER_NS + ahead_ns)
                patience_ns = min(MAX_LOAD_SLO_NS, spare_ns if spare_ns >= 0 else slo_ns)
                patience_ns = max(patience_ns, ahead_ns + BUFFER_NS)
                if self._never_expires or now <= request.arrival_ns + patience_ns:
                    demand_ns += guard[request.rows] * self._capacity_ns / patience_ns
        return demand_ns

    def _unmet_share(self, model: ModelState, outstanding_ns: dict[DeviceMirror, float]) -> float:
        """Of the model's demand, what its holders cannot serve within the capacity; negative where
        they could serve more.
        """
        weights = [1 / outstanding_ns[device] for device in model.holders]
        total = sum(weights, 0.0)
        return 1 - self._capacity_ns * sum([weight * weight / total for weight in weights], 0.0)

    def _outstanding_ns(self, state: SchedulerState) -> dict[DeviceMirror, float]:
        """What each device has to do: what is in flight there, and its part of what is queued."""
        outstanding_ns = {
            device: LEAST_OUTSTANDING_NS
            + sum([self._in_flight_ns(device, sent) for sent in device.outstanding.values()], 0.0)
            for device in state.devices.values()
        }
        for model in state.waiting.values():
            # A model's work is divided among its holders, less for those who have more already.
            total = sum([1 / outstanding_ns[device] for device in model.holders], 0.0)
            for device in model.holders:
                share = 1 / outstanding_ns[device] / total
                for queue in model.queues.values():
                    head = queue.first_in_order
                    work_ns = self._exec_demand_ns(device, head) * queue.num_rows / head.rows
                    outstanding_ns[device] += work_ns * share
        return outstanding_ns

    def _in_flight_ns(self, device: DeviceMirror, sent: Outstanding) -> float:
        return sum([self._exec_demand_ns(device, request) for request in sent.requests], 0.0)

    def _exec_demand_ns(self, device: DeviceMirror, request: Request) -> float:
        estimate = device.exec_estimate(request)
        time_ns = request.deadline_ns - request.arrival_ns
        return estimate.guard[request.rows] * self._capacity_ns / time_ns


def _priority(unmet: tuple[float, int, ModelState]) -> tuple[float, int]:
    return unmet[:2]


def _make_room(state: SchedulerState, device: DeviceMirror, model: ModelState) -> LoadPlan | None:
    """The evictions for it: idle models first, then busy ones, least recently used first each."""
    missing = model.spec.num_pages(device.spec.page_bytes) - device.pages_free
    evict: list[str] = []
    by_use = [
        (_is_busy(state, name, record), record.last_used_ns, index, name, record)
        for index, (name, record) in enumerate(device.weights.items())
    ]
    by_use.sort()  # of equals the one that was found first
    for _, _, _, name, record in by_use:
        if missing <= 0:
            break
        if _may_go(state, name, record):
            evict.append(name)
            missing -= record.num_pages
    return LoadPlan(model.name, tuple(evict)) if missing <= 0 else None


def _is_busy(state: SchedulerState, name: str, record: Weights) -> bool:
    model = state.models.get(name)
    return model is not None and model.num_queued > 0 and not record.is_unserved


def _may_go(state: SchedulerState, name: str, record: Weights) -> bool:
    """Neither pinned nor in use. The published tracker evicted what executions in flight used."""
    if record.state is not WeightsState.RESIDENT or record.num_infers:
        return False
    return name not in state.pinned or record.is_unserved
