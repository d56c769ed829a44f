"""A listening app with a puppet for a dispatcher, and clients that write bytes."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
import uvloop

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.http.cors import Cors
from gateway.http.limited_protocol import ConnectionLimits
from gateway.http.protocol import HttpProtocol
from gateway.http.tls import Certificate
from gateway.replicas.forwarding import Forwarding
from gateway.tenants.tenants_file import Tenants
from tests.gateway.http_doubles import Bench, Submitted

PATIENCE_S = 20.0  # for a step that takes microseconds: only a hang takes that long


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(story(), PATIENCE_S))


class Gateway:
    """One listening app; `submitted` and `cancelled` are awaited."""

    def __init__(
        self,
        bench: Bench,
        config: GatewayConfig,
        forwarding: Callable[[Bench], Forwarding] | None = None,
    ) -> None:
        self.bench = bench
        self.submitted: asyncio.Queue[Submitted] = asyncio.Queue()
        self.cancelled: asyncio.Queue[int] = asyncio.Queue()
        dispatcher = bench.dispatcher
        puppet_submit, puppet_cancel = dispatcher.submit, dispatcher.cancel

        def submit(*given: Any) -> None:
            puppet_submit(*given)
            self.submitted.put_nowait(dispatcher.submitted[-1])

        def cancel(request_id: int) -> None:
            puppet_cancel(request_id)
            self.cancelled.put_nowait(request_id)

        dispatcher.submit = submit  # type: ignore[method-assign]
        dispatcher.cancel = cancel  # type: ignore[method-assign]
        # over a real server timers are the loop's
        self.app = create_app(
            config,
            dispatcher,
            bench.scheduler,
            bench.catalog,
            metrics=bench.metrics,
            clock=bench.clock,
            lifecycle=bench.lifecycle,
            keyring=bench.keyring,
            device_time=bench.device_time,
            forwarding=None if forwarding is None else forwarding(bench),
        )
        self.port = 0
        self.server: uvicorn.Server
        self.connections: list[Connection] = []

    async def connect(self, trust: ssl.SSLContext | None = None) -> "Connection":
        """With `trust`, over TLS."""
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port, ssl=trust))
        self.connections.append(connection)
        return connection


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(
        self,
        body: bytes = b"",
        *,
        length: int | None = None,
        headers: str = "",
        version: str = "1.1",
        path: str = "/infer",
    ) -> None:
        num_bytes = len(body) if length is None else length
        head = (
            f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Length: {num_bytes}\r\n{headers}\r\n"
        )
        self.writer.write(head.encode() + body)

    async def line(self) -> bytes:
        return await self._reader.readline()

    async def answer(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """Of one to HEAD nothing is read after the head."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        num_bytes = int(headers["content-length"]) if has_body else 0
        body = await self._reader.readexactly(num_bytes)
        return int(head[0].split()[1]), headers, body

    async def is_closed(self) -> bool:
        try:
            return await self._reader.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def listening(
    is_direct: bool,
    *specs: Any,
    config: GatewayConfig | None = None,
    keep_alive_s: int = 5,
    tenants: Tenants | None = None,
    limits: ConnectionLimits | None = None,
    cors: Cors | None = None,
    certificate: Certificate | None = None,
    forwarding: Callable[[Bench], Forwarding] | None = None,
) -> AsyncIterator[Gateway]:
    """With uvicorn's own protocol all requests come through ASGI."""
    bench = Bench(*specs, tenants=tenants)
    gateway = Gateway(bench, config or GatewayConfig(), forwarding)
    http = HttpProtocol.serving(gateway.app.infer, limits, cors) if is_direct else "httptools"
    server = uvicorn.Server(
        uvicorn.Config(
            gateway.app if cors is None else cors.around(gateway.app),  # type: ignore[arg-type]
            host="127.0.0.1",
            port=0,
            http=http,
            timeout_keep_alive=keep_alive_s,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
        )
    )
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    gateway.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        gateway.server = server
        yield gateway
    finally:
        for connection in gateway.connections:
            connection.close()
        await server.shutdown()


def body_of(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode()
