"""A recording runs again to the bit; a decision that differs is found and told."""

from pathlib import Path

import msgspec
import pytest

from loadtest import replay
from loadtest.counterfactual import Comparison, compare
from loadtest.recorded_durations import RecordedDurations
from scheduler.actions import Code, EvictWeights, Infer, InferResult, LoadResult, LoadWeights, Span
from scheduler.event_log import Ended, Entry, Foreseen, Handled
from scheduler.events import (
    ActionFinished,
    Event,
    ModelAdded,
    Reason,
    Rejected,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
    Served,
    Tick,
    WorkerJoined,
)
from scheduler.spec import SECOND_NS
from tests.loadtest.recorded_day import HEADER, cut, damaged, day, instant, request, written
from tests.scheduler.story import device_spec, model_spec, ms


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return day()


@pytest.fixture(scope="module")
def recording(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("day") / "day.rec", entries)


def changed(entries: list[Entry], index: int, **fields: object) -> list[Entry]:
    """The entries with one in other words."""
    other: Entry = msgspec.structs.replace(entries[index], **fields)
    return [*entries[:index], other, *entries[index + 1 :]]


def test_the_day_has_every_kind_of_event(entries: list[Entry]) -> None:
    kinds = {type(entry.event) for entry in entries if isinstance(entry, Handled)}
    assert kinds == set(Event.__args__)
    refusals = [entry.refusal is not None for entry in entries if isinstance(entry, Foreseen)]
    assert refusals == [True, False]


