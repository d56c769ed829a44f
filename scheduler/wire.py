"""Messages between gateway and worker ↔ bytes. No sockets.

A message is one header frame, `bytes([WIRE_VERSION]) + msgpack`, followed by tensor frames. Tensors
of up to `SMALL_TENSOR_BYTES` travel joined in one frame, the first; each larger one has a frame of
its own, which ZeroMQ sends without copying (adr/0004). Their order is the header's.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec

from scheduler.actions import Action, Result
from scheduler.spec import DeviceSpec, ModelSpec

WIRE_VERSION = 2
# ZeroMQ's zero-copy bookkeeping costs as much as copying about this many bytes.
SMALL_TENSOR_BYTES = 64 * 1024
# What may hold a GPU's clocks down: NVML's "clocks event reasons", in the order of their bits.
CLOCK_LIMITS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "display_clock_setting",
    "board_limit",
    "reliability",
)

Buffer = bytes | bytearray | memoryview  # memoryviews of bytes (format "B")
NonNegative = Annotated[int, msgspec.Meta(ge=0)]


class TensorMeta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One tensor of one request: its whole shape, and its bytes in the frames."""

    shape: tuple[int, ...]
    num_bytes: NonNegative


# Tensors of one request, in the order of the model's inputs (or outputs).
RequestTensors = tuple[TensorMeta, ...]


class Hello(msgspec.Struct, frozen=True, tag="hello", array_like=True):
    """A worker introduces itself. `incarnation` differs at every start of its process; `gateway`
    and `epoch` are those of its last Welcome.
    """

    name: str
    incarnation: str
    device: DeviceSpec
    models: tuple[ModelSpec, ...]
    resident: tuple[str, ...]
    gateway: str = ""
    epoch: int = 0


class Welcome(msgspec.Struct, frozen=True, tag="welcome", array_like=True):
    """The gateway accepts the worker, less these models: name → why.

    It would cut the connection at a frame of over `max_frame_bytes`; 0: at none. `names` has those
    models that the gateway calls otherwise: its name → the worker's own. Of two gateways of one
    name the one with the higher `epoch` started later.
    """

    worker_id: str
    refused_models: dict[str, str]
    max_frame_bytes: int = 0
    names: dict[str, str] = {}
    gateway: str = ""
    epoch: int = 0


class Superseded(msgspec.Struct, frozen=True, tag="superseded", array_like=True):
    """A later gateway of the sender's name has had this worker: it should look for that one."""

    reason: str


class Refused(msgspec.Struct, frozen=True, tag="refused", array_like=True):
    """The gateway does not take this worker, for good; or it did not understand a message."""

    reason: str


class Rejoin(msgspec.Struct, frozen=True, tag="rejoin", array_like=True):
    """The gateway does not know the sender (it restarted, or declared it lost): say Hello again."""


class AddModel(msgspec.Struct, frozen=True, tag="add", array_like=True):
    """Make this model ready beside what serves, as soon as there is this content. `spec` is the
    gateway's own. Answered by Offer, and by CannotOffer for as long as it is not possible.
    """

    spec: ModelSpec


class DropModel(msgspec.Struct, frozen=True, tag="drop", array_like=True):
    """Forget the model, which was released, or is not wanted any more."""

    name: str


class Offer(msgspec.Struct, frozen=True, tag="offer", array_like=True):
    """The worker can serve this now, under the gateway's name and with its own profile."""

    spec: ModelSpec


class CannotOffer(msgspec.Struct, frozen=True, tag="cannot", array_like=True):
    """Why the model is not ready here, by the gateway's name. `is_final`: nor will it ever be."""

    name: str
    reason: str
    is_final: bool


class Ping(msgspec.Struct, frozen=True, tag="ping", array_like=True, gc=False):
    sent_ns: int


