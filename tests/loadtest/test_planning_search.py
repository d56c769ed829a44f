"""The search for a size, on fleets whose curve is known: which sizes are played, what is found."""

from collections.abc import Callable, Sequence

import pytest

from loadtest.planning.evaluate import Point, Size
from loadtest.planning.size_search import Pair, Sizes, SizeSearch, knee_of

FULL, LEAST = 100, 4


class Fleet:
    """A fleet that attains what a function says; keeps what it was asked."""

    def __init__(self, attained: Callable[[Size], float]) -> None:
        self._attained = attained
        self.played: list[Size] = []

    def __call__(self, sizes: Sequence[Size]) -> list[Point]:
        self.played += sizes
        return [point(size, self._attained(size)) for size in sizes]


def point(size: Size, attained: float) -> Point:
    return Point(
        devices=size.devices,
        pages=size.pages,
        attained=attained,
        attained_mean=attained,
        refused=1 - attained,
        late=0.0,
        p50_ms=1.0,
        p99_ms=2.0,
        busy=0.5,
        cold=0.0,
        loads_per_s=0.0,
        wall_s=0.0,
    )


def needs(devices: int, pages: int, *, per_device: int = 0) -> Callable[[Size], float]:
    """As much as is there of what is needed; with each further device fewer pages do."""

    def attained(size: Size) -> float:
        wanted = max(1, pages - per_device * max(0, size.devices - devices))
        return min(1.0, size.devices / devices) * min(1.0, size.pages / wanted)

    return attained


def search(fleet: Fleet, *, first: int = 1, width: int = 1, max_devices: int = 64) -> Sizes:
    return SizeSearch(
        fleet,
        target=0.99,
        first=first,
        max_devices=max_devices,
        full_pages=FULL,
        least_pages=LEAST,
        width=width,
    ).run()


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("first", [1, 9, 11, 40])
def test_the_fewest_devices_and_the_least_cache_are_found(first: int, width: int) -> None:
    fleet = Fleet(needs(11, 37))
    found = search(fleet, first=first, width=width)
    assert (found.devices, found.fails) == (11, 10)
    assert found.pages is not None
    assert 37 <= found.pages <= 37 + 2  # to a fiftieth of the full cache
    assert len(fleet.played) == len(set(fleet.played))  # none twice
    assert len(fleet.played) < 40


def test_one_device_is_enough_where_it_is() -> None:
    found = search(Fleet(needs(1, 1)), first=3)
    assert (found.devices, found.fails, found.pages) == (1, None, LEAST)


def test_with_a_device_more_less_cache_may_do() -> None:
    found = search(Fleet(needs(5, 80, per_device=50)))
    assert [pair.devices for pair in found.pairs] == [5, 6]
    assert found.pairs[0].pages in range(80, 83)
    assert found.pairs[1].pages in range(30, 33)
    assert search(Fleet(needs(5, 80))).pairs == (Pair(5, found.pairs[0].pages),)


def test_no_fleet_is_a_plan_where_the_largest_fails() -> None:
    fleet = Fleet(needs(100, 1))
    found = search(fleet, max_devices=16)
    assert (found.devices, found.fails, found.pages, found.pairs) == (None, 16, None, ())
    assert max(size.devices for size in fleet.played) == 16
    assert found.curve[-1].attained == pytest.approx(0.16)


def test_a_search_that_is_broken_off_says_what_it_knows() -> None:
    fleet = Fleet(needs(20, 1))
    found = SizeSearch(
        fleet,
        target=0.99,
        first=1,
        max_devices=64,
        full_pages=FULL,
        least_pages=LEAST,
        is_over=lambda: len(fleet.played) >= 3,
    ).run()
    assert not found.is_whole
    assert found.devices is None
    assert len(fleet.played) == 3
    assert found.fails == max(size.devices for size in fleet.played)


def test_the_knee_is_where_more_begins_to_give_less() -> None:
    assert knee_of([(n, min(1.0, n / 4)) for n in range(1, 11)]) == 4
    assert knee_of([(1, 0.5), (2, 0.5), (3, 0.5)]) is None
    assert knee_of([(1, 0.0), (2, 1.0)]) is None
    assert knee_of([(1, 0.0), (2, 0.5), (3, 1.0)]) is None  # a straight line has none
