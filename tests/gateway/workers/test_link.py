"""WorkerLink over real ZeroMQ, with a puppet at the other end; both event loops.

Nothing here measures time: a test waits until something has happened, or runs into LIMIT_S.
Heartbeats are given by hand.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
import zmq

from gateway.workers.clock_offset import MAX_INSTANT_NS
from gateway.workers.link import BindError, WorkerLink
from gateway.workers.membership import CALIBRATION_PINGS, MAX_UNANSWERED_PINGS
from scheduler.actions import Code, Infer, InferResult, LoadResult, LoadWeights, Result, Span
from scheduler.events import Event, WorkerJoined, WorkerLost
from scheduler.spec import SECOND_NS
from scheduler.wire import (
    WIRE_VERSION,
    Buffer,
    DeviceSample,
    Goodbye,
    Hello,
    Order,
    Ping,
    Pong,
    Rejoin,
    Report,
    RequestTensors,
    TensorMeta,
    ToGateway,
    ToWorker,
    Unreadable,
    Welcome,
    decode_to_worker,
    encode,
    pack_tensors,
    unpack_tensors,
)
from tests.gateway.doubles import ManualClock, device_spec, model_spec, ms, tensors_of

AHEAD_NS = 1_000_000_007  # every puppet's clock is this much ahead of the gateway's
LIMIT_S = 30  # a guard: nothing here takes a hundredth of it
NEVER_NS = 10**6 * SECOND_NS
WORKER = "w#01234567-1"
LARGE = 200_000  # bytes: a tensor with a frame of its own
VERSION = bytes([WIRE_VERSION])
Message = TypeVar("Message", bound=ToWorker)
Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Runs a coroutine function in a loop of either kind."""

    def run_in_loop(story: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(story(), LIMIT_S))

    return run_in_loop


async def until(is_true: Callable[[], object]) -> None:
    while not is_true():  # noqa: ASYNC110  # what it waits for happens in a foreign thread
        await asyncio.sleep(0.001)


class Gateway:
    """A link whose events and reports are written down."""

    def __init__(self, directory: Path, clock: ManualClock) -> None:
        self.clock = clock
        self.events: list[Event] = []
        self.reports: list[tuple[str, Result, list[list[bytes]]]] = []
        self.fatal: list[Exception] = []
        self.link = WorkerLink(
            [f"ipc://{directory}/workers"], {"resnet": model_spec()}, clock=clock
        )
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.puppets: list[Puppet] = []

    def start(self) -> None:
        self.link.start(
            on_event=self.events.append,
            on_report=self._on_report,
            on_fatal=self.fatal.append,
            heartbeat_interval_ns=NEVER_NS,
        )

    def _on_report(
        self,
        worker_id: str,
        result: Result,
        tensors: Sequence[RequestTensors],
        views: Sequence[list[memoryview]],
    ) -> None:
        self.reports.append((worker_id, result, [[bytes(v) for v in row] for row in views]))

    def puppet(self, name: str = "w") -> "Puppet":
        puppet = Puppet(self.context, self.link.endpoints[0], name, self.clock)
        self.puppets.append(puppet)
        return puppet

    async def joined(self, name: str = "w") -> "Puppet":
        """A puppet that has come all the way in."""
        num_events = len(self.events)
        puppet = self.puppet(name)
        puppet.hello()
        for _ in range(CALIBRATION_PINGS):
            await puppet.answer_ping()
        await until(lambda: len(self.events) > num_events)
        return puppet

    def close(self) -> None:
        for puppet in self.puppets:
            puppet.close()
        self.link.close("the test is over")
        self.context.term()
        assert self.fatal == []


