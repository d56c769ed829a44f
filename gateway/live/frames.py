"""LiveSampler: what the live page is told, read from what others own.

It reads the catalogue, metrics, the scheduler's devices and LiveWatch, and owns the indexes that
stand for models and devices. It must never hold the event loop: a sample of a thousand models is
made in parts, and others run in between.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from gateway.live.messages import (
    LiveBar,
    LiveCounts,
    LiveDevice,
    LiveFigures,
    LiveFrame,
    LiveModel,
    LiveRequest,
    LiveScaling,
    LiveSnapshot,
)
from gateway.live.watch import LiveWatch
from gateway.metrics.metrics import Metrics, name_of
from gateway.metrics.slo_results import CLIENTS_OWN
from gateway.metrics.tallies import ModelTallies
from gateway.observability.answered import Answered
from gateway.observability.recent_requests import RecentRequests
from gateway.observability.remedies import REMEDIES
from gateway.observability.request_stories import in_turns
from gateway.views import Clock, DeviceView, SchedulerView
from scheduler.device import WeightsState
from scheduler.events import Served
from scheduler.spec import MILLISECOND_NS, SECOND_NS, ModelSpec, public_name

STATES = tuple(WeightsState)  # their places are what pages say
UNKNOWN = -1  # in place of a model's index
# Models per part: under half a millisecond.
MODELS_PER_PART = 64
# Requests with the least slack: a screenful of each frame, and two at first.
MAX_WORST, MAX_WORST_SNAPSHOT = 20, 50
WORST_SNAPSHOT_NS = 60 * SECOND_NS

_MISSED = frozenset({"rejected", "expired", "failed"})
_T = TypeVar("_T")


class Places(NamedTuple):
    """Of models, by the name that clients know, and of devices, by worker id; one set for each
    epoch. `keys` are a model's names in the scheduler: each version that came meanwhile has one.
    """

    models: dict[str, int]
    devices: dict[str, int]
    keys: list[list[str]]


class LiveSampler:
    """Makes them. `catalog` is the HTTP side's, unavailable models too."""

    def __init__(
        self,
        scheduler: SchedulerView,
        catalog: Mapping[str, ModelSpec],
        metrics: Metrics,
        watch: LiveWatch,
        recent: RecentRequests,
        *,
        clock: Clock,
        interval_ms: float,
        default_slo_ms: float,
    ) -> None:
        self._scheduler = scheduler
        self._catalog = catalog
        self._metrics = metrics
        self._watch = watch
        self._recent = recent
        self._clock = clock
        self._interval_ms = interval_ms
        self._default_slo_ms = default_slo_ms
        self._zero_ns = clock()
        self._looked_ns = self._zero_ns  # requests answered until then have been told
        self.epoch = 0  # counts the sets of indexes
        self._seq = 0
        self._known: dict[str, ModelSpec] = {}
        self._places = Places({}, {}, [])
        self._last: dict[int, LiveCounts] = {}  # by model, as told last
        self._is_stale = True  # the indexes do not fit what there is

    def begin(self) -> None:
        """Somebody listens again."""
        self._looked_ns = self._clock()
        self.renew()

    def renew(self) -> bool:
        """Whether models or devices are others than before, so that indexes are new: what was told
        before is of no use then.
        """
        fleet = self._scheduler.devices
        is_new = (
            self._is_stale
            or self._watch.has_new_fleet
            or self._places.devices.keys() != fleet.keys()
        )
        if not is_new and self._known == self._catalog:
            return False
        self._is_stale = self._watch.has_new_fleet = False
        self._known = dict(self._catalog)
        keys: dict[str, list[str]] = {name: [] for name in self._known}
        held = (key for device in fleet.values() for key in device.weights)
        for key in dict.fromkeys([*self._scheduler.models, *held]):
            keys.setdefault(public_name(key), []).append(key)
        self._places = Places(
            {name: index for index, name in enumerate(keys)},
            {worker_id: index for index, worker_id in enumerate(fleet)},
            list(keys.values()),
        )
        self._last.clear()
        self.epoch += 1
        return True

    async def snapshot(self, *, phase: str) -> LiveSnapshot:
        epoch, places = self.epoch, self._places
        told_devices = []
        for worker_id in list(places.devices):
            device = self._scheduler.devices.get(worker_id)
            if device is not None:
                told_devices.append(self._device(worker_id, device, places))
            await asyncio.sleep(0)
        told_models = []
        for part in _parts(list(places.models)):
            told_models += [self._model(name) for name in part]
            await asyncio.sleep(0)
        counts = [row async for row in self._counts(places)]
        minute_ago_ns = self._clock() - WORST_SNAPSHOT_NS
        here = {name_of(worker_id) for worker_id in places.devices}
        return LiveSnapshot(
            epoch=epoch,
            seq=self._seq,
            at_us=self._us(self._clock()),
            version=self._metrics.version,
            interval_ms=self._interval_ms,
            phase=phase,
            clients_own=sorted(CLIENTS_OWN),
            remedies=REMEDIES,
            models=told_models,
            devices=told_devices,
            lost=[name for name in self._metrics.workers if name not in here],
            counts=counts,
            figures=self._figures(places),
            worst=await self._worst(MAX_WORST_SNAPSHOT, minute_ago_ns),
            scaling=self._scaling(),
            unnamed=self._unnamed(),
        )

    async def frame(self) -> LiveFrame:
        places = self._places
        counts = []
        async for row in self._counts(places):
            if self._last.get(row.model) != row:
                self._last[row.model] = row
                counts.append(row)
        looked_ns, self._looked_ns = self._looked_ns, self._clock()
        worst = await self._worst(MAX_WORST, looked_ns)
        self._seq += 1
        return LiveFrame(
            epoch=self.epoch,
            seq=self._seq,
            at_us=self._us(self._clock()),
            counts=counts,
            figures=self._figures(places),
            bars=self._bars(places),
            holds=self._changed_holds(places),
            worst=worst,
            scaling=self._scaling(),
            unnamed=self._unnamed(),
        )

    async def _counts(self, places: Places) -> AsyncIterator[LiveCounts]:
        for part in _parts(list(places.models.items())):
            served = self._scheduler.models
            for name, index in part:
                queued = sum(
                    self._scheduler.queue_depth(key) for key in places.keys[index] if key in served
                )
                tallies = self._metrics.models.get(name)
                if tallies is not None or queued:
                    yield _counted(index, tallies, queued)
            await asyncio.sleep(0)

    def _bars(self, places: Places) -> list[LiveBar]:
        return [
            LiveBar(
                places.devices[worker_id],
                lane,
                places.models.get(public_name(bar.model), UNKNOWN),
                self._us(bar.begin_ns),
                self._us(bar.end_ns),
                bar.busy_ns // 1000,
                bar.rows,
                bar.num_actions,
                bar.is_ok,
            )
            for (worker_id, lane), bars in self._watch.take_bars().items()
            if worker_id in places.devices
            for bar in bars
        ]

    def _changed_holds(self, places: Places) -> list[int]:
        holds: list[int] = []
        touched = {(who, public_name(key)): key for who, key in self._watch.take_touched()}
        for (worker_id, name), key in touched.items():
            device = self._scheduler.devices.get(worker_id)
            index = places.models.get(name)
            if index is None or key not in places.keys[index]:
                self._is_stale = True  # a version that is made ready
            elif device is not None and worker_id in places.devices:
                holds += (places.devices[worker_id], index, *_held(device, places.keys[index]))
        return holds

    def _figures(self, places: Places) -> list[LiveFigures]:
        link = self._metrics.link
        gpus = {} if link is None else link.gpus
        rtt_us = {} if link is None else {c.worker_id: c.rtt_ns // 1000 for c in link.connections()}
        figures = []
        for worker_id, index in places.devices.items():
            device = self._scheduler.devices.get(worker_id)
            if device is None:
                continue
            gpu = gpus.get(name_of(worker_id))
            sample = None if gpu is None else gpu.sample
            figures.append(
                LiveFigures(
                    index,
                    device.pages_by_state()["free"],
                    len(device.outstanding),
                    device.schedule_ahead_ns // 1000,
                    round(device.gap_rate, 4),
                    rtt_us.get(worker_id),
                    None if sample is None else sample.utilisation_percent,
                    None if sample is None else sample.power_mw,
                    None if sample is None else sample.temperature_c,
                )
            )
        return figures

    def _model(self, name: str) -> LiveModel:
        spec = self._known.get(name)
        if spec is None:  # its pages are still somewhere
            return LiveModel(
                name=name,
                version="",
                pages=0,
                weights_bytes=0,
                default_slo_ms=self._default_slo_ms,
                batch_sizes=(),
                load_ms=0.0,
                exec_ms={},
                shapes=0,
                pinned=False,
                unavailable_reason="it is not in the repository any more",
            )
        shapes = spec.profile.shapes if spec.unavailable_reason is None else ()
        exec_ns = shapes[0].exec_ns if shapes else {}
        default_ns = spec.default_slo_ns
        return LiveModel(
            name=name,
            version=spec.version,
            pages=spec.num_pages(self._metrics.page_bytes),
            weights_bytes=spec.weights_bytes,
            default_slo_ms=(
                self._default_slo_ms if default_ns is None else default_ns / MILLISECOND_NS
            ),
            batch_sizes=spec.batch_sizes,
            load_ms=spec.profile.load_ns / MILLISECOND_NS if shapes else 0.0,
            exec_ms={str(rows): ns / MILLISECOND_NS for rows, ns in exec_ns.items()},
            shapes=len(shapes),
            pinned=spec.is_pinned,
            unavailable_reason=spec.unavailable_reason,
        )

    def _device(self, worker_id: str, device: DeviceView, places: Places) -> LiveDevice:
        holds: list[int] = []
        for name in dict.fromkeys(map(public_name, device.weights)):
            index = places.models.get(name)
            if index is not None:
                state, pages = _held(device, places.keys[index])
                if pages:
                    holds += (index, state, pages)
        return LiveDevice(
            worker=name_of(worker_id),
            kind=device.spec.kind,
            page_bytes=device.spec.page_bytes,
            total_pages=device.spec.total_pages,
            shares_exec_core=device.spec.shares_exec_core,
            holds=holds,
        )

    async def _worst(self, num: int, after_ns: int) -> list[LiveRequest]:
        found = await in_turns(self._recent.worst(num, _is_of_model, after_ns=after_ns))
        return [self._request(answered) for answered in found]

    def _request(self, answered: Answered) -> LiveRequest:
        served = answered.outcome if isinstance(answered.outcome, Served) else None
        slack_ns = answered.slack_ns
        return LiveRequest(
            request_id=answered.request_id,
            model=answered.model,
            tenant=answered.tenant or None,
            outcome=answered.kind,
            reason=answered.reason,
            detail=answered.detail,
            worker=name_of(served.worker_id) if served is not None else None,
            batch_rows=served.batch_rows if served is not None else None,
            cold_start=served is not None and served.is_cold_start,
            slo_ms=_ms(answered.slo_ns),
            latency_ms=_ms(answered.latency_ns),
            slack_ms=None if slack_ns is None else _ms(slack_ns),
            at_us=self._us(answered.answered_ns),
        )

    def _scaling(self) -> LiveScaling | None:
        advice = self._metrics.scaling
        if advice is None or advice.recommended_devices is None:
            return None
        assert advice.offered_load is not None
        assert advice.forecast is not None
        return LiveScaling(
            devices=self._scheduler.num_serving,
            recommended=advice.recommended_devices,
            load=round(advice.offered_load, 3),
            forecast=round(advice.forecast, 3),
            error=None if advice.absolute_error is None else round(advice.absolute_error, 3),
        )

    def _unnamed(self) -> dict[str, int]:
        return {f"{outcome}:{why}": n for (outcome, why), n in self._metrics.unnamed.items()}

    def _us(self, at_ns: int) -> int:
        return (at_ns - self._zero_ns) // 1000


def _is_of_model(answered: Answered) -> bool:
    return bool(answered.key)


def _held(device: DeviceView, keys: Sequence[str]) -> tuple[int, int]:
    """State and pages of all versions of a model together: resident, if one of them is."""
    found, pages = WeightsState.ABSENT, 0
    for key in keys:
        record = device.weights.get(key)
        if record is not None and record.state is not WeightsState.ABSENT:
            pages += record.num_pages
            if found is not WeightsState.RESIDENT:
                found = record.state
    return STATES.index(found), pages


def _counted(index: int, tallies: ModelTallies | None, queued: int) -> LiveCounts:
    if tallies is None:
        return LiveCounts(index, 0, 0, 0, queued, 0, 0, 0, 0, {})
    served = cancelled = invalid = 0
    missed: dict[str, int] = {}
    for (outcome, reason), count in tallies.outcomes.items():
        if outcome == "served":
            served = count
        elif outcome in _MISSED:
            missed[f"{outcome}:{reason}"] = count
        elif outcome == "cancelled":
            cancelled += count
        else:
            invalid += count
    return LiveCounts(
        index,
        served,
        cancelled,
        invalid,
        queued,
        tallies.served_ns // MILLISECOND_NS,
        tallies.cold_starts,
        tallies.loads,
        tallies.evictions,
        missed,
    )


def _ms(duration_ns: int) -> float:
    return round(duration_ns / MILLISECOND_NS, 3)


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), MODELS_PER_PART):
        yield items[start : start + MODELS_PER_PART]
