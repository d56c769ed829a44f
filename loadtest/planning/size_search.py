"""How many devices, how much cache: the search, from coarse to fine.

Owns which sizes are played, and in which order, so that a search that is broken off has said the
most it could. It plays nothing itself and reads no clock: both are given.
"""

import math
from collections.abc import Callable, Sequence

import msgspec

from loadtest.planning.evaluate import Evaluate, Point, Size

# The curve goes from a quarter of what is needed to twice that: below, all is refused; above,
# nothing changes any more.
CURVE_SHARES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0)
CACHE_SHARES = (0.25, 0.5, 0.75)
# A cache is known to so much of what it must hold at the most.
CACHE_STEP = 0.02
# A device more may do with less cache: so many more are looked at.
MORE_DEVICES = 1


class Pair(msgspec.Struct, frozen=True):
    """A size that meets the target, with no fewer pages known to."""

    devices: int
    pages: int


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """What the search found. `devices` is None where `max_devices` do not meet the target.

    `fails` is the most devices that were played and failed, with the full cache; `curve` has every
    size with a full cache, `cache` every one of `devices`, `pairs` the trade of one for the other.
    `is_whole`: it was not broken off.
    """

    full_pages: int
    devices: int | None
    fails: int | None
    pages: int | None
    pairs: tuple[Pair, ...]
    knee: int | None
    curve: tuple[Point, ...]
    cache: tuple[Point, ...]
    is_whole: bool


class SizeSearch:
    """`full_pages`: where a cache is as large as it can be, or holds all; `least_pages`: the
    smallest that holds the largest model. `is_over` says when nothing more may be begun.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        *,
        target: float,
        first: int,
        max_devices: int,
        full_pages: int,
        least_pages: int,
        width: int = 1,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._evaluate = evaluate
        self._target = target
        self._first = min(max(1, first), max_devices)
        self._max = max_devices
        self._full = full_pages
        self._least = min(least_pages, full_pages)
        self._width = width  # sizes played at a time
        self._is_over = is_over
        self._played: dict[Size, Point] = {}

    def run(self) -> Sizes:
        low, high = self._bracket()
        low, high = self._narrow(low, high, 1, lambda devices: Size(devices, self._full))
        devices = high
        pairs: list[Pair] = []
        if devices is not None:
            pairs = self._trade(devices)
        self._fill_curve(devices or self._max)
        curve = self._with(lambda size: size.pages == self._full)
        cache = self._with(lambda size: size.devices == devices)
        return Sizes(
            full_pages=self._full,
            devices=devices,
            fails=low or None,
            pages=pairs[0].pages if pairs else None,
            pairs=tuple(pairs),
            knee=knee_of([(point.devices, point.attained) for point in curve]),
            curve=curve,
            cache=cache,
            is_whole=not self._is_over(),
        )

    # ------------------------------------------------------------------ steps

    def _bracket(self) -> tuple[int, int | None]:
        """Double from what arithmetic says, until it is enough: (fails, meets)."""
        fails, devices = 0, self._first
        while True:
            if self._meets(Size(devices, self._full)):
                return fails, devices
            fails = devices
            if devices == self._max or self._is_over():
                return fails, None
            devices = min(self._max, max(devices + 1, round(devices * 1.5)))

    def _narrow(
        self, fails: int, meets: int | None, step: int, size_of: Callable[[int], Size]
    ) -> tuple[int, int | None]:
        """Bisection, or as many places at a time as are played at a time."""
        while meets is not None and meets - fails > step and not self._is_over():
            inner = meets - fails - 1
            width = min(self._width, inner)
            places = sorted(
                {fails + max(1, round((inner + 1) * i / (width + 1))) for i in range(1, width + 1)}
            )
            self._play([size_of(place) for place in places])
            for place in places:
                if self._meets(size_of(place)):
                    meets = place
                    break
                fails = place
        return fails, meets

    def _trade(self, devices: int) -> list[Pair]:
        """The least cache with so many devices, and with some more."""
        step = max(1, math.floor(CACHE_STEP * self._full))
        pairs: list[Pair] = []
        coarse = {max(self._least, round(share * self._full)) for share in CACHE_SHARES}
        self._play([Size(devices, pages) for pages in sorted({*coarse, self._least})])
        for number in range(devices, min(self._max, devices + MORE_DEVICES) + 1):
            if self._is_over():
                break
            if not self._meets(Size(number, self._full)):
                continue  # chance: it is not better with one more
            known = [p.pages for s, p in self._played.items() if s.devices == number]
            meeting = [pages for pages in known if self._meets(Size(number, pages))]
            high = min(meeting)
            if pairs:
                high = min(high, pairs[-1].pages)
                if not self._meets(Size(number, high)):
                    continue
            failing = [pages for pages in known if pages < high]
            low = max(failing, default=self._least - 1)
            _, found = self._narrow(low, high, step, lambda pages, n=number: Size(n, pages))  # type: ignore[misc]
            assert found is not None
            if not pairs or found < pairs[-1].pages:
                pairs.append(Pair(number, found))
        return pairs

    def _fill_curve(self, around: int) -> None:
        """Places of the curve that the search has passed over, if there is time."""
        wanted = sorted({min(self._max, max(1, round(around * share))) for share in CURVE_SHARES})
        sizes = [Size(devices, self._full) for devices in wanted]
        while sizes and not self._is_over():
            self._play(sizes[: self._width])
            sizes = sizes[self._width :]

    # ------------------------------------------------------------------ points

    def _meets(self, size: Size) -> bool:
        self._play([size])
        return self._played[size].attained >= self._target

    def _play(self, sizes: Sequence[Size]) -> None:
        new = [size for size in dict.fromkeys(sizes) if size not in self._played]
        if new:
            self._played.update(zip(new, self._evaluate(new), strict=True))

    def _with(self, is_wanted: Callable[[Size], bool]) -> tuple[Point, ...]:
        return tuple(self._played[size] for size in sorted(self._played) if is_wanted(size))


def knee_of(points: Sequence[tuple[float, float]]) -> int | None:
    """Where more of x begins to give less of y: the place farthest above the straight line from the
    first point to the last (Satopaa et al., "Finding a Kneedle in a Haystack", 2011, without its
    smoothing). None where there is none: less than three places, or nothing gained.
    """
    if len(points) < 3:
        return None
    ordered = sorted(points)
    (x0, y0), x1 = ordered[0], ordered[-1][0]
    best = max(y for _, y in ordered)
    if x1 == x0 or best <= y0:
        return None
    above = [(y - y0) / (best - y0) - (x - x0) / (x1 - x0) for x, y in ordered]
    highest = max(above)
    return int(ordered[above.index(highest)][0]) if highest > 0 else None
