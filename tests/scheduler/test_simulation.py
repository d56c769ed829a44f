"""The second shell: events in virtual time, in order, each once, and the same again each time."""

from collections.abc import Iterator

import pytest

from scheduler.actions import Code
from scheduler.events import (
    ActionFinished,
    Command,
    Event,
    Failed,
    Outcome,
    Rejected,
    RequestArrived,
    RequestsArrived,
    Served,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.scheduler import Scheduler
from scheduler.simulated_worker import Spikes
from scheduler.simulation import SimulatedWorker, Simulation, arrivals_of
from tests.scheduler.story import device_spec, model_spec, ms


def worker(worker_id: str = "w", **options: object) -> SimulatedWorker:
    specs = [model_spec(name, exec_ms={1: 10, 4: 28, 8: 50}) for name in ("m", "n", "o")]
    device = device_spec(pages=8)
    return SimulatedWorker(worker_id, device, specs, **{"resident": ["m"], **options})  # type: ignore[arg-type]


def request(request_id: int, at_ms: float, slo_ms: float = 100, model: str = "m") -> RequestArrived:
    return RequestArrived(request_id, model, ms(at_ms), ms(at_ms + slo_ms))


class Log(list[tuple[float, Event, list[Command]]]):
    """An observer that keeps what it sees; instants in ms."""

    def __call__(self, now: int, event: Event, commands: list[Command]) -> None:
        self.append((now / 1e6, event, commands))

    def of(self, kind: type) -> list[tuple[float, Event]]:
        return [(now, event) for now, event, _ in self if isinstance(event, kind)]


def simulation(*workers: SimulatedWorker, **options: object) -> Simulation:
    specs = [model_spec(name, exec_ms={1: 10, 4: 28, 8: 50}) for name in ("m", "n", "o")]
    return Simulation(Scheduler(models=specs), workers, **options)  # type: ignore[arg-type]


def test_a_run_ends_when_everyone_is_answered() -> None:
    seen: list[tuple[int, Event, int]] = []

    def observe(now: int, event: Event, commands: list[Command]) -> None:
        seen.append((now, event, len(commands)))

    run_ = simulation(worker(), observer=observe)
    run_.run(arrivals_of([request(2, 5), request(1, 0), request(3, 300)]))
    assert sorted(run_.outcomes) == [1, 2, 3]
    assert all(isinstance(outcome, Served) for _, outcome in run_.outcomes.values())
    assert [now for now, _, _ in seen] == sorted(now for now, _, _ in seen)
    assert any(isinstance(event, Tick) for _, event, _ in seen)
    assert run_.scheduler.num_open == 0


def test_a_run_can_be_stopped_and_goes_on_without_a_loss() -> None:
    whole, halves = simulation(worker()), simulation(worker())
    arrivals = arrivals_of(request(i, 7 * i) for i in range(30))
    whole.run(arrivals)
    source = iter(arrivals)
    for until_ms in (0, 50, 51, 130):
        halves.run(source, until_ns=ms(until_ms))
        assert halves.now <= ms(until_ms)
    halves.run(source)
    assert halves.outcomes == whole.outcomes


def test_a_lost_worker_reports_nothing_and_another_takes_over() -> None:
    run_ = simulation(worker(worker_id="a"))
    run_.run(arrivals_of([request(1, 0)]), until_ns=ms(5))
    run_.lose("a")
    run_.join(worker(worker_id="b"))
    run_.at(ms(6), WorkerLost("a", "killed"))
    run_.run()
    [(_, outcome)] = run_.outcomes.values()
    assert isinstance(outcome, Served)
    assert outcome.worker_id == "b"


def test_what_is_sent_to_a_dead_worker_is_swallowed() -> None:
    run_ = simulation(worker(worker_id="a"))
    run_.run(until_ns=ms(1))
    run_.lose("a")
    run_.run(arrivals_of([request(1, 2, slo_ms=50)]))
    assert run_.outcomes[1][0] == ms(52)


def test_a_lost_answer_ends_the_run_with_the_open_requests() -> None:
    core = Scheduler(models=[model_spec()])

    def forget(event: Event, now: int) -> list[Command]:
        core.handle(event, now)
        return []

    run_ = Simulation(core, [worker()], handle=forget)
    with pytest.raises(AssertionError, match=r"nothing will wake the core, and open are: \[1\]"):
        run_.run(arrivals_of([request(1, 0)]))


def test_a_second_answer_ends_the_run() -> None:
    core = Scheduler()
    run_ = Simulation(core, [], handle=lambda event, now: core.handle(event, now) * 2)
    with pytest.raises(AssertionError, match="request 1 answered twice"):
        run_.run(arrivals_of([request(1, 0)]))


def test_while_a_result_is_overdue_nothing_but_the_result_wakes_the_core() -> None:
    """What the lane is expected to do moves on with the clock then: no instant would ever come."""
    log = Log()
    slow = worker(resident=["m", "n"], spikes=Spikes(1.0, ms(30), ms(30)))
    run_ = simulation(slow, observer=log)
    requests = [request(1, 1, 300, "m"), request(2, 2, 300, "n"), request(3, 3, 300, "m")]
    run_.run(arrivals_of(requests))
    assert {type(outcome) for _, outcome in run_.outcomes.values()} == {Served}
    first_heard_ms, _ = log.of(ActionFinished)[0]
    assert 41 < first_heard_ms < 42
    assert not [now for now, _ in log.of(Tick) if 21 < now < first_heard_ms]


# ---------------------------------------------------------------------- stalls, crashes, clients


def test_what_falls_into_a_stall_is_handled_at_its_end_in_order() -> None:
    log = Log()
    run_ = simulation(worker(), observer=log)
    run_.stall(ms(20), ms(10))
    run_.run(
        arrivals_of([request(1, 19), request(2, 21, slo_ms=5), request(3, 30), request(4, 31)])
    )
    assert log.of(RequestArrived) == [
        (19, request(1, 19)),
        (30, request(2, 21, slo_ms=5)),
        (30, request(3, 30)),
        (31, request(4, 31)),
    ]
    # The worker went on: it was done after 29 ms and 0.1 ms of way, and was heard after the stall.
    finished_ms, finished = log.of(ActionFinished)[0]
    assert finished_ms == 30
    assert isinstance(finished, ActionFinished)
    assert finished.result.code is Code.OK
    assert isinstance(run_.outcomes[2][1], Rejected)


def test_two_stalls_that_overlap_end_with_the_later() -> None:
    log = Log()
    run_ = simulation(worker(), observer=log)
    run_.stall(ms(10), ms(30))
    run_.stall(ms(15), ms(5))
    run_.run(arrivals_of([request(1, 21)]))
    assert log.of(RequestArrived) == [(40, request(1, 21))]


def test_a_run_that_stops_inside_a_stall_handles_it_later() -> None:
    run_ = simulation(worker())
    run_.stall(ms(10), ms(10))
    run_.run(arrivals_of([request(1, 12)]), until_ns=ms(15))
    assert run_.outcomes == {}
    run_.run()
    assert isinstance(run_.outcomes[1][1], Served)


def test_a_worker_crashes_and_comes_back_empty() -> None:
    log = Log()
    run_ = simulation(worker("a"), observer=log)
    run_.crash("a", at_ns=ms(5), detect_ns=ms(20), reason="silent for 20 ms")
    run_.call_at(ms(40), lambda: run_.join(worker("b", resident=[])))
    run_.run(arrivals_of([request(1, 0), request(2, 45)]))
    assert isinstance(run_.outcomes[1][1], Failed)
    assert log.of(WorkerLost) == [(25, WorkerLost("a", "silent for 20 ms"))]
    assert [(now, event.worker_id) for now, event in log.of(WorkerJoined)] == [(0, "a"), (40, "b")]  # type: ignore[union-attr]
    outcome = run_.outcomes[2][1]
    assert isinstance(outcome, Served)
    assert outcome.worker_id == "b"
    assert outcome.is_cold_start


def test_a_result_that_had_left_before_the_crash_is_heard() -> None:
    log = Log()
    run_ = simulation(worker("a", delay_ns=ms(2)), observer=log)
    run_.crash("a", at_ns=ms(15), detect_ns=ms(100))
    run_.run(arrivals_of([request(1, 1)]))
    assert [now for now, _ in log.of(ActionFinished)] == [15]


def test_an_order_on_its_way_to_a_crashed_worker_is_gone() -> None:
    log = Log()
    run_ = simulation(worker("a", delay_ns=ms(2)), observer=log)
    run_.crash("a", at_ns=ms(2), detect_ns=ms(10))
    run_.run(arrivals_of([request(1, 1)]))
    assert log.of(ActionFinished) == []
    assert not isinstance(run_.outcomes[1][1], Served)


def test_a_client_hears_its_answer_and_asks_again() -> None:
    answered: list[tuple[int, float]] = []

    def ask_again(request_id: int, outcome: Outcome, now: int) -> None:
        answered.append((request_id, now / 1e6))
        assert isinstance(outcome, Served)
        if request_id < 3:
            run_.at(now + ms(1), request(request_id + 1, now / 1e6 + 1))

    run_ = simulation(worker(), on_answer=ask_again)
    run_.run(arrivals_of([request(1, 1)]))
    [(first, first_ms), (second, second_ms), (third, third_ms)] = answered
    assert (first, second, third) == (1, 2, 3)
    assert [first_ms, second_ms, third_ms] == [11.2, 22.4, 33.6]  # 1 + 0.1 + 10 + 0.1 ms each


def test_requests_of_one_instant_enter_together_where_a_gateway_would_read_them_so() -> None:
    log = Log()
    run_ = simulation(worker(), observer=log, gathers_arrivals=True)
    for request_id in (1, 2):
        run_.at(ms(5), request(request_id, 5))
    run_.at(ms(9), request(7, 9))
    run_.at(ms(9), WorkerLost("nobody", "was never there"))
    run_.at(ms(9), request(8, 9))
    run_.run(arrivals_of([request(3, 5), request(4, 5), request(5, 6), request(9, 9)]))
    assert log.of(RequestsArrived) == [
        (5, RequestsArrived((request(1, 5), request(2, 5), request(3, 5), request(4, 5)))),
        (9, RequestsArrived((request(8, 9), request(9, 9)))),
    ]
    assert log.of(RequestArrived) == [(6, request(5, 6)), (9, request(7, 9))]
    assert sorted(run_.outcomes) == [1, 2, 3, 4, 5, 7, 8, 9]


def test_a_stall_gathers_what_it_held_up() -> None:
    log = Log()
    run_ = simulation(worker(), observer=log, gathers_arrivals=True)
    run_.stall(ms(5), ms(10))
    run_.run(arrivals_of([request(1, 6), request(2, 7), request(3, 16)]))
    assert log.of(RequestsArrived) == [(15, RequestsArrived((request(1, 6), request(2, 7))))]
    assert log.of(RequestArrived) == [(16, request(3, 16))]


def test_what_the_scheduler_does_not_notice_does_not_part_what_is_gathered() -> None:
    log = Log()
    looks: list[int] = []
    run_ = simulation(worker(), observer=log, gathers_arrivals=True)
    run_.at(ms(5), request(1, 5))
    run_.call_at(ms(5), lambda: looks.append(run_.now))
    run_.at(ms(5), request(2, 5))
    run_.stall(ms(5), ms(1))
    run_.at(ms(5), request(3, 5))
    run_.run()
    assert log.of(RequestsArrived) == [(5, RequestsArrived((request(1, 5), request(2, 5))))]
    assert log.of(RequestArrived) == [(6, request(3, 5))]
    assert looks == [ms(5)]


def test_an_event_among_gathered_arrivals_keeps_its_place() -> None:
    log = Log()
    run_ = simulation(worker(), observer=log, gathers_arrivals=True)

    def arrivals() -> Iterator[tuple[int, Event]]:
        yield ms(5), request(1, 5)
        yield ms(5), WorkerLost("nobody", "was never there")
        yield ms(5), request(2, 5)

    run_.run(arrivals())
    kinds = [type(event).__name__ for now, event, _ in log if now == 5]
    assert kinds == ["RequestArrived", "WorkerLost", "RequestArrived"]


def test_outcomes_need_not_be_kept() -> None:
    answered: list[int] = []
    run_ = simulation(
        worker(),
        keeps_outcomes=False,
        on_answer=lambda request_id, _o, _n: answered.append(request_id),
    )
    run_.run(arrivals_of([request(1, 0), request(2, 50)]))
    assert answered == [1, 2]
    assert run_.outcomes == {}


def noisy_run(seed: int) -> list[tuple[float, Event, list[Command]]]:
    log = Log()
    workers = [
        worker(name, seed=seed + number, noise=0.05, jitter_ns=ms(0.3), resident=[])
        for number, name in enumerate(("a", "b"))
    ]
    run_ = simulation(*workers, observer=log)
    run_.crash("a", at_ns=ms(150), detect_ns=ms(20))
    run_.stall(ms(80), ms(15))
    run_.run(arrivals_of(request(i, 3 * i, model="mno"[i % 3]) for i in range(100)))
    return list(log)


def test_a_seed_has_one_story() -> None:
    assert noisy_run(1) == noisy_run(1)
    assert noisy_run(1) != noisy_run(2)
