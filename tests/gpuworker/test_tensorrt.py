"""TensorRT engines over the CUDA device's pages, with numpy in TensorRT's place.

What stands in for TensorRT (tests/standin/tensorrt.py) reads its weights from device memory at
every execution; what stands in for the driver copies only when it is waited for.
"""

import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gpuworker.artifact_cache import Artifact, ArtifactCache
from gpuworker.backend import DeviceLost, EngineError, InvalidInput, NotCompiled
from gpuworker.compile_model import CompileError
from gpuworker.config import ConfigError
from gpuworker.devices.nvml import open_telemetry
from gpuworker.engines.tensorrt_api import TensorRt
from scheduler.actions import Infer
from scheduler.spec import ModelSpec
from tests.gpuworker import onnx_models
from tests.gpuworker.compiled import infer, order, packed
from tests.gpuworker.compiled_plans import PAGE, Compiled, expected
from tests.gpuworker.test_onnxruntime import rows_of
from tests.standin import driver, tensorrt
from tests.standin.driver import StandIn
from tests.standin.pynvml import Card, Nvml

if TYPE_CHECKING:
    from gpuworker.devices.cuda_context import CudaContext
    from gpuworker.engines.tensorrt import TensorRtBackend

VERSIONS = ("8.5.3.1", "8.6.1", "10.0.1", "10.13.3.9", "11.4.0.106")
# Compiles and serves these models with this TensorRT, in a cache of so many pages.
Serve = Callable[..., "TensorRtBackend"]


@pytest.fixture
def backend(compiled: Compiled) -> Iterator["TensorRtBackend"]:
    """Serves `m`, a model of one page."""
    compiled.add("m", onnx_models.mlp())
    serving = compiled.serve()
    yield serving
    serving.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_serves_the_answers_of_plain_onnx_runtime(
    tmp_path: Path, cuda_context: "CudaContext", version: str
) -> None:
    compiled = Compiled(tmp_path, cuda_context, version)
    compiled.add("m", onnx_models.mlp())
    backend = compiled.serve()
    backend.load("m", [2])
    for num_rows in (1, 2, 4, 8, 16):
        x = rows_of(num_rows)
        ((answer,),) = infer(backend, "m", [[x]])
        np.testing.assert_allclose(answer, expected(onnx_models.mlp(), x), rtol=1e-4, atol=1e-5)
    backend.close()


def test_a_batch_is_padded_and_divided_among_its_requests(backend: "TensorRtBackend") -> None:
    backend.load("m", [0])
    requests = [[rows_of(1, seed=1)], [rows_of(2, seed=2)]]
    answers = infer(backend, "m", requests, batch_size=4)
    for (x,), (answer,) in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer, expected(onnx_models.mlp(), x), rtol=1e-4, atol=1e-5)


def test_the_telemetry_it_is_given_ends_with_it(compiled: Compiled) -> None:
    nvml = Nvml(b01=Card())
    telemetry = open_telemetry(compiled.context.pci_bus_id, nvml=nvml)
    assert telemetry is not None
    compiled.add("m", onnx_models.mlp())
    backend = compiled.serve(telemetry=telemetry)
    assert backend.telemetry is telemetry
    assert nvml.is_up
    backend.close()
    assert not nvml.is_up


def test_what_is_compiled_says_all_that_a_scheduler_must_know(compiled: Compiled) -> None:
    artifact = compiled.add("m", onnx_models.mlp())
    spec = artifact.spec
    assert (spec.platform, spec.batch_sizes, spec.runs_exact_batch) == (
        "tensorrt_plan",
        (1, 2, 4, 8, 16),
        False,
    )
    weights = sum(numpy_helper.to_array(t).nbytes for t in onnx_models.mlp().graph.initializer)
    assert weights <= spec.weights_bytes < weights + 1024  # and what alignment adds
    (shape,) = spec.profile.shapes
    assert set(shape.exec_ns) == {1, 2, 4, 8, 16}
    assert min(shape.exec_ns.values()) > 0
    assert spec.profile.load_ns > 0
    assert artifact.needs is not None
    assert artifact.needs.scratch == 1 << 16
    assert artifact.needs.inputs == 16 * 64 * 4


