"""Requests' tensors ↔ what a model's spec promises: names, datatypes, shapes, rows, byte counts.

`ModelPlan` owns everything about one ModelSpec that can be worked out before a request comes. It
must never copy a binary tensor: those stay views into the request's body, all the way to ZeroMQ.
Every complaint names the tensor and the numbers.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.errors import RequestError, bad_request
from gateway.inference.body import (
    InputTensor,
    OutputParameters,
    OutputTensor,
    RequestedOutput,
    RequestedOutputParameters,
)
from gateway.inference.datatypes import (
    DATATYPES,
    TensorDataError,
    check_binary,
    has_json_form,
    pack_json,
    unpack_for_json,
)
from scheduler.spec import ModelSpec, TensorSpec, shape_key_of
from scheduler.wire import Buffer, RequestTensors, TensorMeta

if TYPE_CHECKING:
    from gateway.inference.answer_sharing import AnswerSharing  # which takes a plan's Inputs
    from gateway.variants.groups import Group

# Shapes remembered per input: more come only from a client that plays, and are worked out anew.
KNOWN_SHAPES = 256
# Shared inputs up to this size stand in the batch key as they are; larger ones are digested.
PLAIN_KEY_BYTES = 32
# Of one tensor, a size of 0 counting as 1: above any body, and below where NumPy, msgpack and
# Python's own printing of integers give up.
MAX_ELEMENTS = 1 << 40
_NOTHING = memoryview(b"")


class Inputs(msgspec.Struct, frozen=True, gc=False):
    """A request's tensors as the dispatcher takes them: metas and buffers in spec order."""

    tensors: RequestTensors
    buffers: list[Buffer]
    rows: int
    batch_key: str
    shape_key: str
    elements: int


class ShapeClass(NamedTuple):
    """What a request's shapes alone say of it."""

    rows: int
    shape_key: str
    elements: int


class OutputChoice(NamedTuple):
    """One output to send: its position in ModelSpec.outputs, and in which form."""

    position: int
    is_binary: bool


class _Shape(NamedTuple):
    """A shape that fits an input. `rows` is None for an input without a batch axis.

    `meta` is None for BYTES, whose byte count only the data tells.
    """

    rows: int | None
    num_elements: int
    class_shape: tuple[int, ...]  # without the batch axis
    meta: TensorMeta | None


def unknown_tensor(spec: ModelSpec) -> str | None:
    """Why the model cannot be served, where that is for a tensor's datatype."""
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.datatype not in DATATYPES:
            return f"tensor {tensor.name!r} is {tensor.datatype}, which this gateway does not know"
    return None


