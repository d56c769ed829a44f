"""One ONNX Runtime session whose weights live in the device's pages.

Owns the session, its address range and whether pages lie under it. The session is built once, while
the pages hold the weights; from then on `load` and `evict` move the pages and the session never
notices. It must never run without its pages: it would read unmapped addresses.
"""

import functools
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from gpuworker.artifact_cache import WeightTensor
from gpuworker.devices.host import AddressRange, Bytes, HostPages
from gpuworker.engines.datatypes import Array

# ONNX element type → numpy's, for the types that engines/onnx_graph.py puts into the blob.
_NUMPY_OF_ONNX: dict[int, Any] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}


class NotResident(Exception):
    """The weights are not in the pages, so the session must not run."""


class PagedSession:
    """Raises whatever ONNX Runtime raises for a graph it does not accept, and DeviceError.

    The `lent` pages lend their memory while the session is built, so that no other model may have
    them then; None borrows memory that is no page's. Afterwards nothing is mapped.
    `addresses` is the range that an earlier session over the same weights had.
    `threads` share an execution; they are the session's own, and sleep between executions.
    """

    def __init__(
        self,
        pages: HostPages,
        *,
        graph_path: Path,
        weights_path: Path,
        weights: tuple[WeightTensor, ...],
        threads: int = 1,
        lent: Sequence[int] | None = None,
        addresses: AddressRange | None = None,
    ) -> None:
        self._pages = pages
        self._blob = _map_file(weights_path)
        self.addresses = pages.reserve(self._blob.nbytes) if addresses is None else addresses
        self.is_resident = False
        self._values: list[Any] = []
        self.load_to_build(lent)
        try:
            self._session = self._build(graph_path, weights, threads)
        finally:
            self.evict()
        self._output_names = [output.name for output in self._session.get_outputs()]

    @property
    def weights_bytes(self) -> int:
        return self._blob.nbytes

    @property
    def num_pages(self) -> int:
        return self.addresses.num_bytes // self._pages.page_bytes

    @property
    def declared_inputs(self) -> list[Any]:
        """ONNX Runtime's descriptions: name, type, shape."""
        return list(self._session.get_inputs())

    @property
    def declared_outputs(self) -> list[Any]:
        return list(self._session.get_outputs())

    def load(self, pages: Sequence[int]) -> int:
        """Map and copy; returns how long that took in ns. If it raises, nothing is mapped."""
        duration_ns = self._pages.load(self.addresses, pages, self._blob)
        self.is_resident = True
        return duration_ns

    def load_to_build(self, lent: Sequence[int] | None) -> None:
        """As `load`, for what is done before anybody is served; None borrows memory for it."""
        if lent is None:
            self._pages.load_aside(self.addresses, self._blob)
            self.is_resident = True
        else:
            self.load(lent)

    def evict(self) -> None:
        self.is_resident = False
        self._pages.unload(self.addresses)

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """All outputs, in declared order. Raises NotResident, or what ONNX Runtime raises."""
        if not self.is_resident:
            raise NotResident("the weights are not resident")
        outputs: list[Array] = self._session.run(self._output_names, inputs)
        return outputs

    def close(self) -> None:
        """Forget the session, which points into the range. The range is the device's to free."""
        self.is_resident = False
        del self._session
        self._values.clear()

    def _build(
        self, graph_path: Path, weights: tuple[WeightTensor, ...], threads: int
    ) -> Any:  # ort.InferenceSession, a library without types
        _share_one_arena()
        options = ort.SessionOptions()
        # Already optimised when it was compiled; again would fold weights into private memory.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Packed copies of weights would lie outside the pages.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.intra_op_num_threads = threads
        if threads > 1:
            # They would go on spinning, on cores that the next model's threads want.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised, and reported where it belongs
        for tensor in weights:
            view = self.addresses.bytes_at(tensor.offset, tensor.num_bytes)
            array = view.view(_NUMPY_OF_ONNX[tensor.onnx_type]).reshape(tensor.shape)
            # The value points at the array's memory and copies nothing.
            value = ort.OrtValue.ortvalue_from_numpy(array)
            # The options keep a bare pointer to the value: it must outlive them and the session.
            self._values.append(value)
            options.add_initializer(tensor.name, value)
        return ort.InferenceSession(str(graph_path), options, providers=["CPUExecutionProvider"])


@functools.cache
def _share_one_arena() -> None:
    """One arena of activations for all sessions of the process: only one executes at a time.

    Six demo models take 440 MB with it and 784 MB with one arena each, at equal speed. ONNX Runtime
    keeps it per process, and may be told once.
    """
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    ort.create_and_register_allocator(memory, None)


def _map_file(path: Path) -> Bytes:
    """The weights blob, in memory from now on. Workers of one machine share this one copy."""
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    with path.open("rb") as file:
        mapping = mmap.mmap(
            file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ
        )
    return np.frombuffer(mapping, np.uint8)
