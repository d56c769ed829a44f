"""Scaling: how many devices what comes will need, from what came; advice for an autoscaler.

It owns windows of what was offered, forecasts, and how wrong they were. It reads no clock, decides
nothing, and never looks at what was served: a fleet that refuses half of its requests needs no
fewer devices for it. (MArk, ATC'19, starts instances by a forecast of the load, since they take
longer to come up than an SLO may be missed; a forecast whose error nobody knows is a guess.)
"""

import math
from collections import deque
from typing import Final, NamedTuple

from scheduler.spec import SECOND_NS

# Long enough for the mean of bursts, short enough for six in a minute.
WINDOW_NS: Final = 10 * SECOND_NS
# The refused ratio is of the last minute: an autoscaler looks every 15 to 30 s.
REFUSED_WINDOWS: Final = 6
# Holt's linear forecast with a damped trend (Gardner and McKenzie, 1985): weights of the newest
# window in level and trend, and what of a trend is left a window later: the most that is usual
# (Hyndman and Athanasopoulos, Forecasting, 8.2), as persistence is there where none lasts.
LEVEL_WEIGHT: Final = 0.5
TREND_WEIGHT: Final = 0.2
DAMPING: Final = 0.98
# Of the newest error in the mean errors: the last sixteen count, over two minutes.
ERROR_WEIGHT: Final = 1 / 16
# Of a normal distribution 95 % lies below two mean absolute errors.
SAFETY_ERRORS: Final = 2.0


class Sample(NamedTuple):
    """What is known at one instant. `asked` and `refused` are counts since the start, of requests
    with a promise; `load` is in devices kept busy.
    """

    load: float
    num_devices: int
    asked: int
    refused: int


class Forecaster:
    """One way to foresee, and what it got wrong: its mean absolute and its mean signed error, both
    0 until one of its forecasts is due.
    """

    def __init__(self) -> None:
        self.absolute_error = 0.0
        self.bias = 0.0  # actual minus forecast: above 0, it foresees too little
        self.num_errors = 0
        self._due: deque[tuple[int, float]] = deque()  # (window, forecast), oldest first

    def foresee(self, window: int, forecast: float) -> None:
        self._due.append((window, forecast))

    def learn(self, window: int, actual: float) -> None:
        """What the window really had."""
        while self._due and self._due[0][0] <= window:
            due, forecast = self._due.popleft()
            if due == window:
                self._count(actual - forecast)

    def _count(self, error: float) -> None:
        self.num_errors += 1
        weight = max(ERROR_WEIGHT, 1 / self.num_errors)
        self.absolute_error += weight * (abs(error) - self.absolute_error)
        self.bias += weight * (error - self.bias)


class Scaling:
    """Feed it a sample every second or so. Figures are None before the first window is whole."""

    def __init__(self, *, horizon_ns: int, target_utilisation: float) -> None:
        """`horizon_ns` is how long a device takes from being asked for to serving."""
        self._target = target_utilisation
        self._num_ahead = max(1, math.ceil(horizon_ns / WINDOW_NS))
        self._window: int | None = None  # number of the one that is being filled
        self._num_samples = 0
        self._sum = 0.0
        self._level: float | None = None
        self._trend = 0.0
        # At the ends of the last windows: (asked, refused).
        self._counts: deque[tuple[int, int]] = deque(maxlen=REFUSED_WINDOWS + 1)
        self._newest = Sample(0.0, 0, 0, 0)
        # As much as now, or as much as the trend says: whichever was less wrong lately is believed.
        self._persistence, self._holt = Forecaster(), Forecaster()
        self._believed = self._persistence
        self.offered_load: float | None = None  # of the last whole window, in devices
        self.forecast: float | None = None  # of the window one horizon ahead, in devices

    def observe(self, sample: Sample, now: int) -> None:
        window = now // WINDOW_NS
        if self._window is None:
            self._window = window
            self._counts.append((sample.asked, sample.refused))
        elif window != self._window:
            self._close(window)
        self._newest = sample
        self._num_samples += 1
        self._sum += sample.load

    @property
    def utilisation(self) -> float | None:
        """The last window's load over the devices there are now; None without a device."""
        return self._per_device(self.offered_load)

    @property
    def predicted_utilisation(self) -> float | None:
        """The forecast over the devices there are now; None without a device."""
        return self._per_device(self.forecast)

    @property
    def refused_ratio(self) -> float:
        """Of the requests with a promise of the last minute, those refused; 0 where none came."""
        if not self._counts:
            return 0.0
        asked = self._newest.asked - self._counts[0][0]
        return (self._newest.refused - self._counts[0][1]) / asked if asked > 0 else 0.0

    @property
    def absolute_error(self) -> float | None:
        """Mean absolute error of the forecasts that came due lately, in devices; None before the
        first is due.
        """
        return self._believed.absolute_error if self._believed.num_errors else None

    @property
    def bias(self) -> float | None:
        """Mean of actual minus forecast, in devices: above 0, too little was foreseen. None before
        the first is due.
        """
        return self._believed.bias if self._believed.num_errors else None

    @property
    def recommended_devices(self) -> int | None:
        """So many that the forecast, with what it is usually wrong by, is the target utilisation.
        At least one.
        """
        if self.forecast is None:
            return None
        needed = self.forecast + SAFETY_ERRORS * self._believed.absolute_error
        # Three devices at 0.7 are no fourth for the last bit of a float.
        return max(1, math.ceil(needed / self._target - 1e-9))

    def _per_device(self, load: float | None) -> float | None:
        if load is None or self._newest.num_devices == 0:
            return None
        return load / self._newest.num_devices

    def _close(self, window: int) -> None:
        """The window is whole. If others without a sample lie between it and the next, the process
        slept, and what comes after that is no trend of what was before.
        """
        assert self._window is not None
        load = self._sum / self._num_samples
        for forecaster in (self._persistence, self._holt):
            forecaster.learn(self._window, load)
        if self._level is None:
            self._level = load
        else:
            before = self._level
            expected = before + DAMPING * self._trend
            self._level = LEVEL_WEIGHT * load + (1 - LEVEL_WEIGHT) * expected
            self._trend = TREND_WEIGHT * (self._level - before) + (
                (1 - TREND_WEIGHT) * DAMPING * self._trend
            )
        self.offered_load = load
        self._counts.append((self._newest.asked, self._newest.refused))
        due = self._window + self._num_ahead
        steps = sum(DAMPING**step for step in range(1, self._num_ahead + 1))
        trended = max(0.0, self._level + steps * self._trend)
        self._persistence.foresee(due, load)
        self._holt.foresee(due, trended)
        is_holt_better = self._holt.absolute_error < self._persistence.absolute_error
        self._believed = self._holt if is_holt_better else self._persistence
        self.forecast = trended if is_holt_better else load
        if window > self._window + 1:
            self._level, self._trend = None, 0.0
        self._window, self._num_samples, self._sum = window, 0, 0.0
