"""Inputs that a model takes, made by chance, and the outputs that plain ONNX Runtime has for them.

Owns the reading of a model's inputs, from its file or from a server's metadata. It sends nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# Datatypes of the Open Inference Protocol; BYTES have no rows of a known size.
DATATYPES: dict[str, type[np.generic]] = {
    "FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "UINT8": np.uint8,
    "INT8": np.int8, "UINT16": np.uint16, "INT16": np.int16, "INT32": np.int32,
    "UINT32": np.uint32, "INT64": np.int64, "UINT64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip
DATATYPE_OF = {np.dtype(kind): name for name, kind in DATATYPES.items()}
_ORT_TYPES = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16",
    "tensor(uint8)": "UINT8", "tensor(int8)": "INT8", "tensor(uint16)": "UINT16",
    "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(uint32)": "UINT32",
    "tensor(int64)": "INT64", "tensor(uint64)": "UINT64", "tensor(bool)": "BOOL",
}  # fmt: skip
# Of indices into tables nobody knows the length of: 0 and 1 are in every one.
MOST_INDEX = 2


class InputError(ValueError):
    """No input can be made. The message names the model and the input."""


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """`shape` is of one row; None where a dimension is free. The batch comes before it."""

    name: str
    datatype: str
    shape: tuple[int | None, ...]


class Examples(msgspec.Struct, frozen=True, kw_only=True):
    """So many inputs of one model; `outputs` are right for them, empty where nobody knows."""

    inputs: list[Arrays]
    outputs: list[Arrays]


def inputs_of_file(path: Path, name: str) -> list[Input]:
    """Raises InputError."""
    try:
        session = _session_of(path)
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise InputError(f"model {name!r}: {path} cannot be opened: {error}") from error
    found = []
    for tensor in session.get_inputs():
        datatype = _ORT_TYPES.get(tensor.type)
        if datatype is None:
            raise InputError(f"model {name!r}: input {tensor.name!r} is {tensor.type}: not random")
        shape = tuple(size if isinstance(size, int) else None for size in tensor.shape[1:])
        found.append(Input(name=tensor.name, datatype=datatype, shape=shape))
    return found


def inputs_of_metadata(metadata: Any, name: str) -> list[Input]:
    """Out of the answer to GET /v2/models/NAME, a free batch dimension first. Raises InputError."""
    try:
        found = [
            (str(tensor["name"]), str(tensor["datatype"]), [int(size) for size in tensor["shape"]])
            for tensor in metadata["inputs"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"model {name!r}: the server's metadata name no inputs") from error
    inputs = []
    for tensor_name, datatype, shape in found:
        if datatype not in DATATYPES:
            raise InputError(f"model {name!r}: input {tensor_name!r} is {datatype}: not random")
        row = tuple(None if size < 0 else size for size in shape[1:])
        inputs.append(Input(name=tensor_name, datatype=datatype, shape=row))
    return inputs


def examples(
    inputs: Sequence[Input],
    *,
    model: str,
    rows: int,
    count: int,
    seed: int,
    shapes: Mapping[str, Sequence[int]],
    path: Path | None = None,
) -> Examples:
    """`shapes` fills in free dimensions; with `path`, outputs are those of plain ONNX Runtime.

    Raises InputError.
    """
    chance = np.random.default_rng(seed)
    full = {each.name: (rows, *_row_shape(each, model, shapes)) for each in inputs}
    made = [
        {each.name: _random(each.datatype, full[each.name], chance) for each in inputs}
        for _ in range(count)
    ]
    if path is None:
        return Examples(inputs=made, outputs=[])
    session = _session_of(path)
    names = [output.name for output in session.get_outputs()]
    try:
        outputs = [dict(zip(names, session.run(None, feeds), strict=True)) for feeds in made]
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise InputError(f"model {model!r} cannot be executed: {error}") from error
    return Examples(inputs=made, outputs=outputs)


def _session_of(path: Path) -> Any:
    from loadtest.reference import session_of  # here: the driver's processes execute nothing

    return session_of(path)


def _row_shape(each: Input, model: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    given = shapes.get(each.name)
    if given is None:
        if None in each.shape:
            raise InputError(
                f"model {model!r}: input {each.name!r} has free dimensions {list(each.shape)}: say "
                f"how long they are, as in shapes: {{{each.name}: [3, 224, 224]}}"
            )
        return tuple(size or 0 for size in each.shape)
    fits = len(given) == len(each.shape) and all(
        wanted in (None, size) for wanted, size in zip(each.shape, given, strict=False)
    )
    if not fits:
        raise InputError(
            f"model {model!r}: shapes: {each.name!r} is {list(given)}, the model has "
            f"{list(each.shape)}"
        )
    return tuple(given)


def _random(datatype: str, shape: tuple[int, ...], chance: np.random.Generator) -> Array:
    """Pictures where the model takes bytes; normal numbers; small indices."""
    kind = DATATYPES[datatype]
    if datatype == "UINT8":
        return chance.integers(0, 256, shape, np.uint8)
    if datatype.startswith("FP"):
        return chance.standard_normal(shape, np.float32).astype(kind)
    return chance.integers(0, MOST_INDEX, shape).astype(kind)
