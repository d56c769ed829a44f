"""Which queue, which requests and how many rows are executed next on a device."""

from typing import Annotated, NamedTuple

import msgspec

from scheduler.model_queue import ModelQueue
from scheduler.request import Request

# An option of a set.
Rows = Annotated[int, msgspec.Meta(ge=1)]


class BatchPlan(NamedTuple):
    """One batch: rows executed may exceed `rows` where the engine pads to a compiled size.

    `given_up` are requests of the same queue that are sacrificed for it, as window dropping does:
    they are answered at once, or at their deadline by a policy that waits to the end.
    """

    queue: ModelQueue
    requests: list[Request]
    rows: int
    executed_rows: int
    start_ns: int
    expected_ns: int
    latest_ns: int
    given_up: tuple[Request, ...] = ()


class Deferred(NamedTuple):
    """Nothing now, by choice: ask again at that instant, or when something changes."""

    until_ns: int


class FinishedBatch(NamedTuple):
    """What became of a batch, for policies that learn from it."""

    model: str
    rows: int
    requests: list[Request]
    num_in_time: int  # answered by the clients' deadlines
    duration_ns: int
