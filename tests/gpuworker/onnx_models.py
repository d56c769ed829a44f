"""Small ONNX models, each with one habit that compiling and serving must cope with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]


def _weights(name: str, *shape: int, seed: int = 7) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.2
    return numpy_helper.from_array(values, name)


def _value(name: str, dims: Dims, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(dims))


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    domain: str = "",
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def mlp(seed: int = 7, rows: int | str = "n", hidden: int = 64) -> onnx.ModelProto:
    """64 → `hidden` → 10. `rows` = 1 fixes the batch."""
    return _model(
        [
            helper.make_node("Gemm", ["x", "w0", "b0"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "w1", "b1"], ["y"]),
        ],
        [_value("x", [rows, 64])],
        [_value("y", [rows, 10])],
        [
            _weights("w0", 64, hidden, seed=seed),
            _weights("b0", hidden, seed=seed + 1),
            _weights("w1", hidden, 10, seed=seed + 2),
            _weights("b1", 10, seed=seed + 3),
        ],
    )


def conv() -> onnx.ModelProto:
    """A picture of any size → 16 numbers. Its optimised form has a layout of this CPU."""
    return _model(
        [
            helper.make_node("Conv", ["x", "k0"], ["c0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c0"], ["r0"]),
            helper.make_node("Conv", ["r0", "k1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["c1"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["y"]),
        ],
        [_value("x", ["n", 3, "?", "?"])],
        [_value("y", ["n", 16])],
        [_weights("k0", 16, 3, 3, 3), _weights("k1", 16, 16, 3, 3)],
    )


def lookup() -> onnx.ModelProto:
    """Rows of a table of 8: an index of 8 or more makes the engine throw."""
    return _model(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("ReduceMean", ["rows"], ["y"], axes=[1], keepdims=0),
        ],
        [_value("ids", ["n", 4], TensorProto.INT64)],
        [_value("y", ["n", 64])],
        [_weights("table", 8, 64)],
    )


def recurrent() -> onnx.ModelProto:
    """Rows on axis 0 of x and on axis 1 of state; `gain` is one number for the whole batch."""
    return _model(
        [
            helper.make_node("Mul", ["x", "gain"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "w"], ["step"]),
            helper.make_node("Add", ["state", "step"], ["stateN"]),
            helper.make_node("ReduceSum", ["stateN", "axes"], ["y"], keepdims=0),
        ],
        [_value("x", ["n", 32]), _value("state", [2, "n", 32]), _value("gain", [])],
        [_value("y", ["n", 32]), _value("stateN", [2, "n", 32])],
        [_weights("w", 32, 32), numpy_helper.from_array(np.array([0]), "axes")],
    )


def dynamically_quantised() -> onnx.ModelProto:
    """One quantisation scale for the whole batch: a row's result depends on its batch-mates."""
    weights = np.random.default_rng(7).integers(-100, 100, (64, 64)).astype(np.int8)
    return _model(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["xq", "w", "zero"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["float", "scale"], ["y"]),
        ],
        [_value("x", ["n", 64])],
        [_value("y", ["n", 64])],
        [numpy_helper.from_array(weights, "w")],
    )


def int8_weights(size: int = 256) -> onnx.ModelProto:
    """Weights of one byte each that are made float at every execution, unless somebody folds."""
    weights = np.random.default_rng(7).integers(-100, 100, (size, size)).astype(np.int8)
    return _model(
        [
            helper.make_node("Cast", ["w"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["float", "scale"], ["weights"]),
            helper.make_node("MatMul", ["x", "weights"], ["y"]),
        ],
        [_value("x", ["n", size])],
        [_value("y", ["n", size])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array(0.01, np.float32), "scale"),
        ],
    )


