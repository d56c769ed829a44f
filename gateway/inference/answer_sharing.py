"""AnswerSharing: one execution's answer for every identical request of a model.

It owns which requests wait for whose execution (single flight), and the model's PredictionCache. It
needs no clock and no timer: a request waits only for an execution whose deadline is not after its
own, and the scheduler answers each execution by its deadline. It must never let a request fare
worse than alone for somebody else's sake: one with an earlier deadline has an execution of its own,
and whoever waited for one that was refused, or came too late, asks for himself.
"""

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import msgspec

from gateway.errors import RequestError
from gateway.inference.prediction_cache import PredictionCache
from gateway.inference.tensors import Inputs
from gateway.open_requests import OnDone, Outputs
from scheduler.events import Cancelled, Expired, Failed, Outcome, Reason, Rejected, Served
from scheduler.spec import ModelSpec

logger = logging.getLogger(__name__)

# Where an answer came from: the cache, an execution of its own, another request's execution.
HIT, MISS, SHARED = "hit", "miss", "shared"

# SHA-256 begins with this, which nobody outside can know: two inputs with one digest would give one
# tenant another's answer, so they must not even be looked for. Of the sound hashes in the standard
# library it is the fastest on processors with SHA instructions (0.7 against BLAKE2b's 0.3 GB/s on a
# busy core); a checksum such as CRC or an unkeyed xxHash can be made to collide at will.
_SECRET = secrets.token_bytes(64)

# Refusals that say something of this deadline. Others would be said to everybody.
_BY_DEADLINE = frozenset(
    {
        Reason.SLO_INFEASIBLE_NOW,
        Reason.SLO_INFEASIBLE_EVER,
        Reason.COLD_MODEL,
        Reason.WORKER_LOST,
        Reason.DEADLINE_EXCEEDED_QUEUED,
        Reason.DEADLINE_EXCEEDED_EXECUTING,
    }
)
# What a hit is answered with: nothing of it was queued, loaded or executed.
_AT_ONCE = Served("", 0, False, 0, 0, 0, 0, 0, 0)


class Waiting(Protocol):
    """An Exchange, as far as it is needed here. `ask` is taken from it when it is answered: they
    would know each other, and wait for the garbage collector with the body.
    """

    arrival_ns: int
    slo_ns: int
    cache: str | None
    ask: "Ask | None"
    priority: int

    def refuse(self, error: RequestError) -> None: ...


class Ask:
    """One request. `submit(on_done)` gives it to the dispatcher and returns its id there; it may
    raise RequestError. `on_done` is told its answer, once. `lookup_ns` is what its key took.
    """

    __slots__ = ("deadline_ns", "execution", "lookup_ns", "on_done", "request", "submit")

    def __init__(
        self,
        request: Waiting,
        submit: Callable[[OnDone], int],
        on_done: OnDone,
        *,
        lookup_ns: int = 0,
    ) -> None:
        self.lookup_ns = lookup_ns
        self.request = request
        self.submit = submit
        self.on_done = on_done
        self.deadline_ns = request.arrival_ns + request.slo_ns
        self.execution: _Execution | None = None

    @property
    def sink_id(self) -> int | None:
        """The dispatcher's id of what it waits for; None where it is answered."""
        return None if self.execution is None else self.execution.sink_id

    def leave(self) -> None:
        """Its client went away. The execution goes on as long as somebody waits for it."""
        if self.execution is not None:
            self.execution.sharing.leave(self.execution, self)


class _Execution:
    """One request as the dispatcher has it, and all who wait for its answer."""

    __slots__ = (
        "arrival_ns",
        "asks",
        "deadline_ns",
        "generation",
        "key",
        "leader",
        "priority",
        "sharing",
        "sink_id",
    )

    def __init__(
        self, sharing: "AnswerSharing", key: bytes, leader: Ask, *, generation: int
    ) -> None:
        self.sharing = sharing
        self.key = key
        self.leader = leader
        self.generation = generation
        self.arrival_ns = leader.request.arrival_ns
        self.deadline_ns = leader.deadline_ns
        self.priority = leader.request.priority
        self.sink_id: int | None = None
        # All and only requests that wait for this, none with an earlier deadline or a higher class.
        self.asks: dict[Ask, None] = {leader: None}


