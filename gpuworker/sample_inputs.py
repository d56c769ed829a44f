"""Inputs that a model accepts, made up: for measuring it and for finding out how it treats rows.

Owns the guesses about values and free sizes that no ONNX file tells. Always the same for the same
arguments.
"""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from gpuworker.artifact_cache import SampleInputs
from gpuworker.engines.datatypes import NUMPY_OF_OIP, Array
from gpuworker.model_store import RowShape
from scheduler.spec import TensorSpec

# What integers of these inputs must be for the model to do its ordinary work.
_VALUE_BY_NAME = {
    "attention_mask": 1,
    "input_mask": 1,
    "token_type_ids": 0,
    "segment_ids": 0,
    "sr": 16_000,
    "sample_rate": 16_000,
    "sampling_rate": 16_000,
}

# Integers are indices more often than not: small enough for a table, or for a flag.
INTEGER_LIMITS = (256, 2, 1)
# Height and width of pictures, then lengths of sequences: text lines, 32 ms of sound, sentences.
_PICTURE_SIZES = ((48, 320), (224, 224), (256, 256), (64, 64), (32, 32))
_SEQUENCE_LENGTHS = (32, 128, 512, 576, 16_000, 1, 8, 64)


class ProbeError(Exception):
    """The model does not run on anything that was tried."""


class DeclaredTensor(msgspec.Struct, frozen=True):
    """A tensor as the model declares it. A free dimension is its symbol, or None."""

    name: str
    datatype: str
    dims: tuple[int | str | None, ...]

    def symbols(self) -> tuple[int | str, ...]:
        """Dimensions with a name for every free one; unnamed ones are free on their own."""
        return tuple(
            f"{self.name}[{axis}]" if dim is None else dim for axis, dim in enumerate(self.dims)
        )


def make_inputs(
    inputs: Sequence[TensorSpec],
    sample: SampleInputs,
    *,
    rows: int,
    seed: int = 0,
    scale: float = 1.0,
) -> dict[str, Array]:
    """One array per input. Floats are in [0, scale)."""
    made = {}
    for i, (tensor, row_shape) in enumerate(zip(inputs, sample.row_shapes, strict=True)):
        shape = with_rows(row_shape, tensor.batch_axis, rows)
        if tensor.batch_axis is None:  # the same for all rows, so for all seeds
            seed, scale = 0, 1.0
        generator = np.random.default_rng((seed, i))
        made[tensor.name] = _values(tensor, shape, generator, sample.integers_below, scale)
    return made


def with_rows(row_shape: tuple[int, ...], batch_axis: int | None, rows: int) -> tuple[int, ...]:
    """The shape of a tensor with `rows` rows."""
    if batch_axis is None:
        return row_shape
    return (*row_shape[:batch_axis], rows, *row_shape[batch_axis:])


def without_rows(shape: Sequence[int], batch_axis: int | None) -> tuple[int, ...]:
    """The shape of one row: without the batch axis."""
    return tuple(size for axis, size in enumerate(shape) if axis != batch_axis)


def _values(
    tensor: TensorSpec,
    shape: tuple[int, ...],
    generator: np.random.Generator,
    integers_below: int,
    scale: float,
) -> Array:
    dtype = NUMPY_OF_OIP[tensor.datatype]
    if tensor.datatype == "BYTES":
        numbers = np.asarray(generator.integers(0, 1000, shape))
        return np.asarray(numbers.astype(str), dtype)
    if tensor.datatype == "BOOL":
        return np.asarray(generator.integers(0, 2, shape), dtype)
    if np.issubdtype(dtype, np.integer):
        known = _VALUE_BY_NAME.get(tensor.name.lower())
        if known is not None:
            return np.full(shape, known, dtype)
        if tensor.batch_axis is None:
            return np.full(shape, min(1, integers_below - 1), dtype)
        limit = min(integers_below, np.iinfo(dtype).max + 1)
        return np.asarray(generator.integers(0, limit, shape), dtype)
    # asarray: of shape () numpy draws a plain number.
    return np.asarray(generator.random(shape) * scale, dtype)


def row_shape_guesses(
    specs: tuple[TensorSpec, ...],
    inputs: Sequence[DeclaredTensor],
    profile_shapes: dict[str, tuple[RowShape, ...]],
    index: int = 0,
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """One row's shape per input, likeliest first; what `profile_shapes` names is as it says.

    Inputs that share a symbol share its size. Raises ProbeError for what does not fit.
    """
    given = {
        name: shapes[min(index, len(shapes) - 1)]
        for name, shapes in profile_shapes.items()
        if shapes
    }
    unknown = given.keys() - {spec.name for spec in specs}
    if unknown:
        raise ProbeError(f"profile_shapes names {sorted(unknown)}, which are not inputs")
    row_symbols = [
        _row_symbols(tensor, spec.batch_axis) for tensor, spec in zip(inputs, specs, strict=True)
    ]
    sizes: dict[str, int] = {}
    for spec, symbols in zip(specs, row_symbols, strict=True):
        if spec.name in given:
            sizes.update(_sizes_of(spec, symbols, given[spec.name]))
    free = [
        (symbol, len(symbols) + 1)
        for symbols in row_symbols
        for symbol in symbols
        if isinstance(symbol, str) and symbol not in sizes
    ]
    for guess in _guess_sizes(free):
        known = guess | sizes
        yield tuple(
            given[spec.name]
            if spec.name in given
            else tuple(known[symbol] if isinstance(symbol, str) else symbol for symbol in symbols)
            for spec, symbols in zip(specs, row_symbols, strict=True)
        )


def _row_symbols(tensor: DeclaredTensor, batch_axis: int | None) -> tuple[int | str, ...]:
    return tuple(s for axis, s in enumerate(tensor.symbols()) if axis != batch_axis)


def _sizes_of(
    spec: TensorSpec, symbols: tuple[int | str, ...], row_shape: RowShape
) -> dict[str, int]:
    fits = len(symbols) == len(row_shape) and all(
        isinstance(symbol, str) or symbol == size
        for symbol, size in zip(symbols, row_shape, strict=True)
    )
    if not fits:
        raise ProbeError(
            f"profile_shapes: {spec.name} has rows of shape"
            f" {list(without_rows(spec.shape, spec.batch_axis))}, not {list(row_shape)}"
        )
    return {s: size for s, size in zip(symbols, row_shape, strict=True) if isinstance(s, str)}


def _guess_sizes(free_sizes: Sequence[tuple[str, int]]) -> Iterator[dict[str, int]]:
    """Sizes to try for free dimensions, likeliest first: (name, rank of its tensor) → sizes.

    A picture's two free sizes are height and width in this order; one alone is its width.
    """
    names = list(dict.fromkeys(name for name, _ in free_sizes))
    if not names:
        yield {}
        return
    pictures = list(dict.fromkeys(name for name, rank in free_sizes if rank >= 4))
    num_guesses = max(len(_PICTURE_SIZES), len(_SEQUENCE_LENGTHS))
    for i in range(num_guesses):
        length = _SEQUENCE_LENGTHS[min(i, len(_SEQUENCE_LENGTHS) - 1)]
        height, width = _PICTURE_SIZES[min(i, len(_PICTURE_SIZES) - 1)]
        guess = dict.fromkeys(names, length)
        guess.update(dict.fromkeys(pictures, 3))
        guess.update(zip(reversed(pictures), (width, height), strict=False))
        yield guess
