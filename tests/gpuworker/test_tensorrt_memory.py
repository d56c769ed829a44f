"""The allocator that TensorRT is given, called as TensorRT calls it.

Through the C++ virtual functions of the real Python classes (tensorrt_bindings), from the thread
that made the context, from one of ours, and from one that Python has never seen.
"""

from typing import TYPE_CHECKING

import pytest

from gpuworker.devices.host import AddressRange
from gpuworker.engines.tensorrt_api import TensorRt
from tests.standin import driver, nvinfer
from tests.standin.driver import StandIn

if TYPE_CHECKING:
    from gpuworker.devices.cuda_context import CudaContext
    from gpuworker.engines.tensorrt_memory import EngineMemory

MIB = 1 << 20


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> nvinfer.NvInfer:
    reason = nvinfer.why_not()
    if reason is not None:
        pytest.skip(reason)
    return nvinfer.NvInfer(tmp_path_factory.mktemp("nvinfer"))


@pytest.fixture
def memory(cuda_context: "CudaContext") -> "EngineMemory":
    from gpuworker.engines.tensorrt_memory import EngineMemory

    return EngineMemory(cuda_context)


@pytest.fixture
def allocator(library: nvinfer.NvInfer, memory: "EngineMemory") -> nvinfer.Allocator:
    made = TensorRt(library.module).allocator(memory.allocate, memory.deallocate)
    return library.called(made)


def test_the_real_classes_know_it_as_an_allocator(allocator: nvinfer.Allocator) -> None:
    assert allocator.kind() == "IGpuAllocator"


@pytest.mark.parametrize("thread", nvinfer.THREADS)
def test_memory_is_plain_while_no_engine_is_made(
    allocator: nvinfer.Allocator, memory: "EngineMemory", cuda_context: "CudaContext", thread: str
) -> None:
    free = cuda_context.free_bytes()
    first = allocator.allocate(3 * MIB, thread=thread)
    second = allocator.allocate(MIB, thread=thread)
    assert first
    assert second
    assert memory.plain_bytes == 4 * MIB
    assert cuda_context.free_bytes() == free - 4 * MIB
    assert allocator.deallocate(first, thread=thread)
    assert memory.plain_bytes == MIB
    assert allocator.deallocate(second, thread=thread)
    assert cuda_context.free_bytes() == free


@pytest.mark.parametrize("thread", nvinfer.THREADS)
def test_weights_lie_in_the_range_while_an_engine_is_made(
    allocator: nvinfer.Allocator, memory: "EngineMemory", thread: str
) -> None:
    range_ = AddressRange(0x7000_0000_0000, 8 * MIB)
    with memory.weights_in(range_) as layout:
        assert allocator.allocate(1000, thread=thread) == range_.address
        assert allocator.allocate(1000, alignment=4096, thread=thread) == range_.address + 4096
        assert allocator.allocate(8 * MIB, thread=thread) == 0
    assert (layout.used_bytes, layout.num_blocks) == (5096, 2)
    assert layout.missing_bytes == 8 * MIB
    # The pages are not TensorRT's to give back, and it must not be told that it failed.
    assert allocator.deallocate(range_.address, thread=thread)
    assert memory.plain_bytes == 0


def test_more_than_four_gigabytes_arrive_whole(library: nvinfer.NvInfer) -> None:
    told: list[tuple[int, int]] = []

    def allocate(num_bytes: int, alignment: int) -> int:
        told.append((num_bytes, alignment))
        return 0x7FFF_0000_0000

    made = TensorRt(library.module).allocator(allocate, lambda _address: True)
    assert library.called(made).allocate(34 << 30, alignment=512) == 0x7FFF_0000_0000
    assert told == [(34 << 30, 512)]


def test_calls_that_name_a_stream_end_in_the_same_place(
    allocator: nvinfer.Allocator, memory: "EngineMemory"
) -> None:
    address = allocator.allocate(MIB, is_async=True)
    assert memory.plain_bytes == MIB
    assert allocator.deallocate(address, is_async=True)
    assert memory.plain_bytes == 0


def test_nothing_is_reallocated_and_no_bytes_are_no_memory(allocator: nvinfer.Allocator) -> None:
    address = allocator.allocate(MIB)
    assert allocator.reallocate(address, 2 * MIB) == 0
    assert allocator.allocate(0) == 0
    assert allocator.deallocate(0)
    assert not allocator.deallocate(address + 1)
    assert allocator.deallocate(address)


def test_memory_that_ran_out_is_an_answer_and_not_an_exception(
    allocator: nvinfer.Allocator, memory: "EngineMemory", standin: StandIn
) -> None:
    standin.fail("cuMemAlloc_v2", driver.OUT_OF_MEMORY)
    assert allocator.allocate(5 * MIB) == 0
    assert (
        memory.refused == f"{5 * MIB} bytes of device memory: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY"
    )
    assert memory.plain_bytes == 0


def test_a_device_that_is_gone_is_an_answer_and_not_an_exception(
    allocator: nvinfer.Allocator, standin: StandIn
) -> None:
    address = allocator.allocate(MIB)
    standin.die()
    assert not allocator.deallocate(address)
    standin.heal()
    assert allocator.deallocate(address)
