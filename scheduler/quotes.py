"""What would become of a request that arrived now: the question before the request.

It asks the admission policy that answers arrivals, about the state that it would see then, so that
there is no second opinion. It must never change anything: what it puts into a queue to ask about
the next one it takes out again before it returns, and no estimate of measured durations is lost.
"""

from typing import Final

import msgspec

from scheduler.device import DeviceMirror
from scheduler.events import Quote, Reason, Rejected, RequestArrived
from scheduler.ledger import Ledger
from scheduler.planner import Planner
from scheduler.policies.admission import Admission
from scheduler.policies.admission.impossible import least_slo_ns
from scheduler.policies.protocols import AdmissionPolicy
from scheduler.profile import ExecEstimate, ModelEstimates
from scheduler.request import Request
from scheduler.spec import MILLISECOND_NS
from scheduler.state import ModelState

# Ids of requests that never arrive: none that a shell gives out.
FIRST_ID: Final = -(2**62)
# The least SLO is looked for up to a day, and to a hundredth of itself.
MAX_SLO_NS: Final = 86_400_000 * MILLISECOND_NS
PRECISION: Final = 100
# Refusals of which a longer SLO may be the cure.
BY_SLO: Final = (Reason.SLO_INFEASIBLE_NOW, Reason.SLO_INFEASIBLE_EVER, Reason.COLD_MODEL)


