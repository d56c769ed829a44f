"""One listening gateway among replicas that are puppets: sockets that a test answers by hand."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gateway.replicas.forwarding import Forwarding
from gateway.replicas.peer import Peer
from gateway.tenants.tenants_file import Tenants
from scheduler.shards import Replica, Shards
from tests.gateway.http_doubles import Bench, Clock, PuppetDevice, Timers, model_spec
from tests.gateway.listening import PATIENCE_S, Connection, Gateway, listening

OWN = "here"


class Asked:
    """One request as a puppet received it, and the way to answer it."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.decode().split("\r\n")
        self.line = first
        self.headers = dict(line.split(": ", 1) for line in lines if line)
        self.body = body
        self._writer = writer

    def answer(self, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    def answer_in_chunks(self, *chunks: bytes) -> None:
        self._writer.write(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
        for chunk in (*chunks, b""):
            self._writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def hang_up(self) -> None:
        self._writer.close()


class PuppetReplica:
    """Listens; what it is asked is awaited from `asked`, hang-ups from `gone`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: asyncio.Queue[Asked] = asyncio.Queue()
        self.gone: asyncio.Queue[None] = asyncio.Queue()
        self.num_connections = 0
        self._server: asyncio.Server
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self, tls: ssl.SSLContext | None = None) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                lines = head.lower().split(b"\r\n")
                lengths = [x for x in lines if x.startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)
                self.asked.put_nowait(Asked(head, body, writer))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            self.gone.put_nowait(None)
            writer.close()


class Stage:
    """`model_of(names...)` is a model that these replicas hold, in this order."""

    def __init__(self, shards: Shards, puppets: dict[str, PuppetReplica]) -> None:
        self.shards = shards
        self.puppets = puppets
        self.timers = Timers()  # of requests
        self.watches: dict[str, Timers] = {}  # of peers
        self.clock: Clock
        self.gateway: Gateway
        self.forwarding: Forwarding

    def model_of(self, *holders: str) -> str:
        return model_of(self.shards, *holders)

    def make_forwarding(self, bench: Bench) -> Forwarding:
        self.clock = bench.clock
        bench.scheduler.devices["w"] = PuppetDevice({})
        self.forwarding = Forwarding(
            self.shards,
            {
                name: Peer(
                    replica,
                    clock=bench.clock,
                    call_later=self.watches.setdefault(name, Timers()),
                )
                for name, replica in self.shards.replicas.items()
                if name != OWN
            },
            clock=bench.clock,
            call_later=self.timers,
            can_serve=lambda: bool(bench.scheduler.devices),
        )
        return self.forwarding

    async def send(self, model: str, headers: str = "", **more: Any) -> Connection:
        connection = await self.gateway.connect()
        connection.send(body_of(model, **more), headers=headers)
        return connection

    def expire(self) -> None:
        """The SLO of the one request that is on its way has passed."""
        (timer,) = self.timers.armed
        self.timers.armed.clear()
        timer.fire()

    def look(self, name: str) -> None:
        """Half a second has passed for who watches this peer."""
        (timer,) = self.watches[name].armed
        self.watches[name].armed.clear()
        timer.fire()

    def has_heard(self, name: str) -> bool:
        return self.forwarding.peers[name].heard_ns == self.clock.now

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():  # noqa: ASYNC110 - of an object that tells nobody
                await asyncio.sleep(0)


def model_of(shards: Shards, *holders: str) -> str:
    names = (f"m{number}" for number in range(10_000))
    return next(name for name in names if shards.holders(name) == holders)


def body_of(model: str, **more: Any) -> bytes:
    x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    return json.dumps({"model": model, "inputs": [x], **more}).encode()


@asynccontextmanager
async def replicas(
    *names: str,
    copies: int = 2,
    is_direct: bool = True,
    tls: ssl.SSLContext | None = None,
    tenants: Tenants | None = None,
    serves: Callable[[Shards], list[str]] = lambda shards: [],
) -> AsyncIterator[Stage]:
    """`names` are puppets beside OWN, which listens and `serves` models of these names."""
    puppets = {name: PuppetReplica(name) for name in names}
    host = "http://127.0.0.1" if tls is None else "https://localhost"
    urls = {name: f"{host}:{await puppet.open(tls)}" for name, puppet in puppets.items()}
    told = [Replica(OWN, "http://127.0.0.1:1"), *(Replica(n, url) for n, url in urls.items())]
    stage = Stage(Shards(told, OWN, copies=copies), puppets)
    specs = [model_spec(name) for name in serves(stage.shards)]
    async with listening(
        is_direct, *specs, tenants=tenants, forwarding=stage.make_forwarding
    ) as gateway:
        stage.gateway = gateway
        try:
            yield stage
        finally:
            stage.forwarding.close()
            for puppet in puppets.values():
                await puppet.close()
