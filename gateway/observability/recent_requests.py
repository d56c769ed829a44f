"""RecentRequests: the last requests that got their answers, for whoever asks why.

It owns which are kept: so many, the oldest goes first, whatever they were. What it keeps of one is
an Answered (answered.py); looking through them is for what is rare, so there is no index.
"""

import heapq
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import takewhile

from gateway.observability.answered import Answered, OwnAnswer
from gateway.views import Clock
from scheduler.spec import SECOND_NS

# Looked through in one turn of the event loop: half a millisecond.
PER_TURN = 100

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")

Wanted = Callable[[Answered], bool]


class RecentRequests:
    """`note` is called for every request. `clock` is the one of their instants, `wall` of people's
    (seconds since 1970).
    """

    def __init__(
        self, max_kept: int, *, clock: Clock, wall: Callable[[], float] = time.time
    ) -> None:
        self.max_kept = max_kept
        self._kept: deque[Answered] = deque(maxlen=max_kept)  # oldest answer first
        self._clock = clock
        self._wall = wall

    def note(self, answered: Answered) -> None:
        """Strangers' requests are counted, and kept from pushing out those of tenants."""
        outcome = answered.outcome
        if type(outcome) is not OwnAnswer or outcome.reason != "unauthenticated":
            self._kept.append(answered)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def is_full(self) -> bool:
        """Whether older ones may have gone."""
        return len(self._kept) == self.max_kept

    @property
    def since(self) -> str | None:
        """When the oldest that is kept was answered."""
        return self.at(self._kept[0].answered_ns) if self._kept else None

    def at(self, instant_ns: int) -> str:
        """An instant of the gateway's clock as people write it: ISO 8601 in UTC, milliseconds."""
        wall_s = self._wall() - (self._clock() - instant_ns) / SECOND_NS
        return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")

    def named(self, request_id: str, wanted: Wanted) -> list[Answered]:
        """All of that id, which clients may give twice, the latest last; else the one with that
        number.
        """
        found = [kept for kept in self._kept if kept.request_id == request_id and wanted(kept)]
        if found or not _NUMBER.fullmatch(request_id):
            return found
        number = int(request_id)
        return [kept for kept in self._kept if kept.number == number and wanted(kept)]

    def by_number(self) -> Iterator[dict[int, Answered]]:
        """By the scheduler's ids, which are unique: as far as it has come, the whole last."""
        found: dict[int, Answered] = {}
        for number, kept in enumerate(list(self._kept), 1):
            found[kept.number] = kept
            if number % PER_TURN == 0:
                yield found
        found.pop(0, None)  # those that never got there
        yield found

    def latest(self, num: int, wanted: Wanted) -> Iterator[Sequence[Answered]]:
        """Yields what was found so far now and then, the whole last; the latest first."""
        found: list[Answered] = []
        for number, kept in enumerate(reversed(list(self._kept)), 1):
            if wanted(kept):
                found.append(kept)
                if len(found) == num:
                    break
            if number % PER_TURN == 0:
                yield found
        yield found

    def worst(
        self,
        num: int,
        wanted: Wanted,
        *,
        among: Sequence[Answered] | None = None,
        after_ns: int = -1,
    ) -> Iterator[Sequence[Answered]]:
        """As `latest`, by slack, the least first; what failed goes before what was met. `among`
        these, the latest first, or all that are kept; of those only that were answered after
        `after_ns`.
        """
        latest = reversed(self._kept) if among is None else among
        kept = list(takewhile(lambda answered: answered.answered_ns > after_ns, latest))
        found: list[tuple[int, int, Answered]] = []
        for begin in range(0, len(kept), PER_TURN):
            ranked = [
                (badness, number, answered)  # of equals the latest first
                for number, answered in enumerate(kept[begin : begin + PER_TURN], begin)
                if (badness := answered.badness) is not None and wanted(answered)
            ]
            found = heapq.nsmallest(num, [*found, *ranked])
            yield [answered for _, _, answered in found]
        if not kept:
            yield []
