"""What a scheduler had before it at one moment, in sentences: queues, devices, weights.

It reads the scheduler's state and must never change it, nor keep a reference to it.
"""

from loadtest.words import counted, listed, ms
from scheduler.actions import Infer, LoadWeights
from scheduler.device import DeviceMirror, WeightsState
from scheduler.events import RequestArrived
from scheduler.scheduler import Scheduler
from scheduler.state import ModelState

MAX_DEVICES = 4  # told of, the earliest free first


def situation(scheduler: Scheduler, request: RequestArrived, now: int) -> list[str]:
    """Sentences: who waits ahead of the request, and what its devices are busy with."""
    model = scheduler.state.models.get(request.model)
    if model is None:
        return [f"{request.model} was not served then."]
    told = [_queue(scheduler, model, request)]
    devices = sorted(model.offered_by, key=lambda device: device.exec_lane.free_at(now))
    if not devices:
        return [*told, f"No worker offered {request.model}."]
    told += [_device(device, request.model, now) for device in devices[:MAX_DEVICES]]
    if len(devices) > MAX_DEVICES:
        told.append(f"{counted(len(devices) - MAX_DEVICES, 'more worker')} offered it.")
    return told


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


def _queue(scheduler: Scheduler, model: ModelState, request: RequestArrived) -> str:
    queued = [r for queue in model.queues.values() for r in queue]
    ahead = sum(r.deadline_ns <= request.deadline_ns for r in queued)
    others = scheduler.num_queued - len(queued)
    told = f"Before it, {counted(len(queued), 'request')} of {request.model} waited"
    if queued:
        told += f", {ahead} of them due before it"
    return f"{told}, and {others} of other models."


def _device(device: DeviceMirror, model: str, now: int) -> str:
    weights = device.weights_state(model)
    told = f"{device.worker_id}: its weights were {weights.value}"
    if weights is WeightsState.LOADING:
        told += f", ready in {ms(max(0, device.record(model).ready_at_ns - now))}"
    elif weights is not WeightsState.RESIDENT:
        told += f" ({device.pages_free} of {device.spec.total_pages} pages free)"
    busy_ns = device.exec_lane.free_at(now) - now
    actions = [outstanding.action for outstanding in device.outstanding.values()]
    batches = [
        f"{counted(sum(action.rows), 'row')} of {action.model}"
        for action in actions
        if isinstance(action, Infer)
    ]
    loads = [action.model for action in actions if isinstance(action, LoadWeights)]
    if batches:
        told += f"; busy for another {ms(busy_ns)} with {listed(batches)}"
    elif busy_ns > 0:
        told += f"; busy for another {ms(busy_ns)}"
    else:
        told += "; idle"
    if loads:
        told += f"; loading {listed(loads)}"
    return told + "."
