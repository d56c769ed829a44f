"""Workers and models come and go: what that does to requests, queues and weights."""

from scheduler.device import DeviceMirror, WeightsState
from scheduler.events import (
    Expired,
    Failed,
    ModelPinned,
    ModelRemoved,
    Reason,
    Rejected,
    WorkerJoined,
    WorkerLost,
)
from scheduler.ledger import Ledger
from scheduler.planner import Planner
from scheduler.policies import AdmissionPolicy
from scheduler.request import Request, RequestState
from scheduler.results import MAX_FAILURES, Results
from scheduler.spec import SECOND_NS, ModelSpec
from scheduler.state import ModelState


class Fleet:
    """The only writer of the set of devices and the set of models."""

    def __init__(
        self, ledger: Ledger, planner: Planner, results: Results, admission: AdmissionPolicy
    ) -> None:
        self._ledger = ledger
        self._state = ledger.state
        self._planner = planner
        self._results = results
        self._admission = admission

    def on_joined(self, event: WorkerJoined, now: int) -> None:
        if event.worker_id in self._state.devices:
            raise ValueError(f"worker {event.worker_id} joined twice")
        offered = {spec.name: spec for spec in event.models if spec.unavailable_reason is None}
        device = DeviceMirror(event.worker_id, event.device, offered)
        self._state.devices[event.worker_id] = device
        for name in offered:
            model = self._state.models.get(name)
            if model is not None:
                model.offer(device)
        for name in event.resident:
            if name not in offered:
                self._ledger.anomalies["resident_but_not_offered"] += 1
                continue
            record = device.record(name)
            record.move_to(WeightsState.LOADING, name)
            device.pages_free -= record.num_pages
            self._results.weights_arrived(device, name, now)
        self._planner.plan(device, now)

    def on_lost(self, event: WorkerLost, now: int) -> None:
        device = self._state.devices.pop(event.worker_id, None)
        if device is None:
            self._ledger.anomalies["unknown_worker_lost"] += 1
            return
        self._ledger.timers.clear(device)
        for name in device.offered:
            model = self._state.models.get(name)
            if model is None:
                continue
            model.withdraw(device)
        for outstanding in device.outstanding.values():
            self._ledger.timers.clear(outstanding)
            for request in outstanding.requests:
                if request.state is RequestState.DISPATCHED:
                    self._on_request_lost(request, event, now)
        for model in self._state.models.values():
            if model.num_queued and not model.offered_by:
                for queue in list(model.queues.values()):
                    for request in list(queue):
                        self._dequeue_lost(model, request, event, now)
            elif model.wants_load:
                self._state.want(model)
                self._planner.plan_for(model, now)

    def _on_request_lost(self, request: Request, event: WorkerLost, now: int) -> None:
        if request.num_failures >= MAX_FAILURES:
            self._close_lost(request, event, now)
            return
        request.num_failures += 1
        model = self._state.models.get(request.model)
        if model is None or not model.offered_by:
            self._close_lost(request, event, now)
            return
        verdict = self._admission.decide(self._state, request, now)
        if isinstance(verdict, Rejected):
            self._close_lost(request, event, now)
            return
        self._results.requeue(request, now)

    def _dequeue_lost(
        self, model: ModelState, request: Request, event: WorkerLost, now: int
    ) -> None:
        queue = model.queues[request.batch_key]
        queue.remove(request)
        model.num_queued -= 1
        self._state.num_queued -= 1
        if queue.head is None:
            self._ledger.announce(model, queue)
        self._close_lost(request, event, now)

    def _close_lost(self, request: Request, event: WorkerLost, now: int) -> None:
        """503 while time is left for the client to try elsewhere, 504 when it is not."""
        detail = f"worker {event.worker_id} was lost ({event.reason}), and no other can make it"
        if now < request.deadline_ns:
            outcome = Failed(Reason.WORKER_LOST, detail, retry_after_ns=SECOND_NS)
            self._ledger.close(request, RequestState.FAILED, outcome)
        else:
            self._ledger.close(
                request,
                RequestState.EXPIRED,
                Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, detail),
            )

    def add_model(self, spec: ModelSpec) -> ModelState:
        model = ModelState(spec)
        self._state.models[spec.name] = model
        if spec.is_pinned:
            self._state.pinned[spec.name] = None
        return model

    def on_model_added(self, spec: ModelSpec, now: int) -> None:
        if spec.name in self._state.models:
            self.on_model_removed(ModelRemoved(spec.name, "it was replaced"), now)
        model = self.add_model(spec)
        for device in self._state.devices.values():
            known = device.offered.get(spec.name)
            if known is not None and known.content_hash == spec.content_hash:
                model.offer(device)
                state = device.weights_state(spec.name)
                if state is WeightsState.RESIDENT:
                    model.holders.append(device)
                elif state is WeightsState.LOADING:
                    model.loading_on.append(device)
        for device in list(model.offered_by):
            self._planner.plan(device, now)

    def on_model_removed(self, event: ModelRemoved, now: int) -> None:
        model = self._state.models.pop(event.model, None)
        if model is None:
            self._ledger.anomalies["unknown_model_removed"] += 1
            return
        self._state.pinned.pop(event.model, None)
        for queue in model.queues.values():
            self._ledger.timers.clear(queue)
            queue.latest_start_ns = None
            for request in queue:
                detail = f"{event.model} was removed: {event.reason}"
                self._ledger.close(
                    request, RequestState.FAILED, Failed(Reason.MODEL_UNAVAILABLE, detail)
                )
        self._state.num_queued -= model.num_queued
        model.num_queued = 0
        for device in list(model.holders):
            if not device.weights[event.model].num_infers:
                self._planner.send_evict(device, event.model, now)

    def on_pinned(self, event: ModelPinned, now: int) -> None:
        model = self._state.models.get(event.model)
        if model is None:
            self._ledger.anomalies["unknown_model_pinned"] += 1
            return
        model.is_pinned = event.is_pinned
        if not event.is_pinned:
            self._state.pinned.pop(event.model, None)
            return
        self._state.pinned[event.model] = None
        for device in list(model.offered_by):
            if model.is_cold:
                self._planner.plan_loads(device, now)
