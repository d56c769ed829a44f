"""The second shell: virtual workers keep windows, lanes and pages as real ones do."""

from collections.abc import Callable

import pytest

from scheduler.actions import (
    Action,
    Code,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
)
from scheduler.events import Command, Event, RequestArrived, Served, Tick, WorkerLost
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation, arrivals_of
from tests.scheduler.story import device_spec, model_spec, ms

FOREVER_MS = 1_000_000


def worker(
    *,
    pages: int = 8,
    shared: bool = False,
    resident: tuple[str, ...] = ("m",),
    noise: float = 0.0,
    fail: Callable[[Action], Code | None] | None = None,
    worker_id: str = "w",
) -> SimulatedWorker:
    specs = [model_spec(name, exec_ms={1: 10, 4: 28, 8: 50}) for name in ("m", "n", "o")]
    return SimulatedWorker(
        worker_id,
        device_spec(pages=pages, shared=shared),
        specs,
        noise=noise,
        fail=fail,
        resident=resident,
    )


def infer(
    model: str = "m", rows: int = 1, earliest: float = 0, latest: float = FOREVER_MS
) -> Infer:
    return Infer(1, model, rows, (7,), (rows,), ms(earliest), ms(latest), ms(10))


def load(model: str = "n", pages: int = 4, latest: float = FOREVER_MS) -> LoadWeights:
    return LoadWeights(2, model, pages, 0, ms(latest), ms(20))


def evict(model: str = "m") -> EvictWeights:
    return EvictWeights(3, model, 0, ms(FOREVER_MS))


def run(simulated: SimulatedWorker, action: Action, at_ms: float = 0) -> tuple[float, Code]:
    left_ns, result = simulated.run(action, ms(at_ms))
    return left_ns / 1e6, result.code


def request(request_id: int, at_ms: float, slo_ms: float = 100, model: str = "m") -> RequestArrived:
    return RequestArrived(request_id, model, ms(at_ms), ms(at_ms + slo_ms))


# ---------------------------------------------------------------------- workers


def test_an_execution_takes_as_long_as_profiled() -> None:
    for rows, expected_ms in ((1, 10), (3, 22), (4, 28), (8, 50), (16, 100)):
        left_ns, result = worker().run(infer(rows=rows), 0)
        assert isinstance(result, InferResult)
        assert (left_ns, result.exec.duration_ns) == (ms(expected_ms), ms(expected_ms))


def test_the_exec_lane_is_serial() -> None:
    simulated = worker()
    assert run(simulated, infer()) == (10, Code.OK)
    assert run(simulated, infer(), at_ms=3) == (20, Code.OK)


def test_a_window_is_kept_at_both_ends() -> None:
    assert run(worker(), infer(earliest=30)) == (40, Code.OK)
    assert run(worker(), infer(latest=5), at_ms=6) == (6, Code.TOO_LATE)
    assert run(worker(), load(latest=5), at_ms=6) == (6, Code.TOO_LATE)


def test_only_what_is_resident_is_executed() -> None:
    simulated = worker(resident=())
    assert run(simulated, infer("n"))[1] is Code.WEIGHTS_MISSING
    assert run(simulated, infer("never heard of"))[1] is Code.UNKNOWN_MODEL
    assert run(simulated, load("n")) == (20, Code.OK)
    assert run(simulated, infer("n"), at_ms=19)[1] is Code.WEIGHTS_MISSING
    assert run(simulated, infer("n"), at_ms=20)[1] is Code.OK


def test_pages_are_finite_and_come_back() -> None:
    simulated = worker(pages=8)
    assert run(simulated, load("n")) == (20, Code.OK)
    assert run(simulated, load("n"))[1] is Code.ALREADY_RESIDENT
    assert run(simulated, load("o"))[1] is Code.PAGES_EXHAUSTED
    assert run(simulated, evict("n")) == (20, Code.OK)
    assert run(simulated, evict("n"))[1] is Code.WEIGHTS_MISSING
    assert run(simulated, load("o")) == (40, Code.OK)


def test_loads_and_executions_share_one_core_or_not() -> None:
    apart, shared = worker(), worker(shared=True)
    for simulated in (apart, shared):
        run(simulated, infer())
    assert run(apart, load())[0] == 20
    assert run(shared, load())[0] == 30
    assert run(apart, infer())[0] == 20
    assert run(shared, infer())[0] == 40


def test_noise_is_seeded() -> None:
    first, second = worker(noise=0.1), worker(noise=0.1)
    durations = [run(first, infer())[0] for _ in range(5)]
    assert durations == [run(second, infer())[0] for _ in range(5)]
    assert len(set(durations)) == 5


@pytest.mark.parametrize("action", [infer(), load(), evict()], ids=lambda a: type(a).__name__)
def test_trouble_is_played_on_demand(action: Action) -> None:
    simulated = worker(fail=lambda _: Code.MALFORMED)
    assert run(simulated, action)[1] is Code.MALFORMED


def test_a_failed_load_leaves_nothing_behind() -> None:
    simulated = worker(fail=lambda action: Code.LOAD_FAILED)
    _, result = simulated.run(load(), 0)
    assert isinstance(result, LoadResult)
    assert simulated.joined().resident == ("m",)


# ---------------------------------------------------------------------- runs


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


class ForgetfulScheduler(Scheduler):
    """Answers nobody, and wakes for nothing: what the checks of a run are for."""

    def handle(self, event: Event, now: int) -> list[Command]:
        super().handle(event, now)
        return []

    def next_wakeup(self) -> int | None:
        return None


def test_a_lost_wakeup_ends_the_run_with_the_open_requests() -> None:
    run_ = Simulation(ForgetfulScheduler(models=[model_spec()]), [worker()])
    with pytest.raises(AssertionError, match=r"nothing will wake the core, and open are: \[1\]"):
        run_.run(arrivals_of([request(1, 0)]))


class RepeatingScheduler(Scheduler):
    def handle(self, event: Event, now: int) -> list[Command]:
        return super().handle(event, now) * 2


def test_a_second_answer_ends_the_run() -> None:
    run_ = Simulation(RepeatingScheduler(), [])
    with pytest.raises(AssertionError, match="request 1 answered twice"):
        run_.run(arrivals_of([request(1, 0)]))
