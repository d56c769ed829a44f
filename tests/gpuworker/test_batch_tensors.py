import numpy as np
import pytest

from gpuworker.backend import EngineError, InvalidInput
from gpuworker.engines.batch_tensors import BatchLayout
from gpuworker.engines.datatypes import NUMPY_OF_OIP, Array
from scheduler.spec import ModelProfile, ModelSpec, TensorSpec
from scheduler.wire import TensorMeta
from tests.gpuworker.compiled import order, packed


def layout(
    inputs: list[TensorSpec], outputs: list[TensorSpec] | None = None, max_rows: int = 8
) -> BatchLayout:
    spec = ModelSpec(
        name="m",
        version="1",
        content_hash="",
        platform="test",
        inputs=tuple(inputs),
        outputs=tuple(outputs or []),
        batch_sizes=(1, max_rows) if max_rows > 1 else (1,),
        runs_exact_batch=True,
        weights_bytes=0,
        profile=ModelProfile(load_ns=0, shapes=()),
    )
    return BatchLayout(spec)


def joined(
    spec: TensorSpec,
    arrays: list[Array],
    batch_size: int | None = None,
    rows: list[int] | None = None,
) -> Array:
    """One input of several requests → the engine's array."""
    if rows is None:
        axis = spec.batch_axis
        rows = [1 if axis is None else array.shape[axis] for array in arrays]
    tensors, views = zip(*[packed([array]) for array in arrays], strict=True)
    inputs = layout([spec]).join(order("m", rows, batch_size), tensors, views)
    return inputs[spec.name]


def numbers(*shape: int, start: int = 0) -> Array:
    return np.arange(start, start + int(np.prod(shape)), dtype=np.float32).reshape(shape)


FREE = TensorSpec("x", "FP32", (-1, 3), 0)


def test_one_request_is_viewed_and_not_copied() -> None:
    content = numbers(2, 3).tobytes()
    views = [[memoryview(content)]]
    meta = (TensorMeta((2, 3), len(content)),)
    array = layout([FREE]).join(order("m", [2]), [meta], views)["x"]
    assert np.shares_memory(array, np.frombuffer(content, np.float32))


def test_bytes_that_begin_at_an_odd_address_are_copied_to_an_even_one() -> None:
    """Small tensors travel joined in one frame."""
    frame = b"\x01" + numbers(1, 3).tobytes()
    meta = (TensorMeta((1, 3), 12),)
    array = layout([FREE]).join(order("m", [1]), [meta], [[memoryview(frame)[1:]]])["x"]
    assert array.flags.aligned
    assert np.array_equal(array, numbers(1, 3))


def test_requests_stand_in_their_order_with_all_their_rows() -> None:
    parts = [numbers(2, 3), numbers(1, 3, start=6), numbers(3, 3, start=9)]
    assert np.array_equal(joined(FREE, parts), numbers(6, 3))


@pytest.mark.parametrize("rows", [[1], [2, 1], [1, 1, 1]])
def test_missing_rows_are_copies_of_the_last(rows: list[int]) -> None:
    parts = [numbers(count, 3, start=i) for i, count in enumerate(rows)]
    array = joined(FREE, parts, batch_size=4)
    assert array.shape == (4, 3)
    given = np.concatenate(parts)
    assert np.array_equal(array[: len(given)], given)
    assert all(np.array_equal(row, given[-1]) for row in array[len(given) :])


def test_rows_on_another_axis_are_joined_and_padded_there() -> None:
    spec = TensorSpec("state", "FP32", (2, -1, 4), 1)
    parts = [numbers(2, 2, 4), numbers(2, 1, 4, start=100)]
    array = joined(spec, parts, batch_size=5)
    expected = np.concatenate([*parts, parts[1], parts[1]], axis=1)
    assert np.array_equal(array, expected)


def test_a_shared_input_is_taken_from_the_first_request() -> None:
    spec = TensorSpec("sr", "INT64", (), None)
    array = joined(spec, [np.array(16_000), np.array(16_000)])
    assert array.shape == ()
    assert array == 16_000


@pytest.mark.parametrize("datatype", sorted(set(NUMPY_OF_OIP) - {"BYTES"}))
def test_every_datatype_arrives_as_its_own(datatype: str) -> None:
    values = np.array([[0, 1], [1, 0]]).astype(NUMPY_OF_OIP[datatype])
    array = joined(TensorSpec("x", datatype, (-1, 2), 0), [values[:1], values[1:]])
    assert array.dtype == values.dtype
    assert np.array_equal(array, values)


