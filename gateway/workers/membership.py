"""Who is a worker of this gateway: joins, heartbeats, losses, and each worker's clock offset.

It owns the sessions. A session is one connection of one worker process between two Hellos, and has
a worker id that is never used again. It must never touch a socket (it is given `transmit`) and
never believe a worker that contradicts the catalogue: such a model is refused by name.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from gateway.workers.clock_offset import ClockOffset
from gateway.workers.gpu_figures import FleetFigures
from scheduler.events import Event, ModelOffered, WorkerJoined, WorkerLost
from scheduler.spec import ModelSpec
from scheduler.wire import (
    AddModel,
    CannotOffer,
    DropModel,
    Goodbye,
    Hello,
    Offer,
    Ping,
    Pong,
    Refused,
    Superseded,
    ToWorker,
    Welcome,
)

logger = logging.getLogger(__name__)

# Four pings, a fifth of a second apart, and a fifth of a second for the last: a worker that falls
# silent is lost within one second, and pings are counted instead of time so that a gateway which
# itself stood still does not blame its workers.
HEARTBEAT_INTERVAL_NS = 200_000_000
MAX_UNANSWERED_PINGS = 4
# The first round trip wakes sleeping threads on both sides; of five, one is honest.
CALIBRATION_PINGS = 5
MAX_NAME_LENGTH = 128
MAX_EARLY = 4096  # workers that are remembered from before the gateway knew its models


class Session:
    """One worker between its Hello and its loss. `has_joined` once the core was told of it."""

    def __init__(
        self, identity: bytes, hello: Hello, worker_id: str, models: tuple[ModelSpec, ...]
    ) -> None:
        self.identity = identity
        self.name = hello.name
        self.incarnation = hello.incarnation
        self.device = hello.device
        self.models = models
        self.resident = hello.resident
        self.worker_id = worker_id
        self.clock_offset = ClockOffset()
        self.has_joined = False
        # All and only models that it was told to add and has not offered, and why not ("": it has
        # not said so); whether that is its last word.
        self.awaited: dict[str, tuple[str, bool]] = {}
        self.unanswered_pings = 0
        # Another process that said Hello under this name, and when: (identity, hello, now).
        self.newcomer: tuple[bytes, Hello, int] | None = None


class Membership:
    """Turns what workers say about themselves into WorkerJoined and WorkerLost.

    `transmit(identity, message)` is False where the peer cannot be reached any more. `on_event` may
    lead to further calls into this object. `max_frame_bytes` is told to workers; 0: no limit.
    """

    def __init__(
        self,
        catalogue: Mapping[str, ModelSpec],
        *,
        clock: Callable[[], int],
        transmit: Callable[[bytes, ToWorker], bool],
        on_event: Callable[[Event], None],
        max_frame_bytes: int = 0,
        gateway: str = "",
        wall_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """`gateway` is this one's name, `wall_ms` what people's clocks show."""
        self._catalogue = catalogue
        self._gateway = gateway
        self._wall_ms = wall_ms
        # When we started: of two gateways of one name the later is right.
        self.epoch = wall_ms()
        self.num_superseded = 0  # Hellos of workers that a later gateway has had
        self._is_closing = False
        self._is_catalogue_complete = False  # else it may be empty since it is being made
        # All and only peers that said Hello before there was a catalogue, and what they said last.
        self._early: dict[bytes, Hello] = {}
        self._max_frame_bytes = max_frame_bytes
        self._clock = clock
        self._transmit = transmit
        self._on_event = on_event
        self._num_joins = 0
        self.gpus = FleetFigures()
        # All and only live sessions, by the three names they go by.
        self.by_identity: dict[bytes, Session] = {}
        self.by_worker_id: dict[str, Session] = {}
        self._by_name: dict[str, Session] = {}

    def hello(self, identity: bytes, hello: Hello) -> None:
        """Admits the worker, refuses it, or first finds out whether its name is still in use.

        While the catalogue is empty, because the gateway is still compiling, it says nothing: all
        models would be refused for good. `know_models` answers, or a heartbeat.
        """
        if self._is_closing:
            return
        if not self._knows_models():
            if len(self._early) < MAX_EARLY or identity in self._early:
                self._early[identity] = hello
            return
        self._early.pop(identity, None)
        if self._is_superseded(hello):
            self._yield(identity, hello)
            return
        problem = _problem_of(hello)
        if problem is not None:
            logger.warning("refused worker %.128r: %s", hello.name, problem)
            self._transmit(identity, Refused(problem))
            return
        namesake = self._by_name.get(hello.name)
        if namesake is not None and namesake.incarnation != hello.incarnation:
            # A restart of a process that died, or a second one under its name: a ping tells, since
            # it finds nobody, or is answered (see pong), or is not (see beat).
            namesake.newcomer = (identity, hello, self._clock())
            self._ping(namesake)
            return
        if namesake is not None:
            self._refuse_newcomer(namesake)  # the process it wanted to replace lives
        for old in (namesake, self.by_identity.get(identity)):
            if old is not None:
                self.lose(old, "it said Hello again")
        self._admit(identity, hello)

    def pong(self, session: Session, pong: Pong) -> bool:
        """Learns the clock offset; tells the core once that suffices. False for a nonsense pong."""
        is_sound = session.clock_offset.add(
            sent_ns=pong.ping_sent_ns,
            received_ns=pong.received_ns,
            replied_ns=pong.sent_ns,
            now=self._clock(),
        )
        self.gpus.observe(session.name, pong.sample)
        if session.newcomer is not None and pong.ping_sent_ns >= session.newcomer[2]:
            self._refuse_newcomer(session)
        if session.has_joined:
            return is_sound
        if session.clock_offset.num_samples < CALIBRATION_PINGS:
            if is_sound:
                self._ping(session)
            return is_sound
        session.has_joined = True
        logger.info(
            "worker %s joined: %d models, round trip %d us, clock offset %d us",
            session.worker_id,
            len(session.models),
            session.clock_offset.rtt_ns // 1000,
            session.clock_offset.offset_ns // 1000,
        )
        self._on_event(
            WorkerJoined(session.worker_id, session.device, session.models, session.resident)
        )
        return is_sound

    def lose(self, session: Session, reason: str, *, level: int = logging.WARNING) -> None:
        """Ends a session; the core hears of it if it had heard of the worker. Once per session."""
        if self.by_worker_id.pop(session.worker_id, None) is None:
            return
        del self.by_identity[session.identity]
        del self._by_name[session.name]
        self.gpus.disconnect(session.name)
        logger.log(level, "worker %s lost: %s", session.worker_id, reason)
        if session.has_joined:
            self._on_event(WorkerLost(session.worker_id, reason))
        if session.newcomer is not None:
            identity, hello, _ = session.newcomer
            self.hello(identity, hello)

    def beat(self) -> None:
        """Call every HEARTBEAT_INTERVAL_NS, after reading what has arrived."""
        if self._early and self._knows_models():
            self._let_early_in()
        for session in list(self.by_identity.values()):
            if session.unanswered_pings >= MAX_UNANSWERED_PINGS:
                self.lose(session, f"it answered none of {session.unanswered_pings} pings")
            else:
                session.unanswered_pings += 1
                self._ping(session)

    def know_models(self) -> None:
        """The catalogue is complete, and may be empty: of several gateways, one may own no model,
        and its workers wait for one.
        """
        self._is_catalogue_complete = True
        self._let_early_in()

    def _knows_models(self) -> bool:
        return bool(self._catalogue) or self._is_catalogue_complete

    def _let_early_in(self) -> None:
        for identity, hello in list(self._early.items()):
            self.hello(identity, hello)

    def add_model(self, spec: ModelSpec) -> None:
        """Has all workers make a model ready, which the catalogue has from now on."""
        for session in list(self.by_identity.values()):
            self._ask_for(session, spec)

    def drop_model(self, name: str) -> None:
        """Has all workers forget a model, which the catalogue has no more."""
        for session in list(self.by_identity.values()):
            session.awaited.pop(name, None)
            session.models = tuple(spec for spec in session.models if spec.name != name)
            if not self._transmit(session.identity, DropModel(name)):
                self.lose(session, "its connection is gone")

    def offer(self, session: Session, offer: Offer) -> None:
        """The worker has made ready what it was asked for; or what is not wanted any more."""
        spec = offer.spec
        if session.awaited.pop(spec.name, None) is None:
            self._transmit(session.identity, DropModel(spec.name))
            return
        why = _refusal_of(spec, self._catalogue.get(spec.name))
        if why is not None:
            logger.warning("worker %s: model %s refused: %s", session.name, spec.name, why)
            session.awaited[spec.name] = (why, True)
            return
        session.models = (*session.models, spec)
        if session.has_joined:
            self._on_event(ModelOffered(session.worker_id, spec))

    def cannot_offer(self, session: Session, answer: CannotOffer) -> None:
        if answer.name in session.awaited:
            session.awaited[answer.name] = (answer.reason or "it does not say why", answer.is_final)
            logger.info("worker %s: no %s: %s", session.name, answer.name, answer.reason)

    def _ask_for(self, session: Session, spec: ModelSpec) -> None:
        session.awaited[spec.name] = ("", False)
        if not self._transmit(session.identity, AddModel(spec)):
            self.lose(session, "its connection is gone")

    def probe(self) -> None:
        """Loses at once whoever's connection is gone, instead of at the next heartbeat."""
        for session in list(self.by_identity.values()):
            self._ping(session)

    def say_goodbye(self, goodbye: Goodbye) -> None:
        """Asks all workers to leave; each does with a Goodbye of its own. None comes in again."""
        self._is_closing = True
        for identity in self.by_identity:
            self._transmit(identity, goodbye)

    def close(self, goodbye: Goodbye) -> None:
        """Tells all workers, and forgets them without a word to the core."""
        self.say_goodbye(goodbye)
        self.by_identity.clear()
        self.by_worker_id.clear()
        self._by_name.clear()

    def _admit(self, identity: bytes, hello: Hello) -> None:
        accepted, refused, own_names = screen_models(hello.models, self._catalogue)
        for model, why in refused.items():
            logger.warning("worker %s: model %s refused: %s", hello.name, model, why)
        self._num_joins += 1
        worker_id = f"{hello.name}#{hello.incarnation[:8]}-{self._num_joins}"
        session = Session(identity, hello, worker_id, accepted)
        names = {own_names.get(spec.name, spec.name): spec.name for spec in accepted}
        session.resident = tuple(names[name] for name in hello.resident if name in names)
        self.by_identity[identity] = session
        self.by_worker_id[worker_id] = session
        self._by_name[hello.name] = session
        welcome = Welcome(
            worker_id, refused, self._max_frame_bytes, own_names, self._gateway, self.epoch
        )
        if not self._transmit(identity, welcome):
            self.lose(session, "its connection is gone")
            return
        for spec in _missing(hello.models, self._catalogue):
            self._ask_for(session, spec)
        self._ping(session)

    def _is_superseded(self, hello: Hello) -> bool:
        """Whether a gateway that started after us has had the worker.

        An epoch from a time that is yet to come says that a clock was set back, or that ours is
        behind: then nobody can say who is later, and we go before it.
        """
        if hello.gateway != self._gateway or hello.epoch <= self.epoch:
            return False
        if hello.epoch <= self._wall_ms():
            return True
        logger.warning(
            "worker %s was with a gateway %r of epoch %d, later than now by this clock: "
            "this one goes on with the next epoch",
            hello.name,
            hello.gateway,
            hello.epoch,
        )
        self.epoch = hello.epoch + 1
        return False

    def _yield(self, identity: bytes, hello: Hello) -> None:
        self.num_superseded += 1
        reason = (
            f"a gateway {self._gateway!r} that started later (epoch {hello.epoch}, this one's is "
            f"{self.epoch}) has had worker {hello.name}"
        )
        logger.error("left a worker alone: %s. Are two of that name running?", reason)
        self._transmit(identity, Superseded(reason))
        old = self.by_identity.get(identity)
        if old is not None:
            self.lose(old, "a later gateway has it")

    def _refuse_newcomer(self, session: Session) -> None:
        if session.newcomer is not None:
            identity, session.newcomer = session.newcomer[0], None
            logger.warning("refused a second worker named %s", session.name)
            self._transmit(identity, Refused(f"the name {session.name} is in use by a live worker"))

    def _ping(self, session: Session) -> None:
        if not self._transmit(session.identity, Ping(self._clock())):
            self.lose(session, "its connection is gone")


