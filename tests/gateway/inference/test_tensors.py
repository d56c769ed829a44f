import contextlib
import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.inference.body import (
    InputTensor,
    RequestedOutput,
    RequestedOutputParameters,
    TensorParameters,
)
from gateway.inference.datatypes import DATATYPES, pack_bytes_elements
from gateway.inference.tensors import KNOWN_SHAPES, Inputs, ModelPlan, OutputChoice
from scheduler.spec import ModelSpec, TensorSpec
from scheduler.wire import TensorMeta
from tests.gateway.http_doubles import fp32, model_spec

LETTERS = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
}  # fmt: skip


def of(datatype: str, *shape: int, batch_axis: int | None = 0) -> ModelSpec:
    tensor = TensorSpec("x", datatype, shape or (-1, 2), batch_axis)
    return model_spec(inputs=(tensor,))


def json_input(data: Any, *, shape: tuple[int, ...] = (1, 2), **changes: Any) -> InputTensor:
    raw = msgspec.Raw(data if isinstance(data, bytes) else msgspec.json.encode(data))
    tensor = InputTensor("x", shape, "FP32", data=raw)
    return msgspec.structs.replace(tensor, **changes)


def binary_input(num_bytes: int, *, shape: tuple[int, ...] = (1, 2), **changes: Any) -> InputTensor:
    parameters = TensorParameters(num_bytes)
    tensor = InputTensor("x", shape, "FP32", parameters=parameters)
    return msgspec.structs.replace(tensor, **changes)


def read(spec: ModelSpec, *tensors: InputTensor, binary: bytes = b"") -> Inputs:
    return ModelPlan(spec).read_inputs(tensors, memoryview(binary))


def complaint(spec: ModelSpec, *tensors: InputTensor, binary: bytes = b"") -> str:
    with pytest.raises(RequestError) as raised:
        read(spec, *tensors, binary=binary)
    assert raised.value.reason == "bad_request"
    return raised.value.detail


@pytest.mark.parametrize("size", [1 << 41, 1 << 64, 10**4000], ids=["41 bits", "64 bits", "4001"])
@pytest.mark.parametrize("other", [0, 1, 10**4000], ids=["none", "one", "many"])
def test_a_shape_beyond_all_memory_is_refused_also_where_it_holds_nothing(
    size: int, other: int
) -> None:
    message = complaint(of("FP32", -1, -1, -1), binary_input(0, shape=(1, other, size)))
    assert message.startswith(f"input 'x' has shape [1, {other}, {size}"[:200])


# ---------------------------------------------------------------------- JSON data


