"""Watches a simulation and writes down what happened, row by row, into packed buffers.

Owns nothing of the run: it reads events, commands and device mirrors, and never changes one. On
the hot path it costs one packing per answer and per action (design target: 3 µs per request).
"""

from collections.abc import Sequence

from loadtest.results.busy import fill_busy_shares
from loadtest.results.tables import (
    ACTION_COLUMNS,
    CANCELLED,
    DEVICE_COLUMNS,
    EXPIRED,
    FAILED,
    KINDS,
    OPEN,
    OUTCOMES,
    REJECTED,
    REQUEST_COLUMNS,
    UNKNOWN_NS,
    Array,
    Rows,
    Table,
    Tables,
)
from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadWeights,
    ReleaseResult,
    Result,
)
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Event,
    Expired,
    Failed,
    Outcome,
    Rejected,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
    Served,
    WorkerJoined,
    WorkerLost,
)
from scheduler.scheduler import Scheduler

# (at_ns, model, slo_ns, stream, tenant): an Ask of loadtest.workloads is one
AskFields = tuple[int, str, int, int, str]
# (worker, sent_ns, planned_start_ns, action) of an action that is not answered
SentAction = tuple[str, int, int, Action]

_OUTCOME_OF: dict[type[Outcome], int] = {
    Rejected: OUTCOMES.index(REJECTED),
    Expired: OUTCOMES.index(EXPIRED),
    Failed: OUTCOMES.index(FAILED),
    Cancelled: OUTCOMES.index(CANCELLED),
}
_SERVED = 0


class _Codes(dict[str, int]):
    """Words in the order first seen; the code of a word is its place."""

    def __missing__(self, text: str) -> int:
        code = self[text] = len(self)
        return code