def test_any_nonzero_byte_is_true() -> None:
    content = bytes([0, 1, 2, 255])
    meta = (TensorMeta((1, 4), 4),)
    spec = TensorSpec("x", "BOOL", (-1, 4), 0)
    array = layout([spec]).join(order("m", [1]), [meta], [[memoryview(content)]])["x"]
    assert array.view(np.uint8).tolist() == [[0, 1, 1, 1]]


def text(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


TEXT = TensorSpec("t", "BYTES", (-1, 2), 0)


def joined_text(contents: list[bytes], shape: tuple[int, ...], batch_size: int) -> Array:
    metas = [(TensorMeta(shape, len(content)),) for content in contents]
    views = [[memoryview(content)] for content in contents]
    rows = [shape[0]] * len(contents)
    return layout([TEXT]).join(order("m", rows, batch_size), metas, views)["t"]


def test_text_is_joined_and_padded() -> None:
    contents = [text(b"a", b""), text("ü".encode(), b"longer")]
    array = joined_text(contents, (1, 2), 3)
    assert array.tolist() == [["a", ""], ["ü", "longer"], ["ü", "longer"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text(b"a"), r"t: 1 elements, shape \[1, 2\] takes 2"),
        (text(b"a", b"b", b"c"), r"t: 3 elements, shape \[1, 2\] takes 2"),
        (text(b"a") + b"\x01\0", "t: element 1 has a length that is cut off"),
        (text(b"a") + b"\x09\0\0\0b", "t: element 1 claims 9 bytes, 1 are left"),
        (text(b"a", b"\xff"), "t: element 1 is not UTF-8"),
    ],
)
def test_text_that_is_not_what_it_claims_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        joined_text([content], (1, 2), 1)