def screen_models(
    models: Sequence[ModelSpec], catalogue: Mapping[str, ModelSpec]
) -> tuple[tuple[ModelSpec, ...], dict[str, str], dict[str, str]]:
    """The models of a Hello that can be served; the others: name → why not; and of those that we
    call otherwise: our name → the worker's.

    A model is known by its content (adr/0012). One that the worker itself calls unavailable is in
    neither: it knows.
    """
    ours_by_content = {
        (ours.public_name, ours.content_hash): ours
        for ours in catalogue.values()
        if ours.unavailable_reason is None
    }
    accepted: dict[str, ModelSpec] = {}
    refused: dict[str, str] = {}
    own_names: dict[str, str] = {}
    for spec in models:
        if spec.unavailable_reason is not None:
            continue
        ours = ours_by_content.get((spec.public_name, spec.content_hash))
        why = _refusal_of(spec, catalogue.get(spec.name) if ours is None else ours)
        if why is None and ours is not None and ours.name in accepted:
            why = f"it is offered as {own_names.get(ours.name, ours.name)} too"
        if why is not None or ours is None:
            refused[spec.name] = why or "the gateway does not serve this content"
        elif ours.name == spec.name:
            accepted[spec.name] = spec
        else:
            accepted[ours.name] = msgspec.structs.replace(spec, name=ours.name)
            own_names[ours.name] = spec.name
    return tuple(accepted.values()), refused, own_names