class Collector:
    """An observer of `scheduler.simulation.Simulation`: call it with (now, event, commands).

    `origin_ns` is the instant on the scheduler's timeline at which the run starts; the tables count
    from it. `client_delay_ns` is the one way from the gateway to the client that every answer takes
    on top.
    """

    def __init__(
        self, scheduler: Scheduler, *, client_delay_ns: int = 0, origin_ns: int = 0
    ) -> None:
        self._scheduler = scheduler
        self._client_delay_ns = client_delay_ns
        self._origin_ns = origin_ns
        self._requests = Rows(REQUEST_COLUMNS)
        self._actions = Rows(ACTION_COLUMNS)
        self._devices = Rows(DEVICE_COLUMNS)
        # all and only requests without an answer
        self._open: dict[int, AskFields] = {}
        # all and only actions without a result whose worker is not lost
        self._sent: dict[int, SentAction] = {}
        self._models = _Codes()
        self._tenants = _Codes({"": 0})
        self._reasons = _Codes({"": 0})
        self._workers = _Codes({"": 0})
        self._codes = _Codes({code.name: code.value for code in Code})
        self._joined_ns: dict[int, int] = {}  # by the worker's code; its lanes' time begins there

    @property
    def num_answered(self) -> int:
        """Requests answered so far."""
        return len(self._requests.buffer) // _REQUEST_BYTES

    def arrived(self, request_id: int, ask: AskFields) -> None:
        """Say whose request this is, before the event that brings it to the scheduler.

        A request nobody announced is taken from its event: stream 0, no tenant.
        """
        self._open[request_id] = ask

    def __call__(self, now: int, event: Event, commands: Sequence[Send | Reply]) -> None:
        kind = type(event)
        if kind is RequestArrived:
            self._expect(event)  # type: ignore[arg-type]  # mypy does not narrow `kind is`
        elif kind is RequestsArrived:
            for arrived in event.requests:  # type: ignore[union-attr]
                self._expect(arrived)
        num_good = 0
        for command in commands:
            if type(command) is Reply:
                num_good += self._answered(command.request_id, command.outcome, now)
            else:
                assert isinstance(command, Send)
                self._note_sent(command, now)
        if kind is ActionFinished:
            self._finished(event.result, now, num_good)  # type: ignore[union-attr]
        elif kind is WorkerLost:
            self._lost(event.worker_id, now)  # type: ignore[union-attr]
        elif kind is WorkerJoined:
            worker = self._workers[event.worker_id]  # type: ignore[union-attr]
            self._joined_ns[worker] = now - self._origin_ns

    def sample(self, now: int, scheduler: Scheduler) -> None:
        """One row for every device that is joined now."""
        rows = self._devices
        for worker_id, device in scheduler.devices.items():
            loading = 0
            for outstanding in device.outstanding.values():
                if type(outstanding.action) is LoadWeights:
                    loading += outstanding.action.num_pages
            free = max(0, device.pages_free)
            rows.buffer += rows.pack(
                now - self._origin_ns,
                self._workers[worker_id],
                free,
                loading,
                device.spec.total_pages - free - loading,
                device.schedule_ahead_ns,
                device.gap_rate,
                0.0,
                0.0,
            )

    def tables(self) -> Tables:
        """What happened so far, by request id, action id and instant.

        What is still open is in them as such. The collector may go on afterwards.
        """
        requests, actions = self._request_columns(), self._action_columns()
        devices = self._devices.columns(by="at_ns")
        fill_busy_shares(devices, actions, self._joined_ns)
        models, workers = tuple(self._models), tuple(self._workers)
        return Tables(
            Table(
                requests,
                {
                    "model": models,
                    "tenant": tuple(self._tenants),
                    "outcome": OUTCOMES,
                    "reason": tuple(self._reasons),
                    "worker": workers,
                },
            ),
            Table(
                actions,
                {"worker": workers, "kind": KINDS, "model": models, "code": tuple(self._codes)},
            ),
            Table(devices, {"worker": workers}),
        )

    # ------------------------------------------------------------------ requests

    def _expect(self, event: RequestArrived) -> None:
        if event.request_id not in self._open:
            self._open[event.request_id] = (
                event.arrival_ns - self._origin_ns,
                event.model,
                event.deadline_ns - event.arrival_ns,
                0,
                "",
            )

    def _answered(self, request_id: int, outcome: Outcome, now: int) -> bool:
        """Write the request down; true if it was good."""
        ask = self._open.pop(request_id, None)
        if ask is None:
            raise ValueError(f"request {request_id} was answered and had not arrived, or twice")
        at_ns, model, slo_ns, stream, tenant = ask
        answered_ns = now - self._origin_ns + self._client_delay_ns
        rows = self._requests
        if type(outcome) is Served:
            is_good = answered_ns <= at_ns + slo_ns
            rows.buffer += rows.pack(
                request_id, stream, self._models[model], self._tenants[tenant], at_ns, slo_ns,
                answered_ns, _SERVED, 0, is_good, self._workers[outcome.worker_id],
                outcome.batch_rows, outcome.is_cold_start, outcome.predicted_ns, outcome.queue_ns,
                outcome.load_ns, outcome.exec_ns,
            )  # fmt: skip
            return is_good
        reason = getattr(outcome, "reason", None)
        predicted_ns = getattr(outcome, "predicted_ns", None)
        rows.buffer += rows.pack(
            request_id, stream, self._models[model], self._tenants[tenant], at_ns, slo_ns,
            answered_ns, _OUTCOME_OF[type(outcome)],
            0 if reason is None else self._reasons[reason.value],
            False, 0, 0, False, UNKNOWN_NS if predicted_ns is None else predicted_ns, 0, 0, 0,
        )  # fmt: skip
        return False

    def _request_columns(self) -> dict[str, Array]:
        still_open = b"".join(
            self._requests.pack(
                request_id, stream, self._models[model], self._tenants[tenant], at_ns, slo_ns,
                UNKNOWN_NS, OUTCOMES.index(OPEN), 0, False, 0, 0, False, UNKNOWN_NS, 0, 0, 0,
            )
            for request_id, (at_ns, model, slo_ns, stream, tenant) in self._open.items()
        )  # fmt: skip
        return self._requests.columns(by="request_id", more=still_open)

    # ------------------------------------------------------------------ actions

    def _note_sent(self, command: Send, now: int) -> None:
        action = command.action
        device = self._scheduler.devices.get(command.worker_id)
        ahead_ns = 0 if device is None else device.schedule_ahead_ns
        # an action's window opens that much before its lane is planned to be free for it
        planned_ns = action.earliest_ns + ahead_ns - self._origin_ns
        self._sent[action.action_id] = (
            command.worker_id,
            now - self._origin_ns,
            planned_ns,
            action,
        )

    def _finished(self, result: Result, now: int, num_good: int) -> None:
        sent = self._sent.pop(result.action_id, None)
        if sent is None:
            return  # stale: its worker was lost, and the action written down then
        begin_ns, end_ns = self._span(result)
        code = self._codes[result.code.name]
        heard_ns = now - self._origin_ns
        self._actions.buffer += self._packed(sent, begin_ns, end_ns, heard_ns, code, num_good)

    def _lost(self, worker_id: str, now: int) -> None:
        code, heard_ns = self._codes["LOST"], now - self._origin_ns
        for action_id, sent in list(self._sent.items()):
            if sent[0] == worker_id:
                del self._sent[action_id]
                self._actions.buffer += self._packed(
                    sent, UNKNOWN_NS, UNKNOWN_NS, heard_ns, code, 0
                )

    def _span(self, result: Result) -> tuple[int, int]:
        """When the device was busy with it; EVICT and release take no time, at their arrival."""
        if isinstance(result, EvictResult | ReleaseResult):
            at_ns = result.received_ns - self._origin_ns
            return at_ns, at_ns
        span = result.exec if isinstance(result, InferResult) else result.load
        if not span.end_ns:
            return UNKNOWN_NS, UNKNOWN_NS
        return span.begin_ns - self._origin_ns, span.end_ns - self._origin_ns

    def _packed(
        self, sent: SentAction, begin_ns: int, end_ns: int, heard_ns: int, code: int, num_good: int
    ) -> bytes:
        worker_id, sent_ns, planned_ns, action = sent
        if type(action) is Infer:
            kind, rows, executed, num_requests = (
                0, sum(action.rows), action.batch_size, len(action.rows),
            )  # fmt: skip
            expected_ns = action.expected_duration_ns
        elif type(action) is LoadWeights:
            kind, rows, executed, num_requests = 1, 0, 0, 0
            expected_ns = action.expected_duration_ns
        else:
            kind = 2 if type(action) is EvictWeights else 3
            rows = executed = num_requests = expected_ns = 0
        return self._actions.pack(
            action.action_id, self._workers[worker_id], kind, self._models[action.model], rows,
            executed, num_requests, sent_ns, planned_ns, expected_ns, begin_ns, end_ns, heard_ns,
            code, num_good,
        )  # fmt: skip

    def _action_columns(self) -> dict[str, Array]:
        code = self._codes["OPEN"]
        still_open = b"".join(
            self._packed(sent, UNKNOWN_NS, UNKNOWN_NS, UNKNOWN_NS, code, 0)
            for sent in self._sent.values()
        )
        return self._actions.columns(by="action_id", more=still_open)


_REQUEST_BYTES = len(Rows(REQUEST_COLUMNS).pack(*[0] * len(REQUEST_COLUMNS)))
