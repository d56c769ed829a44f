"""A model repository on disk: which models it holds, what their config.yaml asks for, their hashes.

Owns the reading of Triton's layout, `<repository>/<model>/<version>/model.onnx`, and of the
optional `<model>/config.yaml`. It never writes, and one broken model never hides the others: what
is wrong with a model is its `problem`.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from gpuworker.config import MEBIBYTE, ConfigError
from scheduler.priority import PriorityName
from scheduler.spec import SharingSpec

MODEL_FILE = "model.onnx"
PLAN_MODEL_FILE = "model.plan"
CONFIG_FILE = "config.yaml"

_Positive = Annotated[int, msgspec.Meta(ge=1)]
RowShape = tuple[Annotated[int, msgspec.Meta(ge=0)], ...]


class RepositoryError(ConfigError):
    """The repository as a whole cannot be used."""


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mb` MiB of answers."""

    mb: Annotated[float, msgspec.Meta(gt=0, le=1 << 20)]


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model's config.yaml. Every key is optional.

    `profile_shapes` names, per input, the shapes of one row (without the batch axis) to measure;
    the i-th shapes of all inputs belong together, and a single one is used with all.
    """

    default_slo_ms: Annotated[float, msgspec.Meta(gt=0, le=86_400_000)] | None = None
    max_batch_size: _Positive | None = None
    batch_sizes: Annotated[tuple[_Positive, ...], msgspec.Meta(min_length=1)] | None = None
    priority: PriorityName = "normal"
    pinned: bool = False
    profile_shapes: dict[str, tuple[RowShape, ...]] = {}
    single_flight: bool = False
    cache: CacheConfig | None = None
    share_across_tenants: bool = True

    def sharing(self) -> SharingSpec | None:
        """A cache takes single flight with it: without, the first miss would be as many."""
        if self.cache is None and not self.single_flight:
            return None
        cache_bytes = 0 if self.cache is None else int(self.cache.mb * MEBIBYTE)
        return SharingSpec(cache_bytes, self.share_across_tenants)


class RepositoryModel(msgspec.Struct, frozen=True, kw_only=True):
    """The highest version of one model. `problem` says why it cannot be served, where it cannot."""

    name: str
    version: str = ""
    content_hash: str = ""
    model_path: Path | None = None
    config: ModelConfig = ModelConfig()
    problem: str | None = None


def scan_repository(
    models_dir: Path,
    *,
    takes_plans: bool = False,
    is_ours: Callable[[str], bool] = lambda _: True,
) -> list[RepositoryModel]:
    """Every model of the repository that is ours, by name. Raises RepositoryError where there is
    none at all.

    `takes_plans`: a TensorRT plan goes before an ONNX file; elsewhere it is none.
    """
    return [
        read_model(directory, takes_plans=takes_plans)
        for directory in model_directories(models_dir)
        if is_ours(directory.name)
    ]


def model_directories(models_dir: Path) -> list[Path]:
    """One for each model, by name. Raises RepositoryError where there is none."""
    if not models_dir.is_dir():
        raise RepositoryError(f"--models {models_dir}: no such directory")
    directories = sorted(
        path for path in models_dir.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not directories:
        raise RepositoryError(
            f"--models {models_dir}: it holds no model (<model>/<version>/{MODEL_FILE})"
        )
    return directories


def read_model(
    directory: Path, *, version: str | None = None, takes_plans: bool = False
) -> RepositoryModel:
    """One model, its highest version if none is asked for; what is wrong with it is its problem."""
    name = directory.name
    try:
        if version is None:
            version = _highest_version(directory)
        elif not (directory / version).is_dir():
            return RepositoryModel(name=name, version=version, problem=f"no directory {version}")
        content_hash = "" if version is None else _content_hash(directory, version)
    except OSError as error:
        return RepositoryModel(name=name, problem=f"cannot be read: {error}")
    if version is None:
        return RepositoryModel(name=name, problem=f"no version directory ({name}/1, ...)")
    path = directory / version / MODEL_FILE
    plan = directory / version / PLAN_MODEL_FILE
    problem = None
    if plan.is_file() and takes_plans:
        path = plan
    elif plan.is_file() and not path.is_file():
        problem = f"{PLAN_MODEL_FILE} needs a GPU (--device cuda:0), and there is no {MODEL_FILE}"
    elif not path.is_file():
        problem = f"no {MODEL_FILE} in version {version}"
    config = ModelConfig()
    try:
        config = _read_config(directory / CONFIG_FILE)
    except _BadConfig as error:
        problem = f"{CONFIG_FILE}: {error}"
    return RepositoryModel(
        name=name,
        version=version,
        content_hash=content_hash,
        model_path=path,
        config=config,
        problem=problem,
    )


def state_of_files(directory: Path, version: str) -> frozenset[tuple[str, int, int]]:
    """Of all that `content_hash` reads: paths, sizes, times. Another state may be another content,
    the same one is the same.
    """
    state = set()
    for path in (*(directory / version).rglob("*"), directory / CONFIG_FILE):
        with contextlib.suppress(OSError):  # gone since, or there is no config.yaml
            if path.is_file():
                status = path.stat()
                state.add((str(path), status.st_size, status.st_mtime_ns))
    return frozenset(state)


def _highest_version(directory: Path) -> str | None:
    versions = [path.name for path in directory.iterdir() if path.is_dir() and _is_version(path)]
    return max(versions, key=int, default=None)


def _is_version(path: Path) -> bool:
    return path.name.isascii() and path.name.isdigit()


class _BadConfig(Exception):
    pass


def _read_config(path: Path) -> ModelConfig:
    if not path.exists():
        return ModelConfig()
    try:
        content: Any = yaml.safe_load(path.read_text("utf-8"))
        config = msgspec.convert({} if content is None else content, ModelConfig)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise _BadConfig(" ".join(str(error).split())) from error
    if config.default_slo_ms is not None and not math.isfinite(config.default_slo_ms):
        raise _BadConfig("default_slo_ms is not a finite number")
    return config


def _content_hash(directory: Path, version: str) -> str:
    """Hash of everything that decides how the model behaves: its version's files and its config."""
    files = sorted(path for path in (directory / version).rglob("*") if path.is_file())
    config = directory / CONFIG_FILE
    if config.is_file():
        files.append(config)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(directory).as_posix()}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
