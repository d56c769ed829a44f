import msgspec
import numpy as np
import pytest

from loadtest.http1 import Shot
from loadtest.messages import read_baseline, read_remontoir
from loadtest.score import Score, score

RIGHT = np.array([1.0, 2.0], np.float32)
MS = 1_000_000


def shot(*, status: int, latency_ms: float, body: bytes = RIGHT.tobytes()) -> Shot:
    made = Shot(stream=0, variant=0, at_ns=1000 * MS)
    made.sent_ns = made.at_ns
    made.done_ns = made.at_ns + int(latency_ms * MS)
    made.status = status
    made.body = body
    return made


def scored(*shots: Shot, read=read_baseline, duration_s: float = 1.0) -> Score:
    return score(
        shots,
        slo_ms=[100.0],
        expected=[[RIGHT]],
        read=read,
        duration_s=duration_s,
        start_ns=1000 * MS,
    )


def test_a_right_200_inside_the_slo_is_on_time():
    result = scored(shot(status=200, latency_ms=100.0))
    assert (result.on_time, result.late, result.wrong) == (1, 0, 0)


def test_a_200_after_the_slo_is_late_however_right():
    result = scored(shot(status=200, latency_ms=100.1))
    assert (result.on_time, result.late) == (0, 1)


def test_latency_counts_from_the_schedule_not_from_the_send():
    sent_late = shot(status=200, latency_ms=110.0)
    sent_late.sent_ns += 50 * MS
    assert scored(sent_late).late == 1


def test_a_wrong_output_is_not_on_time():
    other = np.array([1.0, 2.001], np.float32).tobytes()
    result = scored(shot(status=200, latency_ms=5.0, body=other))
    assert (result.on_time, result.wrong) == (0, 1)


def test_an_output_of_another_size_is_wrong():
    assert scored(shot(status=200, latency_ms=5.0, body=RIGHT.tobytes()[:4])).wrong == 1


def test_an_unreadable_200_is_wrong():
    assert scored(shot(status=200, latency_ms=5.0, body=b"{"), read=read_remontoir).wrong == 1


def test_a_last_bit_of_difference_is_right():
    close = np.nextafter(RIGHT, np.float32(9)).tobytes()
    assert scored(shot(status=200, latency_ms=5.0, body=close)).wrong == 0


@pytest.mark.parametrize(
    ("status", "field"),
    [(429, "refused"), (503, "refused"), (504, "expired"), (0, "no_answer"), (500, "other")],
)
def test_every_other_end_has_its_own_count(status: int, field: str):
    result = scored(shot(status=status, latency_ms=5.0))
    counts = {name: getattr(result, name) for name in ("refused", "expired", "no_answer", "other")}
    assert counts == {name: int(name == field) for name in counts}
    assert result.answered == 0


def test_refusals_are_named_by_their_reason_and_timed():
    refusal = shot(status=429, latency_ms=3.0, body=b'{"reason": "slo_infeasible_now"}')
    result = scored(refusal)
    assert result.reasons == {"429 slo_infeasible_now": 1}
    assert result.refusal_p50_ms == 3.0


def test_a_200_that_the_server_itself_calls_late_is_counted():
    slo = {"latency_ms": 101.0, "slack_ms": -1.0, "predicted_ms": 1.0, "cold_start": False}
    timing = {"queue": 1.0, "load": 0.0, "input": 0.0, "exec": 1.0, "output": 0.0}
    header = msgspec.json.encode({"slo": slo, "timing_ms": timing})
    reply = shot(status=200, latency_ms=102.0, body=header + RIGHT.tobytes())
    reply.json_length = len(header)
    assert scored(reply, read=read_remontoir).server_late == 1


def test_goodput_counts_the_time_until_the_last_answer_on_time():
    # planned for 0.01 s, the answer came 90 ms after the start
    assert scored(shot(status=200, latency_ms=90.0), duration_s=0.01).goodput_per_s == 1 / 0.09


def test_without_answers_there_are_no_percentiles():
    result = scored(shot(status=429, latency_ms=1.0))
    assert (result.p50_ms, result.p99_ms) == (None, None)
    assert result.goodput_per_s == 0
