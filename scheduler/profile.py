"""Rolling estimates of durations: seeded by the profile, corrected by every measurement.

A model's execution curve over batch sizes keeps the shape its profile gave it; measurements enter
as ratios to that curve, so that a batch size never seen borrows from its neighbours. Two figures
come out: *plan*, the median, chains predictions; *guard*, close to the worst of the window, decides
whether a deadline can be met. A sample above three times the median is clipped and counted, so that
one hiccup does not inflate sixteen batches (Clockwork's p99 of ten samples is its maximum).
"""

from bisect import bisect_left, insort
from collections import deque
from functools import lru_cache
from typing import Final

from scheduler.spec import ModelProfile, ModelSpec, ShapeProfile

# Long enough that one outlier is not the median, short enough to follow a clock change in seconds.
WINDOW_SAMPLES: Final = 16
OUTLIER_FACTOR: Final = 3.0
# A batch may be larger only where it saves this share of the time per row.
WORTHWHILE_GAIN: Final = 0.05
# Figures are computed anew once a window has moved by this share.
REFRESH_CHANGE: Final = 0.01
# Shape classes kept per model and device; clients choose sequence lengths, so there is a bound.
MAX_SHAPES: Final = 64
# Curves kept for who asks for the same one again: each model has one on every device.
MAX_CURVES: Final = 16384


