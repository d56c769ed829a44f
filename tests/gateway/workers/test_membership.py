"""Membership without a socket: hand-written messages in, events and answers out."""

from typing import TypeVar

import msgspec
import pytest

from gateway.workers.membership import (
    CALIBRATION_PINGS,
    MAX_UNANSWERED_PINGS,
    Membership,
    screen_models,
)
from scheduler.events import Event, ModelOffered, WorkerJoined, WorkerLost
from scheduler.spec import DeviceSpec, ModelProfile, ModelSpec, ShapeProfile
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
from tests.gateway.doubles import ManualClock, device_spec, model_spec, ms

RESNET = model_spec()
EPOCH = 1_000_000
AHEAD_NS = 5_000_000  # the worker's clock
Message = TypeVar("Message", bound=ToWorker)


class Door:
    """A Membership whose messages are read by hand; `gone` lists peers that cannot be reached."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.wall_ms = EPOCH
        self.events: list[Event] = []
        self.sent: list[tuple[bytes, ToWorker]] = []
        self.gone: set[bytes] = set()
        self.catalogue = {"resnet": RESNET}
        self.membership = Membership(
            self.catalogue,
            clock=clock,
            transmit=self._transmit,
            on_event=self.events.append,
            gateway="g",
            wall_ms=lambda: self.wall_ms,
        )

    def _transmit(self, identity: bytes, message: ToWorker) -> bool:
        if identity in self.gone:
            return False
        self.sent.append((identity, message))
        return True

    def messages(self, identity: bytes, kind: type[Message]) -> list[Message]:
        """Of this kind, sent to the peer so far."""
        return [m for to, m in self.sent if to == identity and isinstance(m, kind)]

    def hello(
        self,
        identity: bytes,
        *,
        name: str = "w",
        incarnation: str = "0123456789ab",
        models: tuple[ModelSpec, ...] = (RESNET,),
        resident: tuple[str, ...] = (),
        device: DeviceSpec | None = None,
        gateway: str = "",
        epoch: int = 0,
    ) -> None:
        told = device or device_spec()
        hello = Hello(name, incarnation, told, models, resident, gateway, epoch)
        self.membership.hello(identity, hello)

    def answer_ping(self, identity: bytes) -> bool:
        """The peer answers the newest ping, 200 µs after it was sent."""
        ping = self.messages(identity, Ping)[-1]
        self.clock.set(max(self.clock.now, ping.sent_ns + 200_000))
        session = self.membership.by_identity[identity]
        session.unanswered_pings = 0  # as the link does at any message
        there_ns = ping.sent_ns + AHEAD_NS + 100_000
        return self.membership.pong(session, Pong(ping.sent_ns, there_ns, there_ns))

    def join(self, identity: bytes, **hello: str) -> str:
        """The whole way in; returns the worker's id."""
        self.hello(identity, **hello)  # type: ignore[arg-type]
        for _ in range(CALIBRATION_PINGS):
            self.answer_ping(identity)
        joined = self.events[-1]
        assert isinstance(joined, WorkerJoined)
        return joined.worker_id


@pytest.fixture
def door(clock: ManualClock) -> Door:
    return Door(clock)


def lost(event: Event) -> tuple[str, str]:
    assert isinstance(event, WorkerLost)
    return event.worker_id, event.reason


# Joining


def test_a_worker_is_welcomed_by_its_id_and_pinged(door: Door) -> None:
    door.hello(b"1")
    assert door.sent == [
        (b"1", Welcome("w#01234567-1", {}, gateway="g", epoch=EPOCH)),
        (b"1", Ping(ms(0))),
    ]


def test_the_core_hears_of_a_worker_when_its_clock_is_known(door: Door) -> None:
    door.hello(b"1", resident=("resnet",))
    for _ in range(CALIBRATION_PINGS - 1):
        door.answer_ping(b"1")
        assert door.events == []
    door.answer_ping(b"1")
    assert door.events == [WorkerJoined("w#01234567-1", device_spec(), (RESNET,), ("resnet",))]
    assert door.membership.by_worker_id["w#01234567-1"].clock_offset.offset_ns == AHEAD_NS
    door.membership.beat()
    door.answer_ping(b"1")
    assert len(door.events) == 1


