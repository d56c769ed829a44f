"""The dispatcher between a puppet core and a puppet link, in hand-driven time."""

import asyncio
import weakref
from collections.abc import Callable, Iterator, Sequence

import pytest

from gateway.dispatcher import Dispatcher
from gateway.open_requests import Outputs
from scheduler.actions import Code, EvictWeights, Infer, InferResult, LoadResult, LoadWeights, Span
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Command,
    Event,
    Expired,
    Failed,
    Outcome,
    Quote,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    RequestsArrived,
    Send,
    Served,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.scheduler import Scheduler
from scheduler.spec import MILLISECOND_NS
from scheduler.wire import Buffer
from tests.gateway.doubles import (
    START_NS,
    Answers,
    ManualClock,
    ManualTimer,
    PuppetLink,
    PuppetScheduler,
    device_spec,
    model_spec,
    ms,
    tensors_of,
)

SERVED = Served("w1", 1, False, 9, 1, 0, 1, 5, 1)
NO_WORKER = Rejected(Reason.NO_WORKER, "no live worker")
TOO_LATE = Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, "still executing")
ASKED = RequestArrived(0, "resnet", START_NS, START_NS + 5, 2, "b", "3x4", 12, True, "shop")


def arrival(dispatcher: Dispatcher, now: int, *, slo_ms: float = 20) -> RequestArrived:
    """What is about to be submitted."""
    deadline_ns = now + round(slo_ms * MILLISECOND_NS)
    return RequestArrived(dispatcher.next_id(), "resnet", now, deadline_ns, 1, "k", elements=4)


