"""Fixtures of the gateway's tests: hand-driven time and puppets at the seams."""

import pytest

from tests.gateway.doubles import Answers, ManualClock, ManualTimer, PuppetLink, PuppetScheduler


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def timer() -> ManualTimer:
    return ManualTimer()


@pytest.fixture
def core() -> PuppetScheduler:
    return PuppetScheduler()


@pytest.fixture
def link() -> PuppetLink:
    return PuppetLink()


@pytest.fixture
def answers() -> Answers:
    return Answers()
