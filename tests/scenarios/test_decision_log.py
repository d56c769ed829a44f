"""The decisions of two short days are those that were approved."""

import pytest

from tests.scenarios.decision_log import DAYS, GOLDEN, written


@pytest.mark.parametrize("name", DAYS)
def test_decisions_are_the_golden_ones(name: str) -> None:
    approved = (GOLDEN / f"{name}.log").read_text("utf-8")
    hint = "if the change is meant: python -m tests.scenarios.decision_log, and read the difference"
    assert written(DAYS[name]()) == approved, hint


@pytest.mark.parametrize("name", DAYS)
def test_the_same_day_twice_decides_the_same(name: str) -> None:
    assert written(DAYS[name]()) == written(DAYS[name]())