def test_nobody_is_answered_before_the_gateway_knows_its_models(door: Door) -> None:
    door.catalogue.clear()
    door.hello(b"1")
    assert door.sent == []
    door.membership.beat()
    assert door.sent == []
    door.catalogue["resnet"] = RESNET
    door.hello(b"1")
    assert door.messages(b"1", Welcome) == [Welcome("w#01234567-1", {}, gateway="g", epoch=EPOCH)]
    door.membership.beat()
    assert len(door.messages(b"1", Welcome)) == 1


def test_a_gateway_that_owns_no_model_lets_workers_in_once_it_knows_that(door: Door) -> None:
    door.catalogue.clear()
    door.hello(b"1", models=())
    door.membership.beat()
    assert door.sent == []
    door.membership.know_models()
    assert door.messages(b"1", Welcome) == [Welcome("w#01234567-1", {}, gateway="g", epoch=EPOCH)]
    door.membership.beat()
    door.hello(b"2", name="v", models=())
    assert set(door.membership.by_identity) == {b"1", b"2"}


def test_who_came_too_early_is_let_in_at_the_first_heartbeat_without_asking_again(
    door: Door,
) -> None:
    door.catalogue.clear()
    door.hello(b"0", incarnation="of a connection that broke")
    door.hello(b"1", resident=("resnet",))
    door.hello(b"2", name="v")
    door.gone.add(b"0")
    door.catalogue["resnet"] = RESNET
    door.membership.beat()
    assert door.messages(b"1", Welcome)
    assert door.messages(b"2", Welcome)
    assert set(door.membership.by_identity) == {b"1", b"2"}
    door.membership.beat()
    assert len(door.messages(b"1", Welcome)) == 1


def test_nonsense_pongs_do_not_let_a_worker_in(door: Door) -> None:
    door.hello(b"1")
    session = door.membership.by_identity[b"1"]
    for _ in range(2 * CALIBRATION_PINGS):
        assert not door.membership.pong(session, Pong(door.clock.now + 1, 5, 5))
    assert door.events == []
    assert len(door.messages(b"1", Ping)) == 1


def test_models_that_differ_are_refused_by_name_and_their_pages_not_believed(door: Door) -> None:
    other = model_spec("vgg")
    door.hello(
        b"1", models=(model_spec(content_hash="999"), other), resident=("resnet", "vgg", "ghost")
    )
    for _ in range(CALIBRATION_PINGS):
        door.answer_ping(b"1")
    (welcome,) = door.messages(b"1", Welcome)
    assert welcome.refused_models == {
        "resnet": "its content hash is 999, the gateway's is abc123: "
        "the two model directories differ",
        "vgg": "the gateway does not serve this model",
    }
    assert door.events == [WorkerJoined(welcome.worker_id, device_spec(), (), ())]


@pytest.mark.parametrize(
    ("name", "device", "reason"),
    [
        ("", device_spec(), "a worker's name has 1 to 128 characters, not 0"),
        ("w" * 129, device_spec(), "a worker's name has 1 to 128 characters, not 129"),
        (
            "w",
            device_spec(total_pages=0),
            "its device has 0 pages of 16777216 bytes: nothing could be loaded",
        ),
    ],
)
def test_a_worker_that_could_not_serve_is_refused(
    door: Door, name: str, device: DeviceSpec, reason: str
) -> None:
    door.hello(b"1", name=name, device=device)
    assert door.sent == [(b"1", Refused(reason))]
    assert door.membership.by_identity == {}


# Silence


def test_a_worker_that_answers_no_ping_is_lost_at_the_fifth_heartbeat(door: Door) -> None:
    worker_id = door.join(b"1")
    for _ in range(MAX_UNANSWERED_PINGS):
        door.membership.beat()
    assert len(door.events) == 1
    door.membership.beat()
    assert lost(door.events[1]) == (worker_id, "it answered none of 4 pings")
    door.membership.beat()
    assert len(door.events) == 2


def test_an_answer_now_and_then_keeps_a_worker(door: Door) -> None:
    door.join(b"1")
    for _ in range(3):
        for _ in range(MAX_UNANSWERED_PINGS):
            door.membership.beat()
        door.answer_ping(b"1")
    assert len(door.events) == 1


