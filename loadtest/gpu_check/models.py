"""The check's models, made on the spot: ONNX files of random weights, inputs, and right answers.

Nothing is downloaded. Answers are ONNX Runtime's on the CPU, of one row; the weights are seeded, so
what is there already is the same and is used again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from loadtest import graphs
from loadtest.reference import sample_rows

FP16 = "-fp16"  # the same model with weights of half the size; the right answers are FP32's
# By size, the largest last: its executions are what the bar of their tail is about. As floats, so
# that no version of TensorRT has to know bytes.
MODELS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: graphs.mlp(sizes=(256, 1024, 1024, 10), seed=5),
    "resnet18": lambda: graphs.resnet((2, 2, 2, 2), input_type=TensorProto.FLOAT),
    f"resnet50{FP16}": lambda: graphs.resnet50(input_type=TensorProto.FLOAT),
    "resnet50": lambda: graphs.resnet50(input_type=TensorProto.FLOAT),
}
# Over HTTP pictures are bytes: a quarter of the traffic, and what a client has.
SERVED: dict[str, Callable[[], Any]] = {
    "mlp": MODELS["mlp"],
    "resnet18": lambda: graphs.resnet((2, 2, 2, 2)),
    "resnet50": graphs.resnet50,
}


def write_references(directory: Path, names: list[str]) -> None:
    """NAME.onnx, and NAME.npz with `in_<tensor>` and `out_<tensor>`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = directory / f"{name}.onnx"
        if path.with_suffix(".npz").exists():
            continue
        model = MODELS[name]()
        write(path, model)
        (row,), (output,) = sample_rows(path, 1)
        if name.endswith(FP16):
            write(path, halved(model))
        partly = path.with_suffix(".part.npz")
        np.savez(partly, in_x=row, out_y=output)
        partly.replace(path.with_suffix(".npz"))


def halved(model: Any) -> Any:
    """The model with FP16 weights and layers, inputs and outputs as they were.

    Its graph begins with a Cast to FLOAT and ends with an Identity, as those of loadtest/graphs.py.
    """
    graph = model.graph
    for tensor in graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    first, last = graph.node[0], graph.node[-1]
    assert (first.op_type, last.op_type) == ("Cast", "Identity")
    first.attribute[0].i = TensorProto.FLOAT16
    last.CopyFrom(onnx.helper.make_node("Cast", last.input, last.output, to=TensorProto.FLOAT))
    onnx.checker.check_model(model, full_check=True)
    return model


def write(path: Path, model: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partly = path.with_suffix(".part")
    onnx.save(model, str(partly))
    partly.replace(path)
