"""What is asked of models lately, and how much of the fleet that takes."""

import math

import pytest

from scheduler.profile import ExecEstimate
from scheduler.rate_meter import FADE_NS, Demand, OfferedLoad, RateMeter
from scheduler.spec import SECOND_NS
from tests.scheduler.story import model_spec, ms


def estimate(exec_ms: dict[int, float], *, exact: bool = True) -> ExecEstimate:
    spec = model_spec(exec_ms=exec_ms, exact=exact)
    return ExecEstimate(spec, spec.profile.shapes[0], 1.0)


def demand_of(
    rate_per_s: float,
    *,
    slo_ms: float = 100,
    exec_ms: dict[int, float] | None = None,
    exact: bool = True,
    seconds: float = 5,
) -> Demand:
    """A model that is asked so often, evenly, for some seconds; nothing is lost on the way."""
    demand = Demand()
    demand.measure(estimate(exec_ms or {1: 10, 8: 24}, exact=exact), 0)
    for index in range(round(rate_per_s * seconds)):
        now = round(index / rate_per_s * SECOND_NS)
        if demand.arrived(1, ms(slo_ms), now):
            demand.refresh(now)
    return demand


@pytest.mark.parametrize("rate_per_s", [3, 50, 2_000])
def test_a_steady_rate_is_found(rate_per_s: int) -> None:
    meter = RateMeter()
    for index in range(5 * rate_per_s + 1):
        meter.add(1, index * SECOND_NS // rate_per_s)
    assert meter.per_ns(5 * SECOND_NS) * SECOND_NS == pytest.approx(rate_per_s, rel=0.2)


def test_a_rate_is_found_before_a_second_has_passed() -> None:
    meter = RateMeter()
    for index in range(41):
        meter.add(1, ms(5 * index))
    assert meter.per_ns(ms(200)) * SECOND_NS == pytest.approx(200, rel=0.02)


def test_a_single_request_is_no_rate_when_it_comes() -> None:
    """Seen at its own arrival, each request of a rare model would look like a crowd of one."""
    meter = RateMeter()
    meter.add(1, 0)
    assert meter.per_ns(0) == 0
    assert meter.per_ns(SECOND_NS) * SECOND_NS == pytest.approx(0.58, rel=0.01)


def test_a_crowd_at_one_instant_is_no_infinite_rate() -> None:
    meter = RateMeter()
    for _ in range(100):
        meter.add(1, 7)
    assert meter.per_ns(7) * SECOND_NS == pytest.approx(1_040, rel=0.01)


def test_silence_is_forgotten() -> None:
    meter = RateMeter()
    for index in range(100):
        meter.add(1, ms(10 * index))
    assert meter.per_ns(ms(990) + 2 * FADE_NS) * SECOND_NS < 20
    meter.add(1, ms(990) + 30 * FADE_NS)
    assert meter.per_ns(ms(990) + 30 * FADE_NS) == 0


def test_batches_are_as_large_as_the_rate_fills_within_the_slo() -> None:
    """l(b) = 8 + 2b ms, 100 a second: the first of five waits 40 ms and is done at 58 of 60."""
    demand = demand_of(100, slo_ms=60)
    assert demand.batch_ns == ms(18)
    assert demand.ns_per_row == pytest.approx(ms(18.3) / 5.17, rel=0.05)
    assert demand.load == pytest.approx(0.36, rel=0.1)


def test_however_many_come_batches_end_at_the_largest() -> None:
    demand = demand_of(2_000)
    assert demand.batch_ns == ms(24)
    assert demand.load == pytest.approx(2_000 * 0.003, rel=0.05)


def test_an_slo_that_allows_one_by_one_only() -> None:
    demand = demand_of(100, slo_ms=10)
    assert demand.batch_ns == demand.ns_per_row == ms(10)


def test_padding_to_compiled_sizes_is_counted() -> None:
    """Two in ten milliseconds, three in the time of eight: pairs it is."""
    demand = demand_of(100, slo_ms=48, exec_ms={1: 10, 2: 12, 8: 30}, exact=False)
    assert demand.batch_ns == ms(12)


def test_the_slo_is_the_usual_one() -> None:
    demand = Demand()
    for _ in range(200):
        demand.arrived(1, ms(100), 0)
    demand.arrived(1, ms(20), 0)
    assert demand.slo_ns == ms(95)


def test_without_figures_there_is_no_load() -> None:
    demand = Demand()
    demand.arrived(1, ms(100), 0)
    demand.refresh(0)
    assert (demand.load, demand.ns_per_row) == (0, 0)


def test_the_load_is_the_sum_of_all_models_and_silent_ones_drop_out() -> None:
    offered = OfferedLoad()
    one, other = demand_of(100), demand_of(100)
    offered.refresh(one, 5 * SECOND_NS)
    alone = offered.devices
    offered.refresh(other, 5 * SECOND_NS + 1)
    assert offered.devices == pytest.approx(2 * alone)
    assert list(offered.models) == [one, other]
    for second in range(6, 30):  # one goes on, slowly
        one.arrived(1, ms(100), second * SECOND_NS)
        offered.refresh(one, second * SECOND_NS)
    assert list(offered.models) == [one]
    assert offered.devices == pytest.approx(one.load)
    offered.refresh(one, 100 * SECOND_NS)
    assert (offered.devices, list(offered.models)) == (0, [])


def test_the_offered_load_of_now_leaves_out_what_has_faded_and_changes_nothing() -> None:
    offered, old, new = OfferedLoad(), demand_of(100, seconds=5), demand_of(100, seconds=5.5)
    assert offered.as_of(0) == 0
    offered.refresh(old, 5 * SECOND_NS)
    offered.refresh(new, ms(5_500))
    both = old.load + new.load
    assert offered.as_of(6 * SECOND_NS) == pytest.approx(both)
    faded = old.load * math.exp(-1.2) + new.load
    assert offered.as_of(ms(6_200)) == pytest.approx(faded)
    assert offered.as_of(60 * SECOND_NS) == pytest.approx(0, abs=1e-9)
    assert offered.devices == pytest.approx(both)
