"""A policy is chosen by a text."""

import re

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
        (
            "clockwork:max_batch=1.5",
            "policy clockwork: max_batch takes a whole number of at least 1, not '1.5'",
        ),
        (
            "edf:max_batch=many",
            "policy edf: max_batch takes a whole number of at least 1, not 'many'",
        ),
        (
            "fifo:max_batch",
            "policy fifo: max_batch takes a whole number of at least 1, not 'true' "
            "(which a bare option is)",
        ),
        (
            "remontoir:schedule_ahead_ms=-5",
            "policy remontoir: schedule_ahead_ms takes a number of at least 0 and at most 60000, "
            "not '-5'",
        ),
        ("remontoir:schedule_ahead_ms=nan", "at least 0 and at most 60000, not 'nan'"),
        ("clockwork:schedule_ahead_ms=inf", "at least 0 and at most 60000, not 'inf'"),
        ("symphony:gpus_per_model=", "gpus_per_model takes a number of more than 0, not ''"),
        ("clipper:judged=answers", "judged takes answer or execution, not 'answers'"),
        ("fifo:drops=none", "drops takes expired or infeasible or never, not 'none'"),
        ("clockwork:late_refusal=7", "late_refusal takes true or false, not '7'"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)):
        parse(text)


def test_a_value_beside_the_text_is_checked_as_one_of_its_own() -> None:
    with pytest.raises(PolicyError, match=r"schedule_ahead_ms takes a number .*, not '-1'"):
        parse("edf", schedule_ahead_ms=-1)
