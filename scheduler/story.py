"""One request's story, gathered from what went into a scheduler and came out, told in sentences.

It owns what is worth telling. Facts are those that happened; the state around them is that of a
scheduler that is run along, for as long as it decides what was decided then, or what hindsight
makes of the log (scheduler/hindsight.py).
"""

from collections.abc import Callable, Iterator

from scheduler.actions import Action, Code, Infer, InferResult, LoadResult, LoadWeights
from scheduler.event_log import Foreseen, Handled
from scheduler.events import (
    ActionFinished,
    Event,
    Expired,
    Failed,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    RequestsArrived,
    Send,
    Served,
    WorkerLost,
)
from scheduler.scheduler import Scheduler
from scheduler.situation import Situation, predicted_ns, sentences, situation
from scheduler.words import Names, counted, listed, ms

_Key = tuple[str, int]  # worker id, action id
Instant = Callable[[int], str]  # an instant in words: "0.010300 s after the recording's start"
NAMES = Names()


class Story:
    """Of the request with this id. Call `before` and `after` around every call that happened.

    `label` is what its reader calls it, `at` says instants and `names` the names of others.
    """

    def __init__(
        self,
        request_id: int,
        at: Instant,
        *,
        label: str | None = None,
        names: Names = NAMES,
    ) -> None:
        self._request_id = request_id
        self._at = at
        self._label = str(request_id) if label is None else label
        self._names = names
        self._request: RequestArrived | None = None
        self._sentences: list[str] = []
        # all and only actions sent and not yet heard of
        self._sent: dict[_Key, tuple[int, Action]] = {}
        self._own: _Key | None = None  # the Infer that carries it
        self._ran: list[str] = []  # what its devices did while it waited
        self._is_answered = False

    @property
    def is_over(self) -> bool:
        """Nothing can be added."""
        return self._is_answered and self._own is None

    @property
    def sentences(self) -> list[str]:
        if self._request is not None and not self._is_answered:
            return [*self._sentences, "The recording ends before it was answered."]
        return self._sentences

    def before(
        self, entry: Handled, scheduler: Scheduler | None, around: Situation | None = None
    ) -> None:
        """`scheduler` is None where none is run along, or it decides something else than was
        decided; `around` is then what is known of the state without it.
        """
        arrived = [r for r in arrivals_in(entry.event) if r.request_id == self._request_id]
        if arrived:
            self._request = arrived[0]
            self._tell_arrival(self._request, entry)
            if scheduler is not None:
                around = situation(scheduler, self._request, entry.now)
            if scheduler is not None or around is not None:
                self._sentences += sentences(around, self._request, self._names)

    def after(self, entry: Handled, scheduler: Scheduler | None) -> None:
        event, now = entry.event, entry.now
        if isinstance(event, RequestCancelled) and event.request_id == self._request_id:
            self._say(f"Its client went away {self._after_arrival(now)}.")
        elif isinstance(event, ActionFinished):
            self._on_finished(event, now)
        elif isinstance(event, WorkerLost):
            self._on_lost(event, now)
        was_queued = self._own is None
        for command in entry.commands or ():
            if isinstance(command, Reply):
                if command.request_id == self._request_id:
                    self._on_reply(command, now)
            else:
                self._on_sent(command, now)
        request = self._request
        is_new = request is not None and request in arrivals_in(event)
        if request is not None and is_new and not self._is_answered:
            predicted = None if scheduler is None else predicted_ns(scheduler, request)
            if predicted is not None:
                at = len(self._sentences) - (1 if was_queued and self._own is not None else 0)
                told = f"It was let in, with an answer predicted for {ms(predicted)} after arrival."
                self._sentences.insert(at, told)

    # ------------------------------------------------------------------ what happened

    def _tell_arrival(self, request: RequestArrived, entry: Handled) -> None:
        self._say(arrival(request, f"Request {self._label}", self._at))
        told = f"The scheduler heard of it {ms(entry.now - request.arrival_ns)} later"
        together = arrivals_in(entry.event)
        if len(together) > 1:
            others = len(together) - 1
            same = sum(other.model == request.model for other in together) - 1
            told += f", together with {counted(others, 'other request')}, {same} of {request.model}"
        self._say(f"{told}.")

    def _on_sent(self, send: Send, now: int) -> None:
        action = send.action
        key = (send.worker_id, action.action_id)
        self._sent[key] = (now, action)
        request = self._request
        if request is None or self._is_answered:
            return
        if isinstance(action, Infer) and self._request_id in action.request_ids:
            self._tell_waiting()
            self._own = key
            others = [r for r in action.request_ids if r != self._request_id]
            rows = sum(action.rows)
            told = f"It was sent to {send.worker_id} {self._after_arrival(now)}, "
            told += (
                f"in a batch of {counted(rows, 'row')} with {counted(len(others), 'other request')}"
                f" ({listed([self._names.request(other) for other in others])})"
                if others
                else "alone"
            )
            if action.batch_size != rows:
                told += f", padded to {action.batch_size}"
            self._say(f"{told}; expected to execute for {ms(action.expected_duration_ns)}.")
        elif isinstance(action, LoadWeights) and action.model == request.model:
            self._say(
                f"{send.worker_id} was told to load {action.model} {self._after_arrival(now)}, "
                f"expected to take {ms(action.expected_duration_ns)}."
            )

    def _on_finished(self, event: ActionFinished, now: int) -> None:
        key = (event.worker_id, event.result.action_id)
        _, action = self._sent.pop(key, (0, None))
        request, result = self._request, event.result
        if request is None or action is None:
            return
        if key == self._own:
            self._own = None
            self._tell_execution(event, now)
        elif isinstance(result, LoadResult) and action.model == request.model:
            took = ms(result.load.end_ns - result.load.begin_ns)
            how = f"in {took}" if result.code is Code.OK else f"not: {result.message}"
            self._say(f"{event.worker_id} had it loaded {how}, {self._after_arrival(now)}.")
        elif isinstance(action, Infer) and isinstance(result, InferResult) and self._own is None:
            took = ms(result.output.end_ns - result.input.begin_ns)
            rows, model = (
                counted(sum(action.rows) or action.batch_size, "row"),
                self._names.model(action.model),
            )
            self._ran.append(f"{rows} of {model} ({took}, {event.worker_id})")

    def _on_lost(self, event: WorkerLost, now: int) -> None:
        if self._own is not None and self._own[0] == event.worker_id:
            self._own = None
            self._say(f"{event.worker_id} was lost {self._after_arrival(now)}: {event.reason}.")
        for key in [key for key in self._sent if key[0] == event.worker_id]:
            del self._sent[key]

    def _tell_waiting(self) -> None:
        if self._ran:
            self._say(f"While it waited, the workers ran {listed(self._ran)}.")
            self._ran = []

    def _tell_execution(self, event: ActionFinished, now: int) -> None:
        result = event.result
        if result.code is not Code.OK or not isinstance(result, InferResult):
            told = f"{event.worker_id} did not execute it: {result.code.name.lower()}"
            self._say(f"{told}, {result.message!r}, heard of {self._after_arrival(now)}.")
            return
        begin_ns, end_ns = result.exec.begin_ns, result.exec.end_ns
        clock = f" at {result.clock_mhz} MHz" if result.clock_mhz else ""
        received = f"{event.worker_id} had received it {self._after_arrival(result.received_ns)}"
        self._say(
            f"{received}, executed from {self._after_arrival(begin_ns)} on for "
            f"{ms(end_ns - begin_ns)}{clock}, and the gateway heard of the end "
            f"{ms(now - result.output.end_ns)} after it."
        )

    def _on_reply(self, reply: Reply, now: int) -> None:
        self._is_answered = True
        request = self._request
        if request is None:  # of a request before the recording: there is none
            return
        self._tell_waiting()
        match reply.outcome:
            case Served():
                self._tell_served(request, reply.outcome, now)
            case Rejected():
                self._sentences += refusal(request, reply.outcome, self._after_arrival(now))
            case Expired() | Failed():
                verb = "expired" if isinstance(reply.outcome, Expired) else "failed"
                told = f"It {verb} {self._after_arrival(now)} ({reply.outcome.reason.value})"
                self._say(f"{told}: {reply.outcome.detail}.")
            case _:  # Cancelled
                self._say("Nobody waited for its answer any more.")

    def _tell_served(self, request: RequestArrived, served: Served, now: int) -> None:
        slack_ns = request.deadline_ns - now
        latency_ns = now - request.arrival_ns
        told = f"It was served {self._after_arrival(now)}: "
        if slack_ns >= 0:
            told += f"good, with {ms(slack_ns)} to spare"
        else:
            told += f"late by {ms(-slack_ns)}"
        error_ns = latency_ns - served.predicted_ns
        than = f"{ms(abs(error_ns))} {'later' if error_ns > 0 else 'earlier'} than predicted"
        self._say(f"{told}, {than} ({ms(served.predicted_ns)}).")
        parts = f"Of its wait, {ms(served.queue_ns)} was in the queue"
        if served.is_cold_start:
            parts += f" and {ms(served.load_ns)} for its weights to be loaded"
        self._say(f"{parts}.")

    def _after_arrival(self, instant_ns: int) -> str:
        assert self._request is not None
        return f"{ms(instant_ns - self._request.arrival_ns)} after arrival"

    def _say(self, sentence: str) -> None:
        self._sentences.append(sentence)


