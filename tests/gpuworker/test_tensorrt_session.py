"""How an engine is made ready: contexts, graphs, and what its weights are when it is."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gpuworker.backend import EngineError
from tests.gpuworker import onnx_models
from tests.gpuworker.compiled import infer
from tests.gpuworker.compiled_plans import Compiled, expected
from tests.gpuworker.test_onnxruntime import rows_of
from tests.standin import driver, tensorrt
from tests.standin.driver import StandIn

if TYPE_CHECKING:
    from gpuworker.engines.tensorrt import TensorRtBackend


def _answers(backend: "TensorRtBackend") -> None:
    """What it answers is right, three times, with other inputs each time."""
    backend.load("m", [1])
    for seed, num_rows in enumerate((1, 2, 1)):
        x = rows_of(num_rows, seed=seed)
        ((answer,),) = infer(backend, "m", [[x]])
        np.testing.assert_allclose(answer, expected(onnx_models.mlp(), x), rtol=1e-4, atol=1e-5)


def test_an_execution_that_is_refused_while_it_is_recorded_is_executed_without_a_graph(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled.add("m", onnx_models.mlp())
    execute = tensorrt.Context.execute_async_v3
    num_calls = 0

    def third_is_refused(context: Any, stream: int) -> bool:
        """Of each context: two warm it up, the third is recorded."""
        nonlocal num_calls
        num_calls += 1
        return num_calls % 3 != 0 and execute(context, stream)

    monkeypatch.setattr(tensorrt.Context, "execute_async_v3", third_is_refused)
    backend = compiled.serve()
    monkeypatch.setattr(tensorrt.Context, "execute_async_v3", execute)
    assert "a batch of 4 is executed without a CUDA graph: TensorRT did not execute" in caplog.text
    _answers(backend)
    backend.close()


def test_a_graph_that_recorded_nothing_is_not_used(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled.add("m", onnx_models.mlp())
    execute = tensorrt.Context.execute_async_v3
    num_calls = 0

    def third_does_nothing(context: Any, stream: int) -> bool:
        nonlocal num_calls
        num_calls += 1
        return num_calls % 3 == 0 or execute(context, stream)

    monkeypatch.setattr(tensorrt.Context, "execute_async_v3", third_does_nothing)
    backend = compiled.serve()
    monkeypatch.setattr(tensorrt.Context, "execute_async_v3", execute)
    assert "executed without a CUDA graph: nothing was enqueued" in caplog.text
    _answers(backend)
    backend.close()


def test_a_graph_that_the_driver_refuses_is_not_used(
    compiled: Compiled, standin: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    compiled.add("m", onnx_models.mlp())
    destroyed = standin.calls("cuGraphDestroy")
    standin.fail("cuGraphInstantiateWithFlags", driver.OUT_OF_MEMORY)
    backend = compiled.serve()
    told = "a batch of 1 is executed without a CUDA graph: cuGraphInstantiate: CUDA_ERROR_OUT_OF"
    assert told in caplog.text
    assert caplog.text.count("without a CUDA graph") == 1
    assert standin.calls("cuGraphDestroy") - destroyed == 5  # of every batch size, refused or not
    _answers(backend)
    backend.close()


def test_an_address_that_tensorrt_does_not_take_costs_the_model(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.add("m", onnx_models.mlp())
    monkeypatch.setattr(tensorrt.Context, "set_tensor_address", lambda *_: False)
    backend = compiled.serve()
    assert "its engine cannot be made ready: x" in str(backend.models["m"].unavailable_reason)
    with pytest.raises(EngineError, match="m cannot be served by this worker"):
        backend.load("m", [0])
    backend.close()


def test_a_shape_that_the_host_computes_with_is_named(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.add("m", onnx_models.mlp())
    monkeypatch.setattr(
        tensorrt.Engine, "get_tensor_location", lambda *_: tensorrt.TensorLocation.HOST
    )
    backend = compiled.serve()
    reason = backend.models["m"].unavailable_reason
    assert reason is not None
    assert reason.endswith("x is a shape that the host computes with: not supported")
    backend.close()


def test_a_context_for_which_there_is_no_memory_says_how_much(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch, standin: StandIn
) -> None:
    compiled.add("m", onnx_models.mlp())

    def wants_memory(engine: Any) -> Any:
        standin.fail("cuMemAlloc_v2", driver.OUT_OF_MEMORY)
        assert engine._allocator.allocate(12_345, 256, 0) == 0

    monkeypatch.setattr(tensorrt, "Context", wants_memory)
    backend = compiled.serve()
    reason = backend.models["m"].unavailable_reason
    assert reason is not None
    assert "could not make an execution context: 12345 bytes of device memory" in reason
    assert "CUDA_ERROR_OUT_OF_MEMORY" in reason
    backend.close()


def test_what_the_first_execution_sets_in_the_weights_is_kept(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a kernel might that zeroes its counters once: a LOAD must not undo it."""
    compiled.add("m", onnx_models.mlp())
    ready = onnx_models.mlp()
    (weight, *_) = ready.graph.initializer
    execute = tensorrt.Context.execute_async_v3

    def sets_up(context: Any, stream: int) -> bool:
        address, _ = context._engine.weights[weight.name]
        value = np.float32(3).tobytes()
        tensorrt.check(tensorrt.driver().cuMemcpyHtoD_v2(address, value, len(value)))
        return execute(context, stream)

    monkeypatch.setattr(tensorrt.Context, "execute_async_v3", sets_up)
    backend = compiled.serve()
    monkeypatch.setattr(tensorrt.Context, "execute_async_v3", execute)
    assert "m: making it ready changed" in caplog.text
    content = tensorrt.numpy_helper.to_array(weight).copy()
    content.flat[0] = 3
    weight.CopyFrom(tensorrt.numpy_helper.from_array(content, weight.name))
    backend.load("m", [0])
    x = rows_of(2)
    ((answer,),) = infer(backend, "m", [[x]])
    np.testing.assert_allclose(answer, expected(ready, x), rtol=1e-4, atol=1e-5)
    backend.close()
