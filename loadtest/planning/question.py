"""What is to be planned for: models, requests and a kind of device, from whatever the user has.

Owns how a scenario, a recording or a trace becomes one Question. It plays nothing.
"""

import csv
import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtest.profiles import ProfileError
from loadtest.scenario import Case, ScenarioError, load
from loadtest.scenario_setup import Devices, Models, Profile, Setup
from loadtest.stage import models_of
from loadtest.workloads import AzureFunctions, AzureLlm, Closed, Requests, ServeGen
from loadtest.workloads.request_files import is_recording, read_requests
from loadtest.workloads.trace_files import (
    WINDOW_S,
    TraceError,
    client_windows,
    gaps_s,
    minute_counts,
)
from scheduler.event_log import Handled, Header
from scheduler.events import ModelAdded, WorkerJoined
from scheduler.recording import Recording, RecordingError
from scheduler.spec import SECOND_NS, DeviceSpec, ModelSpec, SchedulerConfig

MEBIBYTE = 2**20
MINUTE_S = 60.0
PIECE_BYTES = 256 * 1024
SNIFFED_BYTES = 64 * 1024
# Of a trace that says only rates: drawing a million requests takes seconds.
MAX_DRAWN = 1_000_000


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`case` is played with other numbers of devices and pages; its own are where they begin.

    `remarks` are sentences on what was left out or taken for granted.
    """

    case: Case
    source: str
    remarks: tuple[str, ...] = ()

    @property
    def devices(self) -> Devices:
        return self.case.setup.devices[0]

    @property
    def is_closed(self) -> bool:
        """Whether requests depend on answers, so that no part of them can be cut out."""
        return any(isinstance(entry, Closed) for entry in self.case.setup.workload)

    def sized(self, *, devices: int, pages: int, seed: int) -> Case:
        """The same with so many devices of so many pages, as warm as they can be at the start."""
        setup = self.case.setup
        kind = msgspec.structs.replace(self.devices, count=devices, pages=pages, resident="fit")
        return msgspec.structs.replace(
            self.case, setup=msgspec.structs.replace(setup, devices=(kind,)), seed=seed
        )


def of_scenario(path: str, *, values: dict[str, Sequence[Any]], policy: str | None) -> Question:
    """Raises ScenarioError; also where the variables leave more than one run to choose from."""
    scenario = load(path)
    chosen = policy or scenario.policies[0]
    cases = scenario.expand(policies=[chosen], variables=values)
    settings = {(case.policy, *case.values.items()): case for case in cases}
    if len(settings) > 1:
        names = "; ".join(case.name for case in settings.values())
        raise ScenarioError(
            f"{path}: a plan is for one setting, these are {len(settings)} ({names:.200}): choose "
            "with --set and --policy"
        )
    [case] = settings.values()
    setup = case.setup
    kinds = {msgspec.structs.replace(devices, count=1, resident="fit") for devices in setup.devices}
    if len(kinds) > 1:
        raise ScenarioError(
            f"{path}: {len(kinds)} kinds of devices; a plan counts devices of one kind"
        )
    remarks = []
    if policy is None and len(scenario.policies) > 1:
        remarks.append(f"Of the scenario's policies, the first: {chosen} (--policy).")
    if setup.faults:
        remarks.append(f"The scenario's {len(setup.faults)} faults are left out.")
    bare = msgspec.structs.replace(setup, faults=(), devices=(kinds.pop(),))
    return Question(
        case=msgspec.structs.replace(case, setup=bare),
        source=f"scenario {path}",
        remarks=tuple(remarks),
    )


def of_trace(
    trace: str,
    *,
    models: Sequence[Models],
    slo_ms: float | None,
    policy: str | None,
    devices: Devices,
    duration_s: float | None = None,
    rate_per_s: float | None = None,
    scale: float | None = None,
) -> Question:
    """A trace file of any form that workloads know, told by its first line.

    Raises ScenarioError for a file of no known form, and where an SLO is needed and not given.
    """
    form = _form_of(trace)
    if slo_ms is None and form != "requests":
        raise ScenarioError(f"{trace}: its requests have no SLOs; say one with --slo-ms")
    scaled: dict[str, Any] = {"scale": scale, "scale_to_rate_per_s": rate_per_s}
    entry: AzureFunctions | AzureLlm | ServeGen | Requests
    common: dict[str, Any] = {"models": "*", "slo_ms": slo_ms or 0.0, "file": trace}
    remark = ""
    try:
        if form == "azure-functions":
            entry, span_s, remark = _busy_minutes(common, duration_s, **scaled)
        elif form == "azure-llm":
            entry = AzureLlm(**common, **scaled)
            gaps = gaps_s(trace)
            speed = scale or (rate_per_s * math.fsum(gaps) / len(gaps) if rate_per_s else 1.0)
            span_s = math.fsum(gaps) / speed
        elif form == "servegen":
            entry = ServeGen(**common, **scaled)
            span_s = (1 + max(max(windows) for windows in client_windows(trace))) * WINDOW_S
        else:
            entry, span_s = _requests(trace, slo_ms, rate_per_s=rate_per_s, scale=scale)
    except TraceError as error:
        raise ScenarioError(str(error)) from error
    setup = _setup(
        duration_s=span_s if duration_s is None else min(duration_s, span_s),
        models=tuple(models),
        workload=(entry,),
        devices=(devices,),
    )
    case = Case(
        scenario=Path(trace).name,
        setup=setup,
        policy=policy or "remontoir",
        duration_s=setup.duration_s,
    )
    return Question(
        case=case, source=f"trace {trace} ({form})", remarks=tuple(filter(None, [remark]))
    )


def of_recording(
    path: str,
    *,
    catalogue: Path,
    slo_ms: float | None,
    policy: str | None,
    rate_per_s: float | None = None,
    scale: float | None = None,
) -> Question:
    """What a gateway has recorded: its models as its workers measured them, its kind of device.

    `catalogue` is a file to be written with those models. Raises ScenarioError.
    """
    header, specs, device = _recorded(Path(path))
    entry, span_s = _requests(path, slo_ms, rate_per_s=rate_per_s, scale=scale)
    asked = set(read_requests(path).models)
    found = [specs[name] for name in sorted(asked & specs.keys())]
    found = [spec for spec in found if spec.profile.shapes]
    if not found:
        raise ScenarioError(f"{path}: no worker in it said how long a model takes")
    remarks = []
    if lost := sorted(asked - {spec.name for spec in found}):
        remarks.append(f"Left out, as no worker knew them: {', '.join(lost)}.")
    catalogue.write_bytes(msgspec.json.encode(found))
    kind = Devices(
        pages=device.total_pages,
        page_mb=max(1, device.page_bytes // MEBIBYTE),
        shares_exec_core=device.shares_exec_core,
    )
    defaults = msgspec.to_builtins(SchedulerConfig())
    changed = {k: v for k, v in msgspec.to_builtins(header.config).items() if v != defaults[k]}
    setup = _setup(
        duration_s=span_s,
        models=tuple(
            Models(name=spec.name, profile=Profile(catalogue=str(catalogue), model=spec.name))
            for spec in found
        ),
        workload=(entry,),
        devices=(kind,),
        scheduler=changed,
    )
    text = policy or header.policy
    return Question(
        case=Case(scenario=Path(path).name, setup=setup, policy=text, duration_s=setup.duration_s),
        source=f"recording {path}",
        remarks=tuple(remarks),
    )


def is_recording_file(path: str) -> bool:
    """Raises ScenarioError where there is no such file."""
    try:
        return is_recording(Path(path))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error


def pages_of_all(question: Question) -> int:
    """Pages that hold the weights of all models at once."""
    page_bytes = question.devices.page_mb * MEBIBYTE
    return sum(spec.num_pages(page_bytes) for spec in models_of(question.case.setup))


def pages_of_largest(question: Question) -> int:
    page_bytes = question.devices.page_mb * MEBIBYTE
    return max(spec.num_pages(page_bytes) for spec in models_of(question.case.setup))


def _setup(**said: Any) -> Setup:
    try:
        return Setup(**said)
    except (ValueError, ProfileError) as error:
        raise ScenarioError(str(error)) from error


def _busy_minutes(
    common: dict[str, Any],
    duration_s: float | None,
    *,
    scale: float | None,
    scale_to_rate_per_s: float | None,
) -> tuple[AzureFunctions, float, str]:
    """A day may have a hundred million requests, and says of each minute only how many: the busiest
    minutes are known without drawing one of them.
    """
    per_minute = [sum(counts) for counts in zip(*minute_counts(common["file"]), strict=True)]
    if duration_s is not None:
        per_minute = per_minute[: max(1, math.ceil(duration_s / MINUTE_S))]
    total = sum(per_minute)
    if scale_to_rate_per_s is not None and total:
        scale = scale_to_rate_per_s * MINUTE_S * len(per_minute) / total
    scale = scale or 1.0
    first, last = 0, len(per_minute)
    remark = ""
    if total * scale > MAX_DRAWN:
        first = per_minute.index(max(per_minute))
        last = first + 1
        while True:  # the busier neighbour, while there is room
            before = per_minute[first - 1] if first > 0 else -1
            after = per_minute[last] if last < len(per_minute) else -1
            if (sum(per_minute[first:last]) + max(before, after)) * scale > MAX_DRAWN:
                break
            if before > after:
                first -= 1
            else:
                last += 1
        remark = (
            f"The trace has {total * scale:,.0f} requests in {len(per_minute)} minutes; looked "
            f"through are the {last - first} minutes around the busiest, from minute {first} on."
        )
    entry = AzureFunctions(**common, scale=scale, first_minute=first)
    return entry, (last - first) * MINUTE_S, remark


def _requests(
    path: str, slo_ms: float | None, *, rate_per_s: float | None, scale: float | None
) -> tuple[Requests, float]:
    """Faster or slower as asked; with an SLO of the user's own, all have that one."""
    try:
        listed = read_requests(path)
    except TraceError as error:
        raise ScenarioError(str(error)) from error
    if slo_ms is None and not all(listed.slo_ns):
        raise ScenarioError(f"{path}: not all of its requests have an SLO; say one with --slo-ms")
    span_s = max(1e-3, listed.at_ns[-1] / SECOND_NS)
    speed = scale or (rate_per_s * span_s / len(listed.at_ns) if rate_per_s else 1.0)
    entry = Requests(
        models="*",
        slo_ms=slo_ms or 1.0,  # not used where each has its own
        file=path,
        speed=speed,
        keeps_slos=slo_ms is None,
    )
    return entry, math.nextafter(span_s / speed, math.inf) + 1e-6


