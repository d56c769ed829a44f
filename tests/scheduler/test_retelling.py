"""A request's story out of the log, and what was around it: the same text as of a recording."""

import re
from collections.abc import Mapping

import pytest

from scheduler.actions import Code
from scheduler.device import WeightsState
from scheduler.event_log import Foreseen, Handled
from scheduler.events import Rejected, Reply, RequestArrived, RequestsArrived, Served, Tick
from scheduler.hindsight import recalled
from scheduler.retelling import CONTEXT, retell_foreseen, retelling
from scheduler.situation import DeviceSituation, Situation, sentences, situation
from scheduler.story import NAMES
from scheduler.story import Story as Telling
from scheduler.words import counted, listed, ms
from tests.scheduler.story import START_NS, Story, model_spec
from tests.scheduler.story import ms as ms_of

RESIDENT, ABSENT = WeightsState.RESIDENT, WeightsState.ABSENT


def at(instant_ns: int) -> str:
    return f"at {ms(instant_ns - START_NS)}"


def warm(*names: str, workers: tuple[str, ...] = ("w",)) -> Story:
    """Models that are resident on every worker."""
    names = names or ("m",)
    story = Story(*(model_spec(name) for name in names))
    for worker_id in workers:
        story.join(worker_id, resident=names)
    return story


def told(
    story: Story, request_id: int, *, arrival_ms: float = 0, model: str = "m", label: str = "r"
) -> list[str]:
    weights = weights_of(story, model)
    log = story.scheduler.recent_log()
    arrival_ns = START_NS + ms_of(arrival_ms)
    *_, last = retelling(log, request_id, arrival_ns, weights, at, label=label)
    return last


def weights_of(story: Story, model: str) -> Mapping[str, WeightsState]:
    return {
        name: device.weights_state(model)
        for name, device in story.scheduler.devices.items()
        if model in device.offered
    }


def test_a_served_request_is_told_with_what_was_before_it() -> None:
    story = warm()
    story.arrive(1, at_ms=0)
    story.arrive(2, at_ms=1)
    story.finish(story.infers[0], at_ms=10)
    story.advance(11)
    story.finish(story.infers[0], at_ms=21)
    lines = told(story, 2, arrival_ms=1)
    assert lines[:4] == [
        "Request r of m, 1 row, arrived at 1.0 ms and wanted its answer within 100 ms.",
        "The scheduler heard of it 0 ms later.",
        "Before it, 0 requests of m waited, and 0 of other models.",
        "w: its weights were resident; busy for another 9.0 ms with 1 row of m.",
    ]
    assert lines[4].startswith("It was sent to w ")
    assert lines[4].endswith("after arrival, alone; expected to execute for 10.0 ms.")
    assert "executed from 10.0 ms after arrival on for 10.0 ms, and the gateway" in lines[5]
    assert lines[6].startswith("It was served 20.0 ms after arrival: good, with 80.0 ms to spare, ")
    assert lines[7] == "Of its wait, 10.0 ms was in the queue."


def test_what_ran_while_it_waited_is_told() -> None:
    story = Story(model_spec(exec_ms={1: 10}))
    story.join("w", resident=("m",))
    story.handle(RequestsArrived(tuple(story.arrival(number) for number in (1, 2, 3))), at_ms=0)
    story.arrive(4, at_ms=1)
    story.finish(story.infers[0], at_ms=10)
    story.finish(story.infers[0], at_ms=20)
    story.advance(40)
    lines = told(story, 4, arrival_ms=1)
    assert "Before it, 2 requests of m waited, 2 of them due before it, and 0 of other" in lines[2]
    assert "While it waited, the workers ran 1 row of m (10.0 ms, w)" in "".join(lines)
    assert any("It was served" in line or "ran 1 row" in line for line in lines)


def test_an_answer_after_its_deadline_is_told() -> None:
    story = Telling(1, at)
    request = RequestArrived(1, "m", START_NS, START_NS + ms_of(10))
    served = Served("w", 1, False, ms_of(15), ms_of(1), 0, 0, ms_of(10), 0)
    story.before(Handled(START_NS, request, []), None)
    story.after(Handled(START_NS + ms_of(11), Tick(), [Reply(1, served)]), None)
    assert "late by 1.0 ms, 4.0 ms earlier than predicted (15.0 ms)." in story.sentences[-2]
    stranger = Telling(2, at)
    stranger.after(Handled(START_NS, Tick(), [Reply(2, served)]), None)
    assert stranger.sentences == []


