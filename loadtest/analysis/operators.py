"""Floating-point operations of one ONNX operator, from the shapes of what goes in and comes out.

Owns the convention, which is the usual one of roofline papers: a multiplication and an addition are
two operations, every elementary function (exp, tanh, a comparison) is one, moving and
reinterpreting data is none. Integer products of quantised operators count as floating-point ones.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Call(NamedTuple):
    """One operator at work. An input that is left out is None."""

    inputs: Sequence[Shape | None]
    outputs: Sequence[Shape]
    attributes: Mapping[str, Any]

    def given(self, index: int) -> Shape:
        """An input's shape; () if it is left out."""
        return (self.inputs[index] if index < len(self.inputs) else None) or ()


def _per_output(operations: int) -> Callable[[Call], int]:
    return lambda call: operations * sum(prod(shape) for shape in call.outputs[:1])


def _per_input(operations: int) -> Callable[[Call], int]:
    return lambda call: operations * prod(call.given(0))


def _nothing(_: Call) -> int:
    return 0


def _conv(call: Call, weights: int = 1) -> int:
    """2 · outputs · (input channels of the group) · kernel: weights are [out, in / groups, *k]."""
    made, kernel = prod(call.outputs[0]), call.given(weights)
    has_bias = weights == 1 and len(call.given(2)) > 0
    return 2 * made * prod(kernel[1:]) + made * has_bias


def _conv_transpose(call: Call) -> int:
    """Weights are [in, out / groups, *k], and every input element meets all of its row."""
    bias = prod(call.outputs[0]) if call.given(2) else 0
    return 2 * prod(call.given(0)) * prod(call.given(1)[1:]) + bias


def _gemm(call: Call) -> int:
    rows = call.given(0)
    inner: int = rows[0] if call.attributes.get("transA") else rows[-1]
    made = prod(call.outputs[0])
    return 2 * made * inner + (made if call.given(2) else 0)


def _matmul(call: Call) -> int:
    return 2 * prod(call.outputs[0]) * call.given(0)[-1]


def _recurrent(gates: int) -> Callable[[Call], int]:
    """x is [steps, rows, in], weights [directions, gates · hidden, in]: per step, row and direction
    two matrix-vector products, the biases, and about three operations per gate's element.
    """

    def count(call: Call) -> int:
        steps, rows, given = call.given(0)
        if call.attributes.get("layout"):
            steps, rows = rows, steps
        directions, height = call.given(1)[0], call.given(1)[1]
        hidden = height // gates
        per_step = 2 * height * (given + hidden) + 2 * height * bool(call.given(3)) + 3 * height
        return steps * rows * directions * per_step

    return count


def _pool(call: Call) -> int:
    kernel: Shape = call.attributes.get("kernel_shape", (1,))
    return prod(call.outputs[0]) * prod(kernel)


def _einsum(call: Call) -> int:
    """Two per combination of all indices, one if there is nothing to sum or multiply."""
    equation = call.attributes["equation"]
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    terms = text.replace(" ", "").split("->")[0].split(",")
    if "..." in text:
        raise NotCounted("Einsum with an ellipsis")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, call.inputs, strict=True):
        sizes.update(zip(term, shape or (), strict=True))
    return prod(sizes.values()) * (2 if len(terms) > 1 else 1)


def _resize(call: Call) -> int:
    mode = call.attributes.get("mode", b"nearest")
    name = mode.decode() if isinstance(mode, bytes) else mode
    return prod(call.outputs[0]) * {"nearest": 0, "linear": 7, "cubic": 31}.get(name, 0)


class NotCounted(ValueError):
    """There is no rule for this operator; the message names it."""


_ONE_PER_OUTPUT = (
    "Abs Add And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Clip Cos Cosh Div Equal Erf Exp "
    "Floor Greater GreaterOrEqual Acos Acosh Asin Asinh Atan Atanh IsInf IsNaN LeakyRelu Less "
    "LessOrEqual Log Max Min Mod Mul Neg Not Or PRelu Pow QuantizeLinear Reciprocal Relu Round "
    "Sigmoid Sign Sin Sinh Sqrt Sub Tan Tanh ThresholdedRelu Xor"
)
_MOVES_DATA = (
    "Cast CastLike Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Gather "
    "GatherElements GatherND NonZero OneHot Pad RandomNormal RandomUniform Range ReverseSequence "
    "ScatterElements ScatterND Size Slice SpaceToDepth Split Tile TopK Transpose Unique Where Shape"
)
# They only say how bytes are to be read: nothing is computed and, in any runtime, nothing moved.
_VIEWS = "Constant Dropout Flatten Identity Reshape Shape Size Squeeze Unsqueeze"
VIEWS = frozenset(_VIEWS.split())

RULES: dict[str, Callable[[Call], int]] = {
    **dict.fromkeys(_ONE_PER_OUTPUT.split(), _per_output(1)),
    **dict.fromkeys(_MOVES_DATA.split(), _nothing),
    **dict.fromkeys(VIEWS, _nothing),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    **dict.fromkeys(
        (
            "ArgMax", "ArgMin", "CumSum", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax",
            "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        ),
        _per_input(1),
    ),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare"), _per_input(2)),
    **dict.fromkeys(("DequantizeLinear", "HardSigmoid", "HardSwish", "Softplus"), _per_output(2)),
    **dict.fromkeys(("Elu", "Celu", "Selu", "Softsign"), _per_output(3)),
    "Mish": _per_output(4),
    "Gelu": _per_output(5),
    "Swish": _per_output(2),
    # the largest, a difference, an exponential, the sum, a quotient
    **dict.fromkeys(("Softmax", "LogSoftmax"), _per_output(5)),
    # mean, differences, squares, their mean, root and quotient, scale and shift
    **dict.fromkeys(
        ("GroupNormalization", "InstanceNormalization", "LayerNormalization"), _per_output(8)
    ),
    "MeanVarianceNormalization": _per_output(6),
    "RMSNormalization": _per_output(4),
    "BatchNormalization": _per_output(2),  # folded into a scale and a shift
    "LRN": _per_output(5),
    "Sum": lambda call: prod(call.outputs[0]) * (len(call.inputs) - 1),
    "Mean": lambda call: prod(call.outputs[0]) * len(call.inputs),
    "DynamicQuantizeLinear": _per_input(3),
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": lambda call: _conv(call, weights=3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "Einsum": _einsum,
    "Resize": _resize,
}  # fmt: skip


def flops_of(kind: str, call: Call) -> int:
    """Operations of one call. Raises NotCounted for an operator without a rule."""
    rule = RULES.get(kind)
    if rule is None:
        raise NotCounted(kind)
    return rule(call)
