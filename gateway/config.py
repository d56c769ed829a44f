"""GatewayConfig: every knob of the gateway once, checked at start, then frozen.

It owns names, units, defaults and bounds. It must never be read from the environment anywhere else,
and no part of the gateway gets more of it than it needs. Precedence: command line over environment
(`REMONTOIR_<NAME>`) over file (YAML) over default. A key that is unknown or malformed stops the
process with its name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

ENVIRONMENT_PREFIX = "REMONTOIR_"
FILE_VARIABLE = "REMONTOIR_CONFIG_FILE"
KEY_VARIABLE = "REMONTOIR_API_KEY"  # no setting: what `remontoir infer` and its like send
MEBIBYTE = 1024 * 1024

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(gt=0)]
Milliseconds = Annotated[float, msgspec.Meta(gt=0, le=86_400_000)]
Ahead = Annotated[float, msgspec.Meta(ge=0, le=1000)]
Refresh = Annotated[float, msgspec.Meta(ge=100, le=60_000)]
LogFormat = Literal["pretty", "json"]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class ConfigError(ValueError):
    """A setting that cannot be used. The message names the key and where it came from."""


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one gateway process. "mb" means MiB, as in the command line's flags."""

    host: str = "127.0.0.1"  # nobody else's machine until it is asked for, and then with keys
    port: Port = 8000  # where Triton and KServe listen; 0 takes a free one
    models_dir: str | None = None  # no default: serving the wrong directory is worse than asking
    cache_dir: str | None = None  # compiled artifacts; None: the user's cache directory
    emulate: str | None = None  # "clockwork-v100:4": emulated devices in place of real ones
    record: str | None = None  # a file for the event log; grows by the request, so: when asked

    groups_file: str | None = None  # none: a model is asked for by its own name alone
    tenants_file: str | None = None  # none: nobody needs a key, which is for this machine alone
    tenants: str | None = None  # the text of such a file, for where a variable is easier than one
    insecure: bool = False  # other machines without a key: only for who has said that they mean it
    open_metrics: bool = False  # /metrics without a key; it names tenants, models and their load

    device: str = "auto"  # every GPU there is; the CPU of a machine that has none
    workers: Count = 1  # of our own on the CPU; 0 where all join through worker_bind
    # Of each execution on the CPU: two workers of one thread serve more than one worker of two.
    intra_op_threads: Positive = 1
    worker_bind: str | None = None  # no door for other machines until it is asked for
    tls_cert: str | None = None  # PEM files; plain HTTP on loopback, or behind a proxy that has TLS
    tls_key: str | None = None  # None: in the same file
    cors_origins: str | None = None  # no other site's pages until they are named
    replica: str | None = None  # own name among `replicas`; None: this gateway is the only one
    replicas: str | None = None  # NAME=URL[;weight=W],...: all of them, the same text everywhere
    replica_copies: Positive = 2  # replicas that have a model ready: one may be away
    curve_keys: str | None = None  # a directory of `remontoir keys curve`; needed beyond loopback
    cache_mb: Positive | None = None  # None: the device's; on the CPU all demo models, 1,024
    page_mb: Positive = 16  # the OSDI'20 paper's page: a cost per page below 1 % of its copy
    # 0: nobody's model changes since a file does, until that is asked for; POST .../reload works
    repository_poll_s: Seconds = 0.0
    keep_versions: Count = 1  # the way back from one bad version; each costs its copy on the host
    drain_s: Seconds = 5.0  # a load balancer's usual probe interval, so it sees readyz fail
    answer_grace_s: Seconds = 20.0  # then, for what was admitted: longer than any SLO worth it

    triton_metrics: bool = False  # nv_* besides remontoir_*: twice the series, for who needs them
    scaling_horizon_s: Seconds = (
        60.0  # a worker on a machine that is there: image, start, first load
    )
    scaling_target_utilisation: Share = 0.7  # bursts within ten seconds take the rest

    policy: str = "remontoir"  # scheduler/policies: a name, or name:option=value,...
    schedule_ahead_ms: Ahead | None = None  # None: the policy's own rule
    default_slo_ms: Milliseconds = 1000.0  # an interactive page's patience where nobody said
    max_body_mb: Positive = 64  # one batch of 16 camera images as FP32; also after decompression
    body_timeout_ms: Milliseconds = 10_000.0  # 64 MiB at 55 Mbit/s; slower holds memory for nothing
    max_header_kb: Positive = 64  # Envoy's limit is 60, and what it lets through must come in
    header_timeout_ms: Milliseconds = (
        10_000.0  # from its first byte; one packet of an honest client
    )
    idle_timeout_s: Seconds = 75.0  # load balancers' is 60: the server must not be the first
    max_connections: Positive = 16_384  # twice a busy proxy's; also what open files allow, less 512
    max_open_requests: Positive = 16_384  # above the scheduler's own queue limit, which says more
    max_buffered_mb: Positive = 1024  # bodies held at once: 16 of the largest
    # What /requests knows: seconds of a busy day, an hour of a quiet one, 15 MiB.
    recent_requests: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 10_000
    log_format: LogFormat = "pretty"  # a person reads it first
    otlp_endpoint: str | None = None  # a collector of traces; needs the extra `otel`
    # Of requests whose caller has not decided it; 1 in 100 costs a busy core 1 %.
    trace_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01
    shed_status: Literal[429, 503] = 429  # contended, not broken: 5xx trips outlier ejection
    ui_pages: Count = 256  # live pages open at once, a team's; 0 turns /ui off
    ui_interval_ms: Refresh = 500.0  # of the live page: twice a second is as much as one can read
    retry_after_ms: Milliseconds = 1000.0  # where the core names no better time: a worker's restart


def load_config(
    *,
    environ: Mapping[str, str],
    file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
) -> GatewayConfig:
    """Merges the sources. `overrides` are command-line flags; None there means "not given".

    Raises ConfigError naming the key, its source and what is wrong with it.
    """
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    settings: dict[str, object] = {}
    if file is not None:
        settings |= _converted(_read_file(file), source=str(file), strict=True)
    settings |= _converted(_from_environment(environ), source="environment", strict=False)
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    settings |= _converted(given, source="command line", strict=True)
    return GatewayConfig(**settings)  # type: ignore[arg-type]  # each value was converted by key


def _read_file(file: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"config file {file}: expected `key: value` lines at the top level")
    return {str(key): value for key, value in content.items()}


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
        and name not in (FILE_VARIABLE, KEY_VARIABLE)
        and not _is_of_a_service(name, value)
    }


def _is_of_a_service(name: str, value: str) -> bool:
    """Kubernetes describes a Service called remontoir to every pod beside it, in such variables."""
    is_port = name.endswith("_PORT") and value.startswith(("tcp://", "udp://"))
    return is_port or "_SERVICE_" in name or "_PORT_" in name


def _converted(settings: Mapping[str, object], *, source: str, strict: bool) -> dict[str, object]:
    """Each value as its field's type. `strict` is false for texts, which stand for numbers too."""
    types = {field.name: field.type for field in msgspec.structs.fields(GatewayConfig)}
    converted: dict[str, object] = {}
    for key, value in settings.items():
        shown_key = f"{ENVIRONMENT_PREFIX}{key.upper()}" if source == "environment" else key
        if key not in types:
            known = ", ".join(sorted(types))
            raise ConfigError(f"{source}: unknown setting {shown_key}; known are {known}")
        try:
            converted[key] = msgspec.convert(value, type=types[key], strict=strict)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{source}: {shown_key} is {value!r}: {error}") from error
    return converted
