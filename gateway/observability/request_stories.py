"""What is shown of a recent request: its figures, its timeline, and the reasons in words.

It owns the form of these. Words are made here when somebody asks, of what is kept (Answered) and of
the scheduler's log, in the sentences of `remontoir explain`. With tenants, one does not learn what
others are called or use.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from gateway.inference.body import PhaseFigures
from gateway.observability.answered import Answered
from gateway.observability.phases import passage_of, phases
from gateway.observability.recent_requests import RecentRequests
from gateway.observability.remedies import REMEDIES
from gateway.tenants.tenant import Tenant
from gateway.views import SchedulerView
from scheduler.actions import Infer
from scheduler.device import WeightsState
from scheduler.event_log import Foreseen
from scheduler.events import (
    Rejected,
    RequestArrived,
    Served,
)
from scheduler.hindsight import LogEntry
from scheduler.retelling import retell_foreseen, retelling
from scheduler.spec import MILLISECOND_NS, public_name
from scheduler.words import Names, ms

Step = TypeVar("Step")

ENTRIES_PER_TURN = 25  # half a millisecond of the event loop

_UNTOLD = (
    "What was around it is not known any more: the scheduler's log does not reach back so far "
    "(setting recent_requests)."
)


class RequestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the list. `slack_ms` of a refusal is by the prediction it was refused for."""

    request_id: str
    arrived_at: str
    model: str | None
    tenant: str | None
    rows: int | None
    outcome: str
    reason: str | None
    detail: str | None
    slo_ms: float | None
    latency_ms: float
    slack_ms: float | None
    predicted_ms: float | None
    worker: str | None
    trace_id: str | None


class Phase(msgspec.Struct, frozen=True):
    """Of the timeline: milliseconds after arrival."""

    phase: str
    begin_ms: float
    end_ms: float


class Batch(msgspec.Struct, frozen=True):
    """What it was executed in. `size` and `requests` are null once the log has forgotten them;
    requests of other tenants are counted only in `num_requests`.
    """

    rows: int
    size: int | None
    num_requests: int | None
    requests: list[str] | None
    expected_exec_ms: float | None


class RequestStory(RequestEntry, frozen=True, kw_only=True):
    """All that is known. `timing_ms` and `batch` are null for what was not served."""

    cold_start: bool | None
    cache: str | None
    timing_ms: PhaseFigures | None
    batch: Batch | None
    timeline: list[Phase]
    story: list[str]
    remedy: str | None
    same_id: int


class Onlooker(Names):
    """What whoever asks may know. `tenant` is None for everybody where there are none, and for an
    admin.
    """

    def __init__(self, recent: RecentRequests, tenant: Tenant | None) -> None:
        self._recent = recent
        self._tenant = tenant
        self._by_number: Mapping[int, Answered] = {}

    async def look(self) -> None:
        """Whose numbers are whose, before `known` and `request` are asked."""
        self._by_number = await in_turns(self._recent.by_number())

    def may_see(self, answered: Answered) -> bool:
        return self._tenant is None or answered.tenant == self._tenant.name

    def request(self, request_id: int) -> str:
        return self.known(request_id) or "one unknown"

    def known(self, number: int) -> str | None:
        """The id that a client knows it by."""
        found = self._by_number.get(number)
        return found.request_id if found is not None and self.may_see(found) else None

    def model(self, model: str) -> str:
        is_shown = self._tenant is None or self._tenant.may_use(public_name(model))
        return model if is_shown else "another model"


def entries_of(found: Sequence[Answered], recent: RecentRequests) -> Iterator[list[RequestEntry]]:
    """As far as it has come, the whole last."""
    told: list[RequestEntry] = []
    for answered in found:
        told.append(RequestEntry(**_figures(answered, recent)))  # type: ignore[arg-type]  # by name
        if len(told) % ENTRIES_PER_TURN == 0:
            yield told
    yield told


async def in_turns(steps: Iterator[Step]) -> Step:
    """The last of the steps, of which there is one at least; requests go on between them."""
    last = next(steps)
    while (step := next(steps, None)) is not None:
        last = step
        await asyncio.sleep(0)
    return last


async def story_of(
    answered: Answered,
    recent: RecentRequests,
    scheduler: SchedulerView,
    onlooker: Onlooker,
    *,
    same_id: int,
) -> RequestStory:
    """`same_id` is how many are kept that are called so."""
    await onlooker.look()
    log = scheduler.recent_log()
    sentences = await in_turns(_sentences(answered, recent, scheduler, onlooker, log))
    passage = passage_of(log, answered)
    served = answered.outcome if isinstance(answered.outcome, Served) else None
    is_executed = served is not None and bool(served.worker_id)  # or it was kept from before
    timing = batch = None
    if served is not None and is_executed:
        timing = PhaseFigures(
            *(
                duration_ns / MILLISECOND_NS
                for duration_ns in (
                    served.queue_ns,
                    served.load_ns,
                    served.input_ns,
                    served.exec_ns,
                    served.output_ns,
                )
            )
        )
        batch = _batch(served, passage.infer, onlooker)
    return RequestStory(
        **_figures(answered, recent),  # type: ignore[arg-type]  # made by name
        cold_start=served.is_cold_start if served is not None else None,
        cache=answered.cache,
        timing_ms=timing,
        batch=batch,
        timeline=[
            Phase(name, _after(begin_ns, answered), _after(end_ns, answered))
            for name, begin_ns, end_ns in phases(answered, passage)
        ],
        story=sentences,
        remedy=None if answered.reason is None else REMEDIES.get(answered.reason),
        same_id=same_id,
    )