def int8_embedding() -> onnx.ModelProto:
    """Words → rows of a table → a matrix product, both with a scale per row or per column."""
    generator = np.random.default_rng(7)
    table = generator.integers(-100, 100, (300, 64)).astype(np.int8)
    matrix = generator.integers(-100, 100, (64, 48)).astype(np.int8)
    return _model(
        [
            helper.make_node("Cast", ["table"], ["table_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["table_float", "row_scale"], ["embeddings"]),
            helper.make_node("Gather", ["embeddings", "ids"], ["words"]),
            helper.make_node("Cast", ["matrix"], ["matrix_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["column_scale", "matrix_float"], ["weights"]),
            helper.make_node("MatMul", ["words", "weights"], ["y"]),
        ],
        [_value("ids", ["n", 5], TensorProto.INT64)],
        [_value("y", ["n", 5, 48])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(generator.random((300, 1), np.float32) / 100, "row_scale"),
            numpy_helper.from_array(generator.random((1, 48), np.float32) / 100, "column_scale"),
        ],
    )


def two_branches() -> onnx.ModelProto:
    """An If whose branches both call their weights `w`, and mean different ones."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [f"{name}_y"])],
            name,
            [],
            [_value(f"{name}_y", ["n", 32])],
            [_weights("w", 32, 32, seed=seed)],
        )

    return _model(
        [
            helper.make_node(
                "If", ["flag"], ["y"], then_branch=branch("yes", 1), else_branch=branch("no", 2)
            )
        ],
        [_value("x", ["n", 32]), _value("flag", [], TensorProto.BOOL)],
        [_value("y", ["n", 32])],
    )


def every_type() -> onnx.ModelProto:
    """Text, truth and half precision in and out."""
    return _model(
        [
            helper.make_node("Identity", ["text"], ["same"]),
            helper.make_node("Not", ["flag"], ["opposite"]),
            helper.make_node("Add", ["half", "half"], ["double"]),
        ],
        [
            _value("text", ["n", 2], TensorProto.STRING),
            _value("flag", ["n", 2], TensorProto.BOOL),
            _value("half", ["n", 2], TensorProto.FLOAT16),
        ],
        [
            _value("same", ["n", 2], TensorProto.STRING),
            _value("opposite", ["n", 2], TensorProto.BOOL),
            _value("double", ["n", 2], TensorProto.FLOAT16),
        ],
    )


def one_row_inside() -> onnx.ModelProto:
    """Declares any number of rows and reshapes to one: batches of two do not run."""
    return _model(
        [
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("Relu", ["flat"], ["y"]),
        ],
        [_value("x", ["n", 8])],
        [_value("y", ["m", 8])],
        [numpy_helper.from_array(np.array([1, 8]), "shape")],
    )


def flattened_rows() -> onnx.ModelProto:
    """Three boxes per row in one list: no axis of the output counts rows."""
    return _model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [_value("x", ["n", 3, 4])],
        [_value("y", ["m", 4])],
        [numpy_helper.from_array(np.array([-1, 4]), "shape")],
    )


def unknown_operator() -> onnx.ModelProto:
    return _model(
        [helper.make_node("Conjure", ["x"], ["y"], domain="example.invalid")],
        [_value("x", ["n", 4])],
        [_value("y", ["n", 4])],
        domain="example.invalid",
    )


def never_runs() -> onnx.ModelProto:
    """Accepted by the engine, and throws at every execution."""
    return _model(
        [
            helper.make_node("Concat", ["x", "x"], ["both"], axis=1),
            helper.make_node("Reshape", ["both", "shape"], ["y"]),
        ],
        [_value("x", ["n", 4])],
        [_value("y", ["n", 7])],
        [numpy_helper.from_array(np.array([-1, 7]), "shape")],
    )


def write_model(
    repository: Path, name: str, model: onnx.ModelProto, config: str = "", version: str = "1"
) -> Path:
    """Put a model into a repository; returns its ONNX file."""
    path = repository / name / version / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())
    if config:
        (repository / name / "config.yaml").write_text(config)
    return path