@pytest.mark.parametrize(
    ("shape", "num_bytes", "message"),
    [
        ((1, 3, 1), 12, r"x: shape \[1, 3, 1\] has 3 axes, the model's \[-1, 3\] has 2"),
        ((1, 4), 16, r"x: shape \[1, 4\] does not fit the model's \[-1, 3\]"),
        ((2, 3), 24, r"x: shape \[2, 3\] has 2 rows on axis 0, the batch counts 1"),
        ((1, 3), 8, r"x: 8 bytes, FP32 of shape \[1, 3\] takes 12"),
        ((1, 3), 16, r"x: 16 bytes, FP32 of shape \[1, 3\] takes 12"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_name_and_numbers(
    shape: tuple[int, ...], num_bytes: int, message: str
) -> None:
    meta = (TensorMeta(shape, num_bytes),)
    with pytest.raises(InvalidInput, match=message):
        layout([FREE]).join(order("m", [1]), [meta], [[memoryview(bytes(num_bytes))]])


def test_every_request_is_checked_and_not_only_the_first() -> None:
    good, bad = (TensorMeta((1, 3), 12),), (TensorMeta((1, 3), 8),)
    views = [[memoryview(bytes(12))], [memoryview(bytes(8))]]
    with pytest.raises(InvalidInput, match="x: 8 bytes"):
        layout([FREE]).join(order("m", [1, 1]), [good, bad], views)


def test_bytes_must_be_as_many_as_the_header_says() -> None:
    same = (TensorMeta((1, 3), 12),)
    views = [[memoryview(bytes(12))], [memoryview(bytes(11))]]
    with pytest.raises(InvalidInput, match="11 bytes came, the header says 12"):
        layout([FREE]).join(order("m", [1, 1]), [same, same], views)


def test_requests_of_different_row_shapes_do_not_share_a_batch() -> None:
    spec = TensorSpec("x", "FP32", (-1, -1), 0)
    with pytest.raises(InvalidInput, match=r"shapes \[1, 2\] and \[1, 3\] cannot share"):
        joined(spec, [numbers(1, 2), numbers(1, 3)])


def test_a_negative_size_is_refused() -> None:
    spec = TensorSpec("x", "FP32", (-1, -1, -1), 0)
    meta = (TensorMeta((1, -2, -2), 16),)
    with pytest.raises(InvalidInput, match="does not fit"):
        layout([spec]).join(order("m", [1]), [meta], [[memoryview(bytes(16))]])


@pytest.mark.parametrize(
    ("rows", "batch_size", "message"),
    [
        ([], 1, "a trial of 1 rows of shape class 0; it takes 8, and has 0 classes"),
        ([1, 0], 2, r"a batch with \[1, 0\] rows"),
        ([2, 1], 2, "3 rows in a batch of 2, the model takes up to 8"),
        ([1], 9, "1 rows in a batch of 9, the model takes up to 8"),
    ],
)
def test_an_impossible_batch_is_refused(rows: list[int], batch_size: int, message: str) -> None:
    tensors = [(TensorMeta((count, 3), 12 * count),) for count in rows]
    views = [[memoryview(bytes(12 * count))] for count in rows]
    with pytest.raises(InvalidInput, match=message):
        layout([FREE]).join(order("m", rows, batch_size), tensors, views)


def test_every_request_needs_every_input() -> None:
    meta = TensorMeta((1, 3), 12)
    for tensors in ([()], [(meta, meta)]):
        with pytest.raises(InvalidInput, match=r"m: \d tensors of a request, the model has 1"):
            layout([FREE]).join(order("m", [1]), tensors, [[memoryview(bytes(12))] * 2])
    with pytest.raises(InvalidInput, match="1 requests with 1 row counts came with tensors of 2"):
        layout([FREE]).join(order("m", [1]), [(meta,), (meta,)], [[memoryview(bytes(12))]] * 2)


def split(spec: TensorSpec, rows: list[int], output: Array) -> list[tuple[tuple[int, ...], bytes]]:
    metas, buffers = layout([], [spec]).split(rows, [output])
    shapes = [shape for ((shape, _),) in [tuple((m.shape, m.num_bytes) for m in r) for r in metas]]
    return list(zip(shapes, [bytes(buffer) for buffer in buffers], strict=True))


Y = TensorSpec("y", "FP32", (-1, 3), 0)


@pytest.mark.parametrize("rows", [[1, 1, 1], [2, 1], [1, 2], [3], [1, 1]])
def test_outputs_are_divided_in_order_and_padding_is_dropped(rows: list[int]) -> None:
    output = numbers(3, 3)
    start = 0
    for count, (shape, content) in zip(rows, split(Y, rows, output), strict=True):
        assert shape == (count, 3)
        assert content == output[start : start + count].tobytes()
        start += count


def test_outputs_along_axis_0_are_views() -> None:
    output = numbers(2, 3)
    _, buffers = layout([], [Y]).split([1, 1], [output])
    assert all(np.shares_memory(np.frombuffer(buffer, np.uint8), output) for buffer in buffers)


def test_outputs_along_another_axis_are_divided_there() -> None:
    spec = TensorSpec("y", "FP32", (2, -1, 3), 1)
    output = numbers(2, 4, 3)
    assert split(spec, [1, 2], output) == [
        ((2, 1, 3), output[:, :1].tobytes()),
        ((2, 2, 3), output[:, 1:3].tobytes()),
    ]


def test_an_output_without_rows_goes_to_everybody() -> None:
    spec = TensorSpec("y", "INT64", (2,), None)
    output = np.array([7, 8])
    assert split(spec, [1, 2], output) == [((2,), output.tobytes())] * 2


@pytest.mark.parametrize("datatype", ["FP16", "BOOL", "UINT8", "FP64"])
def test_outputs_of_any_width_are_raw_bytes(datatype: str) -> None:
    output = np.array([[1, 0], [0, 1]]).astype(NUMPY_OF_OIP[datatype])
    spec = TensorSpec("y", datatype, (-1, 2), 0)
    assert split(spec, [1, 1], output) == [((1, 2), row.tobytes()) for row in output]


def test_text_goes_out_as_lengths_and_bytes() -> None:
    output = np.array([["a", "ü"], ["", "xyz"]], np.object_)
    spec = TensorSpec("y", "BYTES", (-1, 2), 0)
    assert split(spec, [1, 1], output) == [
        ((1, 2), text(b"a", "ü".encode())),
        ((1, 2), text(b"", b"xyz")),
    ]


def test_empty_outputs_are_divided_too() -> None:
    spec = TensorSpec("y", "FP32", (-1, -1), 0)
    assert split(spec, [1, 1], np.empty((2, 0), np.float32)) == [((1, 0), b"")] * 2


def test_two_outputs_are_sent_request_by_request() -> None:
    outputs = [numbers(2, 3), numbers(2, 1, start=50)]
    specs = [Y, TensorSpec("z", "FP32", (-1, 1), 0)]
    metas, buffers = layout([], specs).split([1, 1], outputs)
    assert [tuple(meta.shape for meta in request) for request in metas] == [((1, 3), (1, 1))] * 2
    assert [bytes(buffer) for buffer in buffers] == [
        outputs[0][0].tobytes(),
        outputs[1][0].tobytes(),
        outputs[0][1].tobytes(),
        outputs[1][1].tobytes(),
    ]


def test_an_output_that_does_not_follow_the_batch_is_the_engines_error() -> None:
    with pytest.raises(EngineError, match=r"m: output y has shape \[3, 3\] for a batch of 2"):
        layout([], [Y]).check_outputs([numbers(3, 3)], 2)
    with pytest.raises(EngineError, match="for a batch of 1"):
        layout([], [Y]).check_outputs([np.array(1.0)], 1)
    layout([], [Y]).check_outputs([numbers(2, 3)], 2)
