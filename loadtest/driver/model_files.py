"""A job's models as files: found, generated or looked up, and laid out as a repository to serve.

Owns the folder `models` beside the results. A generated file is used again: its name says all that
it depends on.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx

from loadtest import graphs
from loadtest.driver.job import Canonical, Job, JobModel
from loadtest.driver.job_file import JobError
from loadtest.driver.registry import Registry, RegistryError


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a job that is on this machine."""

    name: str
    path: Path
    sha256: str
    shapes: dict[str, tuple[int, ...]] = {}


def build(canonical: Canonical) -> Any:
    """The graph, an onnx.ModelProto, with a free batch dimension; the same for the same words."""
    depth, width, seed = canonical.depth, canonical.width, canonical.seed
    match canonical.family:
        case "fully-connected":
            return graphs.mlp(sizes=(*[width] * (depth + 1), 10), seed=seed)
        case "residual-cnn":
            return graphs.conv_chain(layers=depth, channels=width, seed=seed)
        case "lstm":
            return graphs.lstm(layers=depth, width=width, seed=seed)
        case "attention":
            return graphs.attention(blocks=depth, width=width, seed=seed)


def model_files(
    job: Job, *, folder: Path, job_folder: Path, registry: Callable[[], Registry]
) -> dict[str, ModelFile]:
    """By name, all that are on this machine. Raises JobError, naming the model."""
    return {
        model.name: _file(model, folder, job_folder, registry)
        for model in job.models
        if model.is_here
    }


def repository(files: dict[str, ModelFile], folder: Path) -> Path:
    """A folder DIR/NAME/1/model.onnx of links to the files, as Triton and this product serve it."""
    names = "\n".join(f"{name} {file.sha256}" for name, file in sorted(files.items()))
    root = folder / "repositories" / hashlib.sha256(names.encode()).hexdigest()[:16]
    for name, file in files.items():
        link = root / name / "1" / "model.onnx"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.unlink(missing_ok=True)  # a link to what is gone
            link.symlink_to(file.path.resolve())
        # settings that lie beside a model are its own: profile_shapes, batch sizes
        config = file.path.parent.parent / "config.yaml"
        beside = root / name / "config.yaml"
        if config.exists() and not beside.exists():
            beside.symlink_to(config.resolve())
    return root


def _file(
    model: JobModel, folder: Path, job_folder: Path, registry: Callable[[], Registry]
) -> ModelFile:
    shapes = dict(model.shapes)
    if model.canonical is not None:
        path = _generated(model.canonical, folder)
    elif model.registered is not None:
        try:
            entry = registry().get(model.registered)
            path = entry.checked_path()
        except RegistryError as error:
            raise JobError(f"models: {model.name}: {error}") from error
        shapes = {**entry.shapes, **shapes}
    else:
        path = job_folder / Path(model.path or "").expanduser()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise JobError(f"models: {model.name}: {path}: {error.strerror}") from error
    return ModelFile(name=model.name, path=path, sha256=digest, shapes=shapes)


def _generated(canonical: Canonical, folder: Path) -> Path:
    words = f"{canonical.family}-d{canonical.depth}-w{canonical.width}-s{canonical.seed}"
    path = folder / "generated" / words / "model.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}.part")  # whole or not at all
        onnx.save(build(canonical), str(half))
        half.replace(path)
    return path
