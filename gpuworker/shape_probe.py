"""Which axis of each tensor counts rows, and whether rows mind each other: found by running.

Owns what no ONNX file tells reliably. It asks only to have the model run on inputs it makes up;
it never measures time.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from gpuworker.artifact_cache import SampleInputs
from gpuworker.engines.datatypes import Array
from gpuworker.model_store import RowShape
from gpuworker.sample_inputs import (
    INTEGER_LIMITS,
    DeclaredTensor,
    ProbeError,
    make_inputs,
    row_shape_guesses,
    without_rows,
)
from scheduler.spec import TensorSpec

Run = Callable[[dict[str, Array]], list[Array]]

# A row may differ by rounding from what it is alone, since a matrix product adds in another order
# for another height; what shares a quantisation scale with its batch-mates differs by a hundred
# times more. Relative to the output's largest magnitude.
ROW_TOLERANCE = 1e-4

# Numbers of rows that show an axis: a size that follows all three is not a coincidence.
_PROBE_ROWS = (1, 2, 3)
# The first guess is nearly always right, and each one costs ten executions.
_MAX_AXIS_GUESSES = 8


class ProbedModel(msgspec.Struct, frozen=True):
    """`can_batch`: any number of rows runs, and a row's results do not depend on the others."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: tuple[SampleInputs, ...]
    can_batch: bool
    note: str


def probe(
    run: Run,
    inputs: Sequence[DeclaredTensor],
    outputs: Sequence[DeclaredTensor],
    profile_shapes: dict[str, tuple[RowShape, ...]],
) -> ProbedModel:
    """Raises ProbeError with what the model said to the likeliest inputs."""
    guesses = list(itertools.islice(_axis_guesses(inputs), _MAX_AXIS_GUESSES))
    # What the config asks for must fit the likeliest axes, or it is a slip and not a hint.
    _further_row_shapes(_input_specs(inputs, guesses[0]), inputs, profile_shapes)
    best: ProbedModel | None = None
    complaint: ProbeError | None = None
    for axes in guesses:
        specs = _input_specs(inputs, axes)
        try:
            sample = _first_that_runs(run, specs, inputs, profile_shapes)
            candidate = _probe_rows(run, specs, outputs, sample)
        except ProbeError as error:
            complaint = complaint or error
            continue
        if candidate.can_batch:
            best = candidate
            break
        best = best or candidate
    if best is None:
        raise complaint or ProbeError("the model has no inputs")
    further = [
        _sample_that_runs(run, best, row_shapes)
        for row_shapes in _further_row_shapes(best.inputs, inputs, profile_shapes)
    ]
    return msgspec.structs.replace(best, samples=(*best.samples, *further))


def _axis_guesses(inputs: Sequence[DeclaredTensor]) -> Iterator[tuple[int | None, ...]]:
    """Batch axes of all inputs, likeliest first. Without any free axis: axis 0 where it is 1."""
    free = [
        [axis for axis, dim in enumerate(tensor.dims) if not isinstance(dim, int)]
        for tensor in inputs
    ]
    if not any(free):
        yield tuple(0 if tensor.dims[:1] == (1,) else None for tensor in inputs)
        return
    leader = next(
        (i for i, axes in enumerate(free) if 0 in axes),
        next(i for i, axes in enumerate(free) if axes),
    )
    symbol = inputs[leader].dims[free[leader][0]]

    def options(i: int) -> list[int | None]:
        dims = inputs[i].dims
        same = [axis for axis in free[i] if symbol is not None and dims[axis] == symbol]
        return [*dict.fromkeys([*same, *free[i]]), None]

    yield from itertools.product(*(options(i) for i in range(len(inputs))))


def _input_specs(
    inputs: Sequence[DeclaredTensor], axes: Sequence[int | None]
) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            tensor.name,
            tensor.datatype,
            tuple(dim if isinstance(dim, int) else -1 for dim in tensor.dims),
            axis,
        )
        for tensor, axis in zip(inputs, axes, strict=True)
    )


def _first_that_runs(
    run: Run,
    specs: tuple[TensorSpec, ...],
    inputs: Sequence[DeclaredTensor],
    profile_shapes: dict[str, tuple[RowShape, ...]],
) -> SampleInputs:
    """Inputs of one row that the model accepts. Raises ProbeError with its first complaint."""
    complaint = ""
    for row_shapes in row_shape_guesses(specs, inputs, profile_shapes):
        for limit in INTEGER_LIMITS:
            sample = SampleInputs(row_shapes, limit)
            try:
                run(make_inputs(specs, sample, rows=1))
            except Exception as error:  # whatever the engine raises is a "no" to this guess
                complaint = complaint or f"inputs {list(row_shapes)}: {error}"
            else:
                return sample
    raise ProbeError(" ".join(complaint.split())[:500])


