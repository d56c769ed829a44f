"""The body of one inference request while it comes in pieces, and the rest of a refused one.

It owns the counting of what came and of what is still to come. It must never parse or judge.
"""

import asyncio
import ctypes
import socket

from gateway.http.request_body import BodyMemory

_libc = ctypes.CDLL(None)


class Upload:
    """Pieces in the order of their coming. Their bytes are counted in `memory` until `release`.

    `num_expected` is what Content-Length announced, None where nothing did (chunked).
    """

    __slots__ = (
        "_memory",
        "arrival_ns",
        "chunks",
        "is_judged",
        "num_bytes",
        "num_expected",
        "num_seen",
    )

    def __init__(self, memory: BodyMemory, *, arrival_ns: int, num_expected: int | None) -> None:
        self._memory = memory
        self.arrival_ns = arrival_ns
        self.num_expected = num_expected
        self.chunks: list[bytes] = []
        self.num_bytes = 0
        self.is_judged = False  # whether its first piece has been looked at
        self.num_seen = 0  # bytes there were when `has_progressed` was last asked

    def add(self, chunk: bytes) -> None:
        """Raises RequestError(overloaded) if the gateway holds too much already."""
        self._memory.take(len(chunk))
        self.num_bytes += len(chunk)
        self.chunks.append(chunk)

    def has_progressed(self) -> bool:
        """Whether anything came since the last time this was asked."""
        has = self.num_bytes > self.num_seen
        self.num_seen = self.num_bytes
        return has

    def release(self) -> list[bytes]:
        """The pieces, which are the caller's to count from now on."""
        self._memory.give_back(self.num_bytes)
        chunks, self.chunks, self.num_bytes = self.chunks, [], 0
        return chunks


def announced_bytes(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Content-Length, or None where there is none that says a number."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 19 else None
    return None


def set_low_water(transport: asyncio.BaseTransport, num_bytes: int) -> None:
    """SO_RCVLOWAT: the kernel says that there are data once there are so many, or no more come."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return  # closed meanwhile, or not a socket
    value = ctypes.c_int(num_bytes)  # uvloop's socket objects have no setsockopt
    _libc.setsockopt(sock.fileno(), socket.SOL_SOCKET, socket.SO_RCVLOWAT, ctypes.byref(value), 4)
