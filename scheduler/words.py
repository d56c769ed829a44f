"""Durations and numbers in words, the same wherever a person is told why.

It owns units and wording of these alone.
"""

from collections.abc import Sequence

from scheduler.spec import MILLISECOND_NS

MAX_NAMED = 5  # of a long list, so many are named


def ms(duration_ns: int) -> str:
    """12.3 ms, 0.042 ms: three digits that matter, and never fewer than the unit."""
    if not duration_ns:
        return "0 ms"
    value = duration_ns / MILLISECOND_NS
    if abs(value) >= 100:
        return f"{value:.0f} ms"
    return f"{value:.1f} ms" if abs(value) >= 1 else f"{value:.3f} ms"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(numbers: Sequence[object]) -> str:
    shown = ", ".join(map(str, numbers[:MAX_NAMED]))
    more = len(numbers) - MAX_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


class Names:
    """What requests and models are called. A shell that hides some has its own subclass."""

    def request(self, request_id: int) -> str:
        """A request other than the one told of."""
        return str(request_id)

    def model(self, model: str) -> str:
        return model
