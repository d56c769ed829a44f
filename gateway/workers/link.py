"""The gateway's door for workers: one ZeroMQ ROUTER socket, and what passes through it.

It owns the socket and turns orders into frames, frames into reports; who is a worker is kept by
Membership. It must never decide what a worker does, and nothing a worker sends may raise here: what
cannot be read is counted and answered. Workers must not set a routing id: a connection that broke
has to come back as a stranger, because orders may have been lost with it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, assert_never

import msgspec
import zmq

from gateway.workers.curve_keys import GatewayKeys
from gateway.workers.door import KEY_TAKEN, WorkerDoor
from gateway.workers.gpu_figures import GpuFigures
from gateway.workers.membership import HEARTBEAT_INTERVAL_NS, Membership, Session
from scheduler.actions import Action, Code, InferResult, Result
from scheduler.events import Event
from scheduler.spec import MILLISECOND_NS, SECOND_NS, ModelSpec
from scheduler.wire import (
    SMALL_TENSOR_BYTES,
    Buffer,
    CannotOffer,
    Goodbye,
    Hello,
    Offer,
    Order,
    Pong,
    Refused,
    Rejoin,
    Report,
    RequestTensors,
    ToWorker,
    Unreadable,
    WireError,
    decode_to_gateway,
    encode,
    pack_tensors,
    unpack_tensors,
)

logger = logging.getLogger(__name__)

# Messages waiting for one worker. The scheduler keeps a few actions out per worker, so a queue of
# this length is a worker that reads nothing.
SEND_HIGH_WATER_MARK = 10_000
# Messages read in one go before HTTP gets its turn: a few milliseconds of work.
MESSAGES_PER_DRAIN = 32
# Before a heartbeat judges anyone it reads what has arrived, up to this many drains of it.
DRAINS_PER_BEAT = 256
# At the end Goodbye gets this long to leave; a live peer takes it in microseconds.
LINGER_NS = 500 * MILLISECOND_NS
# Over TCP, a peer that vanished without a word (its machine lost power) keeps a connection open
# here: ZeroMQ asks as often, and closes what has not answered for as long. Membership is quicker;
# this gives descriptors back, and must not take a large tensor on a slow network for a loss.
TCP_HEARTBEAT_MS = 2_000
TCP_SILENCE_MS = 10_000
DISMISS_STEP_NS = 10 * MILLISECOND_NS  # how often we look whether the last worker has left

# As integers: an enum's `|` is a slow call.
_NOW, _MORE = int(zmq.DONTWAIT), int(zmq.SNDMORE)
_MORE_NOW = _NOW | _MORE

OnReport = Callable[[str, Result, Sequence[RequestTensors], Sequence[list[memoryview]]], None]


class BindError(OSError):
    """The socket could not be opened where it should listen."""


class Connection(NamedTuple):
    """What metrics show of a worker that has joined."""

    worker_id: str
    name: str
    rtt_ns: int
    clock_offset_ns: int


class WorkerLink:
    """Binds at once, reads from `start` on. `endpoints` are ZeroMQ's: ipc://…, tcp://host:port.

    `catalogue` is the gateway's models by name and is read at every Hello. With `keys`, whoever
    comes over TCP must have one of them. `max_frame_bytes` bounds each part of a message, 0 does
    not; a peer that sends a larger one is cut off. Raises BindError.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        catalogue: Mapping[str, ModelSpec],
        *,
        clock: Callable[[], int],
        keys: GatewayKeys | None = None,
        max_frame_bytes: int = 0,
        gateway: str = "",
        wall_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """`gateway` is this one's name, by which workers know it after a restart, and `wall_ms`
        what people's clocks show.
        """
        self._clock = clock
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # Without it ROUTER drops silently what nobody can receive.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, SEND_HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, LINGER_NS // MILLISECOND_NS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes or -1)
        self._door = None if keys is None else WorkerDoor(self._context, keys, clock=clock)
        # What is set on the socket holds for the endpoints bound after it: TCP's come last.
        self.endpoints = tuple(self._bind(endpoint) for endpoint in sorted(endpoints, key=_is_tcp))
        if self._door is not None:
            self._door.watch(self._socket)
        self._membership = Membership(
            catalogue,
            clock=clock,
            transmit=self._transmit,
            on_event=self._emit,
            max_frame_bytes=max_frame_bytes,
            gateway=gateway,
            wall_ms=wall_ms,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_event: Callable[[Event], None] | None = None
        self._on_report: OnReport | None = None
        self._on_fatal: Callable[[Exception], None] | None = None
        self._next_beat: asyncio.TimerHandle | None = None
        self._is_draining = False
        self._is_read_scheduled = False
        self._heartbeat_interval_ns = HEARTBEAT_INTERVAL_NS
        # Strangers told to rejoin since the last heartbeat: once is enough for a burst.
        self._told_to_rejoin: set[bytes] = set()
        self.malformed_frames = 0  # messages that could not be read
        self.unknown_senders = 0  # messages of peers that are not, or no longer, members
        self.unreadable_replies = 0  # messages of ours that a peer could not read

    def start(
        self,
        *,
        on_event: Callable[[Event], None],
        on_report: OnReport,
        on_fatal: Callable[[Exception], None],
        heartbeat_interval_ns: int = HEARTBEAT_INTERVAL_NS,
    ) -> None:
        """Reads from now on, on the running event loop.

        `on_event` gets WorkerJoined and WorkerLost; `on_report` a worker's id, a result on our
        timeline, and each request's outputs. `on_fatal` gets an exception of our own making.
        """
        self._on_event, self._on_report, self._on_fatal = on_event, on_report, on_fatal
        self._heartbeat_interval_ns = heartbeat_interval_ns
        self._loop = asyncio.get_running_loop()
        if self._door is not None:
            self._door.start(self._loop)
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._schedule_read()
        self._schedule_beat()

    def send(
        self,
        worker_id: str,
        action: Action,
        tensors: tuple[RequestTensors, ...],
        buffers: Sequence[Buffer],
    ) -> None:
        """Orders an action. A worker that cannot be reached is lost: WorkerLost, never an error.

        Large buffers are sent without a copy and must not change afterwards.
        """
        session = self._membership.by_worker_id.get(worker_id)
        if session is None:
            return  # its WorkerLost is on its way through the dispatcher
        order = Order(session.clock_offset.action_for_worker(action), tensors)
        if not self._transmit(session.identity, order, pack_tensors(buffers)):
            self._membership.lose(session, "its connection is gone, or its queue of orders full")

    def admit_only(self, keys: GatewayKeys) -> None:
        """Other workers' keys from now on; members whose key is not among them are sent away.

        Our own pair stays the one that the socket was bound with.
        """
        assert self._door is not None, "there is no door without keys"
        for identity in self._door.admit_only(keys):
            session = self._membership.by_identity.get(identity)
            if session is not None:
                self._membership.lose(session, KEY_TAKEN)
                self._transmit(identity, Refused(KEY_TAKEN))

    @property
    def refused_connections(self) -> Mapping[str, int]:
        """How often a connection was turned away at the door, by reason."""
        return {} if self._door is None else self._door.refused

    @property
    def num_superseded(self) -> int:
        """How often a worker came that a later gateway of this name has had."""
        return self._membership.num_superseded

    def know_models(self) -> None:
        """The catalogue is complete, also where it is empty: workers that have come are let in."""
        self._membership.know_models()

    def add_model(self, spec: ModelSpec) -> None:
        """Has all workers make a model ready: ModelOffered comes of each that can. It is in the
        catalogue by then.
        """
        self._membership.add_model(spec)

    def drop_model(self, name: str) -> None:
        """Has all workers forget a model that the catalogue has no more."""
        self._membership.drop_model(name)

    def awaited_of(self, name: str) -> dict[str, tuple[str, bool]]:
        """Workers that were asked for a model and have not offered it: why not ("" where they have
        not said so), and whether that is their last word.
        """
        return {
            session.name: session.awaited[name]
            for session in self._membership.by_worker_id.values()
            if name in session.awaited
        }

    def probe(self) -> None:
        """Finds out now whose connection is gone: call it when a local worker's process ended."""
        self._membership.probe()

    @property
    def gpus(self) -> Mapping[str, GpuFigures]:
        """What GPUs say of themselves, by their workers' names."""
        return self._membership.gpus.by_name

    def connections(self) -> list[Connection]:
        """The workers that have joined."""
        return [
            Connection(s.worker_id, s.name, s.clock_offset.rtt_ns, s.clock_offset.offset_ns)
            for s in self._membership.by_worker_id.values()
            if s.has_joined
        ]

    def drain(self) -> bool:
        """Reads what has arrived, MESSAGES_PER_DRAIN at most. True if there may be more."""
        self._is_draining = True
        try:
            for _ in range(MESSAGES_PER_DRAIN):
                try:
                    # copy=False for all frames: a Frame also says whether more follow, which makes
                    # this quicker than copying even small ones (3.5 us a message down to 2.3).
                    first = self._socket.recv(_NOW, copy=False)
                except zmq.Again:
                    return False
                self._receive(first)
                if self._socket.closed:
                    return False
            return True
        finally:
            self._is_draining = False

    def beat(self) -> None:
        """One heartbeat. Whoever spoke is alive, even if we come late to read it: read first."""
        for _ in range(DRAINS_PER_BEAT):
            if not self.drain():
                break
        self._told_to_rejoin.clear()
        self._membership.beat()
        if self._door is not None:
            self._door.forget_others(self._membership.by_identity)

    async def dismiss(self, reason: str) -> None:
        """Says Goodbye to all workers; returns when all have left, or after LINGER_NS.

        Closing before they have heard it may take it back: TCP drops what a peer has not read when
        the other side closes with something unread of its own.
        """
        self._membership.say_goodbye(Goodbye(reason))
        steps = LINGER_NS // DISMISS_STEP_NS
        while self._membership.by_identity and steps > 0:
            steps -= 1
            await asyncio.sleep(DISMISS_STEP_NS / SECOND_NS)

    def close(self, reason: str) -> None:
        """Says Goodbye to all workers and closes; takes LINGER_NS if one does not read."""
        if self._socket.closed:
            return
        self._membership.close(Goodbye(reason))
        if self._next_beat is not None:
            self._next_beat.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._end()

    def _end(self) -> None:
        if self._door is not None:
            self._door.close(self._socket)
        self._socket.close()
        self._context.term()

    def _bind(self, endpoint: str) -> str:
        if _is_tcp(endpoint):
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, TCP_HEARTBEAT_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, TCP_SILENCE_MS)
            if self._door is not None:
                self._door.guard(self._socket)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._end()
            raise BindError(f"cannot listen for workers at {endpoint}: {error}") from error
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _read(self) -> None:
        self._is_read_scheduled = False
        if self._socket.closed:
            return
        try:
            if self.drain():
                self._schedule_read()
        except Exception as error:  # ours, and the socket would never signal again
            self._fail(error)

    def _schedule_read(self) -> None:
        """ZeroMQ's file descriptor signals an edge, and sending may swallow it: look again soon."""
        if self._loop is None or self._is_draining or self._is_read_scheduled:
            return
        self._is_read_scheduled = True
        self._loop.call_soon(self._read)

    def _schedule_beat(self) -> None:
        assert self._loop is not None
        self._next_beat = self._loop.call_later(
            self._heartbeat_interval_ns / SECOND_NS, self._beat_again
        )

    def _beat_again(self) -> None:
        try:
            self.beat()
        except Exception as error:
            self._fail(error)
            return
        if not self._socket.closed:
            self._schedule_beat()

    def _fail(self, error: Exception) -> None:
        logger.critical("the link to the workers broke", exc_info=error)
        assert self._on_fatal is not None
        self._on_fatal(error)

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _receive(self, first: zmq.Frame) -> None:
        identity, frame, frames = first.bytes, first, []
        while frame.more:
            frame = self._socket.recv(copy=False)
            frames.append(frame.buffer)
        session = self._membership.by_identity.get(identity)
        if session is not None:
            session.unanswered_pings = 0
        try:
            message = decode_to_gateway(frames[0] if frames else b"")
        except WireError as error:
            self._on_malformed(identity, session, str(error))
            return
        match message:
            case Report():
                self._on_report_of(identity, session, message, frames[1:])
            case Pong() if session is not None:
                if not self._membership.pong(session, message):
                    self.malformed_frames += 1
            case Hello():
                if self._door is None or self._door.lets_join(identity, first):
                    self._membership.hello(identity, message)
                else:
                    self._transmit(identity, Refused(KEY_TAKEN))
            case Pong():
                self._on_stranger(identity)
            case Goodbye():
                if session is not None:
                    reason = f"it said goodbye: {message.reason}"
                    self._membership.lose(session, reason, level=logging.INFO)
            case Offer() if session is not None:
                self._membership.offer(session, message)
            case CannotOffer() if session is not None:
                self._membership.cannot_offer(session, message)
            case Offer() | CannotOffer():
                self._on_stranger(identity)
            case Unreadable():
                # What it could not read is unknown, so nothing that was ordered can be relied on.
                # Only a member is answered: two sides that do not understand each other must stop.
                self.unreadable_replies += 1
                if session is not None:
                    self._membership.lose(session, f"it could not read us: {message.reason}")
                    self._transmit(identity, Rejoin())
            case _:
                assert_never(message)

    def _on_report_of(
        self, identity: bytes, session: Session | None, report: Report, frames: list[memoryview]
    ) -> None:
        if session is None:
            self._on_stranger(identity)
            return
        if not session.has_joined:
            self.unknown_senders += 1  # a result of this worker's previous session
            return
        result = session.clock_offset.result_for_gateway(report.result, self._clock())
        views: list[list[memoryview]] = []
        if type(result) is InferResult:
            try:
                views = unpack_tensors(report.tensors, frames)
            except WireError as error:
                # The action still has its one result, and the worker learns what was wrong.
                self.malformed_frames += 1
                self._transmit(identity, Unreadable(str(error)))
                result = msgspec.structs.replace(
                    result, code=Code.MALFORMED, message=f"{session.worker_id}: {error}"
                )
        assert self._on_report is not None
        self._on_report(session.worker_id, result, report.tensors, views)

    def _on_stranger(self, identity: bytes) -> None:
        self.unknown_senders += 1
        if identity not in self._told_to_rejoin:
            self._told_to_rejoin.add(identity)
            self._transmit(identity, Rejoin())

    def _on_malformed(self, identity: bytes, session: Session | None, reason: str) -> None:
        self.malformed_frames += 1
        self._transmit(identity, Unreadable(reason))
        if session is not None:
            # It may have been a result. Starting over is the one way to owe nobody anything.
            self._membership.lose(session, f"it sent something unreadable: {reason}")
            self._transmit(identity, Rejoin())

    def _transmit(self, identity: bytes, message: ToWorker, frames: Sequence[Buffer] = ()) -> bool:
        """False where the peer is gone or has SEND_HIGH_WATER_MARK messages waiting."""
        send = self._socket.send
        try:
            send(identity, _MORE_NOW)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        # From here on ZeroMQ takes the whole message, or drops all of it with the connection.
        header = encode(message)
        last = len(frames) - 1
        send(header, _MORE if frames else 0)
        for index, frame in enumerate(frames):
            send(
                frame,
                _MORE if index < last else 0,
                copy=len(frame) < SMALL_TENSOR_BYTES,
            )
        self._schedule_read()
        return True


def _is_tcp(endpoint: str) -> bool:
    return endpoint.startswith("tcp://")
