"""Answered: the few facts that are kept of a request once it has its answer.

It owns what a request's end looks like to those who tell of it: the ring of recent requests, the
log, traces. One is made for each request on the hot path, so it holds references and numbers;
whatever is words or milliseconds is made of it when somebody asks.
"""

from collections.abc import Callable, Sequence

import msgspec

from gateway.observability.trace_context import TraceContext
from scheduler.events import Cancelled, Expired, Failed, Outcome, Rejected, Served
from scheduler.spec import public_name


class OwnAnswer(msgspec.Struct, frozen=True, gc=False):
    """An end that the scheduler had no part in. `kind` is rejected, invalid, failed, cancelled."""

    kind: str
    reason: str
    detail: str


class Answered(msgspec.Struct, frozen=True, gc=False):
    """Instants are on the gateway's clock.

    `number` is the scheduler's id, 0 for one that never got there. `key` is the scheduler's name of
    the model (adr/0012), "" where none of the catalogue was named. `tenant` is "" where there are
    none, `slo_ns` 0 where none was read. `cache` says where a shared answer came from
    (gateway.inference.answer_sharing).
    """

    request_id: str
    number: int
    key: str
    tenant: str
    arrival_ns: int
    slo_ns: int
    answered_ns: int
    outcome: Outcome | OwnAnswer
    rows: int = 0
    cache: str | None = None
    trace: TraceContext | None = None

    @property
    def model(self) -> str:
        """What clients call it."""
        return public_name(self.key)

    @property
    def latency_ns(self) -> int:
        return self.answered_ns - self.arrival_ns

    @property
    def kind(self) -> str:
        """The outcome, as metrics call it."""
        outcome = self.outcome
        return outcome.kind if isinstance(outcome, OwnAnswer) else _KINDS[type(outcome)]

    @property
    def reason(self) -> str | None:
        outcome = self.outcome
        if isinstance(outcome, OwnAnswer):
            return outcome.reason
        return None if isinstance(outcome, Served | Cancelled) else outcome.reason.value

    @property
    def detail(self) -> str | None:
        outcome = self.outcome
        return None if isinstance(outcome, Served | Cancelled) else outcome.detail

    @property
    def predicted_ns(self) -> int | None:
        """The latency that was predicted when it was let in or refused."""
        return self.outcome.predicted_ns if isinstance(self.outcome, Served | Rejected) else None

    @property
    def slack_ns(self) -> int | None:
        """What was left of the SLO: by the answer's time, or for a refusal by the prediction."""
        if not self.slo_ns or isinstance(self.outcome, OwnAnswer | Cancelled):
            return None
        if isinstance(self.outcome, Rejected):
            predicted_ns = self.outcome.predicted_ns
            return None if predicted_ns is None else self.slo_ns - predicted_ns
        return self.slo_ns - self.latency_ns

    @property
    def badness(self) -> int | None:
        """By which the worst are found, the least first; None for ends that are no failing of ours:
        a malformed request, a client that left.
        """
        kind = self.kind
        if kind in ("invalid", "cancelled"):
            return None
        slack_ns = self.slack_ns or 0
        return slack_ns if kind == "served" else min(slack_ns, 0)


_KINDS: dict[type[Outcome], str] = {
    Served: "served",
    Rejected: "rejected",
    Expired: "expired",
    Failed: "failed",
    Cancelled: "cancelled",
}
KINDS = (*_KINDS.values(), "invalid")

OnAnswered = Callable[[Answered], None]


def told_to(listeners: Sequence[OnAnswered]) -> OnAnswered | None:
    """One callback for all; itself where there is one, so that it costs one call."""
    if len(listeners) < 2:
        return listeners[0] if listeners else None

    def tell(answered: Answered) -> None:
        for listener in listeners:
            listener(answered)

    return tell