@pytest.mark.parametrize(("datatype", "letter"), LETTERS.items())
def test_integers_are_packed_at_both_ends_of_their_range(datatype: str, letter: str) -> None:
    info = np.iinfo(datatype.lower())
    low, high = int(info.min), int(info.max)
    inputs = read(of(datatype), json_input([low, high], datatype=datatype))
    assert inputs.buffers == [struct.pack(f"<2{letter}", low, high)]
    assert inputs.tensors == (TensorMeta((1, 2), 2 * info.bits // 8),)


@pytest.mark.parametrize("datatype", LETTERS)
def test_integers_beyond_either_end_are_refused_with_their_value(datatype: str) -> None:
    info = np.iinfo(datatype.lower())
    for value in (int(info.max) + 1, int(info.min) - 1):
        text = complaint(of(datatype), json_input([0, value], datatype=datatype))
        assert text.startswith(f"input 'x': data[1] is {value}: ")
        assert datatype in text


@pytest.mark.parametrize("datatype", LETTERS)
@pytest.mark.parametrize("value", [b"1.5", b"1.0", b"1e3", b"true", b"null", b'"1"'])
def test_integers_are_not_made_of_anything_else(datatype: str, value: bytes) -> None:
    text = complaint(of(datatype), json_input(b"[0," + value + b"]", datatype=datatype))
    assert text.startswith(f"input 'x': data[1] is {value.decode()}: not {datatype}")


def test_floats_and_bools_and_texts_are_packed() -> None:
    assert read(of("FP32"), json_input([1.5, 2])).buffers == [fp32(1.5, 2)]
    assert read(of("FP64"), json_input([0.1, -1e308], datatype="FP64")).buffers == [
        struct.pack("<2d", 0.1, -1e308)
    ]
    assert read(of("BOOL"), json_input([True, False], datatype="BOOL")).buffers == [b"\1\0"]
    inputs = read(of("BYTES"), json_input(["é", ""], datatype="BYTES"))
    assert inputs.buffers == [b"\2\0\0\0\xc3\xa9\0\0\0\0"]
    assert inputs.tensors == (TensorMeta((1, 2), 10),)


@pytest.mark.parametrize(
    ("datatype", "data", "message"),
    [
        ("FP32", [0, 1e39], "data[1] is 1e+39: FP32 holds -3.40"),
        ("FP32", [0, -1e39], "data[1] is -1e+39: FP32 holds"),
        ("FP64", b"[0, 1e400]", "data[1] is 1e400: not FP64: Number out of range"),
        ("BOOL", [True, 1], "data[1] is 1: not BOOL"),
        ("BYTES", ["a", 1], "data[1] is 1: not BYTES"),
        ("BYTES", b'["a", "\xff"]', "data is not valid JSON"),
        ("FP32", b'{"0": 1}', "data is not FP32: Expected `float`, got `object`"),
        ("FP32", [1, 2, 3], "data has 3 elements, shape [1, 2] needs 2"),
        ("FP32", [], "data has 0 elements, shape [1, 2] needs 2"),
        ("FP16", [1, 2], "FP16 has no JSON form"),
        ("BF16", [1, 2], "BF16 has no JSON form"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_tensor_and_numbers(
    datatype: str, data: Any, message: str
) -> None:
    assert f"input 'x': {message}" in complaint(of(datatype), json_input(data, datatype=datatype))


def test_data_may_be_nested_as_the_shape() -> None:
    spec = of("FP32", -1, 2, 1)
    nested = json_input([[[1], [2]], [[3], [4]]], shape=(2, 2, 1))
    assert read(spec, nested).buffers == [fp32(1, 2, 3, 4)]
    spaced = json_input(b"[ [ [1 ], [2]], [[3],\n[4]]]", shape=(2, 2, 1))
    assert read(spec, spaced).buffers == [fp32(1, 2, 3, 4)]
    flat = json_input(b"[ 1,2,3,4]", shape=(2, 2, 1))
    assert read(spec, flat).buffers == [fp32(1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[1, 2], [3]], "data has lists of [1, 2] elements at depth 2, shape [2, 2] needs 2"),
        ([[1, 2]], "data has lists of [1] elements at depth 1, shape [2, 2] needs 2"),
        ([[[1], [2]], [[3], [4]]], "data is nested 3 deep: expected a flat list, or nesting as"),
        ([1, [2, 3, 4]], "data[1] is [2,3,4]: not FP32"),
        ([[1, 2], 3], "data[1] is 3: not FP32: Expected `array`, got `int`"),
    ],
)
def test_ragged_nesting_is_refused(data: Any, message: str) -> None:
    assert message in complaint(of("FP32"), json_input(data, shape=(2, 2)))


def test_a_scalar_is_a_list_of_one_or_bare() -> None:
    sr = TensorSpec("x", "INT64", (), None)
    spec = model_spec(inputs=(TensorSpec("a", "FP32", (-1, 1)), sr))
    a = json_input([0], shape=(1, 1), name="a")
    for data in ([16000], 16000):
        scalar = json_input(data, shape=(), datatype="INT64")
        assert read(spec, a, scalar).buffers[1] == struct.pack("<q", 16000)


@given(
    st.sampled_from(sorted(LETTERS)),
    st.lists(st.integers(-(2**65), 2**65), min_size=1, max_size=6),
)
def test_json_integers_are_numpys_or_refused(datatype: str, values: list[int]) -> None:
    dtype = np.dtype(datatype.lower()).newbyteorder("<")
    info = np.iinfo(dtype)
    spec = of(datatype, -1, len(values))
    tensor = json_input(values, shape=(1, len(values)), datatype=datatype)
    if all(info.min <= value <= info.max for value in values):
        assert read(spec, tensor).buffers == [np.array(values, dtype).tobytes()]
    else:
        assert datatype in complaint(spec, tensor)


@given(st.binary(max_size=40))
def test_any_bytes_as_data_are_packed_or_refused(data: bytes) -> None:
    for datatype in ("FP32", "BOOL", "BYTES", "UINT64"):
        plan = ModelPlan(of(datatype))
        with contextlib.suppress(RequestError):  # and nothing else
            assert plan.read_inputs([json_input(data, datatype=datatype)]).rows == 1


# ---------------------------------------------------------------------- binary data


@pytest.mark.parametrize(
    "datatype", [name for name, row in DATATYPES.items() if row.num_bytes is not None]
)
def test_binary_tensors_are_views_into_the_body(datatype: str) -> None:
    size = DATATYPES[datatype].num_bytes
    assert size is not None
    body = bytes([1, 0] * size)
    inputs = read(of(datatype), binary_input(2 * size, datatype=datatype), binary=body)
    (buffer,) = inputs.buffers
    assert isinstance(buffer, memoryview)
    assert buffer.obj is body
    assert buffer == body


def test_binary_tensors_follow_the_order_of_the_request() -> None:
    spec = model_spec(
        inputs=(TensorSpec("a", "UINT8", (-1, 1)), TensorSpec("b", "UINT8", (-1, 2))),
    )
    b = binary_input(2, name="b", datatype="UINT8")
    a = binary_input(1, name="a", datatype="UINT8", shape=(1, 1))
    inputs = read(spec, b, a, binary=b"\1\2\3")
    assert [bytes(buffer) for buffer in inputs.buffers] == [b"\3", b"\1\2"]
    assert inputs.tensors == (TensorMeta((1, 1), 1), TensorMeta((1, 2), 2))


def test_json_and_binary_may_be_mixed() -> None:
    spec = model_spec(
        inputs=(TensorSpec("a", "UINT8", (-1, 1)), TensorSpec("b", "UINT8", (-1, 2))),
    )
    a = json_input([7], shape=(1, 1), name="a", datatype="UINT8")
    b = binary_input(2, name="b", datatype="UINT8")
    assert [bytes(x) for x in read(spec, a, b, binary=b"\1\2").buffers] == [b"\7", b"\1\2"]


@pytest.mark.parametrize(
    ("num_bytes", "body", "message"),
    [
        (7, b"1234567", "input 'x': 7 bytes, shape [1, 2] of FP32 needs 8"),
        (8, b"1234567", "input 'x' has binary_data_size 8, 7 bytes are left"),
        (8, b"123456789", "9 bytes follow the JSON header, the inputs' binary_data_size say 8"),
    ],
)
def test_byte_counts_that_disagree_are_refused(num_bytes: int, body: bytes, message: str) -> None:
    assert complaint(of("FP32"), binary_input(num_bytes), binary=body) == message


def test_a_tensor_has_data_in_exactly_one_place() -> None:
    both = msgspec.structs.replace(json_input([1, 2]), parameters=TensorParameters(8))
    assert "both data and binary_data_size" in complaint(of("FP32"), both, binary=bytes(8))
    neither = InputTensor("x", (1, 2), "FP32")
    assert "neither data nor binary_data_size" in complaint(of("FP32"), neither)


def test_a_bool_byte_is_0_or_1() -> None:
    text = complaint(of("BOOL"), binary_input(2, datatype="BOOL"), binary=b"\1\2")
    assert text == "input 'x': a BOOL byte is 2, expected 0 or 1"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (pack_bytes_elements([b"a"]), "5 bytes hold 1 elements, shape [1, 2] needs 2"),
        (pack_bytes_elements([b"a", b"b", b""]), "14 bytes hold 3 elements, shape [1, 2] needs 2"),
        (b"\1\0\0\0a\0\0\0", "element 1 starts at byte 5 of 8: its length is cut off"),
        (b"\1\0\0\0a\xff\xff\xff\xff!", "element 1 claims 4294967295 bytes, 1 are left"),
    ],
)
def test_bytes_elements_that_do_not_add_up_are_refused(body: bytes, message: str) -> None:
    tensor = binary_input(len(body), datatype="BYTES")
    assert complaint(of("BYTES"), tensor, binary=body) == f"input 'x': {message}"


def test_bytes_elements_may_hold_anything() -> None:
    body = pack_bytes_elements([b"\xff\0", b""])
    inputs = read(of("BYTES"), binary_input(len(body), datatype="BYTES"), binary=body)
    assert inputs.tensors == (TensorMeta((1, 2), len(body)),)


# ---------------------------------------------------------------------- names, shapes, rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "z"}, "model mlp has no input 'z'; it has x"),
        ({"datatype": "FP64"}, "input 'x' is 'FP64', model mlp takes FP32"),
        ({"datatype": "float"}, "input 'x' is 'float', model mlp takes FP32"),
        ({"shape": (1, 3)}, "input 'x' has shape [1, 3], model mlp takes [-1, 2]"),
        ({"shape": (2,)}, "input 'x' has shape [2], model mlp takes [-1, 2]"),
        ({"shape": (1, 2, 1)}, "input 'x' has shape [1, 2, 1], model mlp takes [-1, 2]"),
        ({"shape": (0, 2)}, "input 'x' has 0 rows in shape [0, 2]"),
        ({"shape": (-1, 2)}, "input 'x' has -1 rows in shape [-1, 2]"),
        ({"shape": (5, 2)}, "input 'x' has 5 rows, model mlp takes at most 4 in one request"),
    ],
)
def test_what_the_model_does_not_take_is_refused(changes: dict[str, Any], message: str) -> None:
    assert complaint(of("FP32"), json_input([1, 2], **changes)) == message


