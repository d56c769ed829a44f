"""JOB.yaml in types: which models on which servers under which workload, and how often.

Owns the words of a job, their defaults and checks. Reads no file (job_file.py), measures nothing;
servers are job_target.py's. Units: seconds (`_s`), milliseconds (`_ms`), megabits per second
(`_mbit_s`).
"""

import re
from typing import Literal

import msgspec

from loadtest.driver.job_target import V2, AnyTarget, PeerServer, Remontoir, Struct, Url
from loadtest.workloads import Closed, WorkloadEntry
from loadtest.workloads.choice import matching_models

Protocol = Literal["infer-json", "infer-binary", "v2-json", "v2-binary", "template"]
Family = Literal["fully-connected", "residual-cnn", "lstm", "attention"]
NetworkName = Literal["none", "lan", "wifi", "4g"]
Preprocess = Literal["none", "normalize", "picture", "tokens"]
Postprocess = Literal["none", "top5"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MOST_NAME_CHARACTERS = 100  # as in the registry
# An hour for one measurement: a job of that length is meant otherwise.
LONGEST_S = 3600.0
MOST_REPEATS = 1000
MOST_CONNECTIONS = 20_000  # a client address has 28,000 ports for one server


class Canonical(Struct, frozen=True, kw_only=True):
    """A generated model (InferBench, section 4.1): blocks of one family, with seeded weights."""

    family: Family
    depth: int = 4
    width: int = 64
    seed: int = 1

    def __post_init__(self) -> None:
        _in_range("depth", self.depth, 1, 512)
        _in_range("width", self.width, 1, 8192)


class JobModel(Struct, frozen=True, kw_only=True):
    """A model of a job, from one of: `path` of an .onnx file, `canonical`, `registered` name in the
    results' database, or nothing: the server at a URL has it. `batch` rows go into one request.
    `shapes` says how long an input's free dimensions are: the shape of one row.
    """

    name: str
    path: str | None = None
    canonical: Canonical | None = None
    registered: str | None = None
    batch: int = 1
    shapes: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is not letters, digits, '.', '_', '-'")
        if len(self.name) > MOST_NAME_CHARACTERS:
            raise ValueError(
                f"name {self.name:.20}... has more than {MOST_NAME_CHARACTERS} characters"
            )
        given = [x for x in ("path", "canonical", "registered") if getattr(self, x) is not None]
        if len(given) > 1:
            raise ValueError(f"model {self.name!r} has {' and '.join(given)}: give one of them")
        _in_range("batch", self.batch, 1, 4096)

    @property
    def is_here(self) -> bool:
        """Its file is on this machine: it can be served, executed and checked."""
        return any(x is not None for x in (self.path, self.canonical, self.registered))


class Network(Struct, frozen=True, kw_only=True):
    """One client's link. `delay_ms` is one way, `jitter_ms` the mean of what comes on top of it by
    chance (exponentially distributed); each request has the link to itself.
    """

    up_mbit_s: float
    down_mbit_s: float
    delay_ms: float
    jitter_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("up_mbit_s", "down_mbit_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name} {getattr(self, name)} is not above 0 and below 10^6")
        for name in ("delay_ms", "jitter_ms"):
            if not 0 <= getattr(self, name) < 1e4:
                raise ValueError(f"{name} {getattr(self, name)} is not 0 to 10,000")


class Client(Struct, frozen=True, kw_only=True):
    """What a client does around a request, as stages of their own."""

    network: NetworkName | Network = "none"
    preprocess: Preprocess = "none"
    postprocess: Postprocess = "none"


class Job(Struct, frozen=True, kw_only=True):
    """One measurement: everything that `duration_s` seconds of load depend on. Variables are filled
    in; multiples of capacity and execution are not (bare_loop.py).
    """

    target: AnyTarget
    models: tuple[JobModel, ...]
    workload: tuple[WorkloadEntry, ...]
    duration_s: float
    protocol: Protocol | None = None
    client: Client = Client()
    warm_up_s: float = 2.0
    give_up_s: float = 2.0
    connections: int = 64
    processes: int = 1
    variants: int = 8

    def __post_init__(self) -> None:
        _in_range("duration_s", self.duration_s, 0.1, LONGEST_S)
        _in_range("warm_up_s", self.warm_up_s, 0, LONGEST_S)
        _in_range("give_up_s", self.give_up_s, 0.01, LONGEST_S)
        _in_range("connections", self.connections, 1, MOST_CONNECTIONS)
        _in_range("processes", self.processes, 1, 64)
        _in_range("variants", self.variants, 1, 1024)
        for field in ("models", "workload"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty")
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: the name {name!r} is given twice")
        self._check_protocol()
        self._check_models()
        self._check_workload(names)

    def _check_protocol(self) -> None:
        target, protocol = self.target, self.protocol
        if protocol is None:
            return
        if isinstance(target, PeerServer):
            raise ValueError(
                f"protocol {protocol!r}: a peer is asked in its own form; leave it out"
            )
        is_url = isinstance(target, Url)
        if is_url != (protocol == "template"):
            kind = "url" if is_url else "remontoir or v2"
            raise ValueError(f"protocol {protocol!r} is not for a target of kind {kind}")
        if isinstance(target, V2) and protocol.startswith("infer"):
            raise ValueError(f"protocol {protocol!r} is not for a target of kind v2")

    def _check_models(self) -> None:
        is_asked_for_metadata = self.target.url is not None and not isinstance(self.target, Url)
        for index, model in enumerate(self.models):
            if not model.is_here and not is_asked_for_metadata:
                raise ValueError(
                    f"models[{index}]: {model.name!r} has none of path, canonical and registered, "
                    "which only a server of the Open Inference Protocol at a url can do without"
                )
            if isinstance(self.target, PeerServer) and model.batch != 1:
                raise ValueError(
                    f"models[{index}].batch: {model.batch}: peers are sent one row a request"
                )

    def _check_workload(self, names: list[str]) -> None:
        """What would otherwise show in the middle of a job."""
        seen: set[str] = set()
        for index, entry in enumerate(self.workload):
            try:
                self._check_entry(entry, names)
                if entry.name in seen:
                    entry.refuse("name", f"{entry.name!r} is given twice")
            except ValueError as error:
                raise ValueError(f"workload[{index}]: {error}") from error
            seen |= {entry.name} - {""}

    def _check_entry(self, entry: WorkloadEntry, names: list[str]) -> None:
        num_models = len(matching_models(entry, names))
        if isinstance(entry, Closed) and entry.clients * num_models > MOST_CONNECTIONS:
            entry.refuse(
                "clients",
                f"{entry.clients:,} of each of {num_models} model(s): each has a connection, and "
                f"{MOST_CONNECTIONS:,} are the most",
            )
        if entry.tenant:
            entry.refuse(
                "tenant",
                f"{entry.tenant!r} is for scenarios: a server knows whose requests these are by "
                "the key in target.headers",
            )
        if entry.priority != "normal" and isinstance(self.target, Url | PeerServer):
            entry.refuse("priority", f"{entry.priority!r} has no place in this target's requests")

    @property
    def spoken(self) -> Protocol:
        """The protocol, the target's usual one where none is given."""
        return usual_protocol(self.target) if self.protocol is None else self.protocol


def usual_protocol(target: AnyTarget) -> Protocol:
    match target:
        case Remontoir():
            return "infer-binary"
        case V2():
            return "v2-binary"
        case Url() | PeerServer():
            return "template"


def _in_range(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{field} {value} is not {least:g} to {most:g}")
