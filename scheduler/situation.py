"""What a scheduler had before it at one moment: queues, devices, weights; as figures and in words.

It reads the scheduler's state and must never change it, nor keep a reference to it. The figures may
also come from what happened around the moment: scheduler/hindsight.py.
"""

import msgspec

from scheduler.actions import Infer, LoadWeights
from scheduler.device import DeviceMirror, WeightsState
from scheduler.events import RequestArrived
from scheduler.scheduler import Scheduler
from scheduler.words import Names, counted, listed, ms

MAX_DEVICES = 4  # told of, the earliest free first


class DeviceSituation(msgspec.Struct, frozen=True, kw_only=True):
    """One device. Durations are from the moment on; None is what nobody knows any more.

    `batches` are rows and model of what it executes, `loads` the models that it loads. `busy_ns` is
    for how long its exec lane is taken.
    """

    worker_id: str
    weights: WeightsState | None
    ready_ns: int | None = None
    pages_free: int | None = None
    total_pages: int | None = None
    busy_ns: int = 0
    batches: tuple[tuple[int, str], ...] = ()
    loads: tuple[str, ...] = ()


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """Before a request of `model`: queued of it, of those due before it, and of other models.

    `devices` are those that can serve the model, the earliest free first.
    """

    model: str
    num_queued: int
    num_ahead: int
    num_of_others: int
    devices: tuple[DeviceSituation, ...]


def situation(scheduler: Scheduler, request: RequestArrived, now: int) -> Situation | None:
    """As the scheduler is now; None where it does not serve the model."""
    model = scheduler.state.models.get(request.model)
    if model is None:
        return None
    queued = [r for queue in model.queues.values() for r in queue]
    devices = sorted(model.offered_by, key=lambda device: device.exec_lane.free_at(now))
    return Situation(
        model=request.model,
        num_queued=len(queued),
        num_ahead=sum(r.deadline_ns <= request.deadline_ns for r in queued),
        num_of_others=scheduler.num_queued - len(queued),
        devices=tuple(_device(device, request.model, now) for device in devices),
    )


def predicted_ns(scheduler: Scheduler, request: RequestArrived) -> int | None:
    """The latency predicted at admission, while the request is open."""
    model = scheduler.state.models.get(request.model)
    waiting = [r for queue in model.queues.values() for r in queue] if model is not None else []
    sent = [
        r
        for device in scheduler.devices.values()
        for outstanding in device.outstanding.values()
        for r in outstanding.requests
    ]
    found = (r.predicted_ns for r in (*waiting, *sent) if r.request_id == request.request_id)
    return next(found, None)


def sentences(around: Situation | None, request: RequestArrived, names: Names) -> list[str]:
    """Who waits ahead of the request, and what its devices are busy with."""
    if around is None:
        return [f"{request.model} was not served then."]
    told = [_queue(around)]
    if not around.devices:
        return [*told, f"No worker offered {around.model}."]
    told += [_told(device, names) for device in around.devices[:MAX_DEVICES]]
    if len(around.devices) > MAX_DEVICES:
        told.append(f"{counted(len(around.devices) - MAX_DEVICES, 'more worker')} offered it.")
    return told


def _device(device: DeviceMirror, model: str, now: int) -> DeviceSituation:
    weights = device.weights_state(model)
    is_loading = weights is WeightsState.LOADING
    actions = [outstanding.action for outstanding in device.outstanding.values()]
    return DeviceSituation(
        worker_id=device.worker_id,
        weights=weights,
        ready_ns=max(0, device.record(model).ready_at_ns - now) if is_loading else None,
        pages_free=device.pages_free,
        total_pages=device.spec.total_pages,
        busy_ns=max(0, device.exec_lane.free_at(now) - now),
        batches=tuple((sum(a.rows), a.model) for a in actions if isinstance(a, Infer)),
        loads=tuple(a.model for a in actions if isinstance(a, LoadWeights)),
    )


def _queue(around: Situation) -> str:
    told = f"Before it, {counted(around.num_queued, 'request')} of {around.model} waited"
    if around.num_queued:
        told += f", {around.num_ahead} of them due before it"
    return f"{told}, and {around.num_of_others} of other models."


def _told(device: DeviceSituation, names: Names) -> str:
    told = f"{device.worker_id}: its weights were "
    told += "not used lately" if device.weights is None else device.weights.value
    if device.ready_ns is not None:
        told += f", ready in {ms(device.ready_ns)}"
    elif device.weights is not WeightsState.RESIDENT and device.pages_free is not None:
        told += f" ({device.pages_free} of {device.total_pages} pages free)"
    batches = [f"{counted(rows, 'row')} of {names.model(model)}" for rows, model in device.batches]
    if batches:
        told += f"; busy for another {ms(device.busy_ns)} with {listed(batches)}"
    elif device.busy_ns > 0:
        told += f"; busy for another {ms(device.busy_ns)}"
    else:
        told += "; idle"
    if device.loads:
        told += f"; loading {listed([names.model(model) for model in device.loads])}"
    return told + "."