class Quotes:
    """Reads the ledger's state; one per scheduler."""

    def __init__(self, ledger: Ledger, admission: AdmissionPolicy, planner: Planner) -> None:
        self._ledger = ledger
        self._state = ledger.state
        self._admission = admission
        self._planner = planner

    def quote(self, event: RequestArrived, count: int, now: int) -> Quote:
        """See Scheduler.quote."""
        model = self._state.models.get(event.model)
        if model is None or model.spec.unavailable_reason is not None:
            return Quote(num_met=0, refusal=not_served(event, model))
        kept = _without_shape(model, event.shape_key)
        quote = msgspec.structs.replace(
            self._verdict(event, model, count, now),
            num_ahead=sum(queue.num_due_by(event.deadline_ns) for queue in model.queues.values()),
            min_slo_now_ns=self._min_slo_now_ns(event, now),
            min_slo_ever_ns=self._min_slo_ever_ns(event, model),
        )
        _restore(kept)
        return quote

    def verdict(self, event: RequestArrived, now: int) -> Quote:
        """See Scheduler.verdict."""
        model = self._state.models.get(event.model)
        if model is None or model.spec.unavailable_reason is not None:
            return Quote(num_met=0, refusal=not_served(event, model))
        kept = _without_shape(model, event.shape_key)
        verdict = self._verdict(event, model, 1, now)
        _restore(kept)
        return verdict

    def _verdict(self, event: RequestArrived, model: ModelState, count: int, now: int) -> Quote:
        num_met, first, refusal = self._ask_in_turn(event, model, count, now)
        predicted = first if first is not None and first.worker_id is not None else None
        return Quote(
            num_met=num_met,
            refusal=refusal,
            finish_ns=predicted.finish_ns if predicted is not None else None,
            worker_id=predicted.worker_id if predicted is not None else None,
            is_cold=not model.holders,
        )

    def _ask_in_turn(
        self, event: RequestArrived, model: ModelState, count: int, now: int
    ) -> tuple[int, Admission | None, Rejected | None]:
        """How many are admitted before one is refused; what the first was told, and that one."""
        first: Admission | None = None
        refusal: Rejected | None = None
        queued: list[Request] = []
        wanted_replica = model.wants_replica
        for number in range(count):
            request = Request(event)
            request.request_id = FIRST_ID - number
            verdict = self._admission.decide(self._state, request, now)
            if isinstance(verdict, Rejected):
                refusal = verdict
                break
            if request.do_not_queue and not self._planner.has_open_lane(model, now):
                refusal = would_queue(request, verdict.finish_ns - event.arrival_ns, now)
                break
            first = first or verdict
            if verdict.deadline_ns is not None:
                request.plan_with(verdict.deadline_ns)
            if verdict.wants_replica:
                model.wants_replica = True
            self._put_in(model, request)
            queued.append(request)
        for request in reversed(queued):
            self._take_out(model, request)
        model.wants_replica = wanted_replica
        return len(queued), first, refusal

    def _put_in(self, model: ModelState, request: Request) -> None:
        """As Ledger.enqueue, but nobody is told."""
        queue = model.queues.get(request.batch_key)
        if queue is None:
            queue = model.queues[request.batch_key] = self._ledger.new_queue(request)
        queue.push(request)
        self._state.count_queued(model, 1)

    def _take_out(self, model: ModelState, request: Request) -> None:
        queue = model.queues[request.batch_key]
        queue.remove(request)
        if not len(queue):
            del model.queues[request.batch_key]
        self._state.count_queued(model, -1)

    def _min_slo_ever_ns(self, event: RequestArrived, model: ModelState) -> int | None:
        if not 1 <= event.rows <= model.spec.max_batch_rows:
            return None
        return least_slo_ns(self._state, model, Request(event))

    def _min_slo_now_ns(self, event: RequestArrived, now: int) -> int | None:
        """By asking: first for ever longer SLOs, as the refusals suggest, then between the last
        that was refused and the first that was not.
        """
        asked_ns, refused_ns = 1, 0
        while True:
            verdict = self._ask_with(event, asked_ns, now)
            if not isinstance(verdict, Rejected):
                break
            if verdict.reason not in BY_SLO or asked_ns >= MAX_SLO_NS:
                return None
            # A longer SLO lets more requests go first, so what was predicted may not do.
            hint_ns = verdict.predicted_ns or 0
            refused_ns, asked_ns = asked_ns, min(MAX_SLO_NS, max(hint_ns, asked_ns * 5 // 4 + 1))
        while asked_ns - refused_ns > asked_ns // PRECISION + 1:
            middle_ns = (asked_ns + refused_ns) // 2
            if isinstance(self._ask_with(event, middle_ns, now), Rejected):
                refused_ns = middle_ns
            else:
                asked_ns = middle_ns
        return asked_ns

    def _ask_with(self, event: RequestArrived, slo_ns: int, now: int) -> Admission | Rejected:
        request = Request(event)
        request.deadline_ns = event.arrival_ns + slo_ns
        request.client_deadline_ns = request.answer_by_ns = request.deadline_ns
        return self._admission.decide(self._state, request, now)


def not_served(event: RequestArrived, model: ModelState | None) -> Rejected:
    """Nobody serves the model, or it is unavailable."""
    why = "is not served" if model is None else model.spec.unavailable_reason
    return Rejected(Reason.MODEL_UNAVAILABLE, f"{event.model}: {why}")


def would_queue(request: Request, predicted_ns: int, now: int) -> Rejected:
    """`do_not_queue` was asked, and it could not start at once."""
    return Rejected(
        Reason.WOULD_QUEUE,
        f"{request.model} cannot start at once, and do_not_queue was asked",
        retry_after_ns=max(1, request.arrival_ns + predicted_ns - now),
        predicted_ns=predicted_ns,
    )


_Kept = list[tuple[ModelEstimates, dict[str, ExecEstimate]]]


def _without_shape(model: ModelState, shape_key: str) -> _Kept:
    """Estimates that do not know the shape, and what they know: asking makes them learn it, and
    forget another for it.
    """
    devices: list[DeviceMirror] = list(model.offered_by)
    return [
        (estimates, dict(estimates.shapes))
        for estimates in [device.estimates(model.name) for device in devices]
        if shape_key not in estimates.shapes
    ]


def _restore(kept: _Kept) -> None:
    for estimates, shapes in kept:
        estimates.shapes = shapes
