"""First come, first served, and how long waiting is allowed."""

import pytest

from scheduler.events import Expired, Served
from tests.scheduler.closed_loop import ClosedLoop
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import model_spec


def test_one_at_a_time_in_order_of_arrival_over_all_models(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"), policy="fifo")
    story.join(resident=["a", "b"])
    story.arrive(1, "a", slo_ms=900)
    story.arrive(2, "b", slo_ms=900, at_ms=1)
    story.arrive(3, "a", slo_ms=100, at_ms=2)
    executed = []
    for at_ms in (10.2, 20.2, 30.2):
        executed.append(story.infers[0].request_ids)
        story.finish(story.infers[0], at_ms=at_ms)
    assert executed == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("drops", "answered_ms"), [("infeasible", 15), ("expired", 25), ("never", None)]
)
def test_who_waits_is_given_up_as_the_option_says(
    make_scheduler: MakeStory, drops: str, answered_ms: float | None
) -> None:
    story = make_scheduler(policy=f"fifo:drops={drops}")
    story.join(resident=["m"])
    story.arrive(1, slo_ms=500)
    story.arrive(2, slo_ms=500)
    story.arrive(3, slo_ms=25)
    story.advance(26)
    if answered_ms is not None:
        assert isinstance(story.outcomes[3], Expired)
        assert story.answered_at_ms[3] == answered_ms
        return
    assert 3 not in story.outcomes
    for at_ms in (30, 40, 50):
        story.finish(story.infers[0], at_ms=at_ms)
    assert isinstance(story.outcomes[3], Served)
    assert story.answered_at_ms[3] == 50


def test_who_could_not_make_it_any_more_is_passed_over(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec("a"), model_spec("b"), policy="fifo")
    story.join(resident=["a", "b"])
    story.arrive(1, "a", slo_ms=500)
    story.arrive(2, "b", slo_ms=20)
    story.arrive(3, "a", slo_ms=20)
    story.arrive(4, "a", slo_ms=500)
    story.advance(8.2)
    assert [infer.request_ids for infer in story.infers] == [(1,), (4,)]
    story.advance(10)
    assert isinstance(story.outcomes[2], Expired)
    assert isinstance(story.outcomes[3], Expired)


def test_even_never_ends_where_no_device_comes_back(make_scheduler: MakeStory) -> None:
    story = make_scheduler(policy="fifo:drops=never")
    story.join()
    story.arrive(1, slo_ms=25)
    story.finish(story.loads[0], at_ms=20)
    story.advance(3_599_999)
    assert 1 not in story.outcomes
    story.advance(3_600_000)
    assert isinstance(story.outcomes[1], Expired)


def test_single_executions_bound_its_throughput() -> None:
    loop = ClosedLoop("fifo", slo_ms=500, num_models=4)
    assert 285 < loop.run(seconds=1) < 302
    assert set(loop.batches) == {1}