class DeviceSample(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a GPU says of itself at one instant; None for what it does not tell.

    `energy_mj` only rises while its worker lives, from wherever it began. Utilisation is the share
    of the time in which anything executed. Of `CLOCK_LIMITS`, those that hold the clocks down.
    """

    energy_mj: int | None = None
    power_mw: int | None = None
    sm_clock_mhz: int | None = None
    utilisation_percent: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: int | None = None
    clock_limits: tuple[str, ...] | None = None


class Pong(msgspec.Struct, frozen=True, tag="pong", array_like=True, gc=False):
    """`ping_sent_ns` is the gateway's clock, the others the worker's."""

    ping_sent_ns: int
    received_ns: int
    sent_ns: int
    sample: DeviceSample | None = None


class Order(msgspec.Struct, frozen=True, tag="order", array_like=True, gc=False):
    """One action, its window on the worker's timeline. For Infer, `tensors[i]` are request i's."""

    action: Action
    tensors: tuple[RequestTensors, ...] = ()


class Report(msgspec.Struct, frozen=True, tag="report", array_like=True, gc=False):
    """One result, its instants on the worker's timeline, and the outputs of each request."""

    result: Result
    tensors: tuple[RequestTensors, ...] = ()


class Unreadable(msgspec.Struct, frozen=True, tag="unreadable", array_like=True):
    """Answer to frames that could not be decoded."""

    reason: str


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye", array_like=True):
    """The sender stops now. A worker answers the same, and waits for the next gateway."""

    reason: str


ToWorker = (
    Welcome
    | Refused
    | Superseded
    | Rejoin
    | AddModel
    | DropModel
    | Ping
    | Order
    | Unreadable
    | Goodbye
)
ToGateway = Hello | Offer | CannotOffer | Pong | Report | Unreadable | Goodbye


class WireError(ValueError):
    """Frames that are not a message of this version."""


_encoder = msgspec.msgpack.Encoder()
_to_worker_decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_gateway_decoder: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)
_VERSION_PREFIX = bytes([WIRE_VERSION])
# What the decoder raises on foreign bytes; the last two at text that is not UTF-8 and at nesting.
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode(message: ToWorker | ToGateway) -> bytes:
    """The header frame of a message."""
    return _VERSION_PREFIX + _encoder.encode(message)


def decode_to_worker(header: Buffer) -> ToWorker:
    """Raises WireError for anything that is not a message of this version."""
    try:
        return _to_worker_decoder.decode(_payload(header))
    except _DECODE_ERRORS as error:
        raise WireError(f"header is not a message to a worker: {error}") from error


def decode_to_gateway(header: Buffer) -> ToGateway:
    """Raises WireError for anything that is not a message of this version."""
    try:
        return _to_gateway_decoder.decode(_payload(header))
    except _DECODE_ERRORS as error:
        raise WireError(f"header is not a message to a gateway: {error}") from error


def _payload(header: Buffer) -> memoryview:
    view = memoryview(header)
    if len(view) == 0:
        raise WireError("header frame is empty")
    if view[0] != WIRE_VERSION:
        raise WireError(f"wire version {view[0]}, this side speaks {WIRE_VERSION}")
    return view[1:]


def pack_tensors(tensors: Sequence[Buffer]) -> list[Buffer]:
    """Tensor bytes → frames. The caller's large buffers are passed on, not copied."""
    small = [t for t in tensors if len(t) <= SMALL_TENSOR_BYTES]
    large = [t for t in tensors if len(t) > SMALL_TENSOR_BYTES]
    return [b"".join(small), *large] if small else large


def unpack_tensors(
    tensors: Sequence[RequestTensors], frames: Sequence[Buffer]
) -> list[list[memoryview]]:
    """Frames → one view per tensor of each request. Raises WireError where sizes disagree."""
    if len(frames) == 1 and 0 < len(frames[0]) <= SMALL_TENSOR_BYTES:
        # The usual case: small tensors only, cut in one pass. What does not fit is told below.
        frame = memoryview(frames[0])
        cut: list[list[memoryview]] = []
        start = 0
        for request_tensors in tensors:
            request_views = []
            for meta in request_tensors:
                end = start + meta.num_bytes
                request_views.append(frame[start:end])
                start = end
            cut.append(request_views)
        if start == len(frame):
            return cut
    expected_small = [m.num_bytes for r in tensors for m in r if m.num_bytes <= SMALL_TENSOR_BYTES]
    num_large = sum(len(r) for r in tensors) - len(expected_small)
    expected_frames = num_large + bool(expected_small)
    if len(frames) != expected_frames:
        raise WireError(f"{len(frames)} tensor frames, the header describes {expected_frames}")
    small = memoryview(frames[0]) if expected_small else memoryview(b"")
    if len(small) != sum(expected_small):
        raise WireError(
            f"small tensors take {len(small)} bytes, the header describes {sum(expected_small)}"
        )
    next_large = 1 if expected_small else 0
    offset = 0
    views: list[list[memoryview]] = []
    for request_tensors in tensors:
        request_views = []
        for meta in request_tensors:
            if meta.num_bytes <= SMALL_TENSOR_BYTES:
                view = small[offset : offset + meta.num_bytes]
                offset += meta.num_bytes
            else:
                view = memoryview(frames[next_large])
                next_large += 1
                if len(view) != meta.num_bytes:
                    raise WireError(
                        f"a tensor of {len(view)} bytes, the header describes {meta.num_bytes}"
                    )
            request_views.append(view)
        views.append(request_views)
    return views
