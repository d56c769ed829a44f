"""JOB.yaml in types: which models on which servers under which workload, and how often.

Owns the words of a job, their defaults and checks. Reads no file (job_file.py), measures nothing.
Units: seconds (`_s`), milliseconds (`_ms`), megabits per second (`_mbit_s`).
"""

import re
from typing import Literal, TypeAlias

import msgspec

from loadtest.workloads import WorkloadEntry

Protocol = Literal["infer-json", "infer-binary", "v2-json", "v2-binary", "template"]
Family = Literal["fully-connected", "residual-cnn", "lstm", "attention"]
NetworkName = Literal["none", "lan", "wifi", "4g"]
Preprocess = Literal["none", "normalize", "picture", "tokens"]
Postprocess = Literal["none", "top5"]
Value = str | int | float | bool

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CPUS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_URL = re.compile(r"https?://[^/\s]+")
# An hour for one measurement: a job of that length is meant otherwise.
LONGEST_S = 3600.0
MOST_REPEATS = 1000


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of them are."""


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
    shapes: dict[str, tuple[int, ...]] = {}

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is not letters, digits, '.', '_', '-'")
        given = [x for x in ("path", "canonical", "registered") if getattr(self, x) is not None]
        if len(given) > 1:
            raise ValueError(f"model {self.name!r} has {' and '.join(given)}: give one of them")
        _in_range("batch", self.batch, 1, 4096)

    @property
    def is_here(self) -> bool:
        """Its file is on this machine: it can be served, executed and checked."""
        return any(x is not None for x in (self.path, self.canonical, self.registered))


class Target(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What all servers have. `url` is one that runs; without it the job starts one on `cpus`, in
    taskset's words. `pid` is of a process whose CPU time and memory, with its children's, are
    measured. `labels` are further words of the configuration, as {threads: 2}.
    """

    url: str | None = None
    cpus: str = "0"
    pid: int | None = None
    labels: dict[str, Value] = {}

    def __post_init__(self) -> None:
        if self.url is not None and not _URL.match(self.url):
            raise ValueError(f"url {self.url!r} is not http://HOST:PORT or https://HOST:PORT")
        if not _CPUS.fullmatch(self.cpus):
            raise ValueError(f"cpus {self.cpus!r} is not as taskset has it: 0 or 0,2 or 0-3")
        self.check()

    def check(self) -> None:
        """The checks of the kind's own fields. Raises ValueError."""

    def _needs_one_place(self, start: tuple[str, ...]) -> None:
        if (self.url is None) == (not start):
            raise ValueError("give one of url, of a server that runs, and start, a command")


class Remontoir(Target, frozen=True, kw_only=True, tag="remontoir"):
    """This product. `serve` are further flags of `remontoir serve`: {cache_mb: 64}."""

    policy: str = "remontoir"
    device: str = "cpu"
    serve: dict[str, Value] = {}

    def check(self) -> None:
        if self.url is not None and self.serve:
            raise ValueError("serve is for a server that the job starts; this one has a url")


class V2(Target, frozen=True, kw_only=True, tag="v2"):
    """Any server of the Open Inference Protocol. `start` is a command with {port}, {models} (the
    folder of a repository) and {python} (this one); it is ready when `ready` answers 200. `slo`:
    sent as the protocol's parameter timeout, in microseconds, which Triton's queues know; or not at
    all.
    """

    start: tuple[str, ...] = ()
    ready: str = "/v2/health/ready"
    slo: Literal["timeout", "none"] = "timeout"
    environ: dict[str, str] = {}

    def check(self) -> None:
        self._needs_one_place(self.start)


class Url(Target, frozen=True, kw_only=True, tag="url"):
    """Any other server. `path`, `headers` and `body` may have {model}, {slo_ms}, {shape}, {data}
    (numbers as JSON); `body` "raw" sends the inputs' bytes. `output` says how an answer is checked:
    its bytes as float32, a member of its JSON as in "json:predictions", or not.
    """

    path: str
    start: tuple[str, ...] = ()
    ready: str = "/"
    environ: dict[str, str] = {}
    method: Literal["POST", "PUT", "GET"] = "POST"
    headers: dict[str, str] = {}
    body: str = "raw"
    output: str = "none"

    def check(self) -> None:
        self._needs_one_place(self.start)
        if not self.path.startswith("/"):
            raise ValueError(f"path {self.path!r} does not begin with /")
        if self.output not in ("none", "float32") and not self.output.startswith("json:"):
            raise ValueError(f"output {self.output!r} is not none, float32 or json:MEMBER.MEMBER")


AnyTarget: TypeAlias = Remontoir | V2 | Url


class Network(Struct, frozen=True, kw_only=True):
    """One client's link. `delay_ms` is one way; each request has the link to itself."""

    up_mbit_s: float
    down_mbit_s: float
    delay_ms: float

    def __post_init__(self) -> None:
        for name in ("up_mbit_s", "down_mbit_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name} {getattr(self, name)} is not above 0 and below 10^6")
        if not 0 <= self.delay_ms < 1e4:
            raise ValueError(f"delay_ms {self.delay_ms} is not 0 to 10,000")


class Client(Struct, frozen=True, kw_only=True):
    """What a client does around a request, as stages of their own."""

    network: NetworkName | Network = "none"
    preprocess: Preprocess = "none"
    postprocess: Postprocess = "none"


class Job(Struct, frozen=True, kw_only=True):
    """One measurement: everything that `duration_s` seconds of load depend on. Variables are filled
    in; multiples of capacity and execution are not (resolve.py).
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
        _in_range("connections", self.connections, 1, 20_000)
        _in_range("processes", self.processes, 1, 64)
        _in_range("variants", self.variants, 1, 1024)
        for field in ("models", "workload"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty")
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: the name {name!r} is given twice")
        is_url = isinstance(self.target, Url)
        if self.protocol is not None and is_url != (self.protocol == "template"):
            kind = "url" if is_url else "remontoir or v2"
            raise ValueError(f"protocol {self.protocol!r} is not for a target of kind {kind}")
        if isinstance(self.target, V2) and (self.protocol or "").startswith("infer"):
            raise ValueError(f"protocol {self.protocol!r} is not for a target of kind v2")
        if self.target.url is None or is_url:
            for model in self.models:
                if not model.is_here:
                    raise ValueError(
                        f"model {model.name!r} has none of path, canonical and registered, which "
                        "only a server of the Open Inference Protocol at a url can do without"
                    )

    @property
    def spoken(self) -> Protocol:
        """The protocol, the target's usual one where none is given."""
        if self.protocol is not None:
            return self.protocol
        match self.target:
            case Remontoir():
                return "infer-binary"
            case V2():
                return "v2-binary"
            case Url():
                return "template"


def _in_range(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{field} {value} is not {least:g} to {most:g}")
