"""The least an ASGI server can do: the floor of one core under uvicorn.

`/echo` sends the body back as it came; `/json` decodes JSON and encodes it again, which is what any
JSON service must at least do; `/length` reads the body and answers with its length.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

Scope = dict[str, Any]
Message = dict[str, Any]


async def app(
    scope: Scope,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    if scope["type"] != "http":
        return  # uvicorn takes a lifespan that is not spoken for as "not supported"
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts = [body]
        while message.get("more_body"):
            message = await receive()
            parts.append(message.get("body", b""))
        body = b"".join(parts)
    if scope["path"] == "/json":
        body = msgspec.json.encode(msgspec.json.decode(body))
    elif scope["path"] == "/length":
        body = b"%d" % len(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