class Desk:
    """A dispatcher with its puppets, and short ways to use it."""

    def __init__(
        self,
        clock: ManualClock,
        timer: ManualTimer,
        core: PuppetScheduler,
        link: PuppetLink,
        answers: Answers,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.clock, self.timer, self.core, self.link, self.answers = (
            clock,
            timer,
            core,
            link,
            answers,
        )
        self.fatal: list[Exception] = []
        self.dispatcher = Dispatcher(
            core,
            link,
            clock=clock,
            timer=timer,
            on_fatal=self.fatal.append,
            call_soon=call_soon,
        )

    def submit(
        self,
        name: str,
        *buffers: Buffer,
        on_done: Callable[[Outcome, Outputs | None], None] | None = None,
        then: list[Command] | Exception | None = None,
    ) -> int:
        """A request of resnet, SLO 20 ms; the core answers its arrival with `then`."""
        if then is not None:
            self.core.answers.append(then)
        arrived = arrival(self.dispatcher, self.clock())
        on_done = on_done or self.answers.to(name)
        self.dispatcher.submit(arrived, tensors_of(*buffers), list(buffers), on_done)
        return arrived.request_id

    def feed(self, event: Event, then: list[Command] | Exception) -> None:
        self.core.answers.append(then)
        self.dispatcher.feed(event)

    def report(
        self,
        action_id: int,
        *outputs: bytes,
        then: list[Command],
        worker_id: str = "w1",
        code: Code = Code.OK,
    ) -> None:
        """A worker's InferResult with one output tensor per request."""
        self.core.answers.append(then)
        self.dispatcher.report(
            worker_id,
            InferResult(action_id, code),
            [tensors_of(output) for output in outputs],
            [[memoryview(output)] for output in outputs],
        )

    def outputs_of(self, name: str) -> list[bytes]:
        outputs = self.answers.outputs[name]
        assert outputs is not None
        assert outputs.tensors == tensors_of(*outputs.views)
        return [bytes(view) for view in outputs.views]


@pytest.fixture
def desk(
    clock: ManualClock,
    timer: ManualTimer,
    core: PuppetScheduler,
    link: PuppetLink,
    answers: Answers,
) -> Desk:
    return Desk(clock, timer, core, link, answers)


def infer(action_id: int, *request_ids: int) -> Infer:
    rows = (1,) * len(request_ids)
    return Infer(action_id, "resnet", len(request_ids), request_ids, rows, ms(0), ms(9), 3_000_000)


def send(action_id: int, *request_ids: int, to: str = "w1") -> Send:
    return Send(to, infer(action_id, *request_ids))


# Requests and their one answer


def test_a_request_enters_the_core_with_its_absolute_deadline(desk: Desk) -> None:
    desk.clock.set(ms(2))
    first, second = desk.submit("a"), desk.submit("b")
    assert desk.core.handled == [
        (RequestArrived(first, "resnet", ms(2), ms(22), 1, "k", "", 4, False), ms(2)),
        (RequestArrived(second, "resnet", ms(2), ms(22), 1, "k", "", 4, False), ms(2)),
    ]
    assert second != first
    assert desk.dispatcher.num_open == 2


def test_a_refusal_is_told_before_submit_returns(desk: Desk) -> None:
    desk.submit("a", b"1234", then=[Reply(1, NO_WORKER)])
    assert desk.answers.outcomes == [("a", NO_WORKER)]
    assert desk.answers.outputs == {"a": None}
    assert desk.dispatcher.num_open == 0


def test_a_batch_carries_the_tensors_of_its_requests_in_its_own_order(desk: Desk) -> None:
    a = desk.submit("a", b"aa", b"A")
    b = desk.submit("b", b"bb", b"B", then=[send(7, 2, 1)])
    assert (a, b) == (1, 2)
    assert desk.link.sent == [("w1", infer(7, b, a))]
    assert desk.link.tensors == [(tensors_of(b"bb", b"B"), tensors_of(b"aa", b"A"))]
    assert desk.link.buffers == [[b"bb", b"B", b"aa", b"A"]]


def test_moves_of_weights_carry_no_tensors(desk: Desk) -> None:
    load = LoadWeights(8, "resnet", 1, ms(0), ms(9), 5_000_000)
    evict = EvictWeights(9, "vgg", ms(0), ms(9))
    desk.feed(Tick(), [Send("w1", evict), Send("w1", load)])
    assert desk.link.sent == [("w1", evict), ("w1", load)]
    assert desk.link.buffers == [[], []]


def test_each_request_of_a_batch_gets_its_own_outputs(desk: Desk) -> None:
    desk.submit("a", b"aa")
    desk.submit("b", b"bb", then=[send(7, 2, 1)])
    desk.report(7, b"of b", b"of a", then=[Reply(1, SERVED), Reply(2, SERVED)])
    assert desk.answers.outcomes == [("a", SERVED), ("b", SERVED)]
    assert desk.outputs_of("a") == [b"of a"]
    assert desk.outputs_of("b") == [b"of b"]
    assert desk.core.events[-1] == ActionFinished("w1", InferResult(7, Code.OK))


def test_a_batch_divides_its_energy_by_rows(desk: Desk) -> None:
    """300 W for 2 ms are 600 mJ; the row of padding is everybody's."""
    desk.submit("a", b"aa")
    batch = Infer(7, "resnet", 4, (1, 2), (1, 2), ms(0), ms(9), 1_000_000)
    desk.submit("b", b"bb", then=[Send("w1", batch)])
    result = InferResult(7, Code.OK, exec=Span(ms(1), ms(4), 2_000_000), power_mw=300_000)
    desk.core.answers.append([Reply(1, SERVED), Reply(2, SERVED)])
    desk.dispatcher.report(
        "w1",
        result,
        [tensors_of(b"of a"), tensors_of(b"of b")],
        [[memoryview(b"of a")], [memoryview(b"of b")]],
    )
    assert (desk.outputs_of("a"), desk.outputs_of("b")) == ([b"of a"], [b"of b"])
    energies = [outputs.energy_mj for outputs in desk.answers.outputs.values() if outputs]
    assert energies == [200.0, 400.0]


def test_commands_are_executed_in_their_order(desk: Desk) -> None:
    seen: list[str] = []
    desk.link.on_send = lambda worker_id: seen.append(f"send to {worker_id}")
    for name in ("a", "b", "c"):
        desk.submit(name, on_done=lambda outcome, _, name=name: seen.append(f"answer {name}"))
    desk.feed(Tick(), [Reply(3, NO_WORKER), send(7, 1), Reply(2, NO_WORKER), send(8, 1, to="w2")])
    assert seen == ["answer c", "send to w1", "answer b", "send to w2"]


def test_the_answer_of_one_request_leaves_the_rest_of_its_batch_waiting(desk: Desk) -> None:
    desk.submit("a", b"aa")
    desk.submit("b", b"bb", then=[send(7, 1, 2)])
    desk.feed(Tick(), [Reply(1, TOO_LATE)])
    desk.report(7, b"of a", b"of b", then=[Reply(2, SERVED)])
    assert desk.answers.outcomes == [("a", TOO_LATE), ("b", SERVED)]
    assert desk.outputs_of("b") == [b"of b"]


def test_a_failed_batch_has_no_outputs_and_is_sent_again_with_the_same_tensors(desk: Desk) -> None:
    desk.submit("a", b"aa", then=[send(7, 1)])
    desk.report(7, code=Code.ENGINE_ERROR, then=[send(8, 1, to="w2")])
    desk.report(8, b"of a", worker_id="w2", then=[Reply(1, SERVED)])
    assert desk.link.sent == [("w1", infer(7, 1)), ("w2", infer(8, 1))]
    assert desk.link.buffers == [[b"aa"], [b"aa"]]
    assert desk.outputs_of("a") == [b"of a"]


class Body(bytearray):
    """A buffer whose end can be watched."""


def test_tensors_are_kept_for_a_retry_and_freed_with_the_answer(desk: Desk) -> None:
    body = Body(b"1234")
    watch = weakref.ref(body)
    desk.submit("a", body, then=[send(7, 1)])
    del body
    assert watch() is not None, "a retry would find nothing to send"
    desk.feed(Tick(), [Reply(1, TOO_LATE)])  # the execution is still under way
    assert watch() is None


# The client goes away


def test_a_cancelled_request_is_answered_once_to_nobody(desk: Desk) -> None:
    request_id = desk.submit("a")
    desk.core.answers.append([Reply(1, Cancelled())])
    desk.dispatcher.cancel(request_id)
    desk.dispatcher.cancel(request_id)
    assert desk.core.events[1:] == [RequestCancelled(request_id)]
    assert desk.answers.outcomes == [("a", Cancelled())]


def test_leaving_after_the_answer_is_no_event(desk: Desk) -> None:
    request_id = desk.submit("a", then=[Reply(1, NO_WORKER)])
    desk.dispatcher.cancel(request_id)
    desk.dispatcher.cancel(4711)
    assert len(desk.core.events) == 1


# Callbacks that call back


def test_a_request_submitted_inside_an_answer_waits_for_the_commands_before_it(desk: Desk) -> None:
    def submit_another(outcome: Outcome, outputs: Outputs | None) -> None:
        desk.answers.to("a")(outcome, outputs)
        desk.submit("b", b"bb")

    desk.submit("a", b"aa", on_done=submit_another)
    desk.submit("c", b"cc")
    desk.core.answers.extend([[Reply(1, NO_WORKER), send(7, 2)], [Reply(3, NO_WORKER)]])
    desk.dispatcher.feed(Tick())
    assert [type(event) for event in desk.core.events] == [
        RequestArrived,
        RequestArrived,
        Tick,
        RequestArrived,
    ]
    assert desk.link.sent == [("w1", infer(7, 2))]
    assert desk.answers.outcomes == [("a", NO_WORKER), ("b", NO_WORKER)]


def test_a_cancellation_inside_an_answer_is_dropped_if_the_request_is_answered_by_then(
    desk: Desk,
) -> None:
    desk.submit("a", on_done=lambda *_: desk.dispatcher.cancel(2))
    desk.submit("b")
    desk.feed(Tick(), [Reply(1, NO_WORKER), Reply(2, NO_WORKER)])
    assert desk.answers.outcomes == [("b", NO_WORKER)]
    assert RequestCancelled(2) not in desk.core.events


def test_a_callback_that_raises_takes_nobody_with_it(desk: Desk) -> None:
    def break_down(*_: object) -> None:
        raise ValueError("cannot write this")

    desk.submit("a", on_done=break_down)
    desk.submit("b")
    desk.feed(Tick(), [Reply(1, NO_WORKER), Reply(2, NO_WORKER)])
    assert desk.answers.outcomes == [("b", NO_WORKER)]
    assert desk.dispatcher.callback_errors == 1
    assert desk.fatal == []


# Workers come and go


def test_a_worker_lost_while_sending_is_told_to_the_core_after_the_event_in_hand(
    desk: Desk,
) -> None:
    desk.link.on_send = lambda worker_id: (
        desk.dispatcher.feed(WorkerLost("w1", "gone")) if len(desk.link.sent) == 1 else None
    )
    desk.submit("a", b"aa")
    desk.submit("b", b"bb")
    desk.core.answers.extend([[send(7, 1), send(8, 2)], [send(9, 1, 2, to="w2")]])
    desk.dispatcher.feed(Tick())
    assert desk.core.events[2:] == [Tick(), WorkerLost("w1", "gone")]
    assert desk.link.sent[2:] == [("w2", infer(9, 1, 2))]
    assert desk.link.buffers[2:] == [[b"aa", b"bb"]]


def test_results_of_a_lost_worker_go_to_the_core_without_outputs(desk: Desk) -> None:
    desk.submit("a", b"aa", then=[send(7, 1)])
    desk.feed(WorkerLost("w1", "silent"), [send(8, 1, to="w2")])
    desk.report(7, b"stale", then=[])
    desk.report(8, b"of a", worker_id="w2", then=[Reply(1, SERVED)])
    assert desk.outputs_of("a") == [b"of a"]
    assert desk.core.events[2] == ActionFinished("w1", InferResult(7, Code.OK))


def test_a_result_for_another_workers_action_does_not_take_its_place(desk: Desk) -> None:
    desk.submit("a", b"aa", then=[send(7, 1)])
    desk.report(7, b"forged", worker_id="w2", then=[])
    desk.report(7, b"of a", then=[Reply(1, SERVED)])
    assert desk.outputs_of("a") == [b"of a"]


def test_outputs_for_the_wrong_number_of_requests_are_a_malformed_result(desk: Desk) -> None:
    desk.submit("a", b"aa")
    desk.submit("b", b"bb", then=[send(7, 1, 2)])
    desk.report(7, b"only one", then=[])
    event = desk.core.events[-1]
    assert isinstance(event, ActionFinished)
    assert event.result.code is Code.MALFORMED
    assert event.result.message == "w1 reported outputs of 1 requests for action 7 of 2"


def test_results_of_loads_go_to_the_core(desk: Desk) -> None:
    desk.dispatcher.report("w1", LoadResult(3, Code.OK), (), ())
    assert desk.core.events == [ActionFinished("w1", LoadResult(3, Code.OK))]


# Time


def test_the_timer_is_armed_for_the_cores_wakeup(desk: Desk) -> None:
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    assert desk.timer.delays_ms == [7.0]


def test_the_timer_is_left_alone_while_the_wakeup_moves_away(desk: Desk) -> None:
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.core.wakeup_ns = ms(9)
    desk.submit("b")
    desk.core.wakeup_ns = None
    desk.submit("c")
    assert [handle.is_cancelled for handle in desk.timer.handles] == [False]


def test_the_timer_moves_when_the_wakeup_comes_nearer(desk: Desk) -> None:
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.clock.set(ms(1))
    desk.core.wakeup_ns = ms(3)
    desk.submit("b")
    assert desk.timer.delays_ms == [2.0]
    assert len(desk.timer.handles) == 2


def test_the_core_is_woken_at_the_time_that_it_is(desk: Desk) -> None:
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.clock.set(ms(7.4))
    desk.timer.fire()
    assert desk.core.handled[-1] == (Tick(), ms(7.4))


def test_a_timer_a_little_early_wakes_the_core_at_its_wakeup_and_time_stays_there(
    desk: Desk,
) -> None:
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.clock.set(ms(6.5))
    desk.core.wakeup_ns = ms(7)
    desk.timer.fire()
    assert desk.core.handled[-1] == (Tick(), ms(7))
    desk.clock.set(ms(6.8))
    desk.submit("b")
    assert desk.core.handled[-1][1] == ms(7)


def test_a_timer_much_too_early_is_armed_again_for_the_rest(desk: Desk) -> None:
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.core.wakeup_ns = ms(12)  # moved away, without the timer being told
    desk.clock.set(ms(7))
    desk.timer.fire()
    assert Tick() not in desk.core.events
    assert desk.timer.delays_ms == [5.0]


def test_a_timer_for_nothing_wakes_nobody(desk: Desk) -> None:
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.core.wakeup_ns = None
    desk.clock.set(ms(7))
    desk.timer.fire()
    assert Tick() not in desk.core.events
    assert desk.timer.delays_ms == []


def test_a_wakeup_that_is_overdue_is_asked_for_at_once(desk: Desk) -> None:
    desk.clock.set(ms(3))
    desk.core.wakeup_ns = ms(2)
    desk.submit("a")
    assert desk.timer.delays_ms == [0.0]


def test_closing_disarms_the_timer(desk: Desk) -> None:
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.dispatcher.close()
    assert desk.timer.delays_ms == []


# The core breaks


def test_when_the_core_breaks_everybody_is_answered_and_the_process_told_to_stop(
    desk: Desk,
) -> None:
    broken = AssertionError("pages_free is -1 on w1")
    failed = Failed(
        Reason.INTERNAL_ERROR, "the gateway stops: AssertionError: pages_free is -1 on w1"
    )
    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.submit("b", then=broken)
    desk.submit("c")
    desk.dispatcher.feed(Tick())
    assert desk.answers.outcomes == [("a", failed), ("b", failed), ("c", failed)]
    assert desk.fatal == [broken]
    assert len(desk.core.events) == 2, "a broken core is not asked again"
    assert desk.timer.delays_ms == []


def test_the_log_tells_the_story_of_the_requests_that_broke_the_core(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.core.stories[1] = [(ms(1), RequestCancelled(1), [Reply(1, Cancelled())])]
    desk.submit("a", then=RuntimeError("our bug"))
    assert [record.getMessage() for record in caplog.records][1:] == [
        f"story of request 1: {ms(1)} RequestCancelled(request_id=1) "
        "[Reply(request_id=1, outcome=Cancelled())]"
    ]


def test_a_core_that_breaks_when_asked_for_its_wakeup_stops_the_process_too(desk: Desk) -> None:
    broken = RuntimeError("no wakeup")

    def break_down() -> int | None:
        raise broken

    desk.core.wakeup_ns = ms(7)
    desk.submit("a")
    desk.core.next_wakeup = break_down  # type: ignore[method-assign]
    desk.clock.set(ms(7))
    desk.timer.fire()
    assert desk.fatal == [broken]
    assert [name for name, _ in desk.answers.outcomes] == ["a"]


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([Reply(1, NO_WORKER), Reply(1, NO_WORKER)], "request 1 is not open: answered twice"),
        ([Reply(1, SERVED)], "request 1 is Served, and no outputs came for it"),
        ([Reply(1, NO_WORKER), send(7, 1)], "request 1 is not open, and to be sent in Infer"),
    ],
)
def test_commands_that_contradict_the_books_are_our_bug(
    desk: Desk, commands: list[Command], message: str
) -> None:
    desk.submit("a")
    desk.feed(Tick(), commands)
    assert [str(error)[: len(message)] for error in desk.fatal] == [message]
    assert [name for name, _ in desk.answers.outcomes] == ["a"], "and still answered, once"


