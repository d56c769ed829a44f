"""The tenants file: who may use this gateway, for what, and how much. YAML to TenantSpec.

It owns the words of the file and every complaint about it. It must never hold a key, only hashes,
and never look at a clock or count anything: gateway/tenants/tenant.py does.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from gateway.strict_yaml import StrictLoader
from gateway.tenants.api_keys import StoredKey, parse_line
from scheduler.priority import PriorityName

TENANT_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it becomes a label of metrics
# Each tenant is some lines of the metrics page, and in the scheduler's accounts.
MAX_TENANTS = 1000
# Each costs the scheduler half a microsecond whenever a batch ends, and in overload per decision.
MAX_WEIGHTS = 100

Milliseconds = Annotated[float, msgspec.Meta(gt=0, le=86_400_000)]
# Rates are kept in thousandths: below one, nothing would ever be let in.
Rate = Annotated[float, msgspec.Meta(ge=0.001, le=1e9)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Positive = Annotated[int, msgspec.Meta(gt=0)]


class TenantsError(ValueError):
    """A tenants file that cannot be used. The message names the file, the tenant and the key."""


class TenantSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tenant as the file has it; None is "no limit", or "as everybody's".

    Bursts are what may be used at once after a pause; by default what a second brings, and at least
    one request.
    """

    keys: tuple[str, ...] = ()  # ID:SHA256, as `remontoir keys api` prints them
    models: tuple[str, ...] = ("*",)  # names, or globs as the shell has them
    default_slo_ms: Milliseconds | None = None  # before the model's default
    min_slo_ms: Milliseconds | None = None  # below it: 403, since tight SLOs cost others batching
    weight: Weight | None = None  # of the half of the devices' time that is divided in overload
    priority: PriorityName = (
        "normal"  # class of its requests, and the highest that they may ask for
    )
    requests_per_s: Rate | None = None
    requests_burst: Rate | None = None
    gpu_ms_per_s: Rate | None = None  # milliseconds of device time, of any kind of device
    gpu_ms_burst: Rate | None = None
    max_concurrent: Positive | None = None  # requests without an answer
    admin: bool = False  # may load and unload models, and read everything
    metrics: bool = False  # may read /metrics, which shows all tenants

    def stored_keys(self) -> list[StoredKey]:
        return [key for line in self.keys if (key := parse_line(line)) is not None]


Tenants = Mapping[str, TenantSpec]


def read_tenants(file: Path) -> Tenants:
    """By name, in the order of the file. Raises TenantsError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise TenantsError(f"tenants file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TenantsError(f"tenants file {file} is not UTF-8: {error.reason}") from error
    return parse_tenants(text, source=f"tenants file {file}")


def parse_tenants(text: str, *, source: str) -> Tenants:
    """The same of its text. Raises TenantsError."""
    try:
        content = yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        # Not the error's own text: it quotes the line, which may hold a key put there by mistake.
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise TenantsError(f"{source} is not YAML: {problem}{place}") from None
    if not isinstance(content, dict) or content.keys() != {"tenants"}:
        raise TenantsError(f"{source}: expected one key at the top level, `tenants:`")
    entries = content["tenants"]
    if not isinstance(entries, dict) or not entries:
        raise TenantsError(f"{source}: `tenants:` names none; expected NAME: and its settings")
    if len(entries) > MAX_TENANTS:
        raise TenantsError(f"{source}: {len(entries)} tenants, the most is {MAX_TENANTS}")
    tenants = {str(name): _spec(name, entry, source) for name, entry in entries.items()}
    _check_keys(tenants, source)
    num_weights = sum(weight > 0 for weight in weights_of(tenants).values())
    if num_weights > MAX_WEIGHTS:
        raise TenantsError(
            f"{source}: {num_weights} tenants have a weight, the most is {MAX_WEIGHTS}; where one "
            "has, all have that do not say `weight: 0`"
        )
    return tenants


def weights_of(tenants: Tenants) -> dict[str, float]:
    """For SchedulerConfig.tenant_weights: empty unless some tenant has a weight; then 1 is that of
    all who name none.
    """
    if not any(spec.weight for spec in tenants.values()):
        return {}
    return {name: 1.0 if spec.weight is None else spec.weight for name, spec in tenants.items()}


def _spec(name: object, entry: object, source: str) -> TenantSpec:
    if not isinstance(name, str) or not TENANT_NAME.fullmatch(name):
        raise TenantsError(
            f"{source}: tenant {str(name)[:80]!r}: a name is 1 to 64 letters, digits, "
            "'.', '_' and '-' (quote one of digits alone)"
        )
    where = f"{source}: tenant {name}"
    known = {field.name: field.type for field in msgspec.structs.fields(TenantSpec)}
    if not isinstance(entry, dict):
        raise TenantsError(f"{where}: expected `key: value` lines")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in known:
            raise TenantsError(f"{where}: unknown {str(key)[:60]!r}; known are {', '.join(known)}")
        try:
            values[key] = msgspec.convert(value, type=known[key])
        except msgspec.ValidationError as error:
            raise TenantsError(f"{where}: {key}: {error}") from None
    return _checked(TenantSpec(**values), where)


def _checked(spec: TenantSpec, where: str) -> TenantSpec:
    for number, line in enumerate(spec.keys, 1):
        if parse_line(line) is None:
            raise TenantsError(
                f"{where}: key {number} is not ID:SHA256 as `remontoir keys api` prints it"
                + (": it looks like the key itself" if line.startswith("rmt_") else "")
            )
    for burst, rate in (("requests_burst", "requests_per_s"), ("gpu_ms_burst", "gpu_ms_per_s")):
        if getattr(spec, burst) is not None and getattr(spec, rate) is None:
            raise TenantsError(f"{where}: {burst} without {rate}")
    if spec.requests_burst is not None and spec.requests_burst < 1:
        raise TenantsError(f"{where}: requests_burst is {spec.requests_burst:g}, at least 1")
    default_ms, min_ms = spec.default_slo_ms, spec.min_slo_ms
    if default_ms is not None and min_ms is not None and default_ms < min_ms:
        raise TenantsError(f"{where}: default_slo_ms {default_ms:g} is under min_slo_ms {min_ms:g}")
    return spec


def _check_keys(tenants: Tenants, source: str) -> None:
    owners: dict[bytes, str] = {}
    for name, spec in tenants.items():
        for key in spec.stored_keys():
            if key.key_id in owners:
                raise TenantsError(
                    f"{source}: key {key.key_id.decode()} is there twice: "
                    f"of {owners[key.key_id]}, and of {name}"
                )
            owners[key.key_id] = name
    if not owners:
        raise TenantsError(
            f"{source}: no tenant has a key, so nobody could ask anything; "
            "`remontoir keys api --tenant NAME` makes one"
        )
