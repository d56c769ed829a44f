"""The one object that decides: events in, commands out, `now` as an argument.

It is the only writer of scheduling state. A shell calls `handle` with what happened and carries
out the commands; it calls again with Tick no later than `next_wakeup()`. Policies are asked for
decisions and applied here. Rules of the contract (each has a test): `now` never decreases; every
RequestArrived gets exactly one Reply; remote input that is unknown or stale is counted as an
anomaly and never raises; in-flight work is not cancelled; the same events give the same commands.
"""

from collections import Counter, deque
from collections.abc import Sequence

from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Span,
)
from scheduler.device import (
    LOAD_RETRY_MAX_NS,
    LOAD_RETRY_NS,
    DeviceMirror,
    Outstanding,
    WeightsState,
)
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Command,
    Event,
    Expired,
    Failed,
    ModelAdded,
    ModelPinned,
    ModelRemoved,
    Outcome,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    Send,
    Served,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.model_queue import ModelQueue
from scheduler.policies import ADMISSION, BATCHING, RESIDENCY
from scheduler.policies.batching import BatchPlan
from scheduler.request import Request, RequestState
from scheduler.spec import ModelSpec, SchedulerConfig
from scheduler.state import ModelState, SchedulerState
from scheduler.timers import Timers

FOREVER_NS = 2**62
MAX_FAILURES = 1  # a request is tried again once


