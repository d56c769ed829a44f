"""The decisions of short days are those that were approved."""

import re

import pytest

from tests.scenarios import eventful_day
from tests.scenarios.decision_log import DAYS, GOLDEN, written
from tests.scenarios.eventful_day import PLAYED, Day


@pytest.mark.parametrize("name", DAYS)
def test_decisions_are_the_golden_ones(name: str) -> None:
    approved = (GOLDEN / f"{name}.log").read_text("utf-8")
    hint = "if the change is meant: python -m tests.scenarios.decision_log, and read the difference"
    assert written(DAYS[name]()) == approved, hint


@pytest.mark.parametrize("name", DAYS)
def test_the_same_day_twice_decides_the_same(name: str) -> None:
    assert written(DAYS[name]()) == written(DAYS[name]())


@pytest.mark.parametrize("policy", PLAYED)
def test_every_policy_decides_an_eventful_day_as_approved(policy: str) -> None:
    approved = eventful_day.GOLDEN.read_text("utf-8").splitlines()
    hint = "if the change is meant: python -m tests.scenarios.eventful_day, which says how to look"
    assert Day(policy).line in approved, hint


def test_only_policies_that_there_are_have_a_golden_line() -> None:
    approved = eventful_day.GOLDEN.read_text("utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in approved] == list(PLAYED)


def test_the_day_is_eventful() -> None:
    """Whatever is played by it, so that no policy's line comes to stand for a quiet day."""
    log = Day("remontoir").log.decode()
    assert re.search(r'"loaded",\d+,9,', log), "no LOAD failed"
    for told in (
        *("RequestsArrived", "RequestCancelled", "ModelPinned", "WorkerLost", "infer", "load"),
        *("evict", "Served", "Cancelled", "slo_infeasible_now", "cold_model", "would_queue"),
        *("deadline_exceeded_queued", "deadline_exceeded_executing", "engine_error", "worker_lost"),
    ):
        assert f'"{told}"' in log, told
