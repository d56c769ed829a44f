"""How the workers of a machine are, over HTTP: for a kubelet's probes, and whoever else asks.

Owns the board, a slot for each worker process in memory that they share, and the server that reads
it in the process that was started first. A worker only ever writes two numbers, so that it can say
how it is while its main thread compiles, and cannot while that thread stands still.

    /startz   every worker has its models and its device ready
    /livez    the main thread of every worker turns
    /readyz   every worker has joined a gateway
"""

import contextlib
import json
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gpuworker.config import ConfigError

FLAG = "--health-port"
SLOT_WORDS = 2  # phase, time of the last beat: each is written whole
# A beat comes ten times a second; a worker that is started anew after a crash is away for seven.
STANDS_STILL_NS = 15_000_000_000
REQUEST_TIMEOUT_S = 5.0  # of who opens a connection and says nothing


class Phase(IntEnum):
    """STARTING lasts until models and device are ready; ENDED is a worker that will not come back
    by itself, and has said why.
    """

    STARTING = 0
    WAITING = 1
    JOINED = 2
    ENDED = 3


class Board:
    """`file` is a memfd that processes inherit. All of them may be at it at the same time."""

    def __init__(self, file: int, num_slots: int) -> None:
        self.file = file
        self.num_slots = num_slots
        size = 8 * SLOT_WORDS * num_slots
        os.ftruncate(file, size)
        self._words = memoryview(mmap.mmap(file, size)).cast("Q")

    def write(self, slot: int, phase: Phase, now_ns: int) -> None:
        self._words[SLOT_WORDS * slot + 1] = now_ns
        self._words[SLOT_WORDS * slot] = phase

    def read(self, slot: int) -> tuple[Phase, int]:
        """Phase, and when it last said so, by the monotonic clock that all processes have."""
        return Phase(self._words[SLOT_WORDS * slot]), self._words[SLOT_WORDS * slot + 1]


class Pulse:
    """One worker's slot."""

    def __init__(self, board: Board, slot: int, clock: Callable[[], int]) -> None:
        self._board = board
        self._slot = slot
        self._clock = clock
        board.write(slot, Phase.STARTING, clock())

    def beat(self, is_joined: bool) -> None:
        """The main thread's, whenever it turns."""
        self._board.write(self._slot, Phase.JOINED if is_joined else Phase.WAITING, self._clock())

    def end(self) -> None:
        self._board.write(self._slot, Phase.ENDED, self._clock())


def new_board(num_slots: int) -> Board:
    return Board(os.memfd_create("remontoir-health", os.MFD_CLOEXEC), num_slots)


def pulse(inherited: str | None, port: int | None) -> Pulse | None:
    """Where a worker says how it is: on its parent's board (`FD:SLOT:SLOTS`), on its own, which is
    served at `port`, or nowhere. Raises ConfigError.
    """
    if inherited is not None:
        file, slot, num_slots = map(int, inherited.split(":"))
        return Pulse(Board(file, num_slots), slot, time.monotonic_ns)
    return None if port is None else Pulse(serve(1, port), 0, time.monotonic_ns)


def problems(board: Board, path: str, now_ns: int) -> list[str] | None:
    """What is wrong with which worker, none if nothing is; None where there is no such path."""
    found = []
    for slot in range(board.num_slots):
        phase, beat_ns = board.read(slot)
        silent_s = (now_ns - beat_ns) / 1e9
        if path == "/startz":
            is_well = phase is not Phase.STARTING
        elif path == "/livez":
            # While it starts, it compiles: how long that may take is the startup probe's affair.
            is_well = phase in (Phase.STARTING, Phase.ENDED) or now_ns - beat_ns < STANDS_STILL_NS
        elif path == "/readyz":
            is_well = phase is Phase.JOINED and now_ns - beat_ns < STANDS_STILL_NS
        else:
            return None
        if not is_well:
            found.append(f"worker {slot}: {phase.name.lower()}, last heard {silent_s:.1f} s ago")
    return found


def serve(num_slots: int, port: int) -> Board:
    """A new board, which is answered for until the process ends. Raises ConfigError."""
    board = new_board(num_slots)
    listen(board, port, time.monotonic_ns)
    return board


def listen(board: Board, port: int, clock: Callable[[], int]) -> int:
    """Answers in a thread of its own; the port. Raises ConfigError."""

    class Probe(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            found = problems(board, self.path, clock())
            status = 404 if found is None else 503 if found else 200
            body = json.dumps({"problems": found}).encode() + b"\n"
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # it has gone
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Probes come every few seconds: nothing that anybody reads."""

    try:
        server = _server(port, Probe)
    except OSError as error:
        raise ConfigError(f"{FLAG} {port}: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return int(server.server_address[1])


class _Server(ThreadingHTTPServer):
    """Of IPv4 alone."""

    daemon_threads = True


class _DualServer(_Server):
    """Of both versions of IP."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _server(port: int, probe: type[BaseHTTPRequestHandler]) -> _Server:
    """Raises OSError."""
    with contextlib.suppress(OSError):  # a machine without IPv6, or the port is taken
        return _DualServer(("::", port), probe)
    return _Server(("0.0.0.0", port), probe)
