"""ONNX graphs made here: real architectures, seeded random weights, any input.

Owns the graphs and nothing about files or timing. Weights are scaled so that a signal neither dies
nor explodes: outputs depend on every weight, and a wrong page shows.
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]

# Old enough for every ONNX Runtime of the last years.
OPSET, IR_VERSION = 17, 8


class _Graph:
    """Nodes and weights of one graph while it is being built. Names are numbered."""

    def __init__(self, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weights(self, array: npt.NDArray[Any]) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def normal(self, *shape: int, fan_in: int, gain: float = 2.0) -> Array:
        """He's initialisation: keeps the variance through a ReLU."""
        values: Array = self.chance.standard_normal(shape, np.float32)
        values *= np.float32(np.sqrt(gain / fan_in))
        return values

    def conv(
        self, data: str, channels: tuple[int, int], *, kernel: int, stride: int = 1, gain: float = 2
    ) -> str:
        """`channels` is (in, out)."""
        given, made = channels
        weights = self.normal(made, given, kernel, kernel, fan_in=given * kernel**2, gain=gain)
        bias = 0.05 * self.chance.standard_normal(made, np.float32)
        return self.node(
            "Conv",
            data,
            self.weights(weights),
            self.weights(bias.astype(np.float32)),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
        )

    def dense(self, data: str, sizes: tuple[int, int], *, gain: float = 2.0) -> str:
        given, made = sizes
        weights = self.weights(self.normal(given, made, fan_in=given, gain=gain))
        bias = (0.05 * self.chance.standard_normal(made, np.float32)).astype(np.float32)
        return self.node("Gemm", data, weights, self.weights(bias))

    def relu(self, data: str) -> str:
        return self.node("Relu", data)

    def pixels(self) -> str:
        """The input's bytes as numbers around zero."""
        scale, shift = np.array(1 / 64, np.float32), np.array(2, np.float32)
        data = self.node("Cast", "x", to=TensorProto.FLOAT)
        return self.node("Sub", self.node("Mul", data, self.weights(scale)), self.weights(shift))

    def model(
        self,
        name: str,
        row_shape: tuple[int, ...],
        result: str,
        size: int,
        *,
        input_type: int = TensorProto.FLOAT,
    ) -> Any:
        """One input `x` of [N, *row_shape], one output `y` of [N, size]."""
        self._nodes.append(helper.make_node("Identity", [result], ["y"]))
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("x", input_type, ["N", *row_shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size])],
            self._weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model)
        return model


