"""Plans are built from ONNX by a real builder and a real parser: TensorRT-RTX, which needs no GPU.

It is TensorRT's sibling for desktop cards, with the API of 11. Nothing is executed: its plans are
for other cards, and there is none. `make e2e-tensorrt-rtx` brings it and runs this.
"""

import importlib.util
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gpuworker.artifact_cache import PlanVariant
from gpuworker.engines.onnx_graph import has_fp16_weights
from gpuworker.engines.tensorrt_api import TensorRt
from gpuworker.engines.tensorrt_build import BuildError, build_plan
from loadtest.gpu_check.models import FP16, MODELS, halved
from tests.gpuworker import onnx_models

NAME = "tensorrt_rtx_bindings"

pytestmark = [
    pytest.mark.rtx,
    # It has no timing cache, and warns that it has none.
    pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning"),
    pytest.mark.skipif(
        importlib.util.find_spec(NAME) is None, reason="needs TensorRT-RTX: make e2e-tensorrt-rtx"
    ),
]


@pytest.fixture(scope="module")
def api() -> TensorRt:
    real = importlib.import_module(NAME)
    module: Any = types.ModuleType("tensorrt")
    module.__dict__.update(real.__dict__)
    module.__version__ = f"11.4.rtx{real.__version__}"  # it counts otherwise
    return TensorRt(module)


def _saved(directory: Path, name: str) -> Path:
    model = MODELS[name]()
    path = directory / f"{name}.onnx"
    onnx.save(halved(model) if name.endswith(FP16) else model, str(path))
    return path


def _variants(path: Path, *sizes: int) -> list[PlanVariant]:
    (value,) = onnx.load(str(path)).graph.input
    rest = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:]
    return [PlanVariant(number, size, ((size, *rest),)) for number, size in enumerate(sizes)]


def _input_name(path: Path) -> str:
    (value,) = onnx.load(str(path)).graph.input
    return str(value.name)


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_holds_the_weights_in_the_type_of_the_file(
    api: TensorRt, tmp_path: Path, name: str
) -> None:
    path = _saved(tmp_path, name)
    initializers = onnx.load(str(path)).graph.initializer
    weights = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in initializers)
    told: list[tuple[str, int, int]] = []
    plan = build_plan(
        api,
        path,
        _variants(path, 1, 4, 16),
        inputs=[_input_name(path)],
        is_fp16=has_fp16_weights(path),
        timing_cache=tmp_path / "timings" / "cache",
        progress=lambda what, done, of: told.append((what, done, of)),
    )
    assert has_fp16_weights(path) == name.endswith(FP16)
    # Profiles whose kernels want a matrix in another order have a copy of their own.
    assert 0.9 * weights < len(plan) < 2.2 * weights + (2 << 20)
    assert told
    assert all(0 < done <= of for _, done, of in told)


def test_an_operator_that_it_does_not_know_is_named(api: TensorRt, tmp_path: Path) -> None:
    model = onnx_models.mlp()
    model.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "unknown.onnx"
    onnx.save(model, str(path))
    with pytest.raises(BuildError, match=r"TensorRT 11\.4.* cannot read it: .*NoSuchOperator"):
        build_plan(api, path, _variants(path, 1), inputs=["x"])


def test_a_file_that_is_cut_short_is_refused(api: TensorRt, tmp_path: Path) -> None:
    path = tmp_path / "short.onnx"
    path.write_bytes(onnx_models.mlp().SerializeToString()[:-1000])
    with pytest.raises(BuildError, match="cannot read it: "):
        build_plan(api, path, [PlanVariant(0, 1, ((1, 64),))], inputs=["x"])


def test_shapes_that_the_model_does_not_take_are_named(api: TensorRt, tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(onnx_models.mlp(), str(path))
    with pytest.raises(BuildError):
        build_plan(api, path, [PlanVariant(0, 1, ((1, 65),))], inputs=["x"])


def test_an_allocator_of_ours_is_one_of_its_own(api: TensorRt) -> None:
    made = api.allocator(lambda _size, _alignment: 0, lambda _address: True)
    assert isinstance(made, api.module.IGpuAllocator)
    assert np.dtype(api.module.nptype(api.module.DataType.HALF)) == np.float16