class RatioWindow:
    """The last measurements of something, as ratios to its expected value; 1.0 before the first.

    `guard` stands in for a 99th percentile, which sixteen samples do not have: it would be their
    maximum, and one hiccup would refuse requests until it has left the window. The worst but one
    forgives a single one; fewer samples than a full window forgive none. The jitter of the
    gateway's loop is not added: it delays the answer and not the execution, so it is in what was
    measured of that, DeviceMirror.reply_delay_ns, which is the guard of a window as well and part
    of every margin.
    """

    __slots__ = ("_recent", "_sorted", "guard", "plan")

    def __init__(self) -> None:
        self.plan = 1.0  # the median
        self.guard = 1.0  # the worst but for one in a full window; the worst before that
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, ratio: float) -> bool:
        """Whether it was clipped, as an outlier."""
        ordered = self._sorted
        num = len(ordered)
        is_outlier = num >= 3 and ratio > OUTLIER_FACTOR * self.plan
        if is_outlier:
            ratio = OUTLIER_FACTOR * self.plan
        if num == WINDOW_SAMPLES:
            del ordered[bisect_left(ordered, self._recent.popleft())]
        else:
            num += 1
        self._recent.append(ratio)
        insort(ordered, ratio)
        self.plan = ordered[num // 2]
        self.guard = ordered[-2] if num == WINDOW_SAMPLES else ordered[-1]
        return is_outlier


class ExecEstimate:
    """Execution time of one model and shape class on one device, for 1 … max rows.

    `plan[n]`, `guard[n]` are nanoseconds a batch of n rows keeps the exec lane (index 0 unused);
    `efficient[n]` is the batch to begin with where n rows wait: all of them if that saves
    WORTHWHILE_GAIN, else the smallest whose time per row is within that of the best; `batched[n]`
    is the time for all n that way; `executed[n]` the batch size the engine runs for n rows.
    """

    __slots__ = (
        "_applied",
        "_curve",
        "_windows",
        "batched",
        "efficient",
        "executed",
        "guard",
        "max_rows",
        "plan",
    )

    def __init__(self, spec: ModelSpec, profile: ShapeProfile, scale: float) -> None:
        known = tuple(sorted(profile.exec_ns.items()))
        curve = curve_of(spec.batch_sizes, spec.runs_exact_batch, known, scale)
        self._curve = curve
        self.max_rows = spec.batch_sizes[-1]
        self.executed = curve.executed
        # by compiled size; None until the first measurement
        self._windows: list[RatioWindow | None] = [None] * len(spec.batch_sizes)
        self._applied = curve.ratios  # (plan, guard) ratios behind the figures
        self.plan, self.guard, self.efficient, self.batched = curve.figures

    def observe(self, rows: int, duration_ns: int) -> bool:
        """A batch of this many rows kept the lane for so long; whether that was an outlier."""
        if not 1 <= rows <= self.max_rows:
            return False
        bucket = self._curve.bucket_of[rows]
        window = self._windows[bucket]
        if window is None:
            window = self._windows[bucket] = RatioWindow()
        is_outlier = window.add(duration_ns / self._curve.base[rows])
        plan, guard = self._applied[bucket]
        if (
            abs(window.plan - plan) > REFRESH_CHANGE * plan
            or abs(window.guard - guard) > REFRESH_CHANGE * guard
        ):
            self._refresh()
        return is_outlier

    @property
    def num_samples(self) -> int:
        return sum(len(window) for window in self._windows if window is not None)

    def time_for(self, rows: int) -> int:
        """Planned time to execute so many rows, in batches of the efficient size."""
        size = self.efficient[min(rows, self.max_rows)]
        num_full, rest = divmod(rows, size)
        return num_full * self.plan[size] + self.batched[rest]

    def _refresh(self) -> None:
        ratios = [_nearest_sampled(self._windows, bucket) for bucket in range(len(self._windows))]
        self._applied = ratios
        self.plan, self.guard, self.efficient, self.batched = self._curve.figures_at(ratios)


class ExecCurve:
    """What a profile says of one shape class, before anything was measured. Shared; never changed.

    `base[n]` nanoseconds for n rows, which a batch of `executed[n]` takes, the `bucket_of[n]`-th of
    the compiled sizes.
    """

    __slots__ = ("base", "bucket_of", "executed", "figures", "ratios")

    def __init__(
        self,
        sizes: tuple[int, ...],
        runs_exact_batch: bool,
        known: tuple[tuple[int, int], ...],
        scale: float,
    ) -> None:
        rows = range(1, sizes[-1] + 1)
        self.bucket_of = [0] + [bisect_left(sizes, n) for n in rows]
        self.executed = [0] + [n if runs_exact_batch else sizes[self.bucket_of[n]] for n in rows]
        self.base = [0.0] + [max(1.0, scale * _interpolate(known, self.executed[n])) for n in rows]
        self.ratios = [(1.0, 1.0)] * len(sizes)
        self.figures = self.figures_at(self.ratios)

    def figures_at(
        self, ratios: list[tuple[float, float]]
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """ExecEstimate's plan, guard, efficient and batched at these (plan, guard) ratios."""
        base, bucket_of = self.base, self.bucket_of
        num = len(base)
        plan, guard, efficient, batched = [0] * num, [0] * num, [0] * num, [0] * num
        best_per_row = float("inf")
        plan_ns = guard_ns = 0
        smallest = 1
        # Comparisons, not max() and min(): this runs for many a measurement, and is mostly calls.
        for n in range(1, num):
            ratio_plan, ratio_guard = ratios[bucket_of[n]]
            # More rows never take less time: a noisy window must not invert the order.
            own_plan_ns, own_guard_ns = int(base[n] * ratio_plan), int(base[n] * ratio_guard)
            if own_plan_ns > plan_ns:
                plan_ns = own_plan_ns
            if own_guard_ns > guard_ns:
                guard_ns = own_guard_ns
            plan[n], guard[n] = plan_ns, guard_ns
            if plan_ns / n < best_per_row:
                best_per_row = plan_ns / n
            while plan[smallest] / smallest > best_per_row * (1 + WORTHWHILE_GAIN):
                smallest += 1
            in_two_ns = plan[smallest] + batched[n - smallest]
            size = n if plan_ns * (1 + WORTHWHILE_GAIN) < in_two_ns else smallest
            efficient[n] = size
            batched[n] = plan[size] + batched[n - size]
        return plan, guard, efficient, batched


@lru_cache(maxsize=MAX_CURVES)
def curve_of(
    sizes: tuple[int, ...],
    runs_exact_batch: bool,
    known: tuple[tuple[int, int], ...],
    scale: float,
) -> ExecCurve:
    """`known`: measured (rows, nanoseconds), ascending; `scale`: to a shape of another size."""
    return ExecCurve(sizes, runs_exact_batch, known, scale)


def _nearest_sampled(windows: list[RatioWindow | None], bucket: int) -> tuple[float, float]:
    """(plan, guard) ratios of the bucket, or of the nearest one that has samples."""
    num = len(windows)
    for distance in range(num):
        for index in (bucket - distance, bucket + distance):
            if 0 <= index < num:
                window = windows[index]
                if window is not None:
                    return window.plan, window.guard
    raise AssertionError("nothing was measured yet")


def _interpolate(known: tuple[tuple[int, int], ...], rows: int) -> float:
    """Piecewise linear through the measured sizes; proportional beyond the last."""
    index = bisect_left(known, (rows, 0))
    if index == len(known):
        return known[-1][1] * rows / known[-1][0]
    size, duration = known[index]
    if size == rows or index == 0:
        return float(duration)
    size_before, duration_before = known[index - 1]
    share = (rows - size_before) / (size - size_before)
    return duration_before + share * (duration - duration_before)


class ModelEstimates:
    """All estimates of one model on one device: its LOAD and its shape classes."""

    __slots__ = (
        "_load_base_ns",
        "_load_window",
        "_profiles",
        "_spec",
        "load_plan_ns",
        "measured_ns",
        "shapes",
    )

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.measured_ns = 0  # instant of the last result that entered
        profile: ModelProfile = spec.profile
        self._profiles = profile.shapes
        self._load_base_ns = max(1, profile.load_ns)
        self._load_window: RatioWindow | None = None  # until the first measurement
        self.load_plan_ns = self._load_base_ns
        self.shapes: dict[str, ExecEstimate] = {}  # by `exec`; least recently created first

    def observe_load(self, duration_ns: int) -> bool:
        """A LOAD kept the lane for so long; whether that was an outlier."""
        window = self._load_window
        if window is None:
            window = self._load_window = RatioWindow()
        is_outlier = window.add(duration_ns / self._load_base_ns)
        self.load_plan_ns = max(1, int(self._load_base_ns * window.plan))
        return is_outlier

    def exec(self, shape_key: str, elements: int) -> ExecEstimate:
        """The estimate of a shape class; one never profiled is scaled from the nearest in size."""
        estimate = self.shapes.get(shape_key)
        if estimate is None:
            estimate = self._new_estimate(shape_key, elements)
            if len(self.shapes) >= MAX_SHAPES:
                del self.shapes[next(iter(self.shapes))]
            self.shapes[shape_key] = estimate
        return estimate

    @property
    def first(self) -> ExecEstimate:
        """The estimate of the first profiled shape, for tables and metrics."""
        profile = self._profiles[0]
        return self.exec(profile.shape_key, profile.elements)

    def _new_estimate(self, shape_key: str, elements: int) -> ExecEstimate:
        nearest = self._profiles[0]
        for profile in self._profiles:
            if profile.shape_key == shape_key:
                return ExecEstimate(self._spec, profile, 1.0)
            if abs(profile.elements - elements) < abs(nearest.elements - elements):
                nearest = profile
        scale = elements / nearest.elements if nearest.elements and elements else 1.0
        return ExecEstimate(self._spec, nearest, scale)
