"""Models compiled in this process, and requests to a backend: what several test files need."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from gpuworker.artifact_cache import Artifact, StoredArtifact
from gpuworker.backend import Backend
from gpuworker.compile_model import compile_model
from gpuworker.engines.datatypes import NUMPY_OF_OIP, Array
from gpuworker.model_store import scan_repository
from scheduler.actions import Infer
from scheduler.spec import ModelSpec
from scheduler.wire import Buffer, RequestTensors, TensorMeta
from tests.gpuworker.onnx_models import write_model

PAGE = 1 << 20


def compiled(directory: Path, model: onnx.ModelProto, config: str = "") -> StoredArtifact:
    """Compile one model. Raises CompileError."""
    write_model(directory / "repository", "m", model, config)
    (found,) = scan_repository(directory / "repository")
    assert found.problem is None
    target = directory / "artifact"
    target.mkdir()
    return StoredArtifact(target, compile_model(found, target, page_bytes=PAGE))


def spec_of(directory: Path, model: onnx.ModelProto, config: str = "") -> ModelSpec:
    artifact: Artifact = compiled(directory, model, config).artifact
    return artifact.spec


def order(model: str, rows: Sequence[int], batch_size: int | None = None) -> Infer:
    return Infer(
        action_id=1,
        model=model,
        batch_size=sum(rows) if batch_size is None else batch_size,
        request_ids=tuple(range(len(rows))),
        rows=tuple(rows),
        earliest_ns=0,
        latest_ns=0,
        expected_duration_ns=0,
    )


def packed(arrays: Sequence[Array]) -> tuple[RequestTensors, list[memoryview]]:
    """One request's tensors as they come off the wire."""
    buffers = [array.tobytes() for array in arrays]
    metas = tuple(
        TensorMeta(array.shape, len(buffer)) for array, buffer in zip(arrays, buffers, strict=True)
    )
    return metas, [memoryview(buffer) for buffer in buffers]


def infer(
    backend: Backend, model: str, requests: Sequence[Sequence[Array]], batch_size: int | None = None
) -> list[list[Array]]:
    """All three phases of one batch; each request's outputs. Rows count along the first axis."""
    spec = backend.models[model]
    axis = spec.inputs[0].batch_axis or 0
    rows = [request[0].shape[axis] for request in requests]
    tensors, views = zip(*[packed(request) for request in requests], strict=True)
    staged = backend.stage(order(model, rows, batch_size), tensors, views)
    backend.execute(staged)
    return unpacked(spec, *backend.unstage(staged))


def unpacked(
    spec: ModelSpec, metas: Sequence[RequestTensors], buffers: Sequence[Buffer]
) -> list[list[Array]]:
    """Outputs of each request, from a backend's output phase."""
    remaining = list(buffers)
    requests = []
    for request_metas in metas:
        outputs = []
        for tensor, meta in zip(spec.outputs, request_metas, strict=True):
            buffer = remaining.pop(0)
            assert len(buffer) == meta.num_bytes
            dtype = NUMPY_OF_OIP[tensor.datatype]
            outputs.append(np.frombuffer(bytes(buffer), dtype).reshape(meta.shape))
        requests.append(outputs)
    assert not remaining
    return requests
