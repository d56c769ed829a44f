"""Two gateways that share an emulation's models, as processes: one hop, and one that is killed."""

import contextlib
import socket
from pathlib import Path

from scheduler.shards import Shards, parse_replicas
from tests.gateway.running import running_gateway
from tests.system.clients import bytes_body, metric, post
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