class Scheduler:
    """See the module. `admission`, `batching`, `residency` name policies (scheduler.policies)."""

    def __init__(
        self,
        config: SchedulerConfig | None = None,
        models: Sequence[ModelSpec] = (),
        *,
        admission: str = "deadline-feasible",
        batching: str = "least-latest-start",
        residency: str = "demand",
    ) -> None:
        self.state = SchedulerState(config or SchedulerConfig())
        self.anomalies: Counter[str] = Counter()
        self._admission = ADMISSION[admission]()
        self._batching = BATCHING[batching]()
        self._residency = RESIDENCY[residency]()
        self._requests: dict[int, Request] = {}  # all and only open requests
        self._timers = Timers()
        self._now = 0
        self._next_action_id = 1
        self._out: list[Command] = []
        self._story: deque[tuple[int, Event, list[Command]]] = deque(
            maxlen=self.state.config.story_length
        )
        for spec in models:
            self._add_model(spec)

    # ------------------------------------------------------------------ the contract

    def handle(self, event: Event, now: int) -> list[Command]:
        """What to do about the event, in order. `now` in ns, never less than before."""
        if now < self._now:
            raise ValueError(f"now went back from {self._now} to {now}")
        self._now = now
        out: list[Command] = []
        self._out = out
        self._fire_due_timers(now)
        match event:
            case RequestArrived():
                self._on_arrived(event, now)
            case ActionFinished():
                self._on_finished(event, now)
            case Tick():
                pass
            case RequestCancelled():
                self._on_cancelled(event.request_id, now)
            case WorkerJoined():
                self._on_joined(event, now)
            case WorkerLost():
                self._on_lost(event, now)
            case ModelAdded():
                self._on_model_added(event.spec, now)
            case ModelRemoved():
                self._on_model_removed(event, now)
            case ModelPinned():
                self._on_pinned(event, now)
        self._story.append((now, event, out))
        return out

    def next_wakeup(self) -> int | None:
        """The instant by which `handle(Tick(), now)` is due; always later than the last `now`."""
        at_ns = self._timers.next_at()
        return None if at_ns is None else max(at_ns, self._now + 1)

    # ------------------------------------------------------------------ reading

    @property
    def models(self) -> dict[str, ModelSpec]:
        return {name: model.spec for name, model in self.state.models.items()}

    @property
    def devices(self) -> dict[str, DeviceMirror]:
        return self.state.devices

    @property
    def num_queued(self) -> int:
        return self.state.num_queued

    @property
    def now(self) -> int:
        """The instant of the last event."""
        return self._now

    def open_request_ids(self) -> list[int]:
        return list(self._requests)

    @property
    def num_open(self) -> int:
        return len(self._requests)

    def queue_depth(self, model: str) -> int:
        return self.state.models[model].num_queued

    def estimate_ns(self, model: str, rows: int) -> int | None:
        """Planned execution of so many rows where the model would run; None without a worker."""
        state = self.state.models[model]
        if not state.offered_by:
            return None
        return state.reference().estimates(model).first.time_for(rows)

    def story(self, request_id: int) -> list[tuple[int, Event, list[Command]]]:
        """The kept (now, event, commands) in which the request appears: the answer to "why"."""
        return [
            (now, event, commands)
            for now, event, commands in self._story
            if getattr(event, "request_id", None) == request_id
            or any(_concerns(command, request_id) for command in commands)
        ]

    # ------------------------------------------------------------------ requests

    def _on_arrived(self, event: RequestArrived, now: int) -> None:
        if event.request_id in self._requests:
            raise ValueError(f"request id {event.request_id} is already open")
        model = self.state.models.get(event.model)
        if model is None or model.spec.unavailable_reason is not None:
            why = "is not served" if model is None else model.spec.unavailable_reason
            detail = f"{event.model}: {why}"
            self._reply(event.request_id, Rejected(Reason.MODEL_UNAVAILABLE, detail))
            return
        request = Request(event)
        verdict = self._admission.decide(self.state, request, now)
        if isinstance(verdict, Rejected):
            self._reply(event.request_id, verdict)
            return
        request.predicted_ns = verdict.finish_ns - event.arrival_ns
        if not model.holders:
            request.cold_at_ns = now
        if verdict.wants_replica:
            model.wants_replica = True
        self._requests[event.request_id] = request
        self._enqueue(model, request)
        self._plan_for(model, now)
        if request.do_not_queue and request.state is RequestState.QUEUED:
            self._dequeue(model, request)
            wait_ns = max(1, verdict.finish_ns - now)
            refusal = Rejected(
                Reason.WOULD_QUEUE,
                f"{request.model} cannot start at once, and do_not_queue was asked",
                retry_after_ns=wait_ns,
                predicted_ns=request.predicted_ns,
            )
            self._close(request, RequestState.REJECTED, refusal)

    def _on_cancelled(self, request_id: int, now: int) -> None:
        request = self._requests.get(request_id)
        if request is None:
            return  # answered already: the client's leaving crossed the reply
        if request.state is RequestState.QUEUED:
            self._dequeue(self.state.models[request.model], request)
        self._close(request, RequestState.CANCELLED, Cancelled())

    def _enqueue(self, model: ModelState, request: Request) -> None:
        queue = model.queues.get(request.batch_key)
        if queue is None:
            queue = ModelQueue(
                request.model, request.batch_key, request.shape_key, request.elements
            )
            model.queues[request.batch_key] = queue
        model.num_queued += 1
        self.state.num_queued += 1
        if queue.push(request):
            self._announce(model, queue)
        if model.wants_load:
            self.state.want(model)

    def _dequeue(self, model: ModelState, request: Request) -> None:
        queue = model.queues[request.batch_key]
        was_head = queue.head is request
        if was_head:
            queue.pop_head()
        else:
            queue.remove(request)
        model.num_queued -= 1
        self.state.num_queued -= 1
        if was_head:
            self._announce(model, queue)

    def _announce(self, model: ModelState, queue: ModelQueue) -> None:
        """The queue's head changed: tell the devices its new key, and set its expiry."""
        head = queue.head
        if head is None:
            queue.latest_start_ns = None
            self._timers.clear(queue)
            del model.queues[queue.batch_key]
            model.wants_replica = model.wants_replica and model.num_queued > 0
            return
        device = model.reference()
        estimate = device.exec_estimate(queue)
        latest_ns = head.deadline_ns - estimate.guard[head.rows] - self.state.margin_ns(device)
        if latest_ns != queue.latest_start_ns:
            queue.latest_start_ns = latest_ns
            for holder in model.holders:
                holder.push_ready(latest_ns, queue)
        self._timers.set(queue, head.deadline_ns - estimate.plan[head.rows])

    def _close(self, request: Request, state: RequestState, outcome: Outcome) -> None:
        request.move_to(state)
        del self._requests[request.request_id]
        self._reply(request.request_id, outcome)

    def _reply(self, request_id: int, outcome: Outcome) -> None:
        self._out.append(Reply(request_id, outcome))

    # ------------------------------------------------------------------ time

    def _fire_due_timers(self, now: int) -> None:
        due = self._timers.pop_due(now)
        while due is not None:
            if isinstance(due, ModelQueue):
                self._expire_heads(due, now)
            elif isinstance(due, Outstanding):
                self._expire_executing(due, now)
            elif isinstance(due, DeviceMirror):
                self._plan(due, now)
            due = self._timers.pop_due(now)

    def _expire_heads(self, queue: ModelQueue, now: int) -> None:
        """Answer the heads that cannot make it any more even if they started this instant."""
        model = self.state.models[queue.model]
        estimate = model.reference_estimate(queue)
        head = queue.head
        while head is not None and now + estimate.plan[head.rows] >= head.deadline_ns:
            queue.pop_head()
            model.num_queued -= 1
            self.state.num_queued -= 1
            waited_ms = (now - head.arrival_ns) / 1e6
            detail = f"waited {waited_ms:.1f} ms for a device; too late to execute now"
            self._close(
                head,
                RequestState.EXPIRED,
                Expired(Reason.DEADLINE_EXCEEDED_QUEUED, detail),
            )
            head = queue.head
        self._announce(model, queue)

    def _expire_executing(self, outstanding: Outstanding, now: int) -> None:
        """Answer the members of a batch whose deadline is here, without waiting for it."""
        for request in outstanding.requests:
            if request.state is RequestState.DISPATCHED and now >= request.deadline_ns:
                detail = f"still executing after {(now - request.arrival_ns) / 1e6:.1f} ms"
                self._close(
                    request,
                    RequestState.EXPIRED,
                    Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, detail),
                )
        self._watch_deadlines(outstanding)

    def _watch_deadlines(self, outstanding: Outstanding) -> None:
        open_deadlines = [
            request.deadline_ns
            for request in outstanding.requests
            if request.state is RequestState.DISPATCHED
        ]
        if open_deadlines:
            self._timers.set(outstanding, min(open_deadlines))

    # ------------------------------------------------------------------ planning

    def _plan_for(self, model: ModelState, now: int) -> None:
        """Something changed for this model only: look at the devices it concerns."""
        if model.holders:
            if len(model.holders) == 1:
                self._plan_infers(model.holders[0], now)
            else:
                for device in sorted(model.holders, key=lambda d: d.exec_lane.free_at(now)):
                    if not model.num_queued:
                        break
                    self._plan_infers(device, now)
        if model.wants_load:
            idle = [device for device in model.offered_by if not device.num_moves]
            for device in sorted(idle, key=lambda d: -d.pages_free):
                self._plan_loads(device, now)
                if not model.wants_load:
                    break

    def _plan(self, device: DeviceMirror, now: int) -> None:
        # LOADs first: where lanes are shared, an Infer sent now would stand in their way, and a
        # LOAD that is worth it has requests waiting that are cold until it ends.
        self._plan_loads(device, now)
        self._plan_infers(device, now)

    def _plan_infers(self, device: DeviceMirror, now: int) -> None:
        config = self.state.config
        while device.num_infers < config.max_outstanding_infers:
            if device.peek_ready() is None:
                return
            send_at_ns = device.exec_lane.free_at(now) - config.schedule_ahead_ns
            if send_at_ns > now:
                self._timers.set(device, send_at_ns)
                return
            plan = self._batching.next_infer(self.state, device, now)
            if plan is None:
                return
            self._send_infer(device, plan, now)

    def _plan_loads(self, device: DeviceMirror, now: int) -> None:
        state = self.state
        if device.num_moves or not (state.has_wanted or state.pinned):
            return
        send_at_ns = device.load_lane.free_at(now) - state.config.schedule_ahead_ns
        if send_at_ns > now:
            if device.wake_at_ns is None or device.wake_at_ns > send_at_ns:
                self._timers.set(device, send_at_ns)
            return
        plan = self._residency.next_load(state, device, now)
        if plan is not None:
            for name in plan.evict:
                self._send_evict(device, name, now)
            self._send_load(device, plan.model, now)

    # ------------------------------------------------------------------ sending

    def _send_infer(self, device: DeviceMirror, plan: BatchPlan, now: int) -> None:
        model = self.state.models[plan.queue.model]
        queue = plan.queue
        head_changed = plan.requests[0] is queue.head
        for request in plan.requests:
            if request is queue.head:
                queue.pop_head()
            else:
                queue.remove(request)
            request.move_to(RequestState.DISPATCHED)
        model.num_queued -= len(plan.requests)
        self.state.num_queued -= len(plan.requests)
        if head_changed:
            self._announce(model, queue)
        record = device.touch(queue.model, plan.rows, now)
        record.num_infers += 1
        device.num_infers += 1
        action = Infer(
            self._new_action_id(),
            queue.model,
            plan.executed_rows,
            tuple([request.request_id for request in plan.requests]),
            tuple([request.rows for request in plan.requests]),
            plan.start_ns - self.state.config.schedule_ahead_ns,
            max(plan.latest_ns, plan.start_ns),
            plan.expected_ns,
        )
        device.exec_lane.add(action.action_id, start_ns=plan.start_ns, duration_ns=plan.expected_ns)
        outstanding = self._remember(
            device, action, plan.expected_ns, plan.requests, record.generation
        )
        self._watch_deadlines(outstanding)
        self._out.append(Send(device.worker_id, action))

    def _send_load(self, device: DeviceMirror, name: str, now: int) -> None:
        model = self.state.models[name]
        record = device.record(name)
        record.move_to(WeightsState.LOADING, name)
        record.generation += 1
        expected_ns = device.estimates(name).load_plan_ns
        start_ns = device.load_start_at(now)
        record.ready_at_ns = start_ns + expected_ns
        device.pages_free -= record.num_pages
        device.num_moves += 1
        model.loading_on.append(device)
        model.wants_replica = False
        latest_ns = max(
            (queue.last_deadline_ns for queue in model.queues.values()), default=FOREVER_NS
        )
        action = LoadWeights(
            self._new_action_id(),
            name,
            record.num_pages,
            start_ns - self.state.config.schedule_ahead_ns,
            max(latest_ns - expected_ns, start_ns),
            expected_ns,
        )
        device.load_lane.add(action.action_id, start_ns=start_ns, duration_ns=expected_ns)
        self._remember(device, action, expected_ns, [], record.generation)
        self._out.append(Send(device.worker_id, action))

    def _send_evict(self, device: DeviceMirror, name: str, now: int) -> None:
        record = device.weights[name]
        record.move_to(WeightsState.EVICTING, name)
        self._drop_holder(name, device)
        # The worker frees pages in the order of arrival, so the LOAD sent next may count on them.
        device.pages_free += record.num_pages
        start_ns = device.load_start_at(now) - self.state.config.schedule_ahead_ns
        action = EvictWeights(self._new_action_id(), name, start_ns, FOREVER_NS)
        self._remember(device, action, 0, [], record.generation)
        self._out.append(Send(device.worker_id, action))

    def _remember(
        self,
        device: DeviceMirror,
        action: Action,
        expected_ns: int,
        requests: list[Request],
        generation: int,
    ) -> Outstanding:
        outstanding = Outstanding(
            action,
            sent_ns=self._now,
            expected_ns=expected_ns,
            requests=requests,
            generation=generation,
        )
        device.outstanding[action.action_id] = outstanding
        return outstanding

    def _new_action_id(self) -> int:
        action_id = self._next_action_id
        self._next_action_id += 1
        return action_id

    # ------------------------------------------------------------------ results

    def _on_finished(self, event: ActionFinished, now: int) -> None:
        device = self.state.devices.get(event.worker_id)
        result = event.result
        outstanding = device.outstanding.pop(result.action_id, None) if device else None
        if device is None or outstanding is None:
            self.anomalies["result_of_unknown_action"] += 1
            return
        self._timers.clear(outstanding)
        match outstanding.action, result:
            case Infer(), InferResult():
                self._on_inferred(device, outstanding, outstanding.action, result, now)
            case LoadWeights(), LoadResult():
                self._on_loaded(device, outstanding, outstanding.action, result, now)
            case EvictWeights(), EvictResult():
                self._on_evicted(device, outstanding.action, result)
            case _:
                # Treated as a failure of the action, so that nothing it holds is lost.
                self.anomalies["result_of_another_kind"] += 1
                self._on_wrong_kind(device, outstanding, now)
        self._plan(device, now)

    def _on_inferred(
        self,
        device: DeviceMirror,
        outstanding: Outstanding,
        action: Infer,
        result: InferResult,
        now: int,
    ) -> None:
        device.num_infers -= 1
        record = device.weights[action.model]
        record.num_infers -= 1
        done_ns = min(result.output.end_ns, now)
        device.exec_lane.finish(action.action_id, done_ns)
        if result.code is not Code.OK:
            self._on_infer_failed(device, outstanding, action, result, now)
            return
        begin_ns = max(result.input.begin_ns, device.previous_done_ns)
        device.previous_done_ns = done_ns
        device.observe_delays(
            command_ns=result.received_ns - outstanding.sent_ns, reply_ns=now - done_ns
        )
        requests = outstanding.requests
        first = requests[0]
        rows = sum(action.rows)
        if done_ns > begin_ns:
            estimate = device.estimates(action.model).exec(first.shape_key, first.elements)
            estimate.observe(rows, done_ns - begin_ns)
        for request in requests:
            if request.state is not RequestState.DISPATCHED:
                continue  # answered at its deadline, or cancelled: the output is ignored
            if now > request.deadline_ns:
                detail = f"executed, but only after {(now - request.arrival_ns) / 1e6:.1f} ms"
                self._close(
                    request,
                    RequestState.EXPIRED,
                    Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, detail),
                )
                continue
            self._close(
                request,
                RequestState.SERVED,
                _served(device.worker_id, request, rows, result),
            )

    def _on_infer_failed(
        self,
        device: DeviceMirror,
        outstanding: Outstanding,
        action: Infer,
        result: InferResult,
        now: int,
    ) -> None:
        if result.code is Code.WEIGHTS_MISSING:
            self.anomalies["weights_missing"] += 1
            self._weights_gone(device, action.model)
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
                self._close(request, RequestState.FAILED, Failed(reason, result.message))
            elif request.num_failures < MAX_FAILURES:
                request.num_failures += 1
                self._requeue(request, now)
            elif result.code is Code.TOO_LATE:
                detail = f"no device could start it in time, twice: {result.message}"
                self._close(
                    request,
                    RequestState.EXPIRED,
                    Expired(Reason.DEADLINE_EXCEEDED_QUEUED, detail),
                )
            else:
                detail = f"{result.code.name.lower()} after a retry: {result.message}"
                self._close(request, RequestState.FAILED, Failed(Reason.ENGINE_ERROR, detail))

    def _requeue(self, request: Request, now: int) -> None:
        """Back to its queue if any device could still serve it; what cannot make it expires."""
        model = self.state.models.get(request.model)
        if model is None or not model.offered_by:
            detail = f"no worker is left that serves {request.model}"
            outcome = Failed(Reason.WORKER_LOST, detail, retry_after_ns=1_000_000_000)
            self._close(request, RequestState.FAILED, outcome)
            return
        request.move_to(RequestState.QUEUED)
        self._enqueue(model, request)
        queue = model.queues[request.batch_key]
        self._expire_heads(queue, now)
        if request.state is RequestState.QUEUED:
            self._plan_for(model, now)

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
        if record.generation != outstanding.generation or record.state is not WeightsState.LOADING:
            self.anomalies["load_of_old_generation"] += 1
            return
        model = self.state.models.get(name)
        if model is not None and device in model.loading_on:
            model.loading_on.remove(device)
        if result.code is Code.OK or result.code is Code.ALREADY_RESIDENT:
            if result.code is Code.OK:
                device.estimates(name).observe_load(
                    max(1, result.load.end_ns - result.load.begin_ns)
                )
                record.num_failures = 0
            self._weights_arrived(device, name, now)
            return
        record.move_to(WeightsState.ABSENT, name)
        device.pages_free += record.num_pages
        if result.code is not Code.TOO_LATE:
            self.anomalies[f"load_{result.code.name.lower()}"] += 1
            record.num_failures += 1
            wait_ns = min(LOAD_RETRY_NS << min(record.num_failures - 1, 8), LOAD_RETRY_MAX_NS)
            record.retry_at_ns = now + wait_ns
            self._timers.set(device, record.retry_at_ns)
        if model is not None and model.wants_load:
            self.state.want(model)

    def _weights_arrived(self, device: DeviceMirror, name: str, now: int) -> None:
        record = device.weights[name]
        record.move_to(WeightsState.RESIDENT, name)
        record.last_used_ns = now
        model = self.state.models.get(name)
        if model is None:
            return  # removed while loading: evicted when its pages are wanted
        model.holders.append(device)
        for queue in model.queues.values():
            if queue.latest_start_ns is not None:
                device.push_ready(queue.latest_start_ns, queue)
            for request in queue:
                if request.cold_at_ns is not None and request.ready_at_ns is None:
                    request.ready_at_ns = now

    def _weights_gone(self, device: DeviceMirror, name: str) -> None:
        """The worker says that resident weights are not there: believe it."""
        record = device.weights[name]
        if record.state is WeightsState.RESIDENT:
            record.move_to(WeightsState.ABSENT, name)
            device.pages_free += record.num_pages
            self._drop_holder(name, device)

    def _drop_holder(self, name: str, device: DeviceMirror) -> None:
        model = self.state.models.get(name)
        if model is not None and device in model.holders:
            model.holders.remove(device)
            if model.wants_load:
                self.state.want(model)

    def _on_evicted(self, device: DeviceMirror, action: EvictWeights, result: EvictResult) -> None:
        record = device.weights[action.model]
        if record.state is not WeightsState.EVICTING:
            self.anomalies["evict_of_old_generation"] += 1
            return
        if result.code in (Code.OK, Code.WEIGHTS_MISSING):
            record.move_to(WeightsState.ABSENT, action.model)
            if result.code is not Code.OK:
                self.anomalies["evict_weights_missing"] += 1
            return
        self.anomalies[f"evict_{result.code.name.lower()}"] += 1
        device.pages_free -= record.num_pages
        self._weights_arrived(device, action.model, self._now)

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
        else:
            self._on_evicted(device, action, EvictResult(action.action_id, code, message))

    # ------------------------------------------------------------------ workers

    def _on_joined(self, event: WorkerJoined, now: int) -> None:
        if event.worker_id in self.state.devices:
            raise ValueError(f"worker {event.worker_id} joined twice")
        offered = {spec.name: spec for spec in event.models if spec.unavailable_reason is None}
        device = DeviceMirror(event.worker_id, event.device, offered)
        self.state.devices[event.worker_id] = device
        for name in offered:
            model = self.state.models.get(name)
            if model is not None:
                model.offer(device)
        for name in event.resident:
            if name not in offered:
                self.anomalies["resident_but_not_offered"] += 1
                continue
            record = device.record(name)
            record.move_to(WeightsState.LOADING, name)
            device.pages_free -= record.num_pages
            self._weights_arrived(device, name, now)
        self._plan(device, now)

    def _on_lost(self, event: WorkerLost, now: int) -> None:
        device = self.state.devices.pop(event.worker_id, None)
        if device is None:
            self.anomalies["unknown_worker_lost"] += 1
            return
        self._timers.clear(device)
        for name in device.offered:
            model = self.state.models.get(name)
            if model is None:
                continue
            model.withdraw(device)
        for outstanding in device.outstanding.values():
            self._timers.clear(outstanding)
            for request in outstanding.requests:
                if request.state is RequestState.DISPATCHED:
                    self._on_request_lost(request, event, now)
        for model in self.state.models.values():
            if model.num_queued and not model.offered_by:
                for queue in list(model.queues.values()):
                    for request in list(queue):
                        self._dequeue_lost(model, request, event, now)
            elif model.wants_load:
                self.state.want(model)
                self._plan_for(model, now)

    def _on_request_lost(self, request: Request, event: WorkerLost, now: int) -> None:
        if request.num_failures >= MAX_FAILURES:
            self._close_lost(request, event, now)
            return
        request.num_failures += 1
        model = self.state.models.get(request.model)
        if model is None or not model.offered_by:
            self._close_lost(request, event, now)
            return
        verdict = self._admission.decide(self.state, request, now)
        if isinstance(verdict, Rejected):
            self._close_lost(request, event, now)
            return
        self._requeue(request, now)

    def _dequeue_lost(
        self, model: ModelState, request: Request, event: WorkerLost, now: int
    ) -> None:
        queue = model.queues[request.batch_key]
        queue.remove(request)
        model.num_queued -= 1
        self.state.num_queued -= 1
        if queue.head is None:
            self._announce(model, queue)
        self._close_lost(request, event, now)

    def _close_lost(self, request: Request, event: WorkerLost, now: int) -> None:
        """503 while time is left for the client to try elsewhere, 504 when it is not."""
        detail = f"worker {event.worker_id} was lost ({event.reason}), and no other can make it"
        if now < request.deadline_ns:
            outcome = Failed(Reason.WORKER_LOST, detail, retry_after_ns=1_000_000_000)
            self._close(request, RequestState.FAILED, outcome)
        else:
            self._close(
                request,
                RequestState.EXPIRED,
                Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, detail),
            )

    # ------------------------------------------------------------------ models

    def _add_model(self, spec: ModelSpec) -> ModelState:
        model = ModelState(spec)
        self.state.models[spec.name] = model
        if spec.is_pinned:
            self.state.pinned[spec.name] = None
        return model

    def _on_model_added(self, spec: ModelSpec, now: int) -> None:
        if spec.name in self.state.models:
            self._on_model_removed(ModelRemoved(spec.name, "it was replaced"), now)
        model = self._add_model(spec)
        for device in self.state.devices.values():
            known = device.offered.get(spec.name)
            if known is not None and known.content_hash == spec.content_hash:
                model.offer(device)
                state = device.weights_state(spec.name)
                if state is WeightsState.RESIDENT:
                    model.holders.append(device)
                elif state is WeightsState.LOADING:
                    model.loading_on.append(device)
        for device in list(model.offered_by):
            self._plan(device, now)

    def _on_model_removed(self, event: ModelRemoved, now: int) -> None:
        model = self.state.models.pop(event.model, None)
        if model is None:
            self.anomalies["unknown_model_removed"] += 1
            return
        self.state.pinned.pop(event.model, None)
        for queue in model.queues.values():
            self._timers.clear(queue)
            queue.latest_start_ns = None
            for request in queue:
                detail = f"{event.model} was removed: {event.reason}"
                self._close(request, RequestState.FAILED, Failed(Reason.MODEL_UNAVAILABLE, detail))
        self.state.num_queued -= model.num_queued
        model.num_queued = 0
        for device in list(model.holders):
            if not device.weights[event.model].num_infers:
                self._send_evict(device, event.model, now)

    def _on_pinned(self, event: ModelPinned, now: int) -> None:
        model = self.state.models.get(event.model)
        if model is None:
            self.anomalies["unknown_model_pinned"] += 1
            return
        model.is_pinned = event.is_pinned
        if not event.is_pinned:
            self.state.pinned.pop(event.model, None)
            return
        self.state.pinned[event.model] = None
        for device in list(model.offered_by):
            if model.is_cold:
                self._plan_loads(device, now)


def _served(worker_id: str, request: Request, rows: int, result: InferResult) -> Served:
    load_ns = 0
    if request.cold_at_ns is not None and request.ready_at_ns is not None:
        load_ns = request.ready_at_ns - request.cold_at_ns
    waited_ns = max(0, result.input.begin_ns - request.arrival_ns)
    return Served(
        worker_id,
        rows,
        request.cold_at_ns is not None,
        request.predicted_ns,
        max(0, waited_ns - load_ns),
        load_ns,
        _length(result.input),
        _length(result.exec),
        _length(result.output),
    )


def _length(span: Span) -> int:
    return max(0, span.end_ns - span.begin_ns)


def _concerns(command: Command, request_id: int) -> bool:
    if isinstance(command, Reply):
        return command.request_id == request_id
    return isinstance(command.action, Infer) and request_id in command.action.request_ids
