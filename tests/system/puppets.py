"""A worker that is moved by hand, at the far end of a real ZeroMQ connection.

It answers pings like any worker, obeys LOAD and EVICT at once, and executes a batch when it is
told: what a test needs to have a request *in flight* for as long as it likes. The outputs of an
emulated model are made to begin with the bytes of the input, so that an answer shows whose it is.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType

import zmq

from gpuworker.devices.emulated import emulated_specs
from scheduler.actions import (
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Result,
    Span,
)
from scheduler.spec import DeviceSpec, ModelSpec
from scheduler.wire import (
    Buffer,
    Goodbye,
    Hello,
    Order,
    Ping,
    Pong,
    Report,
    RequestTensors,
    TensorMeta,
    ToGateway,
    ToWorker,
    Welcome,
    decode_to_worker,
    encode,
    pack_tensors,
    unpack_tensors,
)

EMULATION = "clockwork-v100"
MODELS = {spec.name: spec for spec in emulated_specs(EMULATION)}
PAGE_BYTES = 16 * 1024 * 1024
HANG_S = 30.0
TICK_MS = 200


class Stranger:
    """A DEALER socket that sends what it is told and hears what comes, from the test's thread."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def hear(self) -> ToWorker:
        if not self._socket.poll(int(HANG_S * 1000)):
            raise TimeoutError("the gateway does not answer")
        return decode_to_worker(self._socket.recv_multipart()[0])

    def close(self) -> None:
        self._socket.close()
        self._context.term()


class PuppetWorker:
    """Joined from `with` on. While `is_holding`, batches wait for `release` or `finish`."""

    def __init__(
        self,
        address: str,
        models: Sequence[ModelSpec],
        *,
        name: str = "puppet",
        resident: Sequence[str] = (),
        total_pages: int = 64,
        is_holding: bool = False,
    ) -> None:
        self._address = address
        self._hello = Hello(
            name=name,
            incarnation=uuid.uuid4().hex,
            device=DeviceSpec(
                kind="puppet",
                page_bytes=PAGE_BYTES,
                total_pages=total_pages,
                shares_exec_core=False,
            ),
            models=tuple(models),
            resident=tuple(resident),
        )
        self._widths = {spec.name: spec.outputs[0].shape[1] for spec in models}
        self.is_holding = is_holding
        # Shared with the puppet's thread, under `_changed`.
        self._changed = threading.Condition()
        self.heard: list[ToWorker] = []  # everything, in order of arrival
        self.held: list[tuple[Order, list[list[memoryview]]]] = []  # all and only unanswered Infers
        self._outbox: list[list[Buffer]] = []
        self._is_leaving = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def __enter__(self) -> "PuppetWorker":
        self._thread.start()
        self.wait_for(lambda: any(isinstance(m, Welcome) for m in self.heard), "the welcome")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_leaving = True
        self._ring()
        self._thread.join()
        os.close(self._bell)

    @property
    def num_pings(self) -> int:
        return sum(isinstance(message, Ping) for message in self.heard)

    @property
    def num_held(self) -> int:
        """Requests in flight here."""
        return sum(len(infer.request_ids) for infer in map(infer_of, self.held))

    @property
    def num_ordered(self) -> int:
        """Requests that ever came here."""
        actions = [message.action for message in self.heard if isinstance(message, Order)]
        return sum(len(action.request_ids) for action in actions if isinstance(action, Infer))

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, HANG_S):
                raise TimeoutError(f"puppet: {what} did not come in {HANG_S:g} s")

    def wait_for_requests(self, num_held: int) -> None:
        """Until this many are in flight here."""
        self.wait_for(lambda: self.num_held == num_held, f"request {num_held}")

    def release(self) -> None:
        """Answers what is held, and from now on everything at once."""
        with self._changed:
            self.is_holding = False
            held, self.held = self.held, []
            for order, views in held:
                self._finish(order, views)
        self._ring()

    def send(self, message: ToGateway, frames: Sequence[Buffer] = ()) -> None:
        self.send_raw([encode(message), *frames])

    def send_raw(self, frames: Sequence[Buffer]) -> None:
        with self._changed:
            self._outbox.append(list(frames))
        self._ring()

    def report(self, result: Result, tensors: tuple[RequestTensors, ...] = ()) -> None:
        self.send(Report(result, tensors))

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def _live(self) -> None:
        """The puppet's thread, which alone touches the socket."""
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.linger = 500
        socket.connect(self._address)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        socket.send(encode(self._hello))
        try:
            while True:
                ready = dict(poller.poll(TICK_MS))
                if self._bell in ready:
                    os.eventfd_read(self._bell)
                with self._changed:
                    if socket in ready:
                        self._hear([frame.buffer for frame in socket.recv_multipart(copy=False)])
                    if self._is_leaving:
                        self._outbox.append([encode(Goodbye("the test is over"))])
                    outbox, self._outbox = self._outbox, []
                    self._changed.notify_all()
                for frames in outbox:
                    socket.send_multipart(frames)
                if self._is_leaving:
                    return
        finally:
            socket.close()
            context.term()

    def _hear(self, frames: list[memoryview]) -> None:
        message = decode_to_worker(frames[0])
        self.heard.append(message)
        now = time.monotonic_ns()
        match message:
            case Ping():
                self._outbox.append([encode(Pong(message.sent_ns, now, time.monotonic_ns()))])
            case Order(action=LoadWeights() as load):
                span = Span(now, now + 1, 1)
                self._say(Report(LoadResult(load.action_id, Code.OK, "", now, span)))
            case Order(action=EvictWeights() as evict):
                self._say(Report(EvictResult(evict.action_id, Code.OK, "", now)))
            case Order():
                views = unpack_tensors(message.tensors, frames[1:])
                if self.is_holding:
                    self.held.append((message, views))
                else:
                    self._finish(message, views)

    def _finish(self, order: Order, views: list[list[memoryview]]) -> None:
        infer = order.action
        assert isinstance(infer, Infer)
        now = time.monotonic_ns()
        width = self._widths[infer.model]
        rows = [
            bytes(view).ljust(width, b"\0")[:width]
            for request_views in views
            for view in request_views
        ]
        metas = tuple((TensorMeta((1, width), width),) for _ in rows)
        span = Span(now, now + 1, 1)
        result = InferResult(infer.action_id, Code.OK, "", now, span, span, span)
        self._say(Report(result, metas), pack_tensors(rows))

    def _say(self, message: ToGateway, frames: Sequence[Buffer] = ()) -> None:
        self._outbox.append([encode(message), *frames])


def infer_of(held: tuple[Order, list[list[memoryview]]]) -> Infer:
    action = held[0].action
    assert isinstance(action, Infer)
    return action
