"""A worker in virtual time keeps windows, lanes and pages as gpuworker's lane and accepted do."""

import itertools
import random
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
    ReleaseModel,
    Result,
    Span,
)
from scheduler.simulated_worker import Link, SimulatedWorker, Spikes, exec_ns_of
from tests.scheduler.story import device_spec, model_spec, ms

FOREVER_MS = 1_000_000


class Bench:
    """A worker moved by hand: orders in, (instant in ms, action id, code) out, in that order."""

    def __init__(
        self,
        *,
        pages: int = 8,
        shared: bool = False,
        resident: tuple[str, ...] = ("m",),
        fail: Callable[[Action], Code | None] | None = None,
        **options: object,
    ) -> None:
        specs = [model_spec(name, exec_ms={1: 10, 4: 28, 8: 50}) for name in ("m", "n", "o")]
        self.worker = SimulatedWorker(
            "w",
            device_spec(pages=pages, shared=shared),
            specs,
            fail=fail,
            resident=resident,
            **options,  # type: ignore[arg-type]
        )
        self.results: list[Result] = []
        self.reported: list[tuple[float, int, Code]] = []

    def order(self, action: Action, at_ms: float = 0) -> None:
        self.until(at_ms)
        self.worker.receive(action, ms(at_ms))
        self._advance(ms(at_ms))

    def until(self, at_ms: float) -> None:
        while (wake_ns := self.worker.wake_at()) is not None and wake_ns <= ms(at_ms):
            self._advance(wake_ns)

    def rest(self) -> list[tuple[float, int, Code]]:
        """All reports, once the worker has nothing left to do."""
        self.until(FOREVER_MS)
        assert not self.worker.is_busy
        return self.reported

    def _advance(self, now: int) -> None:
        for result in self.worker.advance(now):
            self.results.append(result)
            self.reported.append((now / 1e6, result.action_id, result.code))


def infer(
    action_id: int = 1,
    model: str = "m",
    *,
    rows: int = 1,
    earliest: float = 0,
    latest: float = FOREVER_MS,
) -> Infer:
    return Infer(action_id, model, rows, (7,), (rows,), ms(earliest), ms(latest), ms(10))


def load(
    action_id: int = 2, model: str = "n", *, latest: float = FOREVER_MS, earliest: float = 0
) -> LoadWeights:
    return LoadWeights(action_id, model, 4, ms(earliest), ms(latest), ms(20))


def evict(action_id: int = 3, model: str = "m") -> EvictWeights:
    return EvictWeights(action_id, model, 0, ms(FOREVER_MS))


def release(action_id: int = 4, model: str = "m") -> ReleaseModel:
    return ReleaseModel(action_id, model, 0, ms(FOREVER_MS))


# ---------------------------------------------------------------------- lanes


@pytest.mark.parametrize(("rows", "expected_ms"), [(1, 10), (3, 22), (4, 28), (8, 50), (16, 100)])
def test_an_execution_takes_as_long_as_profiled(rows: int, expected_ms: int) -> None:
    bench = Bench()
    bench.order(infer(rows=rows), 3)
    assert bench.rest() == [(3 + expected_ms, 1, Code.OK)]
    [result] = bench.results
    assert isinstance(result, InferResult)
    assert result.received_ns == ms(3)
    assert result.exec == Span(ms(3), ms(3 + expected_ms), ms(expected_ms))
    assert (result.input.end_ns, result.output.begin_ns) == (ms(3), ms(3 + expected_ms))


def test_durations_and_delays_may_be_drawn_from_elsewhere() -> None:
    bench = Bench(duration_of=lambda action: ms(7 if isinstance(action, Infer) else 9))
    bench.order(infer(1))
    bench.order(load(2))
    assert bench.rest() == [(7, 1, Code.OK), (9, 2, Code.OK)]
    more_ns = iter([ms(5), ms(1)])
    link = Link(ms(1), 0, random.Random(1), more_ns=lambda: next(more_ns))
    assert [link.arrival_of(ms(10)), link.arrival_of(ms(11))] == [ms(16), ms(16)]


def test_what_was_measured_for_more_rows_stands_for_fewer() -> None:
    assert exec_ns_of({4: 28, 8: 50}, 1) == 28


def test_the_exec_lane_is_serial() -> None:
    bench = Bench()
    bench.order(infer(1))
    bench.order(infer(2), 3)
    bench.order(infer(3), 4)
    assert bench.rest() == [(10, 1, Code.OK), (20, 2, Code.OK), (30, 3, Code.OK)]


def test_what_waits_starts_in_the_order_of_earliest_then_of_arrival() -> None:
    bench = Bench()
    bench.order(infer(1))
    bench.order(infer(2, earliest=8), 1)
    bench.order(infer(3, earliest=5), 2)
    bench.order(infer(4, earliest=8), 3)
    assert [action_id for _, action_id, _ in bench.rest()] == [1, 3, 2, 4]


