"""What a worker's result changes: lanes, weights, estimates, and the requests of its batch.

Remote input never raises: what is unknown, stale or of the wrong kind is counted as an anomaly.
"""

from typing import Final

from scheduler import staging
from scheduler.actions import (
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    ReleaseModel,
    ReleaseResult,
    Span,
)
from scheduler.device import (
    LOAD_RETRY_MAX_NS,
    LOAD_RETRY_NS,
    DeviceMirror,
    Outstanding,
    WeightsState,
)
from scheduler.events import ActionFinished, Expired, Failed, Reason, Served
from scheduler.ledger import Ledger
from scheduler.planner import Planner
from scheduler.policies.batching import FinishedBatch
from scheduler.request import Request, RequestState
from scheduler.spec import SECOND_NS

MAX_FAILURES: Final = 1  # a request is tried again once


class Results:
    """Releases what the Planner reserved."""

    def __init__(self, ledger: Ledger, planner: Planner) -> None:
        self._ledger = ledger
        self._state = ledger.state
        self._planner = planner

    def on_finished(self, event: ActionFinished, now: int) -> None:
        device = self._state.devices.get(event.worker_id)
        result = event.result
        outstanding = device.outstanding.pop(result.action_id, None) if device else None
        if device is None or outstanding is None:
            self._ledger.anomalies["result_of_unknown_action"] += 1
            return
        self._ledger.timers.clear(outstanding)
        action = outstanding.action
        if isinstance(action, Infer) and isinstance(result, InferResult):
            self._on_inferred(device, outstanding, action, result, now)
        elif isinstance(action, LoadWeights) and isinstance(result, LoadResult):
            self._on_loaded(device, outstanding, action, result, now)
        elif isinstance(action, EvictWeights) and isinstance(result, EvictResult):
            self._on_evicted(device, action, result)
        elif isinstance(action, ReleaseModel) and isinstance(result, ReleaseResult):
            if result.code is not Code.OK:
                self._ledger.anomalies[f"release_{result.code.name.lower()}"] += 1
        else:
            # Treated as a failure of the action, so that nothing it holds is lost.
            self._ledger.anomalies["result_of_another_kind"] += 1
            self._on_wrong_kind(device, outstanding, now)
        if self._state.unloaded:
            self._planner.release_unloaded(device, action.model, now)
        self._planner.plan(device, now)

    def _on_inferred(
        self,
        device: DeviceMirror,
        outstanding: Outstanding,
        action: Infer,
        result: InferResult,
        now: int,
    ) -> None:
        device.num_infers -= 1
        if not device.num_infers:
            self._state.idle[device.worker_id] = device
        record = device.weights[action.model]
        record.num_infers -= 1
        if record.is_unserved:
            self._planner.evict_unserved(device, action.model, now)
        if result.code is not Code.OK:
            device.exec_lane.finish(action.action_id, min(result.output.end_ns, now))
            self._on_infer_failed(device, outstanding, action, result, now)
            return
        if not outstanding.requests:
            device.exec_lane.finish(action.action_id, min(result.output.end_ns, now))
            staging.on_trial_finished(self._state, device, action, result, now)
            return
        # Comparisons, not min() and max(): this runs once a batch, and is mostly calls.
        sent_ns, received_ns = outstanding.sent_ns, result.received_ns
        input_begin_ns, done_ns = result.input.begin_ns, result.output.end_ns
        # A clock offset may be wrong, but nothing ends before it was sent or after it was heard of.
        if done_ns < sent_ns:
            done_ns = sent_ns
        if done_ns > now:
            done_ns = now
        device.exec_lane.finish(action.action_id, done_ns)
        begin_ns = device.previous_done_ns if device.previous_done_ns > sent_ns else sent_ns
        if input_begin_ns > begin_ns:
            begin_ns = input_begin_ns
        late_ns = received_ns - device.previous_done_ns if outstanding.is_held else None
        device.previous_done_ns = done_ns
        if received_ns > now:
            received_ns = now
        device.observe_delays(command_ns=received_ns - sent_ns, reply_ns=now - done_ns)
        requests = outstanding.requests
        first = requests[0]
        rows = sum(action.rows)
        if done_ns > begin_ns:
            estimates = device.estimates(action.model)
            estimates.measured_ns = now
            estimate = estimates.exec(first.shape_key, first.elements)
            device.num_outliers += estimate.observe(rows, done_ns - begin_ns)
        durations = _length(result.input), _length(result.exec), _length(result.output)
        num_in_time = 0
        for request in requests:
            # Else answered at its deadline, or cancelled: the output is ignored.
            if request.state is RequestState.DISPATCHED:
                num_in_time += now <= request.client_deadline_ns
                served = _served(device.worker_id, request, rows, input_begin_ns, durations)
                self._ledger.close(request, RequestState.SERVED, served)
        batch = FinishedBatch(action.model, rows, requests, num_in_time, done_ns - begin_ns)
        self._planner.on_executed(device, batch, late_ns, now)

    def _on_infer_failed(
        self,
        device: DeviceMirror,
        outstanding: Outstanding,
        action: Infer,
        result: InferResult,
        now: int,
    ) -> None:
        if result.code in (Code.WEIGHTS_MISSING, Code.UNKNOWN_MODEL):
            self._ledger.anomalies["weights_missing"] += 1
            self._weights_gone(device, action.model, outstanding.generation)
        if not outstanding.requests:
            staging.on_trial_finished(self._state, device, action, result, now)
            return
        # The engine's or the input's fault: alone, it is the request's; in a batch, anybody's.
        is_input_fault = result.code in (Code.ENGINE_ERROR, Code.INVALID_INPUT)
        for request in outstanding.requests:
            if request.state is not RequestState.DISPATCHED:
                continue
            if is_input_fault and len(outstanding.requests) > 1:
                request.runs_alone = True
                self._requeue(request, now)
            elif is_input_fault:
                reason = (
                    Reason.ENGINE_ERROR
                    if result.code is Code.ENGINE_ERROR
                    else Reason.INVALID_INPUT
                )
                self._ledger.close(request, RequestState.FAILED, Failed(reason, result.message))
            elif request.num_failures < MAX_FAILURES:
                request.num_failures += 1
                self._requeue(request, now)
            elif result.code is Code.TOO_LATE:
                detail = f"no device could start it in time, twice: {result.message}"
                self._ledger.close(
                    request,
                    RequestState.EXPIRED,
                    Expired(Reason.DEADLINE_EXCEEDED_QUEUED, detail),
                )
            else:
                detail = f"{result.code.name.lower()} after a retry: {result.message}"
                self._ledger.close(
                    request, RequestState.FAILED, Failed(Reason.ENGINE_ERROR, detail)
                )
        # Only now, so that those who may share a batch again do.
        model = self._state.models.get(action.model)
        if model is not None:
            self._planner.plan_for(model, now)

    def _requeue(self, request: Request, now: int) -> None:
        """Back to its queue if any device could still serve it; what cannot make it expires."""
        model = self._state.models.get(request.model)
        if model is None or request.is_orphan:
            detail = f"{request.model} was removed"
            outcome = Failed(Reason.MODEL_UNAVAILABLE, detail)
            self._ledger.close(request, RequestState.FAILED, outcome)
            return
        if not model.fits_somewhere:
            detail = f"no worker is left that serves {request.model}"
            outcome = Failed(Reason.WORKER_LOST, detail, retry_after_ns=SECOND_NS)
            self._ledger.close(request, RequestState.FAILED, outcome)
            return
        request.move_to(RequestState.QUEUED)
        self._ledger.enqueue(model, request)
        self._ledger.expire_heads(model.queues[request.batch_key], now)

    def _on_loaded(
        self,
        device: DeviceMirror,
        outstanding: Outstanding,
        action: LoadWeights,
        result: LoadResult,
        now: int,
    ) -> None:
        name = action.model
        device.num_moves -= 1
        device.load_lane.finish(action.action_id, min(result.load.end_ns, now))
        record = device.weights[name]
        model = self._state.models.get(name)
        if model is not None and device in model.loading_on:
            model.loading_on.remove(device)
        if result.code is Code.OK or result.code is Code.ALREADY_RESIDENT:
            if result.code is Code.OK:
                estimates = device.estimates(name)
                estimates.measured_ns = now
                begin_ns = max(result.load.begin_ns, outstanding.sent_ns)
                duration_ns = max(1, min(result.load.end_ns, now) - begin_ns)
                device.num_outliers += estimates.observe_load(duration_ns)
                record.num_failures = 0
            self.weights_arrived(device, name, now)
            self._planner.evict_unserved(device, name, now)
            return
        record.move_to(WeightsState.ABSENT, name)
        device.pages_free += record.num_pages
        if result.code is not Code.TOO_LATE:
            staging.on_load_failed(self._state, device, result, name)
            self._ledger.anomalies[f"load_{result.code.name.lower()}"] += 1
            record.num_failures += 1
            wait_ns = min(LOAD_RETRY_NS << min(record.num_failures - 1, 8), LOAD_RETRY_MAX_NS)
            record.retry_at_ns = now + wait_ns
            device.retry_until_ns = max(device.retry_until_ns, record.retry_at_ns)
        if model is not None:
            if model.wants_load:
                self._state.want(model)
            self._planner.plan_for(model, now)  # another device may take it in

    def weights_arrived(self, device: DeviceMirror, name: str, now: int) -> None:
        record = device.weights[name]
        record.move_to(WeightsState.RESIDENT, name)
        record.last_used_ns = now
        model = self._state.models.get(name)
        if model is None or record.is_unserved or device.is_stopping:
            return
        model.holders.append(device)
        if self._state.staged:
            staging.on_weights_arrived(self._state, device, name, now)
        for queue in model.queues.values():
            assert queue.latest_start_ns is not None
            device.push_ready(queue.latest_start_ns, queue)
            for request in queue:
                if request.cold_at_ns is not None and request.ready_at_ns is None:
                    request.ready_at_ns = now

    def _weights_gone(self, device: DeviceMirror, name: str, generation: int) -> None:
        """The worker says that weights are not there: believe it, unless they are newer."""
        record = device.weights[name]
        if record.state is WeightsState.RESIDENT and record.generation == generation:
            record.move_to(WeightsState.ABSENT, name)
            device.pages_free += record.num_pages
            self._planner.drop_holder(name, device)

    def _on_evicted(self, device: DeviceMirror, action: EvictWeights, result: EvictResult) -> None:
        record = device.weights[action.model]
        if result.code in (Code.OK, Code.WEIGHTS_MISSING):
            record.move_to(WeightsState.ABSENT, action.model)
            if result.code is not Code.OK:
                self._ledger.anomalies["evict_weights_missing"] += 1
            return
        self._ledger.anomalies[f"evict_{result.code.name.lower()}"] += 1
        device.pages_free -= record.num_pages
        self.weights_arrived(device, action.model, self._ledger.now)

    def _on_wrong_kind(self, device: DeviceMirror, outstanding: Outstanding, now: int) -> None:
        action = outstanding.action
        code, message = Code.MALFORMED, "the worker answered with another kind of result"
        if isinstance(action, Infer):
            failed = InferResult(action.action_id, code, message)
            self._on_inferred(device, outstanding, action, failed, now)
        elif isinstance(action, LoadWeights):
            self._on_loaded(
                device, outstanding, action, LoadResult(action.action_id, code, message), now
            )
        elif isinstance(action, EvictWeights):
            self._on_evicted(device, action, EvictResult(action.action_id, code, message))


def _served(
    worker_id: str, request: Request, rows: int, begin_ns: int, durations: tuple[int, int, int]
) -> Served:
    """`durations` are those of input, execution and output, the same for the whole batch."""
    is_cold = request.cold_at_ns is not None
    load_ns = 0
    if request.cold_at_ns is not None and request.ready_at_ns is not None:
        load_ns = request.ready_at_ns - request.cold_at_ns
    queue_ns = begin_ns - request.arrival_ns - load_ns
    return Served(
        worker_id,
        rows,
        is_cold,
        request.predicted_ns,
        queue_ns if queue_ns > 0 else 0,
        load_ns,
        *durations,
    )


def _length(span: Span) -> int:
    length_ns = span.end_ns - span.begin_ns
    return length_ns if length_ns > 0 else 0
