"""Single flight and the cache over a puppet of the dispatcher: every answer is given by hand."""

from typing import Any

import msgspec
import pytest

from gateway.dispatcher import OnDone
from gateway.errors import RequestError
from gateway.inference.answer_sharing import HIT, MISS, SHARED, AnswerSharing, Ask, Sharings
from gateway.inference.tensors import Inputs
from gateway.open_requests import Outputs
from scheduler.events import Cancelled, Expired, Failed, Outcome, Reason, Rejected
from scheduler.priority import HIGH, LOW, NORMAL
from scheduler.spec import ModelSpec, SharingSpec
from scheduler.wire import TensorMeta
from tests.gateway.http_doubles import MLP_OUTPUTS, fp32, model_spec, ms, outputs, served

KEY, OTHER = b"k" * 32, b"o" * 32
NO_TIME = Rejected(Reason.SLO_INFEASIBLE_NOW, "no time", predicted_ns=ms(9))


def shared_spec(cache_bytes: int = 1 << 20, **changes: Any) -> ModelSpec:
    return model_spec(**{"sharing": SharingSpec(cache_bytes), **changes})


class PuppetRequest:
    """What stands for an exchange: writes down what it is told."""

    def __init__(self, stage: "Stage", arrival_ns: int, slo_ns: int) -> None:
        self.arrival_ns = arrival_ns
        self.slo_ns = slo_ns
        self.priority = NORMAL
        self.cache: str | None = None
        self.told: list[tuple[Outcome, Outputs | None]] = []
        self.refused: list[RequestError] = []
        self.refusal: RequestError | None = None  # what its submission is met with
        self.asked = Ask(self, self._submit, self._on_done, lookup_ns=7)
        self.ask: Ask | None = self.asked
        self._stage = stage

    def refuse(self, error: RequestError) -> None:
        self.refused.append(error)

    @property
    def outcome(self) -> Outcome:
        ((outcome, _),) = self.told
        return outcome

    def _submit(self, on_done: OnDone) -> int:
        if self.refusal is not None:
            raise self.refusal
        self._stage.executions.append((self, on_done))
        return len(self._stage.executions)

    def _on_done(self, outcome: Outcome, outputs: Outputs | None) -> None:
        self.told.append((outcome, outputs))


class Stage:
    """A model's sharing; `executions` is what reached the dispatcher, in order, from 1."""

    def __init__(self, spec: ModelSpec | None = None) -> None:
        self.executions: list[tuple[PuppetRequest, OnDone]] = []
        self.cancelled: list[int] = []
        self.sharing = AnswerSharing(self._cancel)
        self.sharing.serve(spec or shared_spec())

    def ask(
        self, at_ms: float, slo_ms: float, key: bytes = KEY, priority: int = NORMAL
    ) -> PuppetRequest:
        request = PuppetRequest(self, ms(at_ms), ms(slo_ms))
        request.priority = priority
        self.sharing.ask(key, request.asked)
        return request

    def answer(self, number: int, outcome: Outcome, outputs: Outputs | None = None) -> None:
        self.executions[number - 1][1](outcome, outputs)

    def serve(self, number: int) -> None:
        self.answer(number, served(), MLP_OUTPUTS)

    def _cancel(self, sink_id: int) -> None:
        self.cancelled.append(sink_id)
        self.answer(sink_id, Cancelled())  # as the dispatcher does


def test_identical_requests_are_executed_once_and_all_are_answered() -> None:
    stage = Stage()
    first, second, third = stage.ask(0, 50), stage.ask(1, 50), stage.ask(2, 80)
    other = stage.ask(2, 50, OTHER)
    assert [request for request, _ in stage.executions] == [first, other]
    stage.serve(1)
    for request in (first, second, third):
        ((_, told),) = request.told
        assert told is not None
        assert told.views == MLP_OUTPUTS.views
    assert [r.cache for r in (first, second, third)] == [MISS, SHARED, SHARED]
    assert other.told == []
    assert stage.sharing.num_waiting == 0
    assert stage.sharing.counts == {HIT: 0, MISS: 1, SHARED: 2}
    assert stage.cancelled == []


def test_the_wait_that_one_has_seen_is_what_was_left_of_it_when_he_came() -> None:
    stage = Stage()
    first, second, late = stage.ask(0, 50), stage.ask(0.25, 50), stage.ask(20, 50)
    outcome = served(queue_ns=ms(1), predicted_ns=ms(5))
    told = msgspec.structs.replace(MLP_OUTPUTS, energy_mj=2.5)
    stage.answer(1, outcome, told)
    assert first.told == [(outcome, told)]
    assert second.told == [(served(queue_ns=ms(0.75), predicted_ns=ms(4.75)), MLP_OUTPUTS)]
    assert late.outcome == served(queue_ns=0, predicted_ns=0)