class ModelPlan:
    """What is worked out once per ModelSpec."""

    def __init__(
        self,
        spec: ModelSpec,
        sharing: "AnswerSharing | None" = None,
        group: "Group | None" = None,
    ) -> None:
        """Requests go to the dispatcher, unless `sharing` has their answers, or a `group`'s member
        is yet to be chosen.
        """
        self.spec = spec
        self.sharing = sharing
        self.key = spec.key
        self.group = group
        self.is_plain = sharing is None and group is None
        self._max_rows = spec.max_batch_rows
        self._inputs = [_InputPlan(tensor, self._max_rows, spec.name) for tensor in spec.inputs]
        self._input_index = {tensor.name: index for index, tensor in enumerate(spec.inputs)}
        self._outputs = [(tensor.name, DATATYPES[tensor.datatype]) for tensor in spec.outputs]
        self._output_index = {tensor.name: index for index, tensor in enumerate(spec.outputs)}
        self._all_json = tuple(OutputChoice(i, False) for i in range(len(spec.outputs)))
        self._all_binary = tuple(OutputChoice(i, True) for i in range(len(spec.outputs)))
        self._only_binary = [
            name for name, datatype in self._outputs if not has_json_form(datatype)
        ]
        self._has_free_shapes = any(plan.is_free for plan in self._inputs)
        # At one row per batch nobody shares anything, so there is nothing to key.
        self._has_shared_inputs = self._max_rows > 1 and any(
            tensor.batch_axis is None for tensor in spec.inputs
        )
        self._fixed_elements = sum(
            math.prod(_without_axis(tensor.shape, tensor.batch_axis))
            for tensor in spec.inputs
            if tensor.batch_axis is not None
        )

    def read_inputs(self, given: Sequence[InputTensor], binary: Buffer = _NOTHING) -> Inputs:
        """The tensors of a request. `binary` is what follows the JSON header, nothing without one.

        Raises RequestError(bad_request).
        """
        plans = self._inputs
        metas: list[TensorMeta | None] = [None] * len(plans)
        buffers: list[Buffer] = [b""] * len(plans)
        shapes: list[_Shape | None] = [None] * len(plans)
        offset = 0
        rows: int | None = None
        rows_of = ""
        for tensor in given:
            name = tensor.name
            index = self._input_index.get(name)
            if index is None:
                raise bad_request(self._no_input(name))
            if metas[index] is not None:
                raise bad_request(f"input {name!r} is given twice")
            plan = plans[index]
            if tensor.datatype != plan.spec.datatype:
                raise bad_request(
                    f"input {name!r} is {tensor.datatype!r}, "
                    f"model {self.spec.name} takes {plan.spec.datatype}"
                )
            shape = plan.known.get(tensor.shape) or plan.fit(tensor.shape)
            if shape.rows is not None and shape.rows != rows:
                if rows is not None:
                    raise bad_request(
                        f"input {name!r} has {shape.rows} rows, input {rows_of!r} has {rows}"
                    )
                rows, rows_of = shape.rows, name
            parameters = tensor.parameters
            if parameters is None or parameters.binary_data_size is None:
                buffer: Buffer = plan.pack(tensor, shape)
            else:
                start, offset = offset, offset + parameters.binary_data_size
                buffer = plan.cut(tensor, shape, binary, start, offset)
            metas[index] = shape.meta or TensorMeta(tensor.shape, len(buffer))
            buffers[index] = buffer
            shapes[index] = shape
        if offset != len(binary):
            raise bad_request(
                f"{len(binary)} bytes follow the JSON header, "
                f"the inputs' binary_data_size say {offset}"
            )
        if None in metas:
            missing = [plan.spec.name for plan, meta in zip(plans, metas, strict=True) if not meta]
            raise bad_request(self._needs(missing))
        tensors = tuple(metas)
        if not self._has_free_shapes and not self._has_shared_inputs:
            return Inputs(tensors, buffers, rows or 1, "", "", self._fixed_elements)  # type: ignore[arg-type]  # no None left
        return self._in_classes(tensors, buffers, rows or 1, shapes)  # type: ignore[arg-type]  # no None left

    def shape_class(self, given: Sequence[InputTensor]) -> ShapeClass | None:
        """Before the tensors' bytes are there. None where something does not fit: `read_inputs`
        will say what.
        """
        try:
            return self.checked_class(given)
        except RequestError:
            return None

    def checked_class(self, given: Sequence[InputTensor]) -> ShapeClass:
        """The same; raises RequestError(bad_request) where a name or a shape does not fit."""
        shapes: dict[int, _Shape] = {}
        for tensor in given:
            index = self._input_index.get(tensor.name)
            if index is None:
                raise bad_request(self._no_input(tensor.name))
            plan = self._inputs[index]
            shapes[index] = plan.known.get(tensor.shape) or plan.fit(tensor.shape)
        if len(shapes) != len(self._inputs):
            absent = [name for name, index in self._input_index.items() if index not in shapes]
            raise bad_request(self._needs(absent))
        ordered = [shapes[index] for index in range(len(shapes))]
        rows = max((shape.rows or 1 for shape in ordered), default=1)
        return ShapeClass(rows, *self._class_of(ordered))

    def first_class(self, rows: int) -> ShapeClass:
        """So many rows of the shape that was profiled first, where nobody says which."""
        if not self._has_free_shapes:
            return ShapeClass(rows, "", self._fixed_elements)
        profile = self.spec.profile.shapes[0]
        return ShapeClass(rows, profile.shape_key, profile.elements)

    def _no_input(self, name: str) -> str:
        return (
            f"model {self.spec.name} has no input {name!r}; it has {', '.join(self._input_index)}"
        )

    def _needs(self, missing: Sequence[str]) -> str:
        return f"model {self.spec.name} needs input {', '.join(map(repr, missing))}: not given"

    def _class_of(self, shapes: Sequence[_Shape]) -> tuple[str, int]:
        """(shape key, elements of one row)."""
        if not self._has_free_shapes:
            return "", self._fixed_elements
        shape_key = shape_key_of(tuple([shape.class_shape for shape in shapes]))
        elements = sum(math.prod(s.class_shape) for s in shapes if s.rows is not None)
        return shape_key, elements

    def _in_classes(
        self, tensors: RequestTensors, buffers: list[Buffer], rows: int, shapes: list[_Shape]
    ) -> Inputs:
        """With the keys that say which other requests may share its batch, and its estimate."""
        shape_key, elements = self._class_of(shapes)
        batch_key = shape_key
        if self._has_shared_inputs:
            for shape, buffer in zip(shapes, buffers, strict=True):
                if shape.rows is None:
                    batch_key += f"|{_key_of(buffer)}"
        return Inputs(tensors, buffers, rows, batch_key, shape_key, elements)

    def choose_outputs(
        self, requested: Sequence[RequestedOutput] | None, *, all_binary: bool
    ) -> tuple[OutputChoice, ...]:
        """Which outputs, in which form: an output's own flag wins over the request's.

        Raises RequestError(bad_request).
        """
        if not requested:
            choices = self._all_binary if all_binary else self._all_json
        else:
            if len(requested) > len(self._outputs):
                raise bad_request(
                    f"{len(requested)} outputs are asked for, model {self.spec.name} has "
                    f"{', '.join(self._output_index)}"
                )
            chosen = []
            for output in requested:
                index = self._output_index.get(output.name)
                if index is None:
                    raise bad_request(
                        f"model {self.spec.name} has no output {output.name!r}; "
                        f"it has {', '.join(self._output_index)}"
                    )
                parameters = output.parameters
                is_binary = None
                if parameters is not None:
                    _check_extensions(output.name, parameters)
                    is_binary = parameters.binary_data
                chosen.append(OutputChoice(index, all_binary if is_binary is None else is_binary))
            choices = tuple(chosen)
            if len({choice.position for choice in choices}) != len(choices):
                names = [output.name for output in requested]
                raise bad_request(f"an output is asked for twice: {', '.join(names)}")
        if self._only_binary:
            for choice in choices:
                name, datatype = self._outputs[choice.position]
                if not choice.is_binary and name in self._only_binary:
                    raise bad_request(
                        f"output {name!r} is {datatype.name}, which has no JSON form: "
                        "ask for it with parameters.binary_data"
                    )
        return choices

    def write_outputs(
        self,
        choices: tuple[OutputChoice, ...],
        tensors: RequestTensors,
        views: Sequence[memoryview],
    ) -> tuple[list[OutputTensor], list[Buffer]]:
        """Outputs for the reply's JSON, and the binary parts that follow it, in the same order.

        Raises ValueError where a worker's bytes are not those of the shape that came with them.
        """
        written: list[OutputTensor] = []
        binary: list[Buffer] = []
        for index, is_binary in choices:
            name, datatype = self._outputs[index]
            view = views[index]
            shape = tensors[index].shape
            element_bytes = datatype.num_bytes
            if element_bytes is not None and math.prod(shape) * element_bytes != len(view):
                raise ValueError(
                    f"output {name!r} of {self.spec.name}: {len(view)} bytes came for "
                    f"{datatype.name} of shape {list(shape)}"
                )
            if is_binary:
                written.append(
                    OutputTensor(name, shape, datatype.name, OutputParameters(len(view)))
                )
                binary.append(view)
            else:
                data = unpack_for_json(datatype, view)
                written.append(OutputTensor(name, shape, datatype.name, data=data))
        return written, binary


