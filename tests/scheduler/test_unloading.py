"""A model that an operator unloads leaves pages and host, and comes back when it is added."""

from scheduler.actions import Code, EvictResult
from scheduler.device import WeightsState
from scheduler.events import ActionFinished, Failed, Reason, Rejected, Served
from tests.scheduler.conftest import MakeStory
from tests.scheduler.story import Story, model_spec


def test_who_waits_is_told_at_once_and_who_executes_is_served(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in (1, 2):
        scheduler.arrive(request_id)
    scheduler.unload(at_ms=1)
    told = Failed(Reason.MODEL_UNAVAILABLE, "m was removed: it was unloaded")
    assert scheduler.outcomes == {2: told}
    assert scheduler.evicts == scheduler.releases == []
    scheduler.finish(scheduler.infers[0], at_ms=10)
    assert isinstance(scheduler.outcomes[1], Served)
    assert (len(scheduler.evicts), scheduler.releases) == (1, [])
    device = scheduler.scheduler.devices["w"]
    assert device.keeps("m")
    scheduler.finish(scheduler.evicts[0], at_ms=11)
    assert [release.model for release in scheduler.releases] == ["m"]
    assert device.keeps("m")
    scheduler.finish(scheduler.releases[0], at_ms=12)
    assert not device.keeps("m")
    assert scheduler.sent == {}
    assert scheduler.scheduler.devices["w"].pages_free == 16
    scheduler.arrive(3)
    assert isinstance(scheduler.outcomes[3], Rejected)
    assert scheduler.outcomes[3].reason is Reason.MODEL_UNAVAILABLE


def test_every_worker_releases_it_also_one_that_never_loaded_it(scheduler: Story) -> None:
    scheduler.join("a", resident=["m"])
    scheduler.join("b")
    scheduler.join("other", specs=[model_spec("other")])
    scheduler.unload()
    assert [scheduler.worker_of(release) for release in scheduler.releases] == ["b"]
    scheduler.finish(scheduler.evicts[0], at_ms=1)
    assert [scheduler.worker_of(release) for release in scheduler.releases] == ["b", "a"]


def test_one_that_is_loading_is_evicted_and_released_once_loaded(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1)
    scheduler.unload(at_ms=1)
    assert scheduler.releases == []
    scheduler.finish(scheduler.loads[0], at_ms=20)
    scheduler.finish(scheduler.evicts[0], at_ms=21)
    assert len(scheduler.releases) == 1


def test_a_load_that_fails_leaves_it_to_be_released(scheduler: Story) -> None:
    scheduler.join()
    scheduler.arrive(1)
    scheduler.unload(at_ms=1)
    scheduler.finish(scheduler.loads[0], at_ms=20, code=Code.LOAD_FAILED)
    assert len(scheduler.releases) == 1


def test_a_worker_that_joins_later_has_to_let_go_of_it_too(scheduler: Story) -> None:
    scheduler.unload()
    scheduler.join("full", resident=["m"])
    assert [scheduler.worker_of(evict) for evict in scheduler.evicts] == ["full"]
    scheduler.finish(scheduler.evicts[0], at_ms=1)
    scheduler.join("empty")
    assert [scheduler.worker_of(release) for release in scheduler.releases] == ["full", "empty"]


def test_it_is_served_again_once_it_is_added_and_loaded_by_who_needs_it(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.unload()
    scheduler.finish(scheduler.evicts[0], at_ms=1)
    scheduler.add(model_spec(), at_ms=2)
    assert scheduler.loads == []
    scheduler.finish(scheduler.releases[0], at_ms=3)
    scheduler.pin("m")
    scheduler.finish(scheduler.loads[0], at_ms=23)
    assert scheduler.scheduler.devices["w"].is_resident("m")
    scheduler.arrive(1, slo_ms=50)
    scheduler.finish(scheduler.infers[0], at_ms=34)
    assert isinstance(scheduler.outcomes[1], Served)
    scheduler.unload(at_ms=40)
    scheduler.finish(scheduler.evicts[0], at_ms=41)
    assert len(scheduler.releases) == 1, "it was loaded since: there is something to release"


def test_one_that_is_added_before_its_weights_have_left_is_not_released(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    scheduler.unload()
    scheduler.add(model_spec())
    scheduler.finish(scheduler.evicts[0], at_ms=1)
    assert scheduler.releases == []
    assert scheduler.scheduler.devices["w"].weights_state("m") is WeightsState.ABSENT


def test_a_release_that_fails_is_counted_and_not_repeated(scheduler: Story) -> None:
    scheduler.join()
    scheduler.unload()
    scheduler.finish(scheduler.releases[0], at_ms=1, code=Code.ENGINE_ERROR)
    assert scheduler.sent == {}
    assert scheduler.scheduler.anomalies == {"release_engine_error": 1}


def test_a_release_answered_by_another_kind_is_counted_and_over(scheduler: Story) -> None:
    scheduler.join()
    scheduler.unload()
    wrong = EvictResult(scheduler.releases[0].action_id, Code.OK)
    scheduler.sent.clear()
    scheduler.handle(ActionFinished("w", wrong), 1)
    assert scheduler.scheduler.anomalies == {"result_of_another_kind": 1}


def test_a_model_that_is_not_served_cannot_be_unloaded(scheduler: Story) -> None:
    scheduler.unload("nope")
    scheduler.unload("m")
    scheduler.unload("m")
    assert scheduler.scheduler.anomalies == {"unknown_model_unloaded": 2}


def test_a_pinned_model_can_be_unloaded(make_scheduler: MakeStory) -> None:
    story = make_scheduler(model_spec(pinned=True))
    story.join()
    story.finish(story.loads[0], at_ms=20)
    story.unload(at_ms=21)
    assert len(story.evicts) == 1
    story.finish(story.evicts[0], at_ms=22)
    assert story.loads == []


def test_what_executes_at_a_worker_that_stops_is_not_released(scheduler: Story) -> None:
    scheduler.join(resident=["m"])
    for request_id in (1, 2):
        scheduler.arrive(request_id)
    scheduler.finish(scheduler.infers[0], at_ms=5, code=Code.SHUTTING_DOWN)
    scheduler.unload(at_ms=6)
    assert scheduler.evicts == scheduler.releases == []
