"""One model, from its ONNX file to its artifact for the CPU: optimise, find batch axes, measure.

Owns the choices of compiling: which form of the weights is kept, which batch sizes are offered. It
runs in a process of its own (compile_child.py), since the models are not ours and may end it.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuworker.artifact_cache import GRAPH_FILE, WEIGHTS_FILE, Artifact, WeightTensor
from gpuworker.devices.host import HostPages
from gpuworker.engines.datatypes import OIP_OF_ORT
from gpuworker.engines.paged_session import PagedSession
from gpuworker.model_store import ModelConfig, RepositoryModel
from gpuworker.profiling import measure, measure_load, measure_shapes
from gpuworker.sample_inputs import DeclaredTensor, ProbeError, make_inputs
from gpuworker.shape_probe import ProbedModel, probe
from scheduler.priority import PRIORITIES
from scheduler.spec import MILLISECOND_NS, ModelProfile, ModelSpec, ShapeProfile

PLATFORM = "onnxruntime_onnx"  # Triton's word for it

# Powers of two: estimates between them are interpolated, and past 16 a CPU gains nothing.
BATCH_SIZES = (1, 2, 4, 8, 16)

# Folding constants turns compact weights into floats. Up to this growth nobody asks for less.
MAX_GROWTH = 1.25


class CompileError(Exception):
    """Why one model cannot be served."""


class _Candidate(msgspec.Struct):
    """One form of a model. Its files are in `directory`."""

    directory: Path
    weights: tuple[WeightTensor, ...]
    weights_bytes: int


def compile_model(
    model: RepositoryModel, directory: Path, *, page_bytes: int, threads: int = 1
) -> Artifact:
    """Fill `directory` with graph and weights. Raises CompileError. It is measured with so many
    threads.
    """
    # Here, not above: a worker reads artifacts without ever needing the onnx package.
    from gpuworker.engines import onnx_graph

    assert model.model_path is not None  # a model without one has a problem, and is not compiled
    try:
        source = onnx_graph.read_graph(model.model_path)
        with tempfile.TemporaryDirectory(prefix="compile-", dir=directory) as scratch:
            candidates = [_candidate(source, Path(scratch) / "folded")]
            compact = onnx_graph.compact_weights(source)
            growth = candidates[0].weights_bytes / max(1, onnx_graph.weights_bytes(source))
            if compact and growth > MAX_GROWTH:
                candidates.append(_candidate(source, Path(scratch) / "compact", compact))
            del source
            return _measured(model, candidates, directory, page_bytes, threads)
    except (onnx_graph.GraphError, ProbeError) as error:
        raise CompileError(str(error)) from error


def _candidate(source: Any, directory: Path, keep: frozenset[str] = frozenset()) -> _Candidate:
    """Write one form of the model; changes `source` where weights are kept compact."""
    from gpuworker.engines import onnx_graph
    from gpuworker.engines.late_dequantising import dequantise_late

    directory.mkdir()
    if keep:
        dequantise_late(source, keep)
    optimised = onnx_graph.optimise(source, keep=keep)
    weights = onnx_graph.split_weights(optimised, directory)
    return _Candidate(directory, weights, (directory / WEIGHTS_FILE).stat().st_size)


def _measured(
    model: RepositoryModel,
    candidates: list[_Candidate],
    directory: Path,
    page_bytes: int,
    threads: int,
) -> Artifact:
    largest = max(candidate.weights_bytes for candidate in candidates)
    num_pages = max(1, -(-largest // page_bytes))
    pages = HostPages(page_bytes=page_bytes, total_pages=num_pages + 1)
    sessions = [_open(candidate, pages, threads) for candidate in candidates]
    try:
        probed = _probe(sessions[0], model.config)
        chosen = _choose(sessions, probed)
        artifact = Artifact(
            spec=_spec(model, sessions[chosen], probed),
            weights=candidates[chosen].weights,
            samples=probed.samples,
        )
    finally:
        for session in sessions:
            session.close()
        pages.close()
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        (candidates[chosen].directory / name).rename(directory / name)
    return artifact


def _open(candidate: _Candidate, pages: HostPages, threads: int) -> PagedSession:
    try:
        return PagedSession(
            pages,
            graph_path=candidate.directory / GRAPH_FILE,
            weights_path=candidate.directory / WEIGHTS_FILE,
            weights=candidate.weights,
            threads=threads,
        )
    except Exception as error:  # ONNX Runtime has a class per error code and no common parent
        raise CompileError(f"ONNX Runtime refuses the model: {error}") from error


def _probe(session: PagedSession, config: ModelConfig) -> ProbedModel:
    inputs = tuple(map(declared_tensor, session.declared_inputs))
    outputs = tuple(map(declared_tensor, session.declared_outputs))
    with _resident(session):
        return probe(session.run, inputs, outputs, config.profile_shapes)


def declared_tensor(node: Any) -> DeclaredTensor:
    """ONNX Runtime's description of a tensor. Raises CompileError."""
    if node.type not in OIP_OF_ORT:
        raise CompileError(f"{node.name} is a {node.type}, which cannot be sent to clients")
    dims = tuple(
        dim if (isinstance(dim, int) and dim > 0) or _is_symbol(dim) else None
        for dim in node.shape or ()
    )
    return DeclaredTensor(node.name, OIP_OF_ORT[node.type], dims)