class AnswerSharing:
    """Of one model. `cancel` takes back a request from the dispatcher, by its id there."""

    def __init__(self, cancel: Callable[[int], None]) -> None:
        self.cache = PredictionCache(0)
        self.counts = {HIT: 0, MISS: 0, SHARED: 0}  # requests served
        self.lookup_ns = {HIT: 0, MISS: 0, SHARED: 0}  # hashing and looking, of the same
        self._cancel = cancel
        self._spec: ModelSpec | None = None
        self._is_across_tenants = True
        self._seed = hashlib.sha256()
        self._generation = 0  # of what is served: a late answer of an earlier one is not kept
        # All and only executions without an answer, by key, in the order they were asked for.
        self._executions: dict[bytes, list[_Execution]] = {}

    def serve(self, spec: ModelSpec) -> None:
        """From now on requests are for this. Answers of another version are forgotten."""
        sharing = spec.sharing
        if spec is self._spec or sharing is None:
            return
        self.forget()
        self._spec = spec
        self._is_across_tenants = sharing.is_across_tenants
        self.cache.max_bytes = sharing.cache_bytes
        self._seed = hashlib.sha256(_SECRET)
        self._seed.update(f"{spec.name}\0{spec.version}\0{spec.content_hash}\0".encode())

    def forget(self) -> None:
        """Drops every answer kept. Requests that wait are still answered."""
        self.cache.clear()
        self._spec = None
        self._generation += 1

    def key_of(self, inputs: Inputs, tenant: str) -> bytes:
        """Of the version, the inputs' shapes and bytes, and the tenant where that matters.

        The same inputs give the same key whether they came as JSON or binary, and whatever outputs
        are wanted: an execution gives all of them.
        """
        digest = self._seed.copy()
        # Lengths before bytes: no two lists of tensors may read alike.
        head = str([(meta.shape, meta.num_bytes) for meta in inputs.tensors])
        digest.update((head if self._is_across_tenants else f"{head}{tenant}\0").encode())
        for buffer in inputs.buffers:
            digest.update(buffer)
        return digest.digest()

    @property
    def num_waiting(self) -> int:
        """Requests without an answer now, each execution's first left out."""
        executions = [each for those in self._executions.values() for each in those]
        return sum(len(each.asks) - (each.leader in each.asks) for each in executions)

    def has(self, key: bytes) -> bool:
        """Whether it would be a hit."""
        return key in self.cache

    def ask(self, key: bytes, ask: Ask) -> None:
        """Answers it from the cache, has it wait with others, or has it executed.

        Raises RequestError as `ask.submit` does.
        """
        outputs = self.cache.get(key)
        if outputs is not None:
            ask.request.cache = HIT
            self._tell(ask, _AT_ONCE, outputs)
        elif not self._wait_with_others(key, ask):
            self._lead(key, ask)

    def leave(self, execution: _Execution, ask: Ask) -> None:
        """As Ask.leave."""
        del execution.asks[ask]
        self._tell(ask, Cancelled(), None)
        if not execution.asks:
            self._remove(execution)
            self._take_back(execution)

    def _wait_with_others(self, key: bytes, ask: Ask) -> bool:
        for execution in self._executions.get(key, ()):
            is_as_urgent = execution.priority <= ask.request.priority
            if is_as_urgent and execution.deadline_ns <= ask.deadline_ns:
                ask.request.cache = SHARED
                ask.execution = execution
                execution.asks[ask] = None
                return True
        return False

    def _lead(self, key: bytes, ask: Ask) -> None:
        execution = _Execution(self, key, ask, generation=self._generation)
        ask.request.cache = MISS
        ask.execution = execution
        self._executions.setdefault(key, []).append(execution)
        try:
            execution.sink_id = ask.submit(partial(self._on_done, execution))
        except RequestError:
            ask.execution = ask.request.ask = None
            self._remove(execution)
            raise

    def _on_done(self, execution: _Execution, outcome: Outcome, outputs: Outputs | None) -> None:
        """The dispatcher's callback: exactly once."""
        if not execution.asks:
            return  # all had gone, or were answered by another execution
        self._remove(execution)
        if type(outcome) is Served and outputs is not None:
            self._serve(execution, outcome, outputs)
            return
        asks, execution.asks = execution.asks, {}
        if _is_for_all(outcome):
            for ask in asks:
                self._tell(ask, outcome, None)
            return
        leader = execution.leader
        if leader in asks:
            del asks[leader]
            self._tell(leader, outcome, None)
        self._ask_again(execution.key, asks)

    def _serve(self, execution: _Execution, served: Served, outputs: Outputs) -> None:
        """Everybody who waits for this has it, also those of a tighter or a later execution."""
        if execution.generation == self._generation:
            self.cache.put(execution.key, outputs)
        leader = execution.leader
        for each in (execution, *self._executions.pop(execution.key, ())):
            asks, each.asks = each.asks, {}
            if each is not execution:
                self._take_back(each)
            for ask in asks:
                if ask is leader:
                    self._tell(ask, served, outputs)
                else:
                    ask.request.cache = SHARED
                    seen = _as_seen_by(ask, served, execution.arrival_ns)
                    # the energy was taken once, and the leader has been told of it
                    self._tell(ask, seen, Outputs(outputs.tensors, outputs.views))

    def _ask_again(self, key: bytes, asks: Iterable[Ask]) -> None:
        """Their deadlines are their own: the earliest leads, the others wait for that."""
        for ask in sorted(asks, key=_deadline):
            ask.execution = None
            if self._wait_with_others(key, ask):
                continue
            try:
                self._lead(key, ask)
            except RequestError as error:
                ask.request.refuse(error)

    def _tell(self, ask: Ask, outcome: Outcome, outputs: Outputs | None) -> None:
        ask.execution = ask.request.ask = None
        if outputs is not None and ask.request.cache is not None:
            self.counts[ask.request.cache] += 1
            self.lookup_ns[ask.request.cache] += ask.lookup_ns
        try:
            ask.on_done(outcome, outputs)
        except Exception:  # one client's answer broke: the others' must still be written
            logger.exception("the callback of a request raised on %r", outcome)

    def _take_back(self, execution: _Execution) -> None:
        if execution.sink_id is not None:
            self._cancel(execution.sink_id)

    def _remove(self, execution: _Execution) -> None:
        executions = self._executions.get(execution.key)
        if executions is not None and execution in executions:
            executions.remove(execution)
            if not executions:
                del self._executions[execution.key]


