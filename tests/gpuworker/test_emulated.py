"""The emulated device: what its table says, and that waiting is all it does."""

import pytest

from gpuworker.backend import EngineError, InvalidInput
from gpuworker.devices.emulated import EmulatedBackend, UnknownEmulation, emulated_specs
from scheduler.actions import Infer
from scheduler.spec import TensorSpec
from scheduler.wire import RequestTensors, TensorMeta

START_NS = 8_000_000_000_000_001
MIB = 1 << 20
MODEL = "resnet50_v2"  # 602 kB in, 4 kB out, 102.2 MB, load 8.32 ms, exec 2.73 … 17.30 ms


class SleepingClock:
    """Time passes only by sleeping, and each sleep may end a little early."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += max(1, round(seconds * 1e9) - 1_000)


@pytest.fixture
def clock() -> SleepingClock:
    return SleepingClock()


@pytest.fixture
def backend(clock: SleepingClock) -> EmulatedBackend:
    return EmulatedBackend(
        "clockwork-v100",
        cache_bytes=1024 * MIB,
        page_bytes=16 * MIB,
        clock=clock,
        sleep=clock.sleep,
    )


def infer(*rows: int, batch_size: int, model: str = MODEL) -> Infer:
    requests = tuple(range(len(rows)))
    return Infer(1, model, batch_size, requests, rows, START_NS, START_NS, 1)


def row_tensors(*shapes: tuple[int, ...]) -> tuple[RequestTensors, ...]:
    return tuple((TensorMeta(shape, shape[0] * shape[-1]),) for shape in shapes)


def row_views(tensors: tuple[RequestTensors, ...]) -> list[list[memoryview]]:
    return [[memoryview(bytes(meta.num_bytes)) for meta in request] for request in tensors]


def test_the_table_becomes_specs() -> None:
    specs = {spec.name: spec for spec in emulated_specs("clockwork-v100")}
    assert len(specs) == 64
    spec = specs[MODEL]
    assert spec.inputs == (TensorSpec("x", "UINT8", (-1, -1)),)
    assert spec.outputs == (TensorSpec("y", "UINT8", (-1, 4096)),)
    assert spec.batch_sizes == (1, 2, 4, 8, 16)
    assert not spec.runs_exact_batch
    assert spec.num_pages(16 * MIB) == 7
    assert spec.profile.load_ns == 8_320_000
    assert spec.profile.shapes[0].exec_ns == {
        1: 2_730_000,
        2: 4_050_000,
        4: 5_870_000,
        8: 9_930_000,
        16: 17_300_000,
    }


def test_every_model_has_its_own_content_hash_and_gets_no_slower_by_waiting_for_a_batch() -> None:
    specs = emulated_specs("clockwork-v100")
    assert len({spec.content_hash for spec in specs}) == len(specs)
    for spec in specs:
        times = list(spec.profile.shapes[0].exec_ns.values())
        assert times == sorted(times), spec.name


def test_an_emulation_nobody_knows_is_named() -> None:
    with pytest.raises(UnknownEmulation, match="no emulation 'h100', there is clockwork-v100"):
        emulated_specs("h100")


def test_the_device_has_as_many_pages_as_the_cache_holds(backend: EmulatedBackend) -> None:
    assert backend.device.total_pages == 64
    assert not backend.device.shares_exec_core
    assert list(backend.models) == [spec.name for spec in emulated_specs("clockwork-v100")]


def test_loading_and_executing_take_what_the_table_says(
    backend: EmulatedBackend, clock: SleepingClock
) -> None:
    assert backend.load(MODEL, range(7)) == 8_320_000
    assert clock.now_ns == START_NS + 8_320_000
    tensors = row_tensors((1, 8), (2, 8))
    staged = backend.stage(infer(1, 2, batch_size=4), tensors, row_views(tensors))
    assert backend.execute(staged) == 5_870_000
    assert clock.now_ns == START_NS + 8_320_000 + 5_870_000


def test_each_request_gets_zeros_for_its_rows(backend: EmulatedBackend) -> None:
    backend.load(MODEL, range(7))
    tensors = row_tensors((1, 8), (2, 616_448))
    staged = backend.stage(infer(1, 2, batch_size=4), tensors, row_views(tensors))
    backend.execute(staged)
    outputs, buffers = backend.unstage(staged)
    assert outputs == ((TensorMeta((1, 4096), 4096),), (TensorMeta((2, 4096), 8192),))
    assert buffers == [bytes(4096), bytes(8192)]


@pytest.mark.parametrize("is_evicted", [False, True])
def test_weights_that_are_not_mapped_cannot_be_executed(
    backend: EmulatedBackend, is_evicted: bool
) -> None:
    if is_evicted:
        backend.load(MODEL, range(7))
        backend.evict(MODEL)
    tensors = row_tensors((1, 8))
    staged = backend.stage(infer(1, batch_size=1), tensors, row_views(tensors))
    with pytest.raises(EngineError, match="resnet50_v2: executed with no weights mapped"):
        backend.execute(staged)


def test_a_load_needs_all_its_pages(backend: EmulatedBackend) -> None:
    with pytest.raises(EngineError, match="7 pages needed, 6 given"):
        backend.load(MODEL, range(6))


@pytest.mark.parametrize(
    ("order", "tensors", "message"),
    [
        (infer(3, batch_size=3), row_tensors((3, 8)), "batch size 3 is not among"),
        (infer(1, batch_size=1), row_tensors((2, 8)), "is not 1 rows of bytes"),
        (infer(1, batch_size=1), row_tensors((1, 2, 4)), "is not 1 rows of bytes"),
        (infer(1, batch_size=1), (row_tensors((1, 8), (1, 8))[0] * 2,), "2 tensors, takes one"),
        (infer(1, batch_size=1), row_tensors((1, 616_449)), "616449 bytes, x takes 616448"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    backend: EmulatedBackend,
    order: Infer,
    tensors: tuple[RequestTensors, ...],
    message: str,
) -> None:
    with pytest.raises(InvalidInput, match=message):
        backend.stage(order, tensors, row_views(tensors))
