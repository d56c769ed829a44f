"""The invariants see what they are for: each break of the book is named."""

from collections.abc import Callable

import pytest

from scheduler.device import WeightsState
from scheduler.invariants import InvariantBroken, validate
from scheduler.request import RequestState
from tests.scheduler.story import Story, model_spec


def living_story() -> Story:
    """One in flight, two queued, "n" loading, "a" resident and idle."""
    story = Story(model_spec("m"), model_spec("n"), model_spec("a"))
    story.join(resident=["m", "a"])
    for request_id in (1, 2, 3):
        story.arrive(request_id, slo_ms=200)
    story.arrive(4, "n", slo_ms=200)
    return story


def set_attribute(path: str, value: object) -> Callable[[Story], None]:
    """Change something deep inside: "devices.w.pages_free"."""

    def change(story: Story) -> None:
        *steps, last = path.split(".")
        target: object = story.scheduler.state
        for step in steps:
            target = target[step] if isinstance(target, dict) else getattr(target, step)
        setattr(target, last, value)

    return change


def forget_ready(story: Story) -> None:
    story.scheduler.devices["w"].ready.clear()


def forget_expiry(story: Story) -> None:
    [queue] = story.scheduler.state.models["m"].queues.values()
    story.scheduler._ledger.timers.clear(queue)


def forget_deadlines(story: Story) -> None:
    for outstanding in story.scheduler.devices["w"].outstanding.values():
        story.scheduler._ledger.timers.clear(outstanding)


def forget_request(story: Story) -> None:
    story.scheduler._ledger.requests.clear()


def queue_twice(story: Story) -> None:
    [queue] = story.scheduler.state.models["m"].queues.values()
    assert queue.head is not None
    queue.push(queue.head)


def dispatch_quietly(story: Story) -> None:
    [queue] = story.scheduler.state.models["m"].queues.values()
    assert queue.head is not None
    queue.head.state = RequestState.DISPATCHED


def keep_an_empty_queue(story: Story) -> None:
    [queue] = story.scheduler.state.models["m"].queues.values()
    while queue.head is not None:
        request = queue.pop_head()
        del story.scheduler._ledger.requests[request.request_id]
    story.scheduler.state.num_queued = 1
    story.scheduler.state.models["m"].num_queued = 0


def reverse_the_queue(story: Story) -> None:
    [queue] = story.scheduler.state.models["m"].queues.values()
    requests = list(queue)
    requests[0].deadline_ns, requests[1].deadline_ns = 10, 5


def forget_the_lane(story: Story) -> None:
    device = story.scheduler.devices["w"]
    [infer] = story.infers
    device.exec_lane.finish(infer.action_id, 0)


def overlook_work(story: Story) -> None:
    story.scheduler._ledger.timers.clear(story.scheduler.devices["w"])
    story.scheduler.devices["w"].exec_lane.last_end_ns = 0
    story.scheduler.devices["w"].exec_lane._durations.clear()


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (set_attribute("devices.w.pages_free", 5), "w: 5 free, 12 held"),
        (set_attribute("devices.w.num_infers", 2), "w: num_infers 2"),
        (set_attribute("devices.w.num_moves", 0), "w: num_moves 0"),
        (set_attribute("devices.w.weights.m.num_infers", 0), "w: m.num_infers 0"),
        (set_attribute("devices.w.weights.n.state", WeightsState.RESIDENT), "n resident, 1 LOADs"),
        (set_attribute("models.m.holders", []), "m: holders"),
        (set_attribute("models.n.loading_on", []), "n: loading_on"),
        (set_attribute("models.m.num_queued", 1), "m: num_queued 1"),
        (set_attribute("num_queued", 9), "num_queued 9"),
        (forget_ready, "m: w does not know that requests wait"),
        (forget_expiry, "m: queue without an expiry"),
        (forget_deadlines, "nobody watches the deadlines of action"),
        (forget_request, "open requests"),
        (queue_twice, "a request is in two places"),
        (dispatch_quietly, "2 queued, not QUEUED"),
        (keep_an_empty_queue, "m: an empty queue is kept"),
        (reverse_the_queue, "m: queue out of order"),
        (forget_the_lane, "not on its lane"),
        (overlook_work, "not on its lane|nothing will wake the core"),
    ],
)
def test_a_broken_book_is_named(breaks: Callable[[Story], None], message: str) -> None:
    story = living_story()
    validate(story.scheduler)
    breaks(story)
    with pytest.raises(InvariantBroken, match=message):
        validate(story.scheduler)


def test_work_that_nothing_will_wake_for_is_named() -> None:
    """A request in a queue that was never planned: as if a wake-up had been lost."""
    story = Story(model_spec("m"), model_spec("cold"))
    story.join(resident=["m"])
    arrived = story.arrival(1)
    story.asked.add(1)
    request = story.scheduler._admit(arrived, story.now_ns)
    assert request is not None
    assert story.scheduler.overlooked() == {"w": "1 requests of m"}
    with pytest.raises(InvariantBroken, match="nothing will wake the core"):
        validate(story.scheduler)


def test_a_load_that_nothing_will_wake_for_is_named() -> None:
    story = Story(model_spec("m"), model_spec("cold"))
    story.join(resident=["m"])
    story.scheduler._admit(story.arrival(1, "cold"), story.now_ns)
    assert story.scheduler.overlooked() == {"w": "a LOAD of cold"}
