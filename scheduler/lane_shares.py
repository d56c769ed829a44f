"""How a lane's time was divided lately, by how long one execution of the model takes.

Short work slips in ahead of long work (policies/batching/), so whoever waits behind others also
waits for short work that has not arrived yet. What came lately says how much of it to expect.
"""

import math
from typing import Final

from scheduler.spec import SECOND_NS

HALF_LIFE_NS: Final = 2 * SECOND_NS
# A decayed sum of durations, times this, is a share of the lane's time.
_SHARE_PER_NS: Final = math.log(2) / HALF_LIFE_NS
# However busy the lane was with shorter work: some of it will have been a burst.
MAX_SHARE: Final = 0.8


class LaneShares:
    """Busy time by octave of a single execution's time, fading with a half-life."""

    __slots__ = ("_asked_now", "_asked_octave", "_busy", "_share")

    def __init__(self) -> None:
        # The last answer: requests that arrive together ask for the same.
        self._asked_octave = -1
        self._asked_now = -1
        self._share = 0.0
        self._busy: dict[int, tuple[float, int]] = {}  # octave → (decayed ns, as of instant)

    def add(self, *, single_ns: int, duration_ns: int, now: int) -> None:
        """A batch was sent to the lane, of a model that takes `single_ns` for one row."""
        self._asked_octave = -1
        octave = single_ns.bit_length()
        busy_ns, as_of = self._busy.get(octave, (0.0, now))
        self._busy[octave] = (busy_ns * _faded(now - as_of) + duration_ns, now)

    def share_of_shorter(self, single_ns: int, now: int) -> float:
        """Of the lane's time, the part that went to models at least an octave shorter."""
        if len(self._busy) < 2:
            return 0.0
        own = single_ns.bit_length()
        if own == self._asked_octave and now == self._asked_now:
            return self._share
        busy_ns = 0.0
        for octave, (amount, as_of) in self._busy.items():
            if octave < own:
                busy_ns += amount * _faded(now - as_of)
        self._asked_octave, self._asked_now = own, now
        self._share = min(busy_ns * _SHARE_PER_NS, MAX_SHARE)
        return self._share


def _faded(age_ns: int) -> float:
    return math.pow(2, -age_ns / HALF_LIFE_NS)
