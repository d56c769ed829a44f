"""Windows and order of one lane, on a clock that only the script moves."""

import queue
import threading
from collections import deque

import pytest

from gpuworker.lane import Flush, Item, Lane, LaneThread, Stop
from scheduler.actions import Code

START_NS = 8_000_000_000_000_001  # a large odd time: a real clock would stand out
MS = 1_000_000


def at(ms: float) -> int:
    return START_NS + round(ms * MS)


class Script:
    """Clock and inbox in one: items arrive when the script says, time passes only by waiting."""

    def __init__(self, *items: tuple[float, Item]) -> None:
        self.now_ns = START_NS
        self.log: list[tuple[float, str]] = []
        self._arrivals = deque((at(ms), item) for ms, item in items)
        for _, item in items:
            if isinstance(item, PuppetWork):
                item.script = self

    def clock(self) -> int:
        return self.now_ns

    def receive(self, wait_ns: int | None) -> Item | None:
        assert self._arrivals or wait_ns is not None, "the lane waits for ever: no Stop came"
        until_ns = self._arrivals[0][0] if wait_ns is None else self.now_ns + wait_ns
        if self._arrivals and self._arrivals[0][0] <= until_ns:
            arrival_ns, item = self._arrivals.popleft()
            self.now_ns = max(self.now_ns, arrival_ns)
            return item
        self.now_ns = until_ns
        return None

    def pass_time(self, ms: float) -> None:
        self.now_ns += round(ms * MS)

    def note(self, what: str) -> None:
        self.log.append(((self.now_ns - START_NS) / MS, what))

    def run(self) -> list[tuple[float, str]]:
        Lane(receive=self.receive, clock=self.clock).run()
        return self.log


class PuppetWork:
    """Work that takes as long as it is told and notes what is done to it."""

    script: Script

    def __init__(
        self,
        model: str,
        *,
        earliest_ms: float = 0,
        latest_ms: float = 1000,
        prepare_ms: float | None = None,
        run_ms: float = 0,
        is_sound: bool = True,
    ) -> None:
        self.model = model
        self.earliest_ns = at(earliest_ms)
        self.latest_ns = at(latest_ms)
        self.is_prepared = prepare_ms is None
        self._prepare_ms = prepare_ms or 0.0
        self._run_ms = run_ms
        self._is_sound = is_sound

    def prepare(self) -> bool:
        self.is_prepared = True
        self.script.note(f"prepare {self.model}")
        self.script.pass_time(self._prepare_ms)
        return self._is_sound

    def run(self) -> None:
        self.script.note(f"run {self.model}")
        self.script.pass_time(self._run_ms)

    def refuse(self, code: Code, message: str) -> None:
        self.script.note(f"refuse {self.model} {code.name}")


def lane_log(*items: tuple[float, Item]) -> list[tuple[float, str]]:
    """Run a script of (arrival in ms, what arrives) and return what the lane did and when."""
    return Script(*items).run()


def test_work_starts_exactly_when_its_window_opens() -> None:
    log = lane_log((0, PuppetWork("a", earliest_ms=7.5)), (20, Stop()))
    assert log == [(7.5, "run a")]


def test_work_in_an_open_window_starts_at_once() -> None:
    log = lane_log((3, PuppetWork("a", earliest_ms=1, latest_ms=5)), (20, Stop()))
    assert log == [(3, "run a")]


def test_the_last_instant_of_a_window_is_inside_it_and_the_next_is_not() -> None:
    on_time = lane_log((5, PuppetWork("a", latest_ms=5)), (20, Stop()))
    late = lane_log((5.000001, PuppetWork("a", latest_ms=5)), (20, Stop()))
    assert on_time == [(5, "run a")]
    assert late == [(5.000001, "refuse a TOO_LATE")]


def test_work_is_ordered_by_earliest_and_then_by_arrival() -> None:
    log = lane_log(
        (0, PuppetWork("blocker", run_ms=10)),
        (1, PuppetWork("late", earliest_ms=6)),
        (2, PuppetWork("early", earliest_ms=4)),
        (3, PuppetWork("early too", earliest_ms=4)),
        (20, Stop()),
    )
    assert [what for _, what in log] == ["run blocker", "run early", "run early too", "run late"]


def test_one_at_a_time_so_what_waits_too_long_behind_another_is_refused() -> None:
    log = lane_log(
        (0, PuppetWork("long", run_ms=10)),
        (1, PuppetWork("waits", latest_ms=8)),
        (2, PuppetWork("patient", latest_ms=12)),
        (20, Stop()),
    )
    assert log == [(0, "run long"), (10, "refuse waits TOO_LATE"), (10, "run patient")]


