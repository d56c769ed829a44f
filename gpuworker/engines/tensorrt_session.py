"""One TensorRT engine whose weights live in the device's pages.

Owns the engine, its address range, an execution context and a CUDA graph for each variant of it.
All of them are made once, while pages lend their memory to the range; from then on `load` and
`evict` move the pages and the engine never notices. While evicted nothing of the engine may be
asked for anything: its weights are not there.
"""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pycuda.driver as cuda

from gpuworker.artifact_cache import PlanVariant
from gpuworker.devices.cuda import CudaPages
from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.host import AddressRange
from gpuworker.devices.host_store import HostStore
from gpuworker.devices.pages import Bytes
from gpuworker.engines.cuda_graph import CudaGraph, recording
from gpuworker.engines.datatypes import Array
from gpuworker.engines.tensorrt_api import TensorRt
from gpuworker.engines.tensorrt_memory import EngineMemory

_log = logging.getLogger("gpuworker")

ALIGNMENT = 256
_NO_TURNS = contextlib.nullcontext()


class EngineRefused(Exception):
    """TensorRT does not take the plan, or not on this device; the message says why."""


class Arena(NamedTuple):
    """Device memory that all engines execute in: scratch, inputs, outputs. One at a time."""

    scratch: int
    scratch_bytes: int
    inputs: int
    outputs: int


class Gpu(NamedTuple):
    """What all sessions of one device share."""

    api: TensorRt
    context: CudaContext
    pages: CudaPages
    memory: EngineMemory
    runtime: Any  # a trt.Runtime that allocates from `memory`
    stream: cuda.Stream  # of executions
    store: HostStore


class TensorLayout(NamedTuple):
    """Where one tensor of a variant lies in its buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    offset: int
    num_bytes: int

    def of(self, buffer: Bytes) -> Array:
        """A view of this tensor in a buffer of the host."""
        part = buffer[self.offset : self.offset + self.num_bytes]
        return part.view(self.dtype).reshape(self.shape)


class Prepared(NamedTuple):
    """One variant, ready to execute: `graph` is None where it could not be recorded."""

    context: Any
    inputs: tuple[TensorLayout, ...]
    outputs: tuple[TensorLayout, ...]
    graph: CudaGraph | None


class TensorRtSession:
    """Raises EngineRefused, DeviceError, MemoryError.

    `inputs` and `outputs` are names, in the order in which everybody else speaks of them.
    `weights_bytes` is what the engine took of its range when it was compiled. The `lent` pages lend
    their memory while the session is made, so that nobody else may have them then; None borrows
    some that is no page's. Afterwards nothing is mapped. `turn` is held while it executes in the
    arena, which is another's then.
    """

    def __init__(
        self,
        gpu: Gpu,
        plan: bytes,
        *,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        weights_bytes: int,
        variants: Sequence[PlanVariant],
        arena: Arena,
        lent: Sequence[int] | None = None,
        turn: contextlib.AbstractContextManager[object] = _NO_TURNS,
    ) -> None:
        self._gpu = gpu
        self._arena = arena
        self._name = name
        self._turn = turn
        self._addresses: AddressRange = gpu.pages.reserve(weights_bytes)
        self.is_resident = False
        if lent is None:
            gpu.pages.map_aside(self._addresses)
        else:
            gpu.pages.map(self._addresses, lent)
        try:
            self._engine, self.weights_bytes = deserialised(gpu, plan, self._addresses)
            before = gpu.pages.read(self._addresses, self.weights_bytes)
            self._variants = {
                variant.input_shapes: self._prepare(variant, inputs, outputs)
                for variant in variants
            }
            # What every LOAD brings back: with all that contexts and executions have set there.
            content = gpu.pages.read(self._addresses, self.weights_bytes)
            if not np.array_equal(before, content):
                num_changed = np.count_nonzero(before != content)
                _log.warning("%s: making it ready changed %d bytes", name, num_changed)
            self._blob: Bytes = gpu.store.keep(name, content)
        finally:
            gpu.pages.unload(self._addresses)

    @property
    def num_pages(self) -> int:
        return self._addresses.num_bytes // self._gpu.pages.page_bytes

    def of_shapes(self, input_shapes: tuple[tuple[int, ...], ...]) -> Prepared | None:
        """The variant for inputs of exactly these shapes, which tell the batch size as well."""
        return self._variants.get(input_shapes)

    def load(self, pages: Sequence[int]) -> int:
        duration_ns = self._gpu.pages.load(self._addresses, pages, self._blob)
        self.is_resident = True
        return duration_ns

    def evict(self) -> None:
        self.is_resident = False
        self._gpu.pages.unload(self._addresses)

    def execute(self, prepared: Prepared) -> None:
        """Enqueue one execution: from the arena's inputs to its outputs. Raises EngineRefused."""
        stream = self._gpu.stream.handle
        if prepared.graph is not None:
            prepared.graph.launch(stream)
        elif not prepared.context.execute_async_v3(stream):
            raise EngineRefused(f"TensorRT did not execute: {self._gpu.api.logger.last_error}")

    def release(self) -> int:
        """Close it, and give back its copy on the host and its addresses; bytes of the copy."""
        self.close()
        self._blob = np.empty(0, np.uint8)
        self._gpu.pages.give_back(self._addresses)
        self._gpu.memory.forget(self._addresses)
        return self._gpu.store.drop(self._name)

    def close(self) -> None:
        for prepared in self._variants.values():
            if prepared.graph is not None:
                prepared.graph.close()
        self._variants.clear()
        del self._engine

    def _prepare(
        self, variant: PlanVariant, input_names: Sequence[str], output_names: Sequence[str]
    ) -> Prepared:
        """A context of its own, warmed up and recorded, while the weights are there."""
        gpu, arena = self._gpu, self._arena
        gpu.memory.refused = ""
        try:
            context = gpu.api.context(self._engine, (arena.scratch, arena.scratch_bytes))
        except MemoryError as error:
            raise MemoryError(f"{error}: {gpu.memory.refused or 'it does not say why'}") from error
        shape_context(gpu, context, variant, input_names)
        inputs = laid_out(gpu.api, self._engine, context, input_names)
        outputs = laid_out(gpu.api, self._engine, context, output_names)
        for tensors, begin in ((inputs, arena.inputs), (outputs, arena.outputs)):
            for tensor in tensors:
                if not context.set_tensor_address(tensor.name, begin + tensor.offset):
                    raise EngineRefused(f"{tensor.name}: {gpu.api.logger.last_error}")
        with self._turn:
            graph = self._warmed_up(context, variant.batch_size)
        return Prepared(context, inputs, outputs, graph)

    def _warmed_up(self, context: Any, batch_size: int) -> CudaGraph | None:
        gpu = self._gpu
        stream = gpu.stream.handle
        for _ in range(2):  # the first execution of a context prepares what later ones find ready
            if not context.execute_async_v3(stream):
                raise EngineRefused(f"TensorRT did not execute it: {gpu.api.logger.last_error}")
        gpu.stream.synchronize()
        with recording(stream) as recorded:
            if not context.execute_async_v3(stream):
                recorded.reason = gpu.api.logger.last_error or "TensorRT did not execute it"
        if recorded.graph is None:
            _log.warning(
                "a batch of %d is executed without a CUDA graph: %s",
                batch_size,
                recorded.reason,
            )
        return recorded.graph


