"""The datatypes of the Open Inference Protocol: JSON ↔ little-endian bytes, and checks of bytes.

It owns ranges and element sizes. It must never know tensors' names or models: errors here speak of
`data`, and whoever called puts the tensor's name in front.
"""

import functools
import itertools
import re
import struct
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from scheduler.wire import Buffer


class TensorDataError(ValueError):
    """Data that is not what its datatype and shape promise. The message names the numbers."""


class Datatype(NamedTuple):
    """`code` is the element's letter in `struct`; None where JSON has no form for it.

    `num_bytes` is per element; None for BYTES, whose elements carry their own length.
    """

    name: str
    num_bytes: int | None
    code: str | None
    element: Any  # the type msgspec decodes an element of JSON data as
    bounds: tuple[float, float] | None


_FP32_MAX = float(np.finfo(np.float32).max)


def _integer(name: str, bits: int, code: str, *, is_signed: bool) -> Datatype:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    return Datatype(name, bits // 8, code, int, (low, high))


DATATYPES: dict[str, Datatype] = {
    row.name: row
    for row in (
        Datatype("BOOL", 1, "?", bool, None),
        _integer("UINT8", 8, "B", is_signed=False),
        _integer("UINT16", 16, "H", is_signed=False),
        _integer("UINT32", 32, "I", is_signed=False),
        _integer("UINT64", 64, "Q", is_signed=False),
        _integer("INT8", 8, "b", is_signed=True),
        _integer("INT16", 16, "h", is_signed=True),
        _integer("INT32", 32, "i", is_signed=True),
        _integer("INT64", 64, "q", is_signed=True),
        Datatype("FP16", 2, None, None, None),
        Datatype("BF16", 2, None, None, None),
        Datatype("FP32", 4, "f", float, (-_FP32_MAX, _FP32_MAX)),
        Datatype("FP64", 8, "d", float, None),
        Datatype("BYTES", None, None, str, None),
    )
}

_OPEN_BRACKET, _SPACES_AND_BRACKETS = ord("["), frozenset(b"[ \t\r\n")
_LEADING_BRACKETS = re.compile(rb"[\[ \t\r\n]*")
_LENGTH = struct.Struct("<I")
_PATH = re.compile(r" - at `\$((?:\[\d+\])*)`$")
_SHOWN_VALUES = 1 << 20  # bytes of JSON beyond which an error does not look its value up


def has_json_form(datatype: Datatype) -> bool:
    return datatype.element is not None


def pack_json(datatype: Datatype, data: memoryview, shape: tuple[int, ...], count: int) -> bytes:
    """JSON `data`, flat or nested as `shape`, → the bytes of `count` elements.

    Raises TensorDataError for what is not of the datatype, out of its range, or too much or little.
    """
    if datatype.element is None:
        raise TensorDataError(
            f"{datatype.name} has no JSON form: send it in binary (parameters.binary_data_size)"
        )
    depth = _depth(data)
    try:
        values = _decoder(datatype.name, depth).decode(data)
    except msgspec.ValidationError as error:
        raise TensorDataError(_explained(str(error), data, datatype)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # strings are only looked at here
        raise TensorDataError(f"data is not valid JSON: {error}") from None
    if depth != 1:
        values = _flat(values, depth, shape)
    if len(values) != count:
        raise TensorDataError(f"data has {len(values)} elements, shape {list(shape)} needs {count}")
    if datatype.code is None:
        return pack_bytes_elements([value.encode() for value in values])
    try:
        return struct.pack(f"<{count}{datatype.code}", *values)
    except (struct.error, OverflowError):
        raise TensorDataError(_out_of_range(datatype, values)) from None


def unpack_for_json(datatype: Datatype, view: Buffer) -> Sequence[object]:
    """Bytes of a tensor → a flat sequence that msgspec writes as JSON.

    Non-finite numbers become null there (JSON has no NaN), and text that is not UTF-8 gets U+FFFD:
    who needs either exactly asks for binary.
    """
    if datatype.code is None:
        return [str(element, "utf-8", "replace") for element in _bytes_elements(view)]
    assert datatype.num_bytes is not None  # only BYTES has none
    return struct.unpack(f"<{len(view) // datatype.num_bytes}{datatype.code}", view)


def check_binary(datatype: Datatype, view: Buffer, shape: tuple[int, ...], count: int) -> None:
    """Raises TensorDataError unless `view` holds exactly `count` elements of the datatype."""
    if datatype.num_bytes is None:
        num_elements = len(_bytes_elements(view))
        if num_elements != count:
            raise TensorDataError(
                f"{len(view)} bytes hold {num_elements} elements, shape {list(shape)} needs {count}"
            )
        return
    needed = count * datatype.num_bytes
    if len(view) != needed:
        raise TensorDataError(
            f"{len(view)} bytes, shape {list(shape)} of {datatype.name} needs {needed}"
        )
    if datatype.name == "BOOL":
        largest = int(np.frombuffer(view, np.uint8).max(initial=0))
        if largest > 1:  # an engine may do anything with a bool that is neither 0 nor 1
            raise TensorDataError(f"a BOOL byte is {largest}, expected 0 or 1")


def pack_bytes_elements(elements: Sequence[bytes]) -> bytes:
    """BYTES on the wire: each element's length as 4 little-endian bytes, then the element."""
    return b"".join(itertools.chain.from_iterable((_LENGTH.pack(len(e)), e) for e in elements))


def _bytes_elements(view: Buffer) -> list[Buffer]:
    elements: list[Buffer] = []
    offset, end = 0, len(view)
    while offset < end:
        start = offset + _LENGTH.size
        if start > end:
            raise TensorDataError(
                f"element {len(elements)} starts at byte {offset} of {end}: its length is cut off"
            )
        (length,) = _LENGTH.unpack_from(view, offset)
        offset = start + length
        if offset > end:
            raise TensorDataError(
                f"element {len(elements)} claims {length} bytes, {end - start} are left"
            )
        elements.append(view[start:offset])
    return elements


def _depth(data: memoryview) -> int:
    """How deep the first element is nested: 0 for a bare value, 1 for a flat list."""
    if len(data) > 1 and data[0] == _OPEN_BRACKET and data[1] not in _SPACES_AND_BRACKETS:
        return 1  # the common case, without a regular expression
    match = _LEADING_BRACKETS.match(data)
    return match[0].count(b"[") if match else 0


@functools.lru_cache(maxsize=256)
def _decoder(datatype_name: str, depth: int) -> msgspec.json.Decoder[Any]:
    datatype = DATATYPES[datatype_name]
    nested: Any = datatype.element
    if datatype.bounds is not None and datatype.element is int and datatype_name != "UINT64":
        low, high = datatype.bounds  # named with its index by msgspec; it cannot hold 2**64-1
        nested = Annotated[int, msgspec.Meta(ge=int(low), le=int(high))]
    for _ in range(min(depth, _MAX_DEPTH)):
        nested = list[nested]
    return msgspec.json.Decoder(nested)


_MAX_DEPTH = 32  # deeper than any engine's tensors; deeper JSON fails as not of the datatype


def _flat(values: Any, depth: int, shape: tuple[int, ...]) -> Sequence[Any]:
    """Nested lists → one list, after checking that they are nested as `shape` says."""
    if depth != len(shape):
        raise TensorDataError(
            f"data is nested {depth} deep: expected a flat list, or nesting as shape {list(shape)}"
        )
    if depth == 0:
        return [values]
    level = [values]
    for axis, expected in enumerate(shape):
        lengths = set(map(len, level))
        if lengths - {expected}:
            raise TensorDataError(
                f"data has lists of {sorted(lengths)} elements at depth {axis + 1}, "
                f"shape {list(shape)} needs {expected}"
            )
        level = list(itertools.chain.from_iterable(level))
    return level


def _explained(message: str, data: memoryview, datatype: Datatype) -> str:
    """msgspec's complaint with the index as data[...] and, where cheap, the value itself."""
    match = _PATH.search(message)
    if match is None:
        return f"data is not {datatype.name}: {message}"
    value = ""
    if len(data) <= _SHOWN_VALUES:
        found: Any = msgspec.json.decode(data, type=list[msgspec.Raw])
        for index in re.findall(r"\d+", match[1])[:-1]:
            found = msgspec.json.decode(found[int(index)], type=list[msgspec.Raw])
        if match[1]:
            last = int(re.findall(r"\d+", match[1])[-1])
            value = f" is {bytes(found[last])[:60].decode(errors='replace')}"
    return f"data{match[1]}{value}: not {datatype.name}: {message[: match.start()]}"


def _out_of_range(datatype: Datatype, values: Sequence[Any]) -> str:
    assert datatype.bounds is not None  # struct takes every float as FP64 and every bool
    low, high = datatype.bounds
    index = next(i for i, value in enumerate(values) if not low <= value <= high)
    return f"data[{index}] is {values[index]!r}: {datatype.name} holds {low!r} to {high!r}"