def test_hindsight_says_what_the_scheduler_saw() -> None:
    story = warm("m", "n", workers=("w", "v"))
    for number in range(1, 9):
        story.arrive(number, "mn"[number % 2], at_ms=number / 4, slo_ms=150)
    request = story.arrival(9, slo_ms=120)
    seen = situation(story.scheduler, request, story.now_ns)
    assert seen is not None
    log = story.scheduler.recent_log()
    known = recalled(log, len(log), request, weights_of(story, "m"), story.now_ns)
    assert known.num_queued == seen.num_queued > 0
    assert (known.num_ahead, known.num_of_others) == (seen.num_ahead, seen.num_of_others)
    assert [(d.worker_id, d.weights, d.batches) for d in known.devices] == [
        (d.worker_id, d.weights, d.batches) for d in seen.devices
    ]


def test_a_refusal_is_told_with_its_figures() -> None:
    story = warm()
    story.arrive(1, at_ms=0)
    story.arrive(2, at_ms=1, slo_ms=15)
    lines = told(story, 2, arrival_ms=1)
    assert lines[3] == "w: its weights were resident; busy for another 9.0 ms with 1 row of m."
    assert lines[4].startswith("It was refused 0 ms after arrival (slo_infeasible_now): ")
    assert re.fullmatch(
        r"The earliest finish was [\d.]+ ms after arrival, its SLO was 15\.0 ms\.", lines[5]
    )
    assert lines[6].startswith("It was told to try again in ")
    story.arrive(3, at_ms=2, slo_ms=4)
    assert any("No SLO below" in line for line in told(story, 3, arrival_ms=2))


def test_a_cold_start_is_told() -> None:
    story = Story()
    story.join("w")
    story.arrive(1, slo_ms=200, at_ms=0)
    story.arrive(2, slo_ms=200, at_ms=5)
    story.finish(story.loads[0], at_ms=20)
    story.advance(25)
    story.finish(story.infers[0], at_ms=45)
    first, second = told(story, 1), told(story, 2, arrival_ms=5)
    assert "w: its weights were absent; idle." in first
    assert "w was told to load m 0 ms after arrival, expected to take 20.0 ms." in first
    assert "w had it loaded in 20.0 ms, 20.0 ms after arrival." in first
    assert any("for its weights to be loaded" in line for line in first)
    assert "w: its weights were loading, ready in 15.0 ms; idle; loading m." in second
    assert any("in a batch of 2 rows with 1 other request (1)" in line for line in second)


def test_a_load_that_failed_is_told() -> None:
    story = Story()
    story.join("w")
    story.arrive(1, slo_ms=200, at_ms=0)
    story.finish(story.loads[0], at_ms=20, code=Code.LOAD_FAILED, message="bus error")
    story.arrive(2, slo_ms=900, at_ms=21)
    assert "w had it loaded not: bus error, 20.0 ms after arrival." in told(story, 1)
    assert any(
        line.startswith("w: its weights were absent") for line in told(story, 2, arrival_ms=21)
    )


def test_a_retry_and_a_failure_are_told() -> None:
    story = warm()
    story.arrive(1, slo_ms=400, at_ms=0)
    story.finish(story.infers[0], at_ms=5, code=Code.TOO_LATE, message="busy")
    assert any("The recording ends before" in line for line in told(story, 1))
    story.finish(story.infers[0], at_ms=12, code=Code.ENGINE_ERROR, message="NaN")
    lines = told(story, 1)
    assert "w did not execute it: too_late, 'busy', heard of 5.0 ms after arrival." in lines
    assert any(line.startswith("It failed 12.0 ms after arrival (engine_error)") for line in lines)


def test_a_lost_worker_and_a_late_answer_are_told() -> None:
    story = warm(workers=("w", "v"))
    story.arrive(1, slo_ms=400, at_ms=0)
    [sent] = story.sent.values()
    story.lose(sent.worker_id, at_ms=5)
    story.advance(6)
    story.finish(story.infers[0], at_ms=21)
    lines = told(story, 1)
    assert f"{sent.worker_id} was lost 5.0 ms after arrival: silent for 1 s." in lines
    story.arrive(2, slo_ms=60, at_ms=30)
    story.advance(95)
    assert any("It expired" in line for line in told(story, 2, arrival_ms=30))
    # of one that was lost is told how it was while it was there
    assert len([line for line in lines if "its weights were resident" in line]) == 2
    later = told(story, 2, arrival_ms=30)
    assert len([line for line in later if "its weights were resident" in line]) == 1


def test_a_client_that_left_is_told() -> None:
    story = warm()
    story.arrive(1, at_ms=0)
    story.arrive(2, at_ms=1)
    story.cancel(2, at_ms=3)
    lines = told(story, 2, arrival_ms=1)
    assert lines[-2:] == [
        "Its client went away 2.0 ms after arrival.",
        "Nobody waited for its answer any more.",
    ]
    story.arrive(3, at_ms=4)
    assert "Before it, 0 requests of m waited, and 0 of other models." in told(
        story, 3, arrival_ms=4
    )


