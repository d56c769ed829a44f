"""ONNX file → TensorRT plan: one optimisation profile for each batch size and shape.

Owns the building and its progress, and what a finished plan says of itself. What a plan needs and
how long it takes is measured elsewhere (gpuworker/compile_plan.py). Every call of TensorRT that
differs between its versions is in tensorrt_api.py.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpuworker.artifact_cache import PlanVariant
from gpuworker.engines.tensorrt_api import TensorRt

# What a tactic may use while it executes. Larger ones are seldom faster, and all engines share it.
WORKSPACE_BYTES = 1 << 30
MAX_ERRORS = 3

# (what is done, how much of it, of how much)
Progress = Callable[[str, int, int], None]


class BuildError(Exception):
    """TensorRT cannot make a plan of the model; the message says why."""


class PlanTensor(NamedTuple):
    """An input or output of a plan. `shape` has -1 where a size is free."""

    name: str
    datatype: Any  # trt.DataType
    shape: tuple[int, ...]


def build_plan(
    api: TensorRt,
    onnx_path: Path,
    variants: Sequence[PlanVariant],
    *,
    inputs: Sequence[str],
    is_fp16: bool = False,
    timing_cache: Path | None = None,
    progress: Progress = lambda _what, _done, _of: None,
) -> bytes:
    """The plan, with a profile per variant, in their order. Raises BuildError.

    `timing_cache` is read if it is there and written afterwards: what was measured of one model's
    kernels is not measured again for another's.
    """
    trt = api.module
    api.logger.last_error = ""
    builder = trt.Builder(api.logger)
    network = api.network(builder)
    parser = trt.OnnxParser(network, api.logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [_text_of(parser.get_error(i)) for i in range(min(parser.num_errors, MAX_ERRORS))]
        raise BuildError(f"TensorRT {api.version} cannot read it: {'; '.join(errors)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    api.refuse_foreign_tactics(config)
    if is_fp16:
        api.allow_fp16(config)
    _show_progress(api, config, progress)
    for variant in variants:
        profile = builder.create_optimization_profile()
        for name, shape in zip(inputs, variant.input_shapes, strict=True):
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"inputs of {[list(shape) for shape in variant.input_shapes]} are not what the"
                f" model takes: {api.logger.last_error}"
            )
    cache = _timing_cache(config, timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        why = api.logger.last_error or "TensorRT does not say why"
        raise BuildError(f"TensorRT {api.version} cannot build it: {why}")
    if timing_cache is not None and cache is not None:
        _write(timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
    return bytes(memoryview(serialized))


def inputs_and_outputs(api: TensorRt, engine: Any) -> tuple[list[PlanTensor], list[PlanTensor]]:
    """As the plan declares them, in its order."""
    inputs: list[PlanTensor] = []
    outputs: list[PlanTensor] = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        tensor = PlanTensor(name, engine.get_tensor_dtype(name), shape)
        is_input = engine.get_tensor_mode(name) == api.module.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(tensor)
    return inputs, outputs


def variants_of(engine: Any, inputs: Sequence[PlanTensor]) -> tuple[PlanVariant, ...]:
    """Those that a plan made elsewhere has been built for: each profile at its largest shapes.

    Rows are counted by the first axis. Raises BuildError for a plan without rows in common.
    """
    found: dict[int, PlanVariant] = {}
    for profile in range(engine.num_optimization_profiles):
        shapes = []
        for tensor in inputs:
            if min(tensor.shape, default=0) >= 0:
                shapes.append(tensor.shape)
            else:
                most = engine.get_tensor_profile_shape(tensor.name, profile)[2]
                shapes.append(tuple(int(size) for size in most))
        rows = {shape[0] for shape in shapes if shape}
        if len(rows) != 1:
            raise BuildError(
                f"profile {profile}: inputs of shapes {[list(shape) for shape in shapes]} have no"
                " number of rows in common"
            )
        (size,) = rows
        found.setdefault(size, PlanVariant(profile, size, tuple(shapes)))
    return tuple(found[size] for size in sorted(found))


def _text_of(error: Any) -> str:
    text = error.desc() if hasattr(error, "desc") else str(error)
    return " ".join(text.split())


def _timing_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    content = b""
    with contextlib.suppress(FileNotFoundError):
        content = path.read_bytes()
    cache = config.create_timing_cache(content)
    # One of another version or card is ignored, not refused.
    config.set_timing_cache(cache, True)
    return cache


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partly = path.with_suffix(".partly")
    partly.write_bytes(content)
    partly.replace(path)


def _show_progress(api: TensorRt, config: Any, progress: Progress) -> None:
    """From 10 on TensorRT says how far it is; before, nothing does."""
    base: Any = getattr(api.module, "IProgressMonitor", None)
    if base is None:
        return

    class Monitor(base):  # type: ignore[misc]  # a class of a library without types
        def __init__(self) -> None:
            base.__init__(self)
            self._totals: dict[str, int] = {}

        def phase_start(self, name: str, _parent: str | None, num_steps: int) -> None:
            self._totals[name] = num_steps

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, step + 1, self._totals.get(name, step + 1))
            return True  # False would cancel

        def phase_finish(self, name: str) -> None:
            self._totals.pop(name, None)

    config.progress_monitor = Monitor()
