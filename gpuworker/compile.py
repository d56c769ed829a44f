"""Repository → catalogue: every model optimised, probed and profiled, once per content and machine.

Owns the order of compiling and what the user sees of it. Each model is compiled in a process of its
own: a model that crashes the engine, or never ends, becomes an unavailable one. Nothing a model
does may raise out of here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gpuworker.artifact_cache import Artifact, ArtifactCache
from gpuworker.compile_model import (
    PLATFORM,
    CompileAnswer,
    CompileError,
    CompileOrder,
)
from gpuworker.engines.onnxruntime import engine_key
from gpuworker.model_store import RepositoryModel, scan_repository
from scheduler.spec import ModelProfile, ModelSpec

# The largest demo model takes 10 s; a model that takes this long is not coming back.
COMPILE_TIMEOUT_S = 600.0
COMPILE_COMMAND = (sys.executable, "-m", "gpuworker.compile_model")


def compile_repository(
    models_dir: Path, cache_dir: Path, *, page_bytes: int, quiet: bool = False
) -> list[ModelSpec]:
    """The specs of all models, by name; compiles those that are not in the cache.

    Raises RepositoryError where `models_dir` is no directory or holds no model. A model that cannot
    be served has an `unavailable_reason`; it is tried again the next time.
    """
    models = scan_repository(models_dir)
    artifacts = ArtifactCache(cache_dir, engine_key=engine_key())
    specs = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
    with progress:
        task = progress.add_task("compiling", total=len(models))
        for model in models:
            progress.update(task, description=f"compiling {model.name}")
            spec = _spec_of(model, artifacts, page_bytes=page_bytes)
            if spec.unavailable_reason is not None:
                progress.console.print(
                    f"{model.name} is unavailable: {spec.unavailable_reason}", markup=False
                )
            specs.append(spec)
            progress.advance(task)
        progress.update(task, description="compiled")
    return specs


def _spec_of(model: RepositoryModel, artifacts: ArtifactCache, *, page_bytes: int) -> ModelSpec:
    if model.problem is not None:
        return _unavailable(model, model.problem)
    identity = (model.name, model.version, model.content_hash)
    try:
        with artifacts.lock(*identity):
            stored = artifacts.find(*identity)
            if stored is None:
                stored = artifacts.store(
                    *identity,
                    lambda directory: compile_in_own_process(
                        model, directory, page_bytes=page_bytes
                    ),
                )
    except (CompileError, OSError) as error:
        return _unavailable(model, str(error))
    return stored.artifact.spec


def _unavailable(model: RepositoryModel, reason: str) -> ModelSpec:
    return ModelSpec(
        name=model.name,
        version=model.version,
        content_hash=model.content_hash,
        platform=PLATFORM,
        inputs=(),
        outputs=(),
        batch_sizes=(1,),
        runs_exact_batch=False,
        weights_bytes=0,
        profile=ModelProfile(load_ns=0, shapes=()),
        unavailable_reason=reason,
    )


def compile_in_own_process(
    model: RepositoryModel,
    directory: Path,
    *,
    page_bytes: int,
    command: Sequence[str] = COMPILE_COMMAND,
    timeout_s: float = COMPILE_TIMEOUT_S,
) -> Artifact:
    """Fill `directory` by a child process. Raises CompileError, also where it dies or never ends.

    The child reads one CompileOrder from its standard input and writes one CompileAnswer to its
    standard output.
    """
    order = CompileOrder(model, directory, page_bytes, os.getpid())
    # What is importable here is importable there, however this process was started.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        child = subprocess.run(
            command,
            input=order.to_json(),
            stdout=subprocess.PIPE,
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"compiling it took longer than {timeout_s:g} s") from error
    try:
        answer = msgspec.json.decode(child.stdout, type=CompileAnswer)
    except msgspec.DecodeError as error:
        raise CompileError(
            f"compiling it ended its process ({_death(child.returncode)})"
        ) from error
    if answer.artifact is None:
        raise CompileError(answer.error)
    return answer.artifact


def _death(exit_code: int) -> str:
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