def test_a_free_axis_takes_any_size_but_a_negative_one() -> None:
    spec = of("FP32", -1, -1)
    assert read(spec, json_input([1, 2, 3], shape=(1, 3))).tensors[0].shape == (1, 3)
    assert read(spec, json_input([], shape=(1, 0))).tensors == (TensorMeta((1, 0), 0),)
    assert "has shape [1, -3]" in complaint(spec, json_input([1, 2, 3], shape=(1, -3)))
    # a claim of a terabyte costs nothing
    assert "needs 1000000000000" in complaint(spec, json_input([1], shape=(1, 10**12)))


def test_missing_and_doubled_inputs_are_named() -> None:
    spec = model_spec(inputs=tuple(TensorSpec(name, "FP32", (-1, 2)) for name in "abc"))
    a = json_input([1, 2], name="a")
    assert complaint(spec, a) == "model mlp needs input 'b', 'c': not given"
    assert complaint(spec, a, a) == "input 'a' is given twice"


def test_rows_must_agree_between_inputs() -> None:
    spec = model_spec(
        inputs=(TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (2, -1), 1)),
    )
    a = json_input([1, 2, 3], name="a", shape=(3, 1))
    assert read(spec, a, json_input([0] * 6, name="b", shape=(2, 3))).rows == 3
    text = complaint(spec, a, json_input([0] * 4, name="b", shape=(2, 2)))
    assert text == "input 'b' has 2 rows, input 'a' has 3"


