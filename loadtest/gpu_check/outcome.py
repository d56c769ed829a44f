"""What a step of the check comes back with, whoever measured it, and the exit code of them all.

The lines are those of gpuworker/gpu_check/lines.py, which is read as JSON here.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

EXIT_MISSED, EXIT_CANNOT = 1, 2


class StepError(Exception):
    """A step did not come to its end. `is_missing`: this machine lacks what it needs."""

    def __init__(self, message: str, *, is_missing: bool = False) -> None:
        super().__init__(message)
        self.is_missing = is_missing


class Line(msgspec.Struct, frozen=True):
    """`is_met` None: shown, and nothing was promised."""

    what: str
    measured: str
    wanted: str = ""
    is_met: bool | None = None


class Document(msgspec.Struct, kw_only=True):
    """One step that was measured."""

    step: str
    device: dict[str, str]
    is_quick: bool
    figures: dict[str, Any]
    lines: list[Line]


class NotRun(msgspec.Struct, frozen=True):
    step: str
    reason: str
    is_missing: bool


class Outcome(msgspec.Struct, kw_only=True):
    """What gpu-check.json holds beside the machine and the command."""

    steps: list[Document]
    not_run: list[NotRun]
    num_met: int
    num_missed: int


def outcome_of(steps: list[Document], not_run: list[NotRun]) -> Outcome:
    bars = [line.is_met for step in steps for line in step.lines if line.is_met is not None]
    return Outcome(
        steps=steps, not_run=not_run, num_met=sum(bars), num_missed=len(bars) - sum(bars)
    )


def exit_code_of(outcome: Outcome) -> int:
    """0 only where every step was measured and every bar met; 2 where all else was and something
    is missing on this machine.
    """
    if outcome.num_missed or any(not step.is_missing for step in outcome.not_run):
        return EXIT_MISSED
    return EXIT_CANNOT if outcome.not_run else 0


def rows_of(lines: Sequence[Line]) -> list[tuple[str, str, str, str]]:
    """Of the table."""
    marks = {None: "", True: "met", False: "MISSED"}
    return [(line.what, line.measured, line.wanted, marks[line.is_met]) for line in lines]