def deserialised(gpu: Gpu, plan: bytes, addresses: AddressRange) -> tuple[Any, int]:
    """The engine, and how many bytes of the range its weights take. Raises EngineRefused.

    Pages must be mapped under the range.
    """
    logger = gpu.api.logger
    logger.last_error = ""
    with gpu.memory.weights_in(addresses) as layout:
        engine = gpu.runtime.deserialize_cuda_engine(plan)
    if layout.missing_bytes:
        raise EngineRefused(
            f"its engine wants {layout.missing_bytes} bytes more than the"
            f" {addresses.num_bytes} of its range"
        )
    if engine is None:
        raise EngineRefused(
            f"TensorRT {gpu.api.version} on {gpu.context.name} (compute capability"
            f" {gpu.context.kind.compute_capability}) does not take the plan:"
            f" {logger.last_error or 'it does not say why'}"
        )
    # All copies into the range are over then: TensorRT's streams are its own.
    cuda.Context.synchronize()
    return engine, layout.used_bytes


def shape_context(gpu: Gpu, context: Any, variant: PlanVariant, input_names: Sequence[str]) -> None:
    """Tell a context which variant it is for. Raises EngineRefused."""
    if not context.set_optimization_profile_async(variant.profile, gpu.stream.handle):
        raise EngineRefused(f"the plan has no optimisation profile {variant.profile}")
    for name, shape in zip(input_names, variant.input_shapes, strict=True):
        if not context.set_input_shape(name, shape):
            raise EngineRefused(f"input {name} of the plan does not take {list(shape)}")


def laid_out(
    api: TensorRt, engine: Any, context: Any, names: Sequence[str]
) -> tuple[TensorLayout, ...]:
    """One after the other, as they lie in the arena and in every buffer of the host.

    Raises EngineRefused for what cannot be laid out before it is computed.
    """
    tensors = []
    offset = 0
    for name in names:
        if engine.get_tensor_location(name) != api.module.TensorLocation.DEVICE:
            raise EngineRefused(f"{name} is a shape that the host computes with: not supported")
        shape = tuple(int(size) for size in context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise EngineRefused(f"the shape of {name}, {list(shape)}, depends on the data")
        try:
            dtype = np.dtype(api.module.nptype(engine.get_tensor_dtype(name)))
        except TypeError as error:
            raise EngineRefused(f"{name} cannot be sent to clients: {error}") from error
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        tensors.append(TensorLayout(name, shape, dtype, offset, num_bytes))
        offset += -(-max(1, num_bytes) // ALIGNMENT) * ALIGNMENT
    return tuple(tensors)


def bytes_of(tensors: Sequence[TensorLayout]) -> int:
    """Of a buffer that holds them all."""
    return max((tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
