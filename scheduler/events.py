"""The scheduler's vocabulary: facts that enter it, orders and answers that leave it.

Every `RequestArrived` is answered by exactly one `Reply`, every action sent by exactly one
`ActionFinished` or by the `WorkerLost` of its worker.
"""

import enum

import msgspec

from scheduler.actions import Action, Result
from scheduler.priority import NORMAL
from scheduler.spec import DeviceSpec, ModelSpec


class RequestArrived(msgspec.Struct, frozen=True, gc=False):
    """A well-formed request for a known model.

    `batch_key` names the requests it may share a batch with (equal non-batch shapes and equal
    unbatched inputs), `shape_key` and `elements` its shape class for estimates (spec.ShapeProfile).
    `rows` is how many rows of a batch it takes. Time counts from `arrival_ns`, when the gateway
    first saw the request; `deadline_ns` is arrival + SLO. `tenant` is who pays for it, where
    tenants have floors (SchedulerConfig.tenant_weights). `priority` is of scheduler.priority.
    """

    request_id: int
    model: str
    arrival_ns: int
    deadline_ns: int
    rows: int = 1
    batch_key: str = ""
    shape_key: str = ""
    elements: int = 0
    do_not_queue: bool = False
    tenant: str = ""
    priority: int = NORMAL


class RequestsArrived(msgspec.Struct, frozen=True, gc=False):
    """Several requests that a shell saw in one turn of its loop, in that order.

    Each is admitted or refused as if it had come alone; devices are given work once, after all of
    them are queued, so that they may share a batch.
    """

    requests: tuple[RequestArrived, ...]


class RequestCancelled(msgspec.Struct, frozen=True, gc=False):
    """The client went away. Its request is still answered once: Reply(..., Cancelled())."""

    request_id: int


class ActionFinished(msgspec.Struct, frozen=True, gc=False):
    worker_id: str
    result: Result


class WorkerJoined(msgspec.Struct, frozen=True):
    """A worker is up, with the models it accepts (its own profiles) and its true page state.

    `worker_id` names one incarnation: a worker that restarts joins under a new id.
    """

    worker_id: str
    device: DeviceSpec
    models: tuple[ModelSpec, ...]
    resident: tuple[str, ...]


class WorkerLost(msgspec.Struct, frozen=True):
    worker_id: str
    reason: str


class ModelAdded(msgspec.Struct, frozen=True):
    """The gateway serves this model from now on (or serves it with this new spec)."""

    spec: ModelSpec


class ModelRemoved(msgspec.Struct, frozen=True):
    """No request for this model is admitted any more; what is queued fails with `reason`."""

    model: str
    reason: str


class ModelUnloaded(msgspec.Struct, frozen=True):
    """As ModelRemoved, by an operator; and until it is added again no worker keeps anything of it,
    neither pages nor a copy on the host.
    """

    model: str


class ModelOffered(msgspec.Struct, frozen=True):
    """A worker that has joined can serve this model too from now on, with its own profile of it."""

    worker_id: str
    spec: ModelSpec


class ModelStaged(msgspec.Struct, frozen=True):
    """The model will take over from `replaces`: load it where that is resident and measure it, as
    far as it costs nobody. `replaces` is "" for a model that is new: one device is enough then.
    """

    model: str
    replaces: str


class StagingEnded(msgspec.Struct, frozen=True):
    """The model has taken over, or never will: it is one like the others."""

    model: str


class ModelForgotten(msgspec.Struct, frozen=True):
    """A model that was unloaded never comes back: nothing needs to be remembered of it."""

    model: str


class ModelPinned(msgspec.Struct, frozen=True):
    """Keep the model's weights resident (or stop doing so)."""

    model: str
    is_pinned: bool


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time has reached `next_wakeup()`."""


Event = (
    RequestArrived
    | RequestsArrived
    | RequestCancelled
    | ActionFinished
    | WorkerJoined
    | WorkerLost
    | ModelAdded
    | ModelRemoved
    | ModelUnloaded
    | ModelOffered
    | ModelStaged
    | StagingEnded
    | ModelForgotten
    | ModelPinned
    | Tick
)


class Reason(str, enum.Enum):
    """Why a request was not served. The values are the `reason` members of HTTP error bodies."""

    SLO_INFEASIBLE_NOW = "slo_infeasible_now"
    COLD_MODEL = "cold_model"
    SLO_INFEASIBLE_EVER = "slo_infeasible_ever"
    WOULD_QUEUE = "would_queue"
    OVERLOADED = "overloaded"
    WORKER_LOST = "worker_lost"
    MODEL_UNAVAILABLE = "model_unavailable"
    LARGER_THAN_CACHE = "larger_than_cache"
    DEADLINE_EXCEEDED_QUEUED = "deadline_exceeded_queued"
    DEADLINE_EXCEEDED_EXECUTING = "deadline_exceeded_executing"
    NO_WORKER = "no_worker"
    ENGINE_ERROR = "engine_error"
    INVALID_INPUT = "invalid_input"
    INTERNAL_ERROR = "internal_error"  # said by a shell only: the core broke, its process stops


class Served(msgspec.Struct, frozen=True, gc=False):
    """The outputs are in the result's frames, at this request's place in the batch.

    Durations: queue = arrival to the start of the input phase, without the part spent waiting for a
    LOAD; load = what of the wait was a LOAD of the model's weights. `predicted_ns` is the latency
    predicted at admission.
    """

    worker_id: str
    batch_rows: int
    is_cold_start: bool
    predicted_ns: int
    queue_ns: int
    load_ns: int
    input_ns: int
    exec_ns: int
    output_ns: int


class Rejected(msgspec.Struct, frozen=True):
    """An honest no, as early as it is certain. None where a figure does not apply."""

    reason: Reason
    detail: str
    retry_after_ns: int | None = None
    predicted_ns: int | None = None
    load_ns: int | None = None
    min_slo_ns: int | None = None


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What `Scheduler.quote` answers: what would become of some equal requests that arrived now.

    `num_met` of them would be admitted before the first is refused, with `refusal`. `finish_ns` and
    `worker_id` are the first one's prediction, None where it is refused or the policy predicts
    nothing. `is_cold`: no device has the weights. `num_ahead` requests of the model are queued
    and due by its deadline. The two SLOs are the shortest that would be admitted now, and that an
    idle device with the weights could meet; None where there is none. Everything in nanoseconds.
    """

    num_met: int
    refusal: Rejected | None = None
    finish_ns: int | None = None
    worker_id: str | None = None
    is_cold: bool = False
    num_ahead: int = 0
    min_slo_now_ns: int | None = None
    min_slo_ever_ns: int | None = None


class Expired(msgspec.Struct, frozen=True):
    """Admitted, and the deadline passed while queued or while executing."""

    reason: Reason
    detail: str


class Failed(msgspec.Struct, frozen=True):
    """Admitted, and something broke: the engine on this input, a lost worker, a removed model."""

    reason: Reason
    detail: str
    retry_after_ns: int | None = None


class Cancelled(msgspec.Struct, frozen=True):
    """The client went away before its answer."""


Outcome = Served | Rejected | Expired | Failed | Cancelled


class Send(msgspec.Struct, frozen=True, gc=False):
    worker_id: str
    action: Action


class Reply(msgspec.Struct, frozen=True, gc=False):
    request_id: int
    outcome: Outcome


Command = Send | Reply
