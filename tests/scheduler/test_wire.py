"""Every message survives the wire; nothing that comes over it can do more than raise WireError."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.actions import (
    NO_SPAN,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    Span,
)
from scheduler.spec import ModelSpec
from scheduler.wire import (
    CLOCK_LIMITS,
    SMALL_TENSOR_BYTES,
    WIRE_VERSION,
    AddModel,
    Buffer,
    CannotOffer,
    DeviceSample,
    DropModel,
    Goodbye,
    Hello,
    Offer,
    Order,
    Ping,
    Pong,
    Refused,
    Rejoin,
    Report,
    TensorMeta,
    ToGateway,
    ToWorker,
    Unreadable,
    Welcome,
    WireError,
    decode_to_gateway,
    decode_to_worker,
    encode,
    pack_tensors,
    unpack_tensors,
)
from tests.scheduler.story import device_spec, model_spec

METAS = ((TensorMeta((1, 4), 16), TensorMeta((), 0)), (TensorMeta((2**40, 3), 2**62),))
SPAN = Span(-1, 2**62, 12)
TO_WORKER: list[ToWorker] = [
    Welcome("w#1234-1", {"m": "its content differs"}),
    Welcome("w#1234-1", {}),
    Welcome("w#1234-1", {}, 2**40, {"m/2": "m"}),
    AddModel(model_spec("m/2")),
    DropModel("m/2"),
    Refused("wire version 9"),
    Rejoin(),
    Ping(0),
    Ping(2**63 - 1),
    Order(Infer(1, "m", 4, (7, 8), (1, 2), 10, 20, 5), METAS),
    Order(Infer(1, "m", 4, (), (), 10, 20, 5, 2)),
    Order(LoadWeights(2, "größer/模型", 3, -1, 2**62, 0)),
    Order(EvictWeights(3, "", 0, 0)),
    Unreadable("header frame is empty"),
    Goodbye("draining"),
]
TO_GATEWAY: list[ToGateway] = [
    Hello("w", "abc", device_spec(), (model_spec(), model_spec("n", exec_ms={1: 1})), ("m",)),
    Hello("", "", device_spec(shared=True), (), ()),
    Offer(model_spec("m/2")),
    CannotOffer("m/2", "no such version here", False),
    Pong(1, 2, 3),
    Pong(1, 2, 3, DeviceSample()),
    Pong(1, 2, 3, DeviceSample(2**63, 299_000, 1980, 100, 2**36, 2**37, -5, CLOCK_LIMITS)),
    Report(InferResult(1, Code.OK, "", 5, SPAN, SPAN, NO_SPAN), METAS),
    Report(InferResult(1, Code.OK, "", 5, SPAN, SPAN, SPAN, 1410, 299_000), METAS),
    Report(InferResult(1, Code.ENGINE_ERROR, "Ünicode \x00 text")),
    Report(LoadResult(2, Code.PAGES_EXHAUSTED, "need 13 pages, 9 free", 5, SPAN)),
    Report(EvictResult(3, Code.WEIGHTS_IN_USE, "", 5)),
    *[Report(EvictResult(3, code)) for code in Code],
    Unreadable("nonsense"),
    Goodbye("SIGTERM"),
]


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda m: type(m).__name__)
def test_messages_to_a_worker_survive(message: ToWorker) -> None:
    assert decode_to_worker(encode(message)) == message


@pytest.mark.parametrize("message", TO_GATEWAY, ids=lambda m: type(m).__name__)
def test_messages_to_the_gateway_survive(message: ToGateway) -> None:
    assert decode_to_gateway(bytearray(encode(message))) == message


# What a worker of the first release says.
OLD_PONG = ("pong", 1, 2, 3)
OLD_REPORT = ("report", ("inferred", 1, Code.OK, "", 5, SPAN, SPAN, NO_SPAN), ())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OLD_PONG, Pong(1, 2, 3)),
        (OLD_REPORT, Report(InferResult(1, Code.OK, "", 5, SPAN, SPAN, NO_SPAN))),
    ],
)
def test_a_worker_that_knows_no_telemetry_is_understood(
    old: tuple[object, ...], new: ToGateway
) -> None:
    header = bytes([WIRE_VERSION]) + msgspec.msgpack.encode(old)
    assert decode_to_gateway(header) == new


def test_a_gateway_that_knows_no_telemetry_understands_what_it_knows() -> None:
    """Array encoding: fields that were appended are passed over (adr/0003)."""

    class OldPong(msgspec.Struct, tag="pong", array_like=True):
        ping_sent_ns: int
        received_ns: int
        sent_ns: int

    header = encode(Pong(1, 2, 3, DeviceSample(power_mw=70_000)))
    assert msgspec.msgpack.decode(header[1:], type=OldPong) == OldPong(1, 2, 3)


def test_a_catalogue_survives_as_json() -> None:
    specs = [model_spec(), model_spec("broken", unavailable_reason="why", shapes=())]
    assert msgspec.json.decode(msgspec.json.encode(specs), type=list[ModelSpec]) == specs


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda m: type(m).__name__)
def test_every_truncation_to_a_worker_is_refused(message: ToWorker) -> None:
    header = encode(message)
    for length in range(len(header)):
        with pytest.raises(WireError):
            decode_to_worker(header[:length])


@pytest.mark.parametrize("message", TO_GATEWAY, ids=lambda m: type(m).__name__)
def test_every_truncation_to_the_gateway_is_refused(message: ToGateway) -> None:
    header = encode(message)
    for length in range(len(header)):
        with pytest.raises(WireError):
            decode_to_gateway(memoryview(header)[:length])


@pytest.mark.parametrize("version", [v for v in range(256) if v != WIRE_VERSION])
def test_another_version_is_refused_by_its_number(version: int) -> None:
    header = bytes([version]) + encode(Rejoin())[1:]
    with pytest.raises(WireError, match=f"wire version {version}, this side speaks"):
        decode_to_worker(header)


def test_an_empty_header_is_refused() -> None:
    with pytest.raises(WireError, match="header frame is empty"):
        decode_to_gateway(b"")


def test_a_message_in_the_wrong_direction_is_refused() -> None:
    with pytest.raises(WireError, match="not a message to a gateway"):
        decode_to_gateway(encode(Ping(1)))
    with pytest.raises(WireError, match="not a message to a worker"):
        decode_to_worker(encode(Pong(1, 2, 3)))


def test_a_code_of_a_later_version_is_refused() -> None:
    header = bytes([WIRE_VERSION]) + msgspec.msgpack.encode(["report", ["evicted", 3, 99]])
    with pytest.raises(WireError, match="99"):
        decode_to_gateway(header)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(WireError):
        decode_to_worker(encode(Rejoin()) + b"\x00")


def test_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(WireError):
        decode_to_worker(encode(Refused("abcd")).replace(b"abcd", b"\xff\xfe\xff\xfe"))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(WireError):
        decode_to_gateway(bytes([WIRE_VERSION]) + b"\x92\xa5hello" + b"\x91" * 200_000)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(body=st.binary(max_size=200), keep_version=st.booleans())
def test_random_bytes_never_crash_the_decoders(body: bytes, keep_version: bool) -> None:
    header = bytes([WIRE_VERSION]) + body if keep_version else body
    for decode in (decode_to_worker, decode_to_gateway):
        with contextlib.suppress(WireError):
            decode(header)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_message_never_crashes_the_decoders(data: st.DataObject) -> None:
    header = bytearray(encode(data.draw(st.sampled_from([*TO_WORKER, *TO_GATEWAY]))))
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    for decode in (decode_to_worker, decode_to_gateway):
        with contextlib.suppress(WireError):
            decode(header)


# ---------------------------------------------------------------------- tensor frames

EDGE = SMALL_TENSOR_BYTES


def metas_of(tensors: list[Buffer]) -> tuple[TensorMeta, ...]:
    return tuple(TensorMeta((len(tensor),), len(tensor)) for tensor in tensors)


@pytest.mark.parametrize(
    ("lengths", "num_frames"),
    [
        ([], 0),
        ([0], 1),
        ([1, 2, 3], 1),
        ([EDGE - 1], 1),
        ([EDGE], 1),
        ([EDGE + 1], 1),
        ([EDGE, EDGE + 1], 2),
        ([EDGE + 1, EDGE], 2),
        ([EDGE + 1, EDGE + 2], 2),
        ([5, EDGE + 1, 0, EDGE * 3, EDGE], 3),
    ],
)
def test_tensors_survive_their_frames(lengths: list[int], num_frames: int) -> None:
    tensors: list[Buffer] = [bytes([i % 251]) * n for i, n in enumerate(lengths, start=1)]
    frames = pack_tensors(tensors)
    assert len(frames) == num_frames
    [views] = unpack_tensors([metas_of(tensors)], frames)
    assert views == tensors


def test_tensors_of_several_requests_keep_their_order() -> None:
    first: list[Buffer] = [b"ab", b"L" * (EDGE + 1), b""]
    second: list[Buffer] = [b"M" * (EDGE + 2), b"cde"]
    frames = pack_tensors([*first, *second])
    assert unpack_tensors([metas_of(first), (), metas_of(second)], frames) == [first, [], second]


def test_a_large_tensor_is_passed_on_and_not_copied() -> None:
    large = memoryview(bytearray(EDGE + 1))
    frames = pack_tensors([b"x", large])
    assert frames[1] is large
    [[_, view]] = unpack_tensors([metas_of([b"x", large])], frames)
    large[0] = 77
    assert view[0] == 77


@pytest.mark.parametrize(
    ("lengths", "frames", "why"),
    [
        ([1], [], "0 tensor frames, the header describes 1"),
        ([1], [b"x", b"y"], "2 tensor frames, the header describes 1"),
        ([], [b"x"], "1 tensor frames, the header describes 0"),
        ([2, 2], [b"xyz"], "small tensors take 3 bytes, the header describes 4"),
        ([EDGE + 1], [b"x"], f"a tensor of 1 bytes, the header describes {EDGE + 1}"),
        ([2**62], [b"x"], "a tensor of 1 bytes"),
        ([1, 2**62], [b"x", b""], "a tensor of 0 bytes"),
    ],
)
def test_frames_that_disagree_with_the_header_are_refused(
    lengths: list[int], frames: list[Buffer], why: str
) -> None:
    metas = tuple(TensorMeta((n,), n) for n in lengths)
    with pytest.raises(WireError, match=why):
        unpack_tensors([metas], frames)


def test_a_negative_length_is_refused_by_the_decoder() -> None:
    header = encode(Report(InferResult(1, Code.OK), ((TensorMeta((1,), -1),),)))
    with pytest.raises(WireError):
        decode_to_gateway(header)
