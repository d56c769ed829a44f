"""Recorder: the scheduler's event log into a file, while it serves.

It owns the file, its thread, and what waits to be written. Serving goes before recording: a full
disk, a slow one or a fault of its own ends the recording with one line in the log, and nothing
else. A log with a gap could not be run again, so a recording that has stopped does not go on.

What the scheduler did is noted by reference, encoded once the event loop has done what follows from
it, and compressed and written by a thread, which holds Python's lock for microseconds at a time.
"""

import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from gateway.dispatcher import SchedulerCore
from scheduler.event_log import Header, LogEncoder, encode_header, packed
from scheduler.events import Command, Event, Quote, Rejected, RequestArrived

logger = logging.getLogger(__name__)

# A block is compressed by itself: smaller ones cost bytes, larger ones are lost whole.
BLOCK_BYTES = 128 * 1024
# What a `kill -9` costs at most.
FLUSH_INTERVAL_S = 1.0
# Blocks that may wait for the disk: 32 MiB, seconds of a busy gateway.
MAX_WAITING_BLOCKS = 256
# For what still waits when the gateway ends.
CLOSE_GRACE_S = 5.0


class Loop(Protocol):
    """What a recorder needs of asyncio's event loop."""

    def call_soon(self, callback: Callable[[], None], /) -> object: ...
    def call_later(self, delay: float, callback: Callable[[], None], /) -> object: ...


class Recorder:
    """Opens `path` at once and writes the header; a file of that name becomes `path`.previous.

    The constructor raises OSError, nothing else of it ever raises. All methods belong to the
    thread of the loop. `is_recording` turns false for good when it stops.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        *,
        loop: Loop,
        max_waiting_blocks: int = MAX_WAITING_BLOCKS,
    ) -> None:
        self._path = path
        self._call_soon = loop.call_soon
        self._call_later = loop.call_later
        self._encoder = LogEncoder()
        # All and only what happened and is not yet encoded: a method of the encoder, its arguments.
        self._noted: list[tuple[Any, ...]] = []
        self._is_flush_due = False
        self._max_waiting_blocks = max_waiting_blocks
        # Blocks, oldest first; None ends the thread.
        self._waiting: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        if path.is_file():
            path.replace(path.with_name(path.name + ".previous"))
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._num_bytes = 0  # in whole blocks, in the file
        try:
            self._write(encode_header(header))
        except OSError:
            os.close(self._file)
            raise
        self.is_recording = True
        self._thread = threading.Thread(target=self._write_blocks, name="recorder", daemon=True)
        self._thread.start()

    def handled(self, event: Event, now: int, commands: list[Command] | None) -> None:
        """A call of the core's `handle`; `commands` None where it raised. Keeps references."""
        self._note((self._encoder.handled, event, now, commands))

    def foreseen(self, event: RequestArrived, now: int, refusal: Rejected | None) -> None:
        self._note((self._encoder.foreseen, event, now, refusal))

    def named(self, request_id: int, name: str) -> None:
        """The id a client knows the request by; request 0 is the latest that was foreseen."""
        self._note((self._encoder.named, request_id, name))

    def close(self, why: str) -> None:
        """Writes what is left, and that it is all. Waits for the disk, CLOSE_GRACE_S at most."""
        self._noted.append((self._encoder.ended, why))
        self._encode()
        self._flush()
        if self.is_recording:
            self.is_recording = False
            self._waiting.put(None)
        self._thread.join(CLOSE_GRACE_S)
        if self._thread.is_alive():
            logger.error("recording %s: the disk takes too long, its end is lost", self._path)

    def _note(self, note: tuple[Any, ...]) -> None:
        if not self.is_recording:
            return
        if not self._noted:
            self._call_soon(self._encode)
        self._noted.append(note)

    def _encode(self) -> None:
        noted, self._noted = self._noted, []
        if not self.is_recording:
            return
        try:
            for write, *arguments in noted:
                write(*arguments)
        except Exception as error:  # ours, and no reason to stop serving
            self._give_up(f"{type(error).__name__}: {error}")
            return
        if self._encoder.num_bytes >= BLOCK_BYTES:
            self._flush()
        elif self._encoder.num_bytes and not self._is_flush_due:
            self._is_flush_due = True
            self._call_later(FLUSH_INTERVAL_S, self._on_flush_due)

    def _on_flush_due(self) -> None:
        self._is_flush_due = False
        self._flush()

    def _flush(self) -> None:
        if not self.is_recording or not self._encoder.num_bytes:
            return
        if self._waiting.qsize() >= self._max_waiting_blocks:
            self._give_up(f"the disk is too slow, {self._max_waiting_blocks} blocks wait for it")
            return
        self._waiting.put(self._encoder.take())

    def _give_up(self, why: str) -> None:
        """Ends the recording, not the gateway. What was handed over is still written."""
        self.is_recording = False
        logger.error("recording %s stops: %s; what was recorded until now stays", self._path, why)
        self._waiting.put(None)

    # ------------------------------------------------------------------ the thread

    def _write_blocks(self) -> None:
        try:
            while (block := self._waiting.get()) is not None:
                self._write(packed(block))
        except Exception as error:
            self.is_recording = False
            with suppress(OSError):  # no half block, where the file lets itself be cut
                os.ftruncate(self._file, self._num_bytes)
            logger.error(
                "recording %s stops: %s; its first %d bytes stay, and serving goes on",
                self._path,
                error,
                self._num_bytes,
            )
            while not self._waiting.empty():
                self._waiting.get()
        finally:
            with suppress(OSError):
                os.close(self._file)

    def _write(self, member: bytes) -> None:
        rest = memoryview(member)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._num_bytes += len(member)


class RecordedCore:
    """A scheduler whose calls are recorded. Implements gateway.dispatcher.SchedulerCore."""

    def __init__(self, core: SchedulerCore, recorder: Recorder) -> None:
        self._core = core
        self._recorder = recorder

    def handle(self, event: Event, now: int) -> list[Command]:
        try:
            commands = self._core.handle(event, now)
        except Exception:
            self._recorder.handled(event, now, None)  # the replay will show why
            raise
        self._recorder.handled(event, now, commands)
        return commands

    def foresee(self, event: RequestArrived, now: int) -> Rejected | None:
        refusal = self._core.foresee(event, now)
        self._recorder.foreseen(event, now, refusal)
        return refusal

    def quote(self, event: RequestArrived, now: int, *, count: int = 1) -> Quote:
        return self._core.quote(event, now, count=count)  # it changes nothing: no part of the day

    def verdict(self, event: RequestArrived, now: int) -> Quote:
        return self._core.verdict(event, now)  # nor does this

    def next_wakeup(self) -> int | None:
        return self._core.next_wakeup()

    def story(self, request_id: int) -> list[tuple[int, Event, list[Command]]]:
        return self._core.story(request_id)
