"""The waiting requests of one model that may share a batch, in deadline order."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Final

from scheduler.priority import HIGH, LOW, NORMAL
from scheduler.request import Request
from scheduler.timers import Wakeable

# Popping moves an index; the list is cut once this many popped entries stand in front of it.
_COMPACT_AT: Final = 64


class ModelQueue(Wakeable):
    """All and only the QUEUED requests of one (model, batch key), earliest deadline first.

    Ties keep arrival order. Insertion at the end, the usual case where all SLOs of a model are
    equal, is O(1); elsewhere it is a bisection and a memmove. `latest_start_ns` is the sort key
    under which the queue was last announced to the devices; None when empty. With
    `keeps_arrival_order`, `in_order` gives the requests as they were pushed, for policies that are
    first come, first served; with `keeps_tenants`, `of_tenant` gives one tenant's. `of_class`
    gives the requests of one class as a queue of their own, while there is another than NORMAL.
    """

    __slots__ = (
        "_arrived",
        "_by_tenant",
        "_classes",
        "_entries",
        "_first",
        "_keeps_classes",
        "_sequence",
        "batch_key",
        "elements",
        "latest_start_ns",
        "model",
        "num_rows",
        "shape_key",
    )

    def __init__(
        self,
        model: str,
        batch_key: str,
        shape_key: str,
        elements: int,
        *,
        keeps_arrival_order: bool = False,
        keeps_tenants: bool = False,
        keeps_classes: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.batch_key = batch_key
        self.shape_key = shape_key
        self.elements = elements
        self._entries: list[tuple[int, int, Request]] = []
        self._first = 0
        self._sequence = 0
        # request id → request, in the order pushed; None where nobody asks for that order
        self._arrived: dict[int, Request] | None = {} if keeps_arrival_order else None
        # tenant → request id → request; None where all are one tenant's
        self._by_tenant: dict[str, dict[int, Request]] | None = {} if keeps_tenants else None
        # A queue for each class; None while all are NORMAL.
        self._classes: tuple[ModelQueue, ModelQueue, ModelQueue] | None = None
        self._keeps_classes = keeps_classes
        self.num_rows = 0
        self.latest_start_ns: int | None = None

    def __len__(self) -> int:
        return len(self._entries) - self._first

    def __iter__(self) -> Iterator[Request]:
        entries = self._entries
        for index in range(self._first, len(entries)):
            yield entries[index][2]

    @property
    def head(self) -> Request | None:
        return self._entries[self._first][2] if self._first < len(self._entries) else None

    @property
    def last_deadline_ns(self) -> int:
        """The latest deadline of all; the queue must not be empty."""
        return self._entries[-1][0]

    def push(self, request: Request) -> bool:
        """Insert by deadline. True if the request became the head."""
        self._sequence += 1
        entry = (request.deadline_ns, self._sequence, request)
        entries = self._entries
        self.num_rows += request.rows
        if self._arrived is not None:
            self._arrived[request.request_id] = request
        if self._by_tenant is not None:
            self._by_tenant.setdefault(request.tenant, {})[request.request_id] = request
        if self._classes is not None:
            self._classes[request.priority].push(request)
        elif request.priority != NORMAL and self._keeps_classes:
            self._split(request).push(request)
        if len(entries) == self._first or entries[-1][0] <= request.deadline_ns:
            entries.append(entry)
            return len(entries) - self._first == 1
        insort(entries, entry, lo=self._first)
        return entries[self._first][2] is request

    def pop_head(self) -> Request:
        request = self._entries[self._first][2]
        self._first += 1
        self.num_rows -= request.rows
        if self._arrived is not None:
            del self._arrived[request.request_id]
        if self._by_tenant is not None:
            self._forget_tenant(self._by_tenant, request)
        if self._classes is not None:
            self._forget_class(request)
        if self._first >= _COMPACT_AT:
            del self._entries[: self._first]
            self._first = 0
        return request

    def remove(self, request: Request) -> None:
        """Take a request out of the middle (cancelled, or chosen past the head)."""
        del self._entries[self._index(request)]
        self.num_rows -= request.rows
        if self._arrived is not None:
            del self._arrived[request.request_id]
        if self._by_tenant is not None:
            self._forget_tenant(self._by_tenant, request)
        if self._classes is not None:
            self._forget_class(request)

    @property
    def only_class(self) -> int | None:
        """The class of all its requests; None where there are several."""
        if self._classes is None:
            return NORMAL
        found: int | None = None
        for priority in (HIGH, NORMAL, LOW):
            if self._classes[priority]:
                if found is not None:
                    return None
                found = priority
        return found

    def of_class(self, priority: int) -> "ModelQueue | None":
        """Those of one class, earliest deadline first; None where there are none."""
        if self._classes is not None:
            return self._classes[priority] if self._classes[priority] else None
        return self if priority == NORMAL and self else None

    def rows_before(self, deadline_ns: int, priority: int) -> int:
        """Rows that are served before a newcomer where classes count: all of the higher ones, and
        of its own those that are due by then.
        """
        rows = 0
        for of_class in range(priority + 1):
            queue = self.of_class(of_class)
            if queue is None:
                continue
            # Rows, not requests, would need a running sum; requests of one row are the usual case.
            is_counted = of_class == priority and queue.num_rows == len(queue)
            rows += queue.num_due_by(deadline_ns) if is_counted else queue.num_rows
        return rows

    def of_tenant(self, tenant: str) -> Iterable[Request]:
        """One tenant's requests as they were pushed; none where tenants are not kept apart."""
        return self._by_tenant.get(tenant, {}).values() if self._by_tenant else ()

    def num_of_tenant(self, tenant: str) -> int:
        return len(self._by_tenant.get(tenant, ())) if self._by_tenant else 0

    def _forget_tenant(self, by_tenant: dict[str, dict[int, Request]], request: Request) -> None:
        own = by_tenant[request.tenant]
        del own[request.request_id]
        if not own:
            del by_tenant[request.tenant]

    def _split(self, request: Request) -> "ModelQueue":
        """Queues for the classes, when the first comes that is not NORMAL; returns that one's."""
        high, usual, low = [
            ModelQueue(
                self.model, self.batch_key, self.shape_key, self.elements, keeps_classes=False
            )
            for _ in range(3)
        ]
        for waiting in self:
            usual.push(waiting)
        self._classes = high, usual, low
        return self._classes[request.priority]

    def _forget_class(self, request: Request) -> None:
        assert self._classes is not None
        self._classes[request.priority].remove(request)
        if not self._classes[HIGH] and not self._classes[LOW]:
            self._classes = None

    def in_order(self) -> Iterable[Request]:
        """The requests in the order of the policy: as pushed, or by deadline."""
        return self if self._arrived is None else self._arrived.values()

    @property
    def first_in_order(self) -> Request:
        """The queue must not be empty."""
        return next(iter(self.in_order()))

    def num_due_by(self, deadline_ns: int) -> int:
        """Requests whose deadline is at or before the instant: those ahead of a newcomer."""
        return bisect_right(self._entries, deadline_ns, lo=self._first, key=_deadline) - self._first

    def num_due_before(self, instant_ns: int) -> int:
        """Requests whose deadline is before the instant."""
        return bisect_left(self._entries, instant_ns, lo=self._first, key=_deadline) - self._first

    def at(self, position: int) -> Request:
        """The request at a place of the queue; 0 is the head."""
        return self._entries[self._first + position][2]

    def num_due_after(self, instant_ns: int) -> int:
        """Requests whose deadline is after the instant."""
        return len(self) - self.num_due_by(instant_ns)

    def run_from(self, request: Request, max_requests: int) -> list[Request]:
        """The request and those after it, at most so many."""
        first = self._first
        if self._entries[first][2] is not request:
            first = self._index(request)
        return [entry[2] for entry in self._entries[first : first + max_requests]]

    def first_due_after(self, instant_ns: int) -> Request | None:
        index = bisect_right(self._entries, instant_ns, lo=self._first, key=_deadline)
        return self._entries[index][2] if index < len(self._entries) else None

    def _index(self, request: Request) -> int:
        entries = self._entries
        index = bisect_left(entries, request.deadline_ns, lo=self._first, key=_deadline)
        while entries[index][2] is not request:
            index += 1
        return index


def _deadline(entry: tuple[int, int, Request]) -> int:
    return entry[0]
