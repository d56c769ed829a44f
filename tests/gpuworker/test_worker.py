"""The worker against a puppet gateway over real ZeroMQ: who says what, and in which order.

Execution and loading are puppets that wait to be told, and the clock moves only by hand.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import zmq

from gpuworker.additions import Additions, NotHereError
from gpuworker.backend import DeviceLost, EngineError, InvalidInput, Prepared
from gpuworker.worker import EXIT_BROKEN, RETRY_INTERVAL_NS, STUCK_AFTER_NS, YIELD_NS, Worker
from scheduler import wire
from scheduler.actions import (
    NO_SPAN,
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
from scheduler.spec import DeviceSpec, ModelProfile, ModelSpec, TensorSpec

START_NS = 8_000_000_000_000_001
SECOND_NS = 1_000_000_000
FAR_NS = START_NS + 3600 * SECOND_NS
PATIENCE_S = 20  # only ever waited for in full by a test that fails
PAGE_BYTES = 1 << 20
Message = TypeVar("Message")


def spec(name: str, num_pages: int, unavailable_reason: str | None = None) -> ModelSpec:
    return ModelSpec(
        name=name,
        version="1",
        content_hash=f"hash of {name}",
        platform="puppet",
        inputs=(TensorSpec("x", "UINT8", (-1, 4)),),
        outputs=(TensorSpec("y", "UINT8", (-1, 2)),),
        batch_sizes=(1, 2, 4),
        runs_exact_batch=True,
        weights_bytes=num_pages * PAGE_BYTES,
        profile=ModelProfile(load_ns=1, shapes=()),
        unavailable_reason=unavailable_reason,
    )


class ManualClock:
    now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns


class PuppetTelemetry:
    """Says what it is told to."""

    def __init__(self, last: wire.DeviceSample | None) -> None:
        self.last = last

    def close(self) -> None:
        """Nothing is open."""


class PuppetBackend:
    """Echoes each request's bytes. `gate` holds executions until it is opened."""

    def __init__(self, *, overlaps_io: bool = False) -> None:
        self.overlaps_io = overlaps_io
        self.telemetry: PuppetTelemetry | None = None
        self.device = DeviceSpec(
            kind="puppet", page_bytes=PAGE_BYTES, total_pages=4, shares_exec_core=False
        )
        specs = [spec("a", 1), spec("b", 2), spec("big", 4), spec("broken", 1, "not ONNX")]
        self.models: dict[str, ModelSpec] = {s.name: s for s in specs}
        self.failures: dict[str, BaseException] = {}
        self.log: list[str] = []
        self.executing: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.staged: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.gate = threading.Event()
        self.gate.set()
        self.is_closed = False
        self.bound: set[str] = set()

    def bind_thread(self) -> None:
        self.bound.add(threading.current_thread().name)

    def discard(self, staged: tuple[str, list[bytes]]) -> None:
        self._fail("discard")
        self.log.append(f"discard {staged[0]}")

    def load(self, model: str, pages: Sequence[int]) -> int:
        self._fail("load")
        self.log.append(f"load {model} {len(pages)}")
        return 5

    def evict(self, model: str) -> None:
        self._fail("evict")
        self.log.append(f"evict {model}")

    def release(self, model: str) -> int:
        self._fail("release")
        self.log.append(f"release {model}")
        return 4096

    def prepare(self, spec: ModelSpec) -> Prepared:
        self._fail("prepare")
        return Prepared(spec, None)

    def add(self, prepared: Prepared) -> None:
        self.log.append(f"add {prepared.spec.name}")
        self.models[prepared.spec.name] = prepared.spec

    def remove(self, model: str) -> None:
        self.log.append(f"remove {model}")
        self.models.pop(model, None)

    def stage(
        self,
        order: Infer,
        tensors: Sequence[wire.RequestTensors],
        views: Sequence[Sequence[memoryview]],
    ) -> tuple[str, list[bytes]]:
        self._fail("stage")
        content = [bytes(request[0]) for request in views]
        self.staged.put(content[0] if content else b"a trial")
        return order.model, content

    def execute(self, staged: tuple[str, list[bytes]]) -> int:
        self.executing.put(staged[0])
        assert self.gate.wait(PATIENCE_S)
        self._fail("execute")
        return 7

    def unstage(
        self, staged: tuple[str, list[bytes]]
    ) -> tuple[tuple[wire.RequestTensors, ...], list[wire.Buffer]]:
        self._fail("unstage")
        tensors = tuple((wire.TensorMeta((1, len(t)), len(t)),) for t in staged[1])
        return tensors, list(staged[1])

    def close(self) -> None:
        self.is_closed = True

    def _fail(self, phase: str) -> None:
        if phase in self.failures:
            raise self.failures.pop(phase)