# Observing and draining


def test_observers_see_each_event_and_its_commands(desk: Desk) -> None:
    class Notes:
        def __init__(self) -> None:
            self.lines: list[object] = []

        def on_event(self, event: Event, now: int) -> None:
            self.lines.append((type(event).__name__, now))

        def on_commands(self, event: Event, commands: Sequence[Command], now: int) -> None:
            self.lines.append((type(event).__name__, list(commands), now))

    notes = Notes()
    dispatcher = Dispatcher(
        desk.core,
        desk.link,
        clock=desk.clock,
        timer=desk.timer,
        on_fatal=desk.fatal.append,
        observers=[notes],
    )
    load = Send("w1", LoadWeights(8, "resnet", 1, ms(0), ms(9), 5_000_000))
    desk.core.answers.append([load])
    dispatcher.feed(Tick())
    assert notes.lines == [("Tick", START_NS), ("Tick", [load], START_NS)]


def test_idle_is_when_the_last_request_is_answered(desk: Desk) -> None:
    async def story() -> list[bool]:
        desk.submit("a")
        desk.submit("b")
        idle = asyncio.ensure_future(desk.dispatcher.wait_idle())
        seen = []
        for request_id in (1, 2):
            await asyncio.sleep(0)
            seen.append(idle.done())
            desk.feed(Tick(), [Reply(request_id, NO_WORKER)])
        await idle
        await desk.dispatcher.wait_idle()  # at once
        return seen

    assert asyncio.run(story()) == [False, False]