def _missing(models: Sequence[ModelSpec], catalogue: Mapping[str, ModelSpec]) -> list[ModelSpec]:
    """What a worker is asked for that does not offer it: of models that have several versions, all
    that it did not find by itself. What it calls unavailable, it has tried.
    """
    with_versions = {spec.public_name for key, spec in catalogue.items() if "/" in key}
    if not with_versions:
        return []
    found = {(spec.public_name, spec.content_hash) for spec in models}
    return [
        spec
        for spec in catalogue.values()
        if spec.public_name in with_versions
        and spec.unavailable_reason is None
        and (spec.public_name, spec.content_hash) not in found
    ]


def _refusal_of(spec: ModelSpec, ours: ModelSpec | None) -> str | None:
    if ours is None:
        return "the gateway does not serve this model"
    if ours.unavailable_reason is not None:
        return f"unavailable at the gateway: {ours.unavailable_reason}"
    if spec.content_hash != ours.content_hash:
        return (
            f"its content hash is {spec.content_hash[:12]}, the gateway's is "
            f"{ours.content_hash[:12]}: the two model directories differ"
        )
    if not spec.batch_sizes or list(spec.batch_sizes) != sorted({1, *spec.batch_sizes}):
        return f"its batch sizes {list(spec.batch_sizes)} do not rise from 1"
    durations_ns = [ns for shape in spec.profile.shapes for ns in shape.exec_ns.values()]
    if not all(shape.exec_ns for shape in spec.profile.shapes) or not durations_ns:
        return "its profile has no execution times"
    if min(durations_ns) <= 0 or spec.profile.load_ns < 0 or spec.weights_bytes < 0:
        return "its profile has times or sizes below zero"
    return None


def _problem_of(hello: Hello) -> str | None:
    if not 0 < len(hello.name) <= MAX_NAME_LENGTH:
        return f"a worker's name has 1 to {MAX_NAME_LENGTH} characters, not {len(hello.name)}"
    if hello.device.page_bytes < 1 or hello.device.total_pages < 1:
        return (
            f"its device has {hello.device.total_pages} pages of {hello.device.page_bytes} bytes: "
            "nothing could be loaded"
        )
    return None