def _is_symbol(dim: Any) -> bool:
    """Whether equal names mean equal sizes; exporters write "?" for any size."""
    return isinstance(dim, str) and dim.strip("? ") != ""


def _choose(sessions: list[PagedSession], probed: ProbedModel) -> int:
    if len(sessions) == 1:
        return 0
    inputs = make_inputs(probed.inputs, probed.samples[0], rows=1)
    times = []
    for session in sessions:
        with _resident(session):
            times.append(measure(lambda s=session: s.run(inputs)))  # type: ignore[misc]
    return fewest_byte_seconds([session.weights_bytes for session in sessions], times)


def fewest_byte_seconds(weights_bytes: Sequence[int], exec_ns: Sequence[int]) -> int:
    """Which form occupies memory the least for what it does: bytes held times time held.

    MiniLM: 90.3 MB for 6.6 ms when folded, 22.9 MB for 9.6 ms when compact.
    """
    costs = [size * time for size, time in zip(weights_bytes, exec_ns, strict=True)]
    return costs.index(min(costs))


def _spec(model: RepositoryModel, session: PagedSession, probed: ProbedModel) -> ModelSpec:
    with _resident(session):
        shapes = measure_shapes(session.run, probed, wanted_batch_sizes(model.config, probed))
        load_ns = measure_load(session)
    return model_spec(
        model,
        platform=PLATFORM,
        probed=probed,
        shapes=shapes,
        load_ns=load_ns,
        weights_bytes=session.weights_bytes,
        runs_exact_batch=probed.can_batch,
    )


def model_spec(
    model: RepositoryModel,
    *,
    platform: str,
    probed: ProbedModel,
    shapes: tuple[ShapeProfile, ...],
    load_ns: int,
    weights_bytes: int,
    runs_exact_batch: bool,
) -> ModelSpec:
    """What is known of a compiled model, in the words of everybody else."""
    config = model.config
    return ModelSpec(
        name=model.name,
        version=model.version,
        content_hash=model.content_hash,
        platform=platform,
        inputs=probed.inputs,
        outputs=probed.outputs,
        batch_sizes=tuple(shapes[0].exec_ns),
        runs_exact_batch=runs_exact_batch,
        weights_bytes=weights_bytes,
        profile=ModelProfile(load_ns=load_ns, shapes=shapes),
        default_slo_ns=None
        if config.default_slo_ms is None
        else round(config.default_slo_ms * MILLISECOND_NS),
        is_pinned=config.pinned,
        priority=PRIORITIES[config.priority],
        sharing=config.sharing(),
    )


def wanted_batch_sizes(config: ModelConfig, probed: ProbedModel) -> tuple[int, ...]:
    """Ascending from 1; what config.yaml wishes, as far as the model can."""
    if not probed.can_batch:
        return (1,)
    sizes = {1, *(config.batch_sizes or BATCH_SIZES)}
    if config.max_batch_size is not None:
        sizes = {size for size in sizes if size <= config.max_batch_size} | {config.max_batch_size}
    return tuple(sorted(sizes))


@contextlib.contextmanager
def _resident(session: PagedSession) -> Iterator[None]:
    """With the weights in the first pages."""
    session.load(range(session.num_pages))
    try:
        yield
    finally:
        session.evict()