class Puppet:
    """A worker's socket, moved by hand."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, name: str, clock: ManualClock
    ) -> None:
        self.name = name
        self.clock = clock
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)

    def hello(self, *, incarnation: str = "0123456789ab", resident: tuple[str, ...] = ()) -> None:
        self.say(Hello(self.name, incarnation, device_spec(), (model_spec(),), resident))

    def say(self, message: ToGateway, *frames: Buffer) -> None:
        self.socket.send_multipart([encode(message), *frames])

    async def hear(self, kind: type[Message]) -> tuple[Message, list[bytes]]:
        """The next message, which is of this kind, and its tensor frames."""
        while True:
            try:
                header, *frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                await asyncio.sleep(0.001)
                continue
            message = decode_to_worker(header)
            if isinstance(message, Welcome) and kind is not Welcome:
                continue
            assert isinstance(message, kind), f"expected {kind.__name__}, heard {message}"
            return message, frames

    async def answer_ping(self, sample: DeviceSample | None = None) -> None:
        ping, _ = await self.hear(Ping)
        self.say(Pong(ping.sent_ns, ping.sent_ns + AHEAD_NS, ping.sent_ns + AHEAD_NS, sample))

    def close(self) -> None:
        self.socket.close()


@asynccontextmanager
async def gateway_in(directory: Path, clock: ManualClock) -> AsyncIterator[Gateway]:
    gateway = Gateway(directory, clock)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.close()


Story = Callable[[Gateway], Awaitable[None]]


@pytest.fixture
def play(run: Any, tmp_path: Path, clock: ManualClock) -> Callable[[Story], None]:
    """Runs a story with a started gateway."""

    def play_story(story: Story) -> None:
        async def with_gateway() -> None:
            async with gateway_in(tmp_path, clock) as gateway:
                await story(gateway)

        run(with_gateway)

    return play_story


def infer(action_id: int, *request_ids: int) -> Infer:
    rows = (1,) * len(request_ids)
    return Infer(action_id, "resnet", len(rows), request_ids, rows, ms(1), ms(2), 3_000_000)


def test_a_worker_joins_and_its_clock_is_known(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        await gateway.joined()
        assert gateway.events == [WorkerJoined(WORKER, device_spec(), (model_spec(),), ())]
        (connection,) = gateway.link.connections()
        assert connection == (WORKER, "w", 0, AHEAD_NS)

    play(story)


def test_what_a_gpu_says_of_itself_comes_with_the_pongs(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        assert gateway.link.gpus == {}
        told = DeviceSample(energy_mj=7_000, power_mw=299_000)
        gateway.link.beat()
        await puppet.answer_ping(told)
        await until(lambda: gateway.link.gpus)
        assert gateway.link.gpus["w"].sample == told
        puppet.say(Goodbye("done"))
        await until(lambda: gateway.link.gpus["w"].sample is None)
        assert gateway.link.gpus["w"].energy_mj == 0

    play(story)


def test_an_order_arrives_on_the_workers_clock_with_each_requests_tensors(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        small, large = b"\x01" * 100, b"\x02" * LARGE
        tensors = (tensors_of(small, large), tensors_of(b"\x03" * 5, b"\x04" * LARGE))
        gateway.link.send(
            WORKER, infer(7, 1, 2), tensors, [small, large, b"\x03" * 5, b"\x04" * LARGE]
        )
        order, frames = await puppet.hear(Order)
        assert order.action == Infer(
            7, "resnet", 2, (1, 2), (1, 1), ms(1) + AHEAD_NS, ms(2) + AHEAD_NS, 3_000_000
        )
        assert [[bytes(v) for v in views] for views in unpack_tensors(order.tensors, frames)] == [
            [small, large],
            [b"\x03" * 5, b"\x04" * LARGE],
        ]

    play(story)


def test_an_order_without_tensors_is_one_frame(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        gateway.link.send(WORKER, LoadWeights(8, "resnet", 1, 0, MAX_INSTANT_NS, 5), (), ())
        order, frames = await puppet.hear(Order)
        assert order.action == LoadWeights(8, "resnet", 1, AHEAD_NS, MAX_INSTANT_NS, 5)
        assert frames == []

    play(story)


def test_a_report_arrives_on_our_clock_with_each_requests_outputs(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        gateway.clock.set(ms(9))
        outputs = [b"a" * 10, b"b" * LARGE]
        span = Span(ms(3) + AHEAD_NS, ms(4) + AHEAD_NS, 900_000)
        puppet.say(
            Report(
                InferResult(7, Code.OK, "", ms(2) + AHEAD_NS, exec=span),
                tuple(tensors_of(output) for output in outputs),
            ),
            *pack_tensors(outputs),
        )
        await until(lambda: gateway.reports)
        result = InferResult(7, Code.OK, "", ms(2), exec=Span(ms(3), ms(4), 900_000))
        assert gateway.reports == [(WORKER, result, [[outputs[0]], [outputs[1]]])]

    play(story)


def test_reports_that_arrive_while_orders_are_sent_are_not_overlooked(
    play: Callable[[Story], None],
) -> None:
    """ZeroMQ's descriptor signals edges, and a send may swallow one."""

    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        for action_id in range(300):
            puppet.say(Report(LoadResult(action_id, Code.OK)))
            gateway.link.send(WORKER, LoadWeights(action_id, "resnet", 1, 0, 1, 5), (), ())
            if action_id % 7 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(gateway.reports) == 300)
        assert [result.action_id for _, result, _ in gateway.reports] == list(range(300))

    play(story)


