"""DeviceTime: what requests cost their tenants, predicted when they come and measured afterwards.

It owns the way from a worker's result to the tenants whose rows were in the batch, and the learning
of what a model's rows really cost. It must never decide who may ask; it is there only where there
are tenants, and implements gateway.dispatcher.Observer.

A batch's time is divided by rows, as its energy is: padding is shared, and so is what batching
saves. LOADs are nobody's: whose weights go, and when, is the scheduler's choice.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.tenants.keyring import Keyring
from scheduler.actions import Code, Infer, InferResult
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
    WorkerLost,
)
from scheduler.spec import ModelSpec, ShapeProfile

# Of a new measurement in what a model's rows cost: batches of a second are in it at 20 per second.
_NEWEST = 1 / 16
_MAX_REMEMBERED = 4096
# An engine that failed has used the device as well.
_CHARGED = frozenset({Code.OK, Code.ENGINE_ERROR, Code.INVALID_INPUT})


class _Sent(NamedTuple):
    infer: Infer
    requests: list[RequestArrived | None]


class DeviceTime:
    def __init__(self, keyring: Keyring, catalog: Mapping[str, ModelSpec]) -> None:
        self._keyring = keyring
        self._catalog = catalog
        # Measured over profiled time of a row alone, by model: batching makes it less than one.
        self._ratios: dict[str, float] = {}
        # Some of what the profiles say, by model, shape class and rows; with the spec it is of.
        self._alone: dict[tuple[str, str, int], tuple[ModelSpec, float]] = {}
        # All and only tenants' requests that the core has not replied to, by id.
        self._open: dict[int, RequestArrived] = {}
        # All and only Infers with a tenant's request whose result has not come, by worker and id.
        self._sent: dict[str, dict[int, _Sent]] = {}

    def predict_ns(self, spec: ModelSpec, *, rows: int, shape_key: str, elements: int) -> int:
        """What so many rows will be charged: as profiled, times what batches lately made of it."""
        alone_ns = self._alone_ns(spec, rows, shape_key, elements)
        return round(alone_ns * self._ratios.get(spec.key, 1.0))

    def on_event(self, event: Event, now: int) -> None:
        if type(event) is ActionFinished:
            of_worker = self._sent.get(event.worker_id)
            sent = of_worker.pop(event.result.action_id, None) if of_worker else None
            if sent is not None and type(event.result) is InferResult:
                self._charge(sent, event.result)
        elif type(event) is RequestArrived:
            if event.tenant:
                self._open[event.request_id] = event
        elif type(event) is RequestsArrived:
            for arrived in event.requests:
                if arrived.tenant:
                    self._open[arrived.request_id] = arrived
        elif type(event) is WorkerLost:
            self._sent.pop(event.worker_id, None)  # what it took nobody will ever know

    def on_commands(self, event: Event, commands: Sequence[Command], now: int) -> None:
        for command in commands:
            if type(command) is Reply:
                self._open.pop(command.request_id, None)
            elif type(command) is Send and type(command.action) is Infer:
                infer = command.action
                if not infer.request_ids:
                    continue  # a trial is nobody's
                requests = [self._open.get(request_id) for request_id in infer.request_ids]
                of_worker = self._sent.setdefault(command.worker_id, {})
                of_worker[infer.action_id] = _Sent(infer, requests)

    def _charge(self, sent: _Sent, result: InferResult) -> None:
        infer = sent.infer
        if result.code not in _CHARGED:
            return
        if result.code is not Code.OK and len(infer.rows) > 1:
            return  # whose fault it was shows when each is tried alone
        took_ns = result.input.duration_ns + result.exec.duration_ns + result.output.duration_ns
        tenants = self._keyring.tenants
        ns_per_row = took_ns / sum(infer.rows)
        alone_ns = 0.0
        spec = self._catalog.get(infer.model)
        for request, rows in zip(sent.requests, infer.rows, strict=True):
            if request is None:
                continue  # nobody's
            tenant = tenants.get(request.tenant)
            if tenant is not None:
                tenant.charge(round(ns_per_row * rows))
            if spec is not None:
                alone_ns += self._alone_ns(spec, rows, request.shape_key, request.elements)
        if alone_ns > 0 and result.code is Code.OK:
            ratio = self._ratios.get(infer.model, 1.0)
            self._ratios[infer.model] = ratio + _NEWEST * (took_ns / alone_ns - ratio)

    def _alone_ns(self, spec: ModelSpec, rows: int, shape_key: str, elements: int) -> float:
        """As profiled for a batch of its own; remembered, since each request asks twice."""
        known = self._alone.get((spec.name, shape_key, rows))
        if known is not None and known[0] is spec:
            return known[1]
        alone_ns = profiled_ns(spec, rows, shape_key, elements)
        if len(self._alone) >= _MAX_REMEMBERED:
            self._alone.clear()  # shapes are the clients' to choose
        self._alone[spec.name, shape_key, rows] = spec, alone_ns
        return alone_ns


def profiled_ns(spec: ModelSpec, rows: int, shape_key: str, elements: int) -> float:
    """By the profile: as a batch of its own, of the next size that was measured."""
    profile = _profile_of(spec, shape_key, elements)
    if profile is None:
        return 0.0
    size = min((size for size in profile.exec_ns if size >= rows), default=max(profile.exec_ns))
    alone_ns = profile.exec_ns[size] * max(1.0, rows / size)
    if profile.shape_key == shape_key or not (elements and profile.elements):
        return alone_ns
    return alone_ns * elements / profile.elements


def _profile_of(spec: ModelSpec, shape_key: str, elements: int) -> ShapeProfile | None:
    """Of this shape class, or of the nearest in size; None where nothing was measured."""
    shapes = [shape for shape in spec.profile.shapes if shape.exec_ns]
    for shape in shapes:
        if shape.shape_key == shape_key:
            return shape
    return min(shapes, key=lambda shape: abs(shape.elements - elements), default=None)
