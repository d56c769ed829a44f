"""Messages on the workers' door that no worker should send, to the ROUTER of a running gateway.

Each is counted, each that expects an answer gets one, and the request that comes next is served.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from scheduler.actions import Code, InferResult, LoadResult
from scheduler.spec import DeviceSpec
from scheduler.wire import (
    WIRE_VERSION,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Refused,
    Rejoin,
    Report,
    TensorMeta,
    Unreadable,
    encode,
)
from tests.system.clients import Answer, bytes_body, metric, post
from tests.system.puppets import MODELS, PAGE_BYTES, PuppetWorker, Stranger, infer_of
from tests.system.stages import Stage, joined, until

MODEL = "cifar_wideresnet16_10"
WIDTH = MODELS[MODEL].outputs[0].shape[1]
DEVICE = DeviceSpec(kind="x", page_bytes=PAGE_BYTES, total_pages=4, shares_exec_core=False)
HELLO = Hello("stranger", "0" * 32, DEVICE, (MODELS[MODEL],), ())
REPORT = Report(InferResult(7, Code.OK), ((TensorMeta((1, 4), 4),),))
VERSION = bytes([WIRE_VERSION])


class Asking:
    """One request in a thread of its own."""

    def __init__(self, url: str, data: bytes = b"?") -> None:
        self.answers: list[Answer] = []
        body = bytes_body(MODEL, data)
        self._thread = threading.Thread(target=lambda: self.answers.append(post(url, body)))
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join()
        return self.answers[0]


@pytest.fixture
def puppet(stage: Stage) -> Iterator[PuppetWorker]:
    """A good worker; what it serves, after whatever the test did, is the test's last assertion."""
    with joined(stage, [MODEL]) as worker:
        yield worker
        worker.release()
        served = post(stage.url, bytes_body(MODEL, b"ok"))
        assert served.json["outputs"][0]["data"][:3] == [*b"ok", 0]


@pytest.fixture
def stranger(stage: Stage) -> Iterator[Stranger]:
    peer = Stranger(stage.workers)
    yield peer
    peer.close()


def odd(stage: Stage, kind: str) -> float:
    return metric(stage.url, "odd_worker_messages_total", kind=kind)


GARBAGE: dict[str, list[bytes]] = {
    "an empty frame": [b""],
    "only a version": [VERSION],
    "another version": [bytes([WIRE_VERSION + 1]) + encode(HELLO)[1:]],
    "text": [b"GET / HTTP/1.1\r\n\r\n"],
    "a truncated Hello": [encode(HELLO)[:-20]],
    "a Hello and more": [encode(HELLO) + b"\0"],
    "a message to workers": [encode(Ping(1))],
    "JSON": [VERSION + msgspec.json.encode(HELLO)],
    "deep nesting": [VERSION + b"\x91" * 1_000_000],
    "an array of 4 billion": [VERSION + b"\xdd\xff\xff\xff\xff"],
    "text that is not UTF-8": [VERSION + b"\x92\xa5hello\xa2\xff\xfe"],
    "a Hello without a device": [VERSION + msgspec.msgpack.encode(["hello", "x", "y", 3, [], []])],
    "megabytes": [VERSION + bytes(8 * 1024 * 1024)],
    "a thousand frames": [b"\xff"] * 1000,
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_counted_and_answered(
    stage: Stage, puppet: PuppetWorker, stranger: Stranger, frames: list[bytes]
) -> None:
    before = odd(stage, "malformed")
    stranger.send(*frames)
    assert isinstance(stranger.hear(), Unreadable)
    assert odd(stage, "malformed") == before + 1


def test_thousands_of_damaged_messages_are_all_counted(
    stage: Stage, puppet: PuppetWorker, stranger: Stranger
) -> None:
    """Every one is either unreadable, or a message of somebody who is no member: seed 7."""
    chance = random.Random(7)
    before = odd(stage, "malformed") + odd(stage, "unknown_sender")
    sent = 0
    for original in [encode(REPORT), encode(Pong(1, 2, 3))] * 1000:
        damaged = bytearray(original)
        damaged[chance.randrange(1, len(damaged))] ^= 1 << chance.randrange(8)
        stranger.send(bytes(damaged[: chance.randint(2, len(damaged))]))
        sent += 1

    def counted() -> float:
        return odd(stage, "malformed") + odd(stage, "unknown_sender") - before

    until(lambda: counted() >= sent, "all are counted")
    assert counted() == sent


@pytest.mark.parametrize("message", [REPORT, Pong(1, 2, 3)], ids=["Report", "Pong"])
def test_a_stranger_is_told_to_say_hello(
    stage: Stage, puppet: PuppetWorker, stranger: Stranger, message: Report | Pong
) -> None:
    before = odd(stage, "unknown_sender")
    stranger.send(encode(message))
    assert isinstance(stranger.hear(), Rejoin)
    assert odd(stage, "unknown_sender") == before + 1


@pytest.mark.parametrize("message", [Unreadable("?"), Goodbye("?")], ids=["Unreadable", "Goodbye"])
def test_what_expects_no_answer_gets_none(
    stage: Stage, puppet: PuppetWorker, stranger: Stranger, message: Unreadable | Goodbye
) -> None:
    stranger.send(encode(message))
    stranger.send(b"")
    answer = stranger.hear()  # so the first answer is the second message's
    assert answer == Unreadable("header frame is empty")


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (msgspec.structs.replace(HELLO, name="x" * 100_000), "1 to 128 characters"),
        (msgspec.structs.replace(HELLO, name=""), "1 to 128 characters"),
        (
            msgspec.structs.replace(HELLO, device=msgspec.structs.replace(DEVICE, total_pages=0)),
            "nothing could be loaded",
        ),
        (msgspec.structs.replace(HELLO, name="puppet"), "the name puppet is in use"),
    ],
    ids=["a long name", "no name", "no pages", "a name in use"],
)
def test_a_hello_that_cannot_be_right_is_refused(
    stage: Stage, puppet: PuppetWorker, stranger: Stranger, hello: Hello, words: str
) -> None:
    stranger.send(encode(hello))
    answer = stranger.hear()
    assert isinstance(answer, Refused)
    assert words in answer.reason