def test_an_earlier_window_that_arrives_during_the_wait_goes_first() -> None:
    log = lane_log(
        (0, PuppetWork("a", earliest_ms=9)),
        (2, PuppetWork("b", earliest_ms=5)),
        (20, Stop()),
    )
    assert log == [(5, "run b"), (9, "run a")]


def test_the_input_phase_runs_before_the_window_opens() -> None:
    log = lane_log((1, PuppetWork("a", earliest_ms=9, prepare_ms=2)), (20, Stop()))
    assert log == [(1, "prepare a"), (9, "run a")]


def test_the_input_phase_runs_once_even_when_another_goes_first() -> None:
    log = lane_log(
        (0, PuppetWork("a", earliest_ms=9, prepare_ms=1)),
        (2, PuppetWork("b", earliest_ms=5, prepare_ms=1)),
        (20, Stop()),
    )
    assert log == [(0, "prepare a"), (2, "prepare b"), (5, "run b"), (9, "run a")]


def test_an_input_phase_that_outlasts_the_window_ends_in_too_late() -> None:
    log = lane_log((0, PuppetWork("a", latest_ms=3, prepare_ms=4)), (20, Stop()))
    assert log == [(0, "prepare a"), (4, "refuse a TOO_LATE")]


def test_work_whose_input_phase_fails_is_not_run_and_not_refused_again() -> None:
    log = lane_log(
        (0, PuppetWork("bad", prepare_ms=1, is_sound=False)),
        (0, PuppetWork("good", run_ms=1)),
        (20, Stop()),
    )
    assert log == [(0, "prepare bad"), (1, "run good")]


def test_a_flush_refuses_what_waits_and_the_lane_goes_on() -> None:
    log = lane_log(
        (0, PuppetWork("a", earliest_ms=9)),
        (0, PuppetWork("b", earliest_ms=8)),
        (3, Flush()),
        (4, PuppetWork("c")),
        (20, Stop()),
    )
    assert log == [
        (3, "refuse b SHUTTING_DOWN"),
        (3, "refuse a SHUTTING_DOWN"),
        (4, "run c"),
    ]


def test_a_flush_lets_running_work_finish() -> None:
    log = lane_log(
        (0, PuppetWork("a", run_ms=10)), (1, PuppetWork("b")), (2, Flush()), (20, Stop())
    )
    assert log == [(0, "run a"), (10, "refuse b SHUTTING_DOWN")]


def test_stopping_refuses_what_waits() -> None:
    log = lane_log((0, PuppetWork("a", earliest_ms=9)), (3, Stop()))
    assert log == [(3, "refuse a SHUTTING_DOWN")]


def test_the_refusal_says_how_late_it_was() -> None:
    messages: list[str] = []
    late = PuppetWork("a", latest_ms=4)
    late.refuse = lambda code, message: messages.append(message)  # type: ignore[method-assign]
    lane_log((5.25, late), (20, Stop()))
    assert messages == ["a: 1.250 ms after its window closed"]


class EventWork:
    """Work for a real thread: says that it ran."""

    model = "a"
    is_prepared = True

    def __init__(self, earliest_ns: int, latest_ns: int, failure: Exception | None = None) -> None:
        self.earliest_ns = earliest_ns
        self.latest_ns = latest_ns
        self.failure = failure
        self.codes: queue.SimpleQueue[Code] = queue.SimpleQueue()

    def prepare(self) -> bool:
        return True

    def run(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.codes.put(Code.OK)

    def refuse(self, code: Code, message: str) -> None:
        self.codes.put(code)


class ManualClock:
    now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns


def test_a_lane_thread_runs_work_flushes_and_stops() -> None:
    started = threading.Event()
    lane = LaneThread(
        "exec", clock=ManualClock(), on_start=started.set, on_death=lambda *_: pytest.fail("died")
    )
    lane.start()
    now, never = EventWork(at(0), at(1)), EventWork(at(1_000_000), at(2_000_000))
    lane.put(now)
    assert now.codes.get(timeout=10) is Code.OK
    lane.put(never)
    lane.put(Flush())
    assert never.codes.get(timeout=10) is Code.SHUTTING_DOWN
    lane.put(Stop())
    assert lane.join(10)
    assert started.is_set()


def test_an_exception_out_of_work_ends_the_lane_and_is_told() -> None:
    deaths: queue.SimpleQueue[tuple[str, BaseException]] = queue.SimpleQueue()
    lane = LaneThread(
        "load",
        clock=ManualClock(),
        on_start=lambda: None,
        on_death=lambda name, error: deaths.put((name, error)),
    )
    lane.start()
    bug = RuntimeError("a bug")
    lane.put(EventWork(at(0), at(1), failure=bug))
    assert deaths.get(timeout=10) == ("load", bug)
    assert lane.join(10)
