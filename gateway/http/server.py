"""The listening side of HTTP: uvicorn, with our protocol, TLS and CORS as they are set.

Owns how uvicorn is set up, and nothing of what is answered.
"""

import asyncio
import functools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from gateway.app import App
from gateway.command import host_process
from gateway.config import GatewayConfig
from gateway.http.cors import Cors
from gateway.http.limited_protocol import ConnectionLimits
from gateway.http.protocol import HttpProtocol
from gateway.http.tls import Certificate

FLUSH_GRACE_S = 5  # for answers that clients are slow to read
TLS_SHUTDOWN_S = 5.0  # in which a client that is closed on may say that it heard


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: it would stop listening before we have drained."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which has no limit of time for the TLS handshake but asyncio's minute."""
        await self.lifespan.startup()
        config = self.config
        protocol: Any = config.http_protocol_class
        connection = functools.partial(
            protocol,
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        more: dict[str, Any] = {}
        if config.ssl is not None:
            more["ssl_handshake_timeout"] = protocol.limits.head_timeout_s
            more["ssl_shutdown_timeout"] = TLS_SHUTDOWN_S
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                connection, sock=listener, ssl=config.ssl, backlog=config.backlog, **more
            )
            for listener in sockets or []
        ]
        self.started = True


def http_server(
    app: App, config: GatewayConfig, *, certificate: Certificate | None, cors: Cors | None
) -> HttpServer:
    """For `serve(sockets=...)`."""
    protocol = HttpProtocol.serving(
        app.infer,
        ConnectionLimits(
            max_connections=host_process.max_connections(config),
            max_head_bytes=config.max_header_kb * 1024,
            head_timeout_s=config.header_timeout_ms / 1000,
        ),
        cors,
    )
    return HttpServer(
        uvicorn.Config(
            app if cors is None else cors.around(app),  # type: ignore[arg-type]  # ASGI, as both are
            http=protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=config.idle_timeout_s,  # type: ignore[arg-type]  # or a float
            timeout_graceful_shutdown=FLUSH_GRACE_S,
            backlog=host_process.BACKLOG,
            ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
        )
    )
