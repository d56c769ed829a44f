"""Fixtures of the scheduler's tests."""

from collections.abc import Callable, Iterator

import pytest

from scheduler.invariants import validate
from scheduler.policies import Policy
from scheduler.spec import ModelSpec, SchedulerConfig
from tests.scheduler.story import AHEAD_2_MS, Story

MakeStory = Callable[..., Story]


@pytest.fixture
def make_scheduler() -> Iterator[MakeStory]:
    """Stories with settings of the test's choice; all are checked once more at the end."""
    made: list[Story] = []

    def make(
        *specs: ModelSpec, config: SchedulerConfig | None = None, policy: Policy | str = AHEAD_2_MS
    ) -> Story:
        story = Story(*specs, config=config, policy=policy)
        made.append(story)
        return story

    yield make
    for story in made:
        validate(story.scheduler)
        story.check_answers()


@pytest.fixture
def scheduler(make_scheduler: MakeStory) -> Story:
    """One model "m" (10 ms for one row, 20 ms to load, 4 pages), no worker yet."""
    return make_scheduler()
