"""Repository → catalogue: every model optimised, probed and profiled, once per content and machine.

Owns the order of compiling and what the user sees of it. Each model is compiled in a process of its
own: a model that crashes the engine, or never ends, becomes an unavailable one. Nothing a model
does may raise out of here.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gpuworker import linux
from gpuworker.artifact_cache import Artifact, ArtifactCache
from gpuworker.compile_model import PLATFORM, CompileError, compile_model
from gpuworker.engines.onnxruntime import engine_key
from gpuworker.model_store import RepositoryModel, scan_repository
from scheduler.spec import ModelProfile, ModelSpec

# The largest demo model takes 10 s; a model that takes this long is not coming back.
COMPILE_TIMEOUT_S = 600.0


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
                    *identity, lambda directory: _in_own_process(model, directory, page_bytes)
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


def _in_own_process(
    model: RepositoryModel,
    directory: Path,
    page_bytes: int,
    timeout_s: float = COMPILE_TIMEOUT_S,
    target: Callable[..., Artifact] = compile_model,
) -> Artifact:
    """Compile in a child process. Raises CompileError, also where the child dies or never ends."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_child, args=(sender, target, model, directory, page_bytes, os.getpid()), daemon=True
    )
    child.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            raise CompileError(f"compiling it took longer than {timeout_s:g} s")
        answer = receiver.recv_bytes()
    except EOFError as error:
        child.join()
        raise CompileError(f"compiling it ended its process ({_death(child.exitcode)})") from error
    finally:
        child.kill()
        child.join()
        child.close()
        receiver.close()
    decoded = msgspec.json.decode(answer, type=_Answer)
    if decoded.artifact is None:
        raise CompileError(decoded.error)
    return decoded.artifact


class _Answer(msgspec.Struct):
    artifact: Artifact | None = None
    error: str = ""


def _child(
    sender: Connection,
    target: Callable[..., Artifact],
    model: RepositoryModel,
    directory: Path,
    page_bytes: int,
    parent_pid: int,
) -> None:
    linux.die_with_parent()
    if os.getppid() != parent_pid:
        return
    # The terminal's Ctrl-C is the parent's to handle: it kills this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer = _Answer(artifact=target(model, directory, page_bytes=page_bytes))
    except CompileError as error:
        answer = _Answer(error=str(error))
    except Exception as error:  # the border of this process: the parent makes it the model's reason
        answer = _Answer(error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    sender.send_bytes(msgspec.json.encode(answer))


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"