def test_a_worker_that_cannot_be_reached_is_lost_at_once(door: Door) -> None:
    worker_id = door.join(b"1")
    door.gone.add(b"1")
    door.membership.probe()
    assert lost(door.events[1]) == (worker_id, "its connection is gone")


def test_probing_does_not_count_against_a_worker(door: Door) -> None:
    door.join(b"1")
    for _ in range(10 * MAX_UNANSWERED_PINGS):
        door.membership.probe()
    door.membership.beat()
    assert len(door.events) == 1


def test_a_worker_that_never_got_in_is_forgotten_without_an_event(door: Door) -> None:
    door.hello(b"1")
    for _ in range(MAX_UNANSWERED_PINGS + 1):
        door.membership.beat()
    door.gone.add(b"2")
    door.hello(b"2", name="other")
    assert door.events == []
    assert door.membership.by_worker_id == {}


# Joining again


def test_a_worker_that_says_hello_again_is_lost_first_and_joins_under_a_new_id(door: Door) -> None:
    first = door.join(b"1")
    second = door.join(b"2")
    assert (first, second) == ("w#01234567-1", "w#01234567-2")
    assert [type(event) for event in door.events] == [WorkerJoined, WorkerLost, WorkerJoined]
    assert lost(door.events[1]) == (first, "it said Hello again")


def test_hello_twice_on_one_connection_is_a_new_session_too(door: Door) -> None:
    first = door.join(b"1")
    door.join(b"1")
    assert lost(door.events[1]) == (first, "it said Hello again")
    assert len(door.membership.by_worker_id) == 1


def test_a_connection_that_changes_its_name_is_one_worker(door: Door) -> None:
    first = door.join(b"1")
    door.join(b"1", name="renamed")
    assert lost(door.events[1]) == (first, "it said Hello again")
    assert list(door.membership.by_worker_id) == ["renamed#01234567-2"]


def test_a_restarted_process_takes_the_place_of_its_dead_predecessor_at_once(door: Door) -> None:
    first = door.join(b"1")
    door.gone.add(b"1")
    second = door.join(b"2", incarnation="fedcba987654")
    assert lost(door.events[1]) == (first, "its connection is gone")
    assert second == "w#fedcba98-2"


def test_a_second_process_under_a_live_workers_name_is_refused(door: Door) -> None:
    first = door.join(b"1")
    door.clock.advance(1)
    door.hello(b"2", incarnation="fedcba987654")
    assert door.messages(b"2", Refused) == []
    door.answer_ping(b"1")
    assert door.messages(b"2", Refused) == [Refused("the name w is in use by a live worker")]
    assert list(door.membership.by_worker_id) == [first]


def test_a_worker_that_says_hello_again_keeps_its_name_from_a_second_process(door: Door) -> None:
    door.join(b"1")
    door.hello(b"2", incarnation="fedcba987654")
    second = door.join(b"3")
    assert door.messages(b"2", Refused) == [Refused("the name w is in use by a live worker")]
    assert list(door.membership.by_worker_id) == [second]


def test_an_answer_to_an_older_ping_does_not_prove_the_name_in_use(door: Door) -> None:
    door.join(b"1")
    door.membership.beat()
    older = door.messages(b"1", Ping)[-1]
    door.clock.advance(1)
    door.hello(b"2", incarnation="fedcba987654")
    session = door.membership.by_identity[b"1"]
    door.membership.pong(session, Pong(older.sent_ns, older.sent_ns, older.sent_ns))
    assert door.messages(b"2", Refused) == []


def test_a_second_process_takes_over_when_the_first_stays_silent(door: Door) -> None:
    first = door.join(b"1")
    door.hello(b"2", incarnation="fedcba987654")
    for _ in range(MAX_UNANSWERED_PINGS + 1):
        door.membership.beat()
    assert lost(door.events[1]) == (first, "it answered none of 4 pings")
    assert door.messages(b"2", Welcome) == [Welcome("w#fedcba98-2", {}, gateway="g", epoch=EPOCH)]


# The end


