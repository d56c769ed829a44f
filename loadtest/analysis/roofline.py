"""A model under its roof: operators and the whole, by what they compute, move and take.

Owns the measurement of a model's operators by ONNX Runtime's own profiler, and whether compute or
memory limits them. Counts come from graph_cost.py, ceilings from ceilings.py.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadtest.analysis.ceilings import Ceilings
from loadtest.analysis.graph_cost import GraphCost, GraphError, RowShapes, count, feeds_of

MAX_RUNS = 200
MEASURE_S = 1.0


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One model at one batch size, executed. Durations are medians."""

    model: str
    batch: int
    flops: int
    moved_bytes: int
    least_bytes: int
    weights_bytes: int
    execution_s: float
    not_counted: dict[str, int] = {}

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.execution_s

    @property
    def intensity(self) -> float:
        return self.flops / max(1, self.moved_bytes)

    @property
    def best_intensity(self) -> float:
        return self.flops / max(1, self.least_bytes)

    def limit(self, ceilings: Ceilings) -> str:
        """ "memory" if it is so even with everything kept between operators, "compute" if it is
        not even with nothing kept, else "either".
        """
        if self.best_intensity < ceilings.ridge:
            return "memory"
        return "compute" if self.intensity >= ceilings.ridge else "either"

    def share_of_roof(self, ceilings: Ceilings) -> float:
        """Of what the machine could do at the intensity with everything kept: at most about 1."""
        return self.flops_per_s / ceilings.roof(self.best_intensity)


class KindShare(msgspec.Struct, frozen=True, kw_only=True):
    """All operators of one kind in one model: their counts, and their share of its FLOPs."""

    kind: str
    nodes: int
    flops: int
    moved_bytes: int


class KindTime(msgspec.Struct, frozen=True, kw_only=True):
    """What the runtime spends on one kind of its (fused) operators, of one execution."""

    kind: str
    calls: int
    seconds: float


def point_of(cost: GraphCost, *, model: str, execution_s: float) -> Point:
    return Point(
        model=model,
        batch=cost.batch,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        least_bytes=cost.least_bytes,
        weights_bytes=cost.weights_bytes,
        execution_s=execution_s,
        not_counted=cost.not_counted,
    )


def by_kind(cost: GraphCost) -> list[KindShare]:
    """What a graph consists of, the most FLOPs first."""
    kinds: dict[str, list[int]] = {}
    for operator in cost.operators:
        sums = kinds.setdefault(operator.kind, [0, 0, 0])
        for place, value in enumerate((1, operator.flops, operator.moved_bytes)):
            sums[place] += value
    shares = [
        KindShare(kind=kind, nodes=nodes, flops=flops, moved_bytes=moved)
        for kind, (nodes, flops, moved) in kinds.items()
    ]
    return sorted(shares, key=lambda share: (-share.flops, -share.moved_bytes, share.kind))


def measure(
    path: Path,
    *,
    batch: int,
    threads: int,
    shapes: RowShapes | None = None,
    measure_s: float = MEASURE_S,
) -> tuple[Point, GraphCost, list[KindTime]]:
    """Count a model and execute it on zeros, alone and in this process, for about `measure_s`.

    The point's duration is the median without the profiler; what the profiler adds is in the kinds'
    times only. Raises GraphError if it cannot be loaded, counted or run.
    """
    import onnxruntime

    cost = count(path, batch=batch, shapes=shapes)
    feeds = feeds_of(path, batch=batch, shapes=shapes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

        execution_s = _median_s(session, feeds, measure_s)
        kinds = _kinds(path, threads, feeds)
    except Exception as error:  # onnxruntime's classes are not public
        raise GraphError(f"{path}: it does not run with batch {batch}: {error}") from error
    return point_of(cost, model=path.stem, execution_s=execution_s), cost, kinds


def _median_s(session: Any, feeds: Mapping[str, Any], measure_s: float) -> float:
    session.run(None, feeds)
    durations: list[float] = []
    end_s = time.perf_counter() + measure_s
    while len(durations) < 3 or (len(durations) < MAX_RUNS and time.perf_counter() < end_s):
        begin_s = time.perf_counter()
        session.run(None, feeds)
        durations.append(time.perf_counter() - begin_s)
    return float(np.median(durations))


def _kinds(path: Path, threads: int, feeds: Mapping[str, Any]) -> list[KindTime]:
    """One execution by the runtime's profiler, after one that warms."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, feeds)
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return kinds_of_profile(events)


def kinds_of_profile(events: list[dict[str, Any]]) -> list[KindTime]:
    """The last execution in a profile of ONNX Runtime, by kind, longest first."""
    runs = [event for event in events if event.get("name") == "model_run"]
    begin_us = runs[-1]["ts"] if runs else 0
    sums: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        if event["ts"] < begin_us:
            continue
        entry = sums.setdefault(event["args"]["op_name"], [0, 0])
        entry[0] += 1
        entry[1] += event["dur"] / 1e6
    kinds = [KindTime(kind=k, calls=int(n), seconds=s) for k, (n, s) in sums.items()]
    return sorted(kinds, key=lambda kind: (-kind.seconds, kind.kind))
