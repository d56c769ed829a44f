"""Plans: how they are built from ONNX, and what a plan that was made elsewhere is served as."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import pytest

from gpuworker.compile_model import CompileError
from gpuworker.engines.tensorrt_api import TensorRt
from gpuworker.engines.tensorrt_build import keep_timings
from gpuworker.model_store import RepositoryModel, scan_repository
from tests.gpuworker import onnx_models
from tests.gpuworker.compiled import infer
from tests.gpuworker.compiled_plans import Compiled, expected
from tests.gpuworker.test_onnxruntime import rows_of
from tests.standin import tensorrt

if TYPE_CHECKING:
    from gpuworker.devices.cuda_context import CudaContext


def test_a_plan_is_served_as_it_is(compiled: Compiled) -> None:
    compiled.add("source", onnx_models.mlp())
    (plan,) = (compiled.directory / "cache").rglob("model.plan")
    given = _given_plan(compiled, plan.read_bytes())
    artifact = compiled.compile(given)
    assert artifact.spec.batch_sizes == (1, 2, 4, 8, 16)
    assert [t.name for t in artifact.spec.inputs] == ["x"]
    backend = compiled.serve()
    backend.load("given", [1])
    ((answer,),) = infer(backend, "given", [[rows_of(4)]])
    np.testing.assert_allclose(
        answer, expected(onnx_models.mlp(), rows_of(4)), rtol=1e-4, atol=1e-5
    )
    backend.close()


def _given_plan(compiled: Compiled, content: bytes) -> RepositoryModel:
    version = compiled.directory / "plans" / "given" / "1"
    version.mkdir(parents=True)
    (version / "model.plan").write_bytes(content)
    (found,) = scan_repository(compiled.directory / "plans", takes_plans=True)
    return found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no plan at all", "magic tag does not match"),
        (tensorrt.MAGIC + b"\x93", "does not take the plan"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_with_tensorrts_words(
    compiled: Compiled, content: bytes, words: str
) -> None:
    with pytest.raises(CompileError, match=words):
        compiled.compile(_given_plan(compiled, content))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"version": "10.1.0"}, r"is of version 10\.1\.0, this is 10\.13\.3"),
        ({"compute_capability": "8.0"}, r"expecting compute 9\.0 got compute 8\.0"),
    ],
)
def test_a_plan_of_another_version_or_card_is_refused_with_both(
    compiled: Compiled, other: dict[str, str], words: str
) -> None:
    plan = _of_ranges(compiled, (1, 1))[len(tensorrt.MAGIC) :]
    spoken = msgspec.structs.replace(msgspec.msgpack.decode(plan, type=tensorrt.Plan), **other)
    with pytest.raises(CompileError, match=words):
        compiled.compile(_given_plan(compiled, tensorrt.MAGIC + msgspec.msgpack.encode(spoken)))


def test_a_repository_of_plans_says_what_it_needs_where_there_is_no_gpu(tmp_path: Path) -> None:
    version = tmp_path / "given" / "1"
    version.mkdir(parents=True)
    (version / "model.plan").write_bytes(b"")
    (found,) = scan_repository(tmp_path)
    assert found.problem == "model.plan needs a GPU (--device cuda:0), and there is no model.onnx"


def _of_ranges(compiled: Compiled, *bounds: tuple[int, int]) -> bytes:
    """A plan of an MLP with a profile for each range of rows, as trtexec makes them."""
    module = compiled.api.module
    path = compiled.directory / "ranges.onnx"
    onnx.save(onnx_models.mlp(), str(path))
    builder = module.Builder(compiled.api.logger)
    network = compiled.api.network(builder, is_fp16=False)
    assert module.OnnxParser(network, compiled.api.logger).parse_from_file(str(path))
    config = builder.create_builder_config()
    for least, most in bounds:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (least, 64), (most, 64), (most, 64))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)


def test_a_profile_for_a_range_of_rows_serves_the_powers_of_two_in_it(compiled: Compiled) -> None:
    artifact = compiled.compile(_given_plan(compiled, _of_ranges(compiled, (1, 20))))
    assert artifact.spec.batch_sizes == (1, 2, 4, 8, 16, 20)
    backend = compiled.serve()
    backend.load("given", [0])
    for num_rows in (1, 4, 20):
        x = rows_of(num_rows)
        ((answer,),) = infer(backend, "given", [[x]])
        np.testing.assert_allclose(answer, expected(onnx_models.mlp(), x), rtol=1e-4, atol=1e-5)
    backend.close()


def test_the_narrowest_profile_for_a_batch_size_is_used(compiled: Compiled) -> None:
    plan = _of_ranges(compiled, (1, 8), (4, 4))
    artifact = compiled.compile(_given_plan(compiled, plan))
    profiles = {v.batch_size: v.profile for v in artifact.variants}
    assert profiles == {1: 0, 2: 0, 4: 1, 8: 0}


def test_where_contexts_cannot_share_a_profile_each_serves_one_batch_size(
    tmp_path: Path, cuda_context: "CudaContext"
) -> None:
    compiled = Compiled(tmp_path, cuda_context, "8.6.1")
    plan = _of_ranges(compiled, (1, 4), (8, 16))
    assert compiled.compile(_given_plan(compiled, plan)).spec.batch_sizes == (1, 8)


def test_a_plan_without_a_profile_for_one_row_is_refused(compiled: Compiled) -> None:
    given = _given_plan(compiled, _of_ranges(compiled, (4, 8)))
    with pytest.raises(CompileError, match="smallest batch is 4: it needs a profile for 1"):
        compiled.compile(given)


# ---------------------------------------------------------------------- building


def _halved(model: onnx.ModelProto, *, as_constants: bool) -> onnx.ModelProto:
    """The model with FP16 weights, each cast up where it is used, in initializers or in nodes."""
    graph = model.graph
    nodes = []
    for tensor in list(graph.initializer):
        half = onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.half"
        )
        if as_constants:
            nodes.append(onnx.helper.make_node("Constant", [], [half.name], value=half))
        else:
            graph.initializer.append(half)
        nodes.append(
            onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT)
        )
        graph.initializer.remove(tensor)
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("as_constants", [False, True], ids=["initializers", "constant nodes"])
@pytest.mark.parametrize("version", ["8.6.1", "10.13.3", "11.4.0"])
def test_fp16_weights_make_layers_of_fp16_in_every_version(
    tmp_path: Path, cuda_context: "CudaContext", version: str, *, as_constants: bool
) -> None:
    """By the flag in 8, by the network's types in 10 and 11: no version takes both."""
    compiled = Compiled(tmp_path, cuda_context, version)
    told: list[tuple[bool, bool]] = []
    build = tensorrt.Builder.build_serialized_network

    def noted(builder: Any, network: Any, config: Any) -> bytes | None:
        told.append((network.is_typed, bool(config.flags)))
        return build(builder, network, config)

    compiled.api.module.Builder = lambda logger: _Noting(compiled.api.module, logger, noted)
    compiled.add("half", _halved(onnx_models.mlp(), as_constants=as_constants))
    compiled.add("single", onnx_models.mlp())
    is_8, is_11 = version.startswith("8"), version.startswith("11")
    assert told == [(not is_8, is_8), (is_11, False)]