def test_nobody_waits_for_the_execution_of_a_lower_class() -> None:
    """Batching may pass that over."""
    stage = Stage()
    low, high, usual = (
        stage.ask(at, 50, priority=p) for at, p in ((0, LOW), (1, HIGH), (2, NORMAL))
    )
    assert [request for request, _ in stage.executions] == [low, high]
    stage.serve(2)
    assert [r.cache for r in (low, high, usual)] == [SHARED, MISS, SHARED]


def test_an_answer_kept_is_given_at_once() -> None:
    stage = Stage()
    stage.ask(0, 50)
    stage.serve(1)
    again = stage.ask(9, 0.001)
    ((outcome, told),) = again.told
    assert (told, again.cache) == (MLP_OUTPUTS, HIT)
    assert outcome == served(
        worker_id="", batch_rows=0, predicted_ns=0, queue_ns=0, input_ns=0, exec_ns=0, output_ns=0
    )
    assert len(stage.executions) == 1
    assert stage.sharing.lookup_ns == {HIT: 7, MISS: 7, SHARED: 0}
    again.asked.leave()  # crosses the answer
    assert len(again.told) == 1


def test_single_flight_without_a_cache_keeps_nothing() -> None:
    stage = Stage(shared_spec(0))
    stage.ask(0, 50)
    joined = stage.ask(1, 50)
    stage.serve(1)
    assert joined.cache == SHARED
    stage.ask(9, 50)
    assert len(stage.executions) == 2


def test_a_tighter_request_is_executed_for_itself_and_the_first_answer_is_everybodys() -> None:
    stage = Stage()
    lax, tight, joined = stage.ask(0, 500), stage.ask(1, 50), stage.ask(2, 50)
    assert [request for request, _ in stage.executions] == [lax, tight]
    stage.serve(2)
    assert stage.cancelled == [1]  # nobody needs it any more
    assert [r.cache for r in (lax, tight, joined)] == [SHARED, MISS, SHARED]
    assert all(len(r.told) == 1 for r in (lax, tight, joined))


def test_a_refused_leader_takes_nobody_with_him_whose_deadline_is_later() -> None:
    stage = Stage()
    short, long, longest = stage.ask(0, 5), stage.ask(0, 500), stage.ask(0, 900)
    assert [request for request, _ in stage.executions] == [short]
    stage.answer(1, NO_TIME)
    assert short.told == [(NO_TIME, None)]
    assert [request for request, _ in stage.executions] == [short, long]
    stage.serve(2)
    assert [r.cache for r in (long, longest)] == [MISS, SHARED]
    assert all(r.told[0][1] is not None for r in (long, longest))


@pytest.mark.parametrize(
    "outcome",
    [
        Expired(Reason.DEADLINE_EXCEEDED_QUEUED, "late"),
        Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, "late"),
        Failed(Reason.WORKER_LOST, "no other in time"),
        Rejected(Reason.SLO_INFEASIBLE_EVER, "too short"),
        Rejected(Reason.COLD_MODEL, "cold"),
    ],
)
def test_what_hangs_on_the_deadline_is_the_leaders_alone(outcome: Outcome) -> None:
    stage = Stage()
    leader, follower = stage.ask(0, 5), stage.ask(1, 500)
    stage.answer(1, outcome)
    assert leader.told == [(outcome, None)]
    assert follower.told == []
    stage.serve(2)
    assert follower.cache == MISS


@pytest.mark.parametrize(
    "outcome",
    [
        Failed(Reason.ENGINE_ERROR, "it does not like this input"),
        Failed(Reason.INTERNAL_ERROR, "the gateway stops"),
        Rejected(Reason.OVERLOADED, "too many"),
        Rejected(Reason.MODEL_UNAVAILABLE, "unloaded"),
    ],
)
def test_what_would_happen_to_everybody_is_not_tried_for_each(outcome: Outcome) -> None:
    stage = Stage()
    requests = [stage.ask(at_ms, 50) for at_ms in range(3)]
    stage.answer(1, outcome)
    assert [request.told for request in requests] == [[(outcome, None)]] * 3
    assert len(stage.executions) == 1
    assert sum(stage.sharing.counts.values()) == 0


def test_the_earliest_of_those_left_asks_and_waits_with_an_execution_that_is_early_enough() -> None:
    stage = Stage()
    lax, tight = stage.ask(0, 100), stage.ask(0, 10)
    before, after = stage.ask(0, 50), stage.ask(0, 200)
    assert len(stage.executions) == 2
    stage.answer(2, NO_TIME)  # the tight one, for which `before` waited
    assert [request for request, _ in stage.executions] == [lax, tight, before]
    stage.serve(1)
    assert stage.cancelled == [3]
    assert all(len(r.told) == 1 for r in (lax, tight, before, after))


def test_an_execution_goes_on_as_long_as_somebody_waits_for_it() -> None:
    stage = Stage()
    leader, follower = stage.ask(0, 50), stage.ask(1, 50)
    assert stage.sharing.num_waiting == 1
    leader.asked.leave()
    assert leader.told == [(Cancelled(), None)]
    assert stage.cancelled == []
    third = stage.ask(2, 50)
    assert stage.sharing.num_waiting == 2
    follower.asked.leave()
    third.asked.leave()
    assert stage.cancelled == [1]
    assert [r.told for r in (leader, follower, third)] == [[(Cancelled(), None)]] * 3
    stage.ask(3, 50)
    assert len(stage.executions) == 2


