"""What every device does with pages, whatever they are made of: one contract, two devices."""

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from gpuworker.devices.host import AddressRange, HostPages
from gpuworker.devices.pages import WeightPages

PAGE = 2 << 20
TOTAL = 6


@pytest.fixture(params=["host", "cuda"])
def pages(request: pytest.FixtureRequest) -> Iterator[WeightPages]:
    device: WeightPages
    if request.param == "host":
        device = HostPages(page_bytes=PAGE, total_pages=TOTAL)
    else:
        context = request.getfixturevalue("cuda_context")
        from gpuworker.devices.cuda import CudaPages

        device = CudaPages(context, page_bytes=PAGE, total_pages=TOTAL)
    yield device
    device.close()


def blob(num_bytes: int, seed: int = 1) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, num_bytes, np.uint8)


def test_what_is_loaded_is_there_at_the_same_addresses_in_any_pages(pages: WeightPages) -> None:
    addresses = pages.reserve(PAGE + 5)
    content = blob(PAGE + 5)
    for placed in ([0, 1], [5, 2], [1, 3]):
        assert pages.load(addresses, placed, content) > 0
        assert np.array_equal(pages.read(addresses, PAGE + 5), content)
        pages.unload(addresses)


def test_a_range_is_a_whole_number_of_pages_and_at_least_one(pages: WeightPages) -> None:
    assert pages.reserve(PAGE + 1).num_bytes == 2 * PAGE
    assert pages.reserve(PAGE).num_bytes == PAGE
    assert pages.reserve(0).num_bytes == PAGE


def test_weights_of_no_bytes_take_a_page_and_can_be_loaded(pages: WeightPages) -> None:
    addresses = pages.reserve(0)
    pages.load(addresses, [3], blob(0))
    assert pages.read(addresses, 0).size == 0
    pages.unload(addresses)


def test_pages_lie_in_the_order_given(pages: WeightPages) -> None:
    """The first half of one range is the second of the other, which shows the same pages."""
    straight, crossed = pages.reserve(2 * PAGE), pages.reserve(2 * PAGE)
    pages.load(straight, [0, 1], blob(2 * PAGE))
    pages.unload(straight)
    pages.load(crossed, [1, 0], blob(0))
    seen = pages.read(crossed, 2 * PAGE)
    assert np.array_equal(seen[:PAGE], blob(2 * PAGE)[PAGE:])
    assert np.array_equal(seen[PAGE:], blob(2 * PAGE)[:PAGE])


@pytest.mark.parametrize("placed", [[0], [0, 1, 2], [0, TOTAL], [-1, 0]])
def test_pages_that_do_not_fit_are_refused_and_nothing_is_mapped(
    pages: WeightPages, placed: list[int]
) -> None:
    addresses = pages.reserve(2 * PAGE)
    with pytest.raises(ValueError, match="pages"):
        pages.load(addresses, placed, blob(PAGE))
    pages.load(addresses, [4, 5], blob(PAGE))  # nothing was left of the attempt


def test_weights_larger_than_the_range_are_refused(pages: WeightPages) -> None:
    addresses = pages.reserve(PAGE)
    with pytest.raises(ValueError, match=f"{PAGE + 1} bytes for a range of {PAGE} bytes"):
        pages.load(addresses, [0], blob(PAGE + 1))


def test_thousands_of_loads_into_changing_pages_never_mix_bytes(pages: WeightPages) -> None:
    """Five models of one to three pages through six: what is loaded is right after every step."""
    rng = random.Random(7)
    sizes = [PAGE // 2, PAGE, PAGE + 1, 2 * PAGE + 17, 3 * PAGE]
    ranges = [pages.reserve(size) for size in sizes]
    contents = [blob(size, seed) for seed, size in enumerate(sizes)]
    free = list(range(TOTAL))
    loaded: dict[int, list[int]] = {}
    seen: dict[int, set[tuple[int, ...]]] = {number: set() for number in range(len(sizes))}

    def unload(number: int) -> None:
        pages.unload(ranges[number])
        free.extend(loaded.pop(number))

    for _ in range(2_000):
        number = rng.randrange(len(sizes))
        if number in loaded:
            unload(number)
            continue
        needed = num_pages(ranges[number])
        while len(free) < needed:
            unload(rng.choice(list(loaded)))
        rng.shuffle(free)
        taken = [free.pop() for _ in range(needed)]
        pages.load(ranges[number], taken, contents[number])
        loaded[number] = taken
        seen[number].add(tuple(taken))
        checked = rng.choice(list(loaded))
        size = min(sizes[checked], 64 * 1024)
        assert np.array_equal(pages.read(ranges[checked], size), contents[checked][:size])
    for number in loaded:
        content = pages.read(ranges[number], sizes[number])
        assert np.array_equal(content, contents[number])
    assert all(len(placements) > 3 for placements in seen.values())


def num_pages(addresses: AddressRange) -> int:
    return addresses.num_bytes // PAGE
