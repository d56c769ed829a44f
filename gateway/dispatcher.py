"""The shell around the scheduler: clock, timer, callbacks, and payloads of the open requests.

It owns what the core may not touch: it reads the clock once per event, wakes the core in time,
keeps each request's tensors and callback (OpenRequests), and executes commands in their order. It
must never decide anything: no policy, no retry, no reordering. Everything happens on the event
loop's thread in plain calls; there is no task or future per request.
"""

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

from gateway.open_requests import OnDone, OpenRequests, Outputs, OutputsByRequest
from gateway.wakeup_timer import Timer, WakeupTimer
from scheduler.actions import Action, Infer, InferResult, Result
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
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
    WorkerLost,
)
from scheduler.wire import Buffer, RequestTensors

__all__ = ["Dispatcher", "Observer", "OnDone", "OnQuote", "Outputs", "SchedulerCore"]

logger = logging.getLogger(__name__)


class SchedulerCore(Protocol):
    """What the shell needs of scheduler.Scheduler."""

    def handle(self, event: Event, now: int) -> list[Command]: ...
    def foresee(self, event: RequestArrived, now: int) -> Rejected | None: ...
    def quote(self, event: RequestArrived, now: int, *, count: int = 1) -> Quote: ...
    def verdict(self, event: RequestArrived, now: int) -> Quote: ...
    def next_wakeup(self) -> int | None: ...
    def story(self, request_id: int) -> list[tuple[int, Event, list[Command]]]: ...


class ActionSender(Protocol):
    """What the shell needs of WorkerLink.

    `send` never fails: of a worker that cannot be reached it says WorkerLost, once, through
    `Dispatcher.feed`; of one it no longer knows it has already done so.
    """

    def send(
        self,
        worker_id: str,
        action: Action,
        tensors: tuple[RequestTensors, ...],
        buffers: Sequence[Buffer],
    ) -> None: ...


class Observer(Protocol):
    """Sees what enters and leaves the core. On the hot path: a few µs at most, and never raises."""

    def on_event(self, event: Event, now: int) -> None: ...
    def on_commands(self, event: Event, commands: Sequence[Command], now: int) -> None: ...


# Takes the answer and its instant; Failed where the core has broken.
OnQuote = Callable[[Quote | Failed, int], None]

_NO_OUTPUTS: OutputsByRequest = {}


