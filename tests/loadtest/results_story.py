"""A collector fed by hand: instants in ms, one device with two lanes, nothing that thinks."""

from collections.abc import Sequence

from loadtest.results import Collector
from scheduler.actions import (
    NO_SPAN,
    Action,
    Code,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Result,
    Span,
)
from scheduler.events import (
    ActionFinished,
    Outcome,
    Reply,
    RequestArrived,
    Send,
    Served,
    Tick,
    WorkerJoined,
)
from scheduler.scheduler import Scheduler
from scheduler.spec import MILLISECOND_NS, DeviceSpec

SCHEDULE_AHEAD_MS = 2


def ms(milliseconds: float) -> int:
    return round(milliseconds * MILLISECOND_NS)


def scheduler_with(*worker_ids: str, pages: int = 16) -> Scheduler:
    """A real one, that has seen nothing but these workers join."""
    scheduler = Scheduler()
    device = DeviceSpec(kind="t", page_bytes=2**24, total_pages=pages, shares_exec_core=False)
    for worker_id in worker_ids:
        scheduler.handle(WorkerJoined(worker_id, device, (), ()), 0)
        scheduler.devices[worker_id].schedule_ahead_ns = ms(SCHEDULE_AHEAD_MS)
    return scheduler


def served(worker_id: str = "w0", rows: int = 1, *, cold: bool = False) -> Served:
    return Served(worker_id, rows, cold, ms(9), ms(1), ms(2), 0, ms(5), 0)


def infer(
    action_id: int, *request_ids: int, start_ms: float, model: str = "m", padded: int = 0
) -> Infer:
    """Expected to take 5 ms from `start_ms` on."""
    rows = len(request_ids)
    return Infer(
        action_id,
        model,
        padded or rows,
        request_ids,
        (1,) * rows,
        ms(start_ms - SCHEDULE_AHEAD_MS),
        ms(start_ms + 50),
        ms(5),
    )


def load(action_id: int, *, start_ms: float, model: str = "m", pages: int = 4) -> LoadWeights:
    """Expected to take 8 ms."""
    earliest_ns = ms(start_ms - SCHEDULE_AHEAD_MS)
    return LoadWeights(action_id, model, pages, earliest_ns, ms(500), ms(8))


def evict(action_id: int, model: str = "m") -> EvictWeights:
    return EvictWeights(action_id, model, 0, ms(500))


def inferred(action_id: int, begin_ms: float, end_ms: float) -> InferResult:
    begin, end = ms(begin_ms), ms(end_ms)
    span, at_end = Span(begin, end, end - begin), Span(end, end, 0)
    return InferResult(action_id, Code.OK, "", begin, Span(begin, begin, 0), span, at_end)


def not_inferred(action_id: int, code: Code, at_ms: float) -> InferResult:
    return InferResult(action_id, code, code.name, ms(at_ms))


def loaded(action_id: int, begin_ms: float, end_ms: float, code: Code = Code.OK) -> LoadResult:
    span = Span(ms(begin_ms), ms(end_ms), ms(end_ms - begin_ms)) if code is Code.OK else NO_SPAN
    return LoadResult(action_id, code, code.name, ms(begin_ms), span)


class Script:
    """Says to a collector what happens, in ms."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector

    def arrive(
        self,
        at_ms: float,
        *request_ids: int,
        model: str = "m",
        slo_ms: float = 10,
        stream: int = 0,
        tenant: str = "",
    ) -> None:
        for request_id in request_ids:
            ask = (ms(at_ms), model, ms(slo_ms), stream, tenant)
            self.collector.arrived(request_id, ask)
            event = RequestArrived(request_id, model, ms(at_ms), ms(at_ms + slo_ms))
            self.collector(ms(at_ms), event, [])

    def send(self, at_ms: float, *actions: Action, worker_id: str = "w0") -> None:
        self.collector(ms(at_ms), Tick(), [Send(worker_id, action) for action in actions])

    def answer(self, at_ms: float, *answers: tuple[int, Outcome]) -> None:
        self.collector(ms(at_ms), Tick(), [Reply(*answer) for answer in answers])

    def finish(
        self,
        at_ms: float,
        result: Result,
        answers: Sequence[tuple[int, Outcome]] = (),
        worker_id: str = "w0",
    ) -> None:
        event = ActionFinished(worker_id, result)
        self.collector(ms(at_ms), event, [Reply(*answer) for answer in answers])
