"""HTTP clients and what they ask: raw connections for many at once, and a gateway's own figures.

Raw, since a test must be able to send what no library would, and to open ten thousand connections
in a second.
"""

import asyncio
import json
import urllib.parse
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, NamedTuple

import httpx
import uvloop
from prometheus_client.parser import text_string_to_metric_families

HANG_S = 60.0  # a guard: what is bounded by it takes a fraction of a second

# What the story that is played has opened: `play` closes what it leaves, however it ends. A loop
# that is closed over open connections spoils the tests that come after.
_OPENED: ContextVar[list["Connection"]] = ContextVar("_OPENED")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def verdict(self) -> str:
        """The status, and for a no its reason: "200", "503 worker_lost"."""
        return "200" if self.status == 200 else f"{self.status} {self.json['reason']}"


class Connection:
    """One connection to a gateway; requests go out when told, answers are awaited."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, url: str) -> "Connection":
        connection = cls(*await asyncio.open_connection(*address_of(url)))
        _OPENED.get().append(connection)
        return connection

    def send(self, body: bytes, *, length: int | None = None, headers: str = "") -> None:
        """`length` is what the head announces, if not the truth."""
        self.writer.write(post_head(len(body) if length is None else length, headers) + body)

    async def answer(self) -> Answer:
        """Raises asyncio.IncompleteReadError where the server closes instead."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        return await self._reader.read()

    async def ask(self, body: bytes) -> Answer:
        self.send(body)
        return await self.answer()

    def close(self) -> None:
        self.writer.close()


def address_of(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def post_head(length: int, headers: str = "") -> bytes:
    return f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n".encode()


def play(story: Callable[[], Coroutine[Any, Any, None]], *, hang_s: float = HANG_S) -> None:
    """Runs a story to its end, and closes every connection that it opened."""

    async def played() -> None:
        opened: list[Connection] = []
        _OPENED.set(opened)
        try:
            await asyncio.wait_for(story(), hang_s)
        finally:
            for connection in opened:
                connection.close()
            closing = [connection.writer.wait_closed() for connection in opened]
            await asyncio.gather(*closing, return_exceptions=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(played())


async def ask_on_new_connection(url: str, body: bytes) -> Answer:
    connection = await Connection.open(url)
    try:
        return await connection.ask(body)
    finally:
        connection.close()


async def ask_all(url: str, bodies: list[bytes]) -> list[Answer]:
    """All at once, each on a connection of its own; answers in the order of the bodies."""
    return await asyncio.gather(*[ask_on_new_connection(url, body) for body in bodies])


def post(url: str, body: bytes, **headers: str) -> Answer:
    """One request, without an event loop."""
    response = httpx.post(f"{url}/infer", content=body, headers=headers, timeout=HANG_S)
    return Answer(response.status_code, dict(response.headers), response.content)


def infer_body(
    model: str, inputs: list[dict[str, Any]], *, slo_ms: object = 60_000, **members: object
) -> bytes:
    return json.dumps({"model": model, "slo_ms": slo_ms, "inputs": inputs, **members}).encode()


def bytes_body(
    model: str, data: bytes = b"\0", *, slo_ms: object = 60_000, **more: object
) -> bytes:
    """A request of one row for an emulated model, whose input is any bytes."""
    tensor = {"name": "x", "shape": [1, len(data)], "datatype": "UINT8", "data": [*data]}
    return infer_body(model, [tensor], slo_ms=slo_ms, **more)


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a gateway's samples `remontoir_<name>` that have these labels."""
    page = httpx.get(f"{url}/metrics", timeout=HANG_S).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"remontoir_{name}" and labels.items() <= sample.labels.items()
    )


def state_on(url: str, model: str, worker: str) -> str | None:
    """Where a worker has a model's weights; None if the worker has not joined."""
    entry = httpx.get(f"{url}/models/{model}", timeout=HANG_S).json()
    states = [d["state"] for d in entry["devices"] if d["worker"].startswith(f"{worker}#")]
    return states[0] if states else None


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz", timeout=HANG_S).status_code == 200
