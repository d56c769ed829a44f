"""Recording is complete while it lasts, and never in the way of serving."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.recorder import RecordedCore, Recorder
from scheduler.event_log import Ended, Entry, Foreseen, Handled, Header, Named
from scheduler.events import (
    Cancelled,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestCancelled,
    Tick,
)
from scheduler.recording import Recording
from scheduler.spec import SchedulerConfig
from tests.gateway.doubles import ManualTimer, PuppetScheduler, ms

HEADER = Header(
    product_version="1.2.3", policy="remontoir", started_at="today", config=SchedulerConfig()
)
REQUEST = RequestArrived(1, "m", ms(1), ms(26))
REFUSAL = Rejected(Reason.SLO_INFEASIBLE_EVER, "too short")


class TurnedLoop(ManualTimer):
    """The event loop, turn by turn."""

    def __init__(self) -> None:
        super().__init__()
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None], /) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


def read(path: Path) -> list[Entry]:
    return list(Recording([path.read_bytes()]))


@pytest.fixture
def loop() -> TurnedLoop:
    return TurnedLoop()


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file whose other end the test holds: (its path, a descriptor to read from)."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    yield path, reader
    os.close(reader)


def test_every_call_of_the_core_is_in_the_file(tmp_path: Path, loop: TurnedLoop) -> None:
    recorder = Recorder(tmp_path / "r", HEADER, loop=loop)
    puppet = PuppetScheduler()
    core = RecordedCore(puppet, recorder)
    reply = Reply(1, Cancelled())
    puppet.answers += [[], [reply]]
    assert core.foresee(REQUEST, ms(0)) is None
    puppet.refusal = REFUSAL
    assert core.foresee(REQUEST, ms(0)) is REFUSAL
    recorder.named(0, "early")
    assert core.handle(REQUEST, ms(1)) == []
    recorder.named(1, "mine")
    loop.turn()
    assert core.handle(RequestCancelled(1), ms(2)) == [reply]
    recorder.close("it was asked to")
    assert read(tmp_path / "r") == [
        Foreseen(ms(0), REQUEST, None),
        Foreseen(ms(0), REQUEST, REFUSAL),
        Named(0, "early"),
        Handled(ms(1), REQUEST, []),
        Named(1, "mine"),
        Handled(ms(2), RequestCancelled(1), [reply]),
        Ended("it was asked to"),
    ]


def test_the_rest_of_the_core_is_as_it_was(tmp_path: Path, loop: TurnedLoop) -> None:
    puppet = PuppetScheduler()
    puppet.wakeup_ns = ms(5)
    puppet.stories[1] = [(ms(1), Tick(), [])]
    recorder = Recorder(tmp_path / "r", HEADER, loop=loop)
    core = RecordedCore(puppet, recorder)
    assert core.next_wakeup() == ms(5)
    assert core.story(1) == [(ms(1), Tick(), [])]
    recorder.close("")


def test_a_core_that_breaks_is_recorded_as_such(tmp_path: Path, loop: TurnedLoop) -> None:
    recorder = Recorder(tmp_path / "r", HEADER, loop=loop)
    puppet = PuppetScheduler()
    puppet.answers.append(KeyError("ours"))
    with pytest.raises(KeyError, match="ours"):
        RecordedCore(puppet, recorder).handle(REQUEST, ms(1))
    recorder.close("broken")
    assert read(tmp_path / "r") == [Handled(ms(1), REQUEST, None), Ended("broken")]


def test_nothing_is_encoded_before_the_loop_has_done_what_is_urgent(
    tmp_path: Path, loop: TurnedLoop
) -> None:
    recorder = Recorder(tmp_path / "r", HEADER, loop=loop)
    recorder.handled(REQUEST, ms(1), [])
    recorder.handled(Tick(), ms(2), [])
    assert len(loop.soon) == 1
    assert loop.delays_ms == []
    loop.turn()
    assert loop.delays_ms == [1000]
    recorder.close("")


def test_what_was_recorded_is_in_the_file_a_second_later(
    pipe: tuple[Path, int], loop: TurnedLoop
) -> None:
    path, reader = pipe
    recorder = Recorder(path, HEADER, loop=loop)
    header = os.read(reader, 65536)
    for request_id in (1, 2):
        recorder.named(request_id, "x")
        loop.turn()
        loop.fire()
        block = os.read(reader, 65536)  # waits for the thread
        assert list(Recording([header, block])) == [Named(request_id, "x")]
    recorder.close("")


def test_a_full_block_is_written_without_waiting(pipe: tuple[Path, int], loop: TurnedLoop) -> None:
    path, reader = pipe
    recorder = Recorder(path, HEADER, loop=loop)
    header = os.read(reader, 65536)
    recorder.named(1, "x" * 200_000)
    loop.turn()
    assert loop.delays_ms == []
    block = os.read(reader, 65536)
    assert list(Recording([header, block])) == [Named(1, "x" * 200_000)]
    recorder.close("")


def test_a_disk_that_fails_ends_the_recording_with_one_line(
    pipe: tuple[Path, int], loop: TurnedLoop, caplog: pytest.LogCaptureFixture
) -> None:
    path, reader = pipe
    recorder = Recorder(path, HEADER, loop=loop)
    os.read(reader, 65536)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), reader)  # nobody reads the pipe any more
    core = RecordedCore(PuppetScheduler(), recorder)
    assert core.handle(REQUEST, ms(1)) == []
    loop.turn()
    loop.fire()
    recorder.close("")  # waits for the thread
    assert not recorder.is_recording
    assert core.handle(RequestCancelled(1), ms(2)) == []
    assert loop.soon == []
    [line] = caplog.messages
    assert line.startswith(f"recording {path} stops: [Errno 32] Broken pipe; its first ")


def test_a_disk_that_is_too_slow_ends_the_recording(
    pipe: tuple[Path, int], loop: TurnedLoop, caplog: pytest.LogCaptureFixture
) -> None:
    path, reader = pipe
    recorder = Recorder(path, HEADER, loop=loop, max_waiting_blocks=2)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    incompressible = os.urandom(100_000).hex()  # more than the pipe holds: the thread waits
    num_blocks = 0
    while recorder.is_recording:
        recorder.named(num_blocks, incompressible)
        loop.turn()
        num_blocks += 1
    assert num_blocks in (3, 4)  # two waiting, the one too many, perhaps one with the thread
    [line] = caplog.messages
    assert line == (
        f"recording {path} stops: the disk is too slow, 2 blocks wait for it; "
        "what was recorded until now stays"
    )
    written = bytearray()
    while piece := os.read(reader, 65536):
        written += piece
    recording = Recording([bytes(written)])
    names = [entry.request_id for entry in recording if isinstance(entry, Named)]
    assert names == list(range(num_blocks - 1))
    assert recording.cut == "it does not end in order: what was not yet written out is lost"
    recorder.close("")


def test_what_cannot_be_encoded_ends_the_recording(
    tmp_path: Path, loop: TurnedLoop, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path / "r", HEADER, loop=loop)
    core = RecordedCore(PuppetScheduler(), recorder)
    assert core.handle(RequestCancelled(2**70), ms(1)) == []
    loop.turn()
    assert not recorder.is_recording
    assert "stops: OverflowError" in caplog.text
    recorder.close("")
    assert read(tmp_path / "r") == []


def test_the_file_of_an_earlier_run_is_kept(tmp_path: Path, loop: TurnedLoop) -> None:
    path = tmp_path / "day.rec"
    for why in ("first", "second"):
        Recorder(path, HEADER, loop=loop).close(why)
    assert read(path) == [Ended("second")]
    assert read(tmp_path / "day.rec.previous") == [Ended("first")]


@pytest.mark.parametrize("path", ["/nowhere/r", "/dev/full"])
def test_a_file_that_cannot_be_written_at_all_is_said_at_once(path: str, loop: TurnedLoop) -> None:
    with pytest.raises(OSError, match=r"No such file|No space"):
        Recorder(Path(path), HEADER, loop=loop)
