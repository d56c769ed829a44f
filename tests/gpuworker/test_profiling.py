from collections.abc import Callable, Sequence

from gpuworker.artifact_cache import SampleInputs
from gpuworker.engines.datatypes import Array
from gpuworker.profiling import measure, measure_shapes
from gpuworker.shape_probe import ProbedModel
from scheduler.spec import MILLISECOND_NS, ShapeProfile, TensorSpec


def ms(value: int) -> int:
    return value * MILLISECOND_NS


class PuppetModel:
    """Takes as long per input shape as the table says, on no clock."""

    def __init__(self, times_ms: dict[tuple[int, ...], int]) -> None:
        self.times_ms = times_ms
        self.measured: list[tuple[int, ...]] = []

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        self.measured.append(inputs["x"].shape)
        return []

    def measure(self, work: Callable[[], object]) -> int:
        work()
        return ms(self.times_ms[self.measured[-1]])

    def profile(
        self, lengths: Sequence[int], batch_sizes: Sequence[int]
    ) -> tuple[ShapeProfile, ...]:
        probed = ProbedModel(
            inputs=(TensorSpec("x", "FP32", (-1, -1), 0),),
            outputs=(),
            samples=tuple(SampleInputs(((length,),), 2) for length in lengths),
            can_batch=True,
            note="",
        )
        return measure_shapes(self.run, probed, batch_sizes, self.measure)


def test_every_shape_is_measured_at_every_batch_size() -> None:
    model = PuppetModel({(1, 5): 3, (2, 5): 4, (1, 9): 6, (2, 9): 8})
    assert model.profile([5, 9], [1, 2]) == (
        ShapeProfile("5", 5, {1: ms(3), 2: ms(4)}),
        ShapeProfile("9", 9, {1: ms(6), 2: ms(8)}),
    )


def test_batches_of_more_than_a_second_are_left_out() -> None:
    model = PuppetModel({(1, 5): 400, (2, 5): 700, (4, 5): 1_001})
    (profile,) = model.profile([5], [1, 2, 4, 8])
    assert profile.exec_ns == {1: ms(400), 2: ms(700)}


def test_hopeless_batches_are_not_even_tried() -> None:
    model = PuppetModel({(1, 5): 400})
    (profile,) = model.profile([5], [1, 4, 8])
    assert profile.exec_ns == {1: ms(400)}
    assert model.measured == [(1, 5)]


def test_one_row_is_offered_however_long_it_takes() -> None:
    model = PuppetModel({(1, 5): 5_000})
    (profile,) = model.profile([5], [1, 2])
    assert profile.exec_ns == {1: ms(5_000)}


def test_a_longer_shape_has_the_same_batch_sizes_extrapolated_where_hopeless() -> None:
    model = PuppetModel({(1, 5): 100, (2, 5): 200, (4, 5): 400, (1, 50): 900})
    _, longer = model.profile([5, 50], [1, 2, 4])
    assert longer.exec_ns == {1: ms(900), 2: ms(1_800), 4: ms(3_600)}


def test_measuring_ends_also_for_work_that_takes_no_time() -> None:
    runs: list[int] = []
    assert measure(lambda: runs.append(1)) >= 0
    assert 4 <= len(runs) <= 52