def _sentences(
    answered: Answered,
    recent: RecentRequests,
    scheduler: SchedulerView,
    onlooker: Onlooker,
    log: Sequence[LogEntry],
) -> Iterator[list[str]]:
    weights = _weights_now(scheduler, answered.key)

    def at(instant_ns: int) -> str:
        return f"at {recent.at(instant_ns)}"

    told: list[str] = []
    if answered.number:
        for told in retelling(  # the last is what is wanted
            log,
            answered.number,
            answered.arrival_ns,
            weights,
            at,
            label=answered.request_id,
            names=onlooker,
        ):
            yield told
        if told:
            yield [*told, _written(answered)]
    elif isinstance(answered.outcome, Rejected) and answered.key:
        arrived = RequestArrived(
            0,
            answered.key,
            answered.arrival_ns,
            answered.arrival_ns + answered.slo_ns,
            answered.rows,
        )
        foreseen = Foreseen(answered.answered_ns, arrived, answered.outcome)
        label = f"Request {answered.request_id}"
        yield retell_foreseen(log, foreseen, weights, at, label=label, names=onlooker)
        return
    if not told:
        yield _facts(answered, recent)


def _written(answered: Answered) -> str:
    """What the scheduler cannot know: when, and whether, its answer became one."""
    after = f"{ms(answered.latency_ns)} after arrival"
    if answered.kind == "cancelled":
        return f"The gateway forgot it {after}."
    told = f"The gateway wrote its answer {after}"
    return f"{told}." if answered.reason is None else f"{told}: {answered.reason}."


def _facts(answered: Answered, recent: RecentRequests) -> list[str]:
    """Where the log tells nothing: what is kept of the request itself."""
    of_model = f" of {answered.model}" if answered.model else ""
    told = f"Request {answered.request_id}{of_model} arrived at {recent.at(answered.arrival_ns)}"
    told += f" and wanted its answer within {ms(answered.slo_ns)}." if answered.slo_ns else "."
    sentences = [told]
    outcome, after = answered.outcome, f"{ms(answered.latency_ns)} after arrival"
    if isinstance(outcome, Served):
        if answered.cache is not None and not (answered.number and outcome.worker_id):
            how = "from the cache" if answered.cache == "hit" else "with another request's"
            sentences.append(f"It was answered {how} {after}.")
            return sentences
        slack_ns = answered.slo_ns - answered.latency_ns
        sentences += [
            f"It was served {after} by {outcome.worker_id}, in a batch of "
            f"{outcome.batch_rows:,} rows, with {ms(slack_ns)} to spare; predicted were "
            f"{ms(outcome.predicted_ns)}.",
            f"Of its wait, {ms(outcome.queue_ns)} was in the queue and {ms(outcome.load_ns)} for "
            f"its weights to be loaded; it executed for {ms(outcome.exec_ns)}.",
        ]
    else:
        verb = {
            "rejected": "was refused",
            "invalid": "was refused",
            "cancelled": "was given up by its client",
        }.get(answered.kind, answered.kind)
        why = f" ({answered.reason}): {answered.detail}." if answered.detail else "."
        sentences.append(f"It {verb} {after}{why}")
    if answered.number:
        sentences.append(_UNTOLD)
    return sentences


def _weights_now(scheduler: SchedulerView, key: str) -> dict[str, WeightsState]:
    return {
        worker_id: device.weights_state(key)
        for worker_id, device in scheduler.devices.items()
        if key in device.offered
    }


def _figures(answered: Answered, recent: RecentRequests) -> dict[str, object]:
    outcome = answered.outcome
    return {
        "request_id": answered.request_id,
        "arrived_at": recent.at(answered.arrival_ns),
        "model": answered.model or None,
        "tenant": answered.tenant or None,
        "rows": answered.rows or None,
        "outcome": answered.kind,
        "reason": answered.reason,
        "detail": answered.detail,
        "slo_ms": _ms(answered.slo_ns or None),
        "latency_ms": answered.latency_ns / MILLISECOND_NS,
        "slack_ms": _ms(answered.slack_ns),
        "predicted_ms": _ms(answered.predicted_ns),
        "worker": (outcome.worker_id or None) if isinstance(outcome, Served) else None,
        "trace_id": None if answered.trace is None else answered.trace.trace_id,
    }


def _batch(served: Served, infer: Infer | None, onlooker: Onlooker) -> Batch:
    if infer is None:
        return Batch(served.batch_rows, None, None, None, None)
    names = [onlooker.known(number) for number in infer.request_ids]
    return Batch(
        served.batch_rows,
        infer.batch_size,
        len(infer.request_ids),
        [name for name in names if name is not None],
        infer.expected_duration_ns / MILLISECOND_NS,
    )


def _after(instant_ns: int, answered: Answered) -> float:
    return (instant_ns - answered.arrival_ns) / MILLISECOND_NS


def _ms(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / MILLISECOND_NS
