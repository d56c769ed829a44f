"""Weights stored as integers and made float by a scale at every execution: do it late, and less.

Owns one rewriting of graphs, for weights that stay compact. `Cast(W) * s` turns a whole table into
floats although a Gather wants a few of its rows, and multiplies a whole matrix although its product
with the input is smaller. Scaling the gathered rows gives the same bits; scaling the columns of a
product differs from scaling the matrix by rounding only.
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper


def dequantise_late(model: onnx.ModelProto, compact: frozenset[str]) -> None:
    """Rewrite every Gather and MatMul over a scaled compact weight of `model`, in place."""
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        scaled = _scaled_weight(node, producers, initializers, compact)
        if scaled is None:
            nodes.append(node)
        else:
            nodes += _late(graph, node, *scaled)
    del graph.node[:]
    graph.node.extend(_without_unused(nodes, outputs))


def _scaled_weight(
    node: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    initializers: dict[str, onnx.TensorProto],
    compact: frozenset[str],
) -> tuple[onnx.NodeProto, onnx.TensorProto, onnx.TensorProto] | None:
    """(Cast, weight, scale) where `node` reads Cast(weight) * scale and may do so late."""
    if node.op_type == "Gather" and not _attribute(node, "axis", 0):
        value = node.input[0]
    elif node.op_type == "MatMul":
        value = node.input[1]
    else:
        return None
    product = producers.get(value)
    if product is None or product.op_type != "Mul":
        return None
    for cast_name, scale_name in (product.input, reversed(product.input)):
        cast, scale = producers.get(cast_name), initializers.get(scale_name)
        if cast is None or cast.op_type != "Cast" or scale is None:
            continue
        weight = initializers.get(cast.input[0])
        if weight is None or weight.name not in compact or len(weight.dims) != 2:
            continue
        rows, columns = weight.dims
        wanted = (rows, 1) if node.op_type == "Gather" else (1, columns)
        if tuple(scale.dims) == wanted:
            return cast, weight, scale
    return None


def _late(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    cast: onnx.NodeProto,
    weight: onnx.TensorProto,
    scale: onnx.TensorProto,
) -> list[onnx.NodeProto]:
    result = node.output[0]
    if node.op_type == "MatMul":
        # Without its leading 1, the scale fits a product of any rank.
        flat = numpy_helper.from_array(np.ravel(numpy_helper.to_array(scale)), f"{result}:scale")
        graph.initializer.append(flat)
        return [
            helper.make_node("MatMul", [node.input[0], cast.output[0]], [f"{result}:product"]),
            helper.make_node("Mul", [f"{result}:product", flat.name], [result]),
        ]
    indices = node.input[1]
    cast_rows = onnx.NodeProto()
    cast_rows.CopyFrom(cast)
    cast_rows.name = ""
    cast_rows.input[0], cast_rows.output[0] = f"{result}:rows", f"{result}:float"
    return [
        helper.make_node("Gather", [weight.name, indices], [f"{result}:rows"], axis=0),
        cast_rows,
        helper.make_node("Gather", [scale.name, indices], [f"{result}:scales"], axis=0),
        helper.make_node("Mul", [f"{result}:float", f"{result}:scales"], [result]),
    ]


def _without_unused(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Less the multiplications that nobody reads any more. Nodes with graphs inside all stay."""
    readers: defaultdict[str, int] = defaultdict(int)
    for node in nodes:
        for name in node.input:
            readers[name] += 1
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                for name in _names_read(inner):
                    readers[name] += 1
    kept = []
    for node in reversed(nodes):
        if node.op_type in ("Mul", "Cast") and not (
            readers[node.output[0]] or node.output[0] in outputs
        ):
            for name in node.input:
                readers[name] -= 1
        else:
            kept.append(node)
    return kept[::-1]


def _names_read(graph: onnx.GraphProto) -> set[str]:
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names |= _names_read(inner)
    return names


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
