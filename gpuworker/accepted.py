"""Accepted orders: how each kind of action is carried out in its lane.

It owns the way from an accepted order to its one report: the page table is asked at the instant of
the start, the backend does the work, every failure becomes a code. Nothing here waits or chooses.

Where a backend copies inputs and outputs while another batch executes, an Infer passes through
three lanes: its input phase in the first (InputPhase), its execution in the second, its output
phase in the third (OutputPhase). Elsewhere the EXEC lane does all three.
"""

import time
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from gpuworker.backend import (
    Backend,
    DeviceLost,
    EngineError,
    InvalidInput,
    Staged,
    Telemetry,
)
from gpuworker.lane import Work
from gpuworker.page_cache import PageCache, PageRefusal
from scheduler.actions import (
    NO_SPAN,
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
from scheduler.wire import Buffer, RequestTensors


class Finished(NamedTuple):
    """One result on its way to the main thread. `session` is the one that ordered the action."""

    session: int
    result: Result
    tensors: tuple[RequestTensors, ...] = ()
    buffers: Sequence[Buffer] = ()
    fatal: str | None = None  # why the process cannot go on after this


class Bench(NamedTuple):
    """What every accepted order works with."""

    backend: Backend
    pages: PageCache
    finish: Callable[[Finished], None]  # callable from any thread
    clock: Callable[[], int] = time.monotonic_ns
    deliver: Callable[[Work], None] | None = None  # where output phases are done, if elsewhere
    telemetry: Telemetry | None = None


class AcceptedInfer:
    """Input phase as early as the lane is free, execution in the window, output phase at once."""

    __slots__ = (
        "_bench",
        "_exec",
        "_input",
        "_received_ns",
        "_session",
        "_staged",
        "_tensors",
        "_views",
        "earliest_ns",
        "is_prepared",
        "latest_ns",
        "model",
        "order",
    )

    def __init__(
        self,
        bench: Bench,
        order: Infer,
        *,
        session: int,
        received_ns: int,
        tensors: Sequence[RequestTensors],
        views: Sequence[Sequence[memoryview]],
    ) -> None:
        self._bench = bench
        self.order = order
        self.model = order.model
        self.earliest_ns = order.earliest_ns
        self.latest_ns = order.latest_ns
        self.is_prepared = False
        self._session = session
        self._received_ns = received_ns
        self._tensors = tensors
        self._views = views
        self._staged: Staged = None
        self._input = NO_SPAN
        self._exec = NO_SPAN

    def prepare(self) -> bool:
        bench = self._bench
        self.is_prepared = True
        begin_ns = bench.clock()
        try:
            self._staged = bench.backend.stage(self.order, self._tensors, self._views)
        except InvalidInput as error:
            self.refuse(Code.INVALID_INPUT, str(error))
            return False
        except Exception as error:
            self._finish(Code.ENGINE_ERROR, f"input phase: {_describe(error)}", fatal=_fatal(error))
            return False
        self._views = ()  # the received frames are freed now, not after the execution
        end_ns = bench.clock()
        self._input = Span(begin_ns, end_ns, end_ns - begin_ns)
        return True

    def run(self) -> None:
        bench, model = self._bench, self.model
        try:
            bench.pages.pin(model)
        except PageRefusal as refusal:
            self.refuse(refusal.code, str(refusal))
            return
        failure: Exception | None = None
        device_ns = 0
        begin_ns = bench.clock()
        try:
            device_ns = bench.backend.execute(self._staged)
        except Exception as error:
            failure = error
        end_ns = bench.clock()
        # Before the report: whoever reads it may evict the model at once.
        bench.pages.unpin(model)
        if failure is not None:
            self._drop(Code.ENGINE_ERROR, _describe(failure), _fatal(failure))
            return
        self._exec = Span(begin_ns, end_ns, device_ns)
        if bench.deliver is None:
            self.deliver()
        else:
            bench.deliver(OutputPhase(self))

    def deliver(self) -> None:
        """The output phase, of a batch that was executed."""
        bench = self._bench
        staged, self._staged = self._staged, None
        begin_ns = bench.clock()
        try:
            tensors, buffers = bench.backend.unstage(staged)
        except Exception as error:
            self._finish(
                Code.ENGINE_ERROR, f"output phase: {_describe(error)}", fatal=_fatal(error)
            )
            return
        end_ns = bench.clock()
        output = Span(begin_ns, end_ns, end_ns - begin_ns)
        self._finish(Code.OK, "", output, tensors, buffers)

    def refuse(self, code: Code, message: str) -> None:
        self._drop(code, message)

    def _drop(self, code: Code, message: str, fatal: str | None = None) -> None:
        """It ends here: what was staged of it is not wanted any more."""
        staged, self._staged = self._staged, None
        if staged is not None:
            try:
                self._bench.backend.discard(staged)
            except Exception as error:
                fatal = fatal or _fatal(error) or f"discarding a batch: {_describe(error)}"
        self._finish(code, message, fatal=fatal)

    def _finish(
        self,
        code: Code,
        message: str,
        output: Span = NO_SPAN,
        tensors: tuple[RequestTensors, ...] = (),
        buffers: Sequence[Buffer] = (),
        fatal: str | None = None,
    ) -> None:
        telemetry = self._bench.telemetry
        clock_mhz, power_mw = (0, 0) if telemetry is None else _clock_and_power(telemetry)
        result = InferResult(
            self.order.action_id,
            code,
            message,
            self._received_ns,
            self._input,
            self._exec,
            output,
            clock_mhz,
            power_mw,
        )
        self._bench.finish(Finished(self._session, result, tensors, buffers, fatal))


class InputPhase:
    """An Infer's input phase in a lane of its own, in order of arrival; then it is `put` on."""

    is_prepared = True
    earliest_ns = 0

    def __init__(self, infer: AcceptedInfer, put: Callable[[Work], None]) -> None:
        self._infer = infer
        self._put = put
        self.model = infer.model
        self.latest_ns = infer.latest_ns

    def prepare(self) -> bool:
        return True

    def run(self) -> None:
        if self._infer.prepare():
            self._put(self._infer)

    def refuse(self, code: Code, message: str) -> None:
        self._infer.refuse(code, message)


class OutputPhase:
    """An Infer's output phase in a lane of its own, in order of execution."""

    is_prepared = True
    earliest_ns = 0
    latest_ns = 2**63 - 1  # it was executed, so it is answered

    def __init__(self, infer: AcceptedInfer) -> None:
        self._infer = infer
        self.model = infer.model

    def prepare(self) -> bool:
        return True

    def run(self) -> None:
        self._infer.deliver()

    def refuse(self, code: Code, message: str) -> None:
        """Not for what was executed: the answer is there."""
        self._infer.deliver()


_Moved = TypeVar("_Moved", LoadWeights, EvictWeights, ReleaseModel)


class _Move(Generic[_Moved]):
    """What the kinds of the LOAD lane share: they have nothing to prepare."""

    is_prepared = True

    def __init__(self, bench: Bench, order: _Moved, *, session: int, received_ns: int) -> None:
        self._bench = bench
        self.order: _Moved = order
        self.model = order.model
        self.earliest_ns = order.earliest_ns
        self.latest_ns = order.latest_ns
        self._session = session
        self._received_ns = received_ns

    def prepare(self) -> bool:
        return True


class AcceptedLoad(_Move[LoadWeights]):
    """Take pages, map, copy; on any failure the pages are free again."""

    def run(self) -> None:
        bench, model = self._bench, self.model
        try:
            pages = bench.pages.reserve(model, self.order.num_pages)
        except PageRefusal as refusal:
            self.refuse(refusal.code, str(refusal))
            return
        begin_ns = bench.clock()
        try:
            device_ns = bench.backend.load(model, pages)
        except Exception as error:
            bench.pages.release(model)
            self._finish(Code.LOAD_FAILED, f"{model}: {_describe(error)}", NO_SPAN, _fatal(error))
            return
        end_ns = bench.clock()
        bench.pages.commit(model)
        self._finish(Code.OK, "", Span(begin_ns, end_ns, device_ns))

    def refuse(self, code: Code, message: str) -> None:
        self._finish(code, message, NO_SPAN)

    def _finish(self, code: Code, message: str, load: Span, fatal: str | None = None) -> None:
        result = LoadResult(self.order.action_id, code, message, self._received_ns, load)
        self._bench.finish(Finished(self._session, result, fatal=fatal))


class AcceptedEvict(_Move[EvictWeights]):
    """Unmap, then give the pages back."""

    def run(self) -> None:
        bench, model = self._bench, self.model
        try:
            bench.pages.retire(model)
        except PageRefusal as refusal:
            self.refuse(refusal.code, str(refusal))
            return
        try:
            bench.backend.evict(model)
        except Exception as error:
            # What is mapped is unknown now: the pages stay taken, and the process must end.
            message = f"{model}: eviction failed: {_describe(error)}"
            self._finish(Code.ENGINE_ERROR, message, fatal=message)
            return
        bench.pages.release(model)
        self._finish(Code.OK, "")

    def refuse(self, code: Code, message: str) -> None:
        self._finish(code, message)

    def _finish(self, code: Code, message: str, fatal: str | None = None) -> None:
        result = EvictResult(self.order.action_id, code, message, self._received_ns)
        self._bench.finish(Finished(self._session, result, fatal=fatal))


class AcceptedRelease(_Move[ReleaseModel]):
    """Have the backend forget a model that has no pages."""

    def run(self) -> None:
        bench, model = self._bench, self.model
        state = bench.pages.state_of(model)
        if state is not None:  # its session points into them
            self.refuse(Code.WEIGHTS_IN_USE, f"{model} is {state.value}")
            return
        try:
            host_bytes = bench.backend.release(model)
        except Exception as error:
            self._finish(Code.ENGINE_ERROR, f"{model}: {_describe(error)}", fatal=_fatal(error))
            return
        self._finish(Code.OK, "", host_bytes)

    def refuse(self, code: Code, message: str) -> None:
        self._finish(code, message)

    def _finish(
        self, code: Code, message: str, host_bytes: int = 0, fatal: str | None = None
    ) -> None:
        order_id = self.order.action_id
        result = ReleaseResult(order_id, code, message, self._received_ns, host_bytes)
        self._bench.finish(Finished(self._session, result, fatal=fatal))


def _clock_and_power(telemetry: Telemetry) -> tuple[int, int]:
    """MHz and mW, as far as they are known now."""
    sample = telemetry.last
    if sample is None:
        return 0, 0
    return sample.sm_clock_mhz or 0, sample.power_mw or 0


def _fatal(error: Exception) -> str | None:
    """Why the process cannot go on after this; None if it can."""
    return str(error) if isinstance(error, DeviceLost) else None


def _describe(error: Exception) -> str:
    """What an EngineError says; any other exception with its type in front."""
    text = str(error)
    if isinstance(error, EngineError | DeviceLost):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
