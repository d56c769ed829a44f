"""The servers of a job: ours, any of a protocol, any other, one of `bench peers`'.

Owns their words and checks. It starts and asks nothing (targets.py).
"""

import re
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

Value = str | int | float | bool

_CPUS = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all words of a job are."""


class Target(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What all servers have. `url` is one that runs, its path a prefix of all others; without it
    the job starts one on `cpus`, in taskset's words. `pid` is of a process whose CPU time and
    memory, with its children's, are measured. `headers` go with each request; {env:NAME} in one is
    a variable of the driver's environment, so that no key need stand in a file. `labels` are
    further words of the configuration, as {threads: 2}.
    """

    url: str | None = None
    cpus: str = "0"
    pid: int | None = None
    headers: dict[str, str] = {}
    labels: dict[str, Value] = {}

    def __post_init__(self) -> None:
        if self.url is not None:
            _check_url(self.url)
        if not (_CPUS.fullmatch(self.cpus) and _are_ascending(self.cpus)):
            raise ValueError(f"cpus {self.cpus!r} is not as taskset has it: 0 or 0,2 or 0-3")
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(name) or not value.isprintable():
                raise ValueError(
                    f"headers: {name!r} is no header's name, or has no printable value"
                )
        self.check()

    def check(self) -> None:
        """The checks of the kind's own fields. Raises ValueError."""

    @property
    def prefix(self) -> str:
        """`/serving` of http://host/serving/, or nothing."""
        return "" if self.url is None else urlsplit(self.url).path.rstrip("/")

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
    """Any other server. `path`, `headers` and `body` may have {model}, {slo_ms}, {shape}, {input}
    (its name), {data} (numbers as JSON) and {base64} (the bytes of all inputs); `body` "raw" sends
    those bytes. `output` says how an answer is checked: "float32" is its bytes, "json:a.0.b" and
    "base64:a.0.b" are a member of its JSON, as numbers or as bytes of float32, "none" is not.
    """

    path: str
    start: tuple[str, ...] = ()
    ready: str = "/"
    environ: dict[str, str] = {}
    method: Literal["POST", "PUT", "GET"] = "POST"
    body: str = "raw"
    output: str = "none"

    def check(self) -> None:
        self._needs_one_place(self.start)
        if not self.path.startswith("/"):
            raise ValueError(f"path {self.path!r} does not begin with /")
        if self.output not in ("none", "float32") and not self.output.startswith(
            ("json:", "base64:")
        ):
            raise ValueError(
                f"output {self.output!r} is not none, float32, json:MEMBER.MEMBER or "
                "base64:MEMBER.MEMBER"
            )


class PeerServer(Target, frozen=True, kw_only=True, tag="peer"):
    """A server that `remontoir bench peers` has installed, started as that does: as it comes, or
    with batches, timeouts and limits for an SLO of `tuned_for` executions.
    """

    peer: str
    tuned_for: float | None = None

    def check(self) -> None:
        from loadtest.peers.registry import by_name  # here: it brings ONNX Runtime with it

        if self.url is not None or self.headers:
            raise ValueError("url and headers are not for a peer, which the job starts")
        peer = by_name(self.peer)
        if self.tuned_for is None:
            return
        if not 1 <= self.tuned_for <= 1e6:
            raise ValueError(f"tuned_for {self.tuned_for} is not 1 to 10^6 executions")
        if not peer.can_be_tuned:
            raise ValueError(f"tuned_for {self.tuned_for}: {peer.title}: {peer.note}")


AnyTarget: TypeAlias = Remontoir | V2 | Url | PeerServer
# What requests can be made for: a peer that runs is one of them.
Spoken: TypeAlias = Remontoir | V2 | Url


def _are_ascending(cpus: str) -> bool:
    """The two ends of each 0-3."""
    ends = [[int(end) for end in part.split("-")] for part in cpus.split(",")]
    return all(first_and_last == sorted(first_and_last) for first_and_last in ends)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        is_one = False
    if not is_one or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(
            f"url {url!r} is not http://HOST:PORT or https://HOST:PORT, with a /PATH before the "
            "protocol's own where there is one"
        )
