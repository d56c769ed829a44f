"""Models are unloaded and loaded by operators: what clients and the scheduler are told."""

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.http.small_body import MAX_BODY_BYTES
from gateway.versions.repository import UNLOADED, Repository
from scheduler.actions import Code, ReleaseModel, ReleaseResult
from scheduler.device import WeightsState
from scheduler.events import ActionFinished, Event, ModelAdded, ModelPinned, ModelUnloaded, Send
from scheduler.events import Tick as Ticked
from scheduler.spec import DeviceSpec
from tests.gateway.http_doubles import (
    Bench,
    Client,
    PuppetDevice,
    mlp_body,
    model_spec,
    run,
    settle,
)

INDEX = "/v2/repository/index"
LOAD = "/v2/repository/models/mlp/load"
UNLOAD = "/v2/repository/models/mlp/unload"
HOST_BYTES = 20 << 20


class Fleet:
    """A bench whose scheduler is told, and whose worker obeys when the test says so."""

    def __init__(self, *specs: Any, pages: int = 64) -> None:
        self.bench = Bench(*specs)
        self.states: dict[str, WeightsState] = {}
        self.bench.scheduler.devices["w#1-1"] = PuppetDevice(self.states)
        self.bench.scheduler.devices["w#1-1"].spec = DeviceSpec(
            kind="cpu", page_bytes=16 << 20, total_pages=pages, shares_exec_core=False
        )
        self.fed: list[Event] = self.bench.dispatcher.fed

    def obeys(self) -> None:
        """Pins load at once, unloading evicts and releases at once."""

        def on_feed(event: Event) -> None:
            if isinstance(event, ModelPinned) and event.is_pinned:
                self.states[event.model] = WeightsState.RESIDENT
            elif isinstance(event, ModelUnloaded):
                self.evict(event.model)

        self.bench.dispatcher.on_feed = on_feed

    def evict(self, model: str) -> None:
        self.states.pop(model, None)
        self.bench.metrics.on_commands(
            Ticked(), [Send("w#1-1", ReleaseModel(9, model, 0, 1))], self.bench.clock.now
        )
        result = ReleaseResult(9, Code.OK, "", 0, HOST_BYTES)
        self.bench.metrics.on_event(ActionFinished("w#1-1", result), self.bench.clock.now)

    async def post(self, path: str, body: Any = b"") -> Client:
        client = await self.bench.post(body, path=path)
        for _ in range(50):
            if client.is_answered:
                break
            await asyncio.sleep(0.005)
        return client


def test_the_index_says_who_is_served_and_why_another_is_not() -> None:
    async def story() -> None:
        fleet = Fleet(model_spec(), model_spec("bad", unavailable_reason="not ONNX"))
        ready = {"name": "mlp", "version": "1", "state": "READY", "reason": ""}
        bad = {"name": "bad", "version": "1", "state": "UNAVAILABLE", "reason": "not ONNX"}
        assert (await fleet.post(INDEX)).json == [ready, bad]
        assert (await fleet.post(INDEX, {})).json == [ready, bad]
        assert (await fleet.post(INDEX, {"ready": True})).json == [ready]

    run(story)


def test_unloading_tells_what_it_gave_back_and_loading_brings_it_back() -> None:
    async def story() -> None:
        fleet = Fleet()
        fleet.obeys()
        fleet.states["mlp"] = WeightsState.RESIDENT
        client = await fleet.post(UNLOAD, {"parameters": {"unload_dependents": False}})
        assert client.status == 200
        assert client.json == {
            "name": "mlp",
            "version": "1",
            "state": "UNAVAILABLE",
            "pages_freed": 2,
            "host_bytes_freed": HOST_BYTES,
            "complete": True,
        }
        assert fleet.fed == [ModelUnloaded("mlp")]
        refused = await fleet.bench.post(mlp_body())
        assert (refused.status, refused.json["reason"]) == (503, "model_unavailable")
        assert refused.json["error"] == f"model mlp: {UNLOADED}"
        assert (await fleet.post(INDEX)).json[0]["reason"] == UNLOADED
        assert (await fleet.bench.get("/v2/models/mlp/ready")).status == 503
        assert (await fleet.bench.get("/models/mlp")).json["unavailable_reason"] == UNLOADED
        again = await fleet.post(UNLOAD)
        assert (again.status, again.json["pages_freed"]) == (200, 0)

        del fleet.fed[:]
        client = await fleet.post(LOAD, {})
        assert client.json == {
            "name": "mlp",
            "version": "1",
            "state": "READY",
            "pinned": False,
            "workers": ["w#1-1"],
        }
        spec = fleet.bench.catalog["mlp"]
        assert spec == model_spec()
        assert fleet.fed == [
            ModelAdded(spec),
            ModelPinned("mlp", True),
            ModelPinned("mlp", False),
        ]
        await fleet.bench.post(mlp_body())
        assert len(fleet.bench.dispatcher.submitted) == 1

    run(story)


@pytest.mark.parametrize(
    ("path", "body"), [(LOAD, {"parameters": {"pinned": True}}), (f"{LOAD}?pinned=true", b"")]
)
def test_a_model_that_is_served_is_made_resident_and_stays_so_if_asked(
    path: str, body: Any
) -> None:
    async def story() -> None:
        fleet = Fleet()
        fleet.obeys()
        client = fleet.bench.client()
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        client.start("POST", path, {"content-length": str(len(data))})
        client.give(data)
        assert client.task is not None
        await client.task
        assert (client.status, client.json["pinned"]) == (200, True)
        assert fleet.fed == [ModelPinned("mlp", True), ModelPinned("mlp", True)]
        assert fleet.bench.catalog["mlp"].is_pinned
        assert (await fleet.post(LOAD)).json["pinned"] is True, "as it was"
        client = await fleet.post(LOAD, {"parameters": {"pinned": False}})
        assert client.json["pinned"] is False
        assert fleet.fed[-1] == ModelPinned("mlp", False)

    run(story)


