"""A recording is what happened, to the bit, up to its last whole block."""

import gzip
from collections.abc import Iterable

import msgspec
import pytest

from scheduler.actions import (
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    ReleaseModel,
    ReleaseResult,
    Span,
)
from scheduler.event_log import (
    Ended,
    Entry,
    Foreseen,
    Handled,
    Header,
    LogEncoder,
    Named,
    encode_header,
    packed,
)
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Command,
    Event,
    Expired,
    Failed,
    ModelAdded,
    ModelForgotten,
    ModelOffered,
    ModelPinned,
    ModelRemoved,
    ModelStaged,
    ModelUnloaded,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    RequestsArrived,
    Send,
    Served,
    StagingEnded,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.recording import Recording, RecordingError
from scheduler.spec import SchedulerConfig
from tests.scheduler.story import at, device_spec, model_spec, ms

HEADER = Header(
    product_version="1.2.3",
    policy="clockwork:deadline_floor",
    schedule_ahead_ms=5.0,
    started_at="2026-11-23T12:00:00+01:00",
    config=SchedulerConfig(reply_margin_ns=ms(1.5)),
    models=(model_spec("m", pinned=True),),
)
REQUEST = RequestArrived(7, "m", at(1), at(26), 2, "4|k", "4", 8, True)
SPAN = Span(at(3), at(5), ms(2))
SENT = Send("w#1", Infer(3, "m", 4, (7, 8), (2, 1), at(2), at(20), ms(16)))
REFUSAL = Rejected(Reason.SLO_INFEASIBLE_NOW, "no", ms(9), ms(41), None, None)

EVENTS: list[Event] = [
    Tick(),
    REQUEST,
    RequestsArrived((REQUEST, RequestArrived(8, "m", at(1), at(30)))),
    RequestCancelled(7),
    ActionFinished("w#1", InferResult(3, Code.OK, "", at(2), SPAN, SPAN, SPAN)),
    ActionFinished("w#1", InferResult(4, Code.OK, "", at(2), SPAN, SPAN, SPAN, 1410, 299_000)),
    ActionFinished("w#1", LoadResult(4, Code.LOAD_FAILED, "copy", at(2), SPAN)),
    ActionFinished("w#1", EvictResult(5, Code.WEIGHTS_IN_USE, "busy", at(2))),
    WorkerJoined("w#1", device_spec(), (model_spec("m"), model_spec("n")), ("m",)),
    WorkerLost("w#1", "its connection is gone"),
    ModelAdded(model_spec("n")),
    ModelRemoved("n", "its file is gone"),
    ModelPinned("m", True),
    ModelUnloaded("m"),
    ModelOffered("w#1", model_spec("m/2")),
    ModelStaged("m/2", "m"),
    StagingEnded("m/2"),
    ModelForgotten("m"),
    ActionFinished("w#1", ReleaseResult(6, Code.OK, "", at(2), 16 << 20)),
]
COMMANDS: list[Command] = [
    SENT,
    Send("w#1", Infer(3, "m/2", 4, (), (), at(2), at(20), ms(16), 1)),
    Send("w#1", LoadWeights(4, "m", 4, at(1), at(9), ms(20))),
    Send("w#1", EvictWeights(5, "n", at(1), at(9))),
    Send("w#1", ReleaseModel(6, "n", at(1), at(9))),
    Reply(7, Served("w#1", 3, True, ms(12), ms(1), ms(2), ms(3), ms(4), ms(5))),
    Reply(8, REFUSAL),
    Reply(9, Expired(Reason.DEADLINE_EXCEEDED_QUEUED, "waited")),
    Reply(10, Failed(Reason.WORKER_LOST, "gone", ms(1000))),
    Reply(11, Cancelled()),
]


def block_of(entries: Iterable[Entry]) -> bytes:
    encoder = LogEncoder()
    for entry in entries:
        match entry:
            case Handled():
                encoder.handled(entry.event, entry.now, entry.commands)
            case Foreseen():
                encoder.foreseen(entry.event, entry.now, entry.refusal)
            case Named():
                encoder.named(entry.request_id, entry.name)
            case Ended():
                encoder.ended(entry.why)
    return packed(encoder.take())


def in_pieces(written: bytes, size: int) -> list[bytes]:
    return [written[i : i + size] for i in range(0, len(written), size)]


