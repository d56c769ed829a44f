"""Why a request waited, was batched or was refused, in sentences with numbers."""

import re
from pathlib import Path

import msgspec
import pytest

from loadtest import explain
from loadtest.words import Words
from scheduler.actions import Infer, InferResult
from scheduler.event_log import Entry, Handled, Named
from scheduler.events import (
    ActionFinished,
    ModelForgotten,
    ModelOffered,
    ModelPinned,
    ModelRemoved,
    ModelStaged,
    ModelUnloaded,
    RequestCancelled,
    Send,
    StagingEnded,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.scheduler import Scheduler
from scheduler.words import counted, listed, ms
from tests.loadtest.recorded_day import cut, day, instant, request, written
from tests.scheduler.story import model_spec


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return day()


@pytest.fixture(scope="module")
def recording(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("day") / "day.rec", entries)


class Told:
    """What the command prints."""

    def __init__(self, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._recording = recording
        self._capsys = capsys

    def __call__(self, *arguments: str, exit_code: int = 0) -> str:
        assert explain.main([str(self._recording), *arguments]) == exit_code
        out, err = self._capsys.readouterr()
        return err if exit_code else out


@pytest.fixture
def told(recording: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(recording, capsys)


def test_a_batch_is_told_from_arrival_to_answer(told: Told) -> None:
    lines = told("3").splitlines()
    assert lines[:5] == [
        "Request 3 of a, 1 row, arrived 0.010300 s after the recording's start and wanted its "
        "answer within 200 ms.",
        "The scheduler heard of it 0 ms later.",
        "Before it, 1 request of a waited, 1 of them due before it, and 0 of other models.",
        "w2#two-2: its weights were absent (1 of 5 pages free); idle.",
        "w1#one-1: its weights were resident; busy for another 10.0 ms with 1 row of a.",
    ]
    # Where else its model is loaded meanwhile is the policy's matter.
    own = [line for line in lines[5:] if "told to load" not in line and "it loaded" not in line]
    for line, told_as in zip(
        own,
        (
            r"It was let in, with an answer predicted for [\d.]+ ms after arrival\.",
            r"It was sent to w\d#\w+-\d [\d.]+ ms after arrival, in a batch of \d rows with \d "
            r"other requests? \([\d, ]+\); expected to execute for [\d.]+ ms\.",
            r"w\d#\w+-\d had received it [\d.]+ ms after arrival, executed from [\d.]+ ms after "
            r"arrival on for [\d.]+ ms, and the gateway heard of the end 0\.100 ms after it\.",
            r"It was served [\d.]+ ms after arrival: good, with \d+ ms to spare, [\d.]+ ms "
            r"(later|earlier) than predicted \([\d.]+ ms\)\.",
            r"Of its wait, [\d.]+ ms was in the queue\.",
        ),
        strict=True,
    ):
        assert re.fullmatch(told_as, line), line


def test_a_slow_execution_can_be_told_from_a_throttled_clock(
    entries: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = written(tmp_path / "gpu.rec", [_at_clock(entry, 1410) for entry in entries])
    assert re.search(r"on for [\d.]+ ms at 1410 MHz, and the gateway", Told(recording, capsys)("3"))


def _at_clock(entry: Entry, mhz: int) -> Entry:
    """As if the workers were GPUs."""
    if not isinstance(entry, Handled) or not isinstance(entry.event, ActionFinished):
        return entry
    if not isinstance(entry.event.result, InferResult):
        return entry
    result = msgspec.structs.replace(entry.event.result, clock_mhz=mhz)
    return msgspec.structs.replace(entry, event=ActionFinished(entry.event.worker_id, result))


def test_a_refusal_is_told_with_its_numbers(told: Told) -> None:
    story = told("10")
    assert (
        "It was refused 0 ms after arrival (slo_infeasible_ever): "
        "SLO 5.000 ms, a takes 10.500 ms even idle and loaded." in story
    )
    assert "No SLO below 10.5 ms can be met, even idle; its own was 5.0 ms." in story


def test_a_refusal_to_queue_says_what_the_wait_would_have_been(told: Told) -> None:
    story = told("13")
    assert "(would_queue): a cannot start at once" in story
    assert re.search(
        r"finish was ([\d.]+) ms after arrival, its SLO was 300 ms\.\n"
        r"It was told to try again in \1 ms\.",
        story,
    )


def test_a_client_that_left_is_told(told: Told) -> None:
    story = told("12")
    assert "Its client went away 17.0 ms after arrival." in story
    assert "While it waited, the workers ran 1 row of a (" in story
    assert story.endswith("Nobody waited for its answer any more.\n")


def test_requests_that_came_together_are_told(told: Told) -> None:
    assert "0 ms later, together with 3 other requests, 3 of s." in told("22")


def test_a_lost_worker_and_the_second_try_are_told(told: Told) -> None:
    story = told("40")
    assert "w2#two-2 was lost 10.0 ms after arrival: silent." in story
    assert "w1#one-1 was told to load b 10.0 ms after arrival" in story
    assert "w1#one-1 had it loaded in " in story
    assert story.count("It was sent to w") == 2


def test_an_answer_that_came_before_the_end_of_its_batch_is_told(told: Told) -> None:
    story = told("39")
    assert "It expired 10.9 ms after arrival (deadline_exceeded_executing): " in story
    assert "w2#two-2 was lost 11.0 ms after arrival: silent." in story


def test_a_removed_model_is_told(told: Told) -> None:
    assert "It failed 1.0 ms after arrival (model_unavailable): a was removed" in told("60")


def test_a_model_that_is_on_its_way_is_told(told: Told) -> None:
    assert "w2#three-3: its weights were loading, ready in 19.7 ms; idle; loading a." in told("75")


def test_an_early_refusal_has_a_story_too(told: Told) -> None:
    story = told("early-1")
    assert story.startswith("A request of a, 1 row, arrived 0.041000 s after")
    assert "0 ms after arrival, before its body was read (slo_infeasible_ever): " in story


# ---------------------------------------------------------------------- which request


def test_a_request_is_found_by_the_name_its_client_knows(told: Told) -> None:
    assert told("name-3") == told("3")


def test_a_name_of_several_requests_says_which(told: Told) -> None:
    line = told("an upload", exit_code=2)
    assert "an upload names 2 requests, choose: early-1, early-2" in line


def test_an_unknown_request_says_where_to_look(told: Told) -> None:
    line = told("4711", exit_code=2)
    assert "no request 4711 in it; `remontoir explain FILE --list` has them all" in line


def test_the_list_has_every_answer(told: Told) -> None:
    lines = told("--list").splitlines()
    assert len(lines) == 1 + 28
    assert lines[0].split()[0] == "id"
    [third] = [words for words in map(str.split, lines) if words[0] == "3"]
    assert third[:5] == ["3", "0.010300", "s", "200", "ms"]
    assert 1 < float(third[5]) < 200  # how long it took is the policy's matter
    assert third[6:] == ["ms", "a,", "served", "name-3"]


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        (["--refused"], {"10", "13", "early-1"}),
        (["--late"], {"39"}),
        (["--late", "--refused", "--model", "b"], {"39"}),
        (["--model", "s"], {"20", "21", "22", "23", "50"}),
    ],
)
def test_the_list_is_narrowed(told: Told, flags: list[str], ids: set[str]) -> None:
    lines = told("--list", *flags).splitlines()
    crowd = {str(number) for number in range(70, 79)}  # who of them is let in: the policy's matter
    assert {line.split()[0] for line in lines[1:]} - crowd == ids


def test_an_empty_list_says_so(told: Told) -> None:
    assert "No request of that kind is in it." in told("--list", "--late", "--model", "s")


def test_a_model_that_the_recording_does_not_know_is_an_error(told: Told, recording: Path) -> None:
    line = told("--list", "--model", "nosuch", exit_code=2)
    assert (
        line
        == f"remontoir explain: {recording}: no model 'nosuch' in it; there are a, b, late, s\n"
    )


def test_what_is_missing_of_a_recording_is_said_first(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut(recording, tmp_path / "cut.rec")
    told, damage = Told(path, capsys), "it was cut in the middle of what follows block 1"
    for arguments in (["3"], ["--list"], ["--list", "--late", "--model", "s"]):
        assert told(*arguments).startswith(f"{path}: {damage}.\n")
    for arguments in (["4711"], ["--list", "--model", "nosuch"]):
        line = told(*arguments, exit_code=2)
        assert line.startswith(f"remontoir explain: {path}: {damage}; no ")


def test_a_late_answer_is_told_as_such(
    entries: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole day, but the clients had less time than the scheduler thought."""
    hurried: list[Entry] = []
    for entry in entries:
        if isinstance(entry, Handled) and getattr(entry.event, "request_id", 0) == 50:
            event = msgspec.structs.replace(entry.event, deadline_ns=instant(421))
            entry = Handled(entry.now, event, entry.commands)
        hurried.append(entry)
    told = Told(written(tmp_path / "r", hurried), capsys)
    assert "s, served late" in told("--list", "--late")
    story = told("50")
    assert "late by 1." in story
    assert "Today's scheduler decides otherwise than the recorded one" in story


def test_what_was_open_at_the_end_is_told(
    tmp_path: Path, entries: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    index = next(
        i
        for i, e in enumerate(entries)
        if isinstance(e, Handled) and getattr(e.event, "request_id", 0) == 40
    )
    told = Told(written(tmp_path / "r", entries[: index + 1]), capsys)
    assert told("40").endswith("The recording ends before it was answered.\n")


def test_what_is_no_recording_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").write_bytes(b"text")
    assert "it is not a recording" in Told(tmp_path / "r", capsys)("1", exit_code=2)
    assert explain.main([str(tmp_path / "r"), "--list"]) == 2
    assert capsys.readouterr().out == ""  # no headings of a list that does not come


def test_either_a_request_or_the_list(recording: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        explain.main([str(recording)])
    assert ended.value.code == 2


def test_a_name_may_come_after_its_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that is refused in the very call that took it in."""
    arrived = request(1, "a", 1, 10)
    commands = Scheduler().handle(arrived, instant(1))
    entries: list[Entry] = [Handled(instant(1), arrived, commands), Named(1, "mine")]
    told = Told(written(tmp_path / "r", entries), capsys)
    story = told("mine")
    assert "a was not served then." in story
    assert "It was refused 0 ms after arrival (model_unavailable): " in story


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [(0, "0 ms"), (42_000, "0.042 ms"), (1_250_000, "1.2 ms"), (123_400_000, "123 ms")],
)
def test_durations_have_three_digits_that_matter(duration_ns: int, text: str) -> None:
    assert ms(duration_ns) == text


def test_counts_and_lists_read_as_english() -> None:
    assert [counted(1, "row"), counted(2000, "row")] == ["1 row", "2,000 rows"]
    assert listed([1, 2]) == "1, 2"
    assert listed([1, 2, 3, 4, 5, 6, 7]) == "1, 2, 3, 4, 5 and 2 more"


def test_every_event_and_command_of_a_day_has_words(entries: list[Entry]) -> None:
    words = Words(instant(0))
    handled = [entry for entry in entries if isinstance(entry, Handled)]
    kinds = {type(entry.event): words.event(entry.event) for entry in handled}
    assert kinds[Tick] == "time passed"
    assert kinds[RequestCancelled] == "the client of request 12 went away"
    assert kinds[ModelPinned] == "model b was pinned"
    assert kinds[ModelRemoved] == "model a was removed: its directory is gone"
    assert kinds[ModelUnloaded] == "model s was unloaded"
    staged = ModelStaged("a/2", "a")
    assert words.event(staged) == "model a/2 is about to take over from a"
    assert words.event(ModelStaged("b", "")) == "model b is about to take over"
    assert words.event(StagingEnded("a/2")) == "model a/2 has taken over, or never will"
    assert words.event(ModelForgotten("a")) == "model a was forgotten"
    assert words.event(ModelOffered("w", model_spec("a/2"))) == "w has made model a/2 ready"
    trial = Send("w", Infer(3, "a/2", 4, (), (), instant(2), instant(20), 5, 1))
    assert words.command(trial).startswith("send w action 3: try a batch of 4 of a/2, to start")
    assert kinds[WorkerJoined] == "w2#three-3 joined with 3 models"
    assert kinds[WorkerLost] == "w1#one-1 was lost: the gateway stops"
    assert kinds[ActionFinished].startswith("w")
    told = [words.command(command) for entry in handled for command in entry.commands or ()]
    for beginning in (
        "answer request 1: served by w1#one-1 in a batch of 1 row",
        "answer request 12: its client had gone away",
        "send w1#one-1 action 1: execute 1 row of a, of 1 request (1), to start from 0.010",
    ):
        assert any(line.startswith(beginning) for line in told), beginning
    assert any(": load a into 4 pages, to start from 0.519000 s to " in line for line in told)
    assert any(": evict a, to start from " in line for line in told)
    assert words.commands(None) == "  it broke"
    assert words.commands([]) == "  nothing"
