"""A quote says what admission would say of a request that arrives now, and changes nothing."""

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis.stateful import rule

from scheduler.device import WeightsState
from scheduler.events import (
    Command,
    Event,
    Quote,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestsArrived,
    Tick,
)
from scheduler.invariants import validate
from scheduler.policies import Policy
from scheduler.policies.admission.forecast import SATURATED
from scheduler.profile import MAX_SHAPES
from scheduler.scheduler import Scheduler
from scheduler.spec import ModelSpec, SchedulerConfig, ShapeProfile
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, model_spec, ms
from tests.scheduler.test_properties import LIVES, MODELS, SLOS_MS, SchedulerMachine


def quote(story: Story, *arguments: Any, count: int = 1, **facts: Any) -> Quote:
    event = story.arrival(0, *arguments, **facts)
    return story.scheduler.quote(event, story.now_ns, count=count)


def refusal_of(commands: Sequence[Command], request_id: int) -> Rejected | None:
    for command in commands:
        if isinstance(command, Reply) and command.request_id == request_id:
            return command.outcome if isinstance(command.outcome, Rejected) else None
    return None


# ---------------------------------------------------------------------- what it says


def test_what_would_be_met_is_told_where_and_when(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    told = quote(scheduler, slo_ms=50)
    assert told == Quote(
        num_met=1,
        finish_ns=scheduler.now_ns + ms(10.2),  # 0.2 ms to the worker, 10 ms there
        worker_id="w",
        min_slo_now_ns=told.min_slo_now_ns,
        min_slo_ever_ns=ms(10.5),  # with the margin for the answer
    )
    assert scheduler.scheduler.num_open == 0


def test_the_least_slo_of_now_is_admitted_and_a_little_less_is_not(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(1, 7):
        scheduler.arrive(request_id, slo_ms=200)
    least_ns = quote(scheduler, slo_ms=1).min_slo_now_ns
    assert least_ns is not None
    assert quote(scheduler, slo_ms=least_ns / 1e6).num_met == 1
    refusal = quote(scheduler, slo_ms=0.98 * least_ns / 1e6).refusal
    assert refusal is not None
    assert refusal.reason is Reason.SLO_INFEASIBLE_NOW


def test_a_refusal_is_the_one_that_the_request_would_get(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    told = [quote(scheduler, slo_ms=slo_ms) for slo_ms in (5, 11)]
    for request_id, one in enumerate(told):
        commands = scheduler.arrive(request_id, slo_ms=(5, 11)[request_id])
        assert refusal_of(commands, request_id) == one.refusal
    assert (told[0].num_met, told[0].finish_ns, told[0].worker_id) == (0, None, None)
    assert told[0].min_slo_now_ns == told[1].min_slo_now_ns


@pytest.mark.parametrize("model", ["broken", "never heard of"])
def test_what_is_not_served_is_refused_with_the_words_of_an_arrival(
    make_scheduler: MakeStory, model: str
) -> None:
    story = make_scheduler(model_spec("broken", unavailable_reason="why"))
    told = quote(story, model)
    assert story.scheduler.verdict(story.arrival(0, model), story.now_ns) == told
    assert told == Quote(num_met=0, refusal=refusal_of(story.arrive(1, model), 1))


def test_without_a_worker_no_slo_would_do(scheduler: Story) -> None:
    told = quote(scheduler)
    assert told.refusal is not None
    assert told.refusal.reason is Reason.NO_WORKER
    assert (told.is_cold, told.min_slo_now_ns, told.min_slo_ever_ns) == (True, None, None)


def test_more_rows_than_the_model_takes_have_no_least_slo(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    told = quote(scheduler, rows=9)
    assert told.refusal is not None
    assert told.refusal.reason is Reason.INVALID_INPUT
    assert (told.min_slo_now_ns, told.min_slo_ever_ns) == (None, None)


def test_weights_for_which_no_room_can_be_made_make_every_slo_too_short(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(model_spec("m"), model_spec("n", pinned=True, pages=15))
    story.join(resident=["n"])
    told = quote(story, slo_ms=80_000)
    assert told.refusal is not None
    assert (told.refusal.reason, told.refusal.predicted_ns) == (Reason.COLD_MODEL, None)
    assert told.min_slo_now_ns is None
    assert told.min_slo_ever_ns == ms(10.5)


def test_a_policy_that_plans_with_earlier_deadlines_queues_by_them(
    make_scheduler: MakeStory,
) -> None:
    story = make_scheduler(policy="clockwork")
    story.join(resident=["m"])
    assert quote(story, slo_ms=50, count=3).num_met == 3


def test_a_policy_that_predicts_nothing_names_no_instant(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="fifo")
    story.join(resident=["m"])
    told = quote(story, slo_ms=50, count=100)
    assert (told.num_met, told.finish_ns, told.worker_id) == (100, None, None)
    assert told.min_slo_now_ns == told.min_slo_ever_ns


def test_cold_weights_are_told(scheduler: Story) -> None:
    scheduler.join()
    told = quote(scheduler)
    assert (told.num_met, told.is_cold, told.worker_id) == (1, True, "w")
    assert scheduler.scheduler.devices["w"].weights_state("m") is WeightsState.ABSENT


def test_those_ahead_are_the_ones_that_are_due_before(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in range(1, 6):
        scheduler.arrive(request_id, slo_ms=100 if request_id % 2 else 400)
    assert quote(scheduler, slo_ms=200).num_ahead == 2  # one was sent
    assert quote(scheduler, slo_ms=400).num_ahead == 4


# ---------------------------------------------------------------------- several


def test_of_many_so_many_are_met_as_would_be_if_they_came_together(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    told = quote(scheduler, slo_ms=60, count=40)
    assert 1 < told.num_met < 40
    together = RequestsArrived(tuple(scheduler.arrival(i, slo_ms=60) for i in range(40)))
    commands = scheduler.handle(together)
    refused = [refusal_of(commands, request_id) for request_id in range(40)]
    assert refused.index(told.refusal) == told.num_met
    assert refused[: told.num_met] == [None] * told.num_met


def test_many_quotes_cost_no_place_in_the_queue(make_scheduler: MakeStory) -> None:
    story = make_scheduler(config=SchedulerConfig(max_queued_requests=3))
    story.join(resident=["m"])
    for _ in range(3):
        told = quote(story, slo_ms=1_000, count=10)
        assert told.num_met == 3
        assert told.refusal is not None
        assert told.refusal.reason is Reason.OVERLOADED
    assert story.scheduler.num_queued == 0
    assert not story.scheduler.state.waiting


# ---------------------------------------------------------------------- do_not_queue


def test_run_at_once_or_not_at_all_is_answered_by_the_lanes(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    assert quote(scheduler, do_not_queue=True).num_met == 1
    scheduler.arrive(1)
    told = quote(scheduler, do_not_queue=True)
    assert told.refusal is not None
    assert told.refusal.reason is Reason.WOULD_QUEUE
    assert refusal_of(scheduler.arrive(2, do_not_queue=True), 2) == told.refusal
    assert quote(scheduler).num_met == 1


# ---------------------------------------------------------------------- changes nothing


def test_shapes_that_were_asked_about_push_no_measured_estimate_out(
    make_scheduler: MakeStory,
) -> None:
    shapes = (ShapeProfile("4", 4, {1: ms(3)}),)
    story = make_scheduler(model_spec(shapes=shapes))
    story.join(resident=["m"])
    estimates = story.scheduler.devices["w"].estimates("m")
    measured = estimates.exec("4", 4)
    for number in range(2 * MAX_SHAPES):
        quote(story, shape_key=f"{number + 100}", elements=number + 1)
    assert estimates.shapes == {"4": measured}


def test_a_question_wants_no_further_copy_of_the_weights(scheduler: Story) -> None:
    scheduler.join("w", resident=["m"])
    scheduler.join("v")
    model = scheduler.scheduler.state.models["m"]
    assert quote(scheduler, slo_ms=75, count=100).num_met == 16  # some of them on "v"
    assert not model.wants_replica
    scheduler.handle(RequestsArrived(tuple(scheduler.arrival(i, slo_ms=75) for i in range(16))))
    assert scheduler.scheduler.devices["v"].weights_state("m") is WeightsState.LOADING


class TwinStory(Story):
    """Before each arrival its quote is asked for, and must be right; a twin that is asked nothing
    gives the same commands to every event.
    """

    def __init__(
        self,
        *specs: ModelSpec,
        config: SchedulerConfig | None = None,
        policy: Policy | str = "remontoir",
    ) -> None:
        super().__init__(*specs, config=config, policy=policy)
        self.twin = Scheduler(config, self.specs, policy=policy)

    def _step(self, event: Event, now: int) -> list[Command]:
        wakeup = self.scheduler.next_wakeup()
        if not isinstance(event, Tick) and wakeup is not None and wakeup <= now:
            self._step(Tick(), now)
        told = None
        if isinstance(event, RequestArrived):
            told = self.scheduler.quote(event, now)
            without = {"num_ahead": 0, "min_slo_now_ns": None, "min_slo_ever_ns": None}
            assert self.scheduler.verdict(event, now) == msgspec.structs.replace(told, **without)
        commands = super()._step(event, now)
        assert self.twin.handle(event, now) == commands
        assert self.twin.next_wakeup() == self.scheduler.next_wakeup()
        validate(self.twin)  # which asks the policies, too
        if told is not None and isinstance(event, RequestArrived):
            self.check_quote(told, event, commands)
        return commands

    def check_quote(self, told: Quote, event: RequestArrived, commands: list[Command]) -> None:
        refusal = refusal_of(commands, event.request_id)
        if told.num_met and event.do_not_queue:  # a lane was open, which others may have got
            assert refusal is None or refusal.reason is Reason.WOULD_QUEUE
        else:
            assert told.refusal == refusal
            assert told.num_met == (refusal is None)
        if told.finish_ns is not None:
            request = self.scheduler._ledger.requests.get(event.request_id)
            predicted_ns = told.finish_ns - event.arrival_ns
            assert request is None or request.predicted_ns == predicted_ns


class QuoteMachine(SchedulerMachine):
    story_type = TwinStory

    @rule(
        model=MODELS,
        slo_ms=SLOS_MS,
        rows=st.sampled_from([1, 1, 2, 4]),
        key=st.sampled_from(["", "4", "8", "17"]),
        count=st.sampled_from([1, 3, 40]),
    )
    def many_are_quoted_and_come(
        self, model: str, slo_ms: float, rows: int, key: str, count: int
    ) -> None:
        core = self.story.scheduler
        self.story.advance(self.now_ms)
        arrivals = []
        for _ in range(count):
            self.next_request += 1
            arrivals.append(
                self.story.arrival(
                    self.next_request,
                    model,
                    slo_ms=slo_ms,
                    rows=rows,
                    batch_key=key,
                    shape_key=key,
                    elements=int(key or 0),
                )
            )
        was_saturated = core.state.utilisation > SATURATED
        told = core.quote(arrivals[0], self.story.now_ns, count=count)
        commands = self.story.handle(RequestsArrived(tuple(arrivals)))
        if was_saturated != (core.state.utilisation > SATURATED):
            return  # they count as load themselves, which the quote does not foresee
        refusals = [refusal_of(commands, arrived.request_id) for arrived in arrivals]
        assert refusals[: told.num_met] == [None] * told.num_met
        if told.num_met < count:
            assert refusals[told.num_met] == told.refusal

    @rule(model=MODELS, slo_ms=SLOS_MS)
    def the_least_slo_is_admitted(self, model: str, slo_ms: float) -> None:
        self.story.advance(self.now_ms)
        core, now = self.story.scheduler, self.story.now_ns
        event = self.story.arrival(0, model, slo_ms=slo_ms)
        least_ns = core.quote(event, now).min_slo_now_ns
        if least_ns is not None:
            asked = RequestArrived(0, model, now, now + least_ns, elements=event.elements)
            assert core.quote(asked, now).num_met == 1


TestQuoteMachine = QuoteMachine.TestCase
TestQuoteMachine.settings = LIVES
