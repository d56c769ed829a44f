"""FLOPs and bytes: of graphs counted by hand, of networks whose papers say them; roofs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from loadtest import graphs
from loadtest.analysis import roofline
from loadtest.analysis.ceilings import Ceilings, measure
from loadtest.analysis.graph_cost import GraphError, count
from loadtest.analysis.operators import Call, NotCounted, flops_of


def model_of(nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "attributes", "flops"),
    [
        ("MatMul", [(2, 3, 4), (4, 5)], [(2, 3, 5)], {}, 2 * 2 * 3 * 5 * 4),
        ("Gemm", [(4, 3), (4, 5), (5,)], [(3, 5)], {"transA": 1}, 2 * 15 * 4 + 15),
        ("Conv", [(1, 6, 8, 8), (4, 3, 3, 3)], [(1, 4, 8, 8)], {"group": 2}, 2 * 256 * 27),
        ("Conv", [(1, 3, 8, 8), (4, 3, 1, 1), (4,)], [(1, 4, 8, 8)], {}, 2 * 256 * 3 + 256),
        ("ConvTranspose", [(1, 3, 4, 4), (3, 2, 2, 2)], [(1, 2, 8, 8)], {}, 2 * 48 * 8),
        ("QLinearConv", [(1, 3, 8, 8), (), (), (4, 3, 1, 1)], [(1, 4, 8, 8)], {}, 2 * 256 * 3),
        ("LSTM", [(5, 2, 3), (1, 16, 3), (1, 16, 4)], [(5, 1, 2, 4)], {}, 10 * (32 * 7 + 48)),
        ("LSTM", [(2, 5, 3), (1, 16, 3)], [(5, 1, 2, 4)], {"layout": 1}, 10 * (32 * 7 + 48)),
        ("Einsum", [(2, 3), (3, 4)], [(2, 4)], {"equation": b"ij,jk->ik"}, 48),
        ("MaxPool", [(1, 1, 4, 4)], [(1, 1, 2, 2)], {"kernel_shape": [2, 2]}, 16),
        ("Relu", [(7,)], [(7,)], {}, 7),
        ("Reshape", [(7,), (1,)], [(7, 1)], {}, 0),
        ("Resize", [(1, 1, 2, 2)], [(1, 1, 4, 4)], {"mode": b"linear"}, 7 * 16),
        ("ReduceMean", [(3, 4)], [(3, 1)], {}, 12),
        ("Sum", [(3,), (3,), (3,)], [(3,)], {}, 6),
    ],
)
def test_an_operator_is_counted_as_by_hand(kind, inputs, outputs, attributes, flops):
    assert flops_of(kind, Call(inputs, outputs, attributes)) == flops


def test_an_operator_without_a_rule_is_named():
    with pytest.raises(NotCounted, match="MyOwnOperator"):
        flops_of("MyOwnOperator", Call([(1,)], [(1,)], {}))


def test_bytes_of_a_dense_layer_are_its_weights_input_and_output():
    weights = np.ones((4, 5), np.float32)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Relu", ["t"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 4])],
        [("y", TensorProto.FLOAT, ["N", 5])],
        [("w", weights)],
    )

    cost = count(model, batch=3)

    product, relu = cost.operators
    assert product.flops == 2 * 3 * 5 * 4
    assert product.moved_bytes == 4 * (3 * 4 + 4 * 5 + 3 * 5)
    assert relu.moved_bytes == 4 * 2 * 3 * 5
    assert cost.weights_bytes == 80
    assert cost.least_bytes == 80 + 4 * 12 + 4 * 15  # what is between the two is kept
    assert cost.best_intensity > cost.intensity


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        # He et al. (2015), table 1, count multiply-adds: 1.8, and 3.8 with strides in 1x1.
        (graphs.resnet((2, 2, 2, 2)), 3.64),
        (graphs.resnet50(), 8.2),
    ],
)
def test_a_resnet_has_the_flops_of_its_paper(model, billions):
    assert count(model).flops / 1e9 == pytest.approx(billions, rel=0.01)


def test_flops_grow_with_the_batch_and_weights_do_not():
    model = graphs.mlp(sizes=(64, 64, 10), seed=1)
    one, eight = count(model, batch=1), count(model, batch=8)
    assert eight.flops == 8 * one.flops
    assert eight.weights_bytes == one.weights_bytes
    assert eight.intensity > one.intensity


def test_shapes_that_depend_on_data_are_found_by_running_the_graph():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Shape", ["places"], ["how"]),
        helper.make_node("Cast", ["how"], ["y"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, [2])])
    cost = count(model, batch=2)
    assert cost.not_counted == {}
    assert [operator.kind for operator in cost.operators] == ["NonZero", "Shape", "Cast"]


def test_what_cannot_be_counted_is_said():
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value_float=1.0)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [])],
    )
    model = model_of(
        [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)],
        [("x", TensorProto.BOOL, [])],
        [("y", TensorProto.FLOAT, [])],
    )
    assert count(model).not_counted == {"If": 1}


def test_a_free_dimension_needs_a_size():
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", "time", 8])],
        [("y", TensorProto.FLOAT, ["N", "time", 8])],
    )
    with pytest.raises(GraphError, match=r"m: input x is .*'time', 8\].*2 numbers"):
        count(model, name="m")
    with pytest.raises(GraphError, match="has no input z; its inputs are x"):
        count(model, shapes={"z": (1,)})
    assert count(model, batch=2, shapes={"x": (5, 8)}).flops == 80


def test_a_second_inputs_batch_is_one_wherever_it_stands():
    model = model_of(
        [helper.make_node("ReduceMax", ["state"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 3]), ("state", TensorProto.FLOAT, [2, "N", 4])],
        [("y", TensorProto.FLOAT, [1, 1, 1])],
    )
    assert count(model, batch=5).flops == 2 * 5 * 4


def test_a_model_of_one_batch_size_is_not_counted_for_another():
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [1, 8])],
        [("y", TensorProto.FLOAT, [1, 8])],
    )
    with pytest.raises(GraphError, match="batch 4 cannot be counted"):
        count(model, batch=4)


def test_a_file_that_is_no_model_is_named(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(GraphError, match=r"model\.onnx is no ONNX model"):
        count(tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="no such file"):
        count(tmp_path / "other.onnx")


CEILINGS = Ceilings(device="d", threads=1, flops_per_s=100e9, memory_bytes_per_s=10e9)


@pytest.mark.parametrize(
    ("moved", "least", "limit"), [(2, 1, "compute"), (50, 20, "memory"), (50, 1, "either")]
)
def test_the_ridge_says_what_limits(moved, least, limit):
    point = roofline.Point(
        model="m",
        batch=1,
        flops=100_000_000,
        moved_bytes=moved * 1_000_000,
        least_bytes=least * 1_000_000,
        weights_bytes=0,
        execution_s=0.004,
    )
    assert point.limit(CEILINGS) == limit
    assert CEILINGS.roof(2) == 20e9
    assert CEILINGS.roof(1000) == 100e9
    assert CEILINGS.least_s(100e9, 20e9) == 2.0


def test_a_models_operators_are_measured(tmp_path: Path):
    path = tmp_path / "tiny.onnx"
    onnx.save(graphs.mlp(sizes=(8, 8, 2), seed=1), path)
    point, cost, kinds = roofline.measure(path, batch=2, threads=1, measure_s=0.0)
    assert (point.model, point.batch, point.flops) == ("tiny", 2, cost.flops)
    assert point.execution_s > 0
    assert "Gemm" in " ".join(kind.kind for kind in kinds)
    assert roofline.by_kind(cost)[0].kind == "Gemm"


def test_of_a_profile_the_last_execution_counts():
    def node(ts, dur, op):
        return {"cat": "Node", "name": f"n_{ts}_kernel_time", "ts": ts, "dur": dur,
                "args": {"op_name": op}}  # fmt: skip

    run = {"cat": "Session", "name": "model_run"}
    events = [
        {**run, "ts": 0, "dur": 90}, node(10, 50, "Conv"),
        {**run, "ts": 100, "dur": 30}, node(105, 10, "Conv"), node(115, 5, "Relu"),
        node(121, 6, "Conv"),
    ]  # fmt: skip
    kinds = roofline.kinds_of_profile(events)
    assert [(kind.kind, kind.calls, round(kind.seconds * 1e6)) for kind in kinds] == [
        ("Conv", 2, 16),
        ("Relu", 1, 5),
    ]


def test_ceilings_are_the_fastest_of_what_was_measured():
    ticks = iter(range(0, 10**12, 1_000_000))  # every look at the clock is a millisecond later
    found = measure(threads=1, device="cpu", clock=lambda: next(ticks), measure_s=0.0)
    assert found.flops_per_s == 2 * 1536**3 / 1e-3
    assert found.memory_bytes_per_s == 2 * (256 << 20) / 1e-3
    assert found.cache_bytes_per_s == found.memory_bytes_per_s  # never below memory's
