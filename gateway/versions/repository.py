"""Repository: models are taken out of service and brought back while the gateway runs.

It owns which models an operator has unloaded: in the HTTP side's catalogue one stands with that as
its reason; what workers may serve, the link's own catalogue says. What new versions the directory
has is reloading.py's. It must never choose whose weights make room: it tells the scheduler, and
waits.
"""

import asyncio
from collections.abc import Callable, MutableMapping

import msgspec

from gateway.errors import RequestError
from gateway.metrics.metrics import Metrics
from gateway.versions.reloading import Reloading
from gateway.versions.versions import UNLOADED, scheduled_of
from gateway.views import SchedulerView
from scheduler.device import WeightsState
from scheduler.events import Event, ModelAdded, ModelPinned, ModelUnloaded
from scheduler.spec import ModelSpec

# Beyond the LOAD of any model from the host's memory, and what executes before it.
PATIENCE_S = 20.0
# A LOAD takes milliseconds; nobody waits for these routes in less.
POLL_S = 0.005

_HELD = (WeightsState.LOADING, WeightsState.RESIDENT)


class Loaded(msgspec.Struct, frozen=True):
    """`workers` have the weights now."""

    name: str
    version: str
    state: str
    pinned: bool
    workers: list[str]


class Unloaded(msgspec.Struct, frozen=True):
    """What was given back, by all workers: pages of their weights caches, and bytes of the copies
    from which those are filled. `complete` is false where a batch still executes.
    """

    name: str
    version: str
    state: str
    pages_freed: int
    host_bytes_freed: int
    complete: bool


