"""A gateway in a process of its own, as `remontoir serve` starts it, for tests from outside."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.command import demo
from tests.processes import child_pids

ROOT = Path(__file__).parent.parent.parent
PIPE_BYTES = 1 << 20  # as much as the kernel gives without rights


class RunningGateway(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    announcement: str  # what it printed when it served, in full

    def child_pids(self) -> list[int]:
        return child_pids(self.process.pid)

    def read_line(self) -> str:
        """The next line it prints, empty ones left out; "" when it has ended."""
        assert self.process.stdout is not None
        return next((line for line in self.process.stdout if line.strip()), "")

    def wait(self) -> tuple[int, str]:
        """Exit code and the rest of what it printed."""
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


@contextmanager
def running_gateway(
    *flags: str,
    scratch: Path,
    command: tuple[str, ...] = (sys.executable, "-m", "gateway"),
    cwd: Path = ROOT,
    **settings: str,
) -> Iterator[RunningGateway]:
    """Serves on a free port until the block ends. Temporary files go below `scratch`; `settings`
    are of its environment.
    """
    temporary = scratch / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [*command, "serve", "--port", "0", *flags],
        cwd=cwd,
        env=environment(
            TMPDIR=str(temporary), REMONTOIR_CACHE_DIR=str(scratch / "cache"), **settings
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        # What nobody reads must not fill the pipe: the gateway would wait for room, for ever.
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        announcement = ""
        for line in process.stdout:
            announcement += line
            if line.startswith("Ctrl-C stops"):
                break
        found = re.search(r"Remontoir serves on (\S+)", announcement)
        assert found, f"it ended with {process.wait()} and said:\n{announcement}"
        yield RunningGateway(process, found[1], announcement)
    finally:
        if process.poll() is None:
            for _ in range(2):  # the second ends it at once
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings that somebody's shell may have."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("REMONTOIR_")}
    return {**ours, **settings}


def write_model(directory: Path, model: onnx.ModelProto, *, config: str = "") -> None:
    (directory / "1").mkdir(parents=True)
    onnx.save(model, directory / "1" / "model.onnx")
    if config:
        (directory / "config.yaml").write_text(config)


def doubling_model() -> onnx.ModelProto:
    """x FP32 [N, 4] → y = 2 x."""
    return _model(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        x=(TensorProto.FLOAT, ["N", 4]),
        y=(TensorProto.FLOAT, ["N", 4]),
        two=np.array([2.0], np.float32),
    )


def magika_stand_in(label: str, score: float) -> onnx.ModelProto:
    """Has the inputs and outputs of magika's model, and is always this sure of this label."""
    labels = demo.knowledge().config.target_labels_space
    scores = np.full((1, len(labels)), (1.0 - score) / (len(labels) - 1), np.float32)
    scores[0, labels.index(label)] = score
    return _model(
        [
            helper.make_node("Cast", ["bytes"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["floats", "one"], ["sums"], keepdims=1),
            helper.make_node("Mul", ["sums", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "scores"], ["target_label"]),
        ],
        bytes=(TensorProto.INT32, ["N", 2048]),
        target_label=(TensorProto.FLOAT, ["N", len(labels)]),
        one=np.array([1], np.int64),
        zero=np.array([0.0], np.float32),
        scores=scores,
    )


def _model(
    nodes: list[onnx.NodeProto],
    **values: "tuple[int, list[str | int]] | np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
) -> onnx.ModelProto:
    """Tuples describe inputs (those that no node makes) and outputs, arrays are initializers."""
    made = {name for node in nodes for name in node.output}
    tensors = {
        name: helper.make_tensor_value_info(name, *value)
        for name, value in values.items()
        if isinstance(value, tuple)
    }
    constants = [
        numpy_helper.from_array(value, name)
        for name, value in values.items()
        if not isinstance(value, tuple)
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [tensor for name, tensor in tensors.items() if name not in made],
        [tensor for name, tensor in tensors.items() if name in made],
        constants,
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)