# With the real core


class Service:
    """The real scheduler behind the dispatcher; one worker that is moved by hand."""

    def __init__(self, clock: ManualClock, timer: ManualTimer, answers: Answers) -> None:
        self.clock, self.timer, self.answers = clock, timer, answers
        self.link = PuppetLink()
        self.fatal: list[Exception] = []
        self.dispatcher = Dispatcher(
            Scheduler(models=[model_spec()]),
            self.link,
            clock=clock,
            timer=timer,
            on_fatal=self.fatal.append,
        )

    def join(self, *resident: str) -> None:
        self.dispatcher.feed(WorkerJoined("w1", device_spec(), (model_spec(),), resident))

    def submit(self, name: str, *, slo_ms: int) -> int:
        arrived = arrival(self.dispatcher, self.clock(), slo_ms=slo_ms)
        body = name.encode()
        self.dispatcher.submit(arrived, tensors_of(body), [body], self.answers.to(name))
        return arrived.request_id

    def reason(self, name: str) -> Reason:
        outcome = dict(self.answers.outcomes)[name]
        assert isinstance(outcome, Rejected | Expired | Failed)
        return outcome.reason


@pytest.fixture
def service(clock: ManualClock, timer: ManualTimer, answers: Answers) -> Iterator[Service]:
    service = Service(clock, timer, answers)
    yield service
    assert service.fatal == []
    assert service.dispatcher.num_open == 0