class Dispatcher:
    """Feeds events to the core and executes its commands.

    `clock` is the gateway's monotonic clock in ns. `on_fatal` is told the exception when the core
    breaks (our bug); by then every open request has been answered with Failed(INTERNAL_ERROR), and
    so is each later one. It must stop the process. With `call_soon` (of an event loop), requests
    submitted in one turn of the loop enter the core together, so that they may share a batch and
    cost one message; without, each enters as it comes.
    """

    def __init__(
        self,
        scheduler: SchedulerCore,
        link: ActionSender,
        *,
        clock: Callable[[], int],
        timer: Timer,
        on_fatal: Callable[[Exception], None],
        observers: Sequence[Observer] = (),
        call_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._link = link
        self._clock = clock
        self._on_fatal = on_fatal
        self._observers = list(observers)
        self._now = 0  # the last instant the core was told; the next is never earlier
        self._last_request_id = 0
        self._open = OpenRequests()
        # Events that came while another was being handled, oldest first.
        self._deferred: deque[tuple[Event, OutputsByRequest]] = deque()
        self._is_handling = False
        self._call_soon = call_soon
        # All and only requests submitted in this turn of the loop and not yet told to the core.
        self._arrivals: list[RequestArrived] = []
        self._wakeup = WakeupTimer(clock=clock, timer=timer, on_due=self._on_wakeup)
        self._idle_waiters: list[asyncio.Future[None]] = []
        self.fatal_error: Exception | None = None
        self.callback_errors = 0  # on_done callbacks that raised: bugs of the HTTP side

    @property
    def num_open(self) -> int:
        """Requests that have not been answered yet."""
        return len(self._open)

    def add_observer(self, observer: Observer) -> None:
        """It sees what comes from the next event on."""
        self._observers.append(observer)

    def remove_observer(self, observer: Observer) -> None:
        self._observers.remove(observer)

    def next_id(self) -> int:
        """Of a request that is about to be submitted."""
        self._last_request_id += 1
        return self._last_request_id

    def submit(
        self,
        arrived: RequestArrived,
        tensors: RequestTensors,
        buffers: list[Buffer],
        on_done: OnDone,
    ) -> None:
        """Takes in a well-formed request for a known model, which has its id from `next_id`.

        `on_done(outcome, outputs)` is called exactly once, possibly before this returns; outputs
        come with Served only. `buffers` hold one tensor per input and must not change until then:
        they are sent without a copy.
        """
        if self.fatal_error is not None:
            self._call(on_done, _failed(self.fatal_error), None)
            return
        self._open.open(arrived.request_id, on_done, tensors, buffers)
        if self._call_soon is None:
            self._feed(arrived, _NO_OUTPUTS)
        else:
            if not self._arrivals:
                self._call_soon(self._feed_arrivals)
            self._arrivals.append(arrived)

    # Questions: about requests that are not submitted, and have no id of their own.

    def foresee(self, arrived: RequestArrived) -> Rejected | None:
        """The refusal a request would get if it were submitted now; None if it would get none."""
        if self.fatal_error is not None or self._is_handling:
            return None
        return self._scheduler.foresee(arrived, max(self._clock(), self._now))

    def quote(self, arrived: RequestArrived, count: int, on_quote: OnQuote) -> None:
        """Asks what would become of `count` such requests. `on_quote(quote, now)` is called once,
        when those that were submitted before have entered the core: with `call_soon` in a moment.
        """
        ask = functools.partial(self._answer_quote, arrived, count, on_quote)
        if self._call_soon is None:
            ask()
        else:
            self._call_soon(ask)

    def verdict(self, arrived: RequestArrived) -> Quote | None:
        """What would become of such a request now, at once; None while the core is at work. Those
        submitted in this turn of the loop are not in the core yet, and not counted.
        """
        if self.fatal_error is None and not self._is_handling:
            self._on_wakeup()  # what is due by now comes first, as it would for a request
        if self.fatal_error is not None or self._is_handling:
            return None
        try:
            return self._scheduler.verdict(arrived, max(self._clock(), self._now))
        except Exception as error:  # ours, and it may have left something behind
            self._stop_on(error, arrived, _NO_OUTPUTS)
            return None

    def is_executing(self, request_id: int) -> bool:
        """Whether an open request is with a worker now."""
        return self._open.is_sent(request_id)

    def cancel(self, request_id: int) -> None:
        """The client went away: `on_done` comes with Cancelled, unless an answer was first."""
        if request_id in self._open:
            self._feed(RequestCancelled(request_id), _NO_OUTPUTS)

    def feed(self, event: Event) -> None:
        """An event of the link (WorkerJoined, WorkerLost) or of the operator (ModelAdded ...)."""
        self._feed(event, _NO_OUTPUTS)

    def report(
        self,
        worker_id: str,
        result: Result,
        tensors: Sequence[RequestTensors],
        views: Sequence[list[memoryview]],
    ) -> None:
        """A worker's result. For an Infer, `tensors[i]` and `views[i]` are request i's outputs."""
        outputs = _NO_OUTPUTS
        if type(result) is InferResult:
            result, outputs = self._open.take_result(worker_id, result, tensors, views)
        self._feed(ActionFinished(worker_id, result), outputs)

    async def wait_idle(self) -> None:
        """Returns once no request is unanswered."""
        while self._open:
            waiter = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def close(self) -> None:
        """Stops the timer. Events may still come; the core is not woken any more by time."""
        self._wakeup.close()

    def _answer_quote(self, arrived: RequestArrived, count: int, on_quote: OnQuote) -> None:
        if not self._is_handling:
            self._on_wakeup()  # what is due by now comes first, as it would for a request
        now = max(self._clock(), self._now)
        answer: Quote | Failed
        if self.fatal_error is None:
            try:
                answer = self._scheduler.quote(arrived, now, count=count)
            except Exception as error:  # ours, and it may have left something behind
                self._stop_on(error, arrived, _NO_OUTPUTS)
        if self.fatal_error is not None:
            answer = _failed(self.fatal_error)
        try:
            on_quote(answer, now)
        except Exception:
            self.callback_errors += 1
            logger.exception("the callback of a quote raised on %r", answer)

    def _feed_arrivals(self) -> None:
        """What was submitted since the last event enters the core as one."""
        arrivals = self._arrivals
        if not arrivals:
            return
        self._arrivals = []
        if len(arrivals) == 1:
            self._feed(arrivals[0], _NO_OUTPUTS)
        else:
            self._feed(RequestsArrived(tuple(arrivals)), _NO_OUTPUTS)

    def _feed(self, event: Event, outputs: OutputsByRequest) -> None:
        if self._arrivals:
            self._feed_arrivals()  # they were first
        if self._is_handling:
            # A callback of this very event submits, cancels or loses a worker: in turn, not inside.
            self._deferred.append((event, outputs))
            return
        if self.fatal_error is not None:
            return
        self._is_handling = True
        try:
            self._handle(event, outputs)
            while self._deferred:
                event, outputs = self._deferred.popleft()
                self._handle(event, outputs)
            self._wakeup.arm(self._scheduler.next_wakeup())
        except Exception as error:  # ours: answer everybody, then stop
            self._stop_on(error, event, outputs)
        finally:
            self._is_handling = False

    def _handle(self, event: Event, outputs: OutputsByRequest) -> None:
        if type(event) is RequestCancelled and event.request_id not in self._open:
            return  # answered while the cancellation was deferred
        if type(event) is WorkerLost:
            self._open.forget_worker(event.worker_id)
        now = self._clock()
        if now < self._now:
            now = self._now  # a wake-up came a little early
        self._now = now
        for observer in self._observers:
            observer.on_event(event, now)
        commands = self._scheduler.handle(event, now)
        for observer in self._observers:
            observer.on_commands(event, commands, now)
        for command in commands:
            match command:
                case Reply():
                    self._reply(command, outputs)
                case Send():
                    self._send(command)
                case _:
                    assert_never(command)

    def _reply(self, reply: Reply, outputs: OutputsByRequest) -> None:
        request_id, outcome = reply.request_id, reply.outcome
        own_outputs = None
        if type(outcome) is Served:
            own_outputs = outputs.get(request_id)
            if own_outputs is None:
                raise LookupError(f"request {request_id} is Served, and no outputs came for it")
        self._call(self._open.close(request_id), outcome, own_outputs)
        if not self._open and self._idle_waiters:
            self._wake_idle_waiters()

    def _send(self, send: Send) -> None:
        action = send.action
        if type(action) is Infer:
            tensors, buffers = self._open.gather(send.worker_id, action)
            self._link.send(send.worker_id, action, tensors, buffers)
        else:
            self._link.send(send.worker_id, action, (), ())

    def _call(self, on_done: OnDone, outcome: Outcome, outputs: Outputs | None) -> None:
        try:
            on_done(outcome, outputs)
        except Exception:  # one client's answer broke: the other commands must still be executed
            self.callback_errors += 1
            logger.exception("the callback of a request raised on %r", outcome)

    def _wake_idle_waiters(self) -> None:
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _on_wakeup(self) -> None:
        if self.fatal_error is not None:
            return
        tick = Tick()
        try:
            wakeup_ns = self._scheduler.next_wakeup()
        except Exception as error:
            self._stop_on(error, tick, _NO_OUTPUTS)
            return
        if wakeup_ns is None:
            return
        if self._wakeup.is_due(wakeup_ns):
            self._now = max(self._now, wakeup_ns)
            self._feed(tick, _NO_OUTPUTS)
        else:
            self._wakeup.arm(wakeup_ns)

    def _stop_on(self, error: Exception, event: Event, outputs: OutputsByRequest) -> None:
        logger.critical("the scheduler broke on %r", event, exc_info=error)
        concerned = list(outputs)
        if isinstance(event, RequestsArrived):
            concerned += [arrived.request_id for arrived in event.requests]
        elif isinstance(event, RequestArrived | RequestCancelled):
            concerned.append(event.request_id)
        for request_id in concerned:
            for now, happened, commands in self._scheduler.story(request_id):
                logger.critical(
                    "story of request %d: %d %r %r", request_id, now, happened, commands
                )
        self.fatal_error = error
        self.close()
        self._deferred.clear()
        failed = _failed(error)
        for on_done in self._open.close_all():
            self._call(on_done, failed, None)
        self._wake_idle_waiters()
        self._on_fatal(error)


def _failed(error: Exception) -> Failed:
    return Failed(Reason.INTERNAL_ERROR, f"the gateway stops: {type(error).__name__}: {error}")
