"""The least a server can do: it answers every request with the same few bytes, and reads nothing.

What the driver's ceiling is measured against: `python -m loadtest.driver.sink PORT`.
"""

import asyncio
import sys
from typing import cast

import httptools
import uvloop

_REPLY = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"outputs": []}'


class _Sink(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by behaviour, not by class
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_complete(self) -> None:
        self._transport.write(_REPLY)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Sink, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
