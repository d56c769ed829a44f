from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from gpuworker.engines.datatypes import Array
from gpuworker.engines.late_dequantising import dequantise_late
from gpuworker.engines.onnx_graph import compact_weights, read_graph
from tests.gpuworker import onnx_models
from tests.gpuworker.onnx_models import write_model


def read(directory: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    return read_graph(write_model(directory, "m", model))


def run(model: onnx.ModelProto, inputs: dict[str, Array]) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    output: Array = session.run(None, inputs)[0]
    return output


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    dequantise_late(changed, compact_weights(model))
    onnx.checker.check_model(changed)
    return changed


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


IDS = {"ids": np.array([[0, 299, 7, 7, 150], [1, 2, 3, 4, 5]])}


def test_rows_are_scaled_after_the_gather_and_columns_after_the_product(tmp_path: Path) -> None:
    source = read(tmp_path, onnx_models.int8_embedding())
    late = rewritten(source)
    assert operators(late) == {"Gather": 2, "Cast": 2, "Mul": 2, "MatMul": 1}
    table_readers = [node.op_type for node in late.graph.node if "table" in node.input]
    assert table_readers == ["Gather"]
    np.testing.assert_allclose(run(late, IDS), run(source, IDS), rtol=1e-4, atol=1e-5)


def test_gathered_rows_have_the_same_bits(tmp_path: Path) -> None:
    model = onnx_models.int8_embedding()
    del model.graph.node[3:]
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("words", onnx.TensorProto.FLOAT, ["n", 5, 64])
    )
    source = read(tmp_path, model)
    late = rewritten(source)
    assert operators(late) != operators(source)
    assert run(late, IDS).tobytes() == run(source, IDS).tobytes()


def scaled_twice_used(model: onnx.ModelProto) -> None:
    """The scaled table is an output too, so it must still be made."""
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, [300, 64])
    )


def test_a_scaled_weight_that_others_read_stays(tmp_path: Path) -> None:
    model = onnx_models.int8_embedding()
    scaled_twice_used(model)
    source = read(tmp_path, model)
    late = rewritten(source)
    assert operators(late)["Mul"] == 3
    np.testing.assert_allclose(run(late, IDS), run(source, IDS), rtol=1e-4, atol=1e-5)


def one_scale(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].CopyFrom(
        onnx.numpy_helper.from_array(np.array([[0.5]], np.float32), "row_scale")
    )
    model.graph.initializer[3].CopyFrom(
        onnx.numpy_helper.from_array(np.array(0.5, np.float32), "column_scale")
    )


def other_axis(model: onnx.ModelProto) -> None:
    model.graph.node[2].attribute.append(onnx.helper.make_attribute("axis", 1))
    del model.graph.node[3:]
    model.graph.output[0].name = "words"


@pytest.mark.parametrize("change", [one_scale, other_axis])
def test_what_does_not_fit_the_pattern_is_left_alone(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx_models.int8_embedding()
    change(model)
    source = read(tmp_path, model)
    assert rewritten(source) == source
