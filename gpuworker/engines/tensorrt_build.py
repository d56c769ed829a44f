"""ONNX file → TensorRT plan: one optimisation profile for each batch size and shape.

Owns the building and its progress, and what a finished plan says of itself. What a plan needs and
how long it takes is measured elsewhere (gpuworker/compile_plan.py). Every call of TensorRT that
differs between its versions is in tensorrt_api.py.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpuworker.artifact_cache import PlanVariant
from gpuworker.engines.tensorrt_api import TensorRt

_log = logging.getLogger("gpuworker.tensorrt")

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
    builder = api.builder()
    network = api.network(builder, is_fp16=is_fp16)
    parser = trt.OnnxParser(network, api.logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [
            _text_of(parser.get_error(i), onnx_path)
            for i in range(min(parser.num_errors, MAX_ERRORS))
        ]
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
        keep_timings(timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
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


def variants_of(
    engine: Any, inputs: Sequence[PlanTensor], *, shares_profiles: bool
) -> tuple[PlanVariant, ...]:
    """Those that a plan made elsewhere has been built for.

    Of a profile from 1 to 16 rows 1, 2, 4, 8 and 16 are taken; where contexts cannot share it
    (`shares_profiles`) only the smallest. Every other axis is at its largest. Rows are counted by
    the first axis. Raises BuildError for a plan without rows in common.
    """
    found: dict[int, PlanVariant] = {}
    profiles = [
        (profile, *_bounds(engine, inputs, profile))
        for profile in range(engine.num_optimization_profiles)
    ]
    # The narrower one first: its kernels were chosen for just this size.
    for profile, least, most, shapes in sorted(profiles, key=lambda p: (p[2] - p[1], p[0])):
        sizes = [least] if not shares_profiles else _sizes_between(least, most)
        for size in sizes:
            variant = PlanVariant(profile, size, tuple((size, *shape[1:]) for shape in shapes))
            found.setdefault(size, variant)
    return tuple(found[size] for size in sorted(found))


def _bounds(
    engine: Any, inputs: Sequence[PlanTensor], profile: int
) -> tuple[int, int, list[tuple[int, ...]]]:
    """The least and the most rows of a profile, and its largest shapes."""
    least, most = [], []
    for tensor in inputs:
        if min(tensor.shape, default=0) >= 0:
            bounds = [tensor.shape] * 3
        else:
            bounds = engine.get_tensor_profile_shape(tensor.name, profile)
        least.append(tuple(int(size) for size in bounds[0]))
        most.append(tuple(int(size) for size in bounds[2]))
    rows = {(low[0], high[0]) for low, high in zip(least, most, strict=True) if high}
    if len(rows) != 1 or not all(most):
        raise BuildError(
            f"profile {profile}: inputs of shapes {[list(shape) for shape in most]} have no"
            " number of rows in common"
        )
    ((fewest, largest),) = rows
    return fewest, largest, most


def _sizes_between(least: int, most: int) -> list[int]:
    powers = [1 << exponent for exponent in range(most.bit_length())]
    return sorted({least, most, *(size for size in powers if least < size < most)})


def _text_of(error: Any, onnx_path: Path) -> str:
    """With the operator it is about: what the parser says of it is seldom enough to find it."""
    text = " ".join(error.desc().split())
    number = error.node()
    if hasattr(error, "node_operator"):  # from 10 on
        operator, name = error.node_operator(), error.node_name()
    elif number >= 0:
        nodes = _nodes_of(onnx_path)
        operator, name = nodes[number] if number < len(nodes) else ("", "")
    else:
        operator, name = "", ""
    if not operator or operator in text:
        return text
    return f"operator {operator} (node {number}{f', {name}' if name else ''}): {text}"


def _nodes_of(onnx_path: Path) -> list[tuple[str, str]]:
    """(operator, name) of each node; empty for a file that is no model."""
    import onnx

    try:
        model = onnx.load(str(onnx_path), load_external_data=False)
    except Exception:  # protobuf's, which differ by version: the parser has said what is wrong
        return []
    return [(node.op_type, node.name) for node in model.graph.node]


def _timing_cache(config: Any, path: Path | None) -> Any:
    """None where there is none: then kernels are timed once more, and that is all."""
    if path is None:
        return None
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
    # One of another version or card is ignored, or there is None for it; one cut short as well.
    cache = config.create_timing_cache(content) or config.create_timing_cache(b"")
    return cache if cache is not None and config.set_timing_cache(cache, True) else None


def keep_timings(path: Path, content: bytes) -> None:
    """The last of several at once wins, whole. What cannot be kept costs time later, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as partly:
            partly.write(content)
        os.replace(partly.name, path)
    except OSError as error:
        _log.warning("the timing cache %s is not kept: %s", path, error)


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