def _form_of(trace: str) -> str:
    """By the columns. Files of loadtest/data go by their names alone."""
    if "/" not in trace and not Path(trace).exists():
        data = Path(__file__).parent.parent / "data" / trace
    else:
        data = Path(trace)
    try:
        if is_recording(data):
            return "requests"
        is_packed = data.name.endswith(".gz")
        with gzip.open(data) if is_packed else data.open("rb") as content:
            line = content.read(SNIFFED_BYTES).split(b"\n", 1)[0].decode("utf-8").strip()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{trace} cannot be read: {error}") from error
    columns = set(next(csv.reader([line]), []))
    if "at_s" in columns:
        return "requests"
    if "TIMESTAMP" in columns:
        return "azure-llm"
    if {"client", "window_start_s", "rate_rps"} <= columns:
        return "servegen"
    if any(column.isdigit() for column in columns):
        return "azure-functions"
    raise ScenarioError(
        f"{trace}: a trace has a column at_s (a request a row), TIMESTAMP (Azure's LLM traces), "
        f"client and window_start_s (ServeGen), or minutes 1, 2, ... (Azure Functions); this one "
        f"has {line[:80]!r}"
    )


def _recorded(path: Path) -> tuple[Header, dict[str, ModelSpec], DeviceSpec]:
    """Models by their names in the scheduler: as the first worker measured them."""
    specs: dict[str, ModelSpec] = {}
    measured: dict[str, ModelSpec] = {}
    device: DeviceSpec | None = None
    try:
        with path.open("rb") as file:
            recording = Recording(iter(lambda: file.read(PIECE_BYTES), b""))
            specs = {spec.key: spec for spec in recording.header.models}
            for entry in recording:
                if not isinstance(entry, Handled):
                    continue
                if isinstance(entry.event, WorkerJoined):
                    device = device or entry.event.device
                    for spec in entry.event.models:
                        measured.setdefault(spec.name, spec)
                elif isinstance(entry.event, ModelAdded):
                    specs[entry.event.spec.key] = entry.event.spec
    except (OSError, RecordingError) as error:
        raise ScenarioError(f"{path}: {error}") from error
    if device is None:
        raise ScenarioError(f"{path}: no worker joined in it, so nothing is known of devices")
    known = {**specs, **measured}
    named = {
        name: msgspec.structs.replace(spec, name=name, scheduled_as="", is_pinned=False)
        for name, spec in known.items()
        if spec.unavailable_reason is None
    }
    return recording.header, named, device
