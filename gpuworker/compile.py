"""Repository → catalogue: every model optimised, probed and profiled, once per content and device.

Owns the order of compiling and what the user sees of it. Each model is compiled in a process of its
own: a model that crashes the engine, or never ends, becomes an unavailable one. Nothing a model
does may raise out of here.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gpuworker.additions import NotHereError
from gpuworker.artifact_cache import Artifact, ArtifactCache
from gpuworker.compile_child import CompileAnswer, CompileOrder, CompileProgress
from gpuworker.compile_model import PLATFORM, CompileError
from gpuworker.device_choice import CPU, ordinal_of
from gpuworker.model_store import RepositoryModel, read_model, scan_repository, state_of_files
from scheduler.spec import ModelProfile, ModelSpec

# The largest demo model takes 10 s; a model that takes this long is not coming back. TensorRT times
# hundreds of kernels for each layer and batch size, which takes minutes for a network of many.
CPU_TIMEOUT_S, GPU_TIMEOUT_S = 600.0, 7200.0
COMPILE_COMMAND = (sys.executable, "-m", "gpuworker.compile_child")


class Target(NamedTuple):
    """What models are compiled for. `engine_key` is what else an artifact depends on; `threads`
    share an execution on the CPU.
    """

    device: str
    platform: str
    engine_key: str
    threads: int = 1

    @property
    def is_gpu(self) -> bool:
        return self.device != CPU


def target_of(device: str, threads: int = 1) -> Target:
    """Of "cpu" or "cuda:N". Raises ConfigError where there is no such device."""
    ordinal = ordinal_of(device)
    if ordinal is None:
        from gpuworker.engines import onnxruntime

        return Target(device, PLATFORM, onnxruntime.engine_key(threads), threads)
    from gpuworker.compile_plan import PLATFORM as PLAN_PLATFORM
    from gpuworker.devices.cuda_context import describe
    from gpuworker.engines import tensorrt
    from gpuworker.engines.tensorrt_api import TensorRt

    return Target(device, PLAN_PLATFORM, tensorrt.engine_key(TensorRt(), describe(ordinal)))


def compile_repository(
    models_dir: Path,
    cache_dir: Path,
    *,
    page_bytes: int,
    device: str = CPU,
    threads: int = 1,
    quiet: bool = False,
    tries_again: bool = True,
    only: str | None = None,
    is_ours: Callable[[str], bool] = lambda _: True,
) -> list[ModelSpec]:
    """The specs of all models that are ours, by name, or of `only` one, in silence; compiles those
    that are not in the cache.

    Raises RepositoryError where `models_dir` is no directory or holds no model, and ConfigError
    where there is no such device. A model that cannot be served has an `unavailable_reason`. One
    that could not be compiled before is tried again, which may take minutes; a worker takes the
    reason that was noted then, since its gateway has just tried, and so did the worker before it.
    """
    target = target_of(device, threads)
    if only is None:
        models = scan_repository(models_dir, takes_plans=target.is_gpu, is_ours=is_ours)
    else:
        models = [read_model(models_dir / only, takes_plans=target.is_gpu)]
    artifacts = ArtifactCache(cache_dir, engine_key=target.engine_key)
    specs = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet or only is not None,
    )
    with progress:
        task = progress.add_task("compiling", total=len(models))
        for model in models:
            description = f"compiling {model.name}"
            progress.update(task, description=description)

            def show(said: CompileProgress, of: str = description) -> None:
                text = f"{of}: {said.what} {said.done}/{said.of}"
                progress.update(task, description=text)

            spec = compile_if_new(
                model,
                artifacts,
                target,
                page_bytes=page_bytes,
                tries_again=tries_again,
                on_progress=show,
            )
            if spec.unavailable_reason is not None and only is None:
                progress.console.print(
                    f"{model.name} is unavailable: {spec.unavailable_reason}", markup=False
                )
            specs.append(spec)
            progress.advance(task)
        progress.update(task, description="compiled")
    return specs


def compile_if_new(
    model: RepositoryModel,
    artifacts: ArtifactCache,
    target: Target,
    *,
    page_bytes: int,
    tries_again: bool,
    on_progress: Callable[[CompileProgress], None] = lambda _: None,
) -> ModelSpec:
    """The model's spec, from the cache or compiled; never raises for what is wrong with it."""
    if model.problem is not None:
        return _unavailable(model, target, model.problem)
    identity = (model.name, model.version, model.content_hash)
    timing_cache = artifacts.beside("timing-cache") if target.is_gpu else None
    try:
        with artifacts.lock(*identity):
            stored = artifacts.find(*identity)
            if stored is not None:
                return stored.artifact.spec
            refusal = None if tries_again else artifacts.refusal(*identity)
            if refusal is not None:
                return _unavailable(model, target, refusal)

            def write(directory: Path) -> Artifact:
                artifact = compile_in_own_process(
                    model,
                    directory,
                    page_bytes=page_bytes,
                    device=target.device,
                    threads=target.threads,
                    timing_cache=timing_cache,
                    on_progress=on_progress,
                )
                _check_unchanged(model)
                return artifact

            try:
                stored = artifacts.store(*identity, write)
            except CompileError as error:
                artifacts.refuse(*identity, str(error))
                return _unavailable(model, target, str(error))
    except OSError as error:  # of the cache's disk, which the next one may find mended
        return _unavailable(model, target, str(error))
    return stored.artifact.spec


