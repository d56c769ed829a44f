"""Requests' tensors ↔ the arrays of one batch.

Owns the layout of a batch: rows of all requests one after the other along each tensor's batch axis,
then copies of the last row up to the batch size. Everything a client could have got wrong is
checked here, before the engine sees it: an engine reads as many bytes as the shape says.
"""

import itertools
import math
import struct
from collections.abc import Sequence

import numpy as np

from gpuworker.artifact_cache import SampleInputs
from gpuworker.backend import EngineError, InvalidInput
from gpuworker.engines.datatypes import NUMPY_OF_OIP, Array
from gpuworker.sample_inputs import make_inputs
from scheduler.actions import Infer
from scheduler.spec import ModelSpec, TensorSpec
from scheduler.wire import Buffer, RequestTensors, TensorMeta

_LENGTH = struct.Struct("<I")


class InputJoiner:
    """One input of a model: bytes of each request → one array for the batch."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._dtype = NUMPY_OF_OIP[spec.datatype]
        self._is_text = spec.datatype == "BYTES"
        self._is_bool = spec.datatype == "BOOL"

    def join(
        self,
        metas: Sequence[TensorMeta],
        views: Sequence[memoryview],
        rows: Sequence[int],
        batch_size: int,
    ) -> Array:
        """Raises InvalidInput. A batch of one request is a view of its bytes, not a copy."""
        axis = self._spec.batch_axis
        first = metas[0]
        self._check(first, views[0], rows[0])
        if axis is None:
            return self._array(views[0], first.shape)
        for i in range(1, len(metas)):
            if metas[i] != first or rows[i] != rows[0] or len(views[i]) != len(views[0]):
                self._check(metas[i], views[i], rows[i])
                self._check_same_row_shape(metas[i].shape, first.shape, axis)
        num_missing = batch_size - sum(rows)
        if len(views) == 1 and not num_missing:
            return self._array(views[0], first.shape)
        if axis != 0 or self._is_text:
            return self._concatenated(metas, views, axis, num_missing)
        parts: list[memoryview] = list(views)
        if num_missing:
            row_bytes = len(views[-1]) // rows[-1]
            parts += [views[-1][len(views[-1]) - row_bytes :]] * num_missing
        return self._array(memoryview(b"".join(parts)), (batch_size, *first.shape[1:]))

    def _check(self, meta: TensorMeta, view: memoryview, rows: int) -> None:
        spec = self._spec
        shape = meta.shape
        if len(shape) != len(spec.shape):
            raise InvalidInput(
                f"{spec.name}: shape {list(shape)} has {len(shape)} axes, the model's"
                f" {list(spec.shape)} has {len(spec.shape)}"
            )
        for axis, (size, expected) in enumerate(zip(shape, spec.shape, strict=True)):
            if axis == spec.batch_axis:
                if size != rows:
                    raise InvalidInput(
                        f"{spec.name}: shape {list(shape)} has {size} rows on axis {axis}, the"
                        f" batch counts {rows}"
                    )
            elif size < 0 or (expected >= 0 and size != expected):
                raise InvalidInput(
                    f"{spec.name}: shape {list(shape)} does not fit the model's {list(spec.shape)}"
                )
        if len(view) != meta.num_bytes:
            raise InvalidInput(
                f"{spec.name}: {len(view)} bytes came, the header says {meta.num_bytes}"
            )
        if not self._is_text:
            expected_bytes = math.prod(shape) * self._dtype.itemsize
            if len(view) != expected_bytes:
                raise InvalidInput(
                    f"{spec.name}: {len(view)} bytes, {spec.datatype} of shape {list(shape)} takes"
                    f" {expected_bytes}"
                )

    def _check_same_row_shape(
        self, shape: tuple[int, ...], first: tuple[int, ...], axis: int
    ) -> None:
        if shape[:axis] != first[:axis] or shape[axis + 1 :] != first[axis + 1 :]:
            raise InvalidInput(
                f"{self._spec.name}: shapes {list(first)} and {list(shape)} cannot share a batch"
            )

    def _concatenated(
        self,
        metas: Sequence[TensorMeta],
        views: Sequence[memoryview],
        axis: int,
        num_missing: int,
    ) -> Array:
        arrays = [self._array(view, meta.shape) for view, meta in zip(views, metas, strict=True)]
        if num_missing:
            last_row = np.take(arrays[-1], [-1], axis=axis)
            arrays += [last_row] * num_missing
        return np.concatenate(arrays, axis=axis)

    def _array(self, view: memoryview, shape: tuple[int, ...]) -> Array:
        if self._is_text:
            return self._text_array(view, shape)
        if self._is_bool:
            # Any other byte than 0 and 1 would be a bool that is neither true nor false.
            truths: Array = np.frombuffer(view, np.uint8) != 0
            return truths.reshape(shape)
        array = np.frombuffer(view, self._dtype).reshape(shape)
        # Small tensors travel joined in one frame, so they may start at any byte.
        return array if array.flags.aligned else array.copy()

    def _text_array(self, view: memoryview, shape: tuple[int, ...]) -> Array:
        name, count = self._spec.name, math.prod(shape)
        elements: list[str] = []
        offset = 0
        while offset < len(view):
            if offset + _LENGTH.size > len(view):
                raise InvalidInput(f"{name}: element {len(elements)} has a length that is cut off")
            (num_bytes,) = _LENGTH.unpack_from(view, offset)
            offset += _LENGTH.size
            if offset + num_bytes > len(view):
                raise InvalidInput(
                    f"{name}: element {len(elements)} claims {num_bytes} bytes,"
                    f" {len(view) - offset} are left"
                )
            try:
                elements.append(str(view[offset : offset + num_bytes], "utf-8"))
            except UnicodeDecodeError as error:
                raise InvalidInput(
                    f"{name}: element {len(elements)} is not UTF-8, which ONNX strings are"
                ) from error
            offset += num_bytes
        if len(elements) != count:
            raise InvalidInput(
                f"{name}: {len(elements)} elements, shape {list(shape)} takes {count}"
            )
        array = np.empty(count, np.object_)
        array[:] = elements
        return array.reshape(shape)


class BatchLayout:
    """All tensors of one model: what `stage` and `unstage` of a backend do."""

    def __init__(self, spec: ModelSpec, samples: Sequence[SampleInputs] = ()) -> None:
        self._spec = spec
        self._samples = samples  # one for each shape class of the profile, for trials
        self._joiners = [(tensor.name, InputJoiner(tensor)) for tensor in spec.inputs]

    def join(
        self,
        order: Infer,
        tensors: Sequence[RequestTensors],
        views: Sequence[Sequence[memoryview]],
    ) -> dict[str, Array]:
        """The engine's inputs by name. Raises InvalidInput."""
        rows, name = order.rows, self._spec.name
        num_requests = len(rows)
        if not order.request_ids and not rows:
            return self._made_up(order)
        if not num_requests or min(rows) < 1:
            raise InvalidInput(f"{name}: a batch with {list(rows)} rows")
        if not len(tensors) == len(views) == len(order.request_ids) == num_requests:
            raise InvalidInput(
                f"{name}: {len(order.request_ids)} requests with {num_requests} row counts came"
                f" with tensors of {len(tensors)}"
            )
        if sum(rows) > order.batch_size or order.batch_size > self._spec.max_batch_rows:
            raise InvalidInput(
                f"{name}: {sum(rows)} rows in a batch of {order.batch_size}, the model takes up to"
                f" {self._spec.max_batch_rows}"
            )
        num_inputs = len(self._joiners)
        for metas in tensors:
            if len(metas) != num_inputs:
                raise InvalidInput(
                    f"{name}: {len(metas)} tensors of a request, the model has {num_inputs} inputs"
                )
        return {
            input_name: joiner.join(
                [metas[i] for metas in tensors],
                [request_views[i] for request_views in views],
                rows,
                order.batch_size,
            )
            for i, (input_name, joiner) in enumerate(self._joiners)
        }

    def _made_up(self, order: Infer) -> dict[str, Array]:
        """Inputs of a trial."""
        spec = self._spec
        if order.batch_size > spec.max_batch_rows or order.sample >= len(self._samples):
            raise InvalidInput(
                f"{spec.name}: a trial of {order.batch_size} rows of shape class {order.sample}; it"
                f" takes {spec.max_batch_rows}, and has {len(self._samples)} classes"
            )
        return make_inputs(spec.inputs, self._samples[order.sample], rows=order.batch_size)

    def check_outputs(self, outputs: Sequence[Array], batch_size: int) -> None:
        """Raises EngineError where an output cannot be divided among the requests."""
        for tensor, output in zip(self._spec.outputs, outputs, strict=True):
            axis = tensor.batch_axis
            if axis is not None and output.shape[axis : axis + 1] != (batch_size,):
                raise EngineError(
                    f"{self._spec.name}: output {tensor.name} has shape {list(output.shape)} for a"
                    f" batch of {batch_size} on axis {axis}"
                )

    def split(
        self, rows: Sequence[int], outputs: Sequence[Array]
    ) -> tuple[tuple[RequestTensors, ...], list[Buffer]]:
        """Each request's outputs; those along axis 0 are views of the batch's, not copies."""
        if not rows:
            return (), []
        columns = [
            _split_output(tensor, rows, output)
            for tensor, output in zip(self._spec.outputs, outputs, strict=True)
        ]
        if len(columns) == 1:
            metas, buffers = columns[0]
            return tuple([(meta,) for meta in metas]), buffers
        return (
            tuple(zip(*[metas for metas, _ in columns], strict=True)),
            [buffer for row in zip(*[b for _, b in columns], strict=True) for buffer in row],
        )


