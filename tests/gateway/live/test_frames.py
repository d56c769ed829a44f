"""What a frame of the live page says, with a real scheduler between puppets."""

import asyncio
from typing import Any

import msgspec

from gateway.live.watch import EXEC, LOAD, MAX_BARS, MAX_BARS_OF_LANE
from gateway.observability.answered import Answered, OwnAnswer
from scheduler.actions import Code, Infer, LoadWeights
from scheduler.events import (
    ModelAdded,
    ModelOffered,
    Reason,
    Rejected,
    Served,
)
from scheduler.scaling import Sample, Scaling
from scheduler.spec import SECOND_NS
from tests.gateway.doubles import model_spec
from tests.gateway.live_stage import LiveStage, Reader, ms


def told(stage: LiveStage, *steps: Any) -> dict[str, Any]:
    """The frame after these steps, of a page that was open during them."""

    async def story() -> dict[str, Any]:
        reader = Reader(stage)
        await reader.start()
        await reader.read()
        for step in steps:
            step()
        await stage.tick()
        frame = (await reader.read()).data
        await reader.leave()
        return frame

    return asyncio.run(story())


def test_a_load_and_an_execution_are_bars_of_their_lanes() -> None:
    stage = LiveStage()
    stage.join("w1")

    def one_request() -> None:
        stage.ask("a")
        assert isinstance(stage.finish(took_ms=5), LoadWeights)
        assert isinstance(stage.finish(took_ms=3), Infer)

    frame = told(stage, one_request)
    assert frame["bars"] == [
        [0, LOAD, 0, 0, 5000, 5000, 0, 1, True],
        [0, EXEC, 0, 5000, 8000, 3000, 1, 1, True],
    ]
    assert frame["holds"] == [0, 0, 2, 1]  # device, model, resident, one page
    [figures] = frame["figures"]
    assert figures[:3] == [0, 7, 0]  # device, free pages, outstanding


def test_a_load_on_its_way_is_a_change_of_pages() -> None:
    stage = LiveStage()
    stage.join("w1")
    frame = told(stage, lambda: stage.ask("a"))
    assert frame["holds"] == [0, 0, 1, 1]
    [counts] = frame["counts"]
    assert counts[:5] == [0, 0, 0, 0, 1]  # one is queued
    assert frame["figures"][0][2] == 1


def test_a_failed_load_is_a_bar_that_says_so() -> None:
    stage = LiveStage()
    stage.join("w1")

    def failing() -> None:
        stage.ask("a")
        stage.finish(took_ms=5, code=Code.LOAD_FAILED)

    frame = told(stage, failing)
    assert frame["bars"] == [[0, LOAD, 0, 0, 5000, 5000, 0, 1, False]]
    assert frame["holds"][2] == 0  # absent again


def test_bars_beyond_the_limit_become_one() -> None:
    stage = LiveStage(model_spec(), model_spec("vgg"))
    stage.join("w1", resident=("resnet", "vgg"))

    def many() -> None:
        for number in range(MAX_BARS_OF_LANE):
            stage.ask(f"a{number}", model="resnet")
            stage.finish(took_ms=1)
        for number in range(3):
            stage.ask(f"b{number}", model="vgg")
            stage.finish(took_ms=1)

    frame = told(stage, many)
    assert len(frame["bars"]) == MAX_BARS_OF_LANE
    end = MAX_BARS_OF_LANE * 1000 + 3000
    assert stage.watch.max_bars == MAX_BARS_OF_LANE
    assert frame["bars"][-1] == [0, EXEC, -1, end - 4000, end, 4000, 4, 4, True]