def test_a_model_without_a_batch_axis_takes_one_row() -> None:
    spec = model_spec(
        inputs=(TensorSpec("x", "FP32", (1, 2), None),), batch_sizes=(1,), runs_exact_batch=False
    )
    inputs = read(spec, json_input([1, 2]))
    assert (inputs.rows, inputs.batch_key, inputs.shape_key) == (1, "", "")


# ---------------------------------------------------------------------- classes of requests


def test_fixed_shapes_have_no_keys() -> None:
    inputs = read(of("FP32", -1, 3, 5), json_input([0] * 30, shape=(2, 3, 5)))
    assert (inputs.batch_key, inputs.shape_key, inputs.elements) == ("", "", 15)


def test_free_shapes_make_the_key_and_the_elements_of_one_row() -> None:
    spec = model_spec(
        inputs=(TensorSpec("x", "UINT8", (-1, 3, -1)), TensorSpec("n", "UINT8", (-1, 1)))
    )
    x = binary_input(24, shape=(2, 3, 4), datatype="UINT8")
    n = binary_input(2, name="n", shape=(2, 1), datatype="UINT8")
    inputs = read(spec, x, n, binary=bytes(26))
    assert (inputs.batch_key, inputs.shape_key, inputs.elements) == ("3x4;1", "3x4;1", 13)


def test_requests_share_a_batch_only_with_equal_shared_inputs() -> None:
    spec = model_spec(
        inputs=(
            TensorSpec("x", "FP32", (-1, 2)),
            TensorSpec("sr", "INT64", (), None),
            TensorSpec("w", "FP32", (-1,), None),
        )
    )

    def key(sr: int, *w: float) -> str:
        return read(
            spec,
            json_input([1, 2]),
            json_input([sr], name="sr", shape=(), datatype="INT64"),
            json_input(w, name="w", shape=(len(w),)),
        ).batch_key

    assert key(16000, 1) == key(16000, 1)
    assert key(16000, 1) != key(8000, 1)
    assert key(16000, *range(100)) == key(16000, *range(100))
    assert key(16000, *range(100)) != key(16000, *range(1, 101))
    assert len(key(16000, *range(100))) < 100  # a digest, not the tensor


def test_shared_inputs_of_a_model_that_never_batches_are_not_keyed() -> None:
    spec = model_spec(
        inputs=(TensorSpec("x", "FP32", (1, 2), None),), batch_sizes=(1,), runs_exact_batch=False
    )
    assert read(spec, json_input([1, 2])).batch_key == read(spec, json_input([3, 4])).batch_key


