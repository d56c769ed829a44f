"""The worker's one connection: a DEALER socket towards the gateway, and a bell the lanes can ring.

It owns the socket, its keys, and the waiting of the main thread. It never interprets a message and
never blocks on sending: without a connection there is nobody to send to, and it says so. Nor does
it decide when to connect anew, which ZeroMQ does only where a connection breaks: not after a
handshake that was refused, nor when a peer over TCP vanished without a word.
"""

import os
import threading
from collections.abc import Sequence

import zmq
from zmq.utils.monitor import parse_monitor_message

from gpuworker.curve_keys import CurveKeys
from scheduler import wire

# At exit, how long undelivered reports may keep the process.
LINGER_MS = 500
# A gateway that restarts finds its workers back within a second, also where a packet is lost: they
# try after so long, and up to as much again at random, so that they do not come all at once.
RECONNECT_INTERVAL_MS = 100
# Of one try: TCP's own next one comes after 1, 3, 7 s. No two places on Earth are as far apart, and
# who needs as long for its pongs is lost to the gateway soon.
CONNECT_TIMEOUT_MS = 400

_FAILURES = (
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    | int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    | int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
)

_BROKEN, _CONNECTED = int(zmq.EVENT_DISCONNECTED), int(zmq.EVENT_HANDSHAKE_SUCCEEDED)

_SNDMORE_NOBLOCK = zmq.SNDMORE | zmq.NOBLOCK


class GatewayLink:
    """All but `ring` is for the thread that made it."""

    def __init__(
        self,
        address: str,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        keys: CurveKeys | None = None,
    ) -> None:
        self._address = address
        self._keys = keys
        self._owns_context = context is None
        self._refusal: str | None = None
        self._is_broken = self._is_new = False
        self._context = context if context is not None else zmq.Context()
        # Reentrant, since a signal handler may ring while its own thread closes.
        self._bell_lock = threading.RLock()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._bell, zmq.POLLIN)
        self._open()

    def _open(self) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = LINGER_MS
        # Unlimited: the orders outstanding bound the reports, and none may be dropped.
        self._socket.sndhwm = 0
        self._socket.rcvhwm = 0
        # Without a connection a send fails instead of waiting in a queue, where a Hello or a report
        # would outlive the state of things it tells of.
        self._socket.immediate = 1
        self._socket.reconnect_ivl = RECONNECT_INTERVAL_MS
        self._socket.connect_timeout = CONNECT_TIMEOUT_MS
        if self._keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, self._keys.gateway_public)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        self._changes = self._socket.get_monitor_socket(_FAILURES | _BROKEN | _CONNECTED)
        self._socket.connect(self._address)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._changes, zmq.POLLIN)

    def reconnect(self) -> None:
        """A new connection at once. What was not sent yet is dropped: its session is over."""
        self._close_socket(linger_ms=0)
        self._open()

    def refusal(self) -> str | None:
        """Why the gateway would not have us, if that showed since this was last called; there may
        then be no connection any more until `reconnect`. It may show first that it broke off, and
        why at the next try.
        """
        self._note_changes()
        reason, self._refusal = self._refusal, None
        return reason

    def has_broken(self) -> bool:
        """Whether a connection broke since this was last asked."""
        is_broken, self._is_broken = self._is_broken, False
        return is_broken

    def is_new(self) -> bool:
        """Whether there is another connection than when this was last asked."""
        is_new, self._is_new = self._is_new, False
        return is_new

    def _note_changes(self) -> None:
        while True:
            try:
                event = parse_monitor_message(self._changes.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            number = int(event["event"])
            if number == _BROKEN:
                self._is_broken = True
            elif number == _CONNECTED:
                self._is_new = True
            else:
                self._refusal = self._reason_of(number, int(event["value"]))

    def _reason_of(self, event: int, value: int) -> str:
        is_mismatch = value == int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
        if event == int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL) and is_mismatch:
            if self._keys is None:
                return "it wants CURVE keys: give this worker's with --curve-keys"
            return "it has no CURVE keys, and this worker has: give it some with --curve-keys"
        if event == int(zmq.EVENT_HANDSHAKE_FAILED_AUTH) and self._keys is not None:
            return (
                f"it does not know this worker's public key {self._keys.public.decode()}:"
                " it has to be among the workers of its --curve-keys"
            )
        # A side that does not speak as the other closes, mostly before the other has read why.
        if self._keys is not None:
            return (
                "it broke off the handshake, so it has no CURVE keys, or not the public key"
                f" {self._keys.gateway_public.decode()}, or is no gateway at all"
            )
        return (
            "it broke off the handshake, so it wants CURVE keys or is no gateway at all:"
            " give this worker's with --curve-keys"
        )

    def ring(self) -> None:
        """Have the present or next `wait` return. Safe in any thread and in signal handlers."""
        with self._bell_lock:
            if self._bell >= 0:  # a signal may come while, or after, we close
                os.eventfd_write(self._bell, 1)

    def wait(self, timeout_ms: int) -> list[wire.Buffer] | None:
        """The frames of one message; None when the bell rang, the connection changed, or the time
        passed without one.
        """
        message: list[wire.Buffer] | None = None
        for ready, _ in self._poller.poll(timeout_ms):
            if ready is self._socket:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                message = [frame.buffer for frame in frames]
            elif ready is self._changes:
                self._note_changes()
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
        self._close_socket(linger_ms=LINGER_MS)
        if self._owns_context:
            self._context.term()
        with self._bell_lock:
            bell, self._bell = self._bell, -1
            os.close(bell)

    def _close_socket(self, *, linger_ms: int) -> None:
        self._poller.unregister(self._socket)
        self._poller.unregister(self._changes)
        self._socket.disable_monitor()
        self._changes.close()
        self._socket.close(linger_ms)
