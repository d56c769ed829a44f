"""Models compiled by the stand-in for TensorRT, and a backend that serves them."""

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from gpuworker.artifact_cache import Artifact, ArtifactCache
from gpuworker.backend import Telemetry
from gpuworker.engines.datatypes import Array
from gpuworker.engines.tensorrt_api import TensorRt
from gpuworker.model_store import RepositoryModel, scan_repository
from tests.gpuworker.onnx_models import write_model
from tests.gpuworker.test_onnxruntime import plain_outputs
from tests.standin import tensorrt

if TYPE_CHECKING:
    from gpuworker.devices.cuda_context import CudaContext
    from gpuworker.engines.tensorrt import TensorRtBackend

PAGE = 2 << 20


class Compiled:
    """A repository, compiled for the stand-in by a TensorRT of a version."""

    def __init__(self, directory: Path, context: "CudaContext", version: str = "10.13.3") -> None:
        self.directory = directory
        self.context = context
        self.api = TensorRt(tensorrt.module(version))
        self.artifacts: list[Artifact] = []

    def add(
        self, name: str, model: onnx.ModelProto, config: str = "", *, version: str = "1"
    ) -> Artifact:
        """Raises CompileError."""
        write_model(self.directory / "repository", name, model, config, version)
        found = next(m for m in scan_repository(self.directory / "repository") if m.name == name)
        return self.compile(found)

    def compile(self, model: RepositoryModel) -> Artifact:
        from gpuworker.compile_plan import compile_plan
        from gpuworker.engines.tensorrt import engine_key

        assert model.problem is None
        cache = ArtifactCache(
            self.directory / "cache", engine_key=engine_key(self.api, self.context.kind)
        )
        stored = cache.store(
            model.name,
            model.version,
            model.content_hash,
            lambda target: compile_plan(
                model,
                target,
                page_bytes=PAGE,
                ordinal=0,
                timing_cache=self.directory / "timings",
                module=self.api.module,
            ),
        )
        self.artifacts.append(stored.artifact)
        return stored.artifact

    def serve(
        self, *, total_pages: int | None = 4, telemetry: Telemetry | None = None
    ) -> "TensorRtBackend":
        from gpuworker.engines.tensorrt import TensorRtBackend

        return TensorRtBackend(
            specs=[artifact.spec for artifact in self.artifacts],
            cache_dir=self.directory / "cache",
            cache_bytes=None if total_pages is None else total_pages * PAGE,
            page_bytes=PAGE,
            context=self.context,
            api=self.api,
            telemetry=telemetry,
        )


def expected(model: onnx.ModelProto, x: Array) -> Array:
    (output,) = plain_outputs(model, {"x": x})
    return output
