"""The live page's feed: server-sent events for many readers, fast and slow, in hand-driven time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.errors import RequestError
from gateway.live.feed import QUEUE_FRAMES, Page
from tests.gateway.doubles import model_spec
from tests.gateway.live_stage import LiveStage, Reader, ms, settle


def run(story: Callable[[LiveStage], Awaitable[None]], **changes: int) -> None:
    async def told() -> None:
        await story(LiveStage(**changes))  # type: ignore[arg-type]

    asyncio.run(told())


def test_a_reader_gets_a_snapshot_and_then_frames() -> None:
    async def story(stage: LiveStage) -> None:
        stage.join("w1")
        reader = Reader(stage)
        await reader.start()
        first = await reader.read()
        assert first.name == "snapshot"
        assert [model["name"] for model in first.data["models"]] == ["resnet"]
        assert [device["worker"] for device in first.data["devices"]] == ["w1"]
        await stage.tick()
        await stage.tick()
        frames = [await reader.read(), await reader.read()]
        assert [frame.name for frame in frames] == ["frame", "frame"]
        assert [frame.data["seq"] for frame in frames] == [1, 2]
        assert {frame.data["epoch"] for frame in frames} == {first.data["epoch"]}
        await reader.leave()

    run(story)


def test_nobody_listening_costs_nothing() -> None:
    async def story(stage: LiveStage) -> None:
        stage.join("w1")
        before = list(stage.dispatcher._observers)
        reader, other = Reader(stage), Reader(stage)
        await reader.start()
        await other.start()
        assert stage.dispatcher._observers == [*before, stage.watch]
        await reader.leave()
        assert stage.watch in stage.dispatcher._observers
        await other.leave()
        assert stage.dispatcher._observers == before
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        stage.ask("a")
        assert stage.watch.take_touched() == set()

    run(story)


def test_a_page_that_is_opened_later_finds_a_feed_again() -> None:
    async def story(stage: LiveStage) -> None:
        reader = Reader(stage)
        await reader.start()
        await reader.leave()
        stage.join("w1")
        again = Reader(stage)
        await again.start()
        assert len((await again.read()).data["devices"]) == 1
        await stage.tick()
        assert (await again.read()).name == "frame"
        await again.leave()

    run(story)


def test_200_open_pages_cost_one_sampling_and_share_its_bytes() -> None:
    async def story(stage: LiveStage) -> None:
        stage.join("w1")
        readers = [Reader(stage) for _ in range(200)]
        for reader in readers:
            await reader.start()
        snapshots = await asyncio.gather(*(reader.read() for reader in readers))
        assert {snapshot.name for snapshot in snapshots} == {"snapshot"}
        await stage.tick()
        assert stage.feed.num_frames == 1
        pages: set[Page] = stage.feed._pages
        assert len(pages) == 200
        assert len({id(page.frames[0]) for page in pages}) == 1
        for reader in readers:
            assert (await reader.read()).data["seq"] == 1
        assert stage.feed.num_frames == 1
        for reader in readers:
            await reader.leave()

    run(story)


def test_a_slow_reader_loses_frames_and_goes_on_with_a_snapshot() -> None:
    async def story(stage: LiveStage) -> None:
        stage.join("w1")
        slow, quick = Reader(stage), Reader(stage)
        await slow.start()
        await quick.start()
        await slow.read()
        await quick.read()
        for _ in range(1000):
            await stage.tick()
            assert (await quick.read()).name == "frame"
            assert max(len(page.frames) for page in stage.feed._pages) <= QUEUE_FRAMES
        assert {page.lost for page in stage.feed._pages} == {0, 1000}
        stage.ask("a")
        after = await slow.read()
        assert (after.name, after.data["seq"]) == ("snapshot", 1000)
        await stage.tick()
        assert (await slow.read()).data["seq"] == 1001
        await slow.leave()
        await quick.leave()

    run(story)


def test_another_fleet_or_catalogue_is_a_new_snapshot_for_all() -> None:
    async def story(stage: LiveStage) -> None:
        stage.join("w1")
        reader = Reader(stage)
        await reader.start()
        first = await reader.read()
        stage.join("w2#7")
        await stage.tick()
        second = await reader.read()
        assert second.name == "snapshot"
        assert [device["worker"] for device in second.data["devices"]] == ["w1", "w2"]
        assert second.data["epoch"] == first.data["epoch"] + 1
        stage.add(model_spec("vgg"))
        await stage.tick()
        third = await reader.read()
        assert [model["name"] for model in third.data["models"]] == ["resnet", "vgg"]
        stage.lose("w2#7")
        await stage.tick()
        fourth = await reader.read()
        assert [device["worker"] for device in fourth.data["devices"]] == ["w1"]
        assert fourth.data["lost"] == ["w2"]
        await reader.leave()

    run(story)


def test_more_pages_than_may_be_open_are_refused_with_the_number() -> None:
    async def story(stage: LiveStage) -> None:
        readers = [Reader(stage), Reader(stage)]
        for reader in readers:
            await reader.start()
        with pytest.raises(RequestError, match="2 live pages are open") as refusal:
            stage.feed.check()
        assert refusal.value.reason == "overloaded"
        late = Reader(stage)  # it passed the check before the others came
        assert (await late.read()) == ("end", {"reason": "overloaded"})
        await readers[0].leave()
        stage.feed.check()
        await readers[1].leave()

    run(story, max_pages=2)


def test_no_pages_at_all_is_a_page_that_is_not_there() -> None:
    async def story(stage: LiveStage) -> None:
        with pytest.raises(RequestError, match="ui_pages is 0") as refusal:
            stage.feed.check()
        assert refusal.value.reason == "not_found"

    run(story, max_pages=0)


def test_a_gateway_that_stops_says_so_and_lets_nobody_in() -> None:
    async def story(stage: LiveStage) -> None:
        reader = Reader(stage)
        await reader.start()
        await reader.read()
        stage.lifecycle.drain()
        await stage.tick()
        assert (await reader.read()).name == "frame"  # draining is worth seeing
        stage.lifecycle.refuse()
        await stage.tick()
        assert await reader.read() == ("end", {"reason": "draining"})
        assert await reader.is_over()
        with pytest.raises(RequestError, match="the gateway stops"):
            stage.feed.check()
        assert stage.watch not in stage.dispatcher._observers

    run(story)


def test_a_reader_whose_key_was_withdrawn_is_told_at_the_next_frame() -> None:
    async def story(stage: LiveStage) -> None:
        reader = Reader(stage)
        await reader.start()
        await reader.read()
        reader.may_go_on = False
        await stage.tick()
        assert await reader.read() == ("end", {"reason": "forbidden"})
        assert await reader.is_over()
        assert stage.feed.num_pages == 0

    run(story)


def test_a_sampler_that_fails_ends_the_pages_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(stage: LiveStage) -> None:
        stage.join("w1")
        reader = Reader(stage)
        await reader.start()
        await reader.read()
        stage.metrics.unnamed["no pair"] = 1  # type: ignore[index]
        await stage.tick()
        assert await reader.read() == ("end", {"reason": "internal_error"})
        assert stage.watch not in stage.dispatcher._observers

    run(story)
    assert "sampler failed" in caplog.text


def test_time_stands_in_microseconds_since_the_start() -> None:
    async def story(stage: LiveStage) -> None:
        reader = Reader(stage)
        await reader.start()
        assert (await reader.read()).data["at_us"] == 0
        stage.clock.advance(ms(2.5))
        await stage.tick()
        assert (await reader.read()).data["at_us"] == 2500
        await reader.leave()

    run(story)
