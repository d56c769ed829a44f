import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from gpuworker.config import ConfigError
from gpuworker.devices.host import AddressRange, HostPages

PAGE = 1 << 20


@pytest.fixture
def pages() -> Iterator[HostPages]:
    device = HostPages(page_bytes=PAGE, total_pages=4)
    yield device
    device.close()


def blob(num_bytes: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, num_bytes).astype(np.uint8)


def test_what_is_copied_in_is_read_back_at_the_same_addresses(pages: HostPages) -> None:
    addresses = pages.reserve(PAGE + 5)
    content = blob(PAGE + 5)
    for placed in ([0, 1], [3, 2], [1, 3]):
        pages.map(addresses, placed)
        pages.copy_in(addresses, content)
        assert np.array_equal(addresses.bytes_at(0, PAGE + 5), content)
        pages.unmap(addresses)


def test_a_range_is_a_whole_number_of_pages_and_at_least_one(pages: HostPages) -> None:
    assert pages.reserve(PAGE + 1).num_bytes == 2 * PAGE
    assert pages.reserve(PAGE).num_bytes == PAGE
    assert pages.reserve(0).num_bytes == PAGE


def test_two_ranges_over_one_page_are_the_same_memory(pages: HostPages) -> None:
    first, second = pages.reserve(PAGE), pages.reserve(PAGE)
    pages.map(first, [2])
    pages.map(second, [2])
    first.bytes_at(100, 1)[0] = 42
    assert second.bytes_at(100, 1)[0] == 42


def test_pages_lie_in_the_order_given(pages: HostPages) -> None:
    straight, crossed = pages.reserve(2 * PAGE), pages.reserve(2 * PAGE)
    content = blob(2 * PAGE)
    pages.map(straight, [0, 1])
    pages.copy_in(straight, content)
    pages.map(crossed, [1, 0])
    assert np.array_equal(crossed.bytes_at(0, PAGE), content[PAGE:])
    assert np.array_equal(crossed.bytes_at(PAGE, PAGE), content[:PAGE])


def test_ranges_with_pages_of_their_own_do_not_disturb_each_other(pages: HostPages) -> None:
    first, second = pages.reserve(PAGE), pages.reserve(PAGE)
    pages.map(first, [0])
    pages.map(second, [1])
    pages.copy_in(first, blob(PAGE, seed=1))
    pages.copy_in(second, blob(PAGE, seed=2))
    pages.unmap(second)
    assert np.array_equal(first.bytes_at(0, PAGE), blob(PAGE, seed=1))


@pytest.mark.parametrize("placed", [[0], [0, 1, 2], [0, 4], [-1, 0]])
def test_pages_that_do_not_fit_are_refused_and_nothing_is_mapped(
    pages: HostPages, placed: list[int]
) -> None:
    addresses = pages.reserve(2 * PAGE)
    with pytest.raises(ValueError, match="pages"):
        pages.map(addresses, placed)


def test_a_view_never_leaves_its_range() -> None:
    addresses = AddressRange(address=1 << 40, num_bytes=PAGE)
    for offset, num_bytes in ((PAGE, 1), (-1, 2), (0, PAGE + 1), (0, -1)):
        with pytest.raises(ValueError, match="not inside a range"):
            addresses.bytes_at(offset, num_bytes)


def test_a_cache_larger_than_memory_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"1073741824 MiB does not fit .* MiB are available"):
        HostPages(page_bytes=PAGE, total_pages=1 << 30)


@pytest.mark.parametrize(("page_bytes", "total_pages"), [(0, 1), (1000, 1), (PAGE, 0)])
def test_impossible_sizes_are_refused(page_bytes: int, total_pages: int) -> None:
    with pytest.raises(ValueError, match="page"):
        HostPages(page_bytes=page_bytes, total_pages=total_pages)


def test_all_memory_is_there_from_the_start_and_given_back_at_the_end() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    device = HostPages(page_bytes=PAGE, total_pages=3)
    assert open_files() == before + 1
    descriptor = max(int(name) for name in os.listdir("/proc/self/fd") if _is_memfd(name))
    assert os.fstat(descriptor).st_blocks * 512 >= 3 * PAGE
    addresses = device.reserve(PAGE)
    device.map(addresses, [0])
    device.close()
    assert open_files() == before
    assert f"{addresses.address:x}-" not in _mappings()


def _is_memfd(name: str) -> bool:
    try:
        return "weights-pages" in os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return False


def _mappings() -> str:
    with open("/proc/self/maps", encoding="ascii") as file:
        return file.read()


@pytest.mark.parametrize("moment", ["before the first map", "after unmap"])
def test_touching_a_range_without_pages_ends_the_process(moment: str) -> None:
    """Better no process than a wrong answer; the worker refuses long before."""
    script = f"""
from gpuworker.devices.host import HostPages
pages = HostPages(page_bytes={PAGE}, total_pages=1)
addresses = pages.reserve(1)
if {moment == "after unmap"}:
    pages.map(addresses, [0])
    addresses.bytes_at(0, 1)[0] = 1
    pages.unmap(addresses)
print("alive", flush=True)
print(addresses.bytes_at(0, 1)[0])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert ended.stdout == b"alive\n"
    assert ended.returncode == -signal.SIGSEGV
