"""How far executions and LOADs were from what the scheduler planned with, out of a recording."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from loadtest.recorded import opened
from scheduler.actions import Action, Code, Infer, InferResult, LoadResult, LoadWeights
from scheduler.event_log import Entry, Handled
from scheduler.events import ActionFinished, Send
from scheduler.spec import MILLISECOND_NS


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Actual minus expected, milliseconds: above zero it took longer than planned."""

    num: int
    p1_ms: float
    p50_ms: float
    p99_ms: float


class Missed(NamedTuple):
    """One action's error, and when its result came in ns of the gateway's clock."""

    kind: str
    at_ns: int
    error_ns: int


def read(path: Path) -> list[Missed]:
    """Of all actions that went well. Raises RecordingError."""
    with opened(path, "reading predictions") as recording:
        return missed_of(recording)


def missed_of(entries: Iterable[Entry]) -> list[Missed]:
    # All and only actions sent and not yet heard of.
    sent: dict[tuple[str, int], Action] = {}
    missed: list[Missed] = []
    for entry in entries:
        if not isinstance(entry, Handled):
            continue
        if isinstance(entry.event, ActionFinished):
            result = entry.event.result
            action = sent.pop((entry.event.worker_id, result.action_id), None)
            if result.code is not Code.OK:
                continue
            if isinstance(action, Infer) and isinstance(result, InferResult):
                error_ns = result.exec.duration_ns - action.expected_duration_ns
                missed.append(Missed("exec", entry.now, error_ns))
            elif isinstance(action, LoadWeights) and isinstance(result, LoadResult):
                error_ns = result.load.duration_ns - action.expected_duration_ns
                missed.append(Missed("load", entry.now, error_ns))
        for command in entry.commands or ():
            if isinstance(command, Send):
                sent[command.worker_id, command.action.action_id] = command.action
    return missed


def errors_of(errors_ns: Iterable[float]) -> Errors | None:
    """None where there is none."""
    errors_ms = [error_ns / MILLISECOND_NS for error_ns in errors_ns]
    if not errors_ms:
        return None
    p1, p50, p99 = (float(value) for value in np.percentile(errors_ms, (1, 50, 99)))
    return Errors(num=len(errors_ms), p1_ms=p1, p50_ms=p50, p99_ms=p99)
