"""The decision log of a run: one line of JSON per event, with what the scheduler answered.

Owns the format. It is the same byte for byte whenever the same scenario is run with the same seed,
so two runs are compared with `cmp`, and the first line that differs is where they part:

    [now_ns, "RequestArrived", {...}, [["Send", "w0", ["infer", ...]], ["Reply", 7, "Served", {}]]]
"""

from typing import BinaryIO

import msgspec

from scheduler.events import Command, Event, ModelAdded, Reply, WorkerJoined


class DecisionLog:
    """An observer that writes every event with its commands to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, now: int, event: Event, commands: list[Command]) -> None:
        line = (now, type(event).__name__, _told(event), [_ordered(c) for c in commands])
        self._file.write(self._encode(line) + b"\n")


def _told(event: Event) -> object:
    """The event without the profiles that come with it: they are the scenario's."""
    if isinstance(event, WorkerJoined):
        return {
            "worker_id": event.worker_id,
            "device": event.device,
            "num_models": len(event.models),
            "resident": event.resident,
        }
    if isinstance(event, ModelAdded):
        return {"name": event.spec.name, "content_hash": event.spec.content_hash}
    return event


def _ordered(command: Command) -> tuple[object, ...]:
    if isinstance(command, Reply):
        outcome = command.outcome
        return ("Reply", command.request_id, type(outcome).__name__, outcome)
    return ("Send", command.worker_id, command.action)