def test_a_window_is_kept_at_both_ends() -> None:
    bench = Bench()
    bench.order(infer(1, earliest=30))
    bench.order(infer(2, earliest=30, latest=39), 1)
    bench.order(load(3, latest=5), 6)
    assert bench.rest() == [(6, 3, Code.TOO_LATE), (40, 1, Code.OK), (40, 2, Code.TOO_LATE)]
    assert "1.000 ms after its window closed" in bench.results[-1].message


def test_that_it_is_too_late_is_said_when_the_lane_comes_to_it_and_the_next_one_starts() -> None:
    bench = Bench()
    bench.order(infer(1))
    bench.order(infer(2, latest=4), 1)
    bench.order(infer(3), 2)
    assert bench.rest() == [(10, 1, Code.OK), (10, 2, Code.TOO_LATE), (20, 3, Code.OK)]


def test_the_last_instant_of_a_window_is_in_it() -> None:
    bench = Bench()
    bench.order(infer(1))
    bench.order(infer(2, latest=10), 1)
    assert bench.rest()[-1] == (20, 2, Code.OK)


def test_loads_and_executions_run_side_by_side_on_a_device_of_its_own() -> None:
    bench = Bench()
    bench.order(infer(1))
    bench.order(load(2))
    bench.order(infer(3))
    assert bench.rest() == [(10, 1, Code.OK), (20, 3, Code.OK), (20, 2, Code.OK)]


def test_loads_and_executions_take_turns_on_a_shared_core() -> None:
    bench = Bench(shared=True)
    bench.order(infer(1))
    bench.order(load(2), 1)
    bench.order(infer(3, earliest=2), 2)
    bench.order(infer(4), 3)
    assert bench.rest() == [(10, 1, Code.OK), (30, 2, Code.OK), (40, 4, Code.OK), (50, 3, Code.OK)]


def test_on_a_shared_core_the_one_that_may_start_earlier_goes_first() -> None:
    bench = Bench(shared=True)
    bench.order(infer(1))
    bench.order(load(2, earliest=5), 1)
    bench.order(infer(3, earliest=4), 2)
    assert bench.rest() == [(10, 1, Code.OK), (20, 3, Code.OK), (40, 2, Code.OK)]


def test_an_eviction_does_not_wait_for_the_core() -> None:
    bench = Bench(shared=True, resident=("m", "n"))
    bench.order(infer(1))
    bench.order(evict(2, "n"), 3)
    assert bench.rest() == [(3, 2, Code.OK), (10, 1, Code.OK)]


# ---------------------------------------------------------------------- pages


def test_only_what_is_resident_is_executed() -> None:
    bench = Bench(resident=())
    bench.order(infer(1, "n"))
    bench.order(infer(2, "never heard of"))
    bench.order(load(3, "n"))
    bench.order(infer(4, "n"), 19)
    bench.order(infer(5, "n"), 20)
    assert bench.rest() == [
        (0, 1, Code.WEIGHTS_MISSING),
        (0, 2, Code.UNKNOWN_MODEL),
        (19, 4, Code.WEIGHTS_MISSING),
        (20, 3, Code.OK),
        (30, 5, Code.OK),
    ]
    assert [result.message for result in bench.results[:3]] == [
        "n is not resident",
        "never heard of: no such model here",
        "n is loading",
    ]


def test_pages_are_finite_and_come_back() -> None:
    bench = Bench(pages=8)
    bench.order(load(1, "n"))
    bench.order(load(2, "n"))
    bench.order(load(3, "o"))
    bench.order(evict(4, "n"))
    bench.order(evict(5, "n"))
    bench.order(load(6, "o"))
    assert bench.worker.pages_free == 0
    assert bench.rest() == [
        (20, 1, Code.OK),
        (20, 2, Code.ALREADY_RESIDENT),
        (20, 3, Code.PAGES_EXHAUSTED),
        (20, 4, Code.OK),
        (20, 5, Code.WEIGHTS_MISSING),
        (40, 6, Code.OK),
    ]
    assert bench.results[2].message == "o: needs 4 pages, 0 of 8 free"


def test_what_has_no_pages_is_released_at_once_and_may_be_loaded_again() -> None:
    bench = Bench(shared=True)
    bench.order(infer(1))
    bench.order(release(2, "m"), 3)
    bench.order(release(3, "n"), 3)
    bench.order(load(4, "n"), 10)
    assert bench.rest() == [
        (3, 2, Code.WEIGHTS_IN_USE),
        (3, 3, Code.OK),
        (10, 1, Code.OK),
        (30, 4, Code.OK),
    ]


