"""A model repository for the tests of this folder: good, broken and large models.

Their weights do not fit a cache of 64 MiB together, so that whoever asks for all of them makes the
gateway page.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.gpuworker import onnx_models

Rows = npt.NDArray[np.float32]

CACHE_MB = 64
# name → hidden width: weights of 13 MB (one page of 16 MiB) and of 27 MB (two)
WIDE = {"wide0": 1800, "wide1": 1800, "wide2": 1800, "wide3": 1800, "wider0": 2600, "wider1": 2600}
NOT_ONNX = b"this is no protocol buffer, and no model"


def write_zoo(repository: Path) -> None:
    onnx_models.write_model(repository, "mlp", onnx_models.mlp())
    onnx_models.write_model(repository, "lookup", onnx_models.lookup())
    broken = repository / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(NOT_ONNX)
    for name in WIDE:
        onnx_models.write_model(repository, name, wide(name))


def wide(name: str) -> onnx.ModelProto:
    """x FP32 [n, 64] → hidden, twice → y [n, 10]."""
    weights = wide_weights(name)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h0"]),
        helper.make_node("Relu", ["h0"], ["r0"]),
        helper.make_node("MatMul", ["r0", "w1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(weights)],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9)


def wide_weights(name: str) -> list[Rows]:
    width = WIDE[name]
    random = np.random.default_rng([*name.encode()])
    shapes = [(64, width), (width, width), (width, 10)]
    return [(random.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for s in shapes]


def expected_of_wide(weights: list[Rows], x: Rows) -> Rows:
    hidden = np.maximum(x @ weights[0], 0)
    hidden = np.maximum(hidden @ weights[1], 0)
    product: Rows = hidden @ weights[2]
    return product
