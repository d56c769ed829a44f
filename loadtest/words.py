"""Events and commands of a recording in words, for people who look for what went wrong.

Owns the wording: instants are seconds after the recording's first. Durations and numbers are in the
words of scheduler/words.py.
"""

from collections.abc import Sequence

from scheduler.actions import Code, EvictWeights, LoadWeights, ReleaseModel
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Command,
    Event,
    Expired,
    Failed,
    ModelAdded,
    ModelForgotten,
    ModelOffered,
    ModelPinned,
    ModelRemoved,
    ModelStaged,
    ModelUnloaded,
    Outcome,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    RequestsArrived,
    Served,
    StagingEnded,
    WorkerJoined,
    WorkerLost,
)
from scheduler.spec import SECOND_NS
from scheduler.words import counted, listed, ms


class Words:
    """Tells instants from `origin_ns` on."""

    def __init__(self, origin_ns: int) -> None:
        self._origin_ns = origin_ns

    def at(self, instant_ns: int) -> str:
        return f"{(instant_ns - self._origin_ns) / SECOND_NS:.6f} s"

    def since_start(self, instant_ns: int) -> str:
        return f"{self.at(instant_ns)} after the recording's start"

    def event(self, event: Event) -> str:
        match event:
            case RequestArrived():
                return f"request {event.request_id} of {event.model} arrived"
            case RequestsArrived():
                requests = event.requests
                ids = listed([request.request_id for request in requests])
                return f"{counted(len(requests), 'request')} arrived together: {ids}"
            case RequestCancelled():
                return f"the client of request {event.request_id} went away"
            case ActionFinished():
                result = event.result
                told = f"{event.worker_id} has finished action {result.action_id}"
                if result.code is Code.OK:
                    return told
                return f"{told}: {result.code.name.lower()}, {result.message!r}"
            case WorkerJoined():
                return f"{event.worker_id} joined with {counted(len(event.models), 'model')}"
            case WorkerLost():
                return f"{event.worker_id} was lost: {event.reason}"
            case ModelAdded():
                return f"model {event.spec.name} is served from now on"
            case ModelRemoved():
                return f"model {event.model} was removed: {event.reason}"
            case ModelUnloaded():
                return f"model {event.model} was unloaded"
            case ModelOffered():
                return f"{event.worker_id} has made model {event.spec.name} ready"
            case ModelStaged():
                over = f" from {event.replaces}" if event.replaces else ""
                return f"model {event.model} is about to take over{over}"
            case StagingEnded():
                return f"model {event.model} has taken over, or never will"
            case ModelForgotten():
                return f"model {event.model} was forgotten"
            case ModelPinned():
                return f"model {event.model} was {'' if event.is_pinned else 'un'}pinned"
            case _:
                return "time passed"

    def command(self, command: Command) -> str:
        if isinstance(command, Reply):
            return f"answer request {command.request_id}: {self.outcome(command.outcome)}"
        action = command.action
        told = f"send {command.worker_id} action {action.action_id}:"
        window = f"to start from {self.at(action.earliest_ns)} to {self.at(action.latest_ns)}"
        if isinstance(action, EvictWeights):
            return f"{told} evict {action.model}, {window}"
        if isinstance(action, ReleaseModel):
            return f"{told} release {action.model}, {window}"
        expected = f"expected to take {ms(action.expected_duration_ns)}"
        if isinstance(action, LoadWeights):
            pages = counted(action.num_pages, "page")
            return f"{told} load {action.model} into {pages}, {window}, {expected}"
        rows = counted(sum(action.rows), "row")
        if not action.request_ids:
            return (
                f"{told} try a batch of {action.batch_size} of {action.model}, {window}, {expected}"
            )
        who = f"{counted(len(action.request_ids), 'request')} ({listed(action.request_ids)})"
        return f"{told} execute {rows} of {action.model}, of {who}, {window}, {expected}"

    def outcome(self, outcome: Outcome) -> str:
        match outcome:
            case Served():
                together = counted(outcome.batch_rows, "row")
                return f"served by {outcome.worker_id} in a batch of {together}"
            case Rejected():
                return f"refused, {outcome.reason.value}: {outcome.detail}"
            case Expired():
                return f"expired, {outcome.reason.value}: {outcome.detail}"
            case Failed():
                return f"failed, {outcome.reason.value}: {outcome.detail}"
            case Cancelled():
                return "its client had gone away"

    def refusal(self, refusal: Rejected | None) -> str:
        return "  no refusal" if refusal is None else f"  {self.outcome(refusal)}"

    def commands(self, commands: Sequence[Command] | None) -> str:
        """Each on a line of its own."""
        if commands is None:
            return "  it broke"
        return "\n".join(f"  {self.command(command)}" for command in commands) or "  nothing"
