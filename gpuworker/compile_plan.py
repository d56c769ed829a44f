"""One model, from its ONNX file or its plan to a measured TensorRT plan on the GPU that serves.

Owns the choices of compiling for a GPU: which batch sizes and shapes get an optimisation profile,
and what is measured of the plan. It runs in a process of its own (compile_child.py): building may
end it, and what TensorRT has taken of the card is free again when it is over.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pycuda.driver as cuda

from gpuworker.artifact_cache import PLAN_FILE, Artifact, PlanNeeds, PlanVariant, SampleInputs
from gpuworker.compile_model import (
    CompileError,
    declared_tensor,
    model_spec,
    wanted_batch_sizes,
)
from gpuworker.config import MEBIBYTE, ConfigError
from gpuworker.devices.cuda import CudaPages
from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.host import DeviceError
from gpuworker.devices.host_store import HostStore
from gpuworker.engines.datatypes import OIP_OF_NUMPY, Array
from gpuworker.engines.io_slots import device_memory
from gpuworker.engines.onnx_graph import has_fp16_weights
from gpuworker.engines.tensorrt_api import TensorRt
from gpuworker.engines.tensorrt_build import (
    BuildError,
    PlanTensor,
    Progress,
    build_plan,
    inputs_and_outputs,
    variants_of,
)
from gpuworker.engines.tensorrt_memory import EngineMemory
from gpuworker.engines.tensorrt_session import (
    Arena,
    EngineRefused,
    Gpu,
    Prepared,
    TensorRtSession,
    bytes_of,
    deserialised,
    laid_out,
    shape_context,
)
from gpuworker.model_store import PLAN_MODEL_FILE, RepositoryModel
from gpuworker.profiling import measure_load, measure_reported, measure_shapes
from gpuworker.sample_inputs import ProbeError, make_inputs
from gpuworker.shape_probe import ProbedModel, probe
from scheduler.spec import TensorSpec

PLATFORM = "tensorrt_plan"  # Triton's word for it

# Weights take about as much of the device as of the plan, rounded up tensor by tensor.
RANGE_SHARE, RANGE_SPARE_BYTES = 1.25, 48 * MEBIBYTE
# TensorRT rounds otherwise than ONNX Runtime (TF32 has 10 bits of mantissa); what is further off
# than that is another function.
MAX_ERROR = 0.05


class _Source(NamedTuple):
    """What is compiled: a plan, how its tensors are called, and which variants it has."""

    plan: bytes
    probed: ProbedModel
    variants: tuple[PlanVariant, ...]
    reference: Callable[[dict[str, Array]], list[Array]] | None


def compile_plan(
    model: RepositoryModel,
    directory: Path,
    *,
    page_bytes: int,
    ordinal: int,
    timing_cache: Path | None = None,
    progress: Progress = lambda _what, _done, _of: None,
    module: Any = None,
) -> Artifact:
    """Fill `directory` with the plan. Raises CompileError. `module` is TensorRt's, for tests."""
    assert model.model_path is not None  # a model without one has a problem, and is not compiled
    try:
        context = CudaContext(ordinal)
        try:
            api = TensorRt(module)
            device = _Device(context, api)
            if model.model_path.name == PLAN_MODEL_FILE:
                source = _given(device, model, page_bytes)
            else:
                source = _built(api, model, timing_cache, progress)
            (directory / PLAN_FILE).write_bytes(source.plan)
            return _measured(device, model, source, page_bytes)
        finally:
            context.close()
    except (BuildError, EngineRefused, ProbeError, DeviceError, MemoryError) as error:
        raise CompileError(str(error)) from error
    except ConfigError as error:  # of a cache that only this plan needs
        raise CompileError(str(error)) from error