def test_a_worker_that_talks_garbage_loses_its_place_and_its_request_is_answered(
    stage: Stage,
) -> None:
    with joined(stage, [MODEL], name="mad", is_holding=True) as mad:
        asking = Asking(stage.url)
        mad.wait_for_requests(1)
        mad.send_raw([b"\xff\xff"])
        assert asking.answer().verdict == "503 worker_lost"
        mad.wait_for(lambda: any(isinstance(m, Rejoin) for m in mad.heard), "Rejoin")
        kinds = [type(m) for m in mad.heard if isinstance(m, Unreadable | Rejoin)]
        assert kinds == [Unreadable, Rejoin]


def test_a_worker_that_cannot_read_us_loses_its_place_and_its_request_is_answered(
    stage: Stage,
) -> None:
    before = odd(stage, "unreadable_there")
    with joined(stage, [MODEL], name="deaf", is_holding=True) as deaf:
        asking = Asking(stage.url)
        deaf.wait_for_requests(1)
        deaf.send(Unreadable("wire version 1, this side speaks 2"))
        assert asking.answer().verdict == "503 worker_lost"
        assert odd(stage, "unreadable_there") == before + 1


def test_a_result_of_an_action_that_never_was_is_an_anomaly_and_nothing_else(
    stage: Stage, puppet: PuppetWorker
) -> None:
    before = metric(stage.url, "anomalies_total", kind="result_of_unknown_action")
    for action_id in (0, -1, 10**9):
        puppet.report(InferResult(action_id, Code.OK))
        puppet.report(LoadResult(action_id, Code.ENGINE_ERROR))

    def counted() -> float:
        return metric(stage.url, "anomalies_total", kind="result_of_unknown_action") - before

    until(lambda: counted() == 6, "all are counted")


Lie = Callable[[PuppetWorker, InferResult], None]
LIES: dict[str, Lie] = {
    "no outputs": lambda puppet, ok: puppet.report(ok),
    "outputs of two requests": lambda puppet, ok: puppet.send(
        Report(ok, ((TensorMeta((1, 2), 2),), (TensorMeta((1, 2), 2),))), [b"abcd"]
    ),
    "fewer bytes than it says": lambda puppet, ok: puppet.send(
        Report(ok, ((TensorMeta((1, WIDTH), WIDTH),),)), [b"short"]
    ),
    "a frame too many": lambda puppet, ok: puppet.send(
        Report(ok, ((TensorMeta((1, 1), 1),),)), [b"a", b"b"]
    ),
    "a result of another kind": lambda puppet, ok: puppet.report(LoadResult(ok.action_id, Code.OK)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_result_that_does_not_fit_is_tried_again_and_then_a_500(
    stage: Stage, puppet: PuppetWorker, lie: Lie
) -> None:
    puppet.is_holding = True
    asking = Asking(stage.url)
    for _ in range(2):
        puppet.wait_for_requests(1)
        action = infer_of(puppet.held.pop())
        now = time.monotonic_ns()
        lie(puppet, InferResult(action.action_id, Code.OK, "", now))
    assert asking.answer().verdict == "500 engine_error"


@pytest.mark.parametrize(
    ("shape", "data"),
    [((1, WIDTH), b"short"), ((), b"ab"), ((-1, 5), b"five."), ((1, 2**62), b"short")],
)
def test_outputs_that_contradict_their_shape_are_a_500_for_that_request(
    stage: Stage, puppet: PuppetWorker, shape: tuple[int, ...], data: bytes
) -> None:
    puppet.is_holding = True
    asking = Asking(stage.url)
    puppet.wait_for_requests(1)
    action = infer_of(puppet.held.pop())
    ok = InferResult(action.action_id, Code.OK, "", time.monotonic_ns())
    puppet.send(Report(ok, ((TensorMeta(shape, len(data)),),)), [data])
    assert asking.answer().verdict == "500 internal_error"


def test_a_second_report_of_the_same_action_changes_nothing(
    stage: Stage, puppet: PuppetWorker
) -> None:
    before = metric(stage.url, "anomalies_total", kind="result_of_unknown_action")
    puppet.is_holding = True
    asking = Asking(stage.url, b"twice")
    puppet.wait_for_requests(1)
    action = infer_of(puppet.held[0])
    puppet.release()
    assert asking.answer().json["outputs"][0]["data"][:6] == [*b"twice", 0]
    metas = ((TensorMeta((1, WIDTH), WIDTH),),)
    puppet.send(Report(InferResult(action.action_id, Code.OK), metas), [b"X" * WIDTH])

    def counted() -> float:
        return metric(stage.url, "anomalies_total", kind="result_of_unknown_action") - before

    until(lambda: counted() == 1, "it is counted")