def test_thousands_of_loads_and_evictions_change_no_bit(compiled: Compiled) -> None:
    """Three models through a cache for two, a random walk; one of them takes two pages."""
    models = {
        "small": onnx_models.mlp(seed=1),
        "other": onnx_models.mlp(seed=2),
        "large": onnx_models.mlp(seed=3, hidden=5000),
    }
    for name, model in models.items():
        compiled.add(name, model, "batch_sizes: [1, 2]\n")
    backend = compiled.serve(total_pages=3)
    rng = random.Random(3)
    free, loaded = [0, 1, 2], dict[str, list[int]]()
    x = rows_of(1)
    first: dict[str, bytes] = {}
    num_checked = 0
    for _ in range(3_000):
        name = rng.choice(list(models))
        if name in loaded:
            backend.evict(name)
            free += loaded.pop(name)
            continue
        needed = backend.models[name].num_pages(PAGE)
        if needed > len(free):
            continue
        rng.shuffle(free)
        loaded[name] = [free.pop() for _ in range(needed)]
        backend.load(name, loaded[name])
        if rng.random() < 0.1:
            ((answer,),) = infer(backend, name, [[x]])
            assert first.setdefault(name, answer.tobytes()) == answer.tobytes()
            num_checked += 1
    assert num_checked > 50
    for name, model in models.items():
        answer = np.frombuffer(first[name], np.float32).reshape(1, -1)
        np.testing.assert_allclose(answer, expected(model, x), rtol=1e-4, atol=1e-5)
    backend.close()


def test_an_evicted_model_is_not_executed(backend: "TensorRtBackend", standin: StandIn) -> None:
    backend.load("m", [1])
    backend.evict("m")
    metas, buffers = packed([rows_of(1)])
    staged = backend.stage(order("m", [1]), [metas], [buffers])
    with pytest.raises(EngineError, match="m: the weights are not resident"):
        backend.execute(staged)
    backend.discard(staged)


def test_nothing_is_allocated_or_recorded_once_models_are_ready(
    backend: "TensorRtBackend", standin: StandIn
) -> None:
    watched = ("cuMemAlloc_v2", "cuMemCreate", "cuMemHostAlloc", "cuStreamBeginCapture_v2")
    backend.load("m", [0])
    infer(backend, "m", [[rows_of(1)]])
    before = [standin.calls(name) for name in watched]
    launches = standin.calls("cuGraphLaunch")
    for page in (1, 2, 3):
        backend.evict("m")
        backend.load("m", [page])
        infer(backend, "m", [[rows_of(4)]])
    assert [standin.calls(name) for name in watched] == before
    assert standin.calls("cuGraphLaunch") == launches + 3


def test_a_batch_whose_inputs_wait_does_not_disturb_the_one_that_executes(
    backend: "TensorRtBackend",
) -> None:
    """Input phases run ahead: four batches are staged before the first is executed."""
    backend.load("m", [0])
    inputs = [rows_of(1, seed=seed) for seed in range(4)]
    staged = []
    for x in inputs:
        metas, buffers = packed([x])
        staged.append(backend.stage(order("m", [1]), [metas], [buffers]))
    for batch in staged:
        backend.execute(batch)
    for batch, x in zip(staged, inputs, strict=True):
        _, (content,) = backend.unstage(batch)
        answer = np.frombuffer(bytes(content), np.float32).reshape(1, -1)
        np.testing.assert_allclose(answer, expected(onnx_models.mlp(), x), rtol=1e-4, atol=1e-5)


def test_a_discarded_batch_gives_its_place_back(backend: "TensorRtBackend") -> None:
    metas, buffers = packed([rows_of(1)])
    for _ in range(20):  # there are four places
        backend.discard(backend.stage(order("m", [1]), [metas], [buffers]))


def test_shapes_without_a_profile_are_the_clients_fault(backend: "TensorRtBackend") -> None:
    metas, buffers = packed([rows_of(3)])
    with pytest.raises(InvalidInput, match=r"m: no plan for a batch of 3 with inputs .*\[3, 64\]"):
        backend.stage(order("m", [3]), [metas], [buffers])
    for _ in range(8):  # no place was lost
        metas, buffers = packed([rows_of(2)])
        backend.discard(backend.stage(order("m", [2]), [metas], [buffers]))


