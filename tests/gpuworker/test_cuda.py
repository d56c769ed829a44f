"""The CUDA device where it is more than pages: what the driver refuses, and what it owes us."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from gpuworker.config import ConfigError
from tests.standin import driver
from tests.standin.driver import StandIn

if TYPE_CHECKING:
    from gpuworker.devices.cuda import CudaPages
    from gpuworker.devices.cuda_context import CudaContext

PAGE = 2 << 20


@pytest.fixture
def pages(cuda_context: "CudaContext") -> Iterator["CudaPages"]:
    from gpuworker.devices.cuda import CudaPages

    device = CudaPages(cuda_context, page_bytes=PAGE, total_pages=4)
    yield device
    device.close()


def blob(num_bytes: int, seed: int = 1) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, num_bytes, np.uint8)


def test_no_physical_page_is_made_or_released_after_the_start(
    pages: "CudaPages", standin: StandIn, cuda_context: "CudaContext"
) -> None:
    made, free = standin.calls("cuMemCreate"), cuda_context.free_bytes()
    addresses = pages.reserve(3 * PAGE)
    for _ in range(50):
        pages.load(addresses, [3, 0, 2], blob(3 * PAGE))
        pages.unload(addresses)
    assert standin.calls("cuMemCreate") == made
    assert cuda_context.free_bytes() == free


def test_all_memory_is_given_back_at_the_end(cuda_context: "CudaContext") -> None:
    from gpuworker.devices.cuda import CudaPages

    free = cuda_context.free_bytes()
    device = CudaPages(cuda_context, page_bytes=PAGE, total_pages=4)
    device.load(device.reserve(PAGE), [0], blob(PAGE))
    assert cuda_context.free_bytes() == free - 4 * PAGE
    device.close()
    assert cuda_context.free_bytes() == free


def test_a_load_waits_for_its_copies(pages: "CudaPages") -> None:
    """The stand-in copies only when it is waited for: what is read here must have been."""
    import ctypes

    addresses = pages.reserve(PAGE)
    pages.load(addresses, [1], blob(PAGE))
    assert ctypes.string_at(addresses.address, PAGE) == blob(PAGE).tobytes()


@pytest.mark.parametrize("num_times", [1, 5])
def test_access_that_is_not_ready_is_asked_for_again(
    pages: "CudaPages", standin: StandIn, num_times: int
) -> None:
    addresses = pages.reserve(PAGE)
    before = pages.num_not_ready
    standin.fail("cuMemSetAccess", driver.NOT_READY, times=num_times)
    pages.load(addresses, [0], blob(PAGE))
    assert pages.num_not_ready == before + num_times
    assert np.array_equal(pages.read(addresses, PAGE), blob(PAGE))


@pytest.mark.parametrize(
    ("call", "skip"), [("cuMemMap", 0), ("cuMemMap", 1), ("cuMemSetAccess", 0)]
)
def test_a_load_that_the_driver_refuses_leaves_nothing_mapped(
    pages: "CudaPages", standin: StandIn, call: str, skip: int
) -> None:
    from gpuworker.devices.cuda_memory import CudaError

    addresses = pages.reserve(2 * PAGE)
    standin.fail(call, driver.OUT_OF_MEMORY, skip=skip)
    with pytest.raises(CudaError, match=f"{call}: CUDA_ERROR_OUT_OF_MEMORY"):
        pages.load(addresses, [0, 1], blob(2 * PAGE))
    pages.load(addresses, [2, 3], blob(2 * PAGE))
    assert np.array_equal(pages.read(addresses, 2 * PAGE), blob(2 * PAGE))


def test_a_range_is_not_loaded_twice(pages: "CudaPages") -> None:
    from gpuworker.devices.host import DeviceError

    addresses = pages.reserve(PAGE)
    pages.load(addresses, [0], blob(PAGE))
    with pytest.raises(DeviceError, match="has pages already"):
        pages.load(addresses, [1], blob(PAGE))


def test_reading_what_is_evicted_breaks_the_device_and_is_seen(
    pages: "CudaPages", standin: StandIn
) -> None:
    """As on a real GPU: the context is dead, and says so to every call."""
    import pycuda.driver as cuda

    from gpuworker.devices.cuda_memory import fault

    addresses = pages.reserve(PAGE)
    assert fault() is None
    with pytest.raises(cuda.Error, match=r"(?i)illegal.address"):
        pages.read(addresses, PAGE)
    assert fault() == "CUDA_ERROR_ILLEGAL_ADDRESS"
    standin.heal()


@pytest.mark.parametrize(
    ("page_bytes", "total_pages", "words"),
    [
        (1 << 20, 4, "a page of 1048576 bytes is no multiple of the 2097152 bytes"),
        (PAGE, 1 << 20, "a weights cache of 2097152 MiB does not fit onto Stand-in: "),
    ],
)
def test_impossible_caches_are_refused_with_the_numbers(
    cuda_context: "CudaContext", page_bytes: int, total_pages: int, words: str
) -> None:
    from gpuworker.devices.cuda import CudaPages

    with pytest.raises(ConfigError, match=words):
        CudaPages(cuda_context, page_bytes=page_bytes, total_pages=total_pages)


def test_memory_that_runs_out_on_the_way_is_given_back(
    cuda_context: "CudaContext", standin: StandIn
) -> None:
    from gpuworker.devices.cuda import CudaPages

    free = cuda_context.free_bytes()
    standin.fail("cuMemCreate", driver.OUT_OF_MEMORY, skip=2)
    with pytest.raises(ConfigError, match="8 MiB on Stand-in: cuMemCreate: CUDA_ERROR_OUT_OF"):
        CudaPages(cuda_context, page_bytes=PAGE, total_pages=4)
    assert cuda_context.free_bytes() == free


def test_a_device_that_is_not_there_is_named(standin: StandIn) -> None:
    from gpuworker.devices.cuda_context import CudaContext

    with pytest.raises(ConfigError, match="--device cuda:3: this machine has 1 CUDA devices"):
        CudaContext(3)


def test_pinned_memory_that_runs_out_says_how_much_was_wanted(
    cuda_context: "CudaContext", standin: StandIn
) -> None:
    standin.fail("cuMemHostAlloc", driver.OUT_OF_MEMORY)
    with pytest.raises(MemoryError, match="64 MiB of pinned memory"):
        cuda_context.pinned(64 << 20)
