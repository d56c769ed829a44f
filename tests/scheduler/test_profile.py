"""Estimates: the profile's curve, bent by what is measured."""

import pytest

from scheduler.profile import MAX_SHAPES, WINDOW_SAMPLES, ExecEstimate, ModelEstimates, RatioWindow
from scheduler.spec import ModelSpec, ShapeProfile
from tests.scheduler.story import model_spec, ms


def estimate_of(spec: ModelSpec) -> ExecEstimate:
    return ModelEstimates(spec).exec("", 4)


# ---------------------------------------------------------------------- the window


def test_an_empty_window_says_as_profiled() -> None:
    window = RatioWindow()
    assert (len(window), window.plan, window.guard) == (0, 1.0, 1.0)


def test_plan_is_the_median_and_guard_the_worst() -> None:
    window = RatioWindow()
    for ratio in (1.0, 1.2, 0.9):
        window.add(ratio)
    assert (window.plan, window.guard) == (1.0, 1.2)


def test_a_full_window_forgives_its_worst() -> None:
    window = RatioWindow()
    for _ in range(WINDOW_SAMPLES - 2):
        window.add(1.0)
    window.add(1.5)
    window.add(2.0)
    assert len(window) == WINDOW_SAMPLES
    assert window.guard == 1.5


def test_an_outlier_is_clipped_and_counted() -> None:
    window = RatioWindow()
    clipped = [window.add(ratio) for ratio in (1.0, 1.0, 1.0, 300.0)]
    assert clipped == [False, False, False, True]
    assert (window.guard, window.plan) == (3.0, 1.0)


def test_old_samples_leave() -> None:
    window = RatioWindow()
    for _ in range(WINDOW_SAMPLES):
        window.add(2.0)
    for _ in range(WINDOW_SAMPLES):
        window.add(1.0)
    assert (window.plan, window.guard, len(window)) == (1.0, 1.0, WINDOW_SAMPLES)


# ---------------------------------------------------------------------- the curve


def test_an_exact_engine_is_interpolated_between_profiled_sizes() -> None:
    estimate = estimate_of(model_spec(exec_ms={1: 10, 2: 16, 4: 28, 8: 48}))
    assert [estimate.plan[n] for n in (1, 2, 3, 4, 6, 8)] == [
        ms(t) for t in (10, 16, 22, 28, 38, 48)
    ]
    assert estimate.executed == list(range(9))


def test_a_padding_engine_costs_the_next_compiled_size() -> None:
    estimate = estimate_of(model_spec(exec_ms={1: 10, 4: 28, 8: 48}, exact=False))
    assert estimate.executed == [0, 1, 4, 4, 4, 8, 8, 8, 8]
    assert [estimate.plan[n] for n in (1, 2, 4, 5)] == [ms(t) for t in (10, 28, 28, 48)]


def test_sizes_beyond_the_profile_are_proportional() -> None:
    shape = ShapeProfile("", 4, {2: ms(10)})
    spec = model_spec(exec_ms={1: 1, 2: 1, 4: 1}, shapes=[shape])
    assert [estimate_of(spec).plan[n] for n in (1, 2, 4)] == [ms(10), ms(10), ms(20)]


def test_more_rows_never_take_less_time() -> None:
    estimate = estimate_of(model_spec(exec_ms={1: 10, 2: 9, 4: 8}))
    assert [estimate.plan[n] for n in (1, 2, 3, 4)] == [ms(10)] * 4
    for _ in range(WINDOW_SAMPLES):
        estimate.observe(1, ms(14))
        estimate.observe(4, ms(4))
    assert estimate.plan == sorted(estimate.plan)
    assert estimate.guard == sorted(estimate.guard)


def test_a_measurement_bends_the_neighbours_too() -> None:
    estimate = estimate_of(model_spec(exec_ms={1: 10, 2: 20, 4: 40}))
    estimate.observe(2, ms(30))
    assert [estimate.plan[n] for n in (1, 2, 4)] == [ms(15), ms(30), ms(60)]
    assert estimate.num_samples == 1


