"""FLOPs and bytes of an ONNX model for one batch size, operator by operator.

Owns how shapes are found: by ONNX's own inference, and where a graph computes its shapes from its
data, by running it once. Times are none of its business.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from loadtest.analysis.operators import VIEWS, Call, NotCounted, Shape, flops_of

# Input → the shape of one row of it.
RowShapes = Mapping[str, Sequence[int]]


class GraphError(ValueError):
    """The model cannot be counted. The message names the file and what is missing."""


class OperatorCost(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `moved_bytes` are its inputs, weights among them, and its outputs, each once: what
    must be moved if nothing stays in a cache between two operators.
    """

    name: str
    kind: str
    flops: int
    moved_bytes: int
    weights_bytes: int


class GraphCost(msgspec.Struct, frozen=True, kw_only=True):
    """A model at one batch size. `least_bytes` are its weights, inputs and outputs, each once: what
    must be moved even if every intermediate result stays in a cache.
    """

    batch: int
    operators: tuple[OperatorCost, ...]
    weights_bytes: int
    least_bytes: int
    not_counted: dict[str, int]  # operator → nodes for which there is no rule

    @property
    def flops(self) -> int:
        return sum(operator.flops for operator in self.operators)

    @property
    def moved_bytes(self) -> int:
        """At least `least_bytes`, also where operators that are not counted move most of it."""
        return max(self.least_bytes, sum(operator.moved_bytes for operator in self.operators))

    @property
    def intensity(self) -> float:
        """FLOPs per byte, with nothing kept between operators."""
        return self.flops / max(1, self.moved_bytes)

    @property
    def best_intensity(self) -> float:
        """FLOPs per byte, with every intermediate result kept."""
        return self.flops / max(1, self.least_bytes)


class _Tensor(msgspec.Struct, frozen=True):
    shape: Shape
    item_bytes: int

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.item_bytes


def count(
    model: Any, *, batch: int = 1, shapes: RowShapes | None = None, name: str = "the model"
) -> GraphCost:
    """Count a model, given as an onnx.ModelProto or a path.

    An input's first dimension is the batch if it is free. `shapes` says how long its other free
    dimensions are: the shape of one row, by input (as `profile_shapes` in a model's config.yaml).
    Raises GraphError if a dimension has no size, or the graph cannot be run where its shapes
    depend on its data.
    """
    if isinstance(model, str | Path):
        name = str(model)
        model = _load(Path(model))
    model = copy.deepcopy(model)
    _fix_inputs(model.graph, batch, shapes or {}, name)
    tensors = _tensors(model, name)
    weights = {weight.name for weight in model.graph.initializer}
    weights |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"} & set(tensors)
    operators, not_counted = [], Counter[str]()
    for index, node in enumerate(model.graph.node):
        try:
            flops = flops_of(node.op_type, _call(node, tensors))
        except NotCounted as error:
            not_counted[str(error)] += 1
            flops = 0
        read = {text for text in node.input if text}
        moved = 0
        if node.op_type not in VIEWS:
            touched = [*read, *(text for text in node.output if text)]
            moved = sum(tensors[text].num_bytes for text in touched if text in tensors)
        operators.append(
            OperatorCost(
                name=node.name or f"{node.op_type}_{index}",
                kind=node.op_type,
                flops=flops,
                moved_bytes=moved,
                weights_bytes=sum(tensors[text].num_bytes for text in read & weights),
            )
        )
    weights_bytes = sum(tensors[text].num_bytes for text in weights)
    ends = {value.name for value in (*model.graph.input, *model.graph.output)} - weights
    return GraphCost(
        batch=batch,
        operators=tuple(operators),
        weights_bytes=weights_bytes,
        least_bytes=weights_bytes + sum(tensors[text].num_bytes for text in ends),
        not_counted=dict(not_counted),
    )


def _load(path: Path) -> Any:
    try:
        return onnx.load(str(path))
    except FileNotFoundError as error:
        raise GraphError(f"{path}: no such file") from error
    except Exception as error:  # protobuf's, which has no class of its own that stays
        raise GraphError(f"{path} is no ONNX model: {error}") from error