@pytest.mark.parametrize("piece_bytes", [1, 100, 1_000_000])
def test_everything_comes_back_as_it_was(piece_bytes: int) -> None:
    entries: list[Entry] = [Handled(at(i), event, []) for i, event in enumerate(EVENTS)]
    entries += [
        Handled(at(20), Tick(), COMMANDS),
        Handled(at(21), Tick(), None),
        Foreseen(at(22), REQUEST, None),
        Foreseen(at(23), REQUEST, REFUSAL),
        Named(0, "early"),
        Named(7, "mine"),
        Ended("it was asked to"),
    ]
    written = encode_header(HEADER) + block_of(entries[:5]) + block_of(entries[5:])
    recording = Recording(in_pieces(written, piece_bytes))
    assert recording.header == HEADER
    assert list(recording) == entries
    assert recording.cut is None
    assert recording.num_blocks == 2


def test_a_recording_is_a_gzip_file_that_begins_with_its_header() -> None:
    written = encode_header(HEADER) + block_of([Named(1, "a")])
    first_line = gzip.decompress(written).partition(b"\n")[0]
    assert msgspec.json.decode(first_line)["policy"] == "clockwork:deadline_floor"


def test_the_encoder_knows_what_waits_in_its_block() -> None:
    encoder = LogEncoder()
    assert encoder.num_bytes == 0
    encoder.named(1, "a")
    size = encoder.num_bytes
    assert size == len(encoder.take()) > 0
    assert encoder.num_bytes == 0


@pytest.mark.parametrize("missing", [1, 8, 20])
def test_a_cut_recording_is_read_up_to_its_last_whole_block(missing: int) -> None:
    first, second = [Named(1, "a"), Named(2, "b")], [Named(3, "c"), Ended("x")]
    written = encode_header(HEADER) + block_of(first) + block_of(second)
    recording = Recording([written[:-missing]])
    assert list(recording) == first
    assert recording.cut == "it was cut in the middle of what follows block 1"


def test_a_recording_without_an_end_says_so() -> None:
    recording = Recording([encode_header(HEADER) + block_of([Named(1, "a")])])
    assert list(recording) == [Named(1, "a")]
    assert recording.cut == "it does not end in order: what was not yet written out is lost"


def test_what_follows_a_damaged_block_is_left_out() -> None:
    written = bytearray(encode_header(HEADER) + block_of([Named(1, "a")]))
    whole = len(written)
    written += block_of([Ended("x")])
    written[whole] ^= 0xFF
    recording = Recording([bytes(written)])
    assert list(recording) == [Named(1, "a")]
    assert recording.cut is not None
    assert recording.cut.startswith("what follows block 1 is damaged: ")


@pytest.mark.parametrize("foreign", [b"", b"a log of text\n", packed(b"[]"), packed(b"")])
def test_what_is_no_recording_is_refused(foreign: bytes) -> None:
    with pytest.raises(RecordingError, match="it is not a recording"):
        Recording([foreign])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"format": "a tape"}, "it is a 'a tape' of format version 1"),
        ({"format_version": 2}, "it is a 'remontoir recording' of format version 2"),
    ],
)
def test_another_format_is_refused_by_name(changed: dict[str, object], told: str) -> None:
    with pytest.raises(RecordingError, match=told):
        Recording([encode_header(msgspec.structs.replace(HEADER, **changed))])


def test_a_block_that_cannot_be_understood_is_refused_with_its_number() -> None:
    strange = packed(msgspec.msgpack.encode([[99, 1]]))
    recording = Recording([encode_header(HEADER) + block_of([Named(1, "a")]) + strange])
    with pytest.raises(RecordingError, match="block 2: "):
        list(recording)


def test_fields_that_a_later_version_adds_at_the_end_are_not_minded() -> None:
    entry = [1, at(1), [], [*msgspec.structs.astuple(REQUEST), "tenant"]]
    written = encode_header(HEADER) + packed(msgspec.msgpack.encode([entry]))
    assert list(Recording([written])) == [Handled(at(1), REQUEST, [])]


def test_fields_with_a_default_may_be_missing() -> None:
    entry = [1, at(1), [], [8, "m", at(1), at(30)]]
    written = encode_header(HEADER) + packed(msgspec.msgpack.encode([entry]))
    expected = RequestArrived(8, "m", at(1), at(30))
    assert list(Recording([written])) == [Handled(at(1), expected, [])]
