"""Compiled models on disk: optimised graph, weights blob and measured profile, by content hash.

Owns the cache directory. An artifact is written beside its place and moved there whole; it is
believed only when the hashes inside it agree, and one that is damaged counts as absent. It knows
nothing about how artifacts are made, and it never touches the model repository.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from gpuworker.model_store import file_sha256
from scheduler.spec import ModelSpec

# Raise it whenever what compiling writes, measures or decides has changed.
FORMAT_VERSION = 2

GRAPH_FILE = "graph.onnx"
WEIGHTS_FILE = "weights.bin"
PLAN_FILE = "model.plan"
MANIFEST_FILE = "artifact.json"


class WeightTensor(msgspec.Struct, frozen=True):
    """One initializer of the graph: where it lies in the weights blob. `onnx_type` is ONNX's."""

    name: str
    onnx_type: int
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SampleInputs(msgspec.Struct, frozen=True):
    """How to make inputs that the model accepts: one row's shape per input, integers to draw."""

    row_shapes: tuple[tuple[int, ...], ...]
    integers_below: int


class PlanVariant(msgspec.Struct, frozen=True):
    """One way to execute a TensorRT plan: its optimisation profile, for inputs of these shapes.

    `input_shapes` are whole shapes, batch axis included, in the order of the model's inputs.
    """

    profile: int
    batch_size: int
    input_shapes: tuple[tuple[int, ...], ...]


class PlanNeeds(msgspec.Struct, frozen=True):
    """Device memory that a plan needs beside its pages, in bytes: to execute, which all plans
    share (scratch, inputs, outputs), and of its own (`resident`: kernels, contexts, graphs).
    """

    scratch: int
    inputs: int
    outputs: int
    resident: int


class Artifact(msgspec.Struct, frozen=True):
    """`weights` are those of an ONNX graph; `variants` and `needs` are a TensorRT plan's."""

    spec: ModelSpec
    weights: tuple[WeightTensor, ...] = ()
    samples: tuple[SampleInputs, ...] = ()
    variants: tuple[PlanVariant, ...] = ()
    needs: PlanNeeds | None = None


class StoredArtifact(msgspec.Struct, frozen=True):
    directory: Path
    artifact: Artifact

    @property
    def graph_path(self) -> Path:
        return self.directory / GRAPH_FILE

    @property
    def weights_path(self) -> Path:
        return self.directory / WEIGHTS_FILE

    @property
    def plan_path(self) -> Path:
        return self.directory / PLAN_FILE


class _Manifest(msgspec.Struct, frozen=True):
    file_sha256: dict[str, str]
    artifact: Artifact


class ArtifactCache:
    """`engine_key` names what else decides an artifact: engine version and kind of device."""

    def __init__(self, cache_dir: Path, *, engine_key: str) -> None:
        self._cache_dir = cache_dir
        self._engine_key = engine_key

    def find(self, model: str, version: str, content_hash: str) -> StoredArtifact | None:
        """The undamaged artifact of a model, or None. Reads every byte of it."""
        directory = self._directory(model, version, content_hash)
        try:
            seal, _, content = (directory / MANIFEST_FILE).read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != seal:
                return None
            manifest = msgspec.json.decode(content, type=_Manifest)
            for name, expected in manifest.file_sha256.items():
                if file_sha256(directory / name) != expected:
                    return None
        except (OSError, msgspec.MsgspecError):
            return None
        return StoredArtifact(directory, manifest.artifact)

    def store(
        self, model: str, version: str, content_hash: str, write: Callable[[Path], Artifact]
    ) -> StoredArtifact:
        """Have `write` fill a new directory, seal it and put it in place of what was there.

        The caller holds the lock, so that what a killed process left unfinished is swept up here.
        """
        directory = self._directory(model, version, content_hash)
        unfinished = directory.with_name(f"{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            artifact = write(unfinished)
            hashes = {path.name: file_sha256(path) for path in sorted(unfinished.iterdir())}
            content = msgspec.json.encode(_Manifest(hashes, artifact))
            seal = hashlib.sha256(content).hexdigest().encode()
            (unfinished / MANIFEST_FILE).write_bytes(seal + b"\n" + content)
            if directory.exists():
                shutil.rmtree(directory)
            os.replace(unfinished, directory)
            self._refusal(model, version, content_hash).unlink(missing_ok=True)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return StoredArtifact(directory, artifact)

    def refuse(self, model: str, version: str, content_hash: str, reason: str) -> None:
        """Note why there is no artifact, for who need not find out again. Called under the lock."""
        file = self._refusal(model, version, content_hash)
        unfinished = file.with_name(f"{file.name}.unfinished")
        unfinished.write_text(reason, encoding="utf-8")
        os.replace(unfinished, file)

    def refusal(self, model: str, version: str, content_hash: str) -> str | None:
        """What was noted when it was last tried, None where it never failed or has been made."""
        try:
            return self._refusal(model, version, content_hash).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def beside(self, name: str) -> Path:
        """A file that all artifacts of this engine and kind of device share."""
        key = hashlib.sha256(f"{self._engine_key}\n{FORMAT_VERSION}".encode()).hexdigest()[:24]
        return self._cache_dir / f"{name}-{key}"

    @contextlib.contextmanager
    def lock(self, model: str, version: str, content_hash: str) -> Iterator[None]:
        """One process at a time; the kernel frees the lock of a process that dies."""
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        directory = self._directory(model, version, content_hash)
        with directory.with_name(f"{directory.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _refusal(self, model: str, version: str, content_hash: str) -> Path:
        directory = self._directory(model, version, content_hash)
        return directory.with_name(f"{directory.name}.refused")

    def _directory(self, model: str, version: str, content_hash: str) -> Path:
        key = "\n".join((model, version, content_hash, self._engine_key, str(FORMAT_VERSION)))
        return self._cache_dir / f"{model}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


@functools.cache
def cpu_key() -> str:
    """Names the kind of CPU: an optimised graph may hold a layout that only this kind can run."""
    facts = {"machine": os.uname().machine}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            field, _, value = line.partition(":")
            if field.strip() in ("model name", "flags", "Features", "CPU part"):
                facts.setdefault(field.strip(), value.strip())
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:16]