class _Device:
    """What all that is done with one plan needs."""

    def __init__(self, context: CudaContext, api: TensorRt) -> None:
        self.context = context
        self.api = api
        self._memory = EngineMemory(context)
        # Kept: TensorRT does not hold on to what it is given.
        self._allocator = api.allocator(self._memory.allocate, self._memory.deallocate)
        self._runtime = api.runtime()
        self._runtime.gpu_allocator = self._allocator

    @contextmanager
    def with_pages(self, num_bytes: int, page_bytes: int) -> Iterator[Gpu]:
        """Pages for so many bytes and one more, so that a LOAD can go elsewhere."""
        num_pages = max(1, -(-num_bytes // page_bytes))
        pages = CudaPages(self.context, page_bytes=page_bytes, total_pages=num_pages + 1)
        try:
            yield Gpu(
                api=self.api,
                context=self.context,
                pages=pages,
                memory=self._memory,
                runtime=self._runtime,
                stream=self.context.stream(),
                store=HostStore(self.context),
            )
        finally:
            pages.close()


def _built(
    api: TensorRt, model: RepositoryModel, timing_cache: Path | None, progress: Progress
) -> _Source:
    """From ONNX: its rows are found by running it on the CPU."""
    path = model.model_path
    assert path is not None
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and reported where it belongs
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class per error code and no common parent
        raise CompileError(f"ONNX Runtime refuses the model: {error}") from error

    def run(inputs: dict[str, Array]) -> list[Array]:
        outputs: list[Array] = session.run(None, inputs)
        return outputs

    probed = probe(
        run,
        tuple(map(declared_tensor, session.get_inputs())),
        tuple(map(declared_tensor, session.get_outputs())),
        model.config.profile_shapes,
    )
    texts = [t.name for t in (*probed.inputs, *probed.outputs) if t.datatype == "BYTES"]
    if texts:
        raise CompileError(f"{texts[0]} is text, which TensorRT does not know")
    variants = [
        PlanVariant(
            number,
            size,
            tuple(a.shape for a in make_inputs(probed.inputs, sample, rows=size).values()),
        )
        for number, (sample, size) in enumerate(
            (sample, size)
            for sample in probed.samples
            for size in wanted_batch_sizes(model.config, probed)
        )
    ]
    plan = build_plan(
        api,
        path,
        variants,
        inputs=[tensor.name for tensor in probed.inputs],
        is_fp16=has_fp16_weights(path),
        timing_cache=timing_cache,
        progress=progress,
    )
    return _Source(plan, probed, tuple(variants), run)


def _given(device: _Device, model: RepositoryModel, page_bytes: int) -> _Source:
    """A plan that was made elsewhere is used as it is: it says itself what it takes."""
    assert model.model_path is not None
    plan = model.model_path.read_bytes()
    with _looked_at(device, plan, page_bytes) as (_, engine, _):
        inputs, outputs = inputs_and_outputs(device.api, engine)
        variants = variants_of(engine, inputs, shares_profiles=device.api.shares_profiles)
        if model.config.batch_sizes is not None or model.config.max_batch_size is not None:
            raise CompileError("batch sizes of a plan are its own: config.yaml cannot ask for them")
        if variants[0].batch_size != 1:
            raise CompileError(
                f"the plan's smallest batch is {variants[0].batch_size}: it needs a profile for 1"
            )
        rows = SampleInputs(tuple(shape[1:] for shape in variants[0].input_shapes), 1)
        probed = ProbedModel(
            inputs=_specs(device.api, inputs),
            outputs=_specs(device.api, outputs),
            samples=(rows,),
            can_batch=len(variants) > 1,
            note="",
        )
        del engine  # before the pages go that its weights lie in
    return _Source(plan, probed, variants, None)


def _specs(api: TensorRt, tensors: Sequence[PlanTensor]) -> tuple[TensorSpec, ...]:
    specs = []
    for tensor in tensors:
        try:
            datatype = OIP_OF_NUMPY[np.dtype(api.module.nptype(tensor.datatype))]
        except (TypeError, KeyError) as error:
            raise CompileError(
                f"{tensor.name} is {tensor.datatype}, which cannot be sent to clients"
            ) from error
        specs.append(TensorSpec(tensor.name, datatype, tensor.shape, 0))
    return tuple(specs)


@contextmanager
def _looked_at(device: _Device, plan: bytes, page_bytes: int) -> Iterator[tuple[Gpu, Any, int]]:
    """The engine of a plan and the bytes of its weights, to be asked what else it needs."""
    num_bytes = int(len(plan) * RANGE_SHARE) + RANGE_SPARE_BYTES
    with device.with_pages(num_bytes, page_bytes) as gpu:
        addresses = gpu.pages.reserve(num_bytes)
        gpu.pages.map(addresses, range(addresses.num_bytes // page_bytes))
        engine, weights_bytes = deserialised(gpu, plan, addresses)
        try:
            yield gpu, engine, weights_bytes
        finally:
            del engine  # before the pages go that its weights lie in


def _measured(
    device: _Device, model: RepositoryModel, source: _Source, page_bytes: int
) -> Artifact:
    probed = source.probed
    inputs, outputs = ([t.name for t in tensors] for tensors in (probed.inputs, probed.outputs))
    needs, weights_bytes = _needs(device, source, inputs, outputs, page_bytes)
    sizes = (needs.scratch, needs.inputs, needs.outputs)
    held = [device_memory(num_bytes) for num_bytes in sizes]
    arena = Arena(int(held[0]), needs.scratch, int(held[1]), int(held[2]))
    cuda.memset_d8(arena.inputs, 0, max(1, needs.inputs))
    with device.with_pages(weights_bytes, page_bytes) as gpu:
        free_before = device.context.free_bytes()
        session = TensorRtSession(
            gpu,
            source.plan,
            name=model.name,
            inputs=inputs,
            outputs=outputs,
            weights_bytes=weights_bytes,
            variants=source.variants,
            arena=arena,
            lent=range(gpu.pages.total_pages - 1),  # as many as it takes, and one to move into
        )
        resident = max(0, free_before - device.context.free_bytes())
        session.load(range(session.num_pages))
        run = _Runner(gpu, session, arena)
        batch_sizes = sorted({variant.batch_size for variant in source.variants})
        if source.reference is not None:
            _compare(probed, batch_sizes, source.reference, run)
        shapes = measure_shapes(run.duration_ns, probed, batch_sizes, measure_reported)
        load_ns = measure_load(session)
        session.evict()
        session.close()
    for allocation in held:
        allocation.free()
    return Artifact(
        spec=model_spec(
            model,
            platform=PLATFORM,
            probed=probed,
            shapes=shapes,
            load_ns=load_ns,
            weights_bytes=weights_bytes,
            runs_exact_batch=False,
        ),
        samples=probed.samples,
        variants=tuple(v for v in source.variants if v.batch_size in shapes[0].exec_ns),
        needs=PlanNeeds(needs.scratch, needs.inputs, needs.outputs, resident),
    )


def _needs(
    device: _Device,
    source: _Source,
    inputs: Sequence[str],
    outputs: Sequence[str],
    page_bytes: int,
) -> tuple[PlanNeeds, int]:
    """What executing takes of the device, but for what is only known then; bytes of the weights."""
    with _looked_at(device, source.plan, page_bytes) as (gpu, engine, weights_bytes):
        scratch = device.api.scratch_bytes(engine)
        most_in = most_out = 0
        for variant in source.variants:
            context = device.api.context(engine)
            shape_context(gpu, context, variant, inputs)
            most_in = max(most_in, bytes_of(laid_out(device.api, engine, context, inputs)))
            most_out = max(most_out, bytes_of(laid_out(device.api, engine, context, outputs)))
            del context
        del engine
    return PlanNeeds(scratch, most_in, most_out, 0), weights_bytes


class _Runner:
    """Executes a session on arrays of the host, and says how long the device took."""

    def __init__(self, gpu: Gpu, session: TensorRtSession, arena: Arena) -> None:
        self._gpu, self._session, self._arena = gpu, session, arena
        self._begin, self._end = gpu.context.event(), gpu.context.event()

    def duration_ns(self, inputs: dict[str, Array]) -> int:
        self._execute(inputs)
        return int(self._end.time_since(self._begin) * 1e6)

    def outputs(self, inputs: dict[str, Array]) -> list[Array]:
        prepared = self._execute(inputs)
        content = np.empty(max(1, bytes_of(prepared.outputs)), np.uint8)
        cuda.memcpy_dtoh(content, self._arena.outputs)
        return [tensor.of(content) for tensor in prepared.outputs]

    def _execute(self, inputs: dict[str, Array]) -> Prepared:
        shapes = tuple(array.shape for array in inputs.values())
        prepared = self._session.of_shapes(shapes)
        if prepared is None:
            raise EngineRefused(f"the plan has no profile for {[list(shape) for shape in shapes]}")
        content = np.zeros(max(1, bytes_of(prepared.inputs)), np.uint8)
        for tensor, array in zip(prepared.inputs, inputs.values(), strict=True):
            tensor.of(content)[...] = array
        stream = self._gpu.stream
        cuda.memcpy_htod_async(self._arena.inputs, content, stream)
        self._begin.record(stream)
        self._session.execute(prepared)
        self._end.record(stream)
        self._end.synchronize()
        return prepared


def _compare(
    probed: ProbedModel,
    batch_sizes: Sequence[int],
    reference: Callable[[dict[str, Array]], list[Array]],
    run: _Runner,
) -> None:
    """The plan computes what ONNX Runtime computes, in every batch size and shape: each has
    kernels and a graph of its own. Raises CompileError with the difference.
    """
    for sample, rows in itertools.product(probed.samples, batch_sizes):
        inputs = make_inputs(probed.inputs, sample, rows=rows)
        for spec, ours, theirs in zip(
            probed.outputs, run.outputs(inputs), reference(inputs), strict=True
        ):
            error = relative_error(ours, theirs)
            if not error <= MAX_ERROR:
                raise CompileError(
                    f"output {spec.name} of the plan for {rows} rows differs from ONNX Runtime's"
                    f" by {error * 100:.1f} %"
                )


def relative_error(ours: Array, theirs: Array) -> float:
    """The length of the difference, of the length of what it should be."""
    if ours.shape != theirs.shape:
        return float("inf")
    difference = np.linalg.norm((ours.astype(np.float64) - theirs).ravel())
    return float(difference / (np.linalg.norm(theirs.astype(np.float64).ravel()) + 1e-30))
