"""OpenRequests: everything the gateway holds for requests that have no answer yet.

It owns callbacks, input tensors, and which requests went out in which Infer. It must never hold
anything for an answered request, and never decide: what contradicts its books is our own bug and
raises, except what a worker reports, which becomes a result that says so.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from scheduler.actions import Code, Infer, InferResult
from scheduler.events import Outcome
from scheduler.spec import SECOND_NS
from scheduler.wire import Buffer, RequestTensors


class Outputs(msgspec.Struct, frozen=True, gc=False):
    """Outputs of one request, in the order of ModelSpec.outputs; views into received frames.

    `energy_mj` is its share of what the batch took from the device, None where that says nothing.
    """

    tensors: RequestTensors
    views: list[memoryview]
    energy_mj: float | None = None


OnDone = Callable[[Outcome, Outputs | None], None]
OutputsByRequest = dict[int, Outputs]


# Structs: made in C, and one of each per request.
class _OpenRequest(msgspec.Struct, frozen=True):
    on_done: OnDone
    tensors: RequestTensors
    buffers: list[Buffer]


class _SentInfer(NamedTuple):
    worker_id: str
    infer: Infer


class OpenRequests:
    def __init__(self) -> None:
        # All and only requests not yet answered, by id.
        self._requests: dict[int, _OpenRequest] = {}
        # All and only Infers sent whose result, or whose worker's loss, has not come back, by id.
        self._sent: dict[int, _SentInfer] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._requests

    def open(
        self, request_id: int, on_done: OnDone, tensors: RequestTensors, buffers: list[Buffer]
    ) -> None:
        self._requests[request_id] = _OpenRequest(on_done, tensors, buffers)

    def close(self, request_id: int) -> OnDone:
        """Frees the request's tensors; returns whom to tell. Raises LookupError if not open."""
        request = self._requests.pop(request_id, None)
        if request is None:
            raise LookupError(f"request {request_id} is not open: answered twice, or never asked")
        return request.on_done

    def close_all(self) -> list[OnDone]:
        """Frees everything; returns whom to tell, oldest first."""
        callbacks = [request.on_done for request in self._requests.values()]
        self._requests.clear()
        self._sent.clear()
        return callbacks

    def gather(
        self, worker_id: str, infer: Infer
    ) -> tuple[tuple[RequestTensors, ...], list[Buffer]]:
        """Notes that the batch goes to the worker; returns its tensors. They stay, for a retry.

        Raises LookupError if a request is not open.
        """
        self._sent[infer.action_id] = _SentInfer(worker_id, infer)
        try:
            requests = [self._requests[request_id] for request_id in infer.request_ids]
        except KeyError as error:
            raise LookupError(f"request {error} is not open, and to be sent in {infer!r}") from None
        return (
            tuple([request.tensors for request in requests]),
            [buffer for request in requests for buffer in request.buffers],
        )

    def take_result(
        self,
        worker_id: str,
        result: InferResult,
        tensors: Sequence[RequestTensors],
        views: Sequence[list[memoryview]],
    ) -> tuple[InferResult, OutputsByRequest]:
        """Whose outputs these are. A result nobody waits for has none: the core counts it."""
        sent = self._sent.get(result.action_id)
        if sent is None or sent.worker_id != worker_id:
            return result, {}
        del self._sent[result.action_id]
        if result.code != Code.OK:
            return result, {}
        request_ids = sent.infer.request_ids
        if len(views) != len(request_ids):
            message = (
                f"{worker_id} reported outputs of {len(views)} requests for action "
                f"{result.action_id} of {len(request_ids)}"
            )
            return msgspec.structs.replace(result, code=Code.MALFORMED, message=message), {}
        outputs = {
            request_id: Outputs(of_request, views_of_request)
            for request_id, of_request, views_of_request in zip(
                request_ids, tensors, views, strict=True
            )
        }
        if result.power_mw and outputs:  # a trial has none
            outputs = _with_energy(outputs, sent.infer, result)
        return result, outputs

    def is_sent(self, request_id: int) -> bool:
        """Whether it is in an Infer on its way. Looks through them: for what is rare."""
        return any(request_id in sent.infer.request_ids for sent in self._sent.values())

    def forget_worker(self, worker_id: str) -> None:
        """No result of this worker will come any more. Its requests stay open."""
        self._sent = {
            action_id: sent for action_id, sent in self._sent.items() if sent.worker_id != worker_id
        }


def _with_energy(outputs: OutputsByRequest, infer: Infer, result: InferResult) -> OutputsByRequest:
    """Power times device time, by rows: padding is shared, so that they make up the whole."""
    mj_per_row = result.power_mw * result.exec.duration_ns / SECOND_NS / sum(infer.rows)
    return {
        request_id: Outputs(own.tensors, own.views, mj_per_row * rows)
        for (request_id, own), rows in zip(outputs.items(), infer.rows, strict=True)
    }