def test_requests_that_came_together_are_told() -> None:
    story = warm("m", "n")
    story.handle(
        RequestsArrived((story.arrival(1), story.arrival(2), story.arrival(3, "n"))), at_ms=0
    )
    story.asked.update({1, 2, 3})
    assert told(story, 2)[1] == (
        "The scheduler heard of it 0 ms later, together with 2 other requests, 1 of m."
    )


def test_a_padded_batch_is_told() -> None:
    story = Story(model_spec(exec_ms={4: 28}, exact=False))
    story.join("w", resident=("m",))
    story.arrive(1, at_ms=0)
    assert "It was sent to w 0 ms after arrival, alone, padded to 4; expected" in told(story, 1)[4]


def test_evicted_weights_are_known_from_what_was_sent() -> None:
    story = Story(model_spec("m"), model_spec("n"))
    story.join("w", pages=4, resident=("m",))
    story.arrive(1, "n", slo_ms=500, at_ms=0)
    [evict] = [send.action for send in story.sent.values() if send.action.model == "m"]
    story.arrive(2, slo_ms=900, at_ms=1)
    story.finish(evict, at_ms=2)
    story.arrive(3, slo_ms=900, at_ms=3)
    assert any("its weights were evicting" in line for line in told(story, 2, arrival_ms=1))
    assert any("its weights were absent" in line for line in told(story, 3, arrival_ms=3))


def test_an_eviction_that_was_refused_leaves_the_weights() -> None:
    story = Story(model_spec("m"), model_spec("n"))
    story.join("w", pages=4, resident=("m",))
    story.arrive(1, "n", slo_ms=500, at_ms=0)
    [evict] = [send.action for send in story.sent.values() if send.action.model == "m"]
    story.finish(evict, at_ms=2, code=Code.WEIGHTS_IN_USE)
    story.arrive(3, slo_ms=900, at_ms=3)
    assert any("its weights were resident" in line for line in told(story, 3, arrival_ms=3))


def test_a_worker_that_was_lost_before_is_not_told_of() -> None:
    story = warm("m", "n", workers=("w", "v"))
    story.arrive(1, at_ms=0)
    story.lose("v", at_ms=1)
    story.arrive(2, at_ms=2)
    assert not any("v: its" in line for line in told(story, 2, arrival_ms=2))


def test_a_worker_that_joined_later_is_not_told_of() -> None:
    story = warm()
    story.arrive(1, at_ms=0)
    story.join("joiner", resident=("m",), at_ms=1)
    assert not any("joiner" in line for line in told(story, 1))


def test_what_began_before_the_log_is_known_from_what_came_after_it() -> None:
    story = Story(model_spec("m"), model_spec("n"))
    story.join("w", pages=4, resident=("n",))
    story.arrive(1, "m", slo_ms=500, at_ms=0)
    log = story.scheduler.recent_log()[-1:]  # since the worker joined
    request = story.arrival(1, "n")

    def weights(model: str, now: WeightsState | None) -> WeightsState | None:
        known = {} if now is None else {"w": now, "v": now}
        of = story.arrival(1, model)
        return recalled(log, 0, of, known, story.now_ns).devices[0].weights

    assert weights("n", ABSENT) is RESIDENT  # since it was evicted afterwards
    assert weights("m", RESIDENT) is ABSENT  # since it was loaded afterwards
    story.finish(next(iter(story.sent.values())).action, at_ms=1)
    log = story.scheduler.recent_log()[-1:]
    found = recalled(log, 0, request, {"v": RESIDENT}, story.now_ns)
    assert found.devices[0].weights is RESIDENT  # since nothing happened to it
    log = story.scheduler.recent_log()[-1:]
    found = recalled(log, 1, request, {"w": ABSENT}, story.now_ns)
    assert (found.devices[0].weights, found.num_queued) == (ABSENT, 0)


def test_results_of_what_was_sent_before_the_log_are_no_news() -> None:
    story = warm()
    story.arrive(1, at_ms=0)
    story.finish(story.infers[0], at_ms=10)
    story.arrive(2, at_ms=12)
    log = story.scheduler.recent_log()[-2:]  # the result, the arrival
    found = recalled(log, 1, story.arrival(2), {"w": RESIDENT}, story.now_ns)
    assert found.devices == (DeviceSituation(worker_id="w", weights=RESIDENT),)


def test_a_request_before_the_log_has_no_story() -> None:
    story = warm()
    story.arrive(1, at_ms=0)
    story.arrive(3, at_ms=1)
    assert told(story, 2, arrival_ms=0) == []
    assert told(story, 4, arrival_ms=0) == []
    assert told(story, 1, arrival_ms=9) == []


