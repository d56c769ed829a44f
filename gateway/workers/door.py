"""Who may open a connection to the workers' port: those whose public key the gateway has.

Owns the handler that ZeroMQ asks (ZAP, RFC 27) and counts who was turned away. It runs on the
gateway's event loop, where zmq.auth's would want a thread, or a poller of its own. It must never
let a stranger fill the log, and never see a message: what passes the door is WorkerLink's.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from gateway.workers.curve_keys import GatewayKeys
from scheduler.spec import SECOND_NS

logger = logging.getLogger(__name__)

ZAP_ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"workers"
# One line for a worker that keeps trying, or a port scan: a person reads it, metrics count.
KEY_TAKEN = "its key is not among those of --curve-keys any more"
LOG_INTERVAL_NS = 60 * SECOND_NS
# A stranger holds a socket for so long without having proven itself; a round trip is enough.
HANDSHAKE_MS = 5_000
# All and only reasons, with what to say of them.
REASONS = {
    "unknown_key": "its key is not among those of --curve-keys",
    "no_curve": "it does not speak CURVE: a worker without --curve-keys?",
    "wrong_gateway_key": "it has the public key of another gateway",
    "broken_handshake": "it broke off, or spoke no ZeroMQ",
}
_BY_ERROR = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "no_curve",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "wrong_gateway_key",
}
_FAILURES = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL) | int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_NUM_FRAMES = 7  # of a question, before the credentials; the first is the asking socket's own


class WorkerDoor:
    """Made before the socket binds: what ZeroMQ cannot ask, it would let in."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: GatewayKeys,
        *,
        clock: Callable[[], int],
    ) -> None:
        self.keys = keys
        self._clock = clock
        # Identities of those who said Hello, and the keys that let them in.
        self._key_by_identity: dict[bytes, bytes] = {}
        self.refused = Counter(dict.fromkeys(REASONS, 0))  # connections turned away
        self._num_unlogged = 0
        self._next_log_ns = clock()
        self._questions = context.socket(zmq.ROUTER)
        self._questions.linger = 0
        self._questions.bind(ZAP_ADDRESS)
        self._failures: zmq.Socket[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """For the endpoints that the socket binds from now on."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)

    def watch(self, socket: zmq.Socket[bytes]) -> None:
        """Counts handshakes that fail before anybody is asked."""
        self._failures = socket.get_monitor_socket(_FAILURES)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self._questions.fileno(), self.answer)
        loop.call_soon(self.answer)  # the descriptor signals an edge, which may have been
        if self._failures is not None:
            loop.add_reader(self._failures.fileno(), self.note_failures)
            loop.call_soon(self.note_failures)

    def lets_join(self, identity: bytes, hello: zmq.Frame) -> bool:
        """False for who was let in by a key that is not among ours any more."""
        try:
            key = str(hello.get("User-Id")).encode("latin-1")
        except zmq.ZMQError:
            return True  # through an endpoint that asks for none
        if key not in self.keys.workers:
            return False
        self._key_by_identity[identity] = key
        return True

    def admit_only(self, keys: GatewayKeys) -> list[bytes]:
        """Other workers' keys from now on; returns the identities whose key was taken away."""
        self.keys = keys
        known = self._key_by_identity.items()
        return [identity for identity, key in known if key not in keys.workers]

    def forget_others(self, members: Container[bytes]) -> None:
        """Identities that are not among the members will not come again."""
        for identity in [i for i in self._key_by_identity if i not in members]:
            del self._key_by_identity[identity]

    def answer(self) -> None:
        """Answers ZeroMQ's questions until there are none."""
        while not self._questions.closed:
            try:
                frames = self._questions.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            head, credentials = frames[:_NUM_FRAMES], frames[_NUM_FRAMES + 1 :]
            peer, delimiter, version, request_id, domain, address, *_ = head
            key = z85.encode(credentials[0]) if len(credentials) == 1 else b""
            is_known = domain == DOMAIN and key in self.keys.workers
            status, text = (b"200", b"OK") if is_known else (b"400", b"no such key")
            # the key comes with each of its messages, as their "User-Id"
            self._questions.send_multipart(
                [peer, delimiter, version, request_id, status, text, key, b""]
            )
            if not is_known:
                self._refuse("unknown_key", f"{address.decode()}, key {key.decode()}")

    def note_failures(self) -> None:
        while self._failures is not None:
            try:
                event = parse_monitor_message(self._failures.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                return
            where = event["endpoint"].decode("latin-1")
            self._refuse(_BY_ERROR.get(int(event["value"]), "broken_handshake"), f"at {where}")

    def close(self, socket: zmq.Socket[bytes]) -> None:
        """Before the socket itself is closed."""
        if self._loop is not None:
            self._loop.remove_reader(self._questions.fileno())
            if self._failures is not None:
                self._loop.remove_reader(self._failures.fileno())
        if self._failures is not None:
            socket.disable_monitor()
            self._failures.close()
            self._failures = None
        self._questions.close()

    def _refuse(self, reason: str, who: str) -> None:
        self.refused[reason] += 1
        self._num_unlogged += 1
        now = self._clock()
        if now < self._next_log_ns:
            return
        more = f" ({self._num_unlogged - 1} others since the last line)"
        logger.warning(
            "refused a worker's connection (%s): %s%s",
            who,
            REASONS[reason],
            more if self._num_unlogged > 1 else "",
        )
        self._num_unlogged = 0
        self._next_log_ns = now + LOG_INTERVAL_NS
