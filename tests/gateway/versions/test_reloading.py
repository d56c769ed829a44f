"""A version takes over step by step, on a clock driven by hand; what fails changes nothing.

The scheduler is the real one; workers and compiler are puppets that do what the test has said.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from gateway.errors import RequestError
from gateway.metrics.metrics import Metrics
from gateway.versions.reloading import READY_PATIENCE_S, SETTLE_PATIENCE_S, Reloading
from gateway.versions.repository_watch import states_of
from gateway.versions.versions import UNLOADED, Versions, scheduled_of, shown_of, versions_of
from gateway.workers.supervisor import CompileError
from scheduler.actions import (
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    ReleaseResult,
    Result,
    Span,
)
from scheduler.events import (
    ActionFinished,
    Event,
    ModelAdded,
    ModelForgotten,
    ModelOffered,
    ModelStaged,
    ModelUnloaded,
    RequestArrived,
    Send,
    StagingEnded,
    WorkerJoined,
)
from scheduler.scheduler import Scheduler
from scheduler.spec import SECOND_NS, ModelSpec
from tests.gateway.doubles import device_spec, model_spec

WORKER = "w#1-1"


def version(number: str, *, content: str | None = None, name: str = "m") -> ModelSpec:
    spec = model_spec(name, content_hash=content or f"content {number}")
    return msgspec.structs.replace(spec, version=number)


class World:
    """A gateway's middle: time passes only when somebody sleeps."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        keep: int = 1,
        resident: bool = True,
        is_ours: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.path = tmp_path
        self.now_s = 1000.0
        first = version("1")
        self.versions = Versions({"m": first}, {"m": first})
        self.scheduler = Scheduler(None, [first])
        self.fed: list[Event] = []
        self.sent: list[Send] = []
        self.asked: list[str] = []  # of workers, by the link
        self.dropped: list[str] = []
        self.answers: dict[str, dict[str, tuple[str, bool]]] = {}
        self.offers = True  # at once, what they are asked for
        self.code_of_trials = Code.OK
        self.in_repository: dict[str, ModelSpec | CompileError] = {}
        self.on_sleep: list[Callable[[], None]] = []
        self.metrics = Metrics(version="1", page_bytes=1 << 24)
        self.reloading = Reloading(
            self.versions,
            models_dir=tmp_path,
            keep=keep,
            feed=self.feed,
            scheduler=self.scheduler,
            link=self,
            metrics=self.metrics,
            compile_model=self.compile,
            is_ours=is_ours,
            sleep=self.sleep,
            clock=lambda: self.now_s,
        )
        self.feed(WorkerJoined(WORKER, device_spec(), (first,), ("m",) if resident else ()))
        self.put("m", first)
        self.fed.clear()

    def put(self, name: str, found: ModelSpec | CompileError) -> None:
        """Another file in the repository, of which compiling makes this."""
        self.in_repository[name] = found
        file = self.path / name / "1" / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{len(self.in_repository)} {found!r}")

    async def compile(self, name: str) -> ModelSpec:
        found = self.in_repository[name]
        if isinstance(found, CompileError):
            raise found
        return found

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.obey()
        for act in list(self.on_sleep):
            act()
        await asyncio.sleep(0)

    def feed(self, event: Event) -> None:
        self.fed.append(event)
        self.metrics.on_event(event, self.now_ns)
        commands = self.scheduler.handle(event, self.now_ns)
        self.metrics.on_commands(event, commands, self.now_ns)
        self.sent += [command for command in commands if isinstance(command, Send)]

    @property
    def now_ns(self) -> int:
        return max(int(self.now_s * SECOND_NS), self.scheduler.now)

    def obey(self) -> None:
        """The worker does all that it was sent."""
        while self.sent:
            send = self.sent.pop(0)
            self.feed(ActionFinished(send.worker_id, self._result(send)))

    def _result(self, send: Send) -> Result:
        action, span = send.action, Span(self.now_ns - 1000, self.now_ns, 1000)
        if isinstance(action, Infer):
            code = Code.OK if action.request_ids else self.code_of_trials
            return InferResult(action.action_id, code, "told so", 0, span, span, span)
        if isinstance(action, LoadWeights):
            return LoadResult(action.action_id, Code.OK, "", 0, span)
        if isinstance(action, EvictWeights):
            return EvictResult(action.action_id, Code.OK)
        return ReleaseResult(action.action_id, Code.OK, host_bytes=1000)

    # the link

    def add_model(self, spec: ModelSpec) -> None:
        self.asked.append(spec.name)
        self.answers[spec.name] = {"w": ("", False)}
        if self.offers:
            self.offer(spec)

    def offer(self, spec: ModelSpec) -> None:
        self.answers[spec.name].pop("w", None)
        self.feed(ModelOffered(WORKER, spec))

    def drop_model(self, name: str) -> None:
        self.dropped.append(name)

    def awaited_of(self, name: str) -> dict[str, tuple[str, bool]]:
        return self.answers.get(name, {})

    # looking

    def kinds(self) -> list[type]:
        return [type(event) for event in self.fed if not isinstance(event, ActionFinished)]

    @property
    def serving(self) -> ModelSpec:
        return self.versions.serving["m"]

    async def until_quiet(self) -> None:
        """What was left to be done in the background is done."""
        while self.reloading._tasks:
            await self.sleep(0.02)


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await story()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Lets threads and tasks run; no clock of the story moves by it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def refused(error: pytest.ExceptionInfo[RequestError]) -> tuple[str, str]:
    return error.value.reason, error.value.detail