def _split_output(
    spec: TensorSpec, rows: Sequence[int], output: Array
) -> tuple[list[TensorMeta], list[Buffer]]:
    axis = spec.batch_axis
    num_requests = len(rows)
    if axis is None or (num_requests == 1 and output.shape[axis] == rows[0]):
        whole = _bytes_of(output)
        return [TensorMeta(output.shape, len(whole))] * num_requests, [whole] * num_requests
    if axis != 0 or spec.datatype == "BYTES" or not output.size:
        arrays = np.split(output, np.cumsum(rows), axis=axis)[:num_requests]
        buffers = [_bytes_of(array) for array in arrays]
        metas = [TensorMeta(a.shape, len(b)) for a, b in zip(arrays, buffers, strict=True)]
        return metas, buffers
    whole = _bytes_of(output)
    row_bytes = len(whole) // output.shape[0]
    row_shape = output.shape[1:]
    if num_requests == rows.count(rows[0]):  # the common case: one row each
        num_bytes = rows[0] * row_bytes
        meta = TensorMeta((rows[0], *row_shape), num_bytes)
        starts = range(0, num_requests * num_bytes, num_bytes)
        return [meta] * num_requests, [whole[start : start + num_bytes] for start in starts]
    metas = [TensorMeta((count, *row_shape), count * row_bytes) for count in rows]
    ends = itertools.accumulate(meta.num_bytes for meta in metas)
    return metas, [whole[end - meta.num_bytes : end] for meta, end in zip(metas, ends, strict=True)]


def _bytes_of(array: Array) -> Buffer:
    """Row-major bytes. The array belongs to this batch alone, so that they never change."""
    if array.dtype.hasobject:
        encoded = [str(element).encode() for element in array.reshape(-1)]
        return b"".join([_LENGTH.pack(len(element)) + element for element in encoded])
    if not array.size:
        return b""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