def _probe_rows(
    run: Run,
    specs: tuple[TensorSpec, ...],
    outputs: Sequence[DeclaredTensor],
    sample: SampleInputs,
) -> ProbedModel:
    """Raises ProbeError where not even one row runs twice with outputs of one shape."""
    singles = [
        _run(run, make_inputs(specs, sample, rows=1, seed=i, scale=1.0 + 2.0 * i))
        for i in range(max(_PROBE_ROWS))
    ]
    shapes = [[array.shape for array in single] for single in singles]
    note = "" if all(shape == shapes[0] for shape in shapes) else "output shapes depend on content"
    if not any(spec.batch_axis is not None and spec.shape[spec.batch_axis] < 0 for spec in specs):
        note = note or "the batch is fixed"
    axes: list[int | None] = [0 if shape[:1] == (1,) else None for shape in shapes[0]]
    if not note:
        try:
            axes, note = _compare_batches(run, specs, sample, singles)
        except ProbeError as error:
            note = f"more than one row does not run: {error}"
    return ProbedModel(
        inputs=specs,
        outputs=tuple(
            _output_spec(declared, array, axis, is_exact=not note)
            for declared, array, axis in zip(outputs, singles[0], axes, strict=True)
        ),
        samples=(sample,),
        can_batch=not note,
        note=note,
    )


def _compare_batches(
    run: Run,
    specs: tuple[TensorSpec, ...],
    sample: SampleInputs,
    singles: list[list[Array]],
) -> tuple[list[int | None], str]:
    """Batch axes of the outputs, and why rows cannot be batched ("" where they can)."""
    rows = [
        make_inputs(specs, sample, rows=1, seed=i, scale=1.0 + 2.0 * i)
        for i in range(max(_PROBE_ROWS))
    ]
    batches = [_run(run, _joined(specs, rows[:count])) for count in _PROBE_ROWS]
    axes: list[int | None] = []
    for i in range(len(singles[0])):
        shapes = [batch[i].shape for batch in batches]
        axis = _axis_that_follows(shapes)
        if axis is None and any(shape != shapes[0] for shape in shapes):
            return _axes_of_one_row(singles), f"output {i} has shapes {shapes} for 1, 2, 3 rows"
        axes.append(axis)
    if all(axis is None for axis in axes):
        return axes, "no output follows the number of rows"
    for count, batch in zip(_PROBE_ROWS, batches, strict=True):
        for i, (array, axis) in enumerate(zip(batch, axes, strict=True)):
            for row in range(count):
                alone = singles[row][i]
                together = array if axis is None else np.take(array, [row], axis=axis)
                if not _are_alike(together, alone):
                    return axes, f"a row of output {i} depends on its batch-mates"
    return axes, ""


def _axes_of_one_row(singles: list[list[Array]]) -> list[int | None]:
    return [0 if array.shape[:1] == (1,) else None for array in singles[0]]


def _axis_that_follows(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """The first axis whose size is the number of rows, all others staying as they are."""
    if len({len(shape) for shape in shapes}) != 1:
        return None
    for axis in range(len(shapes[0])):
        follows = tuple(shape[axis] for shape in shapes) == _PROBE_ROWS
        if follows and len({without_rows(shape, axis) for shape in shapes}) == 1:
            return axis
    return None


def _are_alike(first: Array, second: Array) -> bool:
    if first.shape != second.shape:
        return False
    if not np.issubdtype(first.dtype, np.floating):
        return bool(np.array_equal(first, second))
    magnitude = float(np.max(np.abs(second), initial=0.0, where=np.isfinite(second)))
    return bool(
        np.allclose(
            first.astype(np.float64),
            second.astype(np.float64),
            rtol=ROW_TOLERANCE,
            atol=ROW_TOLERANCE * magnitude,
            equal_nan=True,
        )
    )


def _joined(specs: tuple[TensorSpec, ...], rows: list[dict[str, Array]]) -> dict[str, Array]:
    return {
        spec.name: rows[0][spec.name]
        if spec.batch_axis is None
        else np.concatenate([row[spec.name] for row in rows], axis=spec.batch_axis)
        for spec in specs
    }


def _output_spec(
    declared: DeclaredTensor, array: Array, axis: int | None, *, is_exact: bool
) -> TensorSpec:
    dims: tuple[int | str | None, ...] = declared.dims
    if len(dims) != array.ndim:
        dims = (None,) * array.ndim
    shape = tuple(
        dim if isinstance(dim, int) and dim == size and not (is_exact and i == axis) else -1
        for i, (dim, size) in enumerate(zip(dims, array.shape, strict=True))
    )
    return TensorSpec(declared.name, declared.datatype, shape, axis)


def _further_row_shapes(
    specs: tuple[TensorSpec, ...],
    inputs: Sequence[DeclaredTensor],
    profile_shapes: dict[str, tuple[RowShape, ...]],
) -> list[tuple[tuple[int, ...], ...]]:
    """Row shapes of the second and later profile shapes. Raises ProbeError for any that misfits."""
    num_shapes = max(map(len, profile_shapes.values()), default=1)
    shapes = [next(row_shape_guesses(specs, inputs, profile_shapes, i)) for i in range(num_shapes)]
    return shapes[1:]


def _sample_that_runs(
    run: Run, probed: ProbedModel, row_shapes: tuple[tuple[int, ...], ...]
) -> SampleInputs:
    sample = SampleInputs(row_shapes, probed.samples[0].integers_below)
    try:
        _run(run, make_inputs(probed.inputs, sample, rows=1))
    except ProbeError as error:
        shapes = [list(shape) for shape in row_shapes]
        raise ProbeError(f"profile_shapes {shapes} do not run: {error}") from error
    return sample


def _run(run: Run, inputs: dict[str, Array]) -> list[Array]:
    try:
        return run(inputs)
    except Exception as error:
        raise ProbeError(" ".join(str(error).split())[:300]) from error
