"""Which SLOs are asked for these days, and how long each of them can wait for a lane.

What a batch that cannot be preempted does to others depends on requests that have not arrived yet:
those of the tighter classes that were seen lately are taken to go on.
"""

from typing import Final

from scheduler.spec import SECOND_NS

# A class counts for so long after its last request, so that what protects it does not flap.
MEMORY_NS: Final = 10 * SECOND_NS
FOREVER_NS: Final = 2**62


class _Class:
    __slots__ = ("before_ns", "current_ns", "num", "num_before", "seen_ns", "since_ns")

    def __init__(self, slack_ns: int, now: int) -> None:
        self.current_ns = self.before_ns = slack_ns  # least slack of this period, of the one before
        self.since_ns = self.seen_ns = now
        self.num = 1  # requests of this period, and of the one before
        self.num_before = 0


class SloClasses:
    """Least slack by SLO, in quarters of an octave."""

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        self._classes: dict[int, _Class] = {}

    def touch(self, slo_ns: int, slack_ns: int, now: int) -> None:
        """A request came that can wait so long before its execution must start."""
        key = class_of(slo_ns)
        known = self._classes.get(key)
        if known is None or now - known.seen_ns > MEMORY_NS:
            self._classes[key] = _Class(slack_ns, now)
            return
        known.seen_ns = now
        if now - known.since_ns > MEMORY_NS:
            known.before_ns, known.current_ns, known.since_ns = known.current_ns, slack_ns, now
            known.num_before, known.num = known.num, 0
        elif slack_ns < known.current_ns:
            known.current_ns = slack_ns
        known.num += 1

    def slacks(self, now: int) -> list[tuple[int, int]]:
        """(class, least slack of this and all tighter ones), the tightest first."""
        found: list[tuple[int, int]] = []
        least_ns = FOREVER_NS
        for key in sorted(self._classes):
            known = self._classes[key]
            if now - known.seen_ns <= MEMORY_NS:
                least_ns = min(least_ns, known.before_ns, known.current_ns)
                found.append((key, least_ns))
            else:
                del self._classes[key]
        return found

    def rate_below(self, key: int, now: int) -> float:
        """Requests per nanosecond of the classes tighter than this one."""
        rate = 0.0
        for other, known in self._classes.items():
            if other < key and now - known.seen_ns <= MEMORY_NS:
                period_ns = max(now - known.since_ns, SECOND_NS)
                if known.num_before:
                    period_ns += MEMORY_NS
                rate += (known.num + known.num_before) / period_ns
        return rate


def class_of(slo_ns: int) -> int:
    """The quarter of an octave in which it lies; four more is twice as long."""
    octave = slo_ns.bit_length()
    return 4 * octave + ((slo_ns << 3 >> octave) & 3)