def test_a_cold_request_is_loaded_executed_and_served(service: Service) -> None:
    service.join()
    service.submit("a", slo_ms=100)
    ((worker_id, load),) = service.link.sent
    assert isinstance(load, LoadWeights)
    service.clock.advance(5_000_000)
    span = Span(ms(0), ms(5), 5_000_000)
    service.dispatcher.report(
        worker_id, LoadResult(load.action_id, Code.OK, "", ms(0), span), (), ()
    )
    infer = service.link.sent[1][1]
    assert isinstance(infer, Infer)
    assert service.link.buffers[1] == [b"a"]
    service.clock.advance(3_000_000)
    result = InferResult(
        infer.action_id, Code.OK, "", ms(5), Span(ms(5), ms(5), 0), Span(ms(5), ms(8), 3_000_000)
    )
    service.dispatcher.report(worker_id, result, [tensors_of(b"of a")], [[memoryview(b"of a")]])
    ((_, outcome),) = service.answers.outcomes
    assert isinstance(outcome, Served)
    assert outcome.is_cold_start
    outputs = service.answers.outputs["a"]
    assert outputs is not None
    assert [bytes(view) for view in outputs.views] == [b"of a"]


def test_the_timer_answers_a_request_at_its_deadline_while_it_executes(service: Service) -> None:
    service.join("resnet")
    service.submit("a", slo_ms=20)
    assert isinstance(service.link.sent[-1][1], Infer)
    for _ in range(10):
        if not service.timer.delays_ms or service.answers.outcomes:
            break
        service.clock.advance(round(service.timer.delays_ms[-1] * 1_000_000) + 1)
        service.timer.fire()
    assert service.reason("a") is Reason.DEADLINE_EXCEEDED_EXECUTING
    assert service.clock.now <= ms(21)