def refusal(request: RequestArrived, rejected: Rejected, when: str) -> Iterator[str]:
    """Sentences of a no, with its figures."""
    yield f"It was refused {when} ({rejected.reason.value}): {rejected.detail}."
    slo_ns = request.deadline_ns - request.arrival_ns
    if rejected.min_slo_ns is not None:
        least = ms(rejected.min_slo_ns)
        yield f"No SLO below {least} can be met, even idle; its own was {ms(slo_ns)}."
    elif rejected.predicted_ns is not None:
        yield (
            f"The earliest finish was {ms(rejected.predicted_ns)} after arrival, "
            f"its SLO was {ms(slo_ns)}."
        )
    if rejected.retry_after_ns is not None:
        yield f"It was told to try again in {ms(rejected.retry_after_ns)}."


def foreseen_story(
    foreseen: Foreseen,
    at: Instant,
    *,
    told_around: list[str],
    label: str = "A request",
) -> list[str]:
    """Of a request that was refused before its body was read."""
    request = foreseen.event
    told = [arrival(request, label, at), *told_around]
    if foreseen.refusal is not None:
        when = f"{ms(foreseen.now - request.arrival_ns)} after arrival, before its body was read"
        told += refusal(request, foreseen.refusal, when)
    return told


def arrival(request: RequestArrived, label: str, at: Instant) -> str:
    return (
        f"{label} of {request.model}, {counted(request.rows, 'row')}, arrived "
        f"{at(request.arrival_ns)} and wanted its answer within "
        f"{ms(request.deadline_ns - request.arrival_ns)}."
    )


def arrivals_in(event: Event) -> tuple[RequestArrived, ...]:
    """The requests that arrive with an event."""
    if isinstance(event, RequestsArrived):
        return event.requests
    return (event,) if isinstance(event, RequestArrived) else ()
