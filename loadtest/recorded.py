"""Recordings as files: opened, read with a bar that shows how far, and run again.

Owns the reading of bytes. It must never read a file as a whole: recordings are as long as somebody
let a gateway run.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from scheduler import __version__
from scheduler.event_log import Header
from scheduler.policies import parse
from scheduler.recording import Recording, RecordingError
from scheduler.scheduler import Scheduler

PIECE_BYTES = 256 * 1024


@contextmanager
def opened(path: Path, doing: str) -> Iterator[Recording]:
    """The recording of a file. On a terminal, a bar on stderr says how much of it was read.

    Raises RecordingError with the path in front, for files that cannot be read too. What is wrong
    with a file that is not whole goes before what is not found in it.
    """
    bar = Progress(
        TextColumn(doing),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    recording: Recording | None = None
    try:
        with path.open("rb") as file, bar:
            task = bar.add_task(doing, total=path.stat().st_size)

            def pieces() -> Iterator[bytes]:
                while piece := file.read(PIECE_BYTES):
                    yield piece
                    bar.advance(task, len(piece))

            recording = Recording(pieces())
            yield recording
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from error
    except RecordingError as error:
        damage = "" if recording is None or recording.cut is None else f"{recording.cut}; "
        raise RecordingError(f"{path}: {damage}{error}") from error


def scheduler_of(
    header: Header, policy: str | None = None, ahead_ms: float | None = None
) -> Scheduler:
    """The scheduler that was recorded, newly made; with `policy`, that one in its place.

    Raises PolicyError.
    """
    if policy is None:
        policy, ahead_ms = header.policy, header.schedule_ahead_ms
    chosen = parse(policy, schedule_ahead_ms=ahead_ms)
    return Scheduler(header.config, header.models, policy=chosen)


def damage_of(recording: Recording, path: Path) -> list[str]:
    """What is missing of a file that is not whole, once all of it was read."""
    return [] if recording.cut is None else [f"{path}: {recording.cut}."]


def said_of(recording: Recording, path: Path) -> str:
    """What a reader should know of the file before they believe figures; "" mostly."""
    said = damage_of(recording, path)
    if recording.header.product_version != __version__:
        said.append(
            f"{path} was recorded by version {recording.header.product_version}, this is "
            f"{__version__}: decisions may differ."
        )
    return "\n".join(said)
