"""docs/states.md says what the tables say."""

import runpy
import sys
from pathlib import Path

import pytest

from scheduler.device import WEIGHTS_MOVES, WeightsState
from scheduler.request import LEGAL_MOVES, RequestState
from scheduler.states import REQUEST_SENTENCES, WEIGHTS_SENTENCES, page

DOCUMENT = Path(__file__).parents[2] / "docs" / "states.md"


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == page(), "run: python -m scheduler.states > docs/states.md"


def test_every_state_has_its_sentence() -> None:
    assert set(REQUEST_SENTENCES) == set(RequestState)
    assert set(WEIGHTS_SENTENCES) == set(WeightsState)


def test_every_legal_move_is_an_arrow() -> None:
    arrows = {line.strip() for line in page().splitlines() if "-->" in line}
    moves = [
        f"{state.name} --> {target.name}"
        for state, targets in [*LEGAL_MOVES.items(), *WEIGHTS_MOVES.items()]
        for target in targets
    ]
    assert set(moves) < arrows
    assert {arrow for arrow in arrows if "[*]" not in arrow} == set(moves)


def test_the_module_prints_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    imported = sys.modules.pop("scheduler.states")
    try:
        runpy.run_module("scheduler.states", run_name="__main__")
    finally:
        sys.modules["scheduler.states"] = imported
    assert capsys.readouterr().out == page()
