"""Workers and models come and go: what that does to requests, queues and weights."""

from scheduler import staging
from scheduler.device import DeviceMirror, WeightsState
from scheduler.events import (
    Failed,
    ModelForgotten,
    ModelOffered,
    ModelPinned,
    ModelRemoved,
    ModelStaged,
    ModelUnloaded,
    Reason,
    WorkerJoined,
    WorkerLost,
)
from scheduler.ledger import Ledger
from scheduler.planner import Planner
from scheduler.policies.admission import Admission
from scheduler.policies.protocols import AdmissionPolicy
from scheduler.request import Request, RequestState
from scheduler.results import MAX_FAILURES, Results
from scheduler.spec import SECOND_NS, ModelSpec
from scheduler.state import ModelState, Staging


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
        anomalies = self._ledger.anomalies
        offered = {spec.name: spec for spec in event.models if spec.unavailable_reason is None}
        for name in [name for name, spec in offered.items() if not _has_profile(spec)]:
            anomalies["offered_without_profile"] += 1
            del offered[name]
        device = DeviceMirror(
            event.worker_id,
            event.device,
            offered,
            schedule_ahead_ns=self._planner.first_schedule_ahead_ns(),
        )
        self._state.devices[event.worker_id] = self._state.idle[event.worker_id] = device
        self._state.num_serving += 1
        for spec in offered.values():
            model = self._state.models.get(spec.name)
            if model is not None and not self._offer(model, device):
                anomalies["offered_with_other_content"] += 1
        for name in dict.fromkeys(event.resident):
            if name not in offered:
                anomalies["resident_but_not_offered"] += 1
                continue
            record = device.record(name)
            if record.num_pages > device.pages_free:
                anomalies["resident_beyond_the_cache"] += 1
            model = self._state.models.get(name)
            record.is_unserved = name in self._state.unloaded or (
                model is not None and device not in model.offered_by
            )
            record.move_to(WeightsState.LOADING, name)
            device.pages_free -= record.num_pages
            self._results.weights_arrived(device, name, now)
            self._planner.evict_unserved(device, name, now)
        for name in self._state.unloaded:
            self._planner.release_unloaded(device, name, now)
        self._planner.plan(device, now)
        self._planner.on_fleet_changed(now)

    def on_offered(self, event: ModelOffered, now: int) -> None:
        """A device has made a model ready that it did not have when it joined."""
        device, spec = self._state.devices.get(event.worker_id), event.spec
        if device is None or device.is_stopping:
            return  # it was lost, or leaves, while the offer was on its way
        if not _has_profile(spec):
            self._ledger.anomalies["offered_without_profile"] += 1
            return
        if spec.name in device.offered:
            self._ledger.anomalies["offered_twice"] += 1
            return
        device.offer(spec)
        model = self._state.models.get(spec.name)
        if model is None:
            self._planner.release_unloaded(device, spec.name, now)
        elif self._offer(model, device):
            self._planner.plan(device, now)
        else:
            self._ledger.anomalies["offered_with_other_content"] += 1

    def on_staged(self, event: ModelStaged, now: int) -> None:
        model = self._state.models.get(event.model)
        if model is None:
            self._ledger.anomalies["unknown_model_staged"] += 1
            return
        staging.end(self._state, event.model)
        self._state.staged[event.model] = Staging(event.replaces)
        for device in list(model.holders):
            staging.on_weights_arrived(self._state, device, event.model, now)
        for device in list(model.offered_by):
            self._planner.plan(device, now)

    def on_forgotten(self, event: ModelForgotten) -> None:
        """The shell says so when nothing is left of it; else nothing is forgotten."""
        name = event.model
        devices = self._state.devices.values()
        if name in self._state.models or any(device.keeps(name) for device in devices):
            self._ledger.anomalies["forgotten_too_early"] += 1
            return
        self._state.unloaded.pop(name, None)
        for device in devices:
            device.forget(name)

    def _offer(self, model: ModelState, device: DeviceMirror) -> bool:
        """Let the device serve the model, if what it has under that name is the same."""
        spec = device.offered[model.spec.name]
        if (
            spec.content_hash != model.spec.content_hash
            or spec.max_batch_rows < model.spec.max_batch_rows
        ):
            return False
        model.offer(device)
        return True

    def on_lost(self, event: WorkerLost, now: int) -> None:
        device = self._state.devices.pop(event.worker_id, None)
        self._state.idle.pop(event.worker_id, None)
        if device is None:
            self._ledger.anomalies["unknown_worker_lost"] += 1
            return
        if not device.is_stopping:
            self._state.num_serving -= 1
        self._ledger.timers.clear(device)
        stranded: list[Request] = []
        for outstanding in device.outstanding.values():
            self._ledger.timers.clear(outstanding)
            for request in outstanding.requests:
                if request.state is RequestState.DISPATCHED:
                    request.num_failures += 1
                    stranded.append(request)
        self._withdraw(device, stranded, f"was lost ({event.reason})", now)

    def on_stopping(self, worker_id: str, now: int) -> None:
        """The worker refuses work since it shuts down: it gets no more, and finishes what runs."""
        device = self._state.devices.get(worker_id)
        if device is not None and not device.is_stopping:
            device.is_stopping = True
            self._state.num_serving -= 1
            self._withdraw(device, [], "shuts down", now)

    def _withdraw(self, device: DeviceMirror, stranded: list[Request], why: str, now: int) -> None:
        """Nothing more goes to this device: plan anew what counted on it, or refuse it at once.

        `stranded` are DISPATCHED requests that will get no result. Queued ones join them where no
        other device has the weights or is loading them; all are admitted once more, most urgent
        first.
        """
        for name in device.offered:
            model = self._state.models.get(name)
            if model is not None and device in model.offered_by:
                model.withdraw(device)
                if model.is_cold:
                    stranded += self._ledger.dequeue_all(model)
        for request in sorted(stranded, key=_deadline):
            self._readmit(request, f"worker {device.worker_id} {why}", now)
        for name in {request.model: None for request in stranded}:
            model = self._state.models.get(name)
            if model is not None:
                self._planner.plan_for(model, now)
        for name in self._state.pinned_and_absent():
            self._planner.plan_for(self._state.models[name], now)
        self._planner.on_fleet_changed(now, gone=device)

    def _readmit(self, request: Request, why: str, now: int) -> None:
        """503 at once where no device can make it any more: the client may try elsewhere."""
        model = self._state.models.get(request.model)
        if model is not None and request.num_failures <= MAX_FAILURES and not request.is_orphan:
            verdict = self._admission.decide(self._state, request, now)
            if isinstance(verdict, Admission):
                model.wants_replica = model.wants_replica or verdict.wants_replica
                if request.state is RequestState.DISPATCHED:
                    request.move_to(RequestState.QUEUED)
                self._ledger.enqueue(model, request)
                return
        outcome = Failed(
            Reason.WORKER_LOST, f"{why}, and no other can make it", retry_after_ns=SECOND_NS
        )
        self._ledger.close(request, RequestState.FAILED, outcome)

    def add_model(self, spec: ModelSpec) -> ModelState:
        model = ModelState(spec)
        self._state.models[spec.name] = model
        if spec.is_pinned:
            self._state.pinned[spec.name] = None
        return model

    def on_model_added(self, spec: ModelSpec, now: int) -> None:
        if spec.name in self._state.models:
            self.on_model_removed(ModelRemoved(spec.name, "it was replaced"), now)
        self._state.unloaded.pop(spec.name, None)
        model = self.add_model(spec)
        for device in self._state.devices.values():
            if device.is_stopping or spec.name not in device.offered:
                continue
            if not self._offer(model, device):
                continue
            record = device.weights.get(spec.name)
            if record is not None:
                record.is_unserved = False
                if record.state is WeightsState.RESIDENT:
                    model.holders.append(device)
                elif record.state is WeightsState.LOADING:
                    model.loading_on.append(device)
        for device in list(model.offered_by):
            self._planner.plan(device, now)

    def on_model_removed(self, event: ModelRemoved, now: int) -> None:
        model = self._state.models.pop(event.model, None)
        if model is None:
            self._ledger.anomalies["unknown_model_removed"] += 1
            return
        self._state.pinned.pop(event.model, None)
        self._state.refused_cold.pop(event.model, None)
        staging.end(self._state, event.model)
        detail = f"{event.model} was removed: {event.reason}"
        for request in self._ledger.dequeue_all(model):
            self._ledger.close(
                request, RequestState.FAILED, Failed(Reason.MODEL_UNAVAILABLE, detail)
            )
        for device in self._state.devices.values():
            record = device.weights.get(event.model)
            if record is None:
                continue
            record.is_unserved = True
            for request in device.requests_of(event.model):
                request.is_orphan = True
            self._planner.evict_unserved(device, event.model, now)
            self._planner.plan_loads(device, now)  # its pages may go to others now

    def on_model_unloaded(self, event: ModelUnloaded, now: int) -> None:
        name = event.model
        if name not in self._state.models:
            self._ledger.anomalies["unknown_model_unloaded"] += 1
            return
        self._state.unloaded[name] = None
        self.on_model_removed(ModelRemoved(name, "it was unloaded"), now)
        for device in self._state.devices.values():
            self._planner.release_unloaded(device, name, now)

    def on_pinned(self, event: ModelPinned, now: int) -> None:
        model = self._state.models.get(event.model)
        if model is None:
            self._ledger.anomalies["unknown_model_pinned"] += 1
            return
        model.is_pinned = event.is_pinned
        if event.is_pinned:
            self._state.pinned[event.model] = None
            self._planner.plan_for(model, now)
            return
        self._state.pinned.pop(event.model, None)
        for device in list(model.holders):
            self._planner.plan_loads(device, now)  # its pages may go to others now


def _deadline(request: Request) -> int:
    return request.deadline_ns


def _has_profile(spec: ModelSpec) -> bool:
    """Whether estimates can be made from what the worker says of the model."""
    shapes = spec.profile.shapes
    return bool(spec.batch_sizes and shapes) and all(shape.exec_ns for shape in shapes)
