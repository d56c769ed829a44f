"""What each tenant is owed of the devices' time: a floor, in device nanoseconds, that is topped up
as time passes and charged with what its requests were measured to take.

Only the floor is owed. What is left goes to whoever makes best use of it: to equalise what tenants
attain would cost up to half of the fleet's answers.
"""

from collections.abc import Mapping
from typing import Final

from scheduler.request import Request
from scheduler.spec import MILLISECOND_NS, SECOND_NS

# Of the fleet's time, the part that is divided by weight; the rest is whoever's.
GUARANTEED: Final = 0.5
# A floor is saved up for so long and no longer: idle time is no claim on the future.
SAVED_NS: Final = 100 * MILLISECOND_NS
# What was had beyond the floor counts against it for so long: longer than a batch takes, and short
# enough that whoever used what nobody else wanted is not punished for it.
OVERDRAWN_NS: Final = SECOND_NS


class TenantAccounts:
    """Tenants that have no weight are owed nothing and lose nothing but what others are owed."""

    __slots__ = ("_as_of_ns", "_credit_ns", "_floors")

    def __init__(self, weights: Mapping[str, float]) -> None:
        total = sum(weights.values())
        # share of the fleet's time
        self._floors = {
            tenant: GUARANTEED * weight / total for tenant, weight in weights.items() if weight > 0
        }
        self._credit_ns = dict.fromkeys(self._floors, 0.0)
        self._as_of_ns = 0

    def owed(self, num_devices: int, now: int) -> list[str]:
        """Those who got less than their floor, in the order of the configuration."""
        self._top_up(num_devices, now)
        return [tenant for tenant, credit_ns in self._credit_ns.items() if credit_ns > 0]

    def is_owed(self, tenant: str, num_devices: int, now: int) -> bool:
        if tenant not in self._floors:
            return False
        # A pure question, since `Scheduler.quote` asks it too: what was saved up meanwhile counts,
        # and is written down when somebody is charged.
        rate = self._floors[tenant] * num_devices
        return self._credit_ns[tenant] + rate * (now - self._as_of_ns) > 0

    def charge(self, requests: list[Request], duration_ns: int, num_devices: int, now: int) -> None:
        """A batch of these took so long: each tenant pays for its rows."""
        self._top_up(num_devices, now)
        rows = sum([request.rows for request in requests])
        for request in requests:
            floor = self._floors.get(request.tenant)
            if floor is not None:
                least_ns = -OVERDRAWN_NS * floor * num_devices
                left_ns = self._credit_ns[request.tenant] - duration_ns * request.rows / rows
                self._credit_ns[request.tenant] = max(least_ns, left_ns)

    def _top_up(self, num_devices: int, now: int) -> None:
        passed_ns = now - self._as_of_ns
        if passed_ns <= 0:
            return
        self._as_of_ns = now
        for tenant, floor in self._floors.items():
            rate = floor * num_devices
            saved_ns = self._credit_ns[tenant] + rate * passed_ns
            self._credit_ns[tenant] = min(SAVED_NS * rate, saved_ns)