def test_closing_says_goodbye_to_all_and_nothing_to_the_core(door: Door) -> None:
    door.join(b"1")
    door.hello(b"2", name="other")
    door.membership.close(Goodbye("the gateway stops"))
    assert [to for to, m in door.sent if isinstance(m, Goodbye)] == [b"1", b"2"]
    assert len(door.events) == 1
    door.membership.beat()
    assert len(door.events) == 1


# Whether a model can be believed


def with_profile(*exec_ns: dict[int, int], load_ns: int = 1) -> ModelSpec:
    shapes = tuple(ShapeProfile(shape_key="", elements=4, exec_ns=e) for e in exec_ns)
    return ModelSpec(
        **{
            field: getattr(RESNET, field)
            for field in RESNET.__struct_fields__
            if field != "profile"
        },
        profile=ModelProfile(load_ns=load_ns, shapes=shapes),
    )


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (model_spec(batch_sizes=(2, 4)), "its batch sizes [2, 4] do not rise from 1"),
        (model_spec(batch_sizes=(1, 4, 2)), "its batch sizes [1, 4, 2] do not rise from 1"),
        (model_spec(batch_sizes=(1, 1)), "its batch sizes [1, 1] do not rise from 1"),
        (model_spec(batch_sizes=()), "its batch sizes [] do not rise from 1"),
        (with_profile(), "its profile has no execution times"),
        (with_profile({1: 5}, {}), "its profile has no execution times"),
        (with_profile({1: 5, 2: 0}), "its profile has times or sizes below zero"),
        (with_profile({1: 5}, load_ns=-1), "its profile has times or sizes below zero"),
    ],
)
def test_a_model_the_core_could_not_plan_with_is_refused(spec: ModelSpec, why: str) -> None:
    assert screen_models([spec], {"resnet": RESNET}) == ((), {"resnet": why}, {})


def test_a_worker_may_have_measured_other_times() -> None:
    slower = model_spec(exec_ms=30)
    assert screen_models([slower], {"resnet": RESNET}) == ((slower,), {}, {})


def test_a_model_broken_at_the_gateway_is_refused_and_one_broken_at_the_worker_left_out() -> None:
    broken = model_spec(unavailable_reason="not ONNX")
    assert screen_models([RESNET], {"resnet": broken}) == (
        (),
        {"resnet": "unavailable at the gateway: not ONNX"},
        {},
    )
    assert screen_models([broken], {"resnet": RESNET}) == ((), {}, {})


# Models that come and go

NEWER = msgspec.structs.replace(RESNET, name="resnet/2", version="2", content_hash="newer")


def test_a_model_is_known_by_its_content_whatever_the_worker_calls_it(door: Door) -> None:
    """A worker that starts again finds the newest version under the plain name."""
    door.catalogue["resnet/2"] = NEWER
    own = msgspec.structs.replace(NEWER, name="resnet")
    worker_id = door.join(b"1", models=(own,), resident=("resnet",))  # type: ignore[arg-type]
    assert door.messages(b"1", Welcome) == [
        Welcome(worker_id, {}, names={"resnet/2": "resnet"}, gateway="g", epoch=EPOCH),
    ]
    assert door.messages(b"1", AddModel) == [AddModel(RESNET)], "kept, and not there any more"
    joined = door.events[-1]
    assert isinstance(joined, WorkerJoined)
    assert (joined.models, joined.resident) == ((NEWER,), ("resnet/2",))


def test_content_that_is_offered_twice_is_taken_once(door: Door) -> None:
    own = msgspec.structs.replace(RESNET, name="resnet/1/abc")
    accepted, refused, names = screen_models([RESNET, own], door.catalogue)
    assert (accepted, names) == ((RESNET,), {})
    assert refused == {"resnet/1/abc": "it is offered as resnet too"}


def test_workers_are_told_of_a_model_that_comes_and_of_one_that_goes(door: Door) -> None:
    door.join(b"1")
    door.catalogue["resnet/2"] = NEWER
    door.membership.add_model(NEWER)
    assert door.messages(b"1", AddModel) == [AddModel(NEWER)]
    session = door.membership.by_identity[b"1"]
    assert session.awaited == {"resnet/2": ("", False)}
    door.membership.cannot_offer(session, CannotOffer("resnet/2", "", False))
    assert session.awaited == {"resnet/2": ("it does not say why", False)}
    door.membership.offer(session, Offer(NEWER))
    assert door.events[-1] == ModelOffered(session.worker_id, NEWER)
    assert session.awaited == {}
    door.membership.cannot_offer(session, CannotOffer("resnet/2", "late", True))
    assert session.awaited == {}
    door.membership.drop_model("resnet/2")
    assert door.messages(b"1", DropModel) == [DropModel("resnet/2")]
    assert session.models == (RESNET,)