@pytest.mark.parametrize("moment", ["load", "execute", "unstage"])
def test_a_broken_device_is_lost_and_not_an_error_of_a_model(
    backend: "TensorRtBackend", standin: StandIn, moment: str
) -> None:
    metas, buffers = packed([rows_of(1)])
    staged = backend.stage(order("m", [1]), [metas], [buffers])
    if moment != "load":
        backend.load("m", [0])
    if moment == "unstage":
        backend.execute(staged)
    work: dict[str, Callable[[], object]] = {
        "load": lambda: backend.load("m", [0]),
        "execute": lambda: backend.execute(staged),
        "unstage": lambda: backend.unstage(staged),
    }
    standin.die(driver.ECC_UNCORRECTABLE)
    with pytest.raises(DeviceLost, match="Stand-in is lost: CUDA_ERROR_ECC_UNCORRECTABLE"):
        work[moment]()
    standin.heal()


# ---------------------------------------------------------------------- what cannot be served


@pytest.mark.parametrize("version", ["8.6.1", "10.13.3"])
def test_an_unsupported_operator_is_named(
    tmp_path: Path, cuda_context: "CudaContext", version: str
) -> None:
    """Version 8 tells the number of its node alone."""
    compiled = Compiled(tmp_path, cuda_context, version)
    with pytest.raises(
        CompileError,
        match=rf"TensorRT {version} cannot read it: operator NonZero \(node 3\): .*not found",
    ):
        compiled.add("m", _non_zero())