class _InputPlan:
    """One input: its spec, and the shapes that were found to fit it."""

    def __init__(self, spec: TensorSpec, max_rows: int, model: str) -> None:
        self.spec = spec
        self.is_free = -1 in _without_axis(spec.shape, spec.batch_axis)
        self._datatype = DATATYPES[spec.datatype]
        self._max_rows = max_rows
        self._model = model
        # All and only shapes that fitted lately, at most KNOWN_SHAPES.
        self.known: dict[tuple[int, ...], _Shape] = {}

    def fit(self, shape: tuple[int, ...]) -> _Shape:
        """Raises RequestError for a shape this input cannot have."""
        spec = self.spec
        fits = len(shape) == len(spec.shape) and all(
            size == expected or (expected == -1 and size >= 0) or axis == spec.batch_axis
            for axis, (size, expected) in enumerate(zip(shape, spec.shape, strict=True))
        )
        if not fits:
            raise bad_request(
                f"input {spec.name!r} has shape {list(shape)}, "
                f"model {self._model} takes {list(spec.shape)}"
            )
        rows = None if spec.batch_axis is None else shape[spec.batch_axis]
        if rows is not None and rows < 1:
            raise bad_request(f"input {spec.name!r} has {rows} rows in shape {list(shape)}")
        if rows is not None and rows > self._max_rows:
            raise bad_request(
                f"input {spec.name!r} has {rows} rows, "
                f"model {self._model} takes at most {self._max_rows} in one request"
            )
        # a 0 beside them would make the product of any sizes fit an empty body
        if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
            raise bad_request(
                f"input {spec.name!r} has shape {list(shape)}: over {MAX_ELEMENTS} elements"
            )
        count = math.prod(shape)
        num_bytes = self._datatype.num_bytes
        meta = None if num_bytes is None else TensorMeta(shape, count * num_bytes)
        fitting = _Shape(rows, count, _without_axis(shape, spec.batch_axis), meta)
        if len(self.known) >= KNOWN_SHAPES:
            self.known.clear()
        self.known[shape] = fitting
        return fitting

    def pack(self, tensor: InputTensor, shape: _Shape) -> bytes:
        data = memoryview(tensor.data)
        if not len(data):
            raise bad_request(f"input {tensor.name!r} has neither data nor binary_data_size")
        try:
            return pack_json(self._datatype, data, tensor.shape, shape.num_elements)
        except TensorDataError as error:
            raise self._complaint(error) from None

    def cut(
        self, tensor: InputTensor, shape: _Shape, binary: Buffer, start: int, end: int
    ) -> Buffer:
        if len(tensor.data):
            raise bad_request(f"input {tensor.name!r} has both data and binary_data_size")
        if end > len(binary):
            raise bad_request(
                f"input {tensor.name!r} has binary_data_size {end - start}, "
                f"{len(binary) - start} bytes are left"
            )
        view = binary[start:end]
        try:
            check_binary(self._datatype, view, tensor.shape, shape.num_elements)
        except TensorDataError as error:
            raise self._complaint(error) from None
        return view

    def _complaint(self, error: TensorDataError) -> RequestError:
        return bad_request(f"input {self.spec.name!r}: {error}")


def _check_extensions(output: str, parameters: RequestedOutputParameters) -> None:
    """Who asked for classes, or for bytes in shared memory, must not be given plain numbers."""
    for name in ("classification", "shared_memory_region"):
        if getattr(parameters, name) is not None:
            raise bad_request(f"output {output!r} asks for {name}: this server does not have it")


def _without_axis(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _key_of(buffer: Buffer) -> str:
    if len(buffer) <= PLAIN_KEY_BYTES:
        return bytes(buffer).hex()
    return hashlib.blake2b(buffer, digest_size=16).hexdigest()
