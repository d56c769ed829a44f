"""The door of the workers' port, over TCP with CURVE: who comes in, who does not, what is said."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
import zmq

from gateway.workers import curve_keys
from gateway.workers.curve_keys import GatewayKeys
from gateway.workers.door import LOG_INTERVAL_NS
from gateway.workers.link import WorkerLink
from gpuworker import curve_keys as worker_keys
from gpuworker.curve_keys import CurveKeys
from gpuworker.gateway_link import GatewayLink
from scheduler.events import Event
from scheduler.spec import SECOND_NS
from scheduler.wire import Hello, Ping, Pong, Refused, Welcome, decode_to_worker
from tests.gateway.doubles import ManualClock, device_spec, model_spec

LIMIT_S = 30  # a guard: nothing here takes a hundredth of it
STEP_MS = 1  # between two looks, in which the loop goes on
NEVER_NS = 10**6 * SECOND_NS


class Gateway:
    """Listens over TCP for those who have a key, and over IPC for anyone."""

    def __init__(self, directory: Path, clock: ManualClock, *, max_frame_bytes: int = 0) -> None:
        self.directory = directory
        curve_keys.make(directory / "keys", ["known"])
        self.keys = curve_keys.read(directory / "keys" / "gateway")
        self.events: list[Event] = []
        self.link = WorkerLink(
            [f"ipc://{directory}/local", "tcp://127.0.0.1:*"],
            {"resnet": model_spec()},
            clock=clock,
            keys=self.keys,
            max_frame_bytes=max_frame_bytes,
        )
        self.local, self.address = self.link.endpoints
        self.workers: list[GatewayLink] = []
        self.link.start(
            on_event=self.events.append,
            on_report=lambda *_: None,
            on_fatal=lambda error: pytest.fail(str(error)),
            heartbeat_interval_ns=NEVER_NS,
        )

    @property
    def known(self) -> CurveKeys:
        return worker_keys.read(self.directory / "keys" / "known")

    def stranger(self) -> CurveKeys:
        """Knows the gateway's key, which is public, and has a pair of its own making."""
        public, secret = zmq.curve_keypair()
        return CurveKeys(public, secret, self.keys.public)

    def worker(self, keys: CurveKeys | None, address: str | None = None) -> GatewayLink:
        worker = GatewayLink(address or self.address, keys=keys)
        self.workers.append(worker)
        return worker

    async def joined(self, keys: CurveKeys | None, address: str | None = None) -> GatewayLink:
        worker = self.worker(keys, address)
        await until(lambda: worker.send(hello(f"w{len(self.workers)}")))
        assert isinstance(await heard(worker), Welcome)
        return worker

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.link.close("the test is over")


def hello(name: str) -> Hello:
    return Hello(name, "0123456789ab", device_spec(), (model_spec(),), ())


async def until(is_true: Callable[[], object]) -> None:
    while not is_true():  # noqa: ASYNC110  # what it waits for happens in a foreign thread
        await asyncio.sleep(STEP_MS / 1000)


async def heard(worker: GatewayLink) -> Any:
    frames = None
    while frames is None:
        await asyncio.sleep(0)
        frames = worker.wait(STEP_MS)
    return decode_to_worker(frames[0])


async def refused(worker: GatewayLink, because: str) -> None:
    """It may see only that the other side broke off, which the text allows for."""
    while because not in ((reason := worker.refusal()) or ""):
        if reason is not None:
            assert "it broke off" in reason
            worker.reconnect()
        await asyncio.sleep(STEP_MS / 1000)


Story = Callable[[Gateway], Awaitable[None]]


@contextlib.asynccontextmanager
async def gateway_in(
    directory: Path, clock: ManualClock, max_frame_bytes: int
) -> AsyncIterator[Gateway]:
    gateway = Gateway(directory, clock, max_frame_bytes=max_frame_bytes)
    try:
        yield gateway
    finally:
        gateway.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: Any, tmp_path: Path, clock: ManualClock) -> Callable[..., None]:
    def play_story(story: Story, *, max_frame_bytes: int = 0) -> None:
        async def with_gateway() -> None:
            async with gateway_in(tmp_path, clock, max_frame_bytes) as gateway:
                await story(gateway)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(with_gateway(), LIMIT_S))

    return play_story