def test_unloading_waits_for_what_executes() -> None:
    async def story() -> None:
        fleet = Fleet()
        fleet.states["mlp"] = WeightsState.RESIDENT
        client = await fleet.bench.post(b"", path=UNLOAD)
        await asyncio.sleep(0.02)
        assert not client.is_answered
        assert fleet.bench.catalog["mlp"].unavailable_reason == UNLOADED
        fleet.evict("mlp")
        assert client.task is not None
        await client.task
        assert (client.json["pages_freed"], client.json["complete"]) == (2, True)

    run(story)


def test_patience_ends() -> None:
    async def story() -> None:
        fleet = Fleet()
        bench = fleet.bench
        repository = Repository(
            bench.catalog, bench.dispatcher.feed, bench.scheduler, bench.metrics, patience_s=0.01
        )
        fleet.states["mlp"] = WeightsState.RESIDENT
        told = await repository.unload(bench.catalog["mlp"])
        assert (told.pages_freed, told.host_bytes_freed, told.complete) == (0, 0, False)
        fleet.states.clear()
        with pytest.raises(Exception, match="is served, but no worker had its weights"):
            await repository.load(bench.catalog["mlp"], is_pinned=None)
        assert fleet.fed[-1] == ModelPinned("mlp", False)
        assert bench.catalog["mlp"].unavailable_reason is None

    run(story)


def test_a_worker_that_is_lost_has_given_all_back() -> None:
    async def story() -> None:
        fleet = Fleet()
        fleet.states["mlp"] = WeightsState.RESIDENT
        client = await fleet.bench.post(b"", path=UNLOAD)
        del fleet.bench.scheduler.devices["w#1-1"]
        assert client.task is not None
        await client.task
        assert (client.json["pages_freed"], client.json["complete"]) == (2, True)

    run(story)


def test_one_that_is_unloaded_while_it_loads_says_so() -> None:
    async def story() -> None:
        fleet = Fleet()
        loading = await fleet.bench.post(b"", path=LOAD)
        await settle()
        assert not loading.is_answered
        await fleet.post(UNLOAD)
        assert loading.task is not None
        await loading.task
        assert (loading.status, loading.json["reason"]) == (503, "model_unavailable")
        assert loading.json["error"] == f"model mlp: {UNLOADED} meanwhile"
        assert fleet.fed[-1] == ModelUnloaded("mlp")

    run(story)


@pytest.mark.parametrize(
    ("path", "body", "status", "reason", "told"),
    [
        ("/v2/repository/models/nope/load", b"", 404, "not_found", "no model 'nope'"),
        ("/v2/repository/models/nope/unload", b"", 404, "not_found", "no model 'nope'"),
        ("/v2/repository/models/bad/load", b"", 503, "model_unavailable", "bad: not ONNX"),
        (LOAD, {"parameters": {"config": "{}"}}, 400, "bad_request", "parameters config: this"),
        (UNLOAD, {"parameters": {"pinned": True}}, 400, "bad_request", "parameters pinned: this"),
        (LOAD, {"parameters": {"pinned": 3}}, 400, "bad_request", "pinned is '3': expected true"),
        (LOAD, {"parameters": {"pinned": "false"}}, 400, "bad_request", "without quotes"),
        (LOAD, {"parameters": {"pinned": []}}, 400, "bad_request", "pinned is '[]': expected true"),
        (f"{LOAD}?pinned=maybe", {"parameters": {"pinned": True}}, 400, "bad_request", "'maybe'"),
        (UNLOAD, {"parameters": {"unload_dependents": []}}, 400, "bad_request", "'[]': expected"),
        (LOAD, b"{", 400, "bad_request", "the body is not what this route takes"),
        (LOAD, [1], 400, "bad_request", "the body is not what this route takes"),
        (INDEX, b"[" * 60_000, 400, "bad_request", "the body is not what this route takes"),
        (INDEX, b'"\xff"', 400, "bad_request", "the body is not what this route takes"),
        (INDEX, bytes(MAX_BODY_BYTES + 1), 413, "too_large", "over 65536 bytes"),
        ("/v2/repository/models/big/load", b"", 422, "larger_than_cache", "needs 2 pages"),
    ],
)
def test_refusals_name_the_thing(path: str, body: Any, status: int, reason: str, told: str) -> None:
    async def story() -> None:
        bad = model_spec("bad", unavailable_reason="not ONNX")
        fleet = Fleet(model_spec(), bad, model_spec("big"), pages=1)
        client = await fleet.post(path, body)
        assert (client.status, client.json["reason"]) == (status, reason)
        assert told in client.json["error"]
        assert client.headers["content-type"] == "application/json"
        assert fleet.fed == []

    run(story)


def test_without_a_worker_nothing_is_loaded() -> None:
    async def story() -> None:
        bench = Bench()
        client = await bench.post(b"", path=LOAD)
        assert (client.status, client.json["reason"]) == (503, "no_worker")
        assert bench.dispatcher.fed == []

    run(story)


def test_a_broken_model_can_be_unloaded_as_it_never_was_loaded() -> None:
    async def story() -> None:
        fleet = Fleet(model_spec("bad", unavailable_reason="not ONNX"))
        client = await fleet.post("/v2/repository/models/bad/unload")
        assert (client.status, client.json["pages_freed"]) == (200, 0)
        assert fleet.fed == []
        assert fleet.bench.catalog["bad"].unavailable_reason == "not ONNX"

    run(story)
