"""What lanes, the event loop and the process did with their time, on the metrics page."""

from gateway.metrics.loop_lag import LoopLag
from scheduler.actions import Code, Infer, InferResult, Span
from scheduler.events import ActionFinished, Reply, Send, Tick, WorkerLost
from tests.gateway.http_doubles import Clock, Timers, ms, served
from tests.gateway.metrics.test_metrics import Observed, infer


def batch(action_id: int, begin_ms: float, end_ms: float) -> InferResult:
    """Input, exec and output from the one to the other."""
    begin, end = ms(begin_ms), ms(end_ms)
    phases = Span(begin, begin, 0), Span(begin, end, end - begin), Span(end, end, 0)
    return InferResult(action_id, Code.OK, "", begin, *phases)


def executed(observed: Observed, result: InferResult, *, queued_ms: float) -> None:
    observed.event(Tick(), infer(result.action_id, 1))
    answers = [Reply(n, served(queue_ns=ms(queued_ms / n))) for n in (2, 1)]
    observed.event(ActionFinished("w#1-1", result), *answers)


def lane_seconds(observed: Observed) -> tuple[float | None, float | None]:
    """Busy, idle with work."""
    return (
        observed.value("lane_busy_seconds_total", worker="w", lane="exec"),
        observed.value("lane_idle_with_work_seconds_total", worker="w"),
    )


def test_a_lane_is_busy_idle_or_idle_though_somebody_waited() -> None:
    observed = Observed()
    executed(observed, batch(1, 100, 110), queued_ms=40)
    assert lane_seconds(observed) == (0.01, 0)  # since when it was idle is not known
    executed(observed, batch(2, 110, 115), queued_ms=5)
    assert lane_seconds(observed) == (0.015, 0)
    executed(observed, batch(3, 135, 140), queued_ms=2)  # it came to a lane that was idle
    assert lane_seconds(observed) == (0.02, 0)
    executed(observed, batch(4, 143, 145), queued_ms=9)  # idle for 3, somebody waited for longer
    assert lane_seconds(observed) == (0.022, 0.003)
    executed(observed, batch(5, 144, 150), queued_ms=9)  # its input beside the other's output
    assert lane_seconds(observed) == (0.027, 0.003)
    executed(observed, batch(6, 146, 149), queued_ms=9)  # reported late
    assert lane_seconds(observed) == (0.027, 0.003)


def test_a_lost_workers_absence_is_no_idleness() -> None:
    observed = Observed()
    executed(observed, batch(1, 100, 110), queued_ms=5)
    observed.event(WorkerLost("w#1-1", "silent"))
    observed.event(Tick(), Send("w#2-1", Infer(7, "mlp", 1, (1,), (1,), 0, 0, 0)))
    reply = Reply(1, served(queue_ns=ms(500)))
    observed.event(ActionFinished("w#2-1", batch(7, 900, 910)), reply)
    assert lane_seconds(observed) == (0.02, 0)


def test_how_late_the_event_loop_comes_is_measured_ten_times_a_second() -> None:
    observed, clock, timers = Observed(), Clock(), Timers()
    lag = LoopLag(clock=clock, call_later=timers)
    observed.metrics.watch_loop(lag)
    assert observed.value("event_loop_lag_seconds_count") is None
    lag.start()
    for late_ms in (0, 3, -1):  # a timer of whole milliseconds may be early
        timer = timers.armed.pop()
        assert timer.delay_s == 0.1
        clock.advance(ms(100 + late_ms))
        timer.fire()
    assert observed.value("event_loop_lag_seconds_bucket", le="5e-05") == 2
    assert observed.value("event_loop_lag_seconds_bucket", le="0.005") == 3
    assert observed.value("event_loop_lag_seconds_sum") == 0.003
    lag.close()
    assert timers.armed == []
    lag.close()


def test_the_process_is_shown_under_the_names_that_all_exporters_use() -> None:
    observed = Observed()
    memory = observed.value("resident_memory_bytes", prefix="process_")
    assert memory is not None
    assert memory > 1 << 20
    for name in ("cpu_seconds_total", "start_time_seconds", "open_fds", "max_fds"):
        assert observed.value(name, prefix="process_")
