"""One request inside the core: its facts, its state, and the table of legal moves."""

import enum

from scheduler.events import RequestArrived


class RequestState(enum.Enum):
    """QUEUED and DISPATCHED are open; the others are final, and each of them was replied once."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    SERVED = "served"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    REJECTED = "rejected"

    # LEGAL_MOVES by attribute: hashing an enum is a call, and every request moves twice.
    next_states: "tuple[RequestState, ...]"


LEGAL_MOVES: dict[RequestState, frozenset[RequestState]] = {
    RequestState.QUEUED: frozenset(
        {
            RequestState.DISPATCHED,
            RequestState.EXPIRED,
            RequestState.CANCELLED,
            RequestState.FAILED,
            RequestState.REJECTED,  # `do_not_queue`, once it is certain that it would queue
        }
    ),
    RequestState.DISPATCHED: frozenset(
        {
            RequestState.QUEUED,  # its action failed and another worker can still make it
            RequestState.SERVED,
            RequestState.FAILED,
            RequestState.EXPIRED,
            RequestState.CANCELLED,
        }
    ),
    RequestState.SERVED: frozenset(),
    RequestState.FAILED: frozenset(),
    RequestState.EXPIRED: frozenset(),
    RequestState.CANCELLED: frozenset(),
    RequestState.REJECTED: frozenset(),
}

for _state, _next_states in LEGAL_MOVES.items():
    _state.next_states = tuple(sorted(_next_states, key=list(RequestState).index))

OPEN_STATES = frozenset({RequestState.QUEUED, RequestState.DISPATCHED})


class IllegalMove(Exception):
    """A state changed against its table: a bug of ours, never of a client or a worker."""


class Request:
    """A request the scheduler has admitted and not yet forgotten.

    `num_failures` counts actions that failed under it (one retry is allowed). `runs_alone` is set
    after a batch with it failed in the engine: it is then executed by itself, so that its
    batch-mates are answered. `is_orphan`: its model was removed while it was executed, so that it
    cannot be tried again. `deadline_ns` is what is planned with, as a rule the client's own. In
    execution it is waited for until `answer_by_ns`, the later of the two. `is_given_up`: no batch
    takes it any more, it only waits for its deadline. `cold_at_ns` is when it found its weights
    absent, `ready_at_ns` when they had been loaded.
    """

    __slots__ = (
        "answer_by_ns",
        "arrival_ns",
        "batch_key",
        "client_deadline_ns",
        "cold_at_ns",
        "deadline_ns",
        "do_not_queue",
        "elements",
        "is_given_up",
        "is_orphan",
        "model",
        "num_failures",
        "predicted_ns",
        "priority",
        "ready_at_ns",
        "request_id",
        "rows",
        "runs_alone",
        "shape_key",
        "state",
        "tenant",
    )

    def __init__(self, arrived: RequestArrived) -> None:
        self.request_id = arrived.request_id
        self.model = arrived.model
        self.arrival_ns = arrived.arrival_ns
        self.client_deadline_ns = arrived.deadline_ns
        self.deadline_ns = arrived.deadline_ns
        self.answer_by_ns = arrived.deadline_ns
        self.rows = arrived.rows
        self.batch_key = arrived.batch_key
        self.shape_key = arrived.shape_key
        self.elements = arrived.elements
        self.do_not_queue = arrived.do_not_queue
        self.tenant = arrived.tenant
        self.priority = arrived.priority
        self.state = RequestState.QUEUED
        self.num_failures = 0
        self.runs_alone = False
        self.is_orphan = False
        self.is_given_up = False
        self.predicted_ns = 0
        self.cold_at_ns: int | None = None
        self.ready_at_ns: int | None = None

    def plan_with(self, deadline_ns: int) -> None:
        """A policy's own deadline for it, earlier or later than the client's."""
        self.deadline_ns = deadline_ns
        self.answer_by_ns = max(deadline_ns, self.client_deadline_ns)

    def move_to(self, state: RequestState) -> None:
        """The only way a request changes its state."""
        if state not in self.state.next_states:
            raise IllegalMove(f"request {self.request_id}: {self.state.value} → {state.value}")
        self.state = state
