"""LiveWatch: what the dispatcher does, collected between two frames of the live page.

It is among the dispatcher's observers only while somebody looks, so that it costs a request nothing
otherwise. It owns what happened since the last `take`, bounded whatever happens; it must never keep
what a reader is too slow for: that is the feed's (gateway/live/feed.py).
"""

from collections.abc import Sequence

from gateway.views import SchedulerView
from scheduler.actions import Code, Infer, InferResult, LoadResult, LoadWeights, Span
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Send,
    WorkerJoined,
    WorkerLost,
)

EXEC, LOAD = 0, 1  # lanes
SEVERAL = ""  # in place of a model's name: executions of more than one, drawn as one bar

# Bars between two frames, shared by all lanes: 64 devices with executions of 1 ms would make a
# megabyte of JSON. What comes beyond a lane's share is joined to its last bar.
MAX_BARS = 6000
# Even where devices are few: a screen has not more pixels for half a second.
MAX_BARS_OF_LANE = 300


class Bar:
    """What one lane did from `begin_ns` to `end_ns`: an execution, a LOAD, or several as one."""

    __slots__ = ("begin_ns", "busy_ns", "end_ns", "is_ok", "model", "num_actions", "rows")

    def __init__(self, model: str, span: Span, *, rows: int, is_ok: bool) -> None:
        self.model = model
        self.begin_ns = span.begin_ns
        self.end_ns = span.end_ns
        self.busy_ns = span.end_ns - span.begin_ns
        self.rows = rows
        self.num_actions = 1
        self.is_ok = is_ok

    def join(self, other: "Bar") -> None:
        if self.model != other.model:
            self.model = SEVERAL
        self.end_ns = max(self.end_ns, other.end_ns)
        self.busy_ns += other.busy_ns
        self.rows += other.rows
        self.num_actions += 1
        self.is_ok = self.is_ok and other.is_ok


class LiveWatch:
    """Implements gateway.dispatcher.Observer; see the module."""

    def __init__(self, scheduler: SchedulerView) -> None:
        self._scheduler = scheduler
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.bars: dict[tuple[str, int], list[Bar]] = {}  # (worker id, lane) → in order of results
        # (worker id, model) whose weights may have changed their state.
        self.touched: set[tuple[str, str]] = set()
        self.has_new_fleet = False
        self._share_out()

    def take_bars(self) -> dict[tuple[str, int], list[Bar]]:
        """What lanes did since the last call."""
        bars, self.bars = self.bars, {}
        self._share_out()
        return bars

    def take_touched(self) -> set[tuple[str, str]]:
        touched, self.touched = self.touched, set()
        return touched

    def on_event(self, event: Event, now: int) -> None:
        if type(event) is ActionFinished:
            self._on_finished(event)
        elif type(event) is WorkerJoined or type(event) is WorkerLost:
            self.has_new_fleet = True

    def on_commands(self, event: Event, commands: Sequence[Command], now: int) -> None:
        for command in commands:
            if type(command) is Send and type(command.action) is not Infer:
                self.touched.add((command.worker_id, command.action.model))

    def _share_out(self) -> None:
        num_lanes = 2 * max(1, len(self._scheduler.devices))
        self.max_bars = min(MAX_BARS_OF_LANE, max(1, MAX_BARS // num_lanes))

    def _on_finished(self, event: ActionFinished) -> None:
        """The core has not heard of it yet, so the order is still among the outstanding ones."""
        device = self._scheduler.devices.get(event.worker_id)
        sent = None if device is None else device.outstanding.get(event.result.action_id)
        if sent is None:
            return  # late or unknown: the core counts that as an anomaly
        result, action = event.result, sent.action
        is_ok = result.code is Code.OK
        if type(result) is InferResult and type(action) is Infer:
            if result.exec.end_ns:
                bar = Bar(action.model, result.exec, rows=sum(action.rows), is_ok=is_ok)
                self._add_bar((event.worker_id, EXEC), bar)
            if is_ok:
                return
        elif type(result) is LoadResult and type(action) is LoadWeights and result.load.end_ns:
            bar = Bar(action.model, result.load, rows=0, is_ok=is_ok)
            self._add_bar((event.worker_id, LOAD), bar)
        self.touched.add((event.worker_id, action.model))

    def _add_bar(self, lane: tuple[str, int], bar: Bar) -> None:
        bars = self.bars.setdefault(lane, [])
        if len(bars) < self.max_bars:
            bars.append(bar)
        else:
            bars[-1].join(bar)
