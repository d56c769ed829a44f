"""One TensorRT engine over pages, as the product makes it, and nothing of the product around it.

Owns the building of plans for the check and the memory that its engines execute in: each engine has
a stream and an arena of its own, so that several can execute at once, which the product never does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pycuda.driver as cuda

from gpuworker.artifact_cache import PlanVariant
from gpuworker.devices.cuda import MEBIBYTE, CudaPages
from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.host_store import HostStore
from gpuworker.engines.io_slots import device_memory
from gpuworker.engines.tensorrt_api import TensorRt
from gpuworker.engines.tensorrt_build import build_plan
from gpuworker.engines.tensorrt_memory import EngineMemory
from gpuworker.engines.tensorrt_session import (
    Arena,
    Gpu,
    TensorLayout,
    TensorRtSession,
    bytes_of,
    deserialised,
    laid_out,
    shape_context,
)

Array = npt.NDArray[Any]

# As compile_plan.py, which needs ONNX Runtime, has it: weights take about as much of the device as
# of the plan, rounded up tensor by tensor.
RANGE_SHARE, RANGE_SPARE_BYTES = 1.25, 48 * MEBIBYTE
FP16 = "-fp16"
POISON = 0xFF  # what outputs are overwritten with before an execution: as floats, no number


class Reference(NamedTuple):
    """A model, inputs for it, and the outputs that ONNX Runtime gives on the CPU. The name of one
    whose weights are FP16 ends with FP16.
    """

    name: str
    onnx_path: Path
    inputs: dict[str, Array]
    outputs: dict[str, Array]

    @property
    def variant(self) -> PlanVariant:
        shapes = tuple(array.shape for array in self.inputs.values())
        return PlanVariant(0, shapes[0][0], shapes)


class PlanFacts(NamedTuple):
    """What an engine takes of the device, known once it was there."""

    weights_bytes: int
    scratch_bytes: int
    input_bytes: int
    output_bytes: int


class EngineDevice:
    """The pages, and the TensorRT runtime that takes weights from them."""

    def __init__(
        self, context: CudaContext, api: TensorRt, *, page_bytes: int, total_pages: int
    ) -> None:
        self.context = context
        self.api = api
        self.memory = EngineMemory(context)
        # Kept: TensorRT does not hold on to what it is given.
        self._allocator = api.allocator(self.memory.allocate, self.memory.deallocate)
        runtime = api.runtime()
        runtime.gpu_allocator = self._allocator
        self.pages = CudaPages(context, page_bytes=page_bytes, total_pages=total_pages)
        self.gpu = Gpu(
            api=api,
            context=context,
            pages=self.pages,
            memory=self.memory,
            runtime=runtime,
            stream=context.stream(),
            store=HostStore(context),
        )

    def facts(self, plan: bytes, reference: Reference) -> PlanFacts:
        """Pages lend their memory meanwhile. Raises EngineRefused, DeviceError."""
        gpu = self.gpu
        addresses = self.pages.reserve(range_bytes(plan))
        self.pages.map(addresses, range(addresses.num_bytes // self.pages.page_bytes))
        try:
            engine, weights_bytes = deserialised(gpu, plan, addresses)
            scratch_bytes = self.api.scratch_bytes(engine)
            context = self.api.context(engine)
            shape_context(gpu, context, reference.variant, list(reference.inputs))
            tensors = (
                laid_out(self.api, engine, context, list(names))
                for names in (reference.inputs, reference.outputs)
            )
            input_bytes, output_bytes = map(bytes_of, tensors)
            del context, engine  # before the pages go that its weights lie in
        finally:
            self.pages.unload(addresses)
        return PlanFacts(weights_bytes, scratch_bytes, input_bytes, output_bytes)

    def close(self) -> None:
        self.pages.close()


def plan_of(api: TensorRt, reference: Reference, timing_cache: Path) -> bytes:
    """Raises BuildError."""
    return build_plan(
        api,
        reference.onnx_path,
        [reference.variant],
        inputs=list(reference.inputs),
        is_fp16=reference.name.endswith(FP16),
        timing_cache=timing_cache,
    )


class CheckedEngine:
    """Raises EngineRefused, DeviceError, MemoryError. Nothing is resident afterwards."""

    def __init__(
        self, device: EngineDevice, plan: bytes, facts: PlanFacts, reference: Reference
    ) -> None:
        self.reference = reference
        self.facts = facts
        self._held = [
            device_memory(size)
            for size in (facts.scratch_bytes, facts.input_bytes, facts.output_bytes)
        ]
        scratch, inputs, outputs = (int(allocation) for allocation in self._held)
        _fill(inputs, 0, facts.input_bytes)
        self._arena = Arena(scratch, facts.scratch_bytes, inputs, outputs)
        self._stream = device.context.stream()
        self._begin, self._end = device.context.event(), device.context.event()
        self.session = TensorRtSession(
            device.gpu._replace(stream=self._stream),
            plan,
            name=reference.name,
            inputs=list(reference.inputs),
            outputs=list(reference.outputs),
            weights_bytes=facts.weights_bytes,
            variants=[reference.variant],
            arena=self._arena,
        )
        prepared = self.session.of_shapes(reference.variant.input_shapes)
        assert prepared is not None
        self._prepared = prepared
        self.has_graph = prepared.graph is not None
        content = np.zeros(max(1, facts.input_bytes), np.uint8)
        for tensor, array in zip(prepared.inputs, reference.inputs.values(), strict=True):
            tensor.of(content)[...] = array
        cuda.memcpy_htod_async(inputs, content, self._stream)
        self._stream.synchronize()

    def start(self) -> None:
        """Enqueue one execution; `wait` says how long it took."""
        self._begin.record(self._stream)
        self.session.execute(self._prepared)
        self._end.record(self._stream)

    def wait(self) -> float:
        """Milliseconds of the device's time, from the first kernel on."""
        self._end.synchronize()
        duration_ms: float = self._end.time_since(self._begin)
        return duration_ms

    def run(self) -> float:
        self.start()
        return self.wait()

    def fresh_outputs(self) -> list[Array]:
        """Of an execution now: poison lies where an earlier one's could be taken for them."""
        _fill(self._arena.outputs, POISON, self.facts.output_bytes)
        self.run()
        content = np.empty(max(1, self.facts.output_bytes), np.uint8)
        cuda.memcpy_dtoh(content, self._arena.outputs)
        return [self._copy_of(tensor, content) for tensor in self._prepared.outputs]

    def close(self) -> None:
        self.session.close()
        for allocation in self._held:
            allocation.free()

    @staticmethod
    def _copy_of(tensor: TensorLayout, content: "npt.NDArray[np.uint8]") -> Array:
        copy: Array = tensor.of(content).copy()
        return copy


def _fill(address: int, value: int, num_bytes: int) -> None:
    """Done when it returns: our streams wait for no other, and memset for nobody."""
    cuda.memset_d8(address, value, max(1, num_bytes))
    cuda.Context.synchronize()


def range_bytes(plan: bytes) -> int:
    return int(len(plan) * RANGE_SHARE) + RANGE_SPARE_BYTES


def read_references(directory: Path, names: Sequence[str]) -> list[Reference]:
    """NAME.onnx, and NAME.npz with `in_<tensor>` and `out_<tensor>`. Raises OSError."""
    references = []
    for name in names:
        with np.load(directory / f"{name}.npz") as arrays:
            inputs, outputs = (
                {key.removeprefix(kind): arrays[key] for key in arrays if key.startswith(kind)}
                for kind in ("in_", "out_")
            )
        references.append(Reference(name, directory / f"{name}.onnx", inputs, outputs))
    return references
