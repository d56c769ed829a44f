"""Everything that must hold between two events, re-derived from scratch. For tests."""

from scheduler.actions import Infer, LoadWeights
from scheduler.device import DeviceMirror, WeightsState
from scheduler.model_queue import ModelQueue
from scheduler.priority import HIGH, LOW, NORMAL
from scheduler.request import RequestState
from scheduler.scheduler import Scheduler


class InvariantBroken(AssertionError):
    """A bug of ours. The message names the thing and the numbers."""


def validate(scheduler: Scheduler) -> None:
    """Raises InvariantBroken with the first thing that does not hold."""
    _validate_requests(scheduler)
    for device in scheduler.state.devices.values():
        _validate_device(scheduler, device)
    _validate_models(scheduler)
    serving = sum(not device.is_stopping for device in scheduler.devices.values())
    _check(
        scheduler.state.num_serving == serving, f"{scheduler.state.num_serving} ≠ {serving} serve"
    )
    wakeup = scheduler.next_wakeup()
    _check(wakeup is None or wakeup > scheduler.now, f"wakeup {wakeup} is not after now")
    overlooked = scheduler.overlooked()
    _check(not overlooked, f"work waits, and nothing will wake the core for it: {overlooked}")


def _validate_requests(scheduler: Scheduler) -> None:
    state = scheduler.state
    queued = [
        request
        for model in state.models.values()
        for queue in model.queues.values()
        for request in queue
    ]
    dispatched = [
        request
        for device in state.devices.values()
        for outstanding in device.outstanding.values()
        for request in outstanding.requests
        if request.state is RequestState.DISPATCHED
    ]
    for request in queued:
        _check(request.state is RequestState.QUEUED, f"{request.request_id} queued, not QUEUED")
    for device in state.devices.values():
        for outstanding in device.outstanding.values():
            deadlines = [r.answer_by_ns for r in outstanding.requests if r in dispatched]
            wake_at_ns = outstanding.wake_at_ns
            _check(
                not deadlines or (wake_at_ns is not None and wake_at_ns <= min(deadlines)),
                f"nobody watches the deadlines of action {outstanding.action.action_id}",
            )
    ids = sorted(request.request_id for request in (*queued, *dispatched))
    _check(len(set(ids)) == len(ids), "a request is in two places")
    _check(ids == sorted(scheduler.open_request_ids()), "open requests ≠ queued + dispatched")
    _check(state.num_queued == len(queued), f"num_queued {state.num_queued} ≠ {len(queued)}")


def _validate_device(scheduler: Scheduler, device: DeviceMirror) -> None:
    who = device.worker_id
    held = {WeightsState.LOADING, WeightsState.RESIDENT}
    pages = sum(r.num_pages for r in device.weights.values() if r.state in held)
    total = device.spec.total_pages
    _check(device.pages_free == total - pages, f"{who}: {device.pages_free} free, {pages} held")
    if not scheduler.anomalies:
        _check(pages <= total, f"{who}: {pages} pages held of {total}")
    actions = [outstanding.action for outstanding in device.outstanding.values()]
    infers = [action for action in actions if isinstance(action, Infer)]
    loads = [action for action in actions if isinstance(action, LoadWeights)]
    _check(device.num_infers == len(infers), f"{who}: num_infers {device.num_infers}")
    limit = scheduler.policy.max_outstanding_infers or scheduler.state.config.max_outstanding_infers
    _check(device.num_infers <= limit, f"{who}: {device.num_infers} Infers, limit {limit}")
    is_idle = who in scheduler.state.idle
    _check(is_idle == (not infers), f"{who}: idle is {is_idle} with {len(infers)} Infers")
    _check(device.num_moves == len(loads), f"{who}: num_moves {device.num_moves}")
    for action in infers:
        _check(action.action_id in device.exec_lane, f"{who}: {action.action_id} not on its lane")
        state = device.weights_state(action.model)
        allowed = {WeightsState.RESIDENT} if not scheduler.anomalies else set(WeightsState)
        _check(state in allowed, f"{who}: Infer of {action.model} in flight while {state.value}")
    for name, record in device.weights.items():
        expected = sum(action.model == name for action in infers)
        _check(record.num_infers == expected, f"{who}: {name}.num_infers {record.num_infers}")
        loading = sum(action.model == name for action in loads)
        is_loading = record.state is WeightsState.LOADING
        _check(is_loading == (loading == 1), f"{who}: {name} {record.state.value}, {loading} LOADs")

    trials = [action for action in infers if not action.request_ids]
    _check(not trials or trials[0] is infers[0], f"{who}: a trial behind other Infers")
    for name in device.released:
        state = device.weights_state(name)
        _check(state is WeightsState.ABSENT, f"{who}: {name} was released, and is {state.value}")
    for name in scheduler.state.unloaded:
        is_kept = name in device.offered and name not in device.released
        state = device.weights_state(name)
        _check(
            not is_kept or device.is_stopping or state is not WeightsState.ABSENT,
            f"{who}: {name} is unloaded and absent, and was not released",
        )


def _validate_models(scheduler: Scheduler) -> None:
    devices = list(scheduler.state.devices.values())
    strays = scheduler.state.staged.keys() - scheduler.state.models.keys()
    _check(not strays, f"{sorted(strays)} are staged and not served")
    both = scheduler.state.models.keys() & scheduler.state.unloaded.keys()
    _check(not both, f"{sorted(both)} are served and unloaded")
    announced = {d.worker_id: {(key, id(queue)) for key, _, queue in d.ready} for d in devices}
    for name, model in scheduler.state.models.items():
        holders = [d for d in devices if d.is_resident(name) and d in model.offered_by]
        _check({id(d) for d in holders} == {id(d) for d in model.holders}, f"{name}: holders")
        loading = [
            d
            for d in devices
            if d.weights_state(name) is WeightsState.LOADING and d in model.offered_by
        ]
        _check({id(d) for d in loading} == {id(d) for d in model.loading_on}, f"{name}: loading_on")
        _check(
            model.num_queued == sum(len(queue) for queue in model.queues.values()),
            f"{name}: num_queued {model.num_queued}",
        )
        for queue in model.queues.values():
            _validate_queue(queue)
            for device in model.holders:
                _check(
                    (queue.latest_start_ns, id(queue)) in announced[device.worker_id],
                    f"{name}: {device.worker_id} does not know that requests wait",
                )
    waiting = {name for name, model in scheduler.state.models.items() if model.num_queued}
    told = scheduler.state.waiting.keys()
    _check(told == waiting, f"waiting {sorted(told)} ≠ {sorted(waiting)}")


def _validate_queue(queue: ModelQueue) -> None:
    name = queue.model
    deadlines = [request.deadline_ns for request in queue]
    _check(bool(deadlines), f"{name}: an empty queue is kept")
    _check(deadlines == sorted(deadlines), f"{name}: queue out of order")
    _check(queue.num_rows == sum(r.rows for r in queue), f"{name}: num_rows {queue.num_rows}")
    _check(queue.latest_start_ns is not None, f"{name}: queue without a key")
    _check(queue.wake_at_ns is not None, f"{name}: queue without an expiry")
    for priority in (HIGH, NORMAL, LOW):
        told = [r.request_id for r in queue.of_class(priority) or ()]
        expected = [r.request_id for r in queue if r.priority == priority]
        _check(told == expected, f"{name}: {told} of class {priority}, not {expected}")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InvariantBroken(message)
