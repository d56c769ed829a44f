"""An ONNX file → an optimised graph without weights, and one blob with all of them.

Owns the rewriting of graphs, ahead of time. What it writes is an ordinary ONNX model with external
data; only small initializers stay inside, for the engine reads shapes and axes out of them while it
builds a session. It never runs a model.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from gpuworker.artifact_cache import GRAPH_FILE, WEIGHTS_FILE, WeightTensor

# Larger initializers live in the pages. Smaller ones are shapes, axes and scalars.
SMALL_INITIALIZER_BYTES = 1024
# What the engine's kernels assume of memory they allocate themselves.
ALIGNMENT_BYTES = 64
# Above it protobuf cannot hold a model in one message, and weights must travel beside it.
_PROTOBUF_LIMIT_BYTES = 1_500_000_000

# ONNX element type → bytes per element: what can be given to the engine as memory.
ELEMENT_BYTES = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.UINT8: 1,
    onnx.TensorProto.INT8: 1,
    onnx.TensorProto.UINT16: 2,
    onnx.TensorProto.INT16: 2,
    onnx.TensorProto.INT32: 4,
    onnx.TensorProto.INT64: 8,
    onnx.TensorProto.BOOL: 1,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.UINT32: 4,
    onnx.TensorProto.UINT64: 8,
}
# Weights of these types are stored small on purpose; folding constants makes them float.
_COMPACT_TYPES = (
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT16,
    onnx.TensorProto.FLOAT16,
)


class GraphError(Exception):
    """The file is not a model that this engine can take."""


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a model with its external data; all constants become plain initializers."""
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        raise GraphError(f"{path.name} is not an ONNX model: {_one_line(error)}") from error
    if not model.graph.node:
        raise GraphError(f"{path.name} is not an ONNX model: its graph has no nodes")
    _constants_to_initializers(model.graph)
    _hide_initializers_from_inputs(model.graph)
    return model


def compact_weights(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the large initializers that are stored in fewer bytes than a float takes."""
    return frozenset(
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type in _COMPACT_TYPES and _num_bytes(tensor) > SMALL_INITIALIZER_BYTES
    )


def weights_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all large initializers of the model, those of its subgraphs included."""
    return sum(
        _num_bytes(tensor)
        for graph in _graphs(model.graph)
        for tensor in graph.initializer
        if _num_bytes(tensor) > SMALL_INITIALIZER_BYTES
    )


def has_fp16_weights(path: Path) -> bool:
    """Whether any weight of the file, Constant nodes and subgraphs included, is FP16."""
    model = onnx.load(str(path), load_external_data=False)
    for graph in _graphs(model.graph):
        _constants_to_initializers(graph)
    return any(
        tensor.data_type == onnx.TensorProto.FLOAT16
        for graph in _graphs(model.graph)
        for tensor in graph.initializer
    )


def optimise(model: onnx.ModelProto, *, keep: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """The model as ONNX Runtime would execute it on this machine, layout transforms included.

    Initializers named in `keep` are left as they are: nothing computed from them is folded. Raises
    GraphError for a model the engine does not accept.
    """
    with tempfile.TemporaryDirectory(prefix="optimise-") as directory:
        source, target = Path(directory) / "source.onnx", Path(directory) / "target.onnx"
        candidate = onnx.ModelProto()
        candidate.CopyFrom(model)
        _show_as_inputs(candidate.graph, keep)
        onnx.save(
            candidate,
            str(source),
            save_as_external_data=candidate.ByteSize() > _PROTOBUF_LIMIT_BYTES,
        )
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(target)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "target.bin"
        )
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # a class per error code, with no common parent of its own
            raise GraphError(f"ONNX Runtime refuses the model: {_one_line(error)}") from error
        optimised = onnx.load(str(target))
    _hide_initializers_from_inputs(optimised.graph)
    return optimised


def split_weights(model: onnx.ModelProto, directory: Path) -> tuple[WeightTensor, ...]:
    """Write GRAPH_FILE and WEIGHTS_FILE; changes `model`. Returns where each tensor lies."""
    _hoist_weights(model.graph)
    tensors = []
    offset = 0
    with (directory / WEIGHTS_FILE).open("wb") as blob:
        for tensor in model.graph.initializer:
            if not _can_be_paged(tensor):
                continue
            content = onnx.numpy_helper.to_array(tensor).tobytes()
            padding = -offset % ALIGNMENT_BYTES
            blob.write(b"\0" * padding)
            offset += padding
            blob.write(content)
            tensors.append(
                WeightTensor(
                    name=tensor.name,
                    onnx_type=tensor.data_type,
                    shape=tuple(tensor.dims),
                    offset=offset,
                    num_bytes=len(content),
                )
            )
            _refer_to_blob(tensor, offset, len(content))
            offset += len(content)
    (directory / GRAPH_FILE).write_bytes(model.SerializeToString())
    return tuple(tensors)


def _can_be_paged(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in ELEMENT_BYTES and _num_bytes(tensor) > SMALL_INITIALIZER_BYTES


def _num_bytes(tensor: onnx.TensorProto) -> int:
    num_elements = 1
    for size in tensor.dims:
        num_elements *= size
    return num_elements * ELEMENT_BYTES.get(tensor.data_type, 1)


def _refer_to_blob(tensor: onnx.TensorProto, offset: int, num_bytes: int) -> None:
    name, onnx_type, dims = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, onnx_type
    tensor.dims.extend(dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", num_bytes)):
        tensor.external_data.add(key=key, value=str(value))


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Constant nodes hide weights from everything that looks for initializers."""
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _hide_initializers_from_inputs(graph: onnx.GraphProto) -> None:
    """An initializer that is also an input may be overridden, so that nothing is folded over it."""
    names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(inputs)


def _show_as_inputs(graph: onnx.GraphProto, names: frozenset[str]) -> None:
    for tensor in graph.initializer:
        if tensor.name in names:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )


def _hoist_weights(graph: onnx.GraphProto) -> None:
    """Move large initializers of subgraphs (If, Loop) to the top, the only place a session looks.

    Both branches of an If may use one name for different weights, so each gets a new one.
    """
    taken = {tensor.name for tensor in graph.initializer}
    for subgraph in _graphs(graph):
        if subgraph is graph:
            continue
        kept = []
        for tensor in subgraph.initializer:
            if not _can_be_paged(tensor):
                kept.append(tensor)
                continue
            name = f"{tensor.name}@{len(taken)}"
            taken.add(name)
            _rename(subgraph, tensor.name, name)
            hoisted = graph.initializer.add()
            hoisted.CopyFrom(tensor)
            hoisted.name = name
        kept_copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del subgraph.initializer[:]
        subgraph.initializer.extend(kept_copies)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a value in a graph and in those inside it, except where it means something else."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for inner in _subgraphs(node):
            if not _defines(inner, old):
                _rename(inner, old, new)
    for output in graph.output:
        if output.name == old:
            # A graph's output must be computed in it: pass the value through.
            graph.node.append(onnx.helper.make_node("Identity", [new], [old]))


def _defines(graph: onnx.GraphProto, name: str) -> bool:
    return (
        any(value.name == name for value in graph.input)
        or any(tensor.name == name for tensor in graph.initializer)
        or any(name in node.output for node in graph.node)
    )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and, depth first, all graphs inside it."""
    yield graph
    for node in graph.node:
        for inner in _subgraphs(node):
            yield from _graphs(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
