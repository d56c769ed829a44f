"""Random lives of the scheduler: after every event the invariants hold, and at the end of the day
every request has had exactly one answer.

The workers here are as bad as workers can be: results come in any order, with any code, twice, for
actions never sent, of the wrong kind; they vanish and re-join with whatever they please.
"""

import random

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    ReleaseModel,
    ReleaseResult,
    Result,
    Span,
)
from scheduler.events import ActionFinished, RequestsArrived
from scheduler.policies import POLICIES
from scheduler.priority import HIGH, LOW, NORMAL
from scheduler.spec import MILLISECOND_NS, SchedulerConfig, ShapeProfile
from tests.scheduler.story import START_NS, Story, model_spec, ms

SHAPES = (
    ShapeProfile("4", 4, {1: ms(3), 4: ms(9)}),
    ShapeProfile("8", 8, {1: ms(5), 4: ms(17)}),
)
SPECS = {
    "fast": model_spec("fast", exec_ms={1: 1, 2: 1.5, 4: 2.5, 8: 4.5}, load_ms=5, pages=1),
    "slow": model_spec("slow", exec_ms={1: 30, 2: 50, 4: 90}, load_ms=60, pages=6),
    "padded": model_spec("padded", exec_ms={1: 4, 4: 8, 16: 20}, load_ms=9, pages=3, exact=False),
    "shaped": model_spec("shaped", exec_ms={1: 3, 4: 9}, shapes=SHAPES, pages=2),
    "single": model_spec("single", exec_ms={1: 7}, load_ms=30, pages=2, pinned=True),
    "huge": model_spec("huge", pages=99),
    "broken": model_spec("broken", unavailable_reason="not a model", shapes=()),
}
MODELS = st.sampled_from([*SPECS, "never heard of"])
SLOS_MS = st.one_of(
    st.sampled_from([0.001, 1, 5, 20, 50, 100, 500, 86_400_000]), st.floats(0.01, 300)
)
WORKERS = st.sampled_from(["a", "b", "c"])


