"""Reloading: a version from the repository takes over, or the one before comes back.

It owns the order of it: compiled, made ready by the workers, loaded and tried beside the old one,
served, and the old one kept or forgotten after its last request (adr/0012). Whatever fails on the
way leaves what serves as it was, and is said once. It must never compile, load or decide itself.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.errors import RequestError
from gateway.metrics.metrics import Metrics
from gateway.versions.repository_watch import RepositoryWatch, State, state_of, states_of
from gateway.versions.versions import (
    UNLOADED,
    Problem,
    Versions,
    is_scheduled,
    scheduled_of,
    shown_of,
)
from gateway.views import SchedulerView
from gateway.workers.supervisor import CompileError
from scheduler.events import (
    Event,
    ModelAdded,
    ModelForgotten,
    ModelPinned,
    ModelStaged,
    ModelUnloaded,
    StagingEnded,
)
from scheduler.spec import ModelSpec

logger = logging.getLogger(__name__)

# How often the scheduler's state is looked at, which tells nobody that it changes.
POLL_S = 0.02
# Workers elsewhere get their copies of the repository when they get them, and TensorRT compiles.
READY_PATIENCE_S = 3600.0
# A device that has not one idle moment in so long will have none: requests measure it then.
SETTLE_PATIENCE_S = 30.0
# Between two looks at a directory that somebody says is complete, and until we doubt it.
SETTLE_LOOK_S = 0.25
COPY_PATIENCE_S = 60.0


class Reloaded(msgspec.Struct, frozen=True):
    """`outcome` is "reloaded", "rolled_back", or "unchanged" where what serves is what is there."""

    name: str
    version: str
    outcome: str
    previous_version: str | None
    kept_versions: list[str]
    took_ms: float


class Link(Protocol):
    """gateway.workers.link.WorkerLink."""

    def add_model(self, spec: ModelSpec) -> None: ...
    def drop_model(self, name: str) -> None: ...
    def awaited_of(self, name: str) -> Mapping[str, tuple[str, bool]]: ...


# The spec of a model's highest version, compiled. Raises CompileError.
Compile = Callable[[str], Awaitable[ModelSpec]]


class _Failed(Exception):
    """The version cannot take over."""


class Reloading:
    """`keep` versions before the one that serves are kept of each model."""

    def __init__(
        self,
        versions: Versions,
        *,
        models_dir: Path,
        keep: int,
        feed: Callable[[Event], None],
        scheduler: SchedulerView,
        link: Link,
        metrics: Metrics,
        compile_model: Compile,
        is_ours: Callable[[str], bool] = lambda _: True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.versions = versions
        self._models_dir = models_dir
        self._keep = keep
        self._feed = feed
        self._scheduler = scheduler
        self._link = link
        self._metrics = metrics
        self._compile_model = compile_model
        self._is_ours = is_ours
        self._sleep = sleep
        self._clock = clock
        self._watch = RepositoryWatch({})
        self._compiling = asyncio.Lock()  # one at a time: it is a whole core's work
        self._locks: dict[str, asyncio.Lock] = {}  # one change of a model at a time
        self._tasks: set[asyncio.Task[object]] = set()
        self._unloaded_and_changed: set[str] = set()
        # Pins by an operator, which outlive the version that was pinned.
        self.pins: dict[str, bool] = {}

    def start(self, states: Mapping[str, State]) -> None:
        """The repository was as it is served now when it was so."""
        self._watch = RepositoryWatch(states)

    async def watch(self, interval_s: float) -> None:
        """Looks at the repository for ever, and has taken what is new and complete."""
        while True:
            await self._sleep(interval_s)
            states = await asyncio.to_thread(states_of, self._models_dir)
            for name in filter(self._is_ours, self._watch.look(states)):
                serving = self.versions.serving.get(name)
                if serving is not None and serving.unavailable_reason == UNLOADED:
                    self._unloaded_and_changed.add(name)  # for who loads it
                else:
                    self._run(self._refresh_quietly(name))

    async def close(self) -> None:
        """Ends what is under way; what serves goes on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def is_changed(self, name: str) -> bool:
        """Whether the repository has something else of a model than when it was last looked at."""
        state = await asyncio.to_thread(state_of, self._models_dir / name)
        return name in self._unloaded_and_changed or self._watch.is_changed(name, state)

    async def refresh(self, name: str) -> Reloaded:
        """Has the highest version in the repository serve, as soon as its files are complete.

        Raises RequestError: not_found, model_unavailable; what served goes on serving then.
        """
        if name.startswith(".") or "/" in name or "\0" in name:
            raise RequestError("not_found", f"{name[:200]!r} is no model's name")
        if not self._is_ours(name):
            raise RequestError("not_found", f"model {name[:200]} is of another replica")
        async with self._lock_of(name):
            await self._take_when_complete(name)
            return await self._refresh(name)

    async def rollback(self, name: str) -> Reloaded:
        """Has the version before serve again. Raises RequestError: not_found, model_unavailable."""
        async with self._lock_of(name):
            before = self.versions.kept_of(name)
            if not before:
                raise RequestError(
                    "not_found",
                    f"model {name} has no version to go back to: none has served before this one,"
                    f" or none is kept (--keep-versions {self._keep})",
                )
            return await self._bring(before[0], "rolled_back", self._clock())

    def forget_kept(self, name: str) -> None:
        """The model is unloaded: so is what was kept of it."""
        for spec in self.versions.drop_beyond(name, 0):
            self._run(self._retire(spec))

    async def _refresh_quietly(self, name: str) -> None:
        try:
            async with self._lock_of(name):
                await self._refresh(name)
        except RequestError:
            pass  # it was logged, and the index says it

    async def _refresh(self, name: str) -> Reloaded:
        begin_s = self._clock()
        self.versions.under_way[name] = "it is compiled"
        try:
            async with self._compiling:
                found = await self._compile_model(name)
        except CompileError as error:
            raise self._problem(name, "", str(error)) from error
        finally:
            del self.versions.under_way[name]
        reason = found.unavailable_reason
        serving = self.versions.serving.get(name)
        if reason is not None:
            if serving is None and found.version:
                self.versions.serving[name] = found  # shown, with its reason
            raise self._problem(name, found.version, reason)
        if serving is not None and is_scheduled(serving) and _is_same(serving, found):
            self.versions.problems.pop(name, None)
            return self._told(name, "unchanged", serving.version, begin_s)
        kept = self.versions.with_content(name, found.content_hash)
        if kept is not None:
            return await self._bring(kept, "reloaded", begin_s)
        key = self.versions.new_key(name, found.version)
        pinned = self.pins.get(name, found.is_pinned)
        return await self._bring(
            shown_of(msgspec.structs.replace(found, name=key, is_pinned=pinned)),
            "reloaded",
            begin_s,
        )

    async def _bring(self, spec: ModelSpec, outcome: str, begin_s: float) -> Reloaded:
        """The version takes over, new or kept."""
        name, key = spec.name, spec.key
        old = self.versions.serving.get(name)
        replaced = old.key if old is not None and is_scheduled(old) else ""
        is_new = spec not in self.versions.kept_of(name)
        self.versions.under_way[name] = f"version {spec.version} is made ready"
        if is_new:
            scheduled = self.versions.scheduled[key] = scheduled_of(spec)
            self._feed(ModelAdded(scheduled))
            self._link.add_model(scheduled)
        try:
            await self._until_ready(key)
            self._feed(ModelStaged(key, replaced))
            await self._until_settled(key)
            now = self.versions.serving.get(name)
            if _identity(now) != _identity(old):
                raise _Failed("the model was unloaded or loaded meanwhile")
        except (_Failed, asyncio.CancelledError) as error:
            self._feed(StagingEnded(key))
            if is_new:
                self._run(self._retire(spec))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise self._problem(name, spec.version, str(error)) from error
        finally:
            del self.versions.under_way[name]
        self.versions.take_over(spec)
        if (
            old is not None
            and not replaced
            and old.key in self.versions.scheduled
            and key != old.key
        ):
            self._run(self._retire(old))  # an operator had unloaded it
        self.versions.problems.pop(name, None)
        self._feed(StagingEnded(key))
        if replaced:
            self._feed(ModelPinned(replaced, False))
        self._feed(ModelPinned(key, spec.is_pinned))
        for surplus in self.versions.drop_beyond(name, self._keep):
            self._run(self._retire(surplus))
        previous = old.version if old is not None and replaced else None
        self._metrics.reloads[name, outcome] += 1
        logger.warning("model %s: version %s serves (before: %s)", name, spec.version, previous)
        return self._told(name, outcome, previous, begin_s)

    async def _until_ready(self, key: str) -> None:
        """A worker offers it, and every other has answered. Raises _Failed."""
        give_up_s = self._clock() + READY_PATIENCE_S
        while True:
            answers = self._link.awaited_of(key)
            is_offered = any(device.offers(key) for device in self._scheduler.devices.values())
            if is_offered and all(why for why, _ in answers.values()):
                return
            told = "; ".join(f"{worker}: {why}" for worker, (why, _) in answers.items() if why)
            if not is_offered and answers and all(final for _, final in answers.values()):
                raise _Failed(f"no worker can serve it: {told}")
            if self._clock() >= give_up_s:
                if is_offered:
                    return
                raise _Failed(f"no worker had it after {READY_PATIENCE_S:g} s: {told or 'silence'}")
            await self._sleep(POLL_S)

    async def _until_settled(self, key: str) -> None:
        """Its weights are where the old ones are, and it was tried. Raises _Failed."""
        give_up_s = self._clock() + SETTLE_PATIENCE_S
        while True:
            is_settled, problem = self._scheduler.staging_of(key)
            if problem is not None:
                raise _Failed(problem)
            if is_settled or self._clock() >= give_up_s:
                return
            await self._sleep(POLL_S)

    async def _retire(self, spec: ModelSpec) -> None:
        """Forgets a version for good, after its last request."""
        key = spec.key
        await self._sleep(POLL_S)  # whoever was let in this turn of the loop is queued by then
        while key in self._scheduler.models and self._scheduler.queue_depth(key):
            await self._sleep(POLL_S)
        before = self._metrics.of_model(key).host_bytes_released
        if key in self._scheduler.models:
            self._feed(ModelUnloaded(key))
        while any(device.keeps(key) for device in self._scheduler.devices.values()):
            await self._sleep(POLL_S)
        self.versions.scheduled.pop(key, None)
        self._link.drop_model(key)
        self._feed(ModelForgotten(key))
        freed = self._metrics.of_model(key).host_bytes_released - before
        self._metrics.forget_version(key)
        logger.info("model %s: version %s is forgotten, %d bytes freed", spec.name, key, freed)

    async def _take_when_complete(self, name: str) -> None:
        """Until two looks in a row see the same. Raises RequestError for what is not there."""
        directory = self._models_dir / name
        give_up_s = self._clock() + COPY_PATIENCE_S
        state = await asyncio.to_thread(state_of, directory)
        if not state and name not in self.versions.serving:
            raise RequestError(
                "not_found", f"no model {name[:200]!r} is served here, nor is one in the repository"
            )
        while self._watch.is_changed(name, state):
            await self._sleep(SETTLE_LOOK_S)
            before, state = state, await asyncio.to_thread(state_of, directory)
            if before == state:
                break
            if self._clock() >= give_up_s:
                raise self._problem(name, "", f"its files still change after {COPY_PATIENCE_S:g} s")
        self._watch.take(name, state)
        self._unloaded_and_changed.discard(name)

    def _problem(self, name: str, version: str, reason: str) -> RequestError:
        """Notes and logs it, once."""
        problem = Problem(version, reason)
        serving = self.versions.serving.get(name)
        goes_on = ""
        if serving is not None and is_scheduled(serving):
            goes_on = f"; version {serving.version} goes on serving"
        what = f"version {version}" if version else "what is in the repository"
        detail = f"model {name}: {what} cannot be served: {reason}{goes_on}"
        if self.versions.problems.get(name) != problem:
            self.versions.problems[name] = problem
            self._metrics.reloads[name, "failed"] += 1
            logger.warning("%s", detail)
        return RequestError("model_unavailable", detail)

    def _told(self, name: str, outcome: str, previous: str | None, begin_s: float) -> Reloaded:
        return Reloaded(
            name,
            self.versions.serving[name].version,
            outcome,
            previous,
            [spec.version for spec in self.versions.kept_of(name)],
            round((self._clock() - begin_s) * 1000, 3),
        )

    def _lock_of(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _run(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("reloading broke", exc_info=task.exception())


def _identity(spec: ModelSpec | None) -> tuple[str, bool] | None:
    return None if spec is None else (spec.key, is_scheduled(spec))


def _is_same(one: ModelSpec, other: ModelSpec) -> bool:
    return (one.version, one.content_hash) == (other.version, other.content_hash)
