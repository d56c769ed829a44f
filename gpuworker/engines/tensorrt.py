"""The GPU backend: TensorRT engines over the device's pages.

Owns one session per model that fits the cache, made at start, and the memory that all of them
execute in. It obeys: which pages a model gets and when it leaves is the worker's page table's
business. One batch executes at a time; inputs of the next and outputs of the last are copied
meanwhile.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pycuda.driver as cuda

from gpuworker import backend
from gpuworker.artifact_cache import Artifact, ArtifactCache, StoredArtifact
from gpuworker.backend import DeviceLost, EngineError, InvalidInput, Telemetry
from gpuworker.config import MEBIBYTE, ConfigError
from gpuworker.devices.cuda import CudaPages
from gpuworker.devices.cuda_context import CudaContext, GpuKind
from gpuworker.devices.cuda_memory import CudaError, fault
from gpuworker.devices.host import DeviceError
from gpuworker.devices.host_store import HostStore
from gpuworker.engines.batch_tensors import BatchLayout
from gpuworker.engines.datatypes import NUMPY_OF_OIP
from gpuworker.engines.io_slots import IoSlot, IoSlots, device_memory
from gpuworker.engines.tensorrt_api import TensorRt
from gpuworker.engines.tensorrt_memory import EngineMemory
from gpuworker.engines.tensorrt_session import (
    Arena,
    EngineRefused,
    Gpu,
    Prepared,
    TensorRtSession,
    bytes_of,
)
from scheduler.actions import Infer
from scheduler.spec import DeviceSpec, ModelSpec
from scheduler.wire import Buffer, RequestTensors

_log = logging.getLogger("gpuworker")

# One executes, one waits with its inputs there, one is on its way in, one on its way out.
NUM_SLOTS = 4
# Of the device's memory, left alone where the cache's size is not given: what the driver and
# TensorRT take as they go (a fragment per module, timing buffers) and nobody can count before.
SPARE_BYTES = 512 * MEBIBYTE

_NO_PLAN = "its plan is missing or damaged"
_ROOM = ("scratch", "inputs", "outputs")  # memory that all engines execute in, one at a time


def engine_key(api: TensorRt, kind: GpuKind) -> str:
    """What a plan of this engine depends on besides the model."""
    return f"tensorrt-{api.version}-sm{kind.compute_capability}-{kind.name}"


class StagedBatch:
    """One batch between its phases. It has a slot until it is unstaged or discarded."""

    __slots__ = ("batch_size", "model", "prepared", "rows", "slot")

    def __init__(
        self, model: str, rows: tuple[int, ...], batch_size: int, prepared: Prepared, slot: IoSlot
    ) -> None:
        self.model = model
        self.rows = rows
        self.batch_size = batch_size
        self.prepared = prepared
        self.slot = slot


class TensorRtBackend:
    """Raises ConfigError where the cache does not fit onto the card, DeviceLost where that breaks.

    `cache_bytes` None: what is free beside scratch, inputs, outputs and the engines themselves. A
    model whose session cannot be made is served as unavailable, with the reason; one that is larger
    than the cache has no session and is never loaded. `telemetry` is closed with it.
    """

    overlaps_io = True

    def __init__(
        self,
        *,
        specs: Sequence[ModelSpec],
        cache_dir: Path,
        cache_bytes: int | None,
        page_bytes: int,
        context: CudaContext,
        api: TensorRt,
        shared_store: int | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.telemetry = telemetry
        self._context = context
        self._api = api
        self._artifacts = ArtifactCache(cache_dir, engine_key=engine_key(api, context.kind))
        # Held by who executes in the arena: a batch, or an engine that is made ready.
        self._turn = threading.Lock()
        stored = {
            spec.name: self._artifacts.find(spec.name, spec.version, spec.content_hash)
            for spec in specs
            if spec.unavailable_reason is None
        }
        there = {name: found.artifact for name, found in stored.items() if found is not None}
        self._held: list[cuda.DeviceAllocation] = []
        self._arena_of_all, too_large = self._room_to_execute(there)
        fitting = list(there.values())
        self._room = {what: _most(fitting, what) for what in _ROOM}
        specs = [
            _unavailable(spec, too_large[spec.name]) if spec.name in too_large else spec
            for spec in specs
        ]
        if cache_bytes is None:
            cache_bytes = self._default_cache_bytes(list(there.values()), page_bytes)
        self.device = DeviceSpec(
            kind=f"cuda {context.name}",
            page_bytes=page_bytes,
            total_pages=cache_bytes // page_bytes,
            shares_exec_core=False,
        )
        self._pages = CudaPages(context, page_bytes=page_bytes, total_pages=self.device.total_pages)
        memory = EngineMemory(context)
        # Kept: TensorRT does not hold on to what it is given.
        self._allocator = api.allocator(memory.allocate, memory.deallocate)
        runtime = api.runtime()
        runtime.gpu_allocator = self._allocator
        self._gpu = Gpu(
            api=api,
            context=context,
            pages=self._pages,
            memory=memory,
            runtime=runtime,
            stream=context.stream(),
            store=HostStore(context, shared_store),
        )
        self._sessions: dict[str, TensorRtSession] = {}
        self._layouts: dict[str, BatchLayout] = {}
        self.models: dict[str, ModelSpec] = {}
        for spec in specs:
            self.models[spec.name] = self._add(spec, stored.get(spec.name))

    def bind_thread(self) -> None:
        self._context.bind_thread()

    def load(self, model: str, pages: Sequence[int]) -> int:
        try:
            if model not in self._sessions and model in self._layouts:
                self._restore(model, pages)
            return self._session(model).load(pages)
        except (DeviceError, cuda.Error) as error:
            raise self._or_lost(error) from error

    def evict(self, model: str) -> None:
        self._session(model).evict()

    def release(self, model: str) -> int:
        """Its engine and graphs go, and its copy on the host, but for one that workers share."""
        session = self._sessions.pop(model, None)
        return 0 if session is None else session.release()

    def prepare(self, spec: ModelSpec) -> backend.Prepared:
        stored = self._artifacts.find(spec.public_name, spec.version, spec.content_hash)
        if stored is None:
            raise backend.NotCompiled(_NO_PLAN)
        own = msgspec.structs.replace(stored.artifact.spec, name=spec.name)
        if own.num_pages(self.device.page_bytes) > self.device.total_pages:
            return backend.Prepared(own, None)
        self._check_room(stored.artifact)
        try:
            session = self._made(own, stored, None)
        except Exception as error:
            raise self._or_lost(error) from error
        return backend.Prepared(own, (session, BatchLayout(own, stored.artifact.samples)))

    def add(self, prepared: backend.Prepared) -> None:
        spec = prepared.spec
        if prepared.session is not None:
            self._sessions[spec.name], self._layouts[spec.name] = prepared.session
        self.models[spec.name] = spec

    def remove(self, model: str) -> None:
        self.release(model)
        self._layouts.pop(model, None)
        self.models.pop(model, None)

    def stage(
        self,
        order: Infer,
        tensors: Sequence[RequestTensors],
        views: Sequence[Sequence[memoryview]],
    ) -> StagedBatch:
        session = self._session(order.model)
        arrays = list(self._layouts[order.model].join(order, tensors, views).values())
        shapes = tuple(array.shape for array in arrays)
        prepared = session.of_shapes(shapes)
        if prepared is None:
            raise InvalidInput(
                f"{order.model}: no plan for a batch of {order.batch_size} with inputs of shapes"
                f" {[list(shape) for shape in shapes]}"
            )
        slot = self._slots.take()
        try:
            for tensor, array in zip(prepared.inputs, arrays, strict=True):
                tensor.of(slot.host_inputs)[...] = array
            self._slots.send(slot, bytes_of(prepared.inputs))
        except BaseException as error:
            self._slots.give_back(slot)
            if isinstance(error, cuda.Error):
                raise self._or_lost(error) from error
            raise
        return StagedBatch(order.model, order.rows, order.batch_size, prepared, slot)

    def execute(self, staged: StagedBatch) -> int:
        session, slot, prepared = self._session(staged.model), staged.slot, staged.prepared
        if not session.is_resident:
            raise EngineError(f"{staged.model}: the weights are not resident")
        stream = self._gpu.stream
        num_inputs, num_outputs = bytes_of(prepared.inputs), bytes_of(prepared.outputs)
        try:
            with self._turn:
                stream.wait_for_event(slot.arrived)
                slot.begin.record(stream)
                if num_inputs:
                    cuda.memcpy_dtod_async(self._arena_inputs, slot.inputs, num_inputs, stream)
                session.execute(prepared)
                if num_outputs:
                    cuda.memcpy_dtod_async(slot.outputs, self._arena_outputs, num_outputs, stream)
                slot.end.record(stream)
                slot.executed.record(stream)
                slot.end.synchronize()
            return int(slot.end.time_since(slot.begin) * 1e6)
        except (EngineRefused, CudaError, cuda.Error) as error:
            raise self._or_lost(error, staged.model) from error

    def unstage(self, staged: StagedBatch) -> tuple[tuple[RequestTensors, ...], list[Buffer]]:
        outputs = staged.prepared.outputs
        try:
            content = self._slots.fetch(staged.slot, bytes_of(outputs))
        except cuda.Error as error:
            raise self._or_lost(error, staged.model) from error
        finally:
            self._slots.give_back(staged.slot)
        # Clients are told the model's types; TensorRT 8 has no INT64, and gives INT32 for it.
        arrays = [
            tensor.of(content).astype(NUMPY_OF_OIP[spec.datatype], copy=False)
            for tensor, spec in zip(outputs, self.models[staged.model].outputs, strict=True)
        ]
        return self._layouts[staged.model].split(staged.rows, arrays)

    def discard(self, staged: StagedBatch) -> None:
        # Its inputs may still be on their way: whoever takes the slot next enqueues behind them,
        # but writes the host's side at once.
        staged.slot.arrived.synchronize()
        self._slots.give_back(staged.slot)

    def close(self) -> None:
        """Sessions first: they point into the pages."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._pages.close()
        if self.telemetry is not None:
            self.telemetry.close()

    def _room_to_execute(self, artifacts: dict[str, Artifact]) -> tuple[Arena, dict[str, str]]:
        """The arena and the slots, for as many models as it takes; why the others cannot be served.

        Those leave `artifacts`, the one that wants the most first. Raises ConfigError where none
        is left.
        """
        too_large: dict[str, str] = {}
        while True:
            there = list(artifacts.values())
            try:
                arena = self._arena(there)
                self._slots = IoSlots(
                    self._context,
                    num_slots=NUM_SLOTS,
                    input_bytes=_most(there, "inputs"),
                    output_bytes=_most(there, "outputs"),
                )
            except MemoryError as error:
                reason = str(error)
            else:
                self._arena_inputs, self._arena_outputs = arena.inputs, arena.outputs
                return arena, too_large
            self._held.clear()
            if not artifacts:
                raise ConfigError(f"{self._context.name} is too small to execute: {reason}")
            name = max(artifacts, key=lambda name: _bytes_to_execute(artifacts[name]))
            needs = artifacts.pop(name).needs
            assert needs is not None
            too_large[name] = (
                f"to execute takes {needs.scratch} bytes of scratch memory,"
                f" {needs.inputs + needs.outputs} of inputs and outputs and {NUM_SLOTS} times that"
                f" for batches on their way, which {self._context.name} has not: {reason}"
            )

    def _arena(self, artifacts: Sequence[Artifact]) -> Arena:
        scratch_bytes = _most(artifacts, "scratch")
        inputs, outputs = _most(artifacts, "inputs"), _most(artifacts, "outputs")
        self._held = [device_memory(size) for size in (scratch_bytes, inputs, outputs)]
        scratch, first, second = (int(allocation) for allocation in self._held)
        # An engine is warmed up with what lies here: zeros are valid indices, garbage is not.
        cuda.memset_d8(first, 0, max(1, inputs))
        return Arena(scratch, scratch_bytes, first, second)

    def _default_cache_bytes(self, artifacts: Sequence[Artifact], page_bytes: int) -> int:
        free = self._context.free_bytes()
        own = sum(artifact.needs.resident for artifact in artifacts if artifact.needs is not None)
        cache_bytes = (free - own - SPARE_BYTES) // page_bytes * page_bytes
        if cache_bytes < page_bytes:
            raise ConfigError(
                f"{self._context.name} has {free // MEBIBYTE} MiB free, {own // MEBIBYTE} MiB for"
                f" {len(artifacts)} engines and {SPARE_BYTES // MEBIBYTE} MiB to spare leave no"
                " page for weights"
            )
        return cache_bytes

    def _made(
        self, spec: ModelSpec, stored: StoredArtifact, lent: Sequence[int] | None
    ) -> TensorRtSession:
        return TensorRtSession(
            self._gpu,
            stored.plan_path.read_bytes(),
            name=spec.name,
            inputs=[tensor.name for tensor in spec.inputs],
            outputs=[tensor.name for tensor in spec.outputs],
            weights_bytes=spec.weights_bytes,
            variants=stored.artifact.variants,
            arena=self._arena_of_all,
            lent=lent,
            turn=self._turn,
        )

    def _restore(self, model: str, pages: Sequence[int]) -> None:
        """As at the start, but for whose pages lend their memory."""
        spec = self.models[model]
        stored = self._artifacts.find(spec.public_name, spec.version, spec.content_hash)
        if stored is None:
            raise EngineError(f"{model}: {_NO_PLAN}")
        self._sessions[model] = self._made(spec, stored, pages)

    def _check_room(self, artifact: Artifact) -> None:
        """Raises EngineError where it cannot execute in the arena, which is as it was made."""
        needs = artifact.needs
        assert needs is not None
        for what in _ROOM:
            wanted, there = getattr(needs, what), self._room[what]
            if wanted > there:
                raise EngineError(
                    f"it executes in {wanted} bytes of {what} memory, and this worker has"
                    f" {there}: it can be served once the worker starts again"
                )

    def _add(self, spec: ModelSpec, stored: StoredArtifact | None) -> ModelSpec:
        """Make the model's session, if it can be served; returns the spec to report."""
        if spec.unavailable_reason is not None:
            return spec
        if spec.num_pages(self.device.page_bytes) > self.device.total_pages:
            return spec
        if stored is None:
            return _unavailable(spec, _NO_PLAN)
        num_pages = spec.num_pages(self.device.page_bytes)
        try:
            self._sessions[spec.name] = self._made(spec, stored, range(num_pages))
        except Exception as error:  # one model's failure, of whatever kind, is not the worker's
            lost = fault()
            if lost is not None:
                raise DeviceLost(
                    f"{self._context.name} broke while model {spec.name} was made ready: {lost}"
                ) from error
            _log.exception("model %s: no session", spec.name)
            return _unavailable(spec, f"its engine cannot be made ready: {error}")
        self._layouts[spec.name] = BatchLayout(spec, stored.artifact.samples)
        return spec

    def _session(self, model: str) -> TensorRtSession:
        session = self._sessions.get(model)
        if session is None:
            raise EngineError(f"{model} cannot be served by this worker")
        return session

    def _or_lost(self, error: Exception, model: str = "") -> Exception:
        """What to raise for an error of the driver: the device may be gone with it."""
        lost = fault()
        if lost is not None:
            return DeviceLost(f"{self._context.name} is lost: {lost}")
        return EngineError(f"{model}: {error}" if model else str(error))


def _bytes_to_execute(artifact: Artifact) -> int:
    needs = artifact.needs
    return 0 if needs is None else needs.scratch + (1 + NUM_SLOTS) * (needs.inputs + needs.outputs)


def _most(artifacts: Sequence[Artifact], need: str) -> int:
    needs: list[Any] = [artifact.needs for artifact in artifacts if artifact.needs is not None]
    return max((getattr(found, need) for found in needs), default=0)


def _unavailable(spec: ModelSpec, reason: str) -> ModelSpec:
    _log.warning("model %s is unavailable: %s", spec.name, reason)
    return msgspec.structs.replace(spec, unavailable_reason=reason)
