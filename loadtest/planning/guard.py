"""A policy that is not trusted yet, held by one that is: whatever it does, it loses no more than
was agreed.

The idea is AWARE's (Qiu et al., ATC 2023): let a trusted controller act where the learning one
would hurt. Theirs switches when a reward has fallen; here it is an account, so that the loss has a
cap. Owns the account. It plays nothing.
"""

import math

from loadtest.planning.environment import FleetAction, Observation, Policy

# Requests come at most so much faster than ever before, within one time to recover.
SURGE = 1.5


class Guarded:
    """As `untrusted` says, unless that could cost more than the account holds; else as `trusted`.

    The account is `cap` (a share) of all requests so far. Every miss counts against it while
    `untrusted` had its way, or not longer ago than a fleet takes to recover: that is never less
    than what `trusted` would not have missed. Before it has its way with fewer devices, what could
    be lost until then is set aside: requests at the highest rate seen, times SURGE, times the share
    of the trusted devices that would be lacking. The same for `max_batch`, with all requests of two
    intervals. More devices than `trusted` wants are paid out of `cost_cap`, a share of the device
    time that it wanted so far. `trusted` sees the fleet that it would have had.
    """

    def __init__(
        self,
        untrusted: Policy,
        trusted: Policy,
        *,
        cap: float,
        cost_cap: float,
        interval_s: float,
        launch_s: float,
    ) -> None:
        """Raises ValueError for a cap that is no share."""
        for name, share in (("cap", cap), ("cost_cap", cost_cap)):
            if not share >= 0:
                raise ValueError(f"{name} {share:g} is negative")
        self._untrusted = untrusted
        self._trusted = trusted
        self._cap = cap
        self._cost_cap = cost_cap
        self._interval_s = interval_s
        # Asked for at the next step, serving a launch later, seen at the step after that.
        self._recovery_s = launch_s + 2 * interval_s
        self._influenced_until_s = -math.inf
        self._arrived = 0
        self._most_per_s = 0.0
        self._trusted_device_s = 0.0
        self._extra_device_s = 0.0
        self._safe: int | None = None  # what `trusted` wanted last
        self.lost = 0  # requests counted against the account
        self.overruled = 0  # steps at which `trusted` had its way

    def __call__(self, seen: Observation) -> FleetAction:
        self._learn(seen)
        wanted = self._untrusted(seen)
        if self._safe is not None:
            seen = seen._replace(serving=self._safe, starting=0)
        safe = self._trusted(seen)
        self._safe = safe.devices
        self._trusted_device_s += safe.devices * self._interval_s
        devices = self._fewer(wanted.devices, safe.devices)
        if devices > safe.devices:
            devices = self._more(devices, safe.devices)
        set_aside = self._at_risk(devices, safe.devices)
        batch = wanted.max_batch
        if batch != safe.max_batch:
            in_an_interval = SURGE * self._most_per_s * 2 * self._interval_s
            if not self._knows_rate or set_aside + in_an_interval > self._left:
                batch = safe.max_batch
        allowed = FleetAction(devices, batch)
        if devices < safe.devices or batch != safe.max_batch:
            self._influenced_until_s = seen.now_s + self._recovery_s
        self.overruled += allowed != wanted
        return allowed

    @property
    def _left(self) -> float:
        return self._cap * self._arrived - self.lost

    @property
    def _knows_rate(self) -> bool:
        return self._arrived > 0

    def _learn(self, seen: Observation) -> None:
        self._arrived += seen.arrived
        self._most_per_s = max(self._most_per_s, seen.arrived / self._interval_s)
        if seen.now_s <= self._influenced_until_s:
            self.lost += seen.missed

    def _at_risk(self, devices: int, safe: int) -> float:
        """Requests that could be missed until a fleet of `devices` is one of `safe` again."""
        if devices >= safe:
            return 0.0
        lacking = 1 - devices / safe
        return SURGE * self._most_per_s * self._recovery_s * lacking

    def _fewer(self, wanted: int, safe: int) -> int:
        """The fewest from `wanted` up for which the account is good."""
        if wanted >= safe:
            return wanted
        if not self._knows_rate:
            return safe
        return next((n for n in range(wanted, safe) if self._at_risk(n, safe) <= self._left), safe)

    def _more(self, wanted: int, safe: int) -> int:
        """The most up to `wanted` that can be paid; each is paid for until it could be gone."""
        left_s = self._cost_cap * self._trusted_device_s - self._extra_device_s
        number = min(wanted - safe, max(0, math.floor(left_s / self._interval_s)))
        self._extra_device_s += number * self._interval_s
        return safe + number
