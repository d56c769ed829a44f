"""Variants: which member of a group executes a request, and what becomes of that.

It owns the choice. Whether a member would be in time is the scheduler's verdict, given by the code
that admits requests; of those that would, the policy takes the most accurate, or Exp3 one by its
weights. A member that is refused after all (others came in the same moment) passes the request on.
It must never have two members execute one request.
"""

from collections.abc import Callable
from functools import partial

from gateway.dispatcher import OnDone, Outputs
from gateway.errors import RequestError, bad_request
from gateway.inference.answer_sharing import AnswerSharing
from gateway.inference.arrival import arrival_of
from gateway.inference.exchange import Exchange
from gateway.inference.tensors import Inputs, ModelPlan
from gateway.metrics.metrics import Metrics
from gateway.variants.feedback import Choice, Feedback
from gateway.variants.groups import Group, Groups
from gateway.views import Clock, RequestSink
from scheduler.events import Outcome, Quote, Reason, Rejected, Served

PlanOf = Callable[[str, str | None], ModelPlan]
# (exchange, member's plan, inputs, do_not_queue, on_done): as a request for the member itself.
# Raises RequestError.
Give = Callable[[Exchange, ModelPlan, Inputs, bool, OnDone], None]

# Refusals that another member may not have to give.
_BY_MEMBER = frozenset(
    {
        Reason.SLO_INFEASIBLE_NOW,
        Reason.SLO_INFEASIBLE_EVER,
        Reason.COLD_MODEL,
        Reason.WOULD_QUEUE,
        Reason.MODEL_UNAVAILABLE,
        Reason.LARGER_THAN_CACHE,
    }
)
_NEVER_NS = 1 << 62


class _Request:
    """One request to a group. `rest` may be tried after the one that has it now."""

    __slots__ = ("exchange", "group", "inputs", "is_impatient", "plans", "rest")

    def __init__(
        self,
        exchange: Exchange,
        group: Group,
        inputs: Inputs,
        is_impatient: bool,
        plans: dict[int, ModelPlan],
    ) -> None:
        self.exchange = exchange
        self.group = group
        self.inputs = inputs
        self.is_impatient = is_impatient
        self.plans = plans  # by member, in order of preference
        self.rest: list[int] = []


class Variants:
    """Part of gateway.inference.submission.Submission."""

    def __init__(
        self,
        groups: Groups,
        sink: RequestSink,
        plan_of: PlanOf,
        give: Give,
        metrics: Metrics,
        feedback: Feedback,
        *,
        clock: Clock,
    ) -> None:
        self._groups = groups
        self._sink = sink
        self._plan_of = plan_of
        self._give = give
        self._metrics = metrics
        self._feedback = feedback
        self._clock = clock

    def submit(self, exchange: Exchange, group: Group, inputs: Inputs, is_impatient: bool) -> None:
        """Raises RequestError where nobody may be asked."""
        request = self._request(exchange, group, inputs, is_impatient)
        exchange.group = group.name
        self._send(request, self._choose(request))

    def choose(self, exchange: Exchange, group: Group, inputs: Inputs, is_impatient: bool) -> None:
        """Whose it would be now, for a question about it. Raises RequestError as `submit`."""
        request = self._request(exchange, group, inputs, is_impatient)
        exchange.group = group.name
        plan = exchange.plan = request.plans[self._choose(request).member]
        exchange.tallies = self._metrics.of_model(plan.spec.name)

    def _request(
        self, exchange: Exchange, group: Group, inputs: Inputs, is_impatient: bool
    ) -> _Request:
        plans = {}
        for number, reason in enumerate(group.reasons(self._groups.catalog)):
            if reason is None:
                plan = self._plan_of(group.members[number].model, None)
                if inputs.rows <= plan.spec.max_batch_rows:
                    plans[number] = plan
        if not plans:
            raise bad_request(f"group {group.name}: no member takes {inputs.rows} rows")
        return _Request(exchange, group, inputs, is_impatient, plans)

    def _choose(self, request: _Request) -> Choice:
        """A member that would meet the SLO, else the one that would be done first."""
        exp3 = request.group.exp3
        met: list[int] = []
        refused: list[tuple[int, int]] = []  # when it would be done, whose that is
        order = list(request.plans)
        for position, member in enumerate(order):
            refusal = self._refusal_of(request, request.plans[member])
            if refusal is not None:
                predicted_ns = refusal.predicted_ns
                refused.append((_NEVER_NS if predicted_ns is None else predicted_ns, -position))
            elif exp3 is None:
                request.rest = order[position + 1 :]
                return _only(member)
            else:
                met.append(member)
        if met:
            request.rest = met
            return self._drawn(request)
        _, position = min(refused)  # the least accurate, where nothing is predicted
        return _only(order[-position])

    def _drawn(self, request: _Request) -> Choice:
        """By Exp3, of those that are left."""
        exp3 = request.group.exp3
        assert exp3 is not None
        among = tuple(request.rest)
        member, probability = exp3.choose(among)
        request.rest.remove(member)
        return Choice(member, probability, among)

    def _refusal_of(self, request: _Request, plan: ModelPlan) -> Rejected | None:
        """None also where nobody knows: its arrival will tell."""
        exchange, inputs = request.exchange, request.inputs
        tenant = "" if exchange.tenant is None else exchange.tenant.name
        if _is_kept(plan.sharing, inputs, tenant):
            return None
        verdict: Quote | None = self._sink.verdict(
            arrival_of(exchange, plan, inputs, inputs.batch_key, request.is_impatient)
        )
        return None if verdict is None else verdict.refusal

    def _send(self, request: _Request, choice: Choice) -> None:
        """Raises RequestError."""
        exchange, plan = request.exchange, request.plans[choice.member]
        exchange.plan = plan
        exchange.tallies = self._metrics.of_model(plan.spec.name)
        on_done = partial(self._on_done, request, choice)
        self._give(exchange, plan, request.inputs, request.is_impatient, on_done)

    def _on_done(
        self, request: _Request, choice: Choice, outcome: Outcome, outputs: Outputs | None
    ) -> None:
        exchange = request.exchange
        if (
            type(outcome) is Rejected
            and outcome.reason in _BY_MEMBER
            and request.rest
            and not exchange.is_gone
        ):
            if request.group.exp3 is not None:
                following = self._drawn(request)
            else:
                following = _only(request.rest.pop(0))
            try:
                self._send(request, following)
            except RequestError as error:
                exchange.refuse(error)
            return
        if type(outcome) is Served:
            group = request.group
            group.members[choice.member].num_served += 1
            tenant = "" if exchange.tenant is None else exchange.tenant.name
            self._feedback.expect(tenant, exchange.request_id, group, choice, self._clock())
        exchange.on_done(outcome, outputs)


def _only(member: int) -> Choice:
    """Not by chance: there is nothing to compare it with."""
    return Choice(member, 1.0, (member,))


def _is_kept(sharing: AnswerSharing | None, inputs: Inputs, tenant: str) -> bool:
    """Whether the member has the answer already: that is in time for everybody."""
    return (
        sharing is not None
        and len(sharing.cache) > 0
        and sharing.has(sharing.key_of(inputs, tenant))
    )
