"""A device that has nothing to do takes a copy of what waits elsewhere.

One row of "m" takes 10 ms and a LOAD 20 ms; "one" holds the weights, "two" looks on.
"""

from scheduler.policies import parse
from scheduler.policies.residency.demand import DemandResidency
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import AHEAD_2_MS, Story, model_spec

SINGLE = model_spec("m", exec_ms={1: 10})
OTHERS = (model_spec("x"), model_spec("y", exec_ms={1: 10}))


def queue_up(
    make_scheduler: MakeStory,
    number: int,
    *,
    policy: object = AHEAD_2_MS,
    pages: int = 8,
    resident: tuple[str, ...] = (),
    both: tuple[str, ...] = (),
) -> Story:
    """`number` requests of "m" at once; the first is executing on "one"."""
    story = make_scheduler(SINGLE, *OTHERS, policy=policy)
    story.join("one", pages=12, resident=["m", *both])
    story.join("two", pages=pages, resident=[*resident, *both])
    for request_id in range(number):
        story.arrive(request_id, slo_ms=2_000)
    return story


def copies(story: Story) -> list[tuple[str, str]]:
    return [(load.model, story.worker_of(load)) for load in story.loads]


def test_a_long_queue_is_shared_by_a_copy(make_scheduler: MakeStory) -> None:
    """The fourth makes 40.2 ms of work: more than two LOADs."""
    story = queue_up(make_scheduler, 3)
    assert copies(story) == []
    story.arrive(3, slo_ms=2_000)
    assert copies(story) == [("m", "two")]
    story.finish(story.loads[0], at_ms=20.2)
    assert {story.worker_of(infer) for infer in story.infers} == {"one", "two"}


def test_one_copy_at_a_time(make_scheduler: MakeStory) -> None:
    story = queue_up(make_scheduler, 5)
    story.join("three")
    story.arrive(5, slo_ms=2_000)
    assert copies(story) == [("m", "two")]


def busy_elsewhere(make_scheduler: MakeStory, *, slo_ms: float, own_slo_ms: float = 500) -> Story:
    """Seven of "m" wait since 0 ms on "one"; "two" has been at work, and has more, at 50 ms."""
    long, mid = model_spec("long", exec_ms={1: 50}), model_spec("mid", exec_ms={1: 30})
    quick = model_spec("quick", exec_ms={1: 1})
    story = make_scheduler(SINGLE, long, mid, quick)
    story.join("one", resident=["m"])
    story.join("two", resident=["long", "mid", "quick"])
    story.arrive(100, "long", slo_ms=500)
    for request_id in range(7):
        story.arrive(request_id, slo_ms=slo_ms)
    story.arrive(101, "mid", slo_ms=60, at_ms=40)
    story.arrive(102, "quick", slo_ms=own_slo_ms, at_ms=49)
    [first] = [infer for infer in story.infers if 100 in infer.request_ids]
    story.finish(first, at_ms=50.2)
    return story


def test_a_device_at_work_takes_what_is_in_trouble_elsewhere(make_scheduler: MakeStory) -> None:
    """At 50 ms, of the 89 until it must start, the first of "m" has waited more than half."""
    assert copies(busy_elsewhere(make_scheduler, slo_ms=100)) == [("m", "two")]


def test_who_has_time_is_not_in_trouble(make_scheduler: MakeStory) -> None:
    assert copies(busy_elsewhere(make_scheduler, slo_ms=400)) == []


def test_more_urgent_work_of_its_own_goes_first(make_scheduler: MakeStory) -> None:
    """ "quick" must start by 93 ms, the first of "m" by 99."""
    assert copies(busy_elsewhere(make_scheduler, slo_ms=110)) == [("m", "two")]
    assert copies(busy_elsewhere(make_scheduler, slo_ms=110, own_slo_ms=46)) == []


def test_who_could_not_be_saved_is_not_loaded_for(make_scheduler: MakeStory) -> None:
    assert copies(busy_elsewhere(make_scheduler, slo_ms=75)) == []


def test_a_busy_device_takes_none(make_scheduler: MakeStory) -> None:
    story = make_scheduler(SINGLE, *OTHERS)
    story.join("one", resident=["m"])
    story.join("two", resident=["y"])
    story.arrive(100, "y", slo_ms=2_000)
    for request_id in range(7):
        story.arrive(request_id, slo_ms=2_000)
    assert copies(story) == []


def test_pages_of_an_only_copy_in_use_are_not_taken_for_it(make_scheduler: MakeStory) -> None:
    story = make_scheduler(SINGLE, *OTHERS)
    story.join("one", resident=["m"])
    story.join("two", pages=4, resident=["x"])
    for number in range(2):
        story.arrive(100 + number, "x", slo_ms=500, at_ms=12 * number)
        story.finish(story.infers[0], at_ms=12 * number + 11)
    for request_id in range(6):
        story.arrive(request_id, slo_ms=2_000)
    assert copies(story) == []


def test_pages_of_what_nobody_asks_for_are(make_scheduler: MakeStory) -> None:
    story = queue_up(make_scheduler, 6, pages=4, resident=("x",))
    assert [evict.model for evict in story.evicts] == ["x"]
    assert copies(story) == [("m", "two")]


def test_pages_of_one_of_two_copies_are(make_scheduler: MakeStory) -> None:
    story = queue_up(make_scheduler, 6, pages=4, both=("x",))
    assert [(evict.model, story.worker_of(evict)) for evict in story.evicts] == [("x", "two")]
    assert copies(story) == [("m", "two")]


def test_no_room_no_copy(make_scheduler: MakeStory) -> None:
    assert copies(queue_up(make_scheduler, 6, pages=3)) == []


def test_of_two_queues_the_longer_in_loads_is_shared(make_scheduler: MakeStory) -> None:
    story = make_scheduler(SINGLE, *OTHERS)
    story.join("one", resident=["m", "y"])
    for request_id in range(6):
        story.arrive(request_id, "y", slo_ms=5_000)
    for request_id in range(6, 18):
        story.arrive(request_id, "m", slo_ms=5_000)
    story.join("two")
    assert copies(story) == [("m", "two")]


def test_it_can_be_switched_off(make_scheduler: MakeStory) -> None:
    policy = parse(AHEAD_2_MS)._replace(residency=DemandResidency(replicates=False))
    assert copies(queue_up(make_scheduler, 9, policy=policy)) == []


def test_pages_of_pinned_models_are_not_taken_for_it(make_scheduler: MakeStory) -> None:
    story = make_scheduler(SINGLE, model_spec("x", pinned=True))
    story.join("one", pages=12, resident=["m", "x"])
    story.join("two", pages=4, resident=["x"])
    for request_id in range(6):
        story.arrive(request_id, slo_ms=2_000)
    assert copies(story) == []