def test_a_leader_that_left_is_not_told_of_the_answer_or_the_refusal() -> None:
    stage = Stage()
    leader, follower = stage.ask(0, 50), stage.ask(1, 50)
    leader.asked.leave()
    stage.answer(1, NO_TIME)
    assert leader.told == [(Cancelled(), None)]
    stage.serve(2)
    assert follower.cache == MISS


def test_quotas_are_asked_of_who_leads_and_a_no_passes_the_lead_on() -> None:
    stage = Stage()
    leader, poor, rich = stage.ask(0, 5), stage.ask(0, 50), stage.ask(0, 60)
    poor.refusal = RequestError("quota_exceeded", "over")
    stage.answer(1, NO_TIME)
    assert (poor.refused, poor.told) == ([poor.refusal], [])
    assert [request for request, _ in stage.executions] == [leader, rich]
    stage.serve(2)
    assert len(rich.told) == 1


def test_a_request_that_may_not_even_ask_leaves_nothing_behind() -> None:
    stage = Stage()
    request = PuppetRequest(stage, 0, ms(50))
    request.refusal = RequestError("quota_exceeded", "over")
    with pytest.raises(RequestError):
        stage.sharing.ask(KEY, request.asked)
    stage.ask(0, 50)
    assert len(stage.executions) == 1


def test_one_broken_callback_costs_nobody_else_the_answer() -> None:
    stage = Stage()
    stage.ask(0, 50)
    broken, third = stage.ask(0, 50), stage.ask(0, 50)

    def on_done(outcome: Outcome, outputs: Outputs | None) -> None:
        raise ValueError("a client's answer")

    broken.asked.on_done = on_done
    stage.serve(1)
    assert len(third.told) == 1


def test_another_version_has_other_answers_and_late_ones_of_the_old_are_not_kept() -> None:
    stage = Stage(shared_spec(version="1"))
    stage.ask(0, 50)
    waiting = stage.ask(0, 50, OTHER)
    stage.serve(1)
    assert len(stage.sharing.cache) == 1
    stage.sharing.serve(shared_spec(version="2", content_hash="other"))
    assert len(stage.sharing.cache) == 0
    stage.serve(2)
    assert len(waiting.told) == 1
    assert len(stage.sharing.cache) == 0


def test_what_is_forgotten_is_executed_anew_and_kept_again() -> None:
    spec = shared_spec()
    sharings = Sharings(lambda sink_id: None)
    sharing = sharings.of(spec)
    assert sharing is sharings.of(spec)
    assert sharing is not None
    sharing.cache.put(KEY, MLP_OUTPUTS)
    sharings.forget("mlp")
    sharings.forget("never heard of")
    assert not sharing.has(KEY)
    sharing.cache.put(KEY, MLP_OUTPUTS)
    assert sharings.of(shared_spec(sharing=None)) is None
    assert not sharing.has(KEY)
    assert sharings.of(model_spec("other")) is None
    assert list(sharings.by_model) == ["mlp"]


# ---------------------------------------------------------------------- keys


def inputs(*tensors: tuple[tuple[int, ...], bytes]) -> Inputs:
    made = outputs(*tensors)
    return Inputs(made.tensors, list(made.views), 1, "", "", 4)


def key_of(given: Inputs, *, tenant: str = "", **changes: Any) -> bytes:
    return Stage(shared_spec(**changes)).sharing.key_of(given, tenant)


ROW = ((1, 4), fp32(1, 2, 3, 4))


def test_the_key_is_of_the_bytes_the_shapes_and_the_version() -> None:
    key = key_of(inputs(ROW))
    assert len(key) == 32
    assert key == key_of(Inputs((TensorMeta((1, 4), 16),), [bytearray(ROW[1])], 1, "", "", 4))
    others = [
        key_of(inputs(((1, 4), fp32(1, 2, 3, 5)))),
        key_of(inputs(((4, 1), ROW[1]))),
        key_of(inputs(((1, 2), ROW[1][:8]), ((1, 2), ROW[1][8:]))),
        key_of(inputs(((1, 1), ROW[1][:4]), ((1, 3), ROW[1][4:]))),
        key_of(inputs(ROW), version="2"),
        key_of(inputs(ROW), content_hash="other"),
        key_of(inputs(ROW), name="other"),
    ]
    assert len({key, *others}) == 1 + len(others)


def test_tenants_share_unless_the_model_says_that_they_do_not() -> None:
    assert key_of(inputs(ROW), tenant="a") == key_of(inputs(ROW), tenant="b")
    apart = SharingSpec(1 << 20, is_across_tenants=False)
    assert key_of(inputs(ROW), tenant="a", sharing=apart) != key_of(
        inputs(ROW), tenant="b", sharing=apart
    )