class SchedulerMachine(RuleBasedStateMachine):
    story_type = Story

    def __init__(self) -> None:
        super().__init__()
        self.story: Story
        self.next_request = 0
        self.joins = 0
        self.up: dict[str, str] = {}  # name → worker id of its present incarnation

    @initialize(
        policy=st.sampled_from([*POLICIES, "remontoir", "remontoir:blocking_cap=false"]),
        weights=st.sampled_from([{}, {}, {"one": 1.0, "two": 3.0}]),
        ahead_ms=st.sampled_from([0, 0.1, 2, 10]),
        outstanding=st.sampled_from([1, 2, 3]),
        limit=st.sampled_from([3, 16_384]),
    )
    def begin(
        self,
        policy: str,
        weights: dict[str, float],
        ahead_ms: float,
        outstanding: int,
        limit: int,
    ) -> None:
        config = SchedulerConfig(
            schedule_ahead_ns=ms(ahead_ms),
            max_outstanding_infers=outstanding,
            max_queued_requests=limit,
            tenant_weights=weights,
            story_length=8,
        )
        self.story = self.story_type(
            *SPECS.values(),
            config=config,
            policy=policy,
        )

    @property
    def now_ms(self) -> float:
        return (self.story.now_ns - START_NS) / MILLISECOND_NS

    # ------------------------------------------------------------------ clients

    @rule(
        model=MODELS,
        slo_ms=SLOS_MS,
        rows=st.sampled_from([0, 1, 1, 1, 1, 2, 3, 4, 9, 17]),
        key=st.sampled_from(["", "", "4", "8", "17"]),
        do_not_queue=st.sampled_from([False, False, False, True]),
        number=st.sampled_from([1, 1, 1, 2, 8, 40]),
        tenant=st.sampled_from(["", "one", "two", "unheard of"]),
        priority=st.sampled_from([NORMAL, NORMAL, HIGH, LOW]),
    )
    def arrive(
        self,
        model: str,
        slo_ms: float,
        rows: int,
        key: str,
        do_not_queue: bool,
        number: int,
        tenant: str,
        priority: int,
    ) -> None:
        for _ in range(number):
            self.next_request += 1
            self.story.arrive(
                self.next_request,
                model,
                slo_ms=slo_ms,
                rows=rows,
                batch_key=key,
                shape_key=key,
                elements=int(key or 0),
                do_not_queue=do_not_queue,
                tenant=tenant,
                priority=priority,
            )

    @rule(
        wishes=st.lists(
            st.tuples(MODELS, SLOS_MS, st.sampled_from([False, False, True])), max_size=6
        )
    )
    def arrive_together(self, wishes: list[tuple[str, float, bool]]) -> None:
        arrivals = []
        for model, slo_ms, do_not_queue in wishes:
            self.next_request += 1
            arrivals.append(
                self.story.arrival(
                    self.next_request, model, slo_ms=slo_ms, do_not_queue=do_not_queue
                )
            )
        self.story.handle(RequestsArrived(tuple(arrivals)))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.story.cancel(data.draw(st.integers(0, self.next_request + 1)))

    # ------------------------------------------------------------------ time

    @rule(milliseconds=st.sampled_from([0.05, 1, 3, 10, 40, 400, 5_000]))
    def wait(self, milliseconds: float) -> None:
        self.story.advance(self.now_ms + milliseconds)

    @rule()
    def wake(self) -> None:
        wakeup = self.story.scheduler.next_wakeup()
        if wakeup is not None:
            self.story.advance((wakeup - START_NS) / MILLISECOND_NS)

    # ------------------------------------------------------------------ workers

    @rule(
        name=WORKERS,
        offered=st.sets(st.sampled_from([*SPECS]), min_size=1),
        resident=st.lists(st.sampled_from([*SPECS, "never heard of"]), max_size=4),
        pages=st.sampled_from([1, 6, 8, 20]),
        shared=st.booleans(),
        another_content=st.sampled_from([False, False, False, True]),
    )
    def join(
        self,
        name: str,
        offered: set[str],
        resident: list[str],
        pages: int,
        shared: bool,
        another_content: bool,
    ) -> None:
        if name in self.up:
            return
        self.joins += 1
        self.up[name] = f"{name}-{self.joins}"
        specs = [SPECS[model] for model in sorted(offered)]
        if another_content:
            specs = [model_spec(s.name, exec_ms={1: 1}, content_hash="other") for s in specs]
        self.story.join(self.up[name], pages=pages, shared=shared, specs=specs, resident=resident)

    @rule(name=WORKERS)
    def lose(self, name: str) -> None:
        self.story.lose(self.up.pop(name, "nobody"))

    @precondition(lambda self: self.story.sent)
    @rule(
        data=st.data(),
        code=st.sampled_from([*Code, *[Code.OK] * 8]),
        factor=st.sampled_from([1.0, 1.0, 1.0, 0.2, 5.0, 300.0]),
    )
    def finish(self, data: st.DataObject, code: Code, factor: float) -> None:
        action = self._draw_action(data)
        took_ms = 0.0
        if not isinstance(action, EvictWeights | ReleaseModel):
            took_ms = factor * action.expected_duration_ns / MILLISECOND_NS
        self.story.finish(action, at_ms=self.now_ms + took_ms, took_ms=took_ms, code=code)

    @precondition(lambda self: self.story.sent)
    @rule(data=st.data(), spans=st.lists(st.integers(-(2**62), 2**62), min_size=3, max_size=3))
    def finish_with_nonsense_instants(self, data: st.DataObject, spans: list[int]) -> None:
        action = self._draw_action(data)
        span = Span(*spans)
        result: Result
        if isinstance(action, Infer):
            result = InferResult(action.action_id, Code.OK, "", spans[0], span, span, span)
        elif isinstance(action, LoadWeights):
            result = LoadResult(action.action_id, Code.OK, "", spans[0], span)
        else:
            result = EvictResult(action.action_id, Code.OK, "", spans[0])
        send = self.story.sent.pop(action.action_id)
        self.story.handle(ActionFinished(send.worker_id, result))

    @precondition(lambda self: self.story.sent)
    @rule(data=st.data(), code=st.sampled_from([*Code]))
    def finish_with_another_kind(self, data: st.DataObject, code: Code) -> None:
        action = self._draw_action(data)
        send = self.story.sent.pop(action.action_id)
        result: Result = EvictResult(action.action_id, code)
        if isinstance(action, EvictWeights):
            result = InferResult(action.action_id, code)
        self.story.handle(ActionFinished(send.worker_id, result))

    @rule(
        name=WORKERS,
        action_id=st.integers(-1, 500),
        kind=st.sampled_from([InferResult, LoadResult, EvictResult, ReleaseResult]),
        code=st.sampled_from([*Code]),
    )
    def finish_what_was_never_sent(
        self, name: str, action_id: int, kind: type[Result], code: Code
    ) -> None:
        worker_id = self.up.get(name, "nobody")
        send = self.story.sent.get(action_id)
        if send is None or send.worker_id != worker_id:
            self.story.handle(ActionFinished(worker_id, kind(action_id, code)))

    def _draw_action(self, data: st.DataObject) -> Action:
        return self.story.sent[data.draw(st.sampled_from(list(self.story.sent)))].action

    # ------------------------------------------------------------------ models

    @rule(model=MODELS)
    def remove(self, model: str) -> None:
        self.story.remove(model)

    @rule(model=MODELS)
    def unload(self, model: str) -> None:
        self.story.unload(model)

    @rule(model=st.sampled_from([*SPECS]), replaced=st.sampled_from([False, False, True]))
    def add(self, model: str, replaced: bool) -> None:
        spec = SPECS[model]
        if replaced:
            spec = model_spec(model, exec_ms={1: 2, 2: 3}, content_hash="newer")
        self.story.add(spec)

    @rule(name=WORKERS, model=st.sampled_from([*SPECS]), another_content=st.booleans())
    def offer(self, name: str, model: str, another_content: bool) -> None:
        spec = SPECS[model]
        if another_content:
            spec = model_spec(model, exec_ms={1: 2, 2: 3}, content_hash="newer")
        self.story.offer(spec, self.up.get(name, "nobody"))

    @rule(model=MODELS, replaces=st.sampled_from([*SPECS, ""]))
    def stage(self, model: str, replaces: str) -> None:
        self.story.stage(model, replaces)

    @rule(model=MODELS)
    def end_staging(self, model: str) -> None:
        self.story.end_staging(model)

    @rule(model=MODELS)
    def forget(self, model: str) -> None:
        self.story.forget(model)

    @rule(model=MODELS, is_pinned=st.booleans())
    def pin(self, model: str, is_pinned: bool) -> None:
        self.story.pin(model, is_pinned)

    # ------------------------------------------------------------------ always

    @invariant()
    def nobody_is_forgotten(self) -> None:
        if hasattr(self, "story"):
            self.story.check_answers()

    def teardown(self) -> None:
        """The workers do the rest properly: then everyone has been answered."""
        if not hasattr(self, "story"):
            return
        story = self.story
        shuffle = random.Random(0).shuffle
        for _ in range(400):
            if not story.sent:
                break
            waiting = list(story.sent.values())
            shuffle(waiting)
            for send in waiting:
                if send.action.action_id in story.sent:
                    story.finish(send.action)
        story.advance(self.now_ms + 86_400_001)
        while story.sent:
            story.finish(next(iter(story.sent.values())).action)
        story.check_answers()
        assert story.scheduler.open_request_ids() == []
        assert story.scheduler.num_queued == 0


LIVES = settings(
    max_examples=100,
    report_multiple_bugs=False,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = LIVES