def test_a_long_story_is_told_with_breaks() -> None:
    story = Story()
    story.join("w", resident=("m",))
    for number in range(1, CONTEXT):
        story.arrive(number, slo_ms=100_000, at_ms=0)
    log = story.scheduler.recent_log()
    *breaks, last = retelling(log, 1, START_NS, weights_of(story, "m"), at, label="r")
    assert len(breaks) >= CONTEXT // 64 - 1
    assert last[-1] == "The recording ends before it was answered."


def test_a_request_refused_before_its_body_was_read_has_a_story() -> None:
    story = warm()
    story.arrive(1, at_ms=0)
    story.advance(1)
    request = RequestArrived(0, "m", story.now_ns, story.now_ns + ms_of(12))
    refusal = story.scheduler.foresee(request, story.now_ns)
    assert isinstance(refusal, Rejected)
    log = story.scheduler.recent_log()
    foreseen = Foreseen(story.now_ns, request, refusal)
    lines = retell_foreseen(log, foreseen, weights_of(story, "m"), at, label="Request r")
    assert lines[0] == "Request r of m, 1 row, arrived at 1.0 ms and wanted its answer within " + (
        "12.0 ms."
    )
    assert "busy for another 9.0 ms with 1 row of m" in lines[2]
    assert "before its body was read (slo_infeasible_now)" in lines[3]
    untold = Foreseen(story.now_ns, request, None)
    assert len(retell_foreseen(log, untold, {}, at, label="Request r")) == 3


def test_a_scheduler_that_is_run_along_says_more() -> None:
    story = warm("m", workers=("w",))
    story.arrive(1, at_ms=0)
    again = warm("m", workers=("w",))
    telling = Telling(1, at)
    entry = Handled(*story.scheduler.recent_log()[-1])
    telling.before(entry, again.scheduler)
    again.scheduler.handle(entry.event, entry.now)
    telling.after(entry, again.scheduler)
    assert "w: its weights were resident; idle." in telling.sentences
    assert any("let in, with an answer predicted for 1" in line for line in telling.sentences)


def test_a_queued_request_is_let_in_before_it_is_sent() -> None:
    story = warm()
    story.arrive(1, at_ms=0)
    story.arrive(2, at_ms=1)
    telling = Telling(2, at)
    entry = Handled(*story.scheduler.recent_log()[-1])
    telling.before(entry, None)
    telling.after(entry, story.scheduler)
    assert any("let in" in line for line in telling.sentences)


def test_figures_of_a_scheduler_in_words() -> None:
    story = warm(workers=("v", "w"))
    request = story.arrival(9, "other")
    assert sentences(situation(story.scheduler, request, story.now_ns), request, NAMES) == [
        "other was not served then."
    ]
    story = Story()
    request = story.arrival(9)
    assert sentences(situation(story.scheduler, request, story.now_ns), request, NAMES)[1:] == [
        "No worker offered m."
    ]
    story = Story(model_spec("m"), model_spec("n"))
    for number in range(6):
        story.join(f"w{number}", resident=("n",))
    story.arrive(1, "m", slo_ms=500, at_ms=0)
    seen = situation(story.scheduler, story.arrival(2), story.now_ns)
    lines = sentences(seen, request, NAMES)
    assert lines[-1] == "2 more workers offered it."
    assert any("absent (12 of 16 pages free); idle." in line for line in lines)
    [loading] = [line for line in lines if "loading" in line]
    assert re.fullmatch(
        r"w0: its weights were loading, ready in [\d.]+ ms; idle; loading m\.", loading
    )


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (DeviceSituation(worker_id="w", weights=None), "w: its weights were not used lately; idle"),
        (
            DeviceSituation(worker_id="w", weights=RESIDENT, busy_ns=ms_of(2)),
            "w: its weights were resident; busy for another 2.0 ms",
        ),
    ],
)
def test_a_device_in_words(device: DeviceSituation, text: str) -> None:
    around = Situation(model="m", num_queued=3, num_ahead=2, num_of_others=1, devices=(device,))
    request = RequestArrived(1, "m", 0, 1)
    assert sentences(around, request, NAMES) == [
        "Before it, 3 requests of m waited, 2 of them due before it, and 1 of other models.",
        f"{text}.",
    ]


def test_numbers_in_words() -> None:
    assert [ms(0), ms(42_000), ms(12_345_678), ms(123_456_789), ms(-2_000_000)] == [
        "0 ms",
        "0.042 ms",
        "12.3 ms",
        "123 ms",
        "-2.0 ms",
    ]
    assert counted(1, "row") == "1 row"
    assert counted(1200, "row") == "1,200 rows"
    assert listed([1, 2]) == "1, 2"
    assert listed(list(range(7))) == "0, 1, 2, 3, 4 and 2 more"
