"""The worker's vocabulary: the four actions a scheduler orders, and their one result each.

A window `[earliest_ns, latest_ns]` bounds the start of an action (for Infer: of its execution). In
the scheduler and on the gateway's side all instants are on the gateway's timeline; `worker_link`
converts them at the border (Clockwork, OSDI'20, section 4.3).
"""

import enum

import msgspec


class Code(enum.IntEnum):
    """How an action ended. One code per stage and reason, so a log line needs no guessing."""

    OK = 0
    TOO_LATE = 1  # the window closed before the action could start
    UNKNOWN_MODEL = 2  # this worker has no such model
    WEIGHTS_MISSING = 3  # Infer or EvictWeights of a model that is not resident
    PAGES_EXHAUSTED = 4  # LoadWeights with too few free pages: workers never evict by choice
    WEIGHTS_IN_USE = 5  # EvictWeights of what executes, ReleaseModel of what has pages
    ALREADY_RESIDENT = 6  # LoadWeights of a model that is loading or loaded
    INVALID_INPUT = 7  # tensors that do not fit the model or the header that came with them
    ENGINE_ERROR = 8  # the engine raised while executing
    LOAD_FAILED = 9  # copying the weights raised
    SHUTTING_DOWN = 10  # the worker was stopping with the action still queued
    MALFORMED = 11  # the frames could not be understood


class Infer(msgspec.Struct, frozen=True, tag="infer", array_like=True, gc=False):
    """Execute one batch. `rows[i]` rows belong to `request_ids[i]`, in the order of the tensors.

    `batch_size` is the number of rows to execute: `sum(rows)`, or the compiled size it is padded
    to. Without requests it is a trial, executed to be measured: the worker makes `batch_size` rows
    itself, of the `sample`-th shape class of the model's profile, and gives no outputs.
    """

    action_id: int
    model: str
    batch_size: int
    request_ids: tuple[int, ...]
    rows: tuple[int, ...]
    earliest_ns: int
    latest_ns: int
    expected_duration_ns: int
    sample: int = 0


class LoadWeights(msgspec.Struct, frozen=True, tag="load", array_like=True, gc=False):
    """Take free pages, map them under the model's range, copy the weights in."""

    action_id: int
    model: str
    num_pages: int
    earliest_ns: int
    latest_ns: int
    expected_duration_ns: int


class EvictWeights(msgspec.Struct, frozen=True, tag="evict", array_like=True, gc=False):
    """Unmap the model's pages and give them back."""

    action_id: int
    model: str
    earliest_ns: int
    latest_ns: int


class ReleaseModel(msgspec.Struct, frozen=True, tag="release", array_like=True, gc=False):
    """Give back all that is kept for a model without pages: its session, its copy on the host.

    The worker makes it anew for the next LoadWeights.
    """

    action_id: int
    model: str
    earliest_ns: int
    latest_ns: int


Action = Infer | LoadWeights | EvictWeights | ReleaseModel


class Span(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """When a phase ran and how long the device itself was busy with it.

    `duration_ns` is device time, so it may be less than `end_ns - begin_ns`.
    """

    begin_ns: int
    end_ns: int
    duration_ns: int


NO_SPAN = Span(0, 0, 0)


class InferResult(msgspec.Struct, frozen=True, tag="inferred", array_like=True, gc=False):
    """Outcome of one Infer. Spans are NO_SPAN for phases that were not reached.

    `clock_mhz` and `power_mw` are what the device last said of itself, 0 where it says nothing: a
    slow execution and a throttled clock look the same in a span.
    """

    action_id: int
    code: Code
    message: str = ""
    received_ns: int = 0
    input: Span = NO_SPAN
    exec: Span = NO_SPAN
    output: Span = NO_SPAN
    clock_mhz: int = 0
    power_mw: int = 0


class LoadResult(msgspec.Struct, frozen=True, tag="loaded", array_like=True, gc=False):
    action_id: int
    code: Code
    message: str = ""
    received_ns: int = 0
    load: Span = NO_SPAN


class EvictResult(msgspec.Struct, frozen=True, tag="evicted", array_like=True, gc=False):
    action_id: int
    code: Code
    message: str = ""
    received_ns: int = 0


class ReleaseResult(msgspec.Struct, frozen=True, tag="released", array_like=True, gc=False):
    """`host_bytes` is the size of the copy of the weights that was given back, 0 if none was."""

    action_id: int
    code: Code
    message: str = ""
    received_ns: int = 0
    host_bytes: int = 0


Result = InferResult | LoadResult | EvictResult | ReleaseResult