def test_a_version_is_compiled_made_ready_loaded_tried_and_then_serves(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.put("m", version("2"))
        told = await world.reloading.refresh("m")
        assert (told.version, told.outcome, told.previous_version) == ("2", "reloaded", "1")
        assert told.kept_versions == ["1"]
        assert world.asked == ["m/2"]
        assert world.kinds()[:4] == [ModelAdded, ModelOffered, ModelStaged, StagingEnded]
        device = world.scheduler.devices[WORKER]
        assert device.is_resident("m/2")
        assert device.is_resident("m"), "it is kept, and nobody has needed its pages"
        assert world.serving == shown_of(scheduled_of(world.serving))
        assert (world.serving.name, world.serving.key) == ("m", "m/2")
        assert world.versions.kept == {("m", "1"): version("1")}
        assert versions_of(world.serving, world.versions.kept) == ("2", "1")
        assert (await world.reloading.refresh("m")).outcome == "unchanged"

    play(story)


def test_going_back_and_forth_needs_no_compiler_and_no_new_name(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.put("m", version("2"))
        await world.reloading.refresh("m")
        world.fed.clear()
        told = await world.reloading.rollback("m")
        assert (told.version, told.outcome, told.kept_versions) == ("1", "rolled_back", ["2"])
        assert ModelAdded not in world.kinds()
        assert (await world.reloading.refresh("m")).version == "2"
        assert world.asked == ["m/2"]
        assert (await world.reloading.rollback("m")).version == "1"

    play(story)


def test_only_so_many_versions_are_kept_and_the_others_are_forgotten(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        for number in ("2", "3"):
            world.put("m", version(number))
            await world.reloading.refresh("m")
        await world.until_quiet()
        assert world.kinds()[-2:] == [ModelUnloaded, ModelForgotten]
        assert world.dropped == ["m"]
        assert set(world.versions.scheduled) == set(world.scheduler.models) == {"m/2", "m/3"}
        assert set(world.scheduler.devices[WORKER].offered) == {"m/2", "m/3"}
        assert world.versions.kept_of("m")[0].version == "2"
        assert world.metrics.models["m"].host_bytes_released == 1000
        world.put("m", version("4"))
        await world.reloading.refresh("m")
        assert world.serving.key == "m", "a name that nobody has any more"

    play(story)


def test_who_waits_for_the_old_version_is_answered_by_it_before_it_goes(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path, keep=0)
        world.put("m", version("2"))
        world.offers = False

        def arrive_late() -> None:
            if world.asked and not world.scheduler.queue_depth("m"):
                now = world.now_ns
                for number in range(4):
                    request = RequestArrived(number, "m", now, now + 60 * SECOND_NS)
                    world.feed(request)
                world.on_sleep.clear()
                world.offer(msgspec.structs.replace(version("2"), name="m/2"))

        world.on_sleep.append(arrive_late)
        await world.reloading.refresh("m")
        await world.until_quiet()
        assert world.scheduler.open_request_ids() == []
        assert ModelUnloaded in world.kinds()
        assert world.scheduler.anomalies == {}

    play(story)


def test_a_broken_version_changes_nothing_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        world = World(tmp_path)
        broken = msgspec.structs.replace(version("2"), unavailable_reason="not ONNX")
        world.put("m", broken)
        for _ in range(2):
            with pytest.raises(RequestError) as error:
                await world.reloading.refresh("m")
        assert refused(error) == (
            "model_unavailable",
            "model m: version 2 cannot be served: not ONNX; version 1 goes on serving",
        )
        assert world.serving == version("1")
        assert world.fed == []
        assert world.versions.problems["m"] == ("2", "not ONNX")
        world.put("m", version("2", content="mended"))
        await world.reloading.refresh("m")
        assert world.versions.problems == {}

    with caplog.at_level(logging.WARNING):
        play(story)
    assert sum("not ONNX" in line for line in caplog.messages) == 1


def test_a_compiler_that_dies_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.put("m", CompileError("compiling ended with signal 9", exit_code=1))
        with pytest.raises(RequestError, match="what is in the repository cannot be served"):
            await world.reloading.refresh("m")
        assert world.versions.under_way == {}

    play(story)


def test_a_version_that_fails_its_trial_does_not_take_over(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.code_of_trials = Code.ENGINE_ERROR
        world.put("m", version("2"))
        with pytest.raises(RequestError, match="a batch of 1 failed on w#1-1: told so"):
            await world.reloading.refresh("m")
        assert world.serving == version("1")
        await world.until_quiet()
        assert set(world.scheduler.models) == {"m"}
        assert world.dropped == ["m/2"]

    play(story)


def test_a_version_that_no_worker_can_serve_does_not_take_over(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.offers = False
        world.put("m", version("2"))

        def answer() -> None:
            world.answers["m/2"]["w"] = ("no such operator", True)

        world.on_sleep.append(lambda: answer() if world.asked else None)
        with pytest.raises(RequestError, match="no worker can serve it: w: no such operator"):
            await world.reloading.refresh("m")
        assert world.serving == version("1")

    play(story)


def test_a_worker_that_waits_for_its_copy_is_waited_for_until_patience_ends(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.offers = False
        world.put("m", version("2"))
        world.on_sleep.append(
            lambda: world.answers.update({"m/2": {"w": ("nothing is here", False)}})
        )
        begin_s = world.now_s
        world.reloading._sleep = _leaping(world)
        with pytest.raises(RequestError, match=r"no worker had it after 3600 s: w: nothing is"):
            await world.reloading.refresh("m")
        assert world.now_s - begin_s >= READY_PATIENCE_S

    play(story)


def test_one_that_never_has_an_idle_moment_takes_over_all_the_same(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.code_of_trials = Code.TOO_LATE
        world.put("m", version("2"))
        begin_s = world.now_s
        assert (await world.reloading.refresh("m")).version == "2"
        assert world.now_s - begin_s >= SETTLE_PATIENCE_S

    play(story)


def test_a_model_that_is_cold_is_not_loaded_to_be_replaced(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path, resident=False)
        world.put("m", version("2"))
        await world.reloading.refresh("m")
        assert not world.scheduler.devices[WORKER].weights

    play(story)


def test_a_new_model_serves_under_its_plain_name(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        with pytest.raises(RequestError, match="no model 'n' is served here"):
            await world.reloading.refresh("n")
        world.put("n", msgspec.structs.replace(version("1", name="n"), unavailable_reason="no"))
        with pytest.raises(RequestError):
            await world.reloading.refresh("n")
        assert world.versions.serving["n"].unavailable_reason == "no"
        world.put("n", version("1", name="n"))
        told = await world.reloading.refresh("n")
        assert (told.outcome, told.previous_version, told.kept_versions) == ("reloaded", None, [])
        assert world.versions.serving["n"].key == "n"

    play(story)


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\0b"])
def test_what_is_no_models_name_never_reaches_a_file(tmp_path: Path, name: str) -> None:
    async def story() -> None:
        with pytest.raises(RequestError, match="is no model's name"):
            await World(tmp_path).reloading.refresh(name)

    play(story)


def test_one_that_is_unloaded_meanwhile_stays_so(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.put("m", version("2"))

        def unload() -> None:
            if world.asked:
                gone = msgspec.structs.replace(version("1"), unavailable_reason=UNLOADED)
                world.versions.serving["m"] = gone

        world.on_sleep.append(unload)
        with pytest.raises(RequestError, match="unloaded or loaded meanwhile"):
            await world.reloading.refresh("m")
        assert world.serving.unavailable_reason == UNLOADED

    play(story)


def test_the_directory_is_watched_and_what_an_operator_unloaded_stays_so(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.reloading.start(states_of(tmp_path))
        watching = asyncio.create_task(world.reloading.watch(5.0))
        world.put("m", version("2"))

        async def looked(times: int) -> None:
            for _ in range(times):
                end_s = world.now_s + 5.0
                await until(lambda end_s=end_s: world.now_s >= end_s)  # type: ignore[misc]

        await until(lambda: world.serving.version == "2")
        gone = msgspec.structs.replace(world.serving, unavailable_reason=UNLOADED)
        world.versions.serving["m"] = gone
        world.put("m", version("3"))
        await looked(4)
        assert world.serving == gone
        assert await world.reloading.is_changed("m")
        watching.cancel()
        await world.reloading.close()

    play(story)


def test_models_of_other_replicas_are_neither_taken_nor_reloaded(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path, is_ours=lambda name: name == "m")
        world.reloading.start(states_of(tmp_path))
        watching = asyncio.create_task(world.reloading.watch(5.0))
        world.put("theirs", version("1"))
        world.put("m", version("2"))
        await until(lambda: world.serving.version == "2")
        with pytest.raises(RequestError, match="model theirs is of another replica"):
            await world.reloading.refresh("theirs")
        assert list(world.versions.serving) == ["m"]
        watching.cancel()
        await world.reloading.close()

    play(story)


def test_files_that_do_not_stop_changing_are_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)

        def grow() -> None:
            world.put("m", version("2"))
            world.in_repository[str(world.now_s)] = version("2")  # each file is longer

        world.on_sleep.append(grow)
        with pytest.raises(RequestError, match="its files still change after 60 s"):
            await world.reloading.refresh("m")

    play(story)


def test_what_is_under_way_when_the_gateway_stops_is_taken_back(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        world.offers = False
        world.put("m", version("2"))
        world.reloading._run(world.reloading.refresh("m"))
        await until(lambda: bool(world.asked))
        await world.reloading.close()
        assert world.versions.under_way == {}
        assert world.serving == version("1")

    play(story)


def test_a_background_fault_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def break_down() -> None:
        raise ValueError("a bug of ours")

    async def story() -> None:
        world = World(tmp_path)
        world.reloading._run(break_down())
        await world.until_quiet()

    play(story)
    assert "reloading broke" in caplog.text


def _leaping(world: World) -> Callable[[float], Awaitable[None]]:
    """Each sleep takes a minute."""

    async def sleep(_: float) -> None:
        await world.sleep(60.0)

    return sleep
