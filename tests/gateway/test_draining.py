"""How long a gateway that stops waits for what, by a clock that is moved by hand."""

import asyncio
import logging
from collections.abc import Callable, Coroutine

import pytest

from gateway.draining import REFUSE_AT_LEAST_S, drain
from gateway.lifecycle import Lifecycle

DRAIN_S, GRACE_S = 7.0, 30.0


class Stage:
    """A drain that has begun; its sleeps are ended by hand, its requests answered by hand."""

    def __init__(self, num_open: int) -> None:
        self.lifecycle = Lifecycle()
        self.lifecycle.serve()
        self.lifecycle.drain()
        self.num_open = num_open
        self._is_idle = asyncio.Event()
        self._sleeps: list[tuple[float, asyncio.Future[None]]] = []
        self.drained = asyncio.ensure_future(
            drain(
                self.lifecycle,
                self,
                drain_s=DRAIN_S,
                answer_grace_s=GRACE_S,
                sleep=self._sleep,
            )
        )

    async def wait_idle(self) -> None:
        if self.num_open:
            await self._is_idle.wait()

    async def _sleep(self, duration_s: float) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeps.append((duration_s, ended))
        await ended

    async def settle(self) -> None:
        """What can go on has gone on: nothing here waits for more than another's turn."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def slept(self) -> float:
        """How long it sleeps; then that time is over."""
        await self.settle()
        [(duration_s, ended)] = self._sleeps
        self._sleeps.clear()
        ended.set_result(None)
        await self.settle()
        return duration_s

    def answer_one(self) -> None:
        self.num_open -= 1
        if not self.num_open:
            self._is_idle.set()


def run(story: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))


def test_it_serves_on_then_refuses_then_waits_for_answers() -> None:
    async def story() -> None:
        stage = Stage(num_open=2)
        await stage.settle()
        assert stage.lifecycle.refusal_reason is None  # drains, and serves
        assert await stage.slept() == DRAIN_S
        assert stage.lifecycle.refusal_reason == "draining"
        assert await stage.slept() == REFUSE_AT_LEAST_S
        stage.answer_one()
        await stage.settle()
        assert not stage.drained.done()  # the second is owed, and there is time
        stage.answer_one()
        assert await stage.drained is True

    run(story)


def test_what_is_not_answered_within_the_grace_is_given_up_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        stage = Stage(num_open=3)
        await stage.slept()
        await stage.slept()
        stage.answer_one()
        await stage.settle()
        assert not stage.drained.done()
        assert await stage.slept() == GRACE_S
        assert await stage.drained is False
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in left if "wait_idle" in repr(task)]

    with caplog.at_level(logging.ERROR, logger="gateway.draining"):
        run(story)
    assert [record.getMessage() for record in caplog.records] == [
        "2 requests still wait for an answer after 30 s (answer_grace_s): given up"
    ]


def test_with_nothing_to_answer_the_grace_is_not_waited_for() -> None:
    async def story() -> None:
        stage = Stage(num_open=0)
        await stage.slept()
        await stage.slept()
        assert await stage.drained is True

    run(story)


def test_a_second_signal_ends_the_waiting_at_once() -> None:
    async def story() -> None:
        stage = Stage(num_open=1)
        await stage.slept()
        await stage.slept()
        stage.drained.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stage.drained

    run(story)
