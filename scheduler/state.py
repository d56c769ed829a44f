"""What the policies read: models with their queues, devices, and the models that want weights.

Only `scheduler.Scheduler` writes it.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from scheduler.device import DOUBT_AFTER_NS, DeviceMirror
from scheduler.model_queue import ModelQueue
from scheduler.rate_meter import Demand, OfferedLoad
from scheduler.request import Request
from scheduler.slo_classes import SloClasses
from scheduler.spec import ModelSpec, SchedulerConfig
from scheduler.tenants import TenantAccounts

# Waiting LOADs looked at per prediction.
MAX_PENDING_LOADS: Final = 16


class ModelState:
    """One served model: its spec, its waiting requests, and where its weights are."""

    __slots__ = (
        "_num_fitting",
        "demand",
        "doubted_ns",
        "holders",
        "is_pinned",
        "loading_on",
        "name",
        "num_queued",
        "offered_by",
        "queues",
        "spec",
        "wanted_key",
        "wanted_sequence",
        "wants_replica",
    )

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.is_pinned = spec.is_pinned
        self.queues: dict[str, ModelQueue] = {}  # all and only non-empty queues, by batch key
        self.num_queued = 0
        self.demand = Demand()
        # devices that could serve it, in order of joining
        self.offered_by: dict[DeviceMirror, None] = {}
        self._num_fitting = 0
        self.holders: list[DeviceMirror] = []  # devices where it is RESIDENT
        self.loading_on: list[DeviceMirror] = []  # devices where it is LOADING
        self.doubted_ns = 0  # when a refusal last made its estimates be looked through
        # under which SchedulerState.want last filed it; earlier entries count no more
        self.wanted_key: float | None = None
        self.wanted_sequence = 0
        self.wants_replica = False  # its holders cannot keep up; another device could

    @property
    def is_cold(self) -> bool:
        return not self.holders and not self.loading_on

    @property
    def wants_load(self) -> bool:
        """Requests wait for weights that are on their way nowhere."""
        return self.num_queued > 0 and (
            self.is_cold or (self.wants_replica and not self.loading_on)
        )

    @property
    def needs_load(self) -> bool:
        """It wants a LOAD, or is pinned and nowhere."""
        return self.wants_load or (self.is_pinned and self.is_cold)

    @property
    def fits_somewhere(self) -> bool:
        return self._num_fitting > 0

    def fits(self, device: DeviceMirror) -> bool:
        return self.spec.num_pages(device.spec.page_bytes) <= device.spec.total_pages

    def offer(self, device: DeviceMirror) -> None:
        """The device can serve this model from now on."""
        self.offered_by[device] = None
        self._num_fitting += self.fits(device)

    def withdraw(self, device: DeviceMirror) -> None:
        """The device is gone."""
        del self.offered_by[device]
        self._num_fitting -= self.fits(device)
        if device in self.holders:
            self.holders.remove(device)
        if device in self.loading_on:
            self.loading_on.remove(device)

    def doubt_estimates(self, now: int) -> None:
        """See DeviceMirror.doubt. At most once in DOUBT_AFTER_NS: refusals come in crowds."""
        if self.doubted_ns <= now - DOUBT_AFTER_NS:
            self.doubted_ns = now
            for device in self.offered_by:
                device.doubt(self.name, now)

    def reference(self) -> DeviceMirror:
        """The device whose estimates stand for the model where no device is chosen yet."""
        return self.holders[0] if self.holders else next(iter(self.offered_by))

    def quickest_ns(self, queue: ModelQueue, rows: int) -> int:
        """Planned execution on the fastest device that counts."""
        return min(
            device.exec_estimate(queue).plan[rows] for device in self.holders or self.offered_by
        )


class Staging:
    """A model that is about to take over from `replaces` ("": it is new)."""

    __slots__ = ("loaded_on", "problem", "replaces")

    def __init__(self, replaces: str) -> None:
        self.replaces = replaces
        # all and only worker ids of devices that were sent the LOAD, each once
        self.loaded_on: dict[str, None] = {}
        self.problem: str | None = None  # why a trial of it failed


class SchedulerState:
    """The whole of it, in one place, for policies and invariants to read."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        keeps_arrival_order: bool = False,
        waits_to_the_end: bool = False,
    ) -> None:
        self.config = config
        self._reply_margin_ns = config.reply_margin_ns
        # of the policy: see scheduler.policies.Policy
        self.keeps_arrival_order = keeps_arrival_order
        self.waits_to_the_end = waits_to_the_end
        self.models: dict[str, ModelState] = {}
        self.num_serving = 0  # devices that are not about to stop
        self.fleet_version = 0  # counts joins and losses, for what is figured out per fleet
        self.devices: dict[str, DeviceMirror] = {}  # by worker id, in order of joining
        self.num_queued = 0
        self.offered = OfferedLoad()
        self.slo_classes = SloClasses()
        weights = config.tenant_weights
        self.tenants = TenantAccounts(weights) if weights else None
        self.waiting: dict[str, ModelState] = {}  # all and only models with queued requests
        # all and only devices without an Infer in flight, by worker id; the idle longest first
        self.idle: dict[str, DeviceMirror] = {}
        self.pinned: dict[str, None] = {}  # all and only names of pinned models
        # all and only names of models that were unloaded, and neither added nor forgotten since
        self.unloaded: dict[str, None] = {}
        # all and only names of served models that are about to take over from another
        self.staged: dict[str, Staging] = {}
        # Names of models that a request was refused for since they were cold, and that were
        # neither loaded nor removed since; the latest last.
        self.refused_cold: dict[str, None] = {}
        # heap of (-demand per load time, sequence, model): an entry counts only while it is the
        # last one that was filed for the model
        self._wanted: list[tuple[float, int, ModelState]] = []
        self._sequence = 0

    def count_queued(self, model: ModelState, change: int) -> None:
        """So many more requests of the model are queued (fewer, if negative)."""
        self.num_queued += change
        model.num_queued += change
        if not model.num_queued:
            del self.waiting[model.name]
        elif model.num_queued == change:
            self.waiting[model.name] = model

    def note_arrival(self, model: ModelState, request: Request, now: int) -> None:
        """A request of the model came, whatever becomes of it."""
        slo_ns = request.deadline_ns - request.arrival_ns
        if model.demand.arrived(request.rows, slo_ns, now) and model.offered_by:
            device = model.reference()
            estimate = device.exec_estimate(request)
            model.demand.measure(estimate, self.margin_ns(device) + device.command_delay_ns)
            self.offered.refresh(model.demand, now)
        self.slo_classes.touch(slo_ns, slo_ns - model.demand.single_ns, now)

    @property
    def utilisation(self) -> float:
        """The offered load as a share of the fleet: above 1 it cannot be served."""
        return self.offered.devices / max(1, self.num_serving)

    def pinned_and_absent(self) -> list[str]:
        return [name for name in self.pinned if self.models[name].is_cold]

    def margin_ns(self, device: DeviceMirror) -> int:
        """From the end of an execution on this device to the answer at the client, with care."""
        return device.reply_delay_ns + self._reply_margin_ns

    def savable(self, model: ModelState, device: DeviceMirror, now: int) -> int:
        """Queued requests that could still be met if a LOAD began on the device now."""
        ready_ns = device.load_start_at(now) + device.estimates(model.name).load_plan_ns
        # One less than the instant by which they must be due: admission lets the last one in.
        reserve_ns = ready_ns + self.margin_ns(device) - 1
        return sum(
            queue.num_due_after(reserve_ns + device.exec_estimate(queue).plan[1])
            for queue in model.queues.values()
        )

    def want(self, model: ModelState) -> None:
        """Note that the demand for this model's weights has changed."""
        load_ns = model.reference().estimates(model.name).load_plan_ns
        key = -model.num_queued / load_ns
        if key != model.wanted_key:
            self._sequence += 1
            model.wanted_key = key
            model.wanted_sequence = self._sequence
            heappush(self._wanted, (key, self._sequence, model))
            if len(self._wanted) > 2 * len(self.models) + MAX_PENDING_LOADS:
                self._sweep_wanted()

    def pending_load_ns(self, model: ModelState) -> int:
        """LOADs that other models still wait for, shared by the devices."""
        total_ns = 0
        for _, sequence, other in self._wanted[:MAX_PENDING_LOADS]:
            if other is not model and sequence == other.wanted_sequence and other.wants_load:
                total_ns += other.reference().estimates(other.name).load_plan_ns
        return total_ns // max(1, len(self.devices))

    def wanted(self) -> Iterator[ModelState]:
        """Up to MAX_PENDING_LOADS models that want weights, largest demand per load time first."""
        taken: list[tuple[float, int, ModelState]] = []
        while self._wanted and len(taken) < MAX_PENDING_LOADS:
            entry = heappop(self._wanted)
            if entry[1] == entry[2].wanted_sequence:
                if entry[2].wants_load:
                    taken.append(entry)
                else:
                    entry[2].wanted_key = None
        for entry in taken:
            heappush(self._wanted, entry)
        return (entry[2] for entry in taken)

    @property
    def may_load(self) -> bool:
        """Whether a look for something to LOAD can find anything."""
        return self.has_wanted or bool(self.pinned) or bool(self.refused_cold) or bool(self.staged)

    @property
    def has_wanted(self) -> bool:
        return bool(self._wanted)

    def _sweep_wanted(self) -> None:
        """Old entries of little demand would lie at the heap's bottom for ever."""
        self._wanted = [e for e in self._wanted if e[1] == e[2].wanted_sequence]
        heapify(self._wanted)