def resnet(
    blocks: tuple[int, int, int, int], seed: int = 18, *, input_type: int = TensorProto.UINT8
) -> Any:
    """A ResNet of basic blocks (He et al., 2015), batch normalisation folded: (2, 2, 2, 2) is
    ResNet-18, 46.8 MB, (3, 4, 6, 3) is ResNet-34, 87 MB. Takes [N, 3, 224, 224] pictures as they
    are stored, a byte a colour, and scales them itself; `input_type` for the same as floats.
    """
    graph = _Graph(seed)
    data = graph.relu(graph.conv(graph.pixels(), (3, 64), kernel=7, stride=2))
    data = graph.node("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    given = 64
    for made, num_blocks in zip((64, 128, 256, 512), blocks, strict=True):
        for _ in range(num_blocks):
            stride = 2 if made != given else 1
            inner = graph.relu(graph.conv(data, (given, made), kernel=3, stride=stride))
            inner = graph.conv(inner, (made, made), kernel=3, gain=0.2)
            if stride == 2:
                data = graph.conv(data, (given, made), kernel=1, stride=2, gain=1)
            data = graph.relu(graph.node("Add", inner, data))
            given = made
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", data))
    result = graph.dense(pooled, (512, 1000), gain=1)
    return graph.model("resnet", (3, 224, 224), result, 1000, input_type=input_type)


def resnet50(seed: int = 50, *, input_type: int = TensorProto.UINT8) -> Any:
    """ResNet-50 (He et al., 2015), batch normalisation folded, strides in the 3x3 convolutions:
    102 MB. Takes pictures as `resnet` does.
    """
    graph = _Graph(seed)
    data = graph.relu(graph.conv(graph.pixels(), (3, 64), kernel=7, stride=2))
    data = graph.node("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    given = 64
    for inner, num_blocks in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        made = 4 * inner
        for block in range(num_blocks):
            stride = 2 if block == 0 and inner != 64 else 1
            path = graph.relu(graph.conv(data, (given, inner), kernel=1))
            path = graph.relu(graph.conv(path, (inner, inner), kernel=3, stride=stride))
            path = graph.conv(path, (inner, made), kernel=1, gain=0.2)
            if block == 0:
                data = graph.conv(data, (given, made), kernel=1, stride=stride, gain=1)
            data = graph.relu(graph.node("Add", path, data))
            given = made
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", data))
    result = graph.dense(pooled, (2048, 1000), gain=1)
    return graph.model("resnet50", (3, 224, 224), result, 1000, input_type=input_type)


def conv_chain(*, layers: int, channels: int = 32, size: int = 28, seed: int = 3) -> Any:
    """A residual chain of 3x3 convolutions on one small picture: its time is its length."""
    graph = _Graph(seed)
    data = graph.relu(graph.conv("x", (1, channels), kernel=3))
    for _ in range(layers):
        inner = graph.conv(data, (channels, channels), kernel=3, gain=1 / layers)
        data = graph.relu(graph.node("Add", inner, data))
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", data))
    return graph.model("conv_chain", (1, size, size), graph.dense(pooled, (channels, 10)), 10)


def mlp(*, sizes: tuple[int, ...], seed: int) -> Any:
    """Dense layers with ReLU between: (64, 64, 10) is the tiny model, wide ones are all weights."""
    graph = _Graph(seed)
    data = "x"
    for index, pair in enumerate(itertools.pairwise(sizes)):
        is_last = index == len(sizes) - 2
        data = graph.dense(data, pair, gain=1.0 if is_last else 2.0)
        data = data if is_last else graph.relu(data)
    return graph.model("mlp", sizes[:1], data, sizes[-1])


def lstm(*, layers: int, width: int, steps: int = 16, seed: int = 5) -> Any:
    """Stacked LSTMs (Hochreiter and Schmidhuber, 1997) over a sequence of [N, steps, width]."""
    graph = _Graph(seed)
    data = graph.node("Transpose", "x", perm=[1, 0, 2])  # the operator wants time first
    for _ in range(layers):
        gates = graph.weights(graph.normal(1, 4 * width, width, fan_in=width))
        recurrent = graph.weights(graph.normal(1, 4 * width, width, fan_in=width, gain=1))
        states = graph.node("LSTM", data, gates, recurrent, hidden_size=width)
        data = graph.node("Squeeze", states, graph.weights(np.array([1], np.int64)))
    last = graph.node("Gather", data, graph.weights(np.array(steps - 1, np.int64)), axis=0)
    return graph.model("lstm", (steps, width), graph.dense(last, (width, 10), gain=1), 10)


def attention(*, blocks: int, width: int, tokens: int = 32, seed: int = 6) -> Any:
    """Blocks of an encoder (Vaswani et al., 2017), normalised before each part: attention with a
    head for each 64 of the width, and two dense layers of four times the width. [N, tokens, width].
    """
    graph = _Graph(seed)
    heads = max(1, width // 64) if width % 64 == 0 else 1
    split = graph.weights(np.array([0, tokens, heads, width // heads], np.int64))
    joined = graph.weights(np.array([0, tokens, width], np.int64))
    scale = graph.weights(np.array((width // heads) ** -0.5, np.float32))

    def times(data: str, given: int, made: int, gain: float) -> str:
        weights = graph.weights(graph.normal(given, made, fan_in=given, gain=gain))
        return graph.node("MatMul", data, weights)

    def normalised(data: str) -> str:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return graph.node(
            "LayerNormalization", data, graph.weights(ones), graph.weights(zeros), axis=-1
        )

    data = "x"
    for _ in range(blocks):
        normal = normalised(data)
        query, key, value = (
            graph.node(
                "Transpose", graph.node("Reshape", times(normal, width, width, 1), split), perm=perm
            )
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        scores = graph.node("Mul", graph.node("MatMul", query, key), scale)
        seen = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        seen = graph.node("Reshape", graph.node("Transpose", seen, perm=[0, 2, 1, 3]), joined)
        data = graph.node("Add", data, times(seen, width, width, 1 / blocks))
        inner = graph.relu(times(normalised(data), width, 4 * width, 2))
        data = graph.node("Add", data, times(inner, 4 * width, width, 1 / blocks))
    mean = graph.node("ReduceMean", normalised(data), axes=[1], keepdims=0)
    return graph.model("attention", (tokens, width), graph.dense(mean, (width, 10), gain=1), 10)


def brightness(seed: int = 9) -> Any:
    """A picture's ten classes by its mean colour alone: a real picture comes in, and next to
    nothing is computed.
    """
    graph = _Graph(seed)
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", "x"))
    return graph.model("brightness", (3, 224, 224), graph.dense(pooled, (3, 10), gain=1), 10)


def largest(*, num_values: int) -> Any:
    """The largest of so many values: next to no execution, however many bytes come in."""
    graph = _Graph(seed=0)
    result = graph.node("ReduceMax", "x", axes=[1], keepdims=1)
    return graph.model("largest", (num_values,), result, 1)
