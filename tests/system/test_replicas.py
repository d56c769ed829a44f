"""Gateways that share an emulation's models, as processes: one hop, one that is killed, one that
stops.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scheduler.shards import Shards, parse_replicas
from tests.gateway.running import running_gateway
from tests.system.clients import HANG_S, bytes_body, metric, post
from tests.system.stages import until

MODELS = ("resnet50_v2", "googlenet", "densenet121", "inceptionv3", "dla34")


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as life:
        held = [life.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [int(listener.getsockname()[1]) for listener in held]


def test_any_of_two_answers_for_both_and_one_stands_in_for_the_other(tmp_path: Path) -> None:
    ports = free_ports(2)
    told = ",".join(f"g{i}=http://127.0.0.1:{port}" for i, port in enumerate(ports))
    shards = Shards(parse_replicas(told), "g0", copies=2)
    flags = ("--emulate", "clockwork-v100:1", "--drain-s", "0", "--replicas", told)
    with contextlib.ExitStack() as life:
        first, second = (
            life.enter_context(
                running_gateway(
                    *flags,
                    *("--replica", f"g{index}", "--port", str(port)),
                    scratch=tmp_path / str(index),
                )
            )
            for index, port in enumerate(ports)
        )
        for model in MODELS:
            owner = shards.holders(model)[0]
            for gateway, name in ((first, "g0"), (second, "g1")):
                answer = post(gateway.url, bytes_body(model))
                assert answer.status == 200, answer
                shown = None if name == owner else owner
                assert answer.headers.get("x-remontoir-replica") == shown
        second.process.kill()
        second.wait()
        for model in MODELS:
            answer = post(first.url, bytes_body(model))
            assert answer.status == 200, answer
            assert "x-remontoir-replica" not in answer.headers
        until(lambda: metric(first.url, "replica_up", replica="g1") == 0, "it is known to be away")


class SlowOwner:
    """A replica that is asked, says that it is ready as often as somebody wants to know, and
    answers when it is told to.
    """

    def __init__(self) -> None:
        self.asked, self.probed = threading.Semaphore(0), threading.Semaphore(0)
        self.may_answer = threading.Event()


@contextlib.contextmanager
def slow_owner(port: int) -> Iterator[SlowOwner]:
    owner = SlowOwner()

    class Replica(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()
            owner.probed.release()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            owner.asked.release()
            owner.may_answer.wait(HANG_S)
            self.answer()

        def answer(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Replica)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield owner
    finally:
        owner.may_answer.set()
        server.shutdown()
        serving.join()
        server.server_close()


def test_a_gateway_that_stops_waits_for_what_another_has_of_its_clients(tmp_path: Path) -> None:
    here, there = free_ports(2)
    told = f"g0=http://127.0.0.1:{here},slow=http://127.0.0.1:{there}"
    shards = Shards(parse_replicas(told), "g0", copies=2)
    model = next(model for model in MODELS if shards.holders(model)[0] == "slow")
    flags = ("--emulate", "clockwork-v100:1", "--drain-s", "0", "--port", str(here))
    with (
        slow_owner(there) as owner,
        running_gateway(*flags, "--replica", "g0", "--replicas", told, scratch=tmp_path) as gateway,
        ThreadPoolExecutor(1) as client,
    ):
        answer = client.submit(post, gateway.url, bytes_body(model))
        assert owner.asked.acquire(timeout=HANG_S)
        gateway.process.terminate()
        for _ in range(4):  # each half a second after the other: by then it would have ended
            assert owner.probed.acquire(timeout=HANG_S)
        owner.may_answer.set()
        assert answer.result(HANG_S).status == 200
        assert gateway.wait()[0] == 0
