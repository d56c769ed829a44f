"""How many devices may run batches that are longer than a tighter class can wait.

A batch cannot be preempted: on a device that runs 60 ms of one model, another model's SLO of 15 ms
is lost, however urgent it is. So the fleet keeps devices on which no batch is longer than that:
long batches run on as many as their load needs, and elsewhere they are cut to what the tighter
classes can wait, or not begun (scheduling by size intervals, as queueing theory has it).
"""

import math
from typing import Final

from scheduler.device import DeviceMirror
from scheduler.slo_classes import FOREVER_NS, class_of
from scheduler.spec import MILLISECOND_NS
from scheduler.state import ModelState, SchedulerState

# How long the figures hold. Between, decisions depend on queues and devices only.
REFRESH_NS: Final = 100 * MILLISECOND_NS
# Devices for long batches per device that they would keep busy.
HEADROOM: Final = 1.15
# Where long batches need every device: so many of their requests may be lost, at most, for one of
# the tighter classes. One stray request in seconds must not halve a fleet; some per cent of the
# work that are interactive are worth some per cent of its throughput.
PRICE: Final = 10
# A class is tighter where its SLO is less than half: an octave of slo_classes.
OCTAVE: Final = 4


class BlockingCap:
    """`until_ns` is when the figures are taken anew."""

    __slots__ = ("_fleet_version", "_num_devices", "_ranks", "_slacks", "until_ns")

    def __init__(self) -> None:
        self.until_ns = 0
        self._fleet_version = 0
        self._slacks: list[tuple[int, int]] = []  # empty where no class is tighter than another
        self._ranks: dict[str, int] = {}  # worker id → place in the order of joining
        self._num_devices = 0

    def refresh(self, state: SchedulerState, now: int) -> None:
        """Take the figures anew, if they are old."""
        if now < self.until_ns and self._fleet_version == state.fleet_version:
            return
        self._fleet_version = state.fleet_version
        self.until_ns = now + REFRESH_NS
        slacks = state.slo_classes.slacks(now)
        if len(state.devices) < 2 or not slacks or slacks[-1][0] - slacks[0][0] <= OCTAVE:
            self._slacks = []
            return
        self._slacks = slacks
        self._ranks = {worker_id: rank for rank, worker_id in enumerate(state.devices)}
        load = rate = 0.0
        longest = 0
        for demand in state.offered.models:
            if demand.batch_ns > self._tolerated_ns(demand.slo_ns):
                load += demand.load
                rate += demand.load / demand.ns_per_row
                longest = max(longest, class_of(demand.slo_ns))
        most = len(state.devices) - 1
        if load > most:
            lost = rate * (1 - most / load)
            if lost > PRICE * state.slo_classes.rate_below(longest - OCTAVE, now):
                self._slacks = []
                return
        self._num_devices = max(1, min(math.ceil(HEADROOM * load), most))

    def longest_ns(
        self, model: ModelState, device: DeviceMirror, slo_ns: int, largest_ns: int
    ) -> int | None:
        """How long a batch of this SLO may take on the device; None for as long as it likes.
        `largest_ns` is what its largest one would take.
        """
        if not self._slacks or largest_ns <= self._slacks[-1][1]:
            return None
        tolerated_ns = self._tolerated_ns(slo_ns)
        if largest_ns <= tolerated_ns:
            return None
        rank = self._ranks.get(device.worker_id, 0)
        num_before = 0
        for holder in model.holders:
            num_before += self._ranks.get(holder.worker_id, 0) < rank
        return tolerated_ns if num_before >= self._num_devices else None

    def _tolerated_ns(self, slo_ns: int) -> int:
        """The least slack of all tighter classes."""
        below = class_of(slo_ns) - OCTAVE
        tolerated_ns = FOREVER_NS
        for key, slack_ns in self._slacks:
            if key >= below:
                break
            tolerated_ns = slack_ns
        return tolerated_ns