def _fix_inputs(graph: Any, batch: int, shapes: RowShapes, name: str) -> None:
    """Write a number into every free dimension. A dimension that has the name of another input's
    batch is one, too.
    """
    weights = {weight.name for weight in graph.initializer}
    values = [value for value in graph.input if value.name not in weights]
    if unknown := set(shapes) - {value.name for value in values}:
        raise GraphError(
            f"{name} has no input {', '.join(sorted(unknown))}; its inputs are "
            f"{', '.join(value.name for value in values)}"
        )
    rows = {value.name: value.type.tensor_type.shape.dim for value in values}
    batch_names = {dims[0].dim_param for dims in rows.values() if dims and _is_free(dims[0])}
    if not batch_names and batch != 1:
        raise GraphError(f"{name} takes one batch size only; batch {batch} cannot be counted")
    for text, dims in rows.items():
        has_batch = bool(dims) and _is_free(dims[0])
        given = shapes.get(text)
        for place, dim in enumerate(dims):
            if not _is_free(dim):
                continue
            if (has_batch and place == 0) or (dim.dim_param and dim.dim_param in batch_names):
                size = batch
            elif given is not None and len(given) == len(dims) - has_batch:
                size = given[place - has_batch]
            else:
                free = [d.dim_param or "?" if _is_free(d) else d.dim_value for d in dims]
                raise GraphError(
                    f"{name}: input {text} is {free}; say how long the free dimensions of one row "
                    f"are: {len(dims) - has_batch} numbers"
                )
            dim.ClearField("dim_param")
            dim.dim_value = size
    for value in graph.output:  # what inference finds may differ from what was written
        value.type.tensor_type.ClearField("shape")


def _is_free(dim: Any) -> bool:
    return not (dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0)


def _tensors(model: Any, name: str) -> dict[str, _Tensor]:
    """Every tensor of the graph whose shape is known or can be found by running it."""
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    tensors = {
        weight.name: _Tensor(tuple(weight.dims), _item_bytes(weight.data_type))
        for weight in model.graph.initializer
    }
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        is_known = kind.HasField("shape") and all(
            dim.WhichOneof("value") == "dim_value" for dim in kind.shape.dim
        )
        if is_known and value.name not in tensors:
            tensors[value.name] = _Tensor(tuple(dims), _item_bytes(kind.elem_type))
    missing = [
        text for node in model.graph.node for text in node.output if text and text not in tensors
    ]
    if missing:
        tensors.update(_run_for_shapes(model, missing, name))
    return tensors


def _run_for_shapes(model: Any, missing: Sequence[str], name: str) -> dict[str, _Tensor]:
    """Run the graph once on zeros, with what is missing as outputs.

    Zeros are in range for whatever an input means: pixels, token ids, a mask.
    """
    import onnxruntime

    wanted = list(dict.fromkeys(missing))
    model = copy.deepcopy(model)
    del model.graph.output[:]
    model.graph.output.extend(helper.ValueInfoProto(name=text) for text in wanted)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    feeds = zeros(model.graph)
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results = session.run(wanted, feeds)
    except Exception as error:  # onnxruntime's classes are not public
        raise GraphError(f"{name}: shapes depend on data, and it does not run: {error}") from error
    return {
        text: _Tensor(tuple(result.shape), result.dtype.itemsize)
        for text, result in zip(wanted, results, strict=True)
        if isinstance(result, np.ndarray)
    }


def zeros(graph: Any) -> dict[str, Any]:
    """An input of zeros for a graph whose dimensions are all fixed."""
    weights = {weight.name for weight in graph.initializer}
    return {
        value.name: np.zeros(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim],
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in graph.input
        if value.name not in weights
    }


def feeds_of(path: Path, *, batch: int, shapes: RowShapes | None = None) -> dict[str, Any]:
    """Zeros to run a model with. Raises GraphError as `count` does."""
    model = _load(path)
    _fix_inputs(model.graph, batch, shapes or {}, str(path))
    return zeros(model.graph)


def _call(node: Any, tensors: Mapping[str, _Tensor]) -> Call:
    """Raises NotCounted where the operator has a graph inside, or a shape is unknown."""
    attributes = {}
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise NotCounted(node.op_type)
        attributes[attribute.name] = (
            None
            if attribute.type == onnx.AttributeProto.TENSOR
            else helper.get_attribute_value(attribute)
        )
    made = [text for text in node.output if text]
    if any(text not in tensors for text in made):
        raise NotCounted(node.op_type)
    return Call(
        [tensors[text].shape if text in tensors else None for text in node.input],
        [tensors[text].shape for text in made],
        attributes,
    )


def _item_bytes(kind: int) -> int:
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