def test_only_models_that_changed_are_told_again() -> None:
    stage = LiveStage(model_spec(), model_spec("vgg"))
    stage.join("w1", resident=("resnet", "vgg"))
    stage.metrics.of_model("vgg").outcomes["rejected", "slo_infeasible_now"] = 7
    stage.metrics.observe_unnamed("invalid", "not_found", latency_ns=1)

    async def story() -> None:
        reader = Reader(stage)
        await reader.start()
        snapshot = (await reader.read()).data
        missed = {"rejected:slo_infeasible_now": 7}
        assert snapshot["counts"] == [[1, 0, 0, 0, 0, 0, 0, 0, 0, missed]]
        assert snapshot["unnamed"] == {"invalid:not_found": 1}
        await stage.tick()
        assert [row[0] for row in (await reader.read()).data["counts"]] == [1]
        await stage.tick()
        assert (await reader.read()).data["counts"] == []
        stage.metrics.of_model("resnet").outcomes["served", ""] = 2
        stage.metrics.of_model("resnet").outcomes["cancelled", "queued"] = 1
        stage.metrics.of_model("resnet").outcomes["invalid", "bad_request"] = 4
        await stage.tick()
        assert (await reader.read()).data["counts"] == [[0, 2, 1, 4, 0, 0, 0, 0, 0, {}]]
        await reader.leave()

    asyncio.run(story())


def test_advice_on_the_number_of_devices_is_there_as_soon_as_it_is_known() -> None:
    stage = LiveStage()
    stage.join("w1", resident=("resnet",))
    scaling = Scaling(horizon_ns=10 * SECOND_NS, target_utilisation=0.5)
    stage.metrics.watch_scaling(scaling)

    async def story() -> None:
        reader = Reader(stage)
        await reader.start()
        assert (await reader.read()).data["scaling"] is None
        told = []
        for second in range(31):
            scaling.observe(Sample(1.0, 1, 0, 0), second * SECOND_NS)
            if second in (10, 30):
                await stage.tick()
                told.append((await reader.read()).data["scaling"])
        expected = {"devices": 1, "recommended": 2, "load": 1.0, "forecast": 1.0}
        # how wrong forecasts are is known when the first is due
        assert told == [{**expected, "error": None}, {**expected, "error": 0.0}]
        await reader.leave()

    asyncio.run(story())


def test_a_snapshot_says_what_helps_by_reason() -> None:
    stage = LiveStage()

    async def story() -> None:
        reader = Reader(stage)
        await reader.start()
        remedies = (await reader.read()).data["remedies"]
        assert "more devices" in remedies["slo_infeasible_now"]
        assert "More memory" in remedies["cold_model"]
        await reader.leave()

    asyncio.run(story())


def test_a_model_that_cannot_be_served_is_shown_with_the_reason() -> None:
    stage = LiveStage(model_spec(), model_spec("bad", unavailable_reason="not ONNX"))
    stage.join("w1", resident=("resnet",))

    async def story() -> None:
        reader = Reader(stage)
        await reader.start()
        snapshot = (await reader.read()).data
        models = {model["name"]: model for model in snapshot["models"]}
        assert models["bad"]["unavailable_reason"] == "not ONNX"
        assert models["bad"]["exec_ms"] == {}
        assert models["resnet"]["exec_ms"] == {"1": 3.0, "2": 6.0, "4": 12.0}
        assert models["resnet"]["pages"] == 1
        assert snapshot["devices"][0]["holds"] == [0, 2, 1]
        await reader.leave()

    asyncio.run(story())


def test_the_pages_of_a_model_that_left_the_catalogue_are_shown_until_they_are_gone() -> None:
    stage = LiveStage(model_spec(), model_spec("vgg"))
    stage.join("w1", resident=("resnet", "vgg"))
    del stage.catalog["vgg"]

    async def story() -> None:
        reader = Reader(stage)
        await reader.start()
        models = {model["name"]: model for model in (await reader.read()).data["models"]}
        assert models["vgg"]["unavailable_reason"] == "it is not in the repository any more"
        await reader.leave()

    asyncio.run(story())


def answered(
    stage: LiveStage, request_id: str, outcome: Any, *, slo_ms: float = 10, took_ms: float = 3
) -> None:
    """As the HTTP side tells it."""
    now = stage.clock()
    stage.recent.note(
        Answered(request_id, 1, "resnet/2", "", now - ms(took_ms), ms(slo_ms), now, outcome)
    )


