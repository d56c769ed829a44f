"""Raw mode of the binary tensor extension: a body that is one tensor, and nothing else.

It owns how the tensor's shape follows from the model and the number of bytes. It must never accept
what could mean two shapes. (`Inference-Header-Content-Length: 0` asks for it.)
"""

import math

from gateway.errors import bad_request
from gateway.inference.body import InferBody, InputTensor, RequestParameters, TensorParameters
from gateway.inference.datatypes import DATATYPES, pack_bytes_elements
from scheduler.spec import ModelSpec, TensorSpec
from scheduler.wire import Buffer


def raw_request(spec: ModelSpec, body: bytes) -> tuple[InferBody, Buffer]:
    """The request such a body stands for: one row, all outputs in binary. And its binary part.

    Raises RequestError(bad_request).
    """
    if len(spec.inputs) != 1:
        raise bad_request(
            f"raw mode (Inference-Header-Content-Length: 0) is for models with one input, "
            f"model {spec.name} has {len(spec.inputs)}"
        )
    tensor = spec.inputs[0]
    element_bytes = DATATYPES[tensor.datatype].num_bytes
    if element_bytes is None:  # the body is the one element, without the length before it
        body, num_elements = pack_bytes_elements([body]), 1
    else:
        num_elements, num_left = divmod(len(body), element_bytes)
        if num_left:
            raise bad_request(
                f"input {tensor.name!r}: {len(body)} bytes are no whole number of "
                f"{tensor.datatype} elements of {element_bytes} bytes"
            )
    request = InferBody(
        inputs=[
            InputTensor(
                tensor.name,
                _shape_for(tensor, num_elements),
                tensor.datatype,
                TensorParameters(len(body)),
            )
        ],
        parameters=RequestParameters(binary_data_output=True),
    )
    return request, memoryview(body)


def _shape_for(tensor: TensorSpec, num_elements: int) -> tuple[int, ...]:
    shape = list(tensor.shape)
    if tensor.batch_axis is not None:
        shape[tensor.batch_axis] = 1
    free = [axis for axis, size in enumerate(shape) if size == -1]
    if len(free) > 1:
        raise bad_request(
            f"input {tensor.name!r} of shape {list(tensor.shape)} has {len(free)} free sizes: "
            "its bytes alone do not tell them, raw mode cannot be used"
        )
    if free:
        row = math.prod(size for size in shape if size != -1)
        if row == 0 or num_elements % row:
            raise bad_request(
                f"input {tensor.name!r}: {num_elements} elements do not fill shape {shape}"
            )
        shape[free[0]] = num_elements // row
    return tuple(shape)
