"""What two replicas tell each other about a forwarded request, in one header each way.

It owns `x-remontoir-hop`. To the owner: the microseconds that the SLO has already run, the way
there and back included. To the entry: the microseconds that the owner took, and the SLO it went by.
A client that sends it shortens its own time, at most by MAX_SPENT_NS, and keeps its request here.
"""

import re
from typing import NamedTuple

from gateway.errors import bad_request
from scheduler.spec import SECOND_NS

HOP = b"x-remontoir-hop"
# A day, the longest SLO there is: who stands in may get what its owner has had for hours.
MAX_SPENT_NS = 86_400 * SECOND_NS

_SPENT = re.compile(rb"[0-9]{1,11}")
_TOLD = re.compile(rb"([0-9]{1,12});([0-9]{1,12})")


class Hop(NamedTuple):
    """Of a request that came from a peer: when it was read here, on this process's clock."""

    read_ns: int

    def told(self, *, now: int, slo_ns: int) -> tuple[bytes, bytes]:
        """The header of the reply."""
        return HOP, b"%d;%d" % (max(1, (now - self.read_ns) // 1000), slo_ns // 1000)


def parse_spent(value: bytes) -> int:
    """Nanoseconds, of a request's header. Raises RequestError(bad_request)."""
    if _SPENT.fullmatch(value) is None or int(value) * 1000 > MAX_SPENT_NS:
        shown = value[:60].decode("latin-1")
        raise bad_request(
            f"header x-remontoir-hop is {shown!r}: expected microseconds, at most "
            f"{MAX_SPENT_NS // 1000}; it is for replicas of the gateway"
        )
    return int(value) * 1000


def parse_told(value: bytes | None) -> tuple[int, int]:
    """What the owner took, and the SLO, in nanoseconds; zeros where it does not say."""
    found = _TOLD.fullmatch(value or b"")
    return (int(found[1]) * 1000, int(found[2]) * 1000) if found else (0, 0)