class Rig:
    """A worker in a thread, and the gateway it talks to, played by hand."""

    def __init__(self, address: str, *, overlaps_io: bool = False) -> None:
        self.address = address
        self.backend = PuppetBackend(overlaps_io=overlaps_io)
        self.clock = ManualClock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.worker: Worker | None = None
        self._thread = threading.Thread(target=self._run)
        self._exit_codes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.identity = b""
        self.bind()

    def bind(self, *, curve_secret: bytes | None = None) -> None:
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        if curve_secret is not None:
            self._router.curve_server = True
            self._router.curve_secretkey = curve_secret
        self._router.bind(self.address)

    def unbind(self) -> None:
        self._router.close()

    def start(self, parent_pid: int | None = None) -> "Rig":
        self.worker = Worker(
            connect=self.address,
            name="w",
            backend=self.backend,
            parent_pid=parent_pid,
            clock=self.clock,
        )
        self._thread.start()
        return self

    def join(self, refused: Mapping[str, str] | None = None) -> "Rig":
        self.start()
        self.expect(wire.Hello)
        self.welcome(refused)
        return self

    def welcome(
        self,
        refused: Mapping[str, str] | None = None,
        *,
        max_frame_bytes: int = 0,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.say(wire.Welcome("w#1", dict(refused or {}), max_frame_bytes, dict(names or {})))
        self.say(wire.Ping(1))  # its Pong says that the welcome has been taken
        self.expect(wire.Pong)

    def say(self, message: wire.ToWorker, frames: Sequence[wire.Buffer] = ()) -> None:
        self.say_raw([wire.encode(message), *frames])

    def say_raw(self, frames: Sequence[wire.Buffer]) -> None:
        self._router.send_multipart([self.identity, *frames])

    def order(
        self, action: Action, *tensors: bytes, frames: Sequence[wire.Buffer] | None = None
    ) -> None:
        metas = tuple((wire.TensorMeta((1, len(t)), len(t)),) for t in tensors)
        sent = wire.pack_tensors(tensors) if frames is None else frames
        self.say(wire.Order(action, metas), sent)

    def hear(self) -> tuple[wire.ToGateway, list[bytes]]:
        assert self._router.poll(PATIENCE_S * 1000), "the worker says nothing"
        self.identity, header, *frames = self._router.recv_multipart()
        return wire.decode_to_gateway(header), frames

    def expect(self, kind: type[Message]) -> Message:
        message, _ = self.hear()
        assert isinstance(message, kind), message
        return message

    def result(self) -> Result:
        return self.expect(wire.Report).result

    def code(self) -> Code:
        return self.result().code

    def load(self, model: str, action_id: int = 90) -> None:
        self.order(load(action_id, model))
        assert self.code() is Code.OK

    def executing(self) -> str:
        """Wait until the backend executes something."""
        return self.backend.executing.get(timeout=PATIENCE_S)

    def exit_code(self) -> int:
        return self._exit_codes.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self.backend.gate.set()
        if self.worker is not None and self._thread.is_alive():
            self.worker.request_stop("the test is over")
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()
        self._router.close()
        self._context.term()

    def _run(self) -> None:
        assert self.worker is not None
        self._exit_codes.put(self.worker.run())


@pytest.fixture(params=[False, True], ids=["one lane", "three lanes"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """Input and output phases in the EXEC lane, or in lanes of their own."""
    rig = Rig(f"ipc://{tmp_path}/workers", overlaps_io=request.param)
    yield rig
    rig.close()


@pytest.fixture
def overlapping(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(f"ipc://{tmp_path}/workers", overlaps_io=True)
    yield rig
    rig.close()


def infer(action_id: int, model: str = "a", *, rows: tuple[int, ...] = (1,), **kw: int) -> Infer:
    return Infer(
        action_id,
        model,
        batch_size=kw.get("batch_size", sum(rows)),
        request_ids=tuple(range(len(rows))),
        rows=rows,
        earliest_ns=kw.get("earliest_ns", START_NS),
        latest_ns=kw.get("latest_ns", FAR_NS),
        expected_duration_ns=1,
    )


def load(action_id: int, model: str, num_pages: int | None = None) -> LoadWeights:
    pages = {"a": 1, "b": 2, "big": 4}.get(model, 1) if num_pages is None else num_pages
    return LoadWeights(action_id, model, pages, START_NS, FAR_NS, 1)


def evict(action_id: int, model: str) -> EvictWeights:
    return EvictWeights(action_id, model, START_NS, FAR_NS)


def release(action_id: int, model: str) -> ReleaseModel:
    return ReleaseModel(action_id, model, START_NS, FAR_NS)


# Orders


def test_hello_introduces_device_models_and_an_empty_cache(rig: Rig) -> None:
    hello = rig.start().expect(wire.Hello)
    assert (hello.name, hello.resident) == ("w", ())
    assert hello.device == rig.backend.device
    assert {m.name for m in hello.models} == {"a", "b", "big", "broken"}


def test_a_model_is_loaded_executed_and_evicted(rig: Rig) -> None:
    rig.join()
    rig.order(load(1, "a"))
    loaded = rig.result()
    assert isinstance(loaded, LoadResult)
    assert (loaded.action_id, loaded.code, loaded.load.duration_ns) == (1, Code.OK, 5)

    rig.order(infer(2, rows=(1, 1)), b"abcd", b"efgh")
    report, frames = rig.hear()
    assert isinstance(report, wire.Report)
    result = report.result
    assert isinstance(result, InferResult)
    assert (result.action_id, result.code, result.exec.duration_ns) == (2, Code.OK, 7)
    assert result.received_ns == result.input.begin_ns == result.output.end_ns == START_NS
    views = wire.unpack_tensors(report.tensors, frames)
    assert [bytes(request[0]) for request in views] == [b"abcd", b"efgh"]

    rig.order(evict(3, "a"))
    assert rig.result() == EvictResult(3, Code.OK, "", START_NS)
    assert rig.backend.log == ["load a 1", "evict a"]


def test_large_tensors_travel_in_frames_of_their_own_and_keep_their_place(rig: Rig) -> None:
    rig.join().load("a")
    large, larger = b"l" * (wire.SMALL_TENSOR_BYTES + 1), b"L" * 1_000_000
    rig.order(infer(1, rows=(1, 1, 1, 1)), b"ab", large, b"cd", larger)
    report, frames = rig.hear()
    assert isinstance(report, wire.Report)
    assert [len(frame) for frame in frames] == [4, len(large), len(larger)]
    views = wire.unpack_tensors(report.tensors, frames)
    assert [bytes(request[0]) for request in views] == [b"ab", large, b"cd", larger]


def test_pings_are_answered_while_a_batch_executes(rig: Rig) -> None:
    rig.join().load("a")
    rig.backend.gate.clear()
    rig.order(infer(1), b"abcd")
    rig.executing()
    rig.say(wire.Ping(17))
    assert rig.expect(wire.Pong) == wire.Pong(17, START_NS, START_NS)
    rig.backend.gate.set()
    assert rig.code() is Code.OK


def test_pongs_and_infers_tell_what_the_device_last_said(rig: Rig) -> None:
    sample = wire.DeviceSample(energy_mj=5_000, power_mw=299_000, sm_clock_mhz=1410)
    telemetry = rig.backend.telemetry = PuppetTelemetry(sample)
    rig.join().load("a")
    rig.say(wire.Ping(17))
    assert rig.expect(wire.Pong) == wire.Pong(17, START_NS, START_NS, sample)
    rig.order(infer(1), b"abcd")
    told = rig.result()
    assert isinstance(told, InferResult)
    assert (told.code, told.clock_mhz, told.power_mw) == (Code.OK, 1410, 299_000)

    telemetry.last = wire.DeviceSample(power_mw=301_000)  # the clock is not known any more
    rig.order(infer(2), b"abcd")
    told = rig.result()
    assert isinstance(told, InferResult)
    assert (told.code, told.clock_mhz, told.power_mw) == (Code.OK, 0, 301_000)

    telemetry.last = None
    rig.order(infer(3), b"abcd")
    told = rig.result()
    assert isinstance(told, InferResult)
    assert (told.code, told.clock_mhz, told.power_mw) == (Code.OK, 0, 0)
    rig.say(wire.Ping(18))
    assert rig.expect(wire.Pong) == wire.Pong(18, START_NS, START_NS)


def test_an_infer_of_weights_that_are_not_there_is_refused(rig: Rig) -> None:
    rig.join().order(infer(1), b"abcd")
    result = rig.result()
    assert result.code is Code.WEIGHTS_MISSING
    assert isinstance(result, InferResult)
    assert result.exec == NO_SPAN
    rig.order(evict(2, "a"))
    assert rig.code() is Code.WEIGHTS_MISSING


def test_weights_that_execute_are_not_evicted(rig: Rig) -> None:
    rig.join().load("a")
    rig.backend.gate.clear()
    rig.order(infer(1), b"abcd")
    rig.executing()
    rig.order(evict(2, "a"))
    assert rig.result().code is Code.WEIGHTS_IN_USE
    rig.backend.gate.set()
    assert rig.result().action_id == 1
    rig.order(evict(3, "a"))
    assert rig.code() is Code.OK


def test_a_model_is_released_only_without_pages(rig: Rig) -> None:
    rig.join().load("a")
    rig.order(release(1, "a"))
    result = rig.result()
    assert (result.code, result.message) == (Code.WEIGHTS_IN_USE, "a is resident")
    rig.order(evict(2, "a"))
    rig.order(release(3, "a"))
    assert rig.code() is Code.OK
    assert rig.result() == ReleaseResult(3, Code.OK, "", START_NS, 4096)
    rig.order(load(4, "a"))
    assert rig.code() is Code.OK
    assert rig.backend.log == ["load a 1", "evict a", "release a", "load a 1"]


def test_a_release_that_fails_is_reported_and_the_worker_goes_on(rig: Rig) -> None:
    rig.join()
    rig.backend.failures["release"] = OSError("no")
    rig.order(release(1, "a"))
    result = rig.result()
    assert (result.code, result.message) == (Code.ENGINE_ERROR, "a: OSError: no")
    rig.order(release(2, "a"))
    assert rig.code() is Code.OK


def test_the_load_lane_works_while_the_exec_lane_does(rig: Rig) -> None:
    rig.join().load("a")
    rig.backend.gate.clear()
    rig.order(infer(1), b"abcd")
    rig.executing()
    rig.order(load(2, "b"))
    assert rig.result().action_id == 2
    rig.backend.gate.set()
    assert rig.result().action_id == 1


def test_the_worker_never_evicts_to_make_room(rig: Rig) -> None:
    rig.join().load("a")
    rig.order(load(2, "big"))
    result = rig.result()
    assert result.code is Code.PAGES_EXHAUSTED
    assert result.message == "big: needs 4 pages, 3 of 4 free, 0 pinned"
    rig.order(load(3, "a"))
    assert rig.code() is Code.ALREADY_RESIDENT


def test_an_eviction_and_a_load_sent_together_share_the_pages(rig: Rig) -> None:
    rig.join().load("b")
    rig.order(evict(1, "b"))
    rig.order(load(2, "big"))
    assert [rig.code(), rig.code()] == [Code.OK, Code.OK]


def test_a_closed_window_is_refused(rig: Rig) -> None:
    rig.join().load("a")
    rig.order(infer(1, latest_ns=START_NS - 1), b"abcd")
    assert rig.code() is Code.TOO_LATE


@pytest.mark.parametrize(
    ("model", "message"),
    [("nobody", "nobody: no such model here"), ("broken", "broken: not ONNX")],
)
def test_a_model_that_cannot_be_served_is_unknown(rig: Rig, model: str, message: str) -> None:
    rig.join()
    for action in (infer(1, model), load(2, model), evict(3, model), release(4, model)):
        rig.order(action)
        result = rig.result()
        assert (result.action_id, result.code) == (action.action_id, Code.UNKNOWN_MODEL)
        assert result.message == message


@pytest.mark.parametrize(
    ("action", "tensors", "frames", "message"),
    [
        (infer(1), [b"abcd"], [b"abc"], "small tensors take 3 bytes"),
        (infer(1), [b"abcd"], [], "0 tensor frames, the header describes 1"),
        (infer(1), [], None, "1 requests, 1 row counts, tensors of 0 requests"),
        (infer(1, rows=()), [], None, "a trial of a batch of 0"),
        (infer(1, rows=(0,)), [b"abcd"], None, "rows (0,) do not fit a batch of 0"),
        (infer(1, rows=(3,), batch_size=2), [b"abcd"], None, "rows (3,) do not fit a batch of 2"),
        (load(1, "a", num_pages=2), [], None, "takes 1 pages here, the order says 2"),
        (load(1, "a"), [b"abcd"], None, "tensors of 1 requests came with an action that takes"),
        (evict(1, "a"), [], [b"abcd"], "1 tensor frames, the header describes 0"),
    ],
)
def test_an_order_that_contradicts_itself_is_malformed(
    rig: Rig,
    action: Action,
    tensors: list[bytes],
    frames: list[wire.Buffer] | None,
    message: str,
) -> None:
    rig.join().order(action, *tensors, frames=frames)
    result = rig.result()
    assert (result.action_id, result.code) == (1, Code.MALFORMED)
    assert message in result.message
    assert rig.worker is not None
    assert rig.worker.num_malformed == 1


@pytest.mark.parametrize(
    "header", [b"", b"\x01", b"\x02\x80", b"\x01\xff\xfe", wire.encode(wire.Pong(1, 2, 3))]
)
def test_unreadable_frames_are_counted_and_answered_and_the_session_starts_over(
    rig: Rig, header: bytes
) -> None:
    rig.join().say_raw([header, b"more"])
    assert rig.expect(wire.Unreadable).reason
    rig.expect(wire.Hello)
    rig.welcome()
    rig.load("a")
    assert rig.worker is not None
    assert rig.worker.num_malformed == 1


def test_an_unreadable_is_not_answered(rig: Rig) -> None:
    rig.join().say(wire.Unreadable("your report"))
    rig.say(wire.Ping(2))
    rig.expect(wire.Pong)


# Failures of the backend


@pytest.mark.parametrize(
    ("phase", "failure", "code", "message"),
    [
        ("stage", InvalidInput("x is short"), Code.INVALID_INPUT, "x is short"),
        ("stage", KeyError("x"), Code.ENGINE_ERROR, "input phase: KeyError: 'x'"),
        ("execute", EngineError("Reshape failed"), Code.ENGINE_ERROR, "Reshape failed"),
        ("execute", MemoryError(), Code.ENGINE_ERROR, "MemoryError"),
        ("unstage", ValueError("no"), Code.ENGINE_ERROR, "output phase: ValueError: no"),
    ],
)
def test_a_failed_batch_is_reported_and_leaves_nothing_pinned(
    rig: Rig, phase: str, failure: Exception, code: Code, message: str
) -> None:
    rig.join().load("a")
    rig.backend.failures[phase] = failure
    rig.order(infer(1), b"abcd")
    result = rig.result()
    assert (result.action_id, result.code, result.message) == (1, code, message)
    rig.order(infer(2), b"abcd")
    assert rig.code() is Code.OK
    rig.order(evict(3, "a"))
    assert rig.code() is Code.OK


def test_a_failed_load_is_reported_and_gives_its_pages_back(rig: Rig) -> None:
    rig.join()
    rig.backend.failures["load"] = OSError("mmap: no")
    rig.order(load(1, "big"))
    result = rig.result()
    assert (result.code, result.message) == (Code.LOAD_FAILED, "big: OSError: mmap: no")
    rig.load("big")


def test_a_failed_eviction_is_reported_and_ends_the_process(rig: Rig) -> None:
    rig.join().load("a")
    rig.backend.failures["evict"] = OSError("munmap: no")
    rig.order(evict(1, "a"))
    assert rig.code() is Code.ENGINE_ERROR
    assert rig.exit_code() == 1


@pytest.mark.parametrize("phase", ["stage", "execute", "unstage"])
def test_a_lost_device_fails_the_batch_and_ends_the_process(
    rig: Rig, phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig.join().load("a")
    rig.backend.failures[phase] = DeviceLost("gpu 0 is lost: CUDA_ERROR_ECC_UNCORRECTABLE")
    rig.order(infer(1), b"abcd")
    result = rig.result()
    assert result.code is Code.ENGINE_ERROR
    assert "gpu 0 is lost" in result.message
    assert rig.exit_code() == EXIT_BROKEN
    assert "giving up: gpu 0 is lost: CUDA_ERROR_ECC_UNCORRECTABLE" in caplog.text
    assert not rig.backend.is_closed  # what is lost may refuse it, or never come back


def test_a_device_lost_while_loading_ends_the_process(rig: Rig) -> None:
    rig.join()
    rig.backend.failures["load"] = DeviceLost("gpu 0 is lost")
    rig.order(load(1, "a"))
    assert rig.result().code is Code.LOAD_FAILED
    assert rig.exit_code() == EXIT_BROKEN


def test_a_device_that_does_not_come_back_ends_the_process(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.join().load("a")
    rig.backend.gate.clear()
    rig.order(infer(1), b"abcd")
    rig.executing()
    rig.clock.now_ns += STUCK_AFTER_NS + 1
    rig.say(wire.Ping(1))  # it looks at its clock at the latest then
    assert rig.exit_code() == EXIT_BROKEN
    assert "the exec lane has been at a for 60 s: the device does not answer" in caplog.text
    rig.backend.gate.set()
    assert rig.worker is not None
    rig.worker.close()
    assert rig.backend.is_closed


def test_a_batch_that_fails_or_is_refused_is_discarded_once(rig: Rig) -> None:
    rig.join()
    rig.order(infer(1), b"abcd")  # its weights are not there
    assert rig.code() is Code.WEIGHTS_MISSING
    rig.load("a")
    rig.backend.failures["execute"] = EngineError("no")
    rig.order(infer(2), b"abcd")
    assert rig.code() is Code.ENGINE_ERROR
    rig.order(infer(3), b"abcd")
    assert rig.code() is Code.OK
    assert rig.backend.log == ["discard a", "load a 1", "discard a"]


def test_inputs_of_the_next_batch_are_staged_while_one_executes(overlapping: Rig) -> None:
    rig = overlapping.join()
    rig.load("a")
    rig.backend.gate.clear()
    rig.order(infer(1), b"abcd")
    rig.executing()
    rig.order(infer(2), b"efgh")
    rig.backend.staged.get(timeout=PATIENCE_S)
    assert rig.backend.staged.get(timeout=PATIENCE_S) == b"efgh"  # and the first still executes
    rig.backend.gate.set()
    assert [rig.result().action_id, rig.result().action_id] == [1, 2]


def test_every_lane_binds_itself_to_the_device(rig: Rig) -> None:
    rig.join().load("a")
    lanes = {"lane-exec", "lane-load"}
    if rig.backend.overlaps_io:
        lanes |= {"lane-input", "lane-output"}
        rig.order(infer(1), b"abcd")
        assert rig.code() is Code.OK
    assert rig.backend.bound == lanes


def test_a_dead_lane_ends_the_process(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.join().load("a")
    rig.backend.failures["execute"] = SystemExit("out of the thread")
    rig.order(infer(1), b"abcd")
    assert rig.exit_code() == 1
    assert "the exec lane died: SystemExit: out of the thread" in caplog.text


# Membership


def test_an_unanswered_hello_is_repeated_after_a_second(rig: Rig) -> None:
    first = rig.start().expect(wire.Hello)
    rig.clock.now_ns += SECOND_NS
    assert rig.expect(wire.Hello) == first


def test_after_a_rejoin_only_what_is_true_is_told(rig: Rig) -> None:
    """1. `a` is loaded and executes, another Infer waits. 2. The gateway forgets the worker.
    3. Hello comes when the execution is over, with no report of either. 4. A new order works.
    """
    rig.join().load("a")
    rig.backend.gate.clear()
    rig.order(infer(1), b"abcd")
    rig.executing()
    rig.order(infer(2), b"abcd")
    rig.say(wire.Rejoin())
    rig.say(wire.Rejoin())  # one for each message the gateway did not place
    rig.order(load(3, "b"))  # of the session that is over
    rig.say(wire.Ping(4))
    rig.expect(wire.Pong)
    rig.backend.gate.set()
    assert rig.expect(wire.Hello).resident == ("a",)
    rig.welcome()
    rig.order(infer(5), b"abcd")
    assert rig.result().action_id == 5
    assert [entry for entry in rig.backend.log if entry != "discard a"] == ["load a 1"]


def test_a_silent_gateway_is_greeted_again(rig: Rig) -> None:
    rig.join().load("a")
    rig.clock.now_ns += 3 * SECOND_NS + 1
    assert rig.expect(wire.Hello).resident == ("a",)
    rig.welcome()
    rig.load("b")


def test_a_gateway_that_restarts_at_its_address_is_joined_again_at_once(rig: Rig) -> None:
    rig.join().load("a")
    rig.unbind()
    rig.bind()
    assert rig.expect(wire.Hello).resident == ("a",)  # no time has passed
    rig.welcome()
    rig.load("b")


def test_a_goodbye_ends_the_session_and_neither_the_worker_nor_its_weights(rig: Rig) -> None:
    rig.join().load("a")
    rig.say(wire.Goodbye("the gateway stops"))
    rig.expect(wire.Goodbye)
    rig.clock.now_ns += SECOND_NS  # not at once: that one takes nobody any more
    assert rig.expect(wire.Hello).resident == ("a",)
    rig.welcome()
    rig.load("b")


def test_a_gateway_hears_which_one_has_had_the_worker(rig: Rig) -> None:
    assert rig.start().expect(wire.Hello).epoch == 0
    rig.say(wire.Welcome("w#1", {}, gateway="g", epoch=7))
    rig.say(wire.Rejoin())
    hello = rig.expect(wire.Hello)
    assert (hello.gateway, hello.epoch) == ("g", 7)


def test_a_worker_looks_for_the_later_gateway_until_there_is_none(rig: Rig) -> None:
    rig.start().expect(wire.Hello)
    rig.say(wire.Welcome("w#1", {}, gateway="g", epoch=7))
    rig.say(wire.Rejoin())
    rig.expect(wire.Hello)
    for _ in range(2):
        rig.say(wire.Superseded("a later one has it"))
        rig.say(wire.Ping(1))
        rig.expect(wire.Pong)  # it has heard both
        rig.clock.now_ns += RETRY_INTERVAL_NS
        hello = rig.expect(wire.Hello)  # over a new connection
        assert hello.epoch == 7
    rig.clock.now_ns += YIELD_NS
    rig.say(wire.Superseded("a later one has it"))
    rig.say(wire.Ping(1))
    rig.expect(wire.Pong)
    rig.clock.now_ns += RETRY_INTERVAL_NS
    assert rig.expect(wire.Hello).epoch == 0


def test_a_second_welcome_is_answered_with_the_true_pages(rig: Rig) -> None:
    rig.join().load("a")
    rig.say(wire.Welcome("w#2", {}))
    assert rig.expect(wire.Hello).resident == ("a",)


def test_models_the_gateway_refuses_are_not_served_and_hold_no_pages(rig: Rig) -> None:
    rig.join().load("b")
    rig.say(wire.Rejoin())
    assert rig.expect(wire.Hello).resident == ("b",)
    rig.welcome({"b": "another content hash"})
    rig.load("big")  # needs the whole cache
    rig.order(load(2, "b"))
    result = rig.result()
    assert (result.code, result.message) == (
        Code.UNKNOWN_MODEL,
        "b: refused: another content hash",
    )


def test_outputs_that_the_gateway_would_not_take_are_not_sent(rig: Rig) -> None:
    rig.start().expect(wire.Hello)
    rig.welcome(max_frame_bytes=100_000)
    rig.load("a")
    rig.order(infer(1), bytes(100_000))
    assert rig.code() is Code.OK
    rig.order(infer(2), bytes(100_001))
    report, frames = rig.hear()
    assert isinstance(report, wire.Report)
    assert (report.result.action_id, report.result.code) == (2, Code.ENGINE_ERROR)
    assert report.result.message == (
        "an output of 100001 bytes is over the 100000 that the gateway takes:"
        " its setting max_body_mb decides"
    )
    assert (report.tensors, frames) == ((), [])


def test_a_gateway_that_refuses_the_connection_is_tried_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.unbind()
    rig.bind(curve_secret=zmq.curve_keypair()[1])
    rig.start()
    while "it wants CURVE keys" not in caplog.text:
        rig.clock.now_ns += RETRY_INTERVAL_NS
        threading.Event().wait(0.01)
    rig.unbind()
    rig.bind()
    rig.clock.now_ns += RETRY_INTERVAL_NS
    rig.expect(wire.Hello)
    refused = [line for line in caplog.messages if "refuses the connection" in line]
    assert len(refused) == len(set(refused))  # it may read why, or see only that it was broken off


# The end


def test_stopping_finishes_what_runs_refuses_the_rest_and_says_goodbye(rig: Rig) -> None:
    rig.join().load("a")
    rig.backend.gate.clear()
    rig.order(infer(1), b"abcd")
    rig.executing()
    rig.order(infer(2), b"abcd")
    rig.order(LoadWeights(3, "b", 2, FAR_NS - 1, FAR_NS, 1))
    rig.say(wire.Ping(1))
    rig.expect(wire.Pong)
    assert rig.worker is not None
    rig.worker.request_stop("SIGTERM")
    answers: dict[int, Code] = {}

    def answered(action_id: int) -> Code:
        while action_id not in answers:
            result = rig.result()
            answers[result.action_id] = result.code
        return answers[action_id]

    assert answered(3) is Code.SHUTTING_DOWN  # the load lane is idle, so it answers at once
    rig.order(infer(4), b"abcd")
    assert answered(4) is Code.SHUTTING_DOWN
    assert 1 not in answers
    rig.backend.gate.set()
    assert (answered(1), answered(2)) == (Code.OK, Code.SHUTTING_DOWN)
    rig.expect(wire.Goodbye)
    assert rig.exit_code() == 0
    assert rig.backend.is_closed


def test_a_refused_worker_ends_with_its_own_exit_code(rig: Rig) -> None:
    rig.start().expect(wire.Hello)
    rig.say(wire.Refused("another wire version"))
    assert rig.exit_code() == 3


def test_a_worker_bound_to_a_parent_that_is_gone_stops(rig: Rig) -> None:
    rig.start(parent_pid=-1)
    assert rig.exit_code() == 0


# Models that come and go


def newer(name: str = "a/2", content_hash: str = "hash of newer") -> ModelSpec:
    return msgspec.structs.replace(spec(name, 1), version="2", content_hash=content_hash)


OWN = "a/2/hash of newe"  # what the worker calls it: version, and some of the hash


def test_a_model_that_comes_is_offered_and_serves_under_the_gateways_name(rig: Rig) -> None:
    rig.join()
    rig.say(wire.AddModel(newer("a/2#7")))
    assert rig.expect(wire.Offer).spec == newer("a/2#7")
    rig.load("a/2#7")
    rig.order(infer(2, "a/2#7"), b"abcd")
    assert rig.code() is Code.OK
    assert rig.backend.log == [f"add {OWN}", f"load {OWN} 1"]


def test_a_trial_executes_what_the_worker_makes_up_and_reports_no_outputs(rig: Rig) -> None:
    rig.join().load("a")
    rig.order(Infer(1, "a", 4, (), (), START_NS, FAR_NS, 1, 0))
    report, frames = rig.hear()
    assert isinstance(report, wire.Report)
    assert report.result.code is Code.OK
    assert (report.tensors, frames) == ((), [])
    rig.order(Infer(2, "a", 0, (), (), START_NS, FAR_NS, 1, 0))
    assert rig.code() is Code.MALFORMED


def test_content_that_is_there_is_offered_at_once(rig: Rig) -> None:
    rig.join(refused={"a": "another content than the gateway's"})
    rig.say(wire.AddModel(newer("a/1", "hash of a")))
    assert rig.expect(wire.Offer).spec.name == "a/1"
    rig.order(load(1, "a/1"))
    assert rig.code() is Code.OK
    assert rig.backend.log == ["load a 1"]


def test_one_that_cannot_be_made_ready_says_why_and_the_worker_lives(rig: Rig) -> None:
    rig.join()
    rig.backend.failures["prepare"] = ValueError("no such\n operator")
    rig.say(wire.AddModel(newer()))
    assert rig.expect(wire.CannotOffer) == wire.CannotOffer("a/2", "no such operator", True)
    rig.load("a")


def test_one_that_is_dropped_is_forgotten(rig: Rig) -> None:
    rig.join()
    rig.say(wire.AddModel(newer()))
    rig.expect(wire.Offer)
    rig.load("a/2")
    rig.say(wire.DropModel("a/2"))
    rig.order(evict(3, "a/2"))
    assert rig.code() is Code.UNKNOWN_MODEL, "its name is forgotten; its pages would keep it"
    rig.order(evict(4, OWN))
    assert rig.code() is Code.OK
    rig.say(wire.DropModel(OWN))
    rig.order(load(5, OWN))
    assert rig.code() is Code.UNKNOWN_MODEL
    assert rig.backend.log[-1] == f"remove {OWN}"


def test_a_new_session_names_all_that_is_ready_and_hears_what_it_is_called(rig: Rig) -> None:
    rig.join()
    rig.say(wire.AddModel(newer()))
    rig.expect(wire.Offer)
    rig.say(wire.Rejoin())
    assert OWN in {model.name for model in rig.expect(wire.Hello).models}
    rig.welcome(names={"a/2#2": OWN})
    rig.order(load(1, "a/2#2"))
    assert rig.code() is Code.OK


def test_what_the_gateway_does_not_want_any_more_is_removed(rig: Rig) -> None:
    rig.join()
    rig.say(wire.AddModel(newer()))
    rig.expect(wire.Offer)
    rig.say(wire.Rejoin())
    rig.expect(wire.Hello)
    rig.welcome(refused={OWN: "the gateway does not serve it", "b": "nor this"})
    assert rig.backend.log == [f"add {OWN}", f"remove {OWN}"]


class Bell:
    """Rung by the thread, heard by the test."""

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __call__(self) -> None:
        self._rings.put(None)

    def heard(self) -> None:
        self._rings.get(timeout=PATIENCE_S)


def test_what_is_not_here_is_looked_for_again_until_it_is() -> None:
    backend, bell, looks = PuppetBackend(), Bell(), 0

    def provide(_: ModelSpec) -> None:
        nonlocal looks
        looks += 1
        if looks < 4:
            raise NotHereError("nothing is here" if looks < 3 else "half of it is here")

    additions = Additions(backend, provide=provide, ring=bell, look_again_s=0.001)
    assert additions.add(newer()) is None
    told: list[object] = []
    for _ in range(3):
        bell.heard()
        told += additions.take()
    assert told == [
        wire.CannotOffer("a/2", "nothing is here", False),
        wire.CannotOffer("a/2", "half of it is here", False),
        wire.Offer(newer()),
    ]
    assert additions.close(PATIENCE_S)


def test_what_is_dropped_meanwhile_is_not_offered() -> None:
    backend, bell, go_on = PuppetBackend(), Bell(), threading.Event()

    def provide(_: ModelSpec) -> None:
        assert go_on.wait(PATIENCE_S)

    additions = Additions(backend, provide=provide, ring=bell)
    additions.add(newer())
    additions.add(newer("a/2#2"))  # it is under way: only its name is new
    additions.drop("a/2#2")
    go_on.set()
    bell.heard()
    assert additions.take() == []
    assert backend.log == [f"add {OWN}", f"remove {OWN}"]
    assert additions.close(PATIENCE_S)


def test_what_is_not_here_and_not_wanted_is_not_looked_for() -> None:
    bell = Bell()

    def provide(_: ModelSpec) -> None:
        raise NotHereError("nothing is here")

    additions = Additions(PuppetBackend(), provide=provide, ring=bell)
    additions.add(newer())
    bell.heard()
    additions.drop("a/2")
    assert additions.take() == []
    assert additions.close(PATIENCE_S)


def test_without_a_model_that_comes_there_is_no_thread() -> None:
    additions = Additions(PuppetBackend(), provide=lambda _: None, ring=Bell())
    assert additions.close(0)
    assert "additions" not in [thread.name for thread in threading.enumerate()]