def test_a_client_that_plays_with_shapes_does_not_fill_the_memory() -> None:
    plan = ModelPlan(of("UINT8", -1, -1))
    for size in range(3 * KNOWN_SHAPES):
        tensor = binary_input(size, shape=(1, size), datatype="UINT8")
        plan.read_inputs([tensor], memoryview(bytes(size)))
    assert sum(len(each.known) for each in plan._inputs) <= KNOWN_SHAPES


# ---------------------------------------------------------------------- outputs

TWO_OUTPUTS = model_spec(
    outputs=(TensorSpec("y", "FP32", (-1, 2)), TensorSpec("label", "BYTES", (-1, 1)))
)


def asked(name: str, binary: bool | None = None) -> RequestedOutput:
    return RequestedOutput(name, RequestedOutputParameters(binary))


def test_outputs_are_all_unless_some_are_asked_for() -> None:
    plan = ModelPlan(TWO_OUTPUTS)
    everything = (OutputChoice(0, False), OutputChoice(1, False))
    assert plan.choose_outputs(None, all_binary=False) == everything
    assert plan.choose_outputs([], all_binary=False) == everything
    assert plan.choose_outputs(None, all_binary=True) == (
        OutputChoice(0, True),
        OutputChoice(1, True),
    )
    assert plan.choose_outputs([RequestedOutput("label")], all_binary=False) == (
        OutputChoice(1, False),
    )


def test_an_outputs_own_form_wins_over_the_requests() -> None:
    choices = ModelPlan(TWO_OUTPUTS).choose_outputs(
        [asked("label", False), asked("y")], all_binary=True
    )
    assert choices == (OutputChoice(1, False), OutputChoice(0, True))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["z"], "model mlp has no output 'z'; it has y, label"),
        (["y", "y"], "an output is asked for twice: y, y"),
        (["y"] * 9, "9 outputs are asked for, model mlp has y, label"),
    ],
)
def test_outputs_that_cannot_be_sent_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(RequestError) as raised:
        ModelPlan(TWO_OUTPUTS).choose_outputs([asked(n) for n in names], all_binary=False)
    assert raised.value.detail == message


def test_an_output_without_a_json_form_is_refused_before_it_is_computed() -> None:
    plan = ModelPlan(model_spec(outputs=(TensorSpec("h", "FP16", (-1, 2)),)))
    with pytest.raises(RequestError, match="output 'h' is FP16, which has no JSON form"):
        plan.choose_outputs(None, all_binary=False)
    assert plan.choose_outputs([asked("h", True)], all_binary=False) == (OutputChoice(0, True),)


def written(spec: ModelSpec, shape: tuple[int, ...], data: bytes) -> Any:
    plan = ModelPlan(spec)
    choices = plan.choose_outputs(None, all_binary=False)
    outputs, binary = plan.write_outputs(
        choices, (TensorMeta(shape, len(data)),), [memoryview(data)]
    )
    assert binary == []
    return msgspec.json.decode(msgspec.json.encode(outputs))[0]


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    output = written(of_output("FP32"), (1, 3), fp32(math.nan, -math.inf, 0.5))
    assert output == {"name": "y", "shape": [1, 3], "datatype": "FP32", "data": [None, None, 0.5]}


def test_texts_that_are_not_utf8_have_replacement_characters_in_json() -> None:
    output = written(of_output("BYTES"), (1, 2), pack_bytes_elements([b"a\xff", "é".encode()]))
    assert output["data"] == ["a\ufffd", "é"]


@pytest.mark.parametrize(("datatype", "letter"), [*LETTERS.items(), ("BOOL", "?"), ("FP64", "d")])
def test_outputs_come_back_in_json_as_they_were(datatype: str, letter: str) -> None:
    output = written(of_output(datatype), (1, 2), struct.pack(f"<2{letter}", 1, 0))
    assert output["data"] == [1, 0]


def of_output(datatype: str) -> ModelSpec:
    return model_spec(outputs=(TensorSpec("y", datatype, (-1, -1)),))


def test_binary_outputs_are_views_in_the_order_asked_for() -> None:
    plan = ModelPlan(TWO_OUTPUTS)
    choices = plan.choose_outputs([asked("label", True), asked("y", True)], all_binary=False)
    y, label = memoryview(fp32(1, 2)), memoryview(pack_bytes_elements([b"cat"]))
    outputs, binary = plan.write_outputs(
        choices, (TensorMeta((1, 2), 8), TensorMeta((1, 1), 7)), [y, label]
    )
    assert binary == [label, y]
    assert binary[1] is y
    assert [output.parameters and output.parameters.binary_data_size for output in outputs] == [
        7,
        8,
    ]
