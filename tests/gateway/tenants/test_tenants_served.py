"""`remontoir serve --tenants` as a process: keys over HTTP, reload, where it will not listen."""

import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from gateway.tenants.api_keys import NewKey, new_key
from scheduler.event_log import Handled
from scheduler.events import RequestArrived
from scheduler.recording import Recording
from tests.gateway.command.test_serve import BODY
from tests.gateway.running import ROOT, RunningGateway, environment, running_gateway

EMULATED = ("--emulate", "clockwork-v100:1", "--drain-s", "0")
SHOP, OPS = new_key(), new_key()


def write_tenants(file: Path, *entries: str) -> None:
    file.write_text("\n  ".join(["tenants:", *entries]) + "\n")


def entry(name: str, key: NewKey, settings: str = "") -> str:
    return f'{name}: {{keys: ["{key.line}"]{settings}}}'


def infer(gateway: RunningGateway, key: NewKey | None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key.text}"}
    return httpx.post(f"{gateway.url}/infer", json=BODY, headers=headers, timeout=30)


def reloaded(gateway: RunningGateway) -> str:
    gateway.process.send_signal(signal.SIGHUP)
    return gateway.read_line()


def test_keys_quotas_and_reload_over_http(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    write_tenants(
        file, entry("shop", SHOP, ", models: [resnet50*], requests_per_s: 0.001, requests_burst: 2")
    )
    with running_gateway(*EMULATED, "--tenants", str(file), scratch=tmp_path) as gateway:
        assert infer(gateway, None).status_code == 401
        assert infer(gateway, OPS).status_code == 401
        for _ in range(2):
            assert infer(gateway, SHOP).status_code == 200
        over = infer(gateway, SHOP)
        assert (over.status_code, over.json()["reason"]) == (429, "quota_exceeded")
        assert 0 < over.json()["retry_after_ms"] <= 1e6
        assert int(over.headers["retry-after"]) <= 1000

        # a file that cannot be used changes nothing, and the log says what is wrong with it
        file.write_text(f"tenants: {{shop: {{keys: [{OPS.text}]}}}}")
        assert "it looks like the key itself" in reloaded(gateway)
        assert infer(gateway, OPS).status_code == 401
        assert infer(gateway, SHOP).status_code == 429

        # what was used stays used; keys come and go
        write_tenants(
            file,
            entry("shop", SHOP, ", requests_per_s: 0.001, requests_burst: 2"),
            entry("ops", OPS, ", admin: true"),
        )
        assert reloaded(gateway) == f"Read {file} again: 2 tenants, 2 keys.\n"
        assert infer(gateway, OPS).status_code == 200
        assert infer(gateway, SHOP).status_code == 429
        metrics = httpx.get(f"{gateway.url}/metrics", headers={"x-api-key": OPS.text}).text
        served = 'remontoir_tenant_requests_total{tenant="shop",outcome="served",reason=""} 2'
        assert served in metrics
        assert 'remontoir_tenant_device_seconds_total{tenant="shop"} 0.0' in metrics

        write_tenants(file, entry("ops", OPS))
        assert reloaded(gateway) == f"Read {file} again: 1 tenant, 1 key.\n"
        assert infer(gateway, SHOP).status_code == 401
        assert "shop" not in httpx.get(f"{gateway.url}/metrics").text

        gateway.process.send_signal(signal.SIGTERM)
        code, output = gateway.wait()
        assert code == 0
        for key in (SHOP, OPS):
            assert key.text not in gateway.announcement + output


def test_device_time_is_charged_as_measured(tmp_path: Path) -> None:
    """An emulated ResNet-50 takes some milliseconds: more than 0.1 ms per second, saved up to 1."""
    file = tmp_path / "tenants.yaml"
    write_tenants(file, entry("shop", SHOP, ", gpu_ms_per_s: 0.1, gpu_ms_burst: 1, metrics: true"))
    with running_gateway(*EMULATED, "--tenants", str(file), scratch=tmp_path) as gateway:
        assert infer(gateway, SHOP).status_code == 200
        over = infer(gateway, SHOP)
        assert (over.status_code, over.json()["reason"]) == (429, "quota_exceeded")
        assert "of device time per second" in over.json()["detail"]
        text = httpx.get(f"{gateway.url}/metrics", headers={"x-api-key": SHOP.text}).text
        name = 'remontoir_tenant_device_seconds_total{tenant="shop"} '
        [used_s] = [float(line.removeprefix(name)) for line in text.splitlines() if name in line]
        assert 0.001 < used_s < 0.1


def test_the_scheduler_knows_whose_a_request_is_and_what_each_is_guaranteed(
    tmp_path: Path,
) -> None:
    file, record = tmp_path / "tenants.yaml", tmp_path / "day.rec"
    write_tenants(file, entry("shop", SHOP, ", weight: 3"), entry("ops", OPS))
    flags = ("--tenants", str(file), "--record", str(record))
    with running_gateway(*EMULATED, *flags, scratch=tmp_path) as gateway:
        assert infer(gateway, SHOP).status_code == 200
        write_tenants(file, entry("shop", SHOP, ", weight: 4"), entry("ops", OPS))
        assert "weights of tenants have changed: the next start will use them" in reloaded(gateway)
        assert infer(gateway, OPS).status_code == 200
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.wait()[0] == 0
    recording = Recording([record.read_bytes()])
    arrived = [
        entry.event for entry in recording
        if isinstance(entry, Handled) and isinstance(entry.event, RequestArrived)
    ]  # fmt: skip
    assert recording.header.config.tenant_weights == {"shop": 3.0, "ops": 1.0}
    assert [request.tenant for request in arrived] == ["shop", "ops"]
    replayed = subprocess.run(
        [sys.executable, "-m", "gateway", "replay", str(record)],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert replayed.returncode == 0, replayed.stdout


def test_tritonclient_sends_a_key_as_a_header(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    write_tenants(file, entry("shop", SHOP))
    with running_gateway(*EMULATED, "--tenants", str(file), scratch=tmp_path) as gateway:
        client = triton.InferenceServerClient(gateway.url.removeprefix("http://"))
        try:
            assert client.is_server_ready()  # a probe
            tensor = triton.InferInput("x", [1, 1], "UINT8")
            tensor.set_data_from_numpy(np.zeros((1, 1), np.uint8))
            headers = {"x-api-key": SHOP.text}
            result = client.infer("resnet50_v2", [tensor], headers=headers, timeout=5_000_000)
            assert result.get_response()["model_name"] == "resnet50_v2"
            with pytest.raises(InferenceServerException, match="an API key is need"):
                client.infer("resnet50_v2", [tensor])
            with pytest.raises(InferenceServerException, match="needs a tenant with"):
                client.unload_model("resnet50_v2", headers=headers)
        finally:
            client.close()


def test_the_printed_lines_take_the_key_of_the_environment(tmp_path: Path) -> None:
    tenants = f"tenants: {{shop: {{keys: ['{SHOP.line}']}}}}"
    with running_gateway(*EMULATED, scratch=tmp_path, REMONTOIR_TENANTS=tenants) as gateway:
        assert "with an API key: export REMONTOIR_API_KEY=..." in gateway.announcement
        lines = [line for line in gateway.announcement.splitlines() if line.startswith("  curl")]
        assert all(
            "Authorization: Bearer $REMONTOIR_API_KEY" in shlex.split(line) for line in lines
        )
        for settings, code, text in (
            ({}, 1, "401 unauthenticated: an API key is needed"),
            ({"REMONTOIR_API_KEY": SHOP.text}, 0, "resnet50_v2"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "gateway", "models", "--url", gateway.url],
                cwd=ROOT, env=environment(**settings), capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == code
            assert text in done.stdout + done.stderr


def refusal(*flags: str, **settings: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--port", "0", *EMULATED, *flags],
        cwd=ROOT, env=environment(**settings), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_not_served_without_keys(host: str) -> None:
    code, error = refusal("--host", host)
    assert code == 2
    assert error == (
        f"remontoir: --host {host}: other machines could use this gateway without a key. Give "
        "--tenants FILE (`remontoir keys api --tenant NAME` makes the first key), or --insecure if "
        "something else keeps strangers away\n"
    )


@pytest.mark.parametrize("is_insecure", [False, True])
def test_with_keys_or_when_told_to_it_listens_everywhere(tmp_path: Path, is_insecure: bool) -> None:
    file = tmp_path / "tenants.yaml"
    write_tenants(file, entry("shop", SHOP))
    flags = ("--insecure",) if is_insecure else ("--tenants", str(file))
    with running_gateway(*EMULATED, "--host", "0.0.0.0", *flags, scratch=tmp_path) as gateway:
        port = gateway.url.rpartition(":")[2]
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10):
            assert infer(gateway, SHOP).status_code == 200
            assert infer(gateway, None).status_code == (200 if is_insecure else 401)


def test_a_bad_tenants_file_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    assert refusal("--tenants", str(file)) == (
        2,
        f"remontoir: tenants file {file}: No such file or directory\n",
    )
    code, error = refusal(REMONTOIR_TENANTS="tenants: {a: {weight: x}}")
    assert (code, error) == (
        2,
        "remontoir: setting tenants: tenant a: weight: Expected `float | null`, got `str`\n",
    )
    code, error = refusal("--tenants", str(file), REMONTOIR_TENANTS="tenants: {}")
    assert (code, "both given" in error) == (2, True)