def _check_unchanged(model: RepositoryModel) -> None:
    """Whoever copied into it meanwhile gets an artifact of all of it, and not of a part: by then
    it has another hash. Raises CompileError.
    """
    assert model.model_path is not None
    directory = model.model_path.parent.parent
    if read_model(directory, version=model.version).content_hash != model.content_hash:
        raise CompileError("its files were changed while it was compiled")


class Provider:
    """Has the artifact of a wanted content in the cache, compiled if the repository has it."""

    def __init__(
        self, models_dir: Path, cache_dir: Path, *, page_bytes: int, device: str, threads: int = 1
    ) -> None:
        self._models_dir = models_dir
        self._cache_dir = cache_dir
        self._page_bytes = page_bytes
        self._device = device
        self._threads = threads
        # What was found of a model that is looked for again and again: the state of its files, and
        # their hash, which takes reading them all.
        self._found: dict[str, tuple[object, RepositoryModel]] = {}

    def __call__(self, spec: ModelSpec) -> None:
        """Raises NotHereError where the repository has another content, or none; CompileError."""
        target = target_of(self._device, self._threads)
        artifacts = ArtifactCache(self._cache_dir, engine_key=target.engine_key)
        name, version, wanted = spec.public_name, spec.version, spec.content_hash
        if artifacts.find(name, version, wanted) is not None:
            return
        directory = self._models_dir / name
        state = state_of_files(directory, version)
        seen, model = self._found.get(name, (None, None))
        if model is None or seen != state:
            model = read_model(directory, version=version, takes_plans=target.is_gpu)
            self._found[name] = state, model
        if model.content_hash != wanted or model.version != version:
            found = f"{model.content_hash[:12]} is" if model.content_hash else "nothing is"
            raise NotHereError(
                f"{directory}, version {version}: {found} here, {wanted[:12]} is wanted"
            )
        del self._found[name]
        page_bytes = self._page_bytes
        made = compile_if_new(model, artifacts, target, page_bytes=page_bytes, tries_again=False)
        if made.unavailable_reason is not None:
            raise CompileError(made.unavailable_reason)


def _unavailable(model: RepositoryModel, target: Target, reason: str) -> ModelSpec:
    return ModelSpec(
        name=model.name,
        version=model.version,
        content_hash=model.content_hash,
        platform=target.platform,
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
    device: str = CPU,
    threads: int = 1,
    timing_cache: Path | None = None,
    on_progress: Callable[[CompileProgress], None] = lambda _: None,
    command: Sequence[str] = COMPILE_COMMAND,
    timeout_s: float | None = None,
) -> Artifact:
    """Fill `directory` by a child process. Raises CompileError, also where it dies or never ends.

    The child reads one CompileOrder from its standard input; to its standard output it writes lines
    of CompileProgress, and at last one CompileAnswer.
    """
    order = CompileOrder(model, directory, page_bytes, os.getpid(), device, timing_cache, threads)
    if timeout_s is None:
        timeout_s = CPU_TIMEOUT_S if device == CPU else GPU_TIMEOUT_S
    # What is importable here is importable there, however this process was started.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        child.kill()

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    answer: CompileAnswer | None = None
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin, contextlib.suppress(BrokenPipeError):
            child.stdin.write(order.to_json())
            child.stdin.close()
        for line in child.stdout:
            with contextlib.suppress(msgspec.DecodeError):
                said = msgspec.json.decode(line, type=CompileProgress | CompileAnswer)
                if isinstance(said, CompileAnswer):
                    answer = said
                else:
                    on_progress(said)
    except BaseException:
        child.kill()
        raise
    finally:
        timer.cancel()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if answer is None and is_late.is_set():
        raise CompileError(f"compiling it took longer than {timeout_s:g} s")
    if answer is None:
        raise CompileError(f"compiling it ended its process ({_death(child.returncode)})")
    if answer.artifact is None:
        raise CompileError(answer.error)
    return answer.artifact


def _death(exit_code: int) -> str:
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