def test_losing_the_only_worker_answers_what_it_had(service: Service) -> None:
    service.join("resnet")
    service.submit("a", slo_ms=50)
    service.dispatcher.feed(WorkerLost("w1", "its connection is gone"))
    service.submit("b", slo_ms=50)
    assert service.reason("a") is Reason.WORKER_LOST
    assert service.reason("b") is Reason.NO_WORKER


def test_a_client_that_leaves_frees_its_queued_request(service: Service) -> None:
    service.join()
    request_id = service.submit("a", slo_ms=100)
    service.dispatcher.cancel(request_id)
    assert service.answers.outcomes == [("a", Cancelled())]


def test_requests_of_one_turn_of_the_loop_enter_the_core_together(
    clock: ManualClock, timer: ManualTimer, core: PuppetScheduler, link: PuppetLink
) -> None:
    soon: list[Callable[[], None]] = []
    dispatcher = Dispatcher(
        core, link, clock=clock, timer=timer, on_fatal=lambda _: None, call_soon=soon.append
    )

    def submit() -> int:
        arrived = arrival(dispatcher, clock())
        dispatcher.submit(arrived, (), [], lambda _outcome, _outputs: None)
        return arrived.request_id

    first, second = submit(), submit()
    assert core.events == []
    assert len(soon) == 1
    soon.pop()()
    (event,) = core.events
    assert isinstance(event, RequestsArrived)
    assert [arrived.request_id for arrived in event.requests] == [first, second]

    third = submit()
    dispatcher.cancel(third)  # what happens next is told after what came before
    assert [type(event) for event in core.events[1:]] == [RequestArrived, RequestCancelled]
    soon.pop()()
    assert len(core.events) == 3


