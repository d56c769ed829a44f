"""Connections over TCP that are not what they seem: one still looks good, and its gateway vanished
without a word; one broke before there was a gateway.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuworker.worker import GATEWAY_SILENCE_NS, RETRY_INTERVAL_NS
from scheduler import wire
from tests.gpuworker.test_worker import PATIENCE_S, Rig


class Network:
    """Carries bytes between connections to `port` and the address behind, until it loses them."""

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.num_connections = 0
        self.has_lost = threading.Event()  # what connections that are open by then carry
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._behind), PATIENCE_S)
                self._ends += [near, far]
                self.num_connections += 1
                is_lost = self.has_lost if self.num_connections == 1 else threading.Event()
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=(*ends, is_lost), daemon=True).start()


def carry(source: socket.socket, sink: socket.socket, is_lost: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            if not is_lost.is_set():
                sink.sendall(data)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[tuple[Rig, Network]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rig = Rig(f"tcp://127.0.0.1:{port}")
    network = Network(port)
    rig.address = f"tcp://127.0.0.1:{network.port}"
    yield rig, network
    rig.close()
    network.close()


def test_a_worker_connects_anew_when_its_gateway_has_been_silent(
    network: tuple[Rig, Network],
) -> None:
    rig, net = network
    rig.join()
    net.has_lost.set()
    rig.clock.now_ns += GATEWAY_SILENCE_NS + 1
    rig.expect(wire.Hello)
    assert net.num_connections == 2


def test_what_broke_before_the_gateway_was_there_does_not_end_the_session(
    network: tuple[Rig, Network], caplog: pytest.LogCaptureFixture
) -> None:
    rig, _ = network
    rig.unbind()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        rig.address = f"tcp://127.0.0.1:{port}"
        rig.start()
        listener.accept()[0].close()
        while "it broke off the handshake" not in caplog.text:
            threading.Event().wait(0.01)
    rig.bind()
    rig.clock.now_ns += RETRY_INTERVAL_NS
    rig.expect(wire.Hello)
    rig.welcome()
    for number in range(3):
        rig.say(wire.Ping(number))
        rig.expect(wire.Pong)
