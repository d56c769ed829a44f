"""Recording: reads what scheduler/event_log.py has written, entry by entry.

It must never guess: bytes that are not a recording, or are of another format, are refused by name;
a recording that was cut is read up to its last whole block, and says so.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Union

import msgspec

from scheduler.actions import Action, Result
from scheduler.event_log import (
    ARRIVED,
    ARRIVED_TOGETHER,
    CANCELLED,
    ENDED,
    FINISHED,
    FORESEEN,
    FORMAT,
    FORMAT_VERSION,
    GZIP_WINDOW,
    NAMED,
    OUTCOME_KINDS,
    RARE_KINDS,
    SENT,
    TICK,
    Ended,
    Entry,
    Foreseen,
    Handled,
    Header,
    Named,
)
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    RequestsArrived,
    Send,
    Tick,
)

astuple = msgspec.structs.astuple


class RecordingError(ValueError):
    """Bytes that are not a recording this version can read. The message says which and why."""


class Recording:
    """A recording in pieces of any size. `header` is there at once, entries as they are asked for.

    Raises RecordingError, here or later. Once all entries were taken, `cut` says what is missing
    at the end, None if nothing: without an Ended, whoever wrote it died or gave up.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.cut: str | None = None
        self.num_blocks = 0
        self._blocks = self._read(pieces)
        try:
            self.header = _header_decoder.decode(next(self._blocks, b""))
        except msgspec.MsgspecError as error:
            raise RecordingError(f"it is not a recording: {error}") from error
        if self.header.format != FORMAT or self.header.format_version != FORMAT_VERSION:
            raise RecordingError(
                f"it is a {self.header.format!r} of format version {self.header.format_version}; "
                f"this version reads {FORMAT!r}, {FORMAT_VERSION}"
            )

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, oldest first. Once."""
        has_ended = False
        for block in self._blocks:
            self.num_blocks += 1
            try:
                told = _decoder.decode(block)
            except msgspec.MsgspecError as error:
                raise RecordingError(f"block {self.num_blocks}: {error}") from error
            for entry in map(_entry, told):
                has_ended = type(entry) is Ended
                yield entry
        if not has_ended and self.cut is None:
            self.cut = "it does not end in order: what was not yet written out is lost"

    def _read(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The content of every whole member."""
        inflate = zlib.decompressobj(GZIP_WINDOW)
        content = bytearray()
        is_inside = False
        for piece in pieces:
            rest = piece
            while rest:
                is_inside = True
                try:
                    content += inflate.decompress(rest)
                except zlib.error as error:
                    self.cut = f"what follows block {self.num_blocks} is damaged: {error}"
                    return
                rest = inflate.unused_data
                if inflate.eof:
                    yield bytes(content)
                    inflate = zlib.decompressobj(GZIP_WINDOW)
                    content.clear()
                    is_inside = False
        if is_inside:
            self.cut = f"it was cut in the middle of what follows block {self.num_blocks}"


# The same arrays as types, made from the structs themselves: a field that is added to one with a
# default still reads old files. Each is taken apart again by `astuple`.


def _as_array(struct: type, *first: tuple[str, Any], tag: int | None = None) -> Any:
    """The fields of `struct` after `first`, as an array; with a tag, after that."""
    fields: list[Any] = list(first)
    for field in msgspec.structs.fields(struct):
        is_required = field.default is msgspec.NODEFAULT
        own = (field.name, field.type)
        fields.append(own if is_required else (*own, field.default))
    return msgspec.defstruct(f"_{struct.__name__}", fields, tag=tag, array_like=True, gc=False)


if TYPE_CHECKING:  # types that are made at run time are no types to a checker
    _Request = Any
    _Refusal = Any
else:
    _Request = _as_array(RequestArrived)
    _Refusal = _as_array(Rejected)


class _Sent(msgspec.Struct, tag=SENT, array_like=True, gc=False):
    worker_id: str
    action: Action


_REPLIES: dict[Any, Any] = {
    _as_array(outcome, ("request_id", int), tag=kind): outcome
    for outcome, kind in OUTCOME_KINDS.items()
}
_Command: Any = Union[(_Sent, *_REPLIES)]
_Commands: Any = list[_Command] | None


class _Ticked(msgspec.Struct, tag=TICK, array_like=True, gc=False):
    now: int
    commands: _Commands


class _Arrived(_Ticked, tag=ARRIVED):
    request: _Request


class _ArrivedTogether(_Ticked, tag=ARRIVED_TOGETHER):
    requests: list[_Request]


class _Finished(_Ticked, tag=FINISHED):
    worker_id: str
    result: Result


class _Cancelled(_Ticked, tag=CANCELLED):
    request_id: int


_RARE: dict[Any, Any] = {
    _as_array(event, ("now", int), ("commands", _Commands), tag=kind): event
    for event, kind in RARE_KINDS.items()
}


class _Foreseen(msgspec.Struct, tag=FORESEEN, array_like=True, gc=False):
    now: int
    request: _Request
    refusal: _Refusal | None


class _Named(msgspec.Struct, tag=NAMED, array_like=True, gc=False):
    request_id: int
    name: str


class _Ended(msgspec.Struct, tag=ENDED, array_like=True, gc=False):
    why: str


_HANDLED = (_Ticked, _Arrived, _ArrivedTogether, _Finished, _Cancelled, *_RARE)
_Entry: Any = Union[(*_HANDLED, _Foreseen, _Named, _Ended)]
_decoder = msgspec.msgpack.Decoder(list[_Entry])
_header_decoder = msgspec.json.Decoder(Header)


def _entry(told: Any) -> Entry:
    if isinstance(told, _Foreseen):
        refusal = None if told.refusal is None else Rejected(*astuple(told.refusal))
        return Foreseen(told.now, _request(told.request), refusal)
    if isinstance(told, _Named):
        return Named(told.request_id, told.name)
    if isinstance(told, _Ended):
        return Ended(told.why)
    commands = None if told.commands is None else [_command(command) for command in told.commands]
    return Handled(told.now, _event(told), commands)


def _event(told: Any) -> Event:
    kind = type(told)
    if kind is _Finished:
        return ActionFinished(told.worker_id, told.result)
    if kind is _Arrived:
        return _request(told.request)
    if kind is _ArrivedTogether:
        return RequestsArrived(tuple([_request(request) for request in told.requests]))
    if kind is _Ticked:
        return Tick()
    if kind is _Cancelled:
        return RequestCancelled(told.request_id)
    event: Event = _RARE[kind](*astuple(told)[2:])
    return event


def _request(told: Any) -> RequestArrived:
    return RequestArrived(*astuple(told))


def _command(told: Any) -> Command:
    if type(told) is _Sent:
        return Send(told.worker_id, told.action)
    request_id, *fields = astuple(told)
    return Reply(request_id, _REPLIES[type(told)](*fields))
