"""`/ui`: the live page, what it is made of, and the events that feed it.

It owns which files are served, and that nothing but ours is ever loaded by them. It must never read
a path that a client wrote: files are looked up among those that are there.
"""

from importlib import resources
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from gateway.errors import RequestError
from gateway.live.feed import LiveFeed
from gateway.tenants.guard import Guard

PAGE_PATH: Final = "/ui"
EVENTS_PATH: Final = "/ui/events"
FILES_PATH: Final = "/ui/files"

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # A page of an older version would not fit, and all of it is small.
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class _File:
    def __init__(self, name: str, content: bytes) -> None:
        self.content = content
        self.media_type = _MEDIA_TYPES[name[name.rindex(".") :]]


def add_live_routes(app: FastAPI, feed: LiveFeed, guard: Guard | None) -> None:
    """`guard` is None where nobody needs a key."""
    files = {
        entry.name: _File(entry.name, entry.read_bytes())
        for entry in (resources.files("gateway") / "ui").iterdir()
        if entry.name.endswith(tuple(_MEDIA_TYPES))
    }

    def answer(name: str) -> Response:
        if feed.max_pages == 0:
            raise RequestError("not_found", "the live page is turned off (setting ui_pages is 0)")
        file = files.get(name)
        if file is None:
            raise RequestError("not_found", f"the live page has no file {name[:200]!r}")
        return Response(file.content, media_type=file.media_type, headers=_HEADERS)

    @app.get(PAGE_PATH)
    async def ui() -> Response:
        return answer("index.html")

    @app.get(FILES_PATH + "/{name}")
    async def ui_file(name: str) -> Response:
        return answer(name)

    @app.get(EVENTS_PATH)
    async def ui_events(request: Request) -> Response:
        feed.check()

        def may_go_on() -> bool:
            """Keys are withdrawn while pages are open."""
            return guard is None or guard.still_admits(request.scope)

        return StreamingResponse(
            feed.listen(may_go_on),
            media_type="text/event-stream",
            # nginx would collect events until its buffer is full
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