def test_one_outlier_does_not_move_the_plan() -> None:
    estimate = estimate_of(model_spec(exec_ms={1: 10}))
    for _ in range(5):
        estimate.observe(1, ms(10))
    assert estimate.observe(1, ms(3_000))
    assert estimate.plan[1] == ms(10)
    assert estimate.guard[1] == ms(30)


def test_small_wobbles_are_followed_within_one_percent() -> None:
    estimate = estimate_of(model_spec(exec_ms={1: 10}))
    for step in range(200):
        estimate.observe(1, ms(10 + step * 0.02))
    assert abs(estimate.plan[1] - ms(13.8)) < ms(0.3)


def test_impossible_rows_are_not_measured() -> None:
    estimate = estimate_of(model_spec(exec_ms={1: 10, 2: 16}))
    estimate.observe(0, ms(1))
    estimate.observe(3, ms(1))
    assert estimate.num_samples == 0


@pytest.mark.parametrize(
    ("exec_ms", "efficient"),
    [
        ({1: 10.0, 2: 11.0, 4: 12.0}, [0, 1, 2, 3, 4]),  # larger is better
        ({1: 10.0, 2: 20.0, 4: 40.0}, [0, 1, 1, 1, 1]),  # nothing is gained
        ({1: 10.0, 2: 19.9, 4: 39.0}, [0, 1, 1, 1, 1]),  # less than three percent is not worth it
        ({1: 10.0, 2: 12.0, 4: 40.0}, [0, 1, 2, 2, 2]),  # the best size is in the middle
    ],
)
def test_a_batch_is_larger_only_where_it_pays(
    exec_ms: dict[int, float], efficient: list[int]
) -> None:
    assert estimate_of(model_spec(exec_ms=exec_ms)).efficient == efficient


def test_time_for_many_rows_is_in_efficient_batches() -> None:
    estimate = estimate_of(model_spec(exec_ms={1: 10, 2: 12, 4: 40}))
    assert estimate.time_for(1) == ms(10)
    assert estimate.time_for(5) == ms(12 + 12 + 10)


# ---------------------------------------------------------------------- models


def test_a_shape_never_profiled_is_scaled_from_the_nearest() -> None:
    shapes = [ShapeProfile("8", 8, {1: ms(8)}), ShapeProfile("100", 100, {1: ms(50)})]
    estimates = ModelEstimates(model_spec(exec_ms={1: 1}, shapes=shapes))
    assert estimates.exec("8", 8).plan[1] == ms(8)
    assert estimates.exec("16", 16).plan[1] == ms(16)
    assert estimates.exec("200", 200).plan[1] == ms(100)
    assert estimates.exec("none", 0).plan[1] == ms(8)
    assert estimates.first.plan[1] == ms(8)


def test_shapes_are_kept_up_to_a_bound() -> None:
    estimates = ModelEstimates(model_spec())
    oldest = estimates.exec("0", 1)
    for size in range(1, MAX_SHAPES + 1):
        estimates.exec(str(size), size)
    assert len(estimates.shapes) == MAX_SHAPES
    assert estimates.exec("0", 1) is not oldest


def test_loads_follow_what_is_measured() -> None:
    estimates = ModelEstimates(model_spec(load_ms=20))
    assert estimates.load_plan_ns == ms(20)
    assert not estimates.observe_load(ms(30))
    assert estimates.load_plan_ns == ms(30)


def test_a_load_far_above_the_usual_is_an_outlier() -> None:
    estimates = ModelEstimates(model_spec(load_ms=20))
    assert [estimates.observe_load(ms(t)) for t in (20, 20, 20, 900)] == [False] * 3 + [True]
    assert estimates.load_plan_ns == ms(20)


def test_a_load_always_takes_some_time() -> None:
    estimates = ModelEstimates(model_spec(load_ms=0))
    estimates.observe_load(0)
    assert estimates.load_plan_ns == 1
