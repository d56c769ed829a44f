"""Alert rules and dashboards on a real Prometheus that scrapes a gateway under load:
`make e2e-prometheus`.

promtool plays every alert (tests/prometheus/rules_test.yaml) and lints the gateway's page. Then a
gateway with tenants, two models in a cache for one, and clients that ask for more than is possible
is scraped, and every expression of every dashboard and rule is asked of that Prometheus: each must
be understood, and answer with series where this machine has them. At the end the worker is stopped:
alerts must be heard of it. prometheus and promtool are those on the path, or Debian's package,
unpacked and not installed. Takes two minutes.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from gateway.tenants.api_keys import new_key
from tests.e2e.tools import LeftOut, run
from tests.gateway.running import RunningGateway, running_gateway
from tests.gpuworker import onnx_models
from tests.prometheus.expressions import (
    RULES,
    RULES_TEST,
    Expression,
    filled_in,
    of_dashboards,
    of_rules,
)

KEY = new_key()
SCRAPE_S = 1
WARM_UP_S = 45  # three windows of ten seconds for the forecast, and rates over fifteen
VARIABLES = {
    "datasource": "x",
    "job": ".*",
    "model": ".*",
    "worker": ".*",
    "__rate_interval": "15s",
}
# Metrics that have no series here: no card, no group, nothing that is broken, no cache of answers.
NOT_HERE = (
    "_gpu_",
    "_group_",
    "remontoir_cache_",
    "_odd_worker",
    "_connections_refused",
    "_anomalies",
)
# Panels of what needs ten minutes, or does not happen here.
MAY_BE_EMPTY = ("Clock offset, against", "Results of actions that were not ok")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="remontoir-prometheus-") as scratch:
        home = Path(scratch)
        try:
            prometheus, promtool = programs(home)
        except LeftOut as why:
            print(f"e2e-prometheus: left out: {why}")
            return 1
        try:
            run(promtool, "check", "rules", RULES)
            print(f"e2e-prometheus: {RULES.name} is well-formed")
            run(promtool, "test", "rules", RULES_TEST)
            print("e2e-prometheus: every alert fires when it should, and not when it should not")
            live(home, prometheus, promtool)
        except (AssertionError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stdout", None) or ""
            print(f"e2e-prometheus: FAILED: {error}\n{said}")
            return 1
    return 0


def programs(home: Path) -> tuple[Path, Path]:
    """prometheus and promtool. Raises LeftOut where they cannot be had."""
    found = which("prometheus"), which("promtool")
    if found[0] and found[1]:
        return Path(found[0]), Path(found[1])
    if not (which("apt-get") and which("dpkg")):
        raise LeftOut("prometheus and promtool are not on the path, and this is no Debian")
    package = home / "package"
    package.mkdir()
    # as nobody else: apt's own user could not write here, and says so
    download = ["apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", "prometheus"]
    done = subprocess.run(download, cwd=package, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["apt-get failed"]
        raise LeftOut(f"Debian's package prometheus cannot be downloaded: {said[-1]}")
    [file] = package.glob("*.deb")
    run("dpkg", "-x", file, home / "unpacked")
    directory = home / "unpacked" / "usr" / "bin"
    return directory / "prometheus", directory / "promtool"


def live(home: Path, prometheus: Path, promtool: Path) -> None:
    models = home / "models"
    for name in ("mlp", "other"):
        onnx_models.write_model(models, name, onnx_models.mlp())
    tenants = home / "tenants.yaml"
    tenants.write_text(yaml.safe_dump({"tenants": {"a": {"keys": [KEY.line], "metrics": True}}}))
    flags = ("--models", str(models), "--drain-s", "0", "--tenants", str(tenants))
    # a page is more than either model: one is evicted for the other
    flags += ("--cache-mb", "1", "--page-mb", "1", "--triton-metrics")
    # a forecast is due, and its error known, within the warm-up
    settings = {"REMONTOIR_SCALING_HORIZON_S": "10"}
    with running_gateway(*flags, scratch=home, **settings) as gateway:
        page = ask(gateway.url + "/metrics", {"authorization": f"Bearer {KEY.text}"}).decode()
        lint = subprocess.run(
            [promtool, "check", "metrics"], input=page, capture_output=True, text=True
        )
        # Triton's names are not ours to choose; a mean and a code have no unit
        wrong = [line for line in (lint.stdout + lint.stderr).splitlines() if "remontoir_" in line]
        assert not wrong, "promtool check metrics:\n" + "\n".join(wrong)
        with scraping(home, prometheus, gateway) as url, clients(gateway):
            time.sleep(WARM_UP_S)
            check_rules(url)
            check_expressions(url)
            check_triton(url)
            stop_worker(gateway)
            wait_for(lambda: "RemontoirNoWorker" in alerts(url), "RemontoirNoWorker is pending", 30)
            print("e2e-prometheus: the loss of the only worker is an alert")


@contextmanager
def scraping(home: Path, prometheus: Path, gateway: RunningGateway) -> Iterator[str]:
    """A Prometheus on the gateway; its address."""
    config = home / "prometheus.yml"
    key = home / "key"
    key.write_text(KEY.text)
    job = {
        "job_name": "remontoir",
        "authorization": {"credentials_file": str(key)},
        "static_configs": [{"targets": [gateway.url.removeprefix("http://")]}],
    }
    times = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    told = {"global": times, "rule_files": [str(RULES)], "scrape_configs": [job]}
    config.write_text(yaml.safe_dump(told))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={home / 'tsdb'}"]
    command += [f"--web.listen-address={address}"]
    with (home / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://{address}"
        wait_for(lambda: is_up(url), f"Prometheus has scraped the gateway ({home})", 30)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def clients(gateway: RunningGateway) -> Iterator[None]:
    """Four connections: two models that push each other out, SLOs that can and cannot be met."""
    is_over = threading.Event()
    threads = [
        threading.Thread(target=client, args=(gateway, number, is_over)) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(timeout=30)


def client(gateway: RunningGateway, number: int, is_over: threading.Event) -> None:
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=10)
    headers = {"authorization": f"Bearer {KEY.text}", "content-type": "application/json"}
    count = 0
    while not is_over.is_set():
        count += 1
        body = {
            "model": ("mlp", "other", "mlp", "nowhere")[(number + count // 20) % 4],
            "slo_ms": (500, 50, 2, 0.01)[count % 4],
            "inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}],
        }
        connection.request("POST", "/infer", json.dumps(body), headers)
        connection.getresponse().read()


def check_rules(url: str) -> None:
    """Prometheus has loaded them all, and could compute each."""
    groups = api(url, "rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(list(of_rules()))
    for rule in rules:
        assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
    print(f"e2e-prometheus: {len(rules)} rules computed")


def check_expressions(url: str) -> None:
    """Each is understood, and has series where there must be some."""
    empty, num_full, num_asked = [], 0, 0
    for expression in (*of_dashboards(), *of_rules()):
        num_asked += 1
        if query(url, filled_in(expression, VARIABLES)):
            num_full += 1
        elif must_have_series(expression):
            empty.append(f"{expression.where}: {expression.text}")
    assert not empty, "no series for\n" + "\n".join(empty)
    print(
        f"e2e-prometheus: {num_asked} expressions understood, {num_full} with series of a gateway "
        "under load; the others are quiet alerts, or of what is not on this machine"
    )


def must_have_series(expression: Expression) -> bool:
    is_alert = expression.where.startswith(RULES.name) and "remontoir:" not in expression.where
    if is_alert or any(title in expression.where for title in MAY_BE_EMPTY):
        return False  # a quiet alert has none
    return not any(word in expression.text for word in NOT_HERE)


def check_triton(url: str) -> None:
    for name in ("nv_inference_request_success", "nv_inference_queue_duration_us"):
        [served] = query(url, f'sum(rate({name}{{model="mlp"}}[15s]))')
        assert float(served["value"][1]) > 0, name
    print("e2e-prometheus: Triton's names tell the same")


def stop_worker(gateway: RunningGateway) -> None:
    """It is held, not ended: the gateway would start another at once."""
    for pid in gateway.child_pids():
        os.kill(pid, signal.SIGSTOP)


def alerts(url: str) -> set[str]:
    return {alert["labels"]["alertname"] for alert in api(url, "alerts")["alerts"]}


def is_up(url: str) -> bool:
    try:
        return [sample["value"][1] for sample in query(url, "up")] == ["1"]
    except (OSError, http.client.HTTPException):
        return False


def query(url: str, expression: str) -> list[Any]:
    asked = urllib.parse.urlencode({"query": expression})
    found = api(url, f"query?{asked}")["result"]
    assert isinstance(found, list)
    return found


def api(url: str, path: str) -> Any:
    try:
        return json.loads(ask(f"{url}/api/v1/{path}"))["data"]
    except urllib.error.HTTPError as error:
        asked = urllib.parse.unquote_plus(path)
        raise AssertionError(f"{asked}: {error.read().decode()}") from None


def ask(url: str, headers: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(url, headers=headers or {})
    with urllib.request.urlopen(request, timeout=10) as reply:
        read: bytes = reply.read()
    return read


def wait_for(is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
