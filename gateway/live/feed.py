"""LiveFeed: one sampler for all open pages, and for each a short queue.

It owns who is listening. While nobody is, nothing is sampled and nobody watches the dispatcher. A
reader that is slow loses frames and then gets a snapshot, so it costs memory for QUEUE_FRAMES
frames, which are the same bytes for all. It must never wait for a reader.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from gateway.errors import RequestError
from gateway.lifecycle import Lifecycle
from gateway.live.frames import LiveSampler
from gateway.live.messages import LiveFrame, LiveSnapshot
from gateway.live.watch import LiveWatch
from gateway.views import Observed

logger = logging.getLogger(__name__)

# Kept for a reader that is slow: two seconds of a page whose machine is busy.
QUEUE_FRAMES = 4
RETRY_MS = 2000  # before a browser connects again

Sleep = Callable[[float], Awaitable[object]]

_encoder = msgspec.json.Encoder()


class Page:
    """One reader."""

    __slots__ = ("frames", "is_due", "lost", "wants_snapshot")

    def __init__(self) -> None:
        # All and only frames that it was not given and that fit what it has.
        self.frames: deque[bytes] = deque()
        self.wants_snapshot = True  # what it has, if anything, is of no more use
        self.is_due = asyncio.Event()  # there is something to do for it
        self.is_due.set()
        self.lost = 0  # frames, since it came

    def offer(self, frame: bytes) -> None:
        """Never waits: what is too much is dropped."""
        if self.wants_snapshot:
            self.lost += 1
        elif len(self.frames) >= QUEUE_FRAMES:
            self.start_over(lost=len(self.frames) + 1)
        else:
            self.frames.append(frame)
        self.is_due.set()

    def start_over(self, *, lost: int = 0) -> None:
        self.frames.clear()
        self.lost += lost
        self.wants_snapshot = True


class LiveFeed:
    """`max_pages` listen at once; 0 turns the page off."""

    def __init__(
        self,
        sampler: LiveSampler,
        watch: LiveWatch,
        observed: Observed,
        lifecycle: Lifecycle,
        *,
        interval_ms: float,
        max_pages: int,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._sampler = sampler
        self._watch = watch
        self._observed = observed
        self._lifecycle = lifecycle
        self._interval_s = interval_ms / 1000
        self.max_pages = max_pages
        self._sleep = sleep
        self._pages: set[Page] = set()
        self._sampling: asyncio.Task[None] | None = None  # there while somebody listens
        self._snapshot: tuple[int, int, bytes] = (0, 0, b"")  # epoch, frames made, what was told
        self._making = asyncio.Lock()  # a snapshot is made once for all who want it
        self.num_frames = 0  # made since the gateway started
        self._end_reason = ""

    @property
    def num_pages(self) -> int:
        return len(self._pages)

    def check(self) -> None:
        """Raises RequestError where nobody may listen, or too many do."""
        if self.max_pages == 0:
            raise RequestError("not_found", "the live page is turned off (setting ui_pages is 0)")
        if self._lifecycle.refusal_reason == "draining":
            raise RequestError("draining", "the gateway stops")
        if len(self._pages) >= self.max_pages:
            raise RequestError(
                "overloaded",
                f"{len(self._pages)} live pages are open, which is the limit (setting ui_pages)",
            )

    def open(self) -> Page:
        """From now on there are frames for it; `close` must follow."""
        page = Page()
        self._pages.add(page)
        if self._sampling is None:
            self._watch.reset()
            self._observed.add_observer(self._watch)
            self._sampler.begin()
            self._sampling = asyncio.get_running_loop().create_task(self._sample())
        return page

    def close(self, page: Page) -> None:
        """It does not listen any more."""
        self._pages.discard(page)
        if not self._pages and self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
            self._observed.remove_observer(self._watch)
            self._watch.reset()

    async def listen(self, may_go_on: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Server-sent events, until the reader goes, may not read on, or the gateway stops."""
        if len(self._pages) >= self.max_pages:  # others came since `check`
            yield _event("end", {"reason": "overloaded"})
            return
        page = self.open()
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            while page in self._pages:
                await page.is_due.wait()
                if not may_go_on():
                    yield _event("end", {"reason": "forbidden"})
                    return
                if page not in self._pages:
                    break
                if page.wants_snapshot:
                    page.wants_snapshot = False
                    yield await self._make_snapshot()
                elif page.frames:
                    yield page.frames.popleft()
                else:
                    page.is_due.clear()
            yield _event("end", {"reason": self._end_reason})
        finally:
            self.close(page)

    async def _make_snapshot(self) -> bytes:
        async with self._making:
            epoch, num_frames, told = self._snapshot
            if (epoch, num_frames) != (self._sampler.epoch, self.num_frames):
                epoch, num_frames = self._sampler.epoch, self.num_frames
                told = _event("snapshot", await self._sampler.snapshot(phase=self._lifecycle.phase))
                self._snapshot = (epoch, num_frames, told)
            return told

    async def _sample(self) -> None:
        try:
            while self._lifecycle.refusal_reason != "draining":
                await self._sleep(self._interval_s)
                if self._sampler.renew():
                    for page in self._pages:
                        page.start_over(lost=len(page.frames))
                frame = _event("frame", await self._sampler.frame())
                self.num_frames += 1
                for page in self._pages:
                    page.offer(frame)
        except Exception:  # ours; the gateway serves on, and readers are told by the end
            logger.exception("the live page's sampler failed")
            self._end("internal_error")
        else:
            self._end("draining")

    def _end(self, reason: str) -> None:
        """Whoever listens is told so."""
        self._end_reason = reason
        ended, self._pages = self._pages, set()
        self._sampling = None
        self._observed.remove_observer(self._watch)
        self._watch.reset()
        for page in ended:
            page.is_due.set()


def _event(name: str, data: LiveSnapshot | LiveFrame | dict[str, str]) -> bytes:
    """JSON has no line ends, so one data line is enough."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encoder.encode(data))