def in_time() -> Served:
    return Served("w1#1", 4, True, 0, 0, 0, 0, 0, 0)


def test_the_worst_requests_come_with_their_reasons() -> None:
    stage = LiveStage()
    no = Rejected(Reason.SLO_INFEASIBLE_NOW, "18 ms", predicted_ns=ms(18))

    def answers() -> None:
        stage.clock.advance(ms(50))
        answered(stage, "a", in_time(), took_ms=3)
        answered(stage, "b", no, took_ms=0.5)
        answered(stage, "c", Rejected(Reason.NO_WORKER, "nobody"))
        answered(stage, "d", OwnAnswer("invalid", "bad_request", "no JSON"))

    first, second, third = told(stage, answers)["worst"]
    assert (first["request_id"], first["slack_ms"], first["latency_ms"]) == ("b", -8.0, 0.5)
    assert (first["outcome"], first["reason"]) == ("rejected", "slo_infeasible_now")
    assert (first["detail"], first["worker"]) == ("18 ms", None)
    assert (second["request_id"], second["slack_ms"]) == ("c", None)
    assert (third["request_id"], third["model"], third["slack_ms"]) == ("a", "resnet", 7.0)
    assert (third["worker"], third["batch_rows"], third["cold_start"]) == ("w1", 4, True)


def test_a_request_is_told_once_and_a_snapshot_has_those_of_the_last_minute() -> None:
    stage = LiveStage()

    async def story() -> None:
        stage.clock.advance(ms(50))
        answered(stage, "long ago", in_time())
        stage.clock.advance(ms(60_000))
        answered(stage, "before", in_time())
        stage.clock.advance(ms(1))
        reader = Reader(stage)
        await reader.start()
        snapshot = (await reader.read()).data
        assert [request["request_id"] for request in snapshot["worst"]] == ["before"]
        stage.clock.advance(ms(1))
        answered(stage, "now", in_time())
        await stage.tick()
        assert [r["request_id"] for r in (await reader.read()).data["worst"]] == ["now"]
        await stage.tick()
        assert (await reader.read()).data["worst"] == []
        await reader.leave()

    asyncio.run(story())


def test_a_worker_that_is_unknown_to_the_core_draws_nothing() -> None:
    stage = LiveStage()
    stage.join("w1", resident=("resnet",))

    def late() -> None:
        stage.ask("a")
        stage.lose("w1")
        stage.finish()

    async def story() -> None:
        reader = Reader(stage)
        await reader.start()
        await reader.read()
        late()
        await stage.tick()
        assert (await reader.read()).name == "snapshot"
        await reader.leave()

    asyncio.run(story())
    assert stage.watch.take_bars() == {}


def test_many_devices_share_the_bars_of_a_frame() -> None:
    stage = LiveStage()
    for number in range(64):
        stage.join(f"w{number}", resident=("resnet",))
    stage.watch.reset()
    assert stage.watch.max_bars == MAX_BARS // 128


def test_versions_of_a_model_are_one_line_with_the_pages_of_both() -> None:
    stage = LiveStage(model_spec(), model_spec("vgg"))
    stage.join("w1", resident=("resnet",))
    newer = msgspec.structs.replace(model_spec("resnet/2"), version="2")

    async def story() -> None:
        reader = Reader(stage)
        await reader.start()
        assert (await reader.read()).data["devices"][0]["holds"] == [0, 2, 1]
        stage.dispatcher.feed(ModelAdded(newer))
        stage.dispatcher.feed(ModelOffered("w1", newer))
        stage.ask("a", model="resnet/2")
        stage.finish(took_ms=5)
        stage.finish(took_ms=3)
        await stage.tick()
        assert [bar[2] for bar in (await reader.read()).data["bars"]] == [0, 0]
        await stage.tick()
        again = await reader.read()
        assert again.name == "snapshot"
        assert [model["name"] for model in again.data["models"]] == ["resnet", "vgg"]
        assert again.data["devices"][0]["holds"] == [0, 2, 2]
        await reader.leave()

    asyncio.run(story())