def test_the_day_comes_out_the_same(
    entries: list[Entry], recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handled = [entry for entry in entries if isinstance(entry, Handled)]
    num_decisions = sum(len(entry.commands or ()) for entry in handled)
    assert replay.main([str(recording)]) == 0
    said = capsys.readouterr().out
    assert f"All equal: {num_decisions} decisions on {len(handled)} events and 2 early" in said
    assert "27 requests in 0.5 s of recorded time" in said
    assert "was recorded by version 1.2.3" in said


def test_a_decision_that_differs_is_found_and_told_in_words(
    entries: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, entry = next(
        (i, e)
        for i, e in enumerate(entries)
        if isinstance(e, Handled)
        and e.commands
        and isinstance(e.commands[0], Send)
        and isinstance(e.commands[0].action, Infer)
        and e.commands[0].worker_id == "w1#one-1"
    )
    assert entry.commands is not None
    other = Send("w2#two-2", entry.commands[0].action)
    flipped = changed(entries, index, commands=[other, *entry.commands[1:]])
    assert replay.main([str(written(tmp_path / "r", flipped))]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[1].startswith("Equal until it differs: ")
    assert "Recorded:\n  send w2#two-2 action 1: execute 1 row of a, of 1 request (1), to" in said
    assert "Replayed:\n  send w1#one-1 action 1: execute 1 row of a, of 1 request (1), to" in said


def test_a_decision_that_was_not_taken_is_found(
    entries: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(i for i, e in enumerate(entries) if isinstance(e, Handled) and e.commands)
    assert replay.main([str(written(tmp_path / "r", changed(entries, first, commands=[])))]) == 1
    assert "request 1 of a arrived.\nRecorded:\n  nothing\nReplayed:\n  " in capsys.readouterr().out


@pytest.mark.parametrize("was_refused", [True, False])
def test_an_early_look_that_differs_is_found(
    entries: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str], was_refused: bool
) -> None:
    looks = [(i, e) for i, e in enumerate(entries) if isinstance(e, Foreseen)]
    (refused_at, refused), (let_in_at, _) = looks
    index, refusal = (refused_at, None) if was_refused else (let_in_at, refused.refusal)
    flipped = written(tmp_path / "r", changed(entries, index, refusal=refusal))
    assert replay.main([str(flipped)]) == 1
    told = ["  no refusal", "  refused, slo_infeasible_ever: "][:: 1 if was_refused else -1]
    said = capsys.readouterr().out
    assert f"Recorded:\n{told[0]}" in said
    assert f"Replayed:\n{told[1]}" in said


def test_a_scheduler_that_broke_breaks_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = [Handled(instant(2), Tick(), []), Handled(instant(1), Tick(), None)]
    assert replay.main([str(written(tmp_path / "r", [*back, Ended("it broke")]))]) == 0
    assert "it broke: ValueError: now went back" in capsys.readouterr().out


def test_what_is_missing_of_a_recording_is_said_first_and_is_no_success(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut(recording, tmp_path / "cut.rec")
    assert replay.main([str(path)]) == 1
    first, *_, equal, _ = capsys.readouterr().out.splitlines()
    assert first == f"{path}: it was cut in the middle of what follows block 1."
    assert equal.startswith("Equal as far as it goes: ")
    path = damaged(recording, tmp_path / "flip.rec")
    assert replay.main([str(path)]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: what follows block 0 is damaged: ")
    assert "Equal as far as it goes: 0 decisions on 0 events" in said
    killed = written(tmp_path / "killed.rec", day()[:-1])
    assert replay.main([str(killed)]) == 1
    assert capsys.readouterr().out.startswith(f"{killed}: it does not end in order: ")


def test_what_is_missing_of_a_recording_is_said_before_another_policys_figures(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut(recording, tmp_path / "cut.rec")
    assert replay.main([str(path), "--policy", "fifo"]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: it was cut in the middle of what follows")
    path = damaged(recording, tmp_path / "flip.rec")
    assert replay.main([str(path), "--policy", "fifo"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"remontoir replay: {path}: what follows block 0 is damaged: ")
    assert line.endswith("; no request in it was answered")


def test_a_scheduler_that_breaks_now_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = [Handled(instant(2), Tick(), []), Handled(instant(1), Tick(), [])]
    assert replay.main([str(written(tmp_path / "r", back))]) == 1
    assert "Replayed:\n  it broke: ValueError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"text", "it is not a recording")],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, told: str
) -> None:
    path = tmp_path / "r"
    if content is not None:
        path.write_bytes(content)
    assert replay.main([str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"remontoir replay: {path}: {told}")


def test_a_policy_that_there_is_not_is_one_line(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay.main([str(recording), "--policy", "magic"]) == 2
    assert "no policy is called 'magic'" in capsys.readouterr().err


# ---------------------------------------------------------------------- another policy


def figures(compared: Comparison) -> tuple[object, object]:
    """Without the run's own prediction errors, of which there is no wall clock in either."""
    return compared.other, compared.sources


def test_another_policy_meets_the_same_requests(recording: Path) -> None:
    compared = compare(recording, "fifo", seed=1)
    assert compared.recorded.requests == compared.other.requests == 28  # one was an early no
    assert compared.recorded.mean_batch is not None
    assert compared.recorded.mean_batch > 1
    assert compared.other.mean_batch == 1
    assert compared.recorded.cancelled == 1


def test_goodput_is_per_second_of_the_recorded_time(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the time that an exact replay speaks of; arrivals of a burst may be over in no time."""
    compared = compare(recording, "fifo", seed=1)
    recorded_s = compared.recorded_ns / SECOND_NS
    for group in (compared.recorded, compared.other):
        assert group.goodput_per_s == pytest.approx(group.good / recorded_s)
    assert replay.main([str(recording), "--policy", "fifo"]) == 0
    assert f"Per second: of {recorded_s:.1f} s of recorded time." in capsys.readouterr().out
    assert replay.main([str(recording)]) == 0
    assert f"in {recorded_s:.1f} s of recorded time." in capsys.readouterr().out


def test_the_same_seed_says_the_same_and_another_does_not(recording: Path) -> None:
    first = compare(recording, "fifo", seed=1)
    assert figures(compare(recording, "fifo", seed=1)) == figures(first)
    other = compare(recording, "fifo", seed=2)
    assert other.sources == first.sources
    assert other.other.latency_p99_ms != first.other.latency_p99_ms


def test_the_recorded_side_is_as_recorded_whatever_the_scheduler_does_today(
    entries: list[Entry], recording: Path, tmp_path: Path
) -> None:
    last = max(
        i
        for i, e in enumerate(entries)
        if isinstance(e, Handled)
        and any(isinstance(c, Reply) and isinstance(c.outcome, Served) for c in e.commands or ())
    )
    lost = written(tmp_path / "r", changed(entries, last, commands=[]))
    was, now = (compare(path, "remontoir", seed=1) for path in (recording, lost))
    assert now.recorded.good == was.recorded.good - 1
    assert now.other == was.other


def test_the_report_says_what_was_guessed_and_what_it_cannot_tell(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(recording), "--policy", "remontoir", "--schedule-ahead-ms", "3", "--seed", "7"]
    assert replay.main(arguments) == 0
    said = capsys.readouterr().out
    assert "Recorded: remontoir. Instead: remontoir, schedule_ahead 3 ms." in said
    assert "drawn from the same worker, model and batch size" in said
    assert "(seed 7)" in said
    assert "What this cannot tell: clients that wait, retry or give up" in said


def test_a_recording_without_an_answer_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r", [Handled(instant(1), Tick(), [])])
    assert replay.main([str(path), "--policy", "fifo"]) == 2
    assert "no request in it was answered" in capsys.readouterr().err


def early_day(slo_ms: float, *, refuses: bool) -> list[Entry]:
    """An early look at an upload, which arrives if it was not refused."""
    spec = model_spec("a")
    joined = WorkerJoined("w#1-1", device_spec(), (spec,), ("a",))
    uploaded = request(9, "a", 10, slo_ms)
    refusal = Rejected(Reason.SLO_INFEASIBLE_NOW, "then") if refuses else None
    entries: list[Entry] = [
        Handled(instant(0), ModelAdded(spec), []),
        Handled(instant(1), joined, []),
        Foreseen(instant(10), msgspec.structs.replace(uploaded, request_id=0), refusal),
    ]
    later = request(10, "a", 20, 100)
    arrivals = (later,) if refuses else (uploaded, later)
    replies = [Reply(r.request_id, Served("w#1-1", 1, False, 0, 0, 0, 0, 0, 0)) for r in arrivals]
    event = RequestsArrived(arrivals) if len(arrivals) > 1 else arrivals[0]
    return [*entries, Handled(instant(20), event, replies)]


def test_an_upload_that_was_refused_early_may_be_let_in_by_the_other_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r", early_day(90, refuses=True))
    compared = compare(path, "remontoir", seed=1)
    assert (compared.num_uploads, compared.recorded.rejected) == (1, 1)
    assert (compared.other.requests, compared.other.good) == (2, 2)
    assert replay.main([str(path), "--policy", "remontoir"]) == 0
    assert "1 request that had been refused before the body was read" in capsys.readouterr().out


def test_an_upload_that_the_other_policy_refuses_early_does_not_arrive_there(
    tmp_path: Path,
) -> None:
    compared = compare(written(tmp_path / "r", early_day(5, refuses=False)), "remontoir", seed=1)
    assert compared.recorded.rejected == compared.num_uploads == 0
    assert (compared.other.requests, compared.other.rejected, compared.other.good) == (2, 1, 1)


# ---------------------------------------------------------------------- durations


def infer(action_id: int, model: str, rows: int) -> Infer:
    ids = tuple(range(rows))
    return Infer(action_id, model, rows, ids, (1,) * rows, 0, instant(1000), ms(10))


def finished(action_id: int, begin_ms: float, end_ms: float, *, code: Code = Code.OK) -> Event:
    """Heard of 0.4 ms after its end; it had been received 0.3 ms before its begin."""
    span = Span(instant(begin_ms), instant(end_ms), ms(end_ms - begin_ms))
    result = InferResult(action_id, code, "", instant(begin_ms) - ms(0.3), span, span, span)
    return ActionFinished("w#1-1", result)


class Learnt:
    """One worker, model "a" recorded with 2 and 8 rows and one LOAD, model "b" never."""

    def __init__(self) -> None:
        self.durations = RecordedDurations(seed=3)
        load = LoadWeights(4, "a", 4, 0, instant(1000), ms(20))
        loaded = LoadResult(4, Code.OK, "", instant(50), Span(instant(51), instant(66), 0))
        sends = [infer(1, "a", 2), infer(2, "a", 8), infer(3, "a", 4), load]
        evict = EvictWeights(5, "a", 0, instant(1000))
        calls: list[tuple[float, Event]] = [
            (11.4, finished(1, 1, 11)),
            # begun before the one before had ended: it had the lane from then on
            (41.4, finished(2, 6, 41)),
            (43, finished(3, 42, 42.5, code=Code.TOO_LATE)),
            (66.4, ActionFinished("w#1-1", loaded)),
            (67, finished(99, 66, 67)),
        ]
        orders = [Send("w#1-1", action) for action in (*sends, evict)]
        self.durations.learn(Handled(instant(0), Tick(), [*orders]))
        for at_ms, event in calls:
            self.durations.learn(Handled(instant(at_ms), event, None))
        specs = (model_spec("a"), model_spec("b"))
        joined = WorkerJoined("w#2-5", device_spec(), specs, ("b",))
        self.worker = self.durations.worker(joined)

    def took_ms(self, action: Infer | LoadWeights) -> float:
        """From the action's start to its end on a worker that comes back under the same name."""
        self.worker.receive(action, instant(100))
        self.worker.advance(instant(100))
        wake_ns = self.worker.wake_at()
        assert wake_ns is not None
        self.worker.advance(wake_ns)
        return (wake_ns - instant(100)) / 1e6


def test_durations_come_from_the_recording_where_it_has_them() -> None:
    learnt = Learnt()
    assert learnt.took_ms(LoadWeights(1, "a", 4, 0, instant(1000), ms(20))) == 15
    assert learnt.took_ms(infer(2, "a", 2)) == 10
    assert learnt.took_ms(infer(3, "a", 8)) == 30
    # nearest is 2 rows, profiled with 16 ms where 1 row has 10
    assert learnt.took_ms(infer(4, "a", 1)) == 6.25
    sources = learnt.durations.sources
    assert (sources.exact, sources.nearby, sources.profiled) == (3, 1, 0)


def test_durations_come_from_the_profile_where_nothing_ran() -> None:
    learnt = Learnt()
    assert learnt.took_ms(infer(1, "b", 4)) == 28
    specs = (model_spec("a"), model_spec("b"))
    stranger = learnt.durations.worker(WorkerJoined("v#1-1", device_spec(), specs, ()))
    learnt.worker = stranger
    assert learnt.took_ms(LoadWeights(2, "b", 4, 0, instant(1000), ms(20))) == 20
    sources = learnt.durations.sources
    assert (sources.exact, sources.nearby, sources.profiled) == (0, 0, 2)
    assert stranger.orders.arrival_of(instant(5)) == instant(5.1)


def test_delays_are_the_recorded_ones() -> None:
    learnt = Learnt()
    # orders: sent at 0, received at 0.7, 5.7 and 50; results: heard of 0.4 ms after the end
    assert learnt.worker.results.arrival_of(instant(5)) == instant(5.4)
    sent_ns = [instant(100 * i) for i in range(60)]
    delays_ns = {learnt.worker.orders.arrival_of(at_ns) - at_ns for at_ns in sent_ns}
    assert delays_ns == {ms(0.7), ms(5.7), ms(50)}


def test_the_header_says_how_the_scheduler_was_made(entries: list[Entry], tmp_path: Path) -> None:
    header = msgspec.structs.replace(HEADER, policy="fifo")
    assert replay.main([str(written(tmp_path / "r", entries, header))]) == 1


def test_schedule_ahead_is_of_another_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(["any.rec", "--schedule-ahead-ms", "5"]) == 2
    said = capsys.readouterr().err
    assert said == "remontoir replay: --schedule-ahead-ms needs --policy\n"


def test_arrivals_are_counted_one_by_one() -> None:
    one = RequestArrived(1, "a", 0, 1)
    assert [replay.num_requests(e) for e in (one, RequestsArrived((one, one)), Tick())] == [1, 2, 0]