class _Noting(tensorrt.Builder):
    def __init__(self, trt: Any, logger: Any, noted: Any) -> None:
        super().__init__(trt, logger)
        self._noted = noted

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        found: bytes | None = self._noted(self, network, config)
        return found


def test_writers_of_one_timing_cache_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "timings" / "cache"
    contents = [bytes([number]) * 100_000 for number in range(4)]

    def write(content: bytes) -> None:
        for _ in range(50):
            keep_timings(path, content)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert list(path.parent.iterdir()) == [path]


def test_a_timing_cache_that_cannot_be_kept_costs_no_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    keep_timings(tmp_path / "file" / "cache", b"timings")
    assert "is not kept" in caplog.text


def test_a_timing_cache_that_tensorrt_does_not_take_costs_no_model(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt.Config, "create_timing_cache", lambda _self, _content: None)
    assert compiled.add("m", onnx_models.mlp()).spec.unavailable_reason is None


def test_every_batch_size_is_compared_with_onnx_runtime(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = tensorrt.Engine.evaluate

    def wrong_in_eight(engine: Any, inputs: Any) -> Any:
        share = 1.2 if len(inputs["x"]) == 8 else 1.0
        return {name: share * array for name, array in evaluate(engine, inputs).items()}

    monkeypatch.setattr(tensorrt.Engine, "evaluate", wrong_in_eight)
    with pytest.raises(CompileError, match=r"of the plan for 8 rows differs .* by 20\.0 %"):
        compiled.add("m", onnx_models.mlp())


@pytest.mark.parametrize("name", ["Builder", "Runtime"])
def test_a_driver_that_is_too_old_for_tensorrt_is_said_in_its_words(
    compiled: Compiled, name: str
) -> None:
    def none(logger: Any) -> Any:
        logger.log(tensorrt.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    setattr(compiled.api.module, name, none)
    with pytest.raises(
        CompileError, match=r"TensorRT 10\.13\.3 does not start: CUDA initialization failure.* 35"
    ):
        compiled.add("m", onnx_models.mlp())


def test_plugins_of_tensorrts_own_are_registered() -> None:
    assert TensorRt(tensorrt.module()).module.plugins == [""]