def test_a_refusal_is_foreseen_by_the_core_and_changes_nothing(
    desk: Desk, clock: ManualClock, core: PuppetScheduler
) -> None:
    core.refusal = Rejected(Reason.SLO_INFEASIBLE_NOW, "busy")
    assert desk.dispatcher.foresee(ASKED) is core.refusal
    assert core.foreseen == [(ASKED, clock())]
    assert core.events == []


def ask(dispatcher: Dispatcher, told: list[tuple[object, int]]) -> None:
    dispatcher.quote(ASKED, 3, lambda quote, now: told.append((quote, now)))


def test_a_quote_is_asked_of_the_core_and_is_no_event(
    desk: Desk, clock: ManualClock, core: PuppetScheduler
) -> None:
    told: list[tuple[object, int]] = []
    ask(desk.dispatcher, told)
    assert told == [(core.quote_answer, clock())]
    assert core.quoted == [(ASKED, clock(), 3)]
    assert core.events == []
    assert desk.dispatcher.num_open == 0


def test_what_is_due_is_told_to_the_core_before_a_quote(
    desk: Desk, clock: ManualClock, core: PuppetScheduler
) -> None:
    core.wakeup_ns = clock() - 1
    told: list[tuple[object, int]] = []
    ask(desk.dispatcher, told)
    assert [type(event) for event in core.events] == [Tick]
    assert len(told) == 1


