"""The event log of a scheduler as bytes: what a recording is, and how it is written.

It owns the format: what a log holds, how an entry is written, how blocks are framed. No files, no
clock. It must never change what it is given. scheduler/recording.py reads it back.

A recording is a chain of gzip members (`zcat` shows it). The first is the Header as JSON; each
later one is a msgpack array of entries. Members are whole or not there, so that a file that was cut
in the middle is read up to its last whole block. An entry is an array `[kind, now, ...]`: one call
of `Scheduler.handle` with its commands, one of `Scheduler.foresee` (which may let old estimates be
doubted, and so belongs to the log), the name a client knows a request by, or the end.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

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
from scheduler.spec import ModelSpec, SchedulerConfig

FORMAT = "remontoir recording"
FORMAT_VERSION = 1
# zlib's fastest: a third of the time of its default for a tenth more bytes.
COMPRESSION_LEVEL = 1
GZIP_WINDOW = 16 + zlib.MAX_WBITS
# msgpack's array of up to 2**32 - 1 elements: one byte, then the number.
_ARRAY32 = b"\xdd"
_BLOCK_HEADER = 5

astuple = msgspec.structs.astuple


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler was made with, in the words of scheduler.policies.parse.

    `started_at` is for people (ISO 8601); instants in the log are on the recording's own clock.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    product_version: str
    policy: str
    schedule_ahead_ms: float | None = None
    started_at: str
    config: SchedulerConfig
    models: tuple[ModelSpec, ...] = ()


class Handled(msgspec.Struct, frozen=True, gc=False):
    """`Scheduler.handle(event, now)` and what it returned; None where it raised."""

    now: int
    event: Event
    commands: list[Command] | None


class Foreseen(msgspec.Struct, frozen=True, gc=False):
    """`Scheduler.foresee(event, now)` and what it returned."""

    now: int
    event: RequestArrived
    refusal: Rejected | None


class Named(msgspec.Struct, frozen=True, gc=False):
    """The textual id a client knows a request by. `request_id` 0: the latest Foreseen refusal."""

    request_id: int
    name: str


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The recorder was closed in order: nothing is missing."""

    why: str


Entry = Handled | Foreseen | Named | Ended


# ------------------------------------------------------------------ what is written
#
# Kinds of entries and, inside of them, of commands. Numbers once given stay.

TICK, ARRIVED, ARRIVED_TOGETHER, FINISHED, CANCELLED, LOST = 0, 1, 2, 3, 4, 5
JOINED, MODEL_ADDED, MODEL_REMOVED, MODEL_PINNED = 6, 7, 8, 9
FORESEEN, NAMED, ENDED = 10, 11, 12
MODEL_UNLOADED = 13
MODEL_OFFERED, MODEL_STAGED, STAGING_ENDED, MODEL_FORGOTTEN = 14, 15, 16, 17

SENT, SERVED, REJECTED, EXPIRED, FAILED, REPLY_CANCELLED = 0, 1, 2, 3, 4, 5
OUTCOME_KINDS = {
    Served: SERVED,
    Rejected: REJECTED,
    Expired: EXPIRED,
    Failed: FAILED,
    Cancelled: REPLY_CANCELLED,
}
# Events that come so seldom that their fields may be written by name.
RARE_KINDS = {
    WorkerLost: LOST,
    ModelRemoved: MODEL_REMOVED,
    ModelPinned: MODEL_PINNED,
    WorkerJoined: JOINED,
    ModelAdded: MODEL_ADDED,
    ModelUnloaded: MODEL_UNLOADED,
    ModelOffered: MODEL_OFFERED,
    ModelStaged: MODEL_STAGED,
    StagingEnded: STAGING_ENDED,
    ModelForgotten: MODEL_FORGOTTEN,
}


def _told(event: Event, now: int, commands: list[Any] | None) -> tuple[Any, ...]:
    """The entry of an event. By frequency: this runs for every one."""
    kind = type(event)
    if kind is ActionFinished:
        return (FINISHED, now, commands, event.worker_id, event.result)  # type: ignore[union-attr]
    if kind is RequestArrived:
        return (ARRIVED, now, commands, astuple(event))
    if kind is RequestsArrived:
        requests: tuple[RequestArrived, ...] = event.requests  # type: ignore[union-attr]
        return (ARRIVED_TOGETHER, now, commands, [astuple(request) for request in requests])
    if kind is Tick:
        return (TICK, now, commands)
    if kind is RequestCancelled:
        return (CANCELLED, now, commands, event.request_id)  # type: ignore[union-attr]
    return (RARE_KINDS[kind], now, commands, *astuple(event))


def _ordered(command: Command) -> tuple[Any, ...]:
    if type(command) is Reply:
        outcome = command.outcome
        return (OUTCOME_KINDS[type(outcome)], command.request_id, *astuple(outcome))
    assert type(command) is Send
    return (SENT, command.worker_id, command.action)


class LogEncoder:
    """Entries → blocks. `num_bytes` is the size of the block that is being filled."""

    def __init__(self) -> None:
        self._encode_into = msgspec.msgpack.Encoder().encode_into
        self._start()

    def _start(self) -> None:
        self._buffer = bytearray(_BLOCK_HEADER)
        self._num_entries = 0

    @property
    def num_bytes(self) -> int:
        return len(self._buffer) if self._num_entries else 0

    def handled(self, event: Event, now: int, commands: Sequence[Command] | None) -> None:
        """One call of `handle`; `commands` None where it raised."""
        told = None if commands is None else [_ordered(command) for command in commands]
        self._encode_into(_told(event, now, told), self._buffer, -1)
        self._num_entries += 1

    def foreseen(self, event: RequestArrived, now: int, refusal: Rejected | None) -> None:
        told = None if refusal is None else astuple(refusal)
        self._encode_into((FORESEEN, now, astuple(event), told), self._buffer, -1)
        self._num_entries += 1

    def named(self, request_id: int, name: str) -> None:
        self._encode_into((NAMED, request_id, name), self._buffer, -1)
        self._num_entries += 1

    def ended(self, why: str) -> None:
        self._encode_into((ENDED, why), self._buffer, -1)
        self._num_entries += 1

    def take(self) -> bytearray:
        """The block so far, complete; the next one is empty."""
        block = self._buffer
        block[:_BLOCK_HEADER] = _ARRAY32 + self._num_entries.to_bytes(4, "big")
        self._start()
        return block


def packed(block: bytes | bytearray) -> bytes:
    """A block as one gzip member. Frees Python's lock for most of its time."""
    deflate = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    return deflate.compress(block) + deflate.flush()


def encode_header(header: Header) -> bytes:
    """The first member of a recording."""
    return packed(msgspec.json.encode(header) + b"\n")
