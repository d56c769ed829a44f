"""A peer: what it is called, what it needs, how it is started, and what a request to it looks like.

Owns the interface that all peers have. A peer is a command in an environment of its own; its
configuration travels in a JSON object (servers/peer_models.py), whose values are `Tuning`.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loadtest.reference import Loop, best_within

SERVERS = Path(__file__).parent / "servers"
REQUIREMENTS = Path(__file__).parent / "requirements"
BASELINES = Path(__file__).parent.parent / "baselines"
# What most of their documentations begin with for latency: a few milliseconds.
BATCH_WAIT_MS = 5.0
MAX_BATCH = 8


class Wire(StrEnum):
    """How a row goes in and an answer comes out."""

    RAW = "raw"  # bytes of values, both ways
    BASE64_LIST = "base64 list"  # {"data": ["..."]}, the answer a list
    BASE64 = "base64"  # {"data": "..."}, both ways
    V2_BINARY = "v2 binary"
    V2_BASE64 = "v2 base64"  # one value of type BYTES, both ways
    REMONTOIR = "/infer binary"


class ModelTuning(msgspec.Struct, frozen=True, kw_only=True):
    """One model, for one SLO. `limit`: requests that fit into it, one after the other."""

    path: str
    max_batch: int
    limit: int
    queue_timeout_ms: float
    timeout_ms: float


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """Of a whole server. What is not per model is what the most patient model may have."""

    is_tuned: bool
    models: dict[str, ModelTuning]
    batch_wait_ms: float
    timeout_ms: float
    limit: int


class Started(NamedTuple):
    """How a peer is started: a command, files that it needs below its scratch folder, and the path
    that says it is ready.
    """

    command: Sequence[str]
    ready_path: str
    files: Mapping[str, str] = {}
    environ: Mapping[str, str] = {}


class Peer(NamedTuple):
    """`start(python, port, scratch, tuning)`. `note` is what the page says of its settings."""

    name: str
    title: str
    package: str
    wire: Wire
    path: str  # of requests; {model} is replaced
    start: Callable[[Path, int, Path, Tuning], Started]
    note: str
    can_be_tuned: bool = True
    needs_system_python: bool = False
    needs: str = ""  # a program of the system

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"


def tuning(
    models: Mapping[str, Path],
    loops: Mapping[str, Mapping[int, Loop]],
    *,
    slo_executions: float,
    is_tuned: bool,
) -> Tuning:
    """As their documentations say for a latency bound, with what they cannot know measured for
    them: the largest batch takes at most half the SLO, and what has queued so long that the largest
    batch would make it late is dropped.
    """
    per_model = {}
    for name, path in models.items():
        of_batch = dict(loops[name])
        single_ms = of_batch[1].exec_p50_ms
        slo_ms = slo_executions * single_ms
        fitting = [n for n in of_batch if n <= MAX_BATCH and of_batch[n].exec_p50_ms <= slo_ms / 2]
        max_batch = max(fitting, default=1)
        per_model[name] = ModelTuning(
            path=str(path.resolve()),
            max_batch=max_batch,
            limit=max(1, int(slo_ms / single_ms)),
            queue_timeout_ms=max(1.0, slo_ms - of_batch[max_batch].exec_p50_ms),
            timeout_ms=slo_ms,
        )
    longest_ms = max(model.timeout_ms for model in per_model.values())
    shortest_ms = min(model.timeout_ms for model in per_model.values())
    return Tuning(
        is_tuned=is_tuned,
        models=per_model,
        batch_wait_ms=min(BATCH_WAIT_MS, shortest_ms / 10),
        timeout_ms=longest_ms,
        limit=max(model.limit for model in per_model.values()),
    )


def capacity_per_s(loops: Mapping[int, Loop], slo_ms: float) -> float:
    """Rows per second of the bare loop, by the best batch that fits."""
    return best_within(dict(loops), slo_ms).rows_per_s


def config_json(tuning: Tuning, *, port: int, scratch: Path) -> str:
    config: dict[str, Any] = {
        **msgspec.to_builtins(tuning),
        "port": port,
        "scratch": str(scratch),
    }
    return msgspec.json.encode(config).decode()
