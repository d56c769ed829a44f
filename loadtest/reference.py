"""The models under test as plain ONNX Runtime sees them: right answers, and how fast it can be.

Owns the bare loop, the physical limit of a core that every server is compared with. Run as a
process on the server's core (`python -m loadtest.reference MODEL ...`), where nothing else is.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from loadtest.machine import SERVER_CPU, on_cpus
from loadtest.messages import Floats, Tensor
from scheduler.spec import MILLISECOND_NS, SECOND_NS

BATCH_SIZES = (1, 2, 4, 8, 16)
MIN_RUNS = 5


class Loop(msgspec.Struct, frozen=True):
    """One batch size, executed over and over. Times in milliseconds."""

    batch_size: int
    rows_per_s: float
    exec_p50_ms: float
    exec_p99_ms: float


def session_of(path: Path) -> Any:  # ort.InferenceSession, a library without types
    """As a careful user opens it: everything optimised, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sample_rows(path: Path, count: int, *, seed: int = 7) -> tuple[list[Tensor], list[Floats]]:
    """So many different inputs of one row, and the right outputs."""
    session = session_of(path)
    tensor = session.get_inputs()[0]
    chance = np.random.default_rng(seed)
    rows = [_random(tensor, 1, chance) for _ in range(count)]
    return rows, [session.run(None, {tensor.name: row})[0] for row in rows]


def measure(
    path: Path, *, seconds: float, batch_sizes: Sequence[int] = BATCH_SIZES
) -> dict[int, Loop]:
    """Each batch size for so long, on the server's core, in a process of its own."""
    command = [sys.executable, "-m", "loadtest.reference", str(path.resolve())]
    command += ["--seconds", str(seconds), "--batch-sizes", *map(str, batch_sizes)]
    done = subprocess.run(
        on_cpus(str(SERVER_CPU), command),
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    loops = msgspec.json.decode(done.stdout, type=list[Loop])
    return {loop.batch_size: loop for loop in loops}


def best_within(loops: dict[int, Loop], slo_ms: float) -> Loop:
    """The capacity: most rows per second among batch sizes whose execution fits the SLO."""
    fitting = [loop for loop in loops.values() if loop.exec_p50_ms <= slo_ms]
    if not fitting:
        raise ValueError(f"not even batch 1 fits an SLO of {slo_ms} ms: {loops}")
    return max(fitting, key=lambda loop: loop.rows_per_s)


def run_loop(session: Any, batch_size: int, seconds: float) -> Loop:
    tensor = session.get_inputs()[0]
    chance = np.random.default_rng(batch_size)
    batch = _random(tensor, batch_size, chance)
    for _ in range(2):
        session.run(None, {tensor.name: batch})
    durations: list[int] = []
    end_ns = time.monotonic_ns() + int(seconds * SECOND_NS)
    while time.monotonic_ns() < end_ns or len(durations) < MIN_RUNS:
        begin_ns = time.monotonic_ns()
        session.run(None, {tensor.name: batch})
        durations.append(time.monotonic_ns() - begin_ns)
    return Loop(
        batch_size,
        batch_size * len(durations) * SECOND_NS / sum(durations),
        statistics.median(durations) / MILLISECOND_NS,
        float(np.percentile(durations, 99)) / MILLISECOND_NS,
    )


def _random(tensor: Any, rows: int, chance: np.random.Generator) -> Tensor:
    """Pictures, where the model takes bytes; normal numbers otherwise."""
    shape = (rows, *tensor.shape[1:])
    if tensor.type == "tensor(uint8)":
        return chance.integers(0, 256, shape, np.uint8)
    return chance.standard_normal(shape, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.reference", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES))
    args = parser.parse_args()
    session = session_of(args.model)
    loops = [run_loop(session, batch_size, args.seconds) for batch_size in args.batch_sizes]
    sys.stdout.buffer.write(msgspec.json.encode(loops) + b"\n")


if __name__ == "__main__":
    main()
