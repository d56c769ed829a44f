"""Which page of the weights cache belongs to which model: fixed pages, plain counting.

It owns the worker's page table: free pages, the pages and state of each model, and pins. It never
touches memory (the device does that) and never evicts to make room: it refuses with a code, and
the gateway decides. Both lanes ask it at the instant an action starts, the main thread when it
introduces itself, so every method is atomic.
"""

import enum
import threading

from scheduler.actions import Code


class PageRefusal(Exception):
    """The page table does not allow the action; `code` says why."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class PageState(enum.Enum):
    LOADING = "loading"
    RESIDENT = "resident"
    EVICTING = "evicting"


class _Entry:
    __slots__ = ("num_pins", "pages", "state")

    def __init__(self, pages: tuple[int, ...]) -> None:
        self.state = PageState.LOADING
        self.pages = pages
        self.num_pins = 0


class PageCache:
    """Absent → LOADING → RESIDENT → EVICTING → absent; LOADING → absent when the copy fails.

    The order of calls is reserve, commit (or release), then any number of pin/unpin pairs, then
    retire, release. Refusals of what the gateway may get wrong raise PageRefusal; a call out of
    order is our bug and raises RuntimeError.
    """

    def __init__(self, total_pages: int) -> None:
        if total_pages < 1:
            raise ValueError(f"a cache needs at least one page, not {total_pages}")
        self.total_pages = total_pages
        self._lock = threading.Lock()
        # All and only pages that belong to no model. Last freed is first taken: still in CPU cache.
        self._free = list(range(total_pages - 1, -1, -1))
        # All and only models that hold pages, in the order of their loads.
        self._entries: dict[str, _Entry] = {}

    def reserve(self, model: str, num_pages: int) -> tuple[int, ...]:
        """Take free pages for a model that is about to load; all of them or none."""
        with self._lock:
            entry = self._entries.get(model)
            if entry is not None:
                raise PageRefusal(Code.ALREADY_RESIDENT, f"{model} is {entry.state.value}")
            if num_pages > len(self._free):
                raise PageRefusal(
                    Code.PAGES_EXHAUSTED,
                    f"{model}: needs {num_pages} pages, {len(self._free)} of {self.total_pages} "
                    f"free, {self._pages_pinned()} pinned",
                )
            pages = tuple(self._free.pop() for _ in range(num_pages))
            self._entries[model] = _Entry(pages)
            return pages

    def commit(self, model: str) -> None:
        """The weights are in the reserved pages: the model is resident."""
        with self._lock:
            self._expect(model, PageState.LOADING).state = PageState.RESIDENT

    def pin(self, model: str) -> None:
        """Keep the model resident until `unpin`. Raises PageRefusal WEIGHTS_MISSING."""
        with self._lock:
            self._resident(model).num_pins += 1

    def unpin(self, model: str) -> None:
        with self._lock:
            entry = self._expect(model, PageState.RESIDENT)
            if entry.num_pins == 0:
                raise RuntimeError(f"{model} is not pinned")
            entry.num_pins -= 1

    def retire(self, model: str) -> None:
        """An eviction starts: nobody can pin the model any more, its pages are not free yet."""
        with self._lock:
            entry = self._resident(model)
            if entry.num_pins:
                raise PageRefusal(
                    Code.WEIGHTS_IN_USE, f"{model} is executing: pinned {entry.num_pins} times"
                )
            entry.state = PageState.EVICTING

    def release(self, model: str) -> None:
        """Give back the pages of a model that was retired, or whose load failed."""
        with self._lock:
            entry = self._entries.get(model)
            if entry is None or entry.state is PageState.RESIDENT:
                raise RuntimeError(f"{model} is neither loading nor evicting")
            del self._entries[model]
            self._free.extend(reversed(entry.pages))

    @property
    def pages_free(self) -> int:
        with self._lock:
            return len(self._free)

    def state_of(self, model: str) -> PageState | None:
        """None for a model that holds no pages."""
        with self._lock:
            entry = self._entries.get(model)
            return None if entry is None else entry.state

    def resident(self) -> tuple[str, ...]:
        """Models whose weights can be used now, the one loaded longest ago first."""
        with self._lock:
            return tuple(
                model for model, entry in self._entries.items() if entry.state is PageState.RESIDENT
            )

    def validate(self) -> None:
        """Every page is free or in exactly one model; only resident models are pinned."""
        with self._lock:
            held = [page for entry in self._entries.values() for page in entry.pages]
            if sorted(held + self._free) != list(range(self.total_pages)):
                raise RuntimeError(f"pages lost or doubled: held {held}, free {self._free}")
            for model, entry in self._entries.items():
                if entry.num_pins < 0 or (
                    entry.num_pins > 0 and entry.state is not PageState.RESIDENT
                ):
                    raise RuntimeError(f"{model} is {entry.state.value}, {entry.num_pins} pins")

    def _resident(self, model: str) -> _Entry:
        entry = self._entries.get(model)
        if entry is None:
            raise PageRefusal(Code.WEIGHTS_MISSING, f"{model} is not resident")
        if entry.state is not PageState.RESIDENT:
            raise PageRefusal(Code.WEIGHTS_MISSING, f"{model} is {entry.state.value}")
        return entry

    def _expect(self, model: str, state: PageState) -> _Entry:
        entry = self._entries.get(model)
        if entry is None or entry.state is not state:
            found = "absent" if entry is None else entry.state.value
            raise RuntimeError(f"{model} is {found}, not {state.value}")
        return entry

    def _pages_pinned(self) -> int:
        return sum(len(entry.pages) for entry in self._entries.values() if entry.num_pins)
