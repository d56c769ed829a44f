"""The one object that decides: events in, commands out, `now` as an argument.

It is the only writer of scheduling state. A shell calls `handle` with what happened and carries
out the commands; it calls again with Tick no later than `next_wakeup()`. Policies are asked for
decisions and applied here. Rules of the contract (each has a test): `now` never decreases; every
RequestArrived gets exactly one Reply; remote input that is unknown or stale is counted as an
anomaly and never raises; in-flight work is not cancelled; the same events give the same commands.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from scheduler import staging
from scheduler.actions import Code, Infer
from scheduler.device import DeviceMirror, Outstanding
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Command,
    Event,
    ModelAdded,
    ModelForgotten,
    ModelOffered,
    ModelRemoved,
    ModelStaged,
    ModelUnloaded,
    Quote,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    RequestsArrived,
    StagingEnded,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.fleet import Fleet
from scheduler.ledger import Ledger
from scheduler.model_queue import ModelQueue
from scheduler.planner import Planner
from scheduler.policies import Policy, parse
from scheduler.quotes import Quotes, not_served, would_queue
from scheduler.request import Request, RequestState
from scheduler.results import Results
from scheduler.spec import ModelSpec, SchedulerConfig
from scheduler.state import ModelState, SchedulerState

# Refusals of what no fleet state of today would serve: such requests are no load.
NEVER_SERVABLE: Final = (
    Reason.NO_WORKER,
    Reason.MODEL_UNAVAILABLE,
    Reason.INVALID_INPUT,
    Reason.LARGER_THAN_CACHE,
    Reason.SLO_INFEASIBLE_EVER,
)


class Scheduler:
    """See the module. `policy` is a policy of this scheduler's own, or a text that names one.

    Raises PolicyError for a text that names none (scheduler.policies.parse).
    """

    def __init__(
        self,
        config: SchedulerConfig | None = None,
        models: Sequence[ModelSpec] = (),
        *,
        policy: Policy | str = "remontoir",
    ) -> None:
        self.policy = parse(policy) if isinstance(policy, str) else policy
        self.state = SchedulerState(
            config or SchedulerConfig(),
            keeps_arrival_order=self.policy.queue_order == "arrival",
            waits_to_the_end=self.policy.waits_to_the_end,
        )
        self._admission = self.policy.admission
        self._ledger = Ledger(self.state)
        self._planner = Planner(self._ledger, self.policy)
        self._quotes = Quotes(self._ledger, self._admission, self._planner)
        self._results = Results(self._ledger, self._planner)
        self._fleet = Fleet(self._ledger, self._planner, self._results, self._admission)
        self._story: deque[tuple[int, Event, list[Command]]] = deque(
            maxlen=self.state.config.story_length
        )
        for spec in models:
            self._fleet.add_model(spec)

    # ------------------------------------------------------------------ the contract

    def handle(self, event: Event, now: int) -> list[Command]:
        """What to do about the event, in order. `now` in ns, never less than before."""
        ledger = self._ledger
        if now < ledger.now:
            raise ValueError(f"now went back from {ledger.now} to {now}")
        ledger.now = now
        out: list[Command] = []
        ledger.out = out
        self._fire_due_timers(now)
        match event:
            case RequestsArrived():
                self._on_arrived(event.requests, now)
            case RequestArrived():
                self._on_arrived((event,), now)
            case ActionFinished():
                if event.result.code is Code.SHUTTING_DOWN:
                    self._fleet.on_stopping(event.worker_id, now)
                self._results.on_finished(event, now)
            case Tick():
                pass
            case RequestCancelled():
                self._on_cancelled(event.request_id, now)
            case WorkerJoined():
                self._fleet.on_joined(event, now)
            case WorkerLost():
                self._fleet.on_lost(event, now)
            case ModelAdded():
                self._fleet.on_model_added(event.spec, now)
            case ModelRemoved():
                self._fleet.on_model_removed(event, now)
            case ModelUnloaded():
                self._fleet.on_model_unloaded(event, now)
            case ModelOffered():
                self._fleet.on_offered(event, now)
            case ModelStaged():
                self._fleet.on_staged(event, now)
            case StagingEnded():
                staging.end(self.state, event.model)
            case ModelForgotten():
                self._fleet.on_forgotten(event)
            case _:  # ModelPinned: the type checker proves that no other event is left
                self._fleet.on_pinned(event, now)
        self._story.append((now, event, out))
        return out

    def foresee(self, event: RequestArrived, now: int) -> Rejected | None:
        """What admission would refuse the request with if it arrived now; None if it would not.

        Lets a shell say no before the request's payload has arrived. Queues and sends nothing; as
        on arrival, a refusal counts as load and lets old estimates be doubted. What is cold is left
        to the arrival, which may have it loaded for the next one.
        """
        model = self.state.models.get(event.model)
        if model is None or model.spec.unavailable_reason is not None:
            return None
        request = Request(event)
        verdict = self._admission.decide(self.state, request, now)
        if not isinstance(verdict, Rejected) or verdict.reason is Reason.COLD_MODEL:
            return None
        if verdict.predicted_ns is not None:
            model.doubt_estimates(now)
        if verdict.reason not in NEVER_SERVABLE:
            self.state.note_arrival(model, request, now)
        return verdict

    def quote(self, event: RequestArrived, now: int, *, count: int = 1) -> Quote:
        """What would become of `count` such requests if they arrived now, together.

        A pure question: whatever is asked, every later decision is the same. Its answer is that of
        admission, for each as if those before it had been queued and nothing sent yet, as it is for
        requests that arrive together. With `do_not_queue` a no is certain, a yes says that a lane
        is open, which batching may still give to others. No request id is used; wake-ups that are
        due must have been handled.
        """
        return self._quotes.quote(event, count, now)

    def verdict(self, event: RequestArrived, now: int) -> Quote:
        """As `quote` of one such request, without the least SLOs and what is ahead, which take
        asking again and again: for choosing between models on the way of a request.
        """
        return self._quotes.verdict(event, now)

    def next_wakeup(self) -> int | None:
        """The instant by which `handle(Tick(), now)` is due; always later than the last `now`."""
        at_ns = self._ledger.timers.next_at()
        return None if at_ns is None else max(at_ns, self._ledger.now + 1)

    # ------------------------------------------------------------------ reading

    @property
    def anomalies(self) -> Counter[str]:
        """What remote input has done that it should not have, counted by kind."""
        return self._ledger.anomalies

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
        return self._ledger.now

    def open_request_ids(self) -> list[int]:
        return list(self._ledger.requests)

    @property
    def num_open(self) -> int:
        return len(self._ledger.requests)

    def queue_depth(self, model: str) -> int:
        return self.state.models[model].num_queued

    @property
    def num_serving(self) -> int:
        """Devices that are not about to stop."""
        return self.state.num_serving

    def offered_load(self, now: int) -> float:
        """How many devices what arrives lately would keep busy, in the batches that rates and SLOs
        allow; whatever becomes of it.
        """
        return self.state.offered.as_of(now)

    def staging_of(self, model: str) -> tuple[bool, str | None]:
        """Of a staged model: whether waiting any longer is of no use, and why a trial of it failed,
        if one did.
        """
        found = self.state.staged.get(model)
        if found is None:
            return True, None
        return staging.is_settled(self.state, model, self.now), found.problem

    def estimate_ns(self, model: str, rows: int) -> int | None:
        """Planned execution of so many rows where the model would run; None without a worker."""
        state = self.state.models[model]
        if not state.offered_by:
            return None
        return state.reference().estimates(model).first.time_for(rows)

    def overlooked(self) -> dict[str, str]:
        """Worker id → what it could be sent now though nothing will wake the core: always empty."""
        found = {
            worker_id: self._planner.overlooked(device, self.now)
            for worker_id, device in self.state.devices.items()
        }
        return {worker_id: what for worker_id, what in found.items() if what is not None}

    def story(self, request_id: int) -> list[tuple[int, Event, list[Command]]]:
        """The kept (now, event, commands) in which the request appears: the answer to "why"."""
        return [
            (now, event, commands)
            for now, event, commands in self._story
            if _is_about(event, request_id)
            or any(_concerns(command, request_id) for command in commands)
        ]

    def recent_log(self) -> list[tuple[int, Event, list[Command]]]:
        """The last SchedulerConfig.story_length of (now, event, commands), oldest first."""
        return list(self._story)

    # ------------------------------------------------------------------ deciding

    def _on_arrived(self, events: tuple[RequestArrived, ...], now: int) -> None:
        touched: dict[str, ModelState] = {}
        impatient: list[tuple[ModelState, Request]] = []
        for event in events:
            request = self._admit(event, now)
            if request is not None:
                model = touched[request.model] = self.state.models[request.model]
                if request.do_not_queue:
                    impatient.append((model, request))
        for model in touched.values():
            self._planner.plan_for(model, now)
        for model, request in impatient:
            if request.state is RequestState.QUEUED:
                self._turn_away(model, request, now)
                self._planner.plan_released(model, now)

    def _admit(self, event: RequestArrived, now: int) -> Request | None:
        """Queue the request, or refuse it."""
        if event.request_id in self._ledger.requests:
            raise ValueError(f"request id {event.request_id} is already open")
        model = self.state.models.get(event.model)
        if model is None or model.spec.unavailable_reason is not None:
            self._ledger.reply(event.request_id, not_served(event, model))
            return None
        request = Request(event)
        verdict = self._admission.decide(self.state, request, now)
        if not isinstance(verdict, Rejected) or verdict.reason not in NEVER_SERVABLE:
            self.state.note_arrival(model, request, now)
        if isinstance(verdict, Rejected):
            self._ledger.reply(event.request_id, verdict)
            if verdict.predicted_ns is not None:
                model.doubt_estimates(now)
            if verdict.reason is Reason.COLD_MODEL:
                self._planner.plan_refused_cold(model, now)
            return None
        request.predicted_ns = verdict.finish_ns - event.arrival_ns
        if verdict.deadline_ns is not None:
            request.plan_with(verdict.deadline_ns)
        if not model.holders:
            request.cold_at_ns = now
        if verdict.wants_replica:
            model.wants_replica = True
        self._ledger.requests[event.request_id] = request
        self._ledger.enqueue(model, request)
        return request

    def _turn_away(self, model: ModelState, request: Request, now: int) -> None:
        """`do_not_queue` was asked, and it could not start at once."""
        self._ledger.dequeue(model, request)
        refusal = would_queue(request, request.predicted_ns, now)
        self._ledger.close(request, RequestState.REJECTED, refusal)

    def _on_cancelled(self, request_id: int, now: int) -> None:
        request = self._ledger.requests.get(request_id)
        if request is None:
            return  # answered already: the client's leaving crossed the reply
        was_queued = request.state is RequestState.QUEUED
        self._ledger.close(request, RequestState.CANCELLED, Cancelled())
        if was_queued:
            model = self.state.models[request.model]
            self._ledger.dequeue(model, request)
            self._planner.plan_released(model, now)

    def _fire_due_timers(self, now: int) -> None:
        due = self._ledger.timers.pop_due(now)
        while due is not None:
            if isinstance(due, ModelQueue):
                self._ledger.expire_heads(due, now)
                self._planner.plan_released(self.state.models[due.model], now)
            elif isinstance(due, Outstanding):
                self._ledger.expire_executing(due, now)
            else:
                assert isinstance(due, DeviceMirror)
                self._planner.plan(due, now)
            due = self._ledger.timers.pop_due(now)


def _is_about(event: Event, request_id: int) -> bool:
    if isinstance(event, RequestsArrived):
        return any(arrived.request_id == request_id for arrived in event.requests)
    if isinstance(event, RequestArrived | RequestCancelled):
        return event.request_id == request_id
    return False


def _concerns(command: Command, request_id: int) -> bool:
    if isinstance(command, Reply):
        return command.request_id == request_id
    return isinstance(command.action, Infer) and request_id in command.action.request_ids