class Sharings:
    """All and only models that have had `sharing`, by name."""

    def __init__(self, cancel: Callable[[int], None]) -> None:
        self.by_model: dict[str, AnswerSharing] = {}
        self._cancel = cancel

    def of(self, spec: ModelSpec) -> AnswerSharing | None:
        """What serves this spec; None where each request is executed."""
        sharing = self.by_model.get(spec.name)
        if spec.sharing is None:
            if sharing is not None:
                sharing.forget()
            return None
        if sharing is None:
            sharing = self.by_model[spec.name] = AnswerSharing(self._cancel)
        sharing.serve(spec)
        return sharing

    def forget(self, name: str) -> None:
        """The model is not served any more, or not this version of it."""
        sharing = self.by_model.get(name)
        if sharing is not None:
            sharing.forget()


def _is_for_all(outcome: Outcome) -> bool:
    return not isinstance(outcome, Rejected | Expired | Failed) or (
        outcome.reason not in _BY_DEADLINE
    )


def _deadline(ask: Ask) -> int:
    return ask.deadline_ns


def _as_seen_by(ask: Ask, served: Served, arrival_ns: int) -> Served:
    """An execution that began before the request came: so much shorter were its wait, and what was
    predicted for it.
    """
    later_ns = ask.request.arrival_ns - arrival_ns
    return msgspec.structs.replace(
        served,
        queue_ns=max(0, served.queue_ns - later_ns),
        predicted_ns=max(0, served.predicted_ns - later_ns),
    )
