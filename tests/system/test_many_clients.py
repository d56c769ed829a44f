"""Ten thousand requests at once, and clients that leave: each is answered once, or freed."""

import asyncio
import resource
from collections.abc import Iterator

import pytest

from tests.system.clients import Connection, bytes_body, is_ready, metric, play
from tests.system.stages import Stage, joined, open_files_of, resident_bytes, until

MODEL = "cifar_wideresnet16_10"
NUM_REQUESTS = 10_000
SPARE_FILES = 500  # what this process and the gateway have open besides
MEBIBYTE = 1024 * 1024
# Connections that are opened together: the gateway's backlog is a burst, not a queue.
BURST = 500


@pytest.fixture
def open_files() -> Iterator[None]:
    """A connection is an open file, here and in the gateway, which raises its own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = NUM_REQUESTS + SPARE_FILES
    if hard < needed:
        pytest.skip(f"RLIMIT_NOFILE allows {hard} open files, {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def crowd(stage: Stage, open_files: None) -> Stage:
    return stage


def queued(stage: Stage) -> float:
    return metric(stage.url, "queue_depth", model=MODEL)


def test_ten_thousand_queued_requests_are_each_answered_once_with_their_own_answer(
    crowd: Stage,
) -> None:
    """Held back by the worker until all are queued. The third time needs no more memory."""
    pid = crowd.gateway.process.pid

    async def story() -> None:
        files_before = open_files_of(pid)
        connections: list[Connection] = []
        for _ in range(NUM_REQUESTS // BURST):
            opening = [Connection.open(crowd.url) for _ in range(BURST)]
            connections += await asyncio.gather(*opening)
        memory = []
        for round_number in (1, 2, 3):
            await one_round(connections, round_number)
            memory.append(resident_bytes(pid))
        # The first ones fill what the allocator keeps, and the ring of recent requests with what
        # the scheduler did for them; a leak of 1 kB a request would show as 10 MB.
        assert memory[2] < memory[1] + 6 * MEBIBYTE, memory
        for connection in connections:
            connection.close()
        await asyncio.to_thread(until, lambda: open_files_of(pid) == files_before, "all are closed")

    async def one_round(connections: list[Connection], round_number: int) -> None:
        before = metric(crowd.url, "requests_total", model=MODEL)
        with joined(crowd, [MODEL], name=f"round-{round_number}", is_holding=True) as puppet:
            for number, connection in enumerate(connections):
                data = number.to_bytes(4, "little")
                connection.send(bytes_body(MODEL, data, slo_ms=3_600_000, id=f"{number}"))
                if number % BURST == 0:
                    await asyncio.sleep(0)
            all_wait = asyncio.to_thread(
                until, lambda: queued(crowd) + puppet.num_held == NUM_REQUESTS, "all are queued"
            )
            await all_wait
            assert queued(crowd) > NUM_REQUESTS - 100  # the others are in flight
            assert is_ready(crowd.url)
            puppet.release()
            for number, connection in enumerate(connections):
                answer = await connection.answer()
                assert answer.status == 200
                told = answer.json
                assert told["id"] == f"{number}"
                data = bytes(told["outputs"][0]["data"][:4])
                assert int.from_bytes(data, "little") == number
            assert queued(crowd) == 0
        assert metric(crowd.url, "requests_total", model=MODEL) == before + NUM_REQUESTS

    play(story, hang_s=110)


def test_clients_that_hang_up_free_their_queued_requests(stage: Stage) -> None:
    async def story() -> None:
        cancelled_before = metric(stage.url, "requests_total", outcome="cancelled")
        with joined(stage, [MODEL], is_holding=True) as puppet:
            first = [await Connection.open(stage.url) for _ in range(2)]
            for number, connection in enumerate(first, 1):  # fill the lane: others are queued then
                connection.send(bytes_body(MODEL, b"first"))
                await asyncio.to_thread(puppet.wait_for_requests, number)
            staying = [await Connection.open(stage.url) for _ in range(20)]
            leaving = [await Connection.open(stage.url) for _ in range(30)]
            for connection in staying:
                connection.send(bytes_body(MODEL, b"staying"))
            for connection in leaving:
                connection.send(bytes_body(MODEL, b"leaving"))
            await asyncio.to_thread(until, lambda: queued(stage) == 50, "all are queued")
            for connection in leaving:
                connection.close()
            await asyncio.to_thread(until, lambda: queued(stage) == 20, "they are freed")
            puppet.release()
            for connection in first + staying:
                assert (await connection.answer()).status == 200
                connection.close()
            assert puppet.num_ordered == 22
        cancelled = metric(stage.url, "requests_total", outcome="cancelled") - cancelled_before
        assert cancelled == 30

    play(story)