def test_who_has_a_known_key_comes_in_and_over_ipc_nobody_is_asked(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        await gateway.joined(gateway.known)
        await gateway.joined(None, gateway.local)
        assert set(gateway.link.refused_connections.values()) == {0}

    play(story)


def test_who_comes_otherwise_is_told_why_and_counted(play: Callable[[Story], None]) -> None:
    async def story(gateway: Gateway) -> None:
        stranger = gateway.stranger()
        await refused(gateway.worker(stranger), f"worker's public key {stranger.public.decode()}")
        await refused(gateway.worker(None), "it wants CURVE keys")
        of_another = msgspec.structs.replace(gateway.known, gateway_public=stranger.public)
        why = f"not the public key {stranger.public.decode()}"
        await refused(gateway.worker(of_another), why)
        await refused(gateway.worker(gateway.known, gateway.local), "it has no CURVE keys")
        seen = gateway.link.refused_connections
        await until(lambda: seen.get("unknown_key") and seen.get("wrong_gateway_key"))
        # of two that do not speak the same, the one that notices first breaks off
        await until(lambda: seen.get("no_curve") or seen.get("broken_handshake"))
        assert gateway.events == []

    play(story)


def test_who_is_refused_and_connects_anew_with_a_key_that_is_known_by_then(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        keys = gateway.stranger()
        worker = gateway.worker(keys)
        await refused(worker, "does not know")
        gateway.link.admit_only(
            GatewayKeys(gateway.keys.public, gateway.keys.secret, {keys.public: "late"})
        )
        worker.reconnect()
        await until(lambda: worker.send(hello("w")))
        assert isinstance(await heard(worker), Welcome)

    play(story)


def test_whose_key_is_taken_away_is_sent_away_and_does_not_come_back(
    play: Callable[[Story], None],
) -> None:
    async def story(gateway: Gateway) -> None:
        worker = await gateway.joined(gateway.known)
        other = await gateway.joined(None, gateway.local)
        gateway.link.admit_only(GatewayKeys(gateway.keys.public, gateway.keys.secret, {}))
        while not isinstance(answer := await heard(worker), Refused):
            assert isinstance(answer, Ping)
        assert "any more" in answer.reason
        worker.send(hello("w1"))
        assert isinstance(await heard(worker), Refused)  # over the connection that it still has
        worker.reconnect()
        await refused(worker, "does not know")
        other.send(Pong(0, 0, 0))  # nobody minds the one who never had a key
        assert gateway.link.malformed_frames == 0

    play(story)


def test_a_knocking_stranger_is_one_line_in_the_log_per_interval(
    play: Callable[[Story], None], clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(gateway: Gateway) -> None:
        worker = gateway.worker(gateway.stranger())
        for _ in range(3):
            await refused(worker, "does not know")
            worker.reconnect()
        await refused(worker, "does not know")
        await until(lambda: gateway.link.refused_connections["unknown_key"] == 4)
        assert len(caplog.records) == 1
        assert "127.0.0.1, key " in caplog.text
        clock.advance(LOG_INTERVAL_NS)
        worker.reconnect()
        await refused(worker, "does not know")
        await until(lambda: len(caplog.records) == 2)
        assert "(3 others since the last line)" in caplog.records[1].message

    with caplog.at_level(logging.WARNING):
        play(story)


def test_a_part_of_a_message_over_the_limit_ends_that_connection_alone(
    play: Callable[..., None],
) -> None:
    async def story(gateway: Gateway) -> None:
        bystander = await gateway.joined(None, gateway.local)
        worker = gateway.worker(gateway.known)
        await until(lambda: worker.send(hello("w")))
        welcome = await heard(worker)
        assert isinstance(welcome, Welcome)
        assert welcome.max_frame_bytes == 100_000
        for sender, num_bytes in ((bystander, 100_000), (worker, 100_001)):
            ping = await heard(sender)
            sender.send(Pong(ping.sent_ns, 1, 1), [bytes(num_bytes)])
        await heard(bystander)  # it was read: the next ping of those that a newcomer gets
        await until(lambda: not worker.send(Pong(0, 0, 0)))  # ZeroMQ waits before it tries again
        assert gateway.link.malformed_frames == 0

    play(story, max_frame_bytes=100_000)