@pytest.mark.parametrize(
    "frames",
    [
        [b"too short"],
        [b"1234567890", b"one too many"],
        [],
    ],
)
def test_outputs_that_do_not_fit_their_header_are_a_malformed_result(
    play: Callable[[Story], None], frames: list[bytes]
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        puppet.say(Report(InferResult(7, Code.OK), ((TensorMeta((1, 10), 10),),)), *frames)
        unreadable, _ = await puppet.hear(Unreadable)
        ((worker_id, result, views),) = gateway.reports
        assert (worker_id, result.action_id, result.code) == (WORKER, 7, Code.MALFORMED)
        assert result.message == f"{WORKER}: {unreadable.reason}"
        assert views == []
        assert gateway.link.malformed_frames == 1
        assert len(gateway.events) == 1, "the worker stays"

    play(story)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b""], "header frame is empty"),
        (
            [bytes([WIRE_VERSION + 1]) + b"abc"],
            f"wire version {WIRE_VERSION + 1}, this side speaks",
        ),
        ([VERSION + b"\xc1"], "header is not a message to a gateway"),
        ([VERSION + b"\x92\xa7goodbye\xa2\xff\xfe"], "header is not a message to a gateway"),
        ([encode(Ping(5)), b"x"], "header is not a message to a gateway"),
    ],
)
def test_a_stranger_that_talks_gibberish_is_told_so(
    play: Callable[[Story], None], frames: list[bytes], reason: str
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = gateway.puppet()
        puppet.socket.send_multipart(frames)
        unreadable, _ = await puppet.hear(Unreadable)
        assert unreadable.reason.startswith(reason)
        assert gateway.link.malformed_frames == 1
        puppet.hello()  # and may still become a worker
        await puppet.hear(Welcome)
        assert gateway.events == []

    play(story)


def test_a_member_that_talks_gibberish_starts_over(play: Callable[[Story], None]) -> None:
    """What could not be read may have been a result that somebody waits for."""

    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        puppet.socket.send(VERSION + b"\xc1")
        await puppet.hear(Unreadable)
        await puppet.hear(Rejoin)
        assert [type(event) for event in gateway.events] == [WorkerJoined, WorkerLost]

    play(story)


def test_a_member_that_cannot_read_us_starts_over_and_a_stranger_is_not_answered(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        puppet.say(Unreadable("what?"))
        await puppet.hear(Rejoin)
        assert gateway.events[1:] == [WorkerLost(WORKER, "it could not read us: what?")]
        puppet.say(Unreadable("what??"))
        puppet.hello()
        await puppet.hear(Welcome)  # the very next message: the second Unreadable had no answer
        assert gateway.link.unreadable_replies == 2

    play(story)


def test_a_stranger_is_told_to_rejoin_once_per_heartbeat(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = gateway.puppet()
        for action_id in range(5):
            puppet.say(Report(LoadResult(action_id, Code.OK)))
        await puppet.hear(Rejoin)
        await until(lambda: gateway.link.unknown_senders == 5)
        gateway.link.beat()
        puppet.say(Pong(1, 2, 3))
        await until(lambda: gateway.link.unknown_senders == 6)
        await puppet.hear(Rejoin)
        puppet.say(Goodbye("never mind"))
        puppet.hello()
        await puppet.hear(Welcome)
        assert gateway.reports == []

    play(story)


def test_results_of_an_earlier_session_are_ignored_and_counted(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        puppet.hello(resident=("resnet",))
        puppet.say(Report(LoadResult(7, Code.OK)))
        await until(lambda: gateway.link.unknown_senders == 1)
        for _ in range(CALIBRATION_PINGS):
            await puppet.answer_ping()
        await until(lambda: len(gateway.events) == 3)
        assert gateway.events[1:] == [
            WorkerLost(WORKER, "it said Hello again"),
            WorkerJoined("w#01234567-2", device_spec(), (model_spec(),), ("resnet",)),
        ]
        assert gateway.reports == []

    play(story)


def test_goodbye_loses_the_worker(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        puppet.say(Report(LoadResult(7, Code.OK)))
        puppet.say(Goodbye("SIGTERM"))
        await until(lambda: len(gateway.events) == 2)
        assert gateway.events[1] == WorkerLost(WORKER, "it said goodbye: SIGTERM")
        assert len(gateway.reports) == 1, "what it reported before counts"
        gateway.link.send(WORKER, infer(8, 1), (tensors_of(b"x"),), [b"x"])
        assert len(gateway.events) == 2

    play(story)


def test_an_order_for_a_connection_that_broke_loses_the_worker_once(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        puppet.close()

        def is_noticed() -> bool:
            gateway.link.send(WORKER, infer(7, 1), (tensors_of(b"x"),), [b"x"])
            return len(gateway.events) > 1

        await until(is_noticed)
        gateway.link.send(WORKER, infer(8, 1), (tensors_of(b"x"),), [b"x"])
        gateway.link.probe()
        assert gateway.events[1:] == [
            WorkerLost(WORKER, "its connection is gone, or its queue of orders full")
        ]

    play(story)


def test_a_dead_workers_successor_is_let_in_by_a_probe(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        puppet.close()

        def is_noticed() -> bool:
            gateway.link.probe()
            return len(gateway.events) > 1

        await until(is_noticed)
        await gateway.joined()
        assert [type(event) for event in gateway.events] == [WorkerJoined, WorkerLost, WorkerJoined]

    play(story)


def test_life_signs_that_wait_to_be_read_count_even_if_we_come_late(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        for _ in range(MAX_UNANSWERED_PINGS):
            gateway.link.beat()
        puppet.say(Report(LoadResult(7, Code.OK)))
        # The loop stands still from here: nothing is read until the heartbeat itself reads.
        poller = zmq.Poller()
        poller.register(gateway.link._socket, zmq.POLLIN)
        assert poller.poll(), "the report has arrived"
        gateway.link.beat()
        assert len(gateway.reports) == 1
        assert len(gateway.events) == 1

    play(story)


def test_a_silent_worker_is_lost_and_told_to_rejoin_when_it_speaks(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        for _ in range(MAX_UNANSWERED_PINGS + 1):
            gateway.link.beat()
        assert gateway.events[1:] == [WorkerLost(WORKER, "it answered none of 4 pings")]
        for _ in range(MAX_UNANSWERED_PINGS):
            await puppet.answer_ping()
        await puppet.hear(Rejoin)

    play(story)


def test_heartbeats_come_by_themselves(run: Any, tmp_path: Path, clock: ManualClock) -> None:
    async def story() -> None:
        gateway = Gateway(tmp_path, clock)
        gateway.link.start(
            on_event=gateway.events.append,
            on_report=gateway._on_report,
            on_fatal=gateway.fatal.append,
            heartbeat_interval_ns=1_000_000,
        )
        try:
            puppet = gateway.puppet()
            puppet.hello()
            for _ in range(CALIBRATION_PINGS + 3):
                await puppet.answer_ping()
        finally:
            gateway.close()

    run(story)


def test_closing_says_goodbye(run: Any, tmp_path: Path, clock: ManualClock) -> None:
    async def story() -> None:
        gateway = Gateway(tmp_path, clock)
        gateway.start()
        puppet = await gateway.joined()
        gateway.link.close("SIGTERM")
        gateway.link.close("twice is as good as once")
        goodbye, _ = await puppet.hear(Goodbye)
        assert goodbye == Goodbye("SIGTERM")
        gateway.link.send(WORKER, infer(8, 1), (tensors_of(b"x"),), [b"x"])
        gateway.close()

    run(story)


def test_dismissing_waits_until_every_worker_has_left(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        first, second = await gateway.joined("w"), await gateway.joined("v")
        dismissing = asyncio.create_task(gateway.link.dismiss("SIGTERM"))
        for puppet in (first, second):
            goodbye, _ = await puppet.hear(Goodbye)
            assert goodbye == Goodbye("SIGTERM")
            assert not dismissing.done()
            puppet.say(Goodbye("as asked"))
        await dismissing
        assert [type(event) for event in gateway.events[2:]] == [WorkerLost, WorkerLost]

    play(story)


def test_dismissing_does_not_wait_for_ever(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        puppet = await gateway.joined()
        await gateway.link.dismiss("SIGTERM")
        await puppet.hear(Goodbye)

    play(story)


def test_an_exception_of_our_own_stops_the_process(
    run: Any, tmp_path: Path, clock: ManualClock
) -> None:
    broken = RuntimeError("our bug")

    def break_down(*_: object) -> None:
        raise broken

    async def story() -> None:
        gateway = Gateway(tmp_path, clock)
        gateway.link.start(
            on_event=gateway.events.append,
            on_report=break_down,
            on_fatal=gateway.fatal.append,
            heartbeat_interval_ns=NEVER_NS,
        )
        puppet = await gateway.joined()
        puppet.say(Report(LoadResult(7, Code.OK)))
        await until(lambda: gateway.fatal)
        assert gateway.fatal == [broken]
        gateway.fatal.clear()
        gateway.close()

    run(story)


def test_it_listens_at_several_places(run: Any, tmp_path: Path, clock: ManualClock) -> None:
    async def story() -> None:
        gateway = Gateway(tmp_path, clock)
        gateway.link.close("replaced")
        gateway.link = WorkerLink(
            [f"ipc://{tmp_path}/w", "tcp://127.0.0.1:*"], {"resnet": model_spec()}, clock=clock
        )
        gateway.start()
        assert gateway.link.endpoints[0] == f"ipc://{tmp_path}/w"
        assert gateway.link.endpoints[1].startswith("tcp://127.0.0.1:")
        puppet = Puppet(gateway.context, gateway.link.endpoints[1], "far", clock)
        gateway.puppets.append(puppet)
        puppet.hello()
        welcome, _ = await puppet.hear(Welcome)
        assert welcome.worker_id == "far#01234567-1"
        gateway.close()

    run(story)


def test_a_place_where_it_cannot_listen_is_named(tmp_path: Path, clock: ManualClock) -> None:
    endpoint = f"ipc://{tmp_path}/missing/workers"
    with pytest.raises(BindError, match=r"cannot listen for workers at ipc://.*missing/workers: "):
        WorkerLink([endpoint], {}, clock=clock)