def test_a_quote_comes_after_the_requests_that_were_submitted_before(
    clock: ManualClock,
    timer: ManualTimer,
    core: PuppetScheduler,
    link: PuppetLink,
    answers: Answers,
) -> None:
    soon: list[Callable[[], None]] = []
    desk = Desk(clock, timer, core, link, answers, soon.append)
    desk.submit("a")
    told: list[tuple[object, int]] = []
    ask(desk.dispatcher, told)
    assert (core.events, core.quoted) == ([], [])
    for step in soon:
        step()
    assert [type(event) for event in core.events] == [RequestArrived]
    assert len(told) == len(core.quoted) == 1


def test_a_core_that_breaks_over_a_quote_stops_the_gateway_and_answers(
    desk: Desk, core: PuppetScheduler
) -> None:
    desk.submit("a")
    core.quote_answer = RuntimeError("lost count")
    told: list[tuple[object, int]] = []
    for _ in range(2):
        ask(desk.dispatcher, told)
    failed = Failed(Reason.INTERNAL_ERROR, "the gateway stops: RuntimeError: lost count")
    assert [quote for quote, _ in told] == [failed, failed]
    assert len(core.quoted) == 1
    assert desk.answers.outcomes == [("a", failed)]
    assert str(desk.dispatcher.fatal_error) == "lost count"


def test_a_verdict_is_given_at_once_after_what_is_due_and_is_no_event(
    desk: Desk, clock: ManualClock, core: PuppetScheduler
) -> None:
    core.wakeup_ns = clock() - 1
    assert desk.dispatcher.verdict(ASKED) is core.quote_answer
    assert core.quoted == [(ASKED, clock(), 1)]
    assert [type(event) for event in core.events] == [Tick]


def test_there_is_no_verdict_while_the_core_is_at_work(
    desk: Desk, core: PuppetScheduler, link: PuppetLink
) -> None:
    verdicts: list[Quote | None] = []
    link.on_send = lambda worker_id: verdicts.append(desk.dispatcher.verdict(ASKED))
    core.answers.append([Send("w", LoadWeights(7, "resnet", 1, 0, 1, 1))])
    desk.submit("a")
    assert (verdicts, core.quoted) == ([None], [])


def test_a_core_that_breaks_over_a_verdict_stops_the_gateway(
    desk: Desk, core: PuppetScheduler
) -> None:
    core.quote_answer = RuntimeError("lost count")
    assert [desk.dispatcher.verdict(ASKED) for _ in range(2)] == [None, None]
    assert len(core.quoted) == 1
    assert str(desk.dispatcher.fatal_error) == "lost count"


def test_who_asks_and_breaks_takes_nobody_with_it(desk: Desk, core: PuppetScheduler) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError

    desk.dispatcher.quote(ASKED, 1, break_down)
    assert desk.dispatcher.callback_errors == 1
    assert desk.dispatcher.fatal_error is None


def test_a_request_is_executing_while_it_is_with_a_worker(desk: Desk) -> None:
    desk.submit("a", then=[send(7, 1)])
    desk.submit("b")
    assert [desk.dispatcher.is_executing(request_id) for request_id in (1, 2)] == [True, False]
    desk.dispatcher.feed(WorkerLost("w1", "gone"))
    assert not desk.dispatcher.is_executing(1)