def test_what_executes_is_not_evicted() -> None:
    bench = Bench()
    bench.order(infer(1))
    bench.order(evict(2, "m"), 5)
    bench.order(evict(3, "m"), 10)
    assert bench.rest() == [(5, 2, Code.WEIGHTS_IN_USE), (10, 1, Code.OK), (10, 3, Code.OK)]


def test_residents_are_what_may_be_used_when_it_introduces_itself() -> None:
    bench = Bench()
    bench.order(load(1, "n"))
    assert bench.worker.joined().resident == ("m",)
    bench.rest()
    assert bench.worker.joined().resident == ("m", "n")


def test_residents_must_fit() -> None:
    with pytest.raises(ValueError, match="w: its 3 resident models need 12 pages, it has 8"):
        Bench(resident=("m", "n", "o"))


def test_weights_can_be_lost_but_for_those_on_their_way() -> None:
    bench = Bench(pages=8)
    bench.order(load(1, "n"))
    bench.worker.drop_weights()
    assert bench.worker.pages_free == 4
    bench.order(infer(2, "m"))
    bench.order(infer(3, "n"), 20)
    assert bench.rest() == [(0, 2, Code.WEIGHTS_MISSING), (20, 1, Code.OK), (30, 3, Code.OK)]


# ---------------------------------------------------------------------- trouble and chance


@pytest.mark.parametrize("action", [infer(), load(), evict()], ids=lambda a: type(a).__name__)
def test_trouble_is_played_on_demand(action: Action) -> None:
    bench = Bench(fail=lambda _: Code.ENGINE_ERROR)
    bench.order(action)
    assert bench.rest() == [(0, action.action_id, Code.ENGINE_ERROR)]


def test_a_failed_load_leaves_nothing_behind() -> None:
    bench = Bench(fail=lambda _: Code.LOAD_FAILED)
    bench.order(load())
    bench.rest()
    [result] = bench.results
    assert isinstance(result, LoadResult)
    assert bench.worker.joined().resident == ("m",)
    assert bench.worker.pages_free == 4


def durations_ms(count: int = 5, **options: object) -> list[float]:
    bench = Bench(**options)  # type: ignore[arg-type]
    for number in range(count):
        bench.order(infer(number))
    ends = [0.0, *(at_ms for at_ms, _, _ in bench.rest())]
    return [end - begin for begin, end in itertools.pairwise(ends)]


def test_noise_is_seeded() -> None:
    durations = durations_ms(noise=0.1, seed=3)
    assert durations == durations_ms(noise=0.1, seed=3)
    assert durations != durations_ms(noise=0.1, seed=4)
    assert len(set(durations)) == 5
    assert all(5 < duration < 15 for duration in durations)


def test_noise_of_loads_is_their_own() -> None:
    quiet, loud = Bench(noise=0.1, load_noise=0.0), Bench(load_noise=0.1)
    for bench in (quiet, loud):
        bench.order(load(1))
        bench.order(infer(2))
        bench.rest()
    [quiet_exec], [quiet_load] = ([at for at, i, _ in quiet.reported if i == n] for n in (2, 1))
    [loud_exec], [loud_load] = ([at for at, i, _ in loud.reported if i == n] for n in (2, 1))
    assert quiet_load == 20
    assert quiet_exec != 10
    assert loud_load != 20
    assert loud_exec == 10


def test_nothing_is_done_in_no_time_however_wide_the_noise() -> None:
    assert min(durations_ms(200, noise=3.0)) == pytest.approx(1.0)


def test_spikes_come_on_top() -> None:
    assert durations_ms(spikes=Spikes(1.0, ms(2), ms(2))) == [12.0] * 5
    some = durations_ms(400, spikes=Spikes(0.1, ms(1), ms(3)))
    spiked = [duration for duration in some if duration > 10]
    assert 20 <= len(spiked) <= 60
    assert all(11 <= duration <= 13 for duration in spiked)


def test_a_link_delays_each_message_alike() -> None:
    link = Link(ms(0.1), 0, random.Random(1))
    assert [link.arrival_of(ms(at)) for at in (1, 2, 2)] == [ms(1.1), ms(2.1), ms(2.1)]


def test_jitter_has_its_mean_and_no_message_overtakes_another() -> None:
    link = Link(ms(0.1), ms(1), random.Random(1))
    tails_ms = [(link.arrival_of(ms(100 * i)) - ms(100 * i + 0.1)) / 1e6 for i in range(1, 2001)]
    assert min(tails_ms) >= 0
    assert sum(tails_ms) / len(tails_ms) == pytest.approx(1.0, rel=0.1)
    close = [link.arrival_of(ms(300_000) + i) for i in range(100)]
    assert close == sorted(close)
