"""The driver against a puppet server in another thread."""

import socketserver
import threading
from collections.abc import Iterator

import pytest

from loadtest.openloop import drive
from loadtest.workloads import Ask


class Puppet(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.is_mute = False

    @property
    def port(self) -> int:
        return self.server_address[1]


class Echo(socketserver.StreamRequestHandler):
    """Answers each line-headed request with its first line."""

    server: Puppet

    def handle(self) -> None:
        while line := self.rfile.readline():
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            if self.server.is_mute:
                self.rfile.read()
                return
            body = line.split()[1]
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    with Puppet() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(at_ns: int, stream: int) -> Ask:
    return Ask(at_ns, "model", 5_000_000, stream)


def requests(*paths: str) -> list[bytes]:
    return [f"POST {path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode() for path in paths]


def test_every_arrival_is_sent_at_its_time_and_variants_take_turns(puppet: Puppet):
    arrivals = [ask(0, 0), ask(1_000_000, 1), ask(2_000_000, 0), ask(3_000_000, 0)]
    shots = drive(
        port=puppet.port,
        arrivals=arrivals,
        requests=[requests("/a", "/b"), requests("/c")],
        connections=2,
    )
    assert [shot.body for shot in shots] == [b"/a", b"/c", b"/b", b"/a"]
    assert [shot.variant for shot in shots] == [0, 0, 1, 0]
    start_ns = shots[0].at_ns
    assert [shot.at_ns - start_ns for shot in shots] == [0, 1_000_000, 2_000_000, 3_000_000]
    assert all(shot.at_ns <= shot.sent_ns <= shot.done_ns for shot in shots)


def test_what_is_not_answered_is_given_up(puppet: Puppet):
    puppet.is_mute = True
    (shot,) = drive(
        port=puppet.port,
        arrivals=[ask(0, 0)],
        requests=[requests("/a")],
        connections=1,
        give_up_s=0.01,
    )
    assert (shot.status, shot.trouble) == (0, "gave up")
