"""The CPU backend: ONNX Runtime sessions over the host's pages.

Owns one session per model that fits the cache, built at start, and again after a release. It obeys:
which pages a model gets and when it leaves is the worker's page table's business.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnxruntime as ort

from gpuworker.artifact_cache import ArtifactCache, StoredArtifact, cpu_key
from gpuworker.backend import EngineError, NotCompiled, Prepared
from gpuworker.devices.host import AddressRange, HostPages
from gpuworker.engines.batch_tensors import BatchLayout
from gpuworker.engines.datatypes import Array
from gpuworker.engines.paged_session import NotResident, PagedSession
from gpuworker.linux import num_usable_cpus
from gpuworker.sample_inputs import make_inputs
from scheduler.actions import Infer
from scheduler.spec import DeviceSpec, ModelSpec
from scheduler.wire import Buffer, RequestTensors

_log = logging.getLogger("gpuworker")

_NO_ARTIFACT = "its compiled artifact is missing or damaged"


def engine_key(threads: int = 1) -> str:
    """What an artifact of this engine depends on besides the model: with more threads it takes
    other times.
    """
    of_threads = "" if threads == 1 else f"-{threads}-threads"
    return f"onnxruntime-{ort.__version__}-{cpu_key()}{of_threads}"


class StagedBatch:
    """One batch between its phases."""

    __slots__ = ("batch_size", "inputs", "model", "outputs", "rows")

    def __init__(
        self, model: str, rows: tuple[int, ...], batch_size: int, inputs: dict[str, Array]
    ) -> None:
        self.model = model
        self.rows = rows
        self.batch_size = batch_size
        self.inputs = inputs
        self.outputs: list[Array] = []


class OnnxRuntimeBackend:
    """Raises ConfigError where the cache does not fit into memory.

    A model whose session cannot be built is served as unavailable, with the reason, and so is one
    whose artifact is gone; one that is larger than the cache has no session and is never loaded.
    """

    overlaps_io = False  # copies would take turns with the execution on the same cores
    telemetry = None

    def __init__(
        self,
        *,
        specs: Sequence[ModelSpec],
        cache_dir: Path,
        cache_bytes: int,
        page_bytes: int,
        threads: int = 1,
    ) -> None:
        total_pages = cache_bytes // page_bytes
        self.device = DeviceSpec(
            kind="cpu",
            page_bytes=page_bytes,
            total_pages=total_pages,
            shares_exec_core=num_usable_cpus() == 1,
        )
        self._pages = HostPages(page_bytes=page_bytes, total_pages=total_pages)
        self._sessions: dict[str, PagedSession] = {}
        self._layouts: dict[str, BatchLayout] = {}
        # All and only models that were released: the ranges that their sessions get again.
        self._released: dict[str, AddressRange] = {}
        self._artifacts = ArtifactCache(cache_dir, engine_key=engine_key(threads))
        self._threads = threads
        self.models: dict[str, ModelSpec] = {}
        for spec in specs:
            self.models[spec.name] = self._made(spec)

    def prepare(self, spec: ModelSpec) -> Prepared:
        stored = self._artifacts.find(spec.public_name, spec.version, spec.content_hash)
        if stored is None:
            raise NotCompiled(_NO_ARTIFACT)
        own = msgspec.structs.replace(stored.artifact.spec, name=spec.name)
        if own.num_pages(self.device.page_bytes) > self.device.total_pages:
            return Prepared(own, None)
        return Prepared(own, (self._build(stored), BatchLayout(own, stored.artifact.samples)))

    def add(self, prepared: Prepared) -> None:
        spec = prepared.spec
        if prepared.session is not None:
            self._sessions[spec.name], self._layouts[spec.name] = prepared.session
        self.models[spec.name] = spec

    def remove(self, model: str) -> None:
        session = self._sessions.pop(model, None)
        addresses = self._released.pop(model, None)
        if session is not None:
            session.close()
            addresses = session.addresses
        if addresses is not None:
            self._pages.give_back(addresses)
        self._layouts.pop(model, None)
        self.models.pop(model, None)

    def _made(self, spec: ModelSpec) -> ModelSpec:
        """Build the model's session, if it can be served; returns the spec to report."""
        if spec.unavailable_reason is not None:
            return spec
        if spec.num_pages(self.device.page_bytes) > self.device.total_pages:
            return spec
        stored = self._artifacts.find(spec.name, spec.version, spec.content_hash)
        if stored is None:
            return _unavailable(spec, _NO_ARTIFACT)
        try:
            session = self._build(stored)
        except Exception as error:  # one model's failure, of whatever kind, is not the worker's
            _log.exception("model %s: no session", spec.name)
            return _unavailable(spec, f"its session cannot be built: {error}")
        self._sessions[spec.name] = session
        self._layouts[spec.name] = BatchLayout(spec, stored.artifact.samples)
        return spec

    def _build(
        self,
        stored: StoredArtifact,
        pages: Sequence[int] | None = None,
        addresses: AddressRange | None = None,
    ) -> PagedSession:
        """`pages` lend their memory; without, some is borrowed that is no page's."""
        artifact = stored.artifact
        session = PagedSession(
            self._pages,
            graph_path=stored.graph_path,
            weights_path=stored.weights_path,
            weights=artifact.weights,
            threads=self._threads,
            lent=pages,
            addresses=addresses,
        )
        # The first execution of a session plans its memory; no request should wait for that.
        session.load_to_build(pages)
        session.run(make_inputs(artifact.spec.inputs, artifact.samples[0], rows=1))
        session.evict()
        return session

    def bind_thread(self) -> None:
        """All threads are alike."""

    def load(self, model: str, pages: Sequence[int]) -> int:
        if model in self._released:
            self._restore(model, pages)
        return self._session(model).load(pages)

    def evict(self, model: str) -> None:
        self._session(model).evict()

    def release(self, model: str) -> int:
        session = self._sessions.pop(model, None)
        if session is None:
            return 0
        session.close()
        self._released[model] = session.addresses
        return session.weights_bytes  # a map of the artifact's file, which goes with the session

    def stage(
        self,
        order: Infer,
        tensors: Sequence[RequestTensors],
        views: Sequence[Sequence[memoryview]],
    ) -> StagedBatch:
        inputs = self._layouts[order.model].join(order, tensors, views)
        return StagedBatch(order.model, order.rows, order.batch_size, inputs)

    def execute(self, staged: StagedBatch) -> int:
        session = self._session(staged.model)
        begin_ns = time.monotonic_ns()
        try:
            staged.outputs = session.run(staged.inputs)
        except NotResident as error:
            raise EngineError(f"{staged.model}: {error}") from error
        except Exception as error:  # ONNX Runtime has a class per error code and no common parent
            raise EngineError(f"{staged.model}: {' '.join(str(error).split())}") from error
        duration_ns = time.monotonic_ns() - begin_ns
        self._layouts[staged.model].check_outputs(staged.outputs, staged.batch_size)
        return duration_ns

    def unstage(self, staged: StagedBatch) -> tuple[tuple[RequestTensors, ...], list[Buffer]]:
        return self._layouts[staged.model].split(staged.rows, staged.outputs)

    def discard(self, staged: StagedBatch) -> None:
        """Nothing is held but memory."""

    def close(self) -> None:
        """Sessions first: they point into the pages."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._pages.close()

    def _restore(self, model: str, pages: Sequence[int]) -> None:
        """As at the start, but for whose pages lend their memory."""
        spec = self.models[model]
        stored = self._artifacts.find(spec.public_name, spec.version, spec.content_hash)
        if stored is None:
            raise EngineError(f"{model}: {_NO_ARTIFACT}")
        self._sessions[model] = self._build(stored, pages, self._released[model])
        del self._released[model]

    def _session(self, model: str) -> PagedSession:
        session = self._sessions.get(model)
        if session is None:
            raise EngineError(f"{model} cannot be served by this worker")
        return session


def _unavailable(spec: ModelSpec, reason: str) -> ModelSpec:
    _log.warning("model %s is unavailable: %s", spec.name, reason)
    return msgspec.structs.replace(spec, unavailable_reason=reason)