class Entry(msgspec.Struct, frozen=True):
    """One version of a model in the index; `reason` is empty for one that is READY."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """`specs` is the HTTP side's catalogue; `feed` tells the dispatcher, `on_unload` who else keeps
    something of a model.
    """

    def __init__(
        self,
        specs: MutableMapping[str, ModelSpec],
        feed: Callable[[Event], None],
        scheduler: SchedulerView,
        metrics: Metrics,
        *,
        on_unload: Callable[[str], None] = lambda name: None,
        reloading: Reloading | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Without `reloading` there is no directory to look at: devices are emulated."""
        self._specs = specs
        self._reloading = reloading
        self._feed = feed
        self._scheduler = scheduler
        self._metrics = metrics
        self._on_unload = on_unload
        self._patience_s = patience_s
        # All and only models that were unloaded and not loaded since, as they are served.
        self._unloaded: dict[str, ModelSpec] = {}

    def index(self, *, only_ready: bool = False) -> list[Entry]:
        entries = []
        for spec in self._specs.values():
            reason = spec.unavailable_reason
            if reason is None:
                entries.append(Entry(spec.name, spec.version, "READY", ""))
            elif not only_ready:
                entries.append(Entry(spec.name, spec.version, "UNAVAILABLE", reason))
        if self._reloading is None:
            return entries
        versions = self._reloading.versions
        entries += [Entry(name, version, "READY", "") for name, version in versions.kept]
        if not only_ready:
            entries += [
                Entry(name, problem.version, "UNAVAILABLE", problem.reason)
                for name, problem in versions.problems.items()
                if name not in self._specs or self._specs[name].version != problem.version
            ]
            entries += [
                Entry(name, "", "LOADING", what) for name, what in versions.under_way.items()
            ]
        return entries

    @property
    def reloading(self) -> Reloading:
        """Raises RequestError where there is no directory."""
        if self._reloading is None:
            raise RequestError(
                "not_found", "there is no model repository here: the devices are emulated"
            )
        return self._reloading

    async def refresh(self, name: str) -> None:
        """What the directory has of the model, if that has changed. Raises RequestError."""
        if self._reloading is not None and await self._reloading.is_changed(name):
            await self._reloading.refresh(name)

    async def load(self, spec: ModelSpec, *, is_pinned: bool | None) -> Loaded:
        """Serve it, if it was unloaded, and have its weights resident somewhere before returning.

        `is_pinned` None leaves that as it is. Raises RequestError: model_unavailable,
        larger_than_cache.
        """
        name = spec.name
        original = self._unloaded.get(name) if spec.unavailable_reason == UNLOADED else None
        if original is None and spec.unavailable_reason is not None:
            raise RequestError("model_unavailable", f"model {name}: {spec.unavailable_reason}")
        self._check_size(spec)
        served = spec if original is None else original
        if is_pinned is not None and self._reloading is not None:
            self._reloading.pins[name] = is_pinned
        if is_pinned is not None and is_pinned != served.is_pinned:
            served = msgspec.structs.replace(served, is_pinned=is_pinned)
        self._specs[name] = served
        key = served.key
        if original is not None:
            del self._unloaded[name]
            self._feed(ModelAdded(scheduled_of(served)))
        # Pinned until it is there: that is how the scheduler is told to make room now.
        self._feed(ModelPinned(key, True))
        await self._wait(lambda: bool(self._workers_with(key)) or not self._serves(name, key))
        workers = self._workers_with(key)
        if self._specs[name].unavailable_reason is not None:
            raise RequestError("model_unavailable", f"model {name}: {UNLOADED} meanwhile")
        if not self._serves(name, key):
            raise RequestError(
                "model_unavailable",
                f"model {name}: version {self._specs[name].version} has taken over meanwhile",
            )
        self._feed(ModelPinned(key, self._specs[name].is_pinned))
        if not workers:
            raise RequestError(
                "model_unavailable",
                f"model {name} is served, but no worker had its weights after "
                f"{self._patience_s:g} s: they are loaded for a request as soon as there is room",
            )
        return Loaded(name, served.version, "READY", self._specs[name].is_pinned, workers)

    async def unload(self, spec: ModelSpec) -> Unloaded:
        """Refuse it from now on, and its versions; evict and release it everywhere before
        returning.
        """
        name, key = spec.name, spec.key
        if spec.unavailable_reason is not None:
            return Unloaded(name, spec.version, "UNAVAILABLE", 0, 0, True)
        tallies = self._metrics.of_model(name)
        released_before = tallies.host_bytes_released
        held = {
            worker_id: spec.num_pages(device.spec.page_bytes)
            for worker_id, device in self._scheduler.devices.items()
            if device.weights_state(key) in _HELD
        }
        self._unloaded[name] = spec
        self._specs[name] = msgspec.structs.replace(spec, unavailable_reason=UNLOADED)
        self._on_unload(name)
        self._feed(ModelUnloaded(key))
        if self._reloading is not None:
            self._reloading.forget_kept(name)
        await self._wait(lambda: self._is_gone(key) or self._specs[name].unavailable_reason is None)
        num_pages = sum(
            pages
            for worker_id, pages in held.items()
            if (device := self._scheduler.devices.get(worker_id)) is None
            or device.weights_state(key) is WeightsState.ABSENT
        )
        host_bytes = tallies.host_bytes_released - released_before
        is_complete = self._is_gone(key)
        return Unloaded(name, spec.version, "UNAVAILABLE", num_pages, host_bytes, is_complete)

    def _check_size(self, spec: ModelSpec) -> None:
        devices = [device.spec for device in self._scheduler.devices.values()]
        if all(spec.num_pages(device.page_bytes) > device.total_pages for device in devices):
            largest = max((device.total_pages for device in devices), default=0)
            page_bytes = max((device.page_bytes for device in devices), default=1)
            raise RequestError(
                "larger_than_cache",
                f"{spec.name} needs {spec.num_pages(page_bytes)} pages, "
                f"the largest cache has {largest}",
            )

    def _serves(self, name: str, key: str) -> bool:
        spec = self._specs[name]
        return spec.key == key and spec.unavailable_reason is None

    def _workers_with(self, key: str) -> list[str]:
        return [
            worker_id
            for worker_id, device in self._scheduler.devices.items()
            if device.weights_state(key) is WeightsState.RESIDENT
        ]

    def _is_gone(self, key: str) -> bool:
        return not any(device.keeps(key) for device in self._scheduler.devices.values())

    async def _wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds, or patience ends. The scheduler's state tells nobody that it changes."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._patience_s
        while not condition() and loop.time() < give_up_s:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
