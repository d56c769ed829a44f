"""Tenant: what one tenant may do, what it does now, and what it has used.

It owns the tenant's quotas and figures, and raises RequestError for every no. It must never know
how a request came, nor who else there is; `now` is an argument.
"""

import fnmatch
import re
from collections import Counter

from gateway.errors import RequestError
from gateway.tenants.tenants_file import TenantSpec
from gateway.tenants.token_bucket import TokenBucket
from scheduler.priority import PRIORITIES
from scheduler.spec import MILLISECOND_NS, SECOND_NS

# Rates are whole thousandths per second, so a bucket's units are these parts of a request and of a
# nanosecond of device time.
_REQUEST = 1000 * SECOND_NS
_DEVICE_NS = 1000 * SECOND_NS // MILLISECOND_NS


class Tenant:
    def __init__(self, name: str, spec: TenantSpec, now: int) -> None:
        self.name = name
        self.num_open = 0  # requests that entered and have not left
        self.device_ns = 0  # measured, of all its requests
        self.outcomes: Counter[tuple[str, str]] = Counter()  # (outcome, reason)
        self._requests: TokenBucket | None = None
        self._device: TokenBucket | None = None
        self.configure(spec, now)

    def configure(self, spec: TenantSpec, now: int) -> None:
        """As the tenants file has it now. What was used stays used."""
        self.spec = spec
        self.is_admin = spec.admin
        self.priority = PRIORITIES[spec.priority]
        self.default_slo_ns = _ns(spec.default_slo_ms)
        self.min_slo_ns = _ns(spec.min_slo_ms) or 0
        self._max_open = spec.max_concurrent
        rate = spec.requests_per_s
        burst = max(1.0, rate or 0.0) if spec.requests_burst is None else spec.requests_burst
        self._requests = _bucket(self._requests, rate, burst * _REQUEST, now)
        rate = spec.gpu_ms_per_s
        burst = (rate or 0.0) if spec.gpu_ms_burst is None else spec.gpu_ms_burst
        self._device = _bucket(self._device, rate, burst * MILLISECOND_NS * _DEVICE_NS, now)
        self._models = None if "*" in spec.models else _pattern(spec.models)

    @property
    def is_counted(self) -> bool:
        """Whether `enter` may say no."""
        return self._max_open is not None or self._requests is not None

    @property
    def has_device_quota(self) -> bool:
        return self._device is not None

    # ------------------------------------------------------------------ what it may do

    def may_use(self, model: str) -> bool:
        return self._models is None or self._models.fullmatch(model) is not None

    def check_model(self, model: str) -> None:
        """Before anybody looks whether there is such a model: that is not this tenant's to know."""
        if self._models is not None and self._models.fullmatch(model) is None:
            raise RequestError(
                "forbidden", f"tenant {self.name} may not use the model {model[:200]!r}"
            )

    def check_admin(self, what: str) -> None:
        if not self.is_admin:
            raise RequestError(
                "forbidden", f"{what} needs a tenant with `admin: true`, {self.name} has not"
            )

    def default_slo(self, default_ns: int) -> int:
        """Of a request that names none, where the model's default is this: never below the minimum,
        which would refuse what the client has not asked for.
        """
        slo_ns = default_ns if self.default_slo_ns is None else self.default_slo_ns
        return slo_ns if slo_ns > self.min_slo_ns else self.min_slo_ns

    def check_slo(self, slo_ns: int) -> None:
        if slo_ns < self.min_slo_ns:
            raise RequestError(
                "slo_below_tenant_minimum",
                f"the SLO is {slo_ns / MILLISECOND_NS:g} ms, tenant {self.name} may ask for "
                f"{self.min_slo_ns / MILLISECOND_NS:g} ms and more",
                slo_ns=slo_ns,
                min_slo_ns=self.min_slo_ns,
            )

    # ------------------------------------------------------------------ what it does

    def enter(self, now: int) -> None:
        """One more request. Raises RequestError(quota_exceeded), and then nothing was taken."""
        if self._max_open is not None and self.num_open >= self._max_open:
            # When one of them is answered nobody knows: Retry-After is the gateway's default.
            raise RequestError(
                "quota_exceeded",
                f"tenant {self.name} has {self.num_open} requests open, the most it may have",
            )
        bucket = self._requests
        if bucket is not None:
            wait_ns = bucket.take(_REQUEST, now)
            if wait_ns:
                raise RequestError(
                    "quota_exceeded",
                    f"tenant {self.name} may send {self.spec.requests_per_s:g} requests/s; "
                    f"the next in {wait_ns / MILLISECOND_NS:.3f} ms",
                    retry_after_ns=wait_ns,
                )
        self.num_open += 1

    def leave(self, held_ns: int, *, was_refused: bool) -> None:
        """A request that entered is answered. What was refused for no fault of its own is free."""
        self.num_open -= 1
        if held_ns:
            self.release(held_ns)
        if was_refused and self._requests is not None:
            self._requests.give_back(_REQUEST)

    def hold(self, predicted_ns: int, now: int) -> int:
        """Holds the device time that a request is predicted to take, until it leaves.

        Returns what it holds, 0 where there is no quota. Raises RequestError(quota_exceeded).
        """
        bucket = self._device
        if bucket is None:
            return 0
        wait_ns = bucket.take(predicted_ns * _DEVICE_NS, now)
        if wait_ns:
            raise RequestError(
                "quota_exceeded",
                f"tenant {self.name} may use {self.spec.gpu_ms_per_s:g} ms of device time per "
                f"second, this request takes about {predicted_ns / MILLISECOND_NS:.3f} ms; it can "
                f"have them in {wait_ns / MILLISECOND_NS:.3f} ms",
                retry_after_ns=wait_ns,
            )
        return predicted_ns

    def release(self, held_ns: int) -> None:
        """What was held is not needed after all."""
        if self._device is not None:
            self._device.give_back(held_ns * _DEVICE_NS)

    def charge(self, device_ns: int) -> None:
        """Its requests were measured to have taken so much of a device."""
        self.device_ns += device_ns
        if self._device is not None:
            self._device.charge(device_ns * _DEVICE_NS)


def _bucket(
    bucket: TokenBucket | None, per_s: float | None, capacity: float, now: int
) -> TokenBucket | None:
    if per_s is None:
        return None
    rate = round(per_s * 1000)
    if bucket is None:
        return TokenBucket(rate=rate, capacity=round(capacity), now=now)
    bucket.change(rate=rate, capacity=round(capacity), now=now)
    return bucket


def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or r"(?!)")


def _ns(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else round(milliseconds * MILLISECOND_NS)