def test_an_offer_before_the_worker_has_joined_comes_with_its_joining(door: Door) -> None:
    door.hello(b"1")
    door.catalogue["resnet/2"] = NEWER
    door.membership.add_model(NEWER)
    door.membership.offer(door.membership.by_identity[b"1"], Offer(NEWER))
    for _ in range(CALIBRATION_PINGS):
        door.answer_ping(b"1")
    (joined,) = door.events
    assert isinstance(joined, WorkerJoined)
    assert joined.models == (RESNET, NEWER)


def test_an_offer_that_nobody_wants_any_more_is_dropped_and_a_wrong_one_refused(door: Door) -> None:
    door.join(b"1")
    session = door.membership.by_identity[b"1"]
    door.membership.offer(session, Offer(NEWER))
    assert door.messages(b"1", DropModel) == [DropModel("resnet/2")]
    door.catalogue["resnet/2"] = NEWER
    door.membership.add_model(NEWER)
    wrong = msgspec.structs.replace(NEWER, content_hash="another")
    door.membership.offer(session, Offer(wrong))
    why, is_final = session.awaited["resnet/2"]
    assert "the two model directories differ" in why
    assert is_final
    assert len(door.events) == 1


def test_a_worker_that_cannot_be_told_is_lost(door: Door) -> None:
    door.join(b"1")
    door.gone.add(b"1")
    door.membership.add_model(NEWER)
    assert isinstance(door.events[-1], WorkerLost)
    door.gone.clear()
    door.join(b"2", incarnation="fedcba987654")
    door.gone.add(b"2")
    door.membership.drop_model("resnet")
    assert isinstance(door.events[-1], WorkerLost)


# Two gateways of one name


def test_a_worker_of_an_earlier_gateway_is_taken_over(door: Door) -> None:
    door.hello(b"1", gateway="g", epoch=EPOCH - 5)
    assert door.messages(b"1", Welcome)[0].epoch == EPOCH


def test_a_worker_that_a_later_gateway_has_had_is_left_alone_and_we_are_told(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.join(b"1")
    door.wall_ms = EPOCH + 10_000
    door.hello(b"2", gateway="g", epoch=EPOCH + 3000)
    (told,) = door.messages(b"2", Superseded)
    assert "a gateway 'g' that started later (epoch 1003000, this one's is 1000000)" in told.reason
    assert not door.messages(b"2", Welcome)
    assert door.membership.num_superseded == 1
    assert "Are two of that name running?" in caplog.text


def test_a_session_ends_where_its_worker_says_that_a_later_gateway_has_had_it(door: Door) -> None:
    worker_id = door.join(b"1")
    door.wall_ms = EPOCH + 10_000
    door.hello(b"1", gateway="g", epoch=EPOCH + 3000)
    assert lost(door.events[-1]) == (worker_id, "a later gateway has it")


def test_a_gateway_of_another_name_is_no_earlier_and_no_later(door: Door) -> None:
    door.wall_ms = EPOCH + 10_000
    door.hello(b"1", gateway="other", epoch=EPOCH + 3000)
    assert door.messages(b"1", Welcome)


def test_a_clock_that_was_set_back_locks_no_worker_out(door: Door) -> None:
    door.hello(b"1", gateway="g", epoch=EPOCH + 3000)  # later than now
    assert door.messages(b"1", Welcome)[0].epoch == EPOCH + 3001
    door.hello(b"2", name="v", gateway="g", epoch=EPOCH + 3000)
    assert door.messages(b"2", Welcome)[0].epoch == EPOCH + 3001


def test_nobody_comes_in_while_the_gateway_says_goodbye(door: Door) -> None:
    door.join(b"1")
    door.membership.say_goodbye(Goodbye("the gateway stops"))
    door.hello(b"2", name="v")
    assert not door.messages(b"2", Welcome)
