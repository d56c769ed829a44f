"""A real scheduler and dispatcher with a feed of the live page, in hand-driven time."""

import asyncio
import json
from typing import Any, NamedTuple

from gateway.dispatcher import Dispatcher
from gateway.lifecycle import Lifecycle
from gateway.live.feed import LiveFeed
from gateway.live.frames import LiveSampler
from gateway.live.watch import LiveWatch
from gateway.metrics.metrics import Metrics
from gateway.observability.recent_requests import RecentRequests
from scheduler.actions import Action, Code, Infer, InferResult, LoadResult, LoadWeights, Span
from scheduler.events import ModelAdded, RequestArrived, WorkerJoined, WorkerLost
from scheduler.scheduler import Scheduler
from scheduler.spec import MILLISECOND_NS, ModelSpec
from tests.gateway.doubles import (
    Answers,
    ManualClock,
    ManualTimer,
    PuppetLink,
    device_spec,
    model_spec,
    tensors_of,
)


def ms(count: float) -> int:
    """A duration; that of doubles.py is an instant."""
    return round(count * MILLISECOND_NS)


class Told(NamedTuple):
    """One server-sent event."""

    name: str
    data: dict[str, Any]


def parsed(stream: bytes) -> list[Told]:
    """As the standard has it, as far as we use it."""
    told = []
    for block in stream.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line)
        if "data" in fields:
            told.append(Told(fields["event"], json.loads(fields["data"])))
    return told


class Tempo:
    """The sampler's `sleep`: it goes on when the test says so."""

    def __init__(self) -> None:
        self.sleeping: list[asyncio.Future[None]] = []

    async def __call__(self, delay_s: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self.sleeping.append(waiter)
        await waiter


class LiveStage:
    """Workers w1, w2, ... by hand: `finish` is what each says."""

    def __init__(self, *specs: ModelSpec, max_pages: int = 256) -> None:
        self.clock, self.timer, self.link = ManualClock(), ManualTimer(), PuppetLink()
        self.answers = Answers()
        self.catalog = {spec.name: spec for spec in specs or (model_spec(),)}
        self.scheduler = Scheduler(models=list(self.catalog.values()))
        self.metrics = Metrics(version="1.2.3", page_bytes=16 << 20)
        self.metrics.watch(self.scheduler)
        self.lifecycle = Lifecycle()
        self.lifecycle.serve()
        self.dispatcher = Dispatcher(
            self.scheduler,
            self.link,
            clock=self.clock,
            timer=self.timer,
            on_fatal=lambda error: None,
            observers=[self.metrics],
        )
        self.watch = LiveWatch(self.scheduler)
        self.recent = RecentRequests(100, clock=self.clock, wall=lambda: 0.0)
        self.sampler = LiveSampler(
            self.scheduler,
            self.catalog,
            self.metrics,
            self.watch,
            self.recent,
            clock=self.clock,
            interval_ms=500,
            default_slo_ms=1000,
        )
        self.tempo = Tempo()
        self.feed = LiveFeed(
            self.sampler,
            self.watch,
            self.dispatcher,
            self.lifecycle,
            interval_ms=500,
            max_pages=max_pages,
            sleep=self.tempo,
        )

    def join(self, worker_id: str, *, resident: tuple[str, ...] = (), pages: int = 8) -> None:
        models = tuple(s for s in self.catalog.values() if s.unavailable_reason is None)
        spec = device_spec(total_pages=pages)
        self.dispatcher.feed(WorkerJoined(worker_id, spec, models, resident))

    def lose(self, worker_id: str) -> None:
        self.dispatcher.feed(WorkerLost(worker_id, "gone"))

    def add(self, spec: ModelSpec) -> None:
        self.catalog[spec.name] = spec
        self.dispatcher.feed(ModelAdded(spec))

    def ask(self, name: str, *, model: str = "resnet", slo_ms: float = 100) -> None:
        now, request_id = self.clock(), self.dispatcher.next_id()
        arrived = RequestArrived(request_id, model, now, now + ms(slo_ms), elements=4)
        self.dispatcher.submit(arrived, tensors_of(b"1234"), [b"1234"], self.answers.to(name))

    def finish(self, *, took_ms: float = 3, code: Code = Code.OK) -> Action:
        """The worker has done what was sent last: it took so long, until now."""
        worker_id, action = self.link.sent[-1]
        begin_ns = self.clock()
        self.clock.advance(ms(took_ms))
        span = Span(begin_ns, self.clock(), ms(took_ms))
        tensors: list[Any] = []
        if isinstance(action, LoadWeights):
            result: Any = LoadResult(action.action_id, code, received_ns=begin_ns, load=span)
        else:
            assert isinstance(action, Infer)
            nothing = Span(begin_ns, begin_ns, 0)
            after = Span(self.clock(), self.clock(), 0)
            result = InferResult(
                action.action_id,
                code,
                received_ns=begin_ns,
                input=nothing,
                exec=span,
                output=after,
            )
            tensors = [tensors_of(b"y") for _ in action.request_ids]
        views = [[memoryview(b"y")] for _ in tensors]
        self.dispatcher.report(worker_id, result, tensors, views)
        return action

    async def tick(self) -> None:
        """The sampler's interval is over, and everybody has done what there was to do."""
        await settle()
        for waiter in self.tempo.sleeping:
            if not waiter.done():
                waiter.set_result(None)
        self.tempo.sleeping.clear()
        await settle()


class Reader:
    """An open page. It reads when told to, or at once what comes with `run`."""

    def __init__(self, stage: LiveStage) -> None:
        self.may_go_on = True
        self._events = stage.feed.listen(lambda: self.may_go_on)
        self._told: list[Told] = []

    async def start(self) -> None:
        """Opens; the first piece is no event."""
        assert (await anext(self._events)) == b"retry: 2000\n\n"

    async def read(self) -> Told:
        [told] = parsed(await anext(self._events))
        return told

    async def is_over(self) -> bool:
        return [piece async for piece in self._events] == []

    async def leave(self) -> None:
        await self._events.aclose()  # type: ignore[attr-defined]


async def settle(turns: int = 40) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
