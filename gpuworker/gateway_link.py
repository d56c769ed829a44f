"""The worker's one connection: a DEALER socket towards the gateway, and a bell the lanes can ring.

It owns the socket and the waiting of the main thread. It never interprets a message and never
blocks on sending: without a connection there is nobody to send to, and it says so.
"""

import os
from collections.abc import Sequence

import zmq

from scheduler import wire

# At exit, how long undelivered reports may keep the process.
LINGER_MS = 500
# A gateway that restarts finds its workers back within about a second.
MAX_RECONNECT_INTERVAL_MS = 1_000

_SNDMORE_NOBLOCK = zmq.SNDMORE | zmq.NOBLOCK


class GatewayLink:
    """All but `ring` is for the thread that made it."""

    def __init__(self, address: str, context: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        self._owns_context = context is None
        self._context = context if context is not None else zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = LINGER_MS
        # Unlimited: the orders outstanding bound the reports, and none may be dropped.
        self._socket.sndhwm = 0
        self._socket.rcvhwm = 0
        # Without a connection a send fails instead of waiting in a queue, where a Hello or a report
        # would outlive the state of things it tells of.
        self._socket.immediate = 1
        self._socket.reconnect_ivl_max = MAX_RECONNECT_INTERVAL_MS
        self._socket.connect(address)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._bell, zmq.POLLIN)

    def ring(self) -> None:
        """Have the present or next `wait` return. Safe in any thread and in signal handlers."""
        if self._bell >= 0:  # a signal may come while, or after, we close
            os.eventfd_write(self._bell, 1)

    def wait(self, timeout_ms: int) -> list[wire.Buffer] | None:
        """The frames of one message; None when the bell rang or the time passed without one."""
        message: list[wire.Buffer] | None = None
        for ready, _ in self._poller.poll(timeout_ms):
            if ready is self._socket:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                message = [frame.buffer for frame in frames]
            else:
                os.eventfd_read(self._bell)
        return message

    def send(self, message: wire.ToGateway, frames: Sequence[wire.Buffer] = ()) -> bool:
        """False when there is no connection. Large frames are not copied and must not change."""
        last = len(frames) - 1
        try:
            self._socket.send(wire.encode(message), _SNDMORE_NOBLOCK if frames else zmq.NOBLOCK)
        except zmq.Again:
            return False
        # From here on ZeroMQ takes the whole message, or drops all of it with the connection.
        for index, frame in enumerate(frames):
            self._socket.send(
                frame,
                zmq.SNDMORE if index < last else 0,
                copy=len(frame) <= wire.SMALL_TENSOR_BYTES,
            )
        return True

    def close(self) -> None:
        self._socket.close()
        if self._owns_context:
            self._context.term()
        bell, self._bell = self._bell, -1
        os.close(bell)
