"""A policy is chosen by a text."""

import pytest

from scheduler.policies import POLICIES, PolicyError, parse
from scheduler.policies.schedule_ahead.fixed import FixedScheduleAhead
from scheduler.scheduler import Scheduler
from tests.scheduler.story import ms


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_built_by_its_name_alone(name: str) -> None:
    policy = parse(name)
    assert policy.name == name
    assert Scheduler(policy=policy).policy is policy


def test_every_call_builds_anew() -> None:
    """Strategies keep what they learn: two schedulers must not share them."""
    assert parse("remontoir").batching is not parse("remontoir").batching


def test_options_follow_the_name() -> None:
    policy = parse("fifo:schedule_ahead_ms=5, max_batch=4")
    assert isinstance(policy.schedule_ahead, FixedScheduleAhead)
    assert policy.schedule_ahead.first_ns(ms(2)) == ms(5)


def test_schedule_ahead_may_be_given_beside_the_text() -> None:
    policy = parse("fifo:schedule_ahead_ms=5", schedule_ahead_ms=0.5)
    assert policy.schedule_ahead.first_ns(ms(2)) == ms(0.5)
    assert parse("fifo").schedule_ahead.first_ns(ms(2)) == ms(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lifo", "no policy is called 'lifo'; there are remontoir, "),
        (
            "fifo:speed=9",
            "policy fifo has no option 'speed'; it has max_batch, drops, schedule_ahead_ms",
        ),
        ("fifo:max_batch=many", "policy 'fifo:max_batch=many': Expected `int`, got `str`"),
        ("fifo:max_batch", "Expected `int`, got `str`"),
        ("remontoir:schedule_ahead_ms=-5", "schedule_ahead_ms"),
        ("remontoir:schedule_ahead_ms=nan", "'remontoir:schedule_ahead_ms=nan'"),
        ("clockwork:schedule_ahead_ms=inf", "'clockwork:schedule_ahead_ms=inf'"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse(text)