def _non_zero() -> onnx.ModelProto:
    """y = x + 0 * sum(indices of x that are not zero)."""
    model = onnx_models.mlp()
    graph = model.graph
    last = graph.output[0].name
    made = next(node for node in graph.node if last in node.output)
    made.output[list(made.output).index(last)] = "before"
    graph.node.extend(
        [
            onnx.helper.make_node("NonZero", ["x"], ["where"]),
            onnx.helper.make_node("Cast", ["where"], ["floats"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("ReduceSum", ["floats"], ["total"], keepdims=0),
            onnx.helper.make_node("Sub", ["total", "total"], ["nothing"]),
            onnx.helper.make_node("Add", ["before", "nothing"], [last]),
        ]
    )
    return model


def test_a_plan_of_another_version_is_unavailable_and_others_go_on(
    compiled: Compiled, caplog: pytest.LogCaptureFixture
) -> None:
    compiled.add("good", onnx_models.mlp())
    compiled.add("old", onnx_models.mlp(seed=2))
    _respell(compiled, "old", version="10.1.0")
    backend = compiled.serve()
    reason = backend.models["old"].unavailable_reason
    assert reason is not None
    assert "does not take the plan" in reason
    assert "of version 10.1.0, this is 10.13.3" in reason
    backend.load("good", [0])
    infer(backend, "good", [[rows_of(1)]])
    backend.close()


def test_a_plan_of_another_card_is_unavailable(compiled: Compiled) -> None:
    compiled.add("other", onnx_models.mlp())
    _respell(compiled, "other", compute_capability="8.0")
    backend = compiled.serve()
    reason = backend.models["other"].unavailable_reason
    assert reason is not None
    assert "an incompatible device, expecting compute 9.0 got compute 8.0" in reason
    backend.close()


def _respell(compiled: Compiled, name: str, **changes: str) -> None:
    """Another plan in the place of a model's, with the seals of the cache made anew."""
    from gpuworker.engines.tensorrt import engine_key

    spec = next(a.spec for a in compiled.artifacts if a.spec.name == name)
    cache = ArtifactCache(
        compiled.directory / "cache", engine_key=engine_key(compiled.api, compiled.context.kind)
    )
    stored = cache.find(name, spec.version, spec.content_hash)
    assert stored is not None
    content = stored.plan_path.read_bytes()[len(tensorrt.MAGIC) :]
    plan = msgspec.msgpack.decode(content, type=tensorrt.Plan)
    changed = tensorrt.MAGIC + msgspec.msgpack.encode(msgspec.structs.replace(plan, **changes))

    def write(target: Path) -> Artifact:
        (target / "model.plan").write_bytes(changed)
        return stored.artifact

    cache.store(name, spec.version, spec.content_hash, write)


def test_a_cut_off_plan_is_missing_and_others_go_on(compiled: Compiled) -> None:
    compiled.add("m", onnx_models.mlp())
    (plan,) = (compiled.directory / "cache").rglob("model.plan")
    plan.write_bytes(plan.read_bytes()[:-100])
    backend = compiled.serve()
    assert backend.models["m"].unavailable_reason == "its plan is missing or damaged"
    backend.close()


def test_a_model_larger_than_the_cache_has_no_session(compiled: Compiled) -> None:
    compiled.add("large", onnx_models.mlp(hidden=12_000), "batch_sizes: [1]\n")
    backend = compiled.serve(total_pages=1)
    assert backend.models["large"].unavailable_reason is None
    with pytest.raises(EngineError, match="large cannot be served by this worker"):
        backend.load("large", [0])
    backend.close()


def test_pinned_memory_that_runs_out_costs_one_model(compiled: Compiled, standin: StandIn) -> None:
    compiled.add("a", onnx_models.mlp(seed=1))
    compiled.add("b", onnx_models.mlp(seed=2))
    standin.fail("cuMemHostRegister_v2", driver.OUT_OF_MEMORY)
    backend = compiled.serve()
    reason = backend.models["a"].unavailable_reason
    assert reason is not None
    assert "of the host's memory cannot be pinned" in reason
    assert backend.models["b"].unavailable_reason is None
    backend.close()


def test_a_card_too_small_for_the_scratch_memory_says_how_much_is_missing(
    compiled: Compiled, standin: StandIn
) -> None:
    compiled.add("m", onnx_models.mlp())
    standin.fail("cuMemAlloc_v2", driver.OUT_OF_MEMORY, times=1000)
    with pytest.raises(ConfigError, match=r"Stand-in is too small to execute: .* MiB are free"):
        compiled.serve()


def test_a_model_that_wants_more_scratch_memory_than_there_is_leaves_the_others_theirs(
    tmp_path: Path, cuda_context: "CudaContext", standin: StandIn
) -> None:
    compiled = Compiled(tmp_path, cuda_context)
    compiled.add("small", onnx_models.mlp())
    compiled.api.module.scratch = 300 << 20
    compiled.add("large", onnx_models.mlp(seed=2))
    standin.fail("cuMemAlloc_v2", driver.OUT_OF_MEMORY, times=2)  # pycuda asks twice
    backend = compiled.serve()
    reason = backend.models["large"].unavailable_reason
    assert reason is not None
    assert f"to execute takes {300 << 20} bytes of scratch memory" in reason
    assert "300 MiB of device memory" in reason
    backend.load("small", [0])
    infer(backend, "small", [[rows_of(1)]])
    backend.close()


def test_without_a_size_the_cache_takes_what_engines_leave(
    compiled: Compiled, cuda_context: "CudaContext"
) -> None:
    from gpuworker.engines.tensorrt import SPARE_BYTES

    compiled.add("m", onnx_models.mlp())
    free = cuda_context.free_bytes()
    backend = compiled.serve(total_pages=None)
    cache_bytes = backend.device.total_pages * PAGE
    assert free - SPARE_BYTES - (64 << 20) < cache_bytes <= free - SPARE_BYTES
    backend.close()


def test_what_tensorrt_computes_otherwise_than_onnx_runtime_is_refused(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = tensorrt.Engine.evaluate
    monkeypatch.setattr(
        tensorrt.Engine,
        "evaluate",
        lambda engine, inputs: {n: 1.2 * a for n, a in evaluate(engine, inputs).items()},
    )
    with pytest.raises(CompileError, match=r"differs from ONNX Runtime's by 20\.0 %"):
        compiled.add("m", onnx_models.mlp())


def test_tensorrt_that_is_missing_or_too_old_is_named() -> None:
    with pytest.raises(ConfigError, match=r"TensorRT 8\.4\.1 is installed, 8\.5 or newer"):
        TensorRt(tensorrt.module("8.4.1"))


def test_what_tensorrt_says_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    api = TensorRt(tensorrt.module())
    severity: Any = tensorrt.Severity
    with caplog.at_level(logging.DEBUG, logger="gpuworker.tensorrt"):
        api.logger.log(severity.WARNING, "careful\n")
        api.logger.log(severity.ERROR, "no")
        api.logger.log(severity.VERBOSE, "chatter")
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "careful"),
        ("ERROR", "no"),
    ]
    assert api.logger.last_error == "no"


# Models that come and go


def wanted(compiled: Compiled, name: str = "m/2") -> ModelSpec:
    """What the gateway asks for: the model `m` that was compiled last."""
    return msgspec.structs.replace(compiled.artifacts[-1].spec, name=name)


def held_by(compiled: Compiled, standin: StandIn) -> dict[str, int]:
    """What has been taken and not given back: bytes of the device, and other things by number."""
    pairs = {
        "cuMemCreate": "cuMemRelease",
        "cuMemAddressReserve": "cuMemAddressFree",
        "cuMemHostRegister_v2": "cuMemHostUnregister",
        "cuGraphInstantiateWithFlags": "cuGraphExecDestroy",
    }
    held = {taken: standin.calls(taken) - standin.calls(given) for taken, given in pairs.items()}
    return {**held, "bytes": -compiled.context.free_bytes()}


def test_releasing_gives_back_engine_and_host_copy_and_a_load_makes_them_anew(
    compiled: Compiled, standin: StandIn
) -> None:
    compiled.add("m", onnx_models.mlp())
    backend = compiled.serve()
    x = rows_of(4)
    backend.load("m", [0])
    ((before,),) = infer(backend, "m", [[x]])
    backend.evict("m")
    held = held_by(compiled, standin)
    assert backend.release("m") == 20480  # 18.6 KB of weights, in whole pages of the host
    released = held_by(compiled, standin)
    assert released["bytes"] <= held["bytes"]
    assert {kind: held[kind] - released[kind] for kind in held if kind != "bytes"} == {
        "cuMemCreate": 0,
        "cuMemAddressReserve": 1,
        "cuMemHostRegister_v2": 1,
        "cuGraphInstantiateWithFlags": 5,
    }
    assert backend.release("m") == 0
    with pytest.raises(EngineError, match="cannot be served by this worker"):
        infer(backend, "m", [[x]])
    backend.load("m", [3])
    ((after,),) = infer(backend, "m", [[x]])
    assert after.tobytes() == before.tobytes()
    backend.close()


def test_a_model_is_made_ready_beside_what_executes_and_goes_without_a_trace(
    backend: "TensorRtBackend", compiled: Compiled, standin: StandIn
) -> None:
    compiled.add("m", onnx_models.mlp(seed=5), version="2")
    x = rows_of(2)
    for page in range(4):  # every page holds bytes that are somebody's
        backend.load("m", [page])
        backend.evict("m")
    backend.load("m", [0])
    ((old,),) = infer(backend, "m", [[x]])
    held = held_by(compiled, standin)

    thread_says: list[Any] = []

    def make_ready() -> None:
        backend.bind_thread()
        thread_says.append(backend.prepare(wanted(compiled)))

    thread = threading.Thread(target=make_ready)
    thread.start()
    while thread.is_alive():
        ((answer,),) = infer(backend, "m", [[x]])
        assert answer.tobytes() == old.tobytes()
    thread.join()
    backend.add(thread_says.pop())
    backend.load("m/2", [1])
    ((new,),) = infer(backend, "m/2", [[x]])
    np.testing.assert_allclose(new, expected(onnx_models.mlp(seed=5), x), rtol=1e-4, atol=1e-5)
    trial = backend.stage(Infer(1, "m/2", 4, (), (), 0, 0, 0, 0), (), ())
    backend.execute(trial)
    assert backend.unstage(trial) == ((), [])
    backend.evict("m/2")
    backend.release("m/2")
    backend.remove("m/2")
    assert set(backend.models) == {"m"}
    assert held_by(compiled, standin) == held


def test_what_does_not_fit_beside_the_others_says_what_it_takes(
    backend: "TensorRtBackend", compiled: Compiled
) -> None:
    compiled.add("m", onnx_models.mlp(), "batch_sizes: [1, 32]\n", version="2")
    with pytest.raises(EngineError, match=r"8192 bytes of inputs memory, and this worker has 4096"):
        backend.prepare(wanted(compiled))
    with pytest.raises(NotCompiled):
        backend.prepare(msgspec.structs.replace(wanted(compiled), content_hash="another"))


def test_a_card_without_room_beside_the_cache_says_so(
    backend: "TensorRtBackend", compiled: Compiled, standin: StandIn
) -> None:
    compiled.add("m", onnx_models.mlp(seed=5), version="2")
    standin.fail("cuMemCreate", driver.OUT_OF_MEMORY)
    with pytest.raises(EngineError, match="2 MiB beside the weights cache, to make an engine in"):
        backend.prepare(wanted(compiled))


def test_one_larger_than_the_cache_is_offered_and_never_loaded(compiled: Compiled) -> None:
    compiled.add("m", onnx_models.mlp())
    backend = compiled.serve(total_pages=1)
    compiled.add("m", onnx_models.mlp(hidden=9000), version="2")
    backend.add(backend.prepare(wanted(compiled)))
    assert "m/2" in backend.models
    backend.remove("m/2")
    backend.close()
