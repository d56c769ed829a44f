"""Policies that say how many devices there should be: by what is, by what is foreseen, by what will
be. Owns the rules; what they see is environment.py's.
"""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from loadtest.planning.environment import FleetAction, Observation
from loadtest.planning.peak import cheapest_ns
from loadtest.workloads import Ask
from scheduler.spec import SECOND_NS, ModelSpec

# Kubernetes' own: a recommendation to have fewer counts once none of five minutes wanted more, and
# a tenth off the target is on it (HorizontalPodAutoscaler, stabilizationWindowSeconds, tolerance).
STABILISATION_S = 300.0
TOLERANCE = 0.1


def devices_for(load: float, target: float) -> int:
    """At least one; three devices at 0.7 are no fourth for the last bit of a float."""
    return max(1, math.ceil(load / target - 1e-9))


class Stabilised:
    """The most that was wanted lately: a fleet grows at once and shrinks late."""

    def __init__(self, window_s: float = STABILISATION_S) -> None:
        self._window_s = window_s
        self._wanted: deque[tuple[float, int]] = deque()

    def __call__(self, now_s: float, wanted: int) -> int:
        self._wanted.append((now_s, wanted))
        while self._wanted[0][0] < now_s - self._window_s:
            self._wanted.popleft()
        return max(number for _, number in self._wanted)


class Static:
    """Always as many."""

    def __init__(self, devices: int) -> None:
        self._action = FleetAction(devices)

    def __call__(self, _: Observation) -> FleetAction:
        return self._action


class Reactive:
    """Kubernetes' rule on the load that is there: ceil(load / target), unless that is within its
    tolerance of what there is.
    """

    def __init__(self, *, target: float, max_devices: int) -> None:
        self._target = target
        self._max = max_devices
        self._stabilised = Stabilised()

    def __call__(self, seen: Observation) -> FleetAction:
        there = seen.serving + seen.starting
        wanted = devices_for(seen.load, self._target)
        if there and abs(seen.load / (there * self._target) - 1) <= TOLERANCE:
            wanted = there
        return FleetAction(min(self._max, self._stabilised(seen.now_s, wanted)))


class Predictive:
    """The gateway's own advice (scheduler/scaling.py), which foresees one launch ahead, with the
    same slowness to shrink.
    """

    def __init__(self, *, max_devices: int) -> None:
        self._max = max_devices
        self._stabilised = Stabilised()

    def __call__(self, seen: Observation) -> FleetAction:
        if seen.recommended is None:
            return FleetAction(min(self._max, max(1, seen.serving + seen.starting)))
        return FleetAction(min(self._max, self._stabilised(seen.now_s, seen.recommended)))


class Oracle:
    """Knows every request beforehand: the most that the next launch and interval will need, and no
    device longer than that.
    """

    def __init__(
        self,
        asks: Sequence[Ask],
        models: Sequence[ModelSpec],
        *,
        target: float,
        ahead_s: float,
        max_devices: int,
        bin_s: float = 10.0,
    ) -> None:
        """`ahead_s`: from being asked for to the end of the interval after it serves."""
        specs = {model.name: model for model in models}
        costs: dict[tuple[str, int], float] = {}
        last_s = asks[-1].at_ns / SECOND_NS if asks else 0.0
        self._loads = np.zeros(int(last_s / bin_s) + 2)
        for ask in asks:
            key = ask.model, ask.slo_ns
            if key not in costs:
                costs[key] = cheapest_ns(specs[ask.model], ask.slo_ns)
            self._loads[int(ask.at_ns / SECOND_NS / bin_s)] += costs[key] / SECOND_NS / bin_s
        self._target = target
        self._ahead_s = ahead_s
        self._bin_s = bin_s
        self._max = max_devices

    def __call__(self, seen: Observation) -> FleetAction:
        first = int(seen.now_s / self._bin_s)
        last = int((seen.now_s + self._ahead_s) / self._bin_s) + 1
        coming = self._loads[first:last]
        most = float(coming.max()) if len(coming) else 0.0
        return FleetAction(min(self._max, devices_for(most, self._target)))
