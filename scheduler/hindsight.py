"""What a scheduler had before it when a request came, from what happened around that moment.

It owns what a log of (now, event, commands) tells of queues, lanes and weights afterwards, so that
nothing needs to be kept of them while requests come. What a log cannot tell is left out: what began
before it, and how many pages were free. It must never ask the scheduler.
"""

from collections.abc import Mapping, Sequence

from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
)
from scheduler.device import WeightsState
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Reply,
    RequestArrived,
    RequestsArrived,
    WorkerJoined,
    WorkerLost,
)
from scheduler.situation import DeviceSituation, Situation

LogEntry = tuple[int, Event, list[Command]]  # as Scheduler.recent_log() has them
_Sent = tuple[int, Action]  # when, and what

_ABSENT, _LOADING = WeightsState.ABSENT, WeightsState.LOADING
_RESIDENT, _EVICTING = WeightsState.RESIDENT, WeightsState.EVICTING


def recalled(
    log: Sequence[LogEntry],
    index: int,
    request: RequestArrived,
    weights_now: Mapping[str, WeightsState],
    now: int,
) -> Situation:
    """Before the request came with the entry at `index`, at `now`.

    `weights_now` are the workers that offer its model today, and what they have of it after the
    last entry of the log.
    """
    lanes = _Lanes()
    for at_ns, event, commands in log[:index]:
        lanes.follow(at_ns, event, commands)
    later = log[index:]
    joined_later = {e.worker_id for _, e, _ in later if isinstance(e, WorkerJoined)}
    workers = [w for w in weights_now if w not in joined_later]
    workers += [w for w in lanes.weights_of(request.model) if w not in weights_now]
    queued = lanes.queued()
    own = [r for r in queued if r.model == request.model]
    devices = [
        _device(lanes, worker_id, request.model, later, weights_now.get(worker_id), now)
        for worker_id in workers
    ]
    return Situation(
        model=request.model,
        num_queued=len(own),
        num_ahead=sum(r.deadline_ns <= request.deadline_ns for r in own),
        num_of_others=len(queued) - len(own),
        devices=tuple(sorted(devices, key=lambda device: device.busy_ns)),
    )


class _Lanes:
    """What was open, sent and held, as far as the entries followed so far tell."""

    def __init__(self) -> None:
        # All and only requests that have come and are not answered, by id.
        self._open: dict[int, RequestArrived] = {}
        # All and only actions sent whose result has not come, by worker and id.
        self.sent: dict[str, dict[int, _Sent]] = {}
        self.idle_since_ns: dict[str, int] = {}  # end of the last execution of each worker
        self._weights: dict[str, dict[str, WeightsState]] = {}  # by model and worker

    def follow(self, now: int, event: Event, commands: Sequence[Command]) -> None:
        match event:
            case RequestArrived():
                self._open[event.request_id] = event
            case RequestsArrived():
                self._open.update((r.request_id, r) for r in event.requests)
            case ActionFinished():
                self._on_finished(event)
            case WorkerJoined():
                for spec in event.models:
                    is_there = spec.name in event.resident
                    self._note(spec.name, event.worker_id, _RESIDENT if is_there else _ABSENT)
            case WorkerLost():
                self.sent.pop(event.worker_id, None)
                for of_model in self._weights.values():
                    of_model.pop(event.worker_id, None)
            case _:
                pass
        for command in commands:
            if isinstance(command, Reply):
                self._open.pop(command.request_id, None)
                continue
            worker_id, action = command.worker_id, command.action
            self.sent.setdefault(worker_id, {})[action.action_id] = (now, action)
            state = after_sending(action)
            if state is not None:
                self._note(action.model, worker_id, state)

    def queued(self) -> list[RequestArrived]:
        sent = {
            request_id
            for actions in self.sent.values()
            for _, action in actions.values()
            if isinstance(action, Infer)
            for request_id in action.request_ids
        }
        return [request for number, request in self._open.items() if number not in sent]

    def weights_of(self, model: str) -> dict[str, WeightsState]:
        return self._weights.get(model, {})

    def _on_finished(self, event: ActionFinished) -> None:
        result = event.result
        _, action = self.sent.get(event.worker_id, {}).pop(result.action_id, (0, None))
        if isinstance(result, InferResult):
            self.idle_since_ns[event.worker_id] = result.exec.end_ns
        if action is None:
            return
        is_ok = result.code is Code.OK
        if isinstance(result, LoadResult):
            self._note(action.model, event.worker_id, _RESIDENT if is_ok else _ABSENT)
        elif isinstance(result, EvictResult):
            self._note(action.model, event.worker_id, _ABSENT if is_ok else _RESIDENT)

    def _note(self, model: str, worker_id: str, state: WeightsState) -> None:
        self._weights.setdefault(model, {})[worker_id] = state


def after_sending(action: Action) -> WeightsState | None:
    """The weights' state that an action leaves behind where it is sent; None where it stays."""
    if isinstance(action, LoadWeights):
        return _LOADING
    return _EVICTING if isinstance(action, EvictWeights) else None


def _device(
    lanes: _Lanes,
    worker_id: str,
    model: str,
    later: Sequence[LogEntry],
    weights_now: WeightsState | None,
    now: int,
) -> DeviceSituation:
    sent = lanes.sent.get(worker_id, {}).values()
    free_ns = lanes.idle_since_ns.get(worker_id, 0)
    ready_ns = None
    for at_ns, action in sent:
        if isinstance(action, Infer):
            begin_ns = max(free_ns, at_ns, action.earliest_ns)
            free_ns = begin_ns + action.expected_duration_ns
        elif isinstance(action, LoadWeights) and action.model == model:
            begin_ns = max(at_ns, action.earliest_ns)
            ready_ns = max(0, begin_ns + action.expected_duration_ns - now)
    weights = lanes.weights_of(model).get(worker_id)
    if weights is None:
        weights = _before(later, worker_id, model, weights_now)
    return DeviceSituation(
        worker_id=worker_id,
        weights=weights,
        ready_ns=ready_ns,
        busy_ns=max(0, free_ns - now),
        batches=tuple((sum(a.rows), a.model) for _, a in sent if isinstance(a, Infer)),
        loads=tuple(a.model for _, a in sent if isinstance(a, LoadWeights)),
    )


def _before(
    later: Sequence[LogEntry], worker_id: str, model: str, weights_now: WeightsState | None
) -> WeightsState | None:
    """What the weights must have been for the first that happened to them afterwards."""
    for _, _, commands in later:
        for command in commands:
            if isinstance(command, Reply) or command.worker_id != worker_id:
                continue
            if command.action.model == model:
                return _ABSENT if isinstance(command.action, LoadWeights) else _RESIDENT
    return weights_now
