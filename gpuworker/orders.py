"""Is this an order the worker can accept? Checks that need neither a lane nor the page table.

It owns nothing and starts nothing: an order either has its tensor views, or raises OrderRefusal
with the code to answer.
"""

from collections.abc import Mapping, Sequence

import msgspec

from scheduler import wire
from scheduler.actions import (
    Action,
    Code,
    EvictResult,
    EvictWeights,
    Infer,
    InferResult,
    LoadResult,
    LoadWeights,
    ReleaseModel,
    ReleaseResult,
    Result,
)
from scheduler.spec import ModelSpec


class OrderRefusal(Exception):
    """The order cannot be accepted; `code` says why."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def verify(
    action: Action,
    tensors: Sequence[wire.RequestTensors],
    frames: Sequence[wire.Buffer],
    *,
    models: Mapping[str, ModelSpec],
    refused_models: Mapping[str, str],
    page_bytes: int,
) -> list[list[memoryview]]:
    """The tensors of each request of the order. Raises OrderRefusal."""
    model = action.model
    spec = models.get(model)
    if spec is None:
        raise OrderRefusal(Code.UNKNOWN_MODEL, f"{model}: no such model here")
    if spec.unavailable_reason is not None:
        raise OrderRefusal(Code.UNKNOWN_MODEL, f"{model}: {spec.unavailable_reason}")
    if model in refused_models:
        raise OrderRefusal(Code.UNKNOWN_MODEL, f"{model}: refused: {refused_models[model]}")
    try:
        views = wire.unpack_tensors(tensors, frames)
    except wire.WireError as error:
        raise OrderRefusal(Code.MALFORMED, f"{model}: {error}") from error
    contradiction = _contradiction(action, len(views), spec.num_pages(page_bytes))
    if contradiction is not None:
        raise OrderRefusal(Code.MALFORMED, f"{model}: {contradiction}")
    return views


def refused(action: Action, refusal: OrderRefusal, *, received_ns: int) -> Result:
    """The one result of an order that was not accepted."""
    code, message = refusal.code, str(refusal)
    match action:
        case Infer():
            return InferResult(action.action_id, code, message, received_ns)
        case LoadWeights():
            return LoadResult(action.action_id, code, message, received_ns)
        case EvictWeights():
            return EvictResult(action.action_id, code, message, received_ns)
        case ReleaseModel():
            return ReleaseResult(action.action_id, code, message, received_ns)


def without_outputs(result: Result, frames: Sequence[wire.Buffer], limit: int) -> Result:
    """The one result of an Infer with an output of more bytes than the gateway would take."""
    message = (
        f"an output of {max(map(len, frames))} bytes is over the {limit} that the gateway takes:"
        " its setting max_body_mb decides"
    )
    failed: Result = msgspec.structs.replace(result, code=Code.ENGINE_ERROR, message=message)
    return failed


def _contradiction(action: Action, num_tensor_lists: int, num_pages: int) -> str | None:
    """What in the action disagrees with itself or with this device."""
    if isinstance(action, Infer):
        if not action.request_ids and not action.rows and not num_tensor_lists:
            is_trial = action.batch_size > 0 and action.sample >= 0
            return None if is_trial else f"a trial of a batch of {action.batch_size}"
        if not len(action.request_ids) == len(action.rows) == num_tensor_lists > 0:
            return (
                f"{len(action.request_ids)} requests, {len(action.rows)} row counts, tensors of "
                f"{num_tensor_lists} requests"
            )
        if min(action.rows) < 1 or sum(action.rows) > action.batch_size:
            return f"rows {action.rows} do not fit a batch of {action.batch_size}"
    elif num_tensor_lists:
        return f"tensors of {num_tensor_lists} requests came with an action that takes none"
    elif isinstance(action, LoadWeights) and action.num_pages != num_pages:
        return f"takes {num_pages} pages here, the order says {action.num_pages}"
    return None
