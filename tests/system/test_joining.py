"""`remontoir worker` from another directory, with models that are not all the gateway's."""

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from tests.gateway.running import ROOT, environment, running_gateway
from tests.gpuworker import onnx_models
from tests.system.clients import infer_body, is_ready, metric, post, state_on
from tests.system.stages import until

MLP = [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]
LOOKUP = [{"name": "ids", "shape": [1, 4], "datatype": "INT64", "data": [0, 1, 2, 3]}]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def probe(port: int, path: str) -> int:
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=20).status_code


def test_a_worker_joins_from_elsewhere_and_a_model_that_differs_is_refused_by_name(
    tmp_path: Path,
) -> None:
    """mlp is the same file in both directories, lookup is not, extra is the worker's alone."""
    ours, theirs = tmp_path / "gateway" / "models", tmp_path / "worker" / "their-models"
    onnx_models.write_model(ours, "mlp", onnx_models.mlp())
    onnx_models.write_model(ours, "lookup", onnx_models.lookup())
    shutil.copytree(ours, theirs)
    (theirs / "lookup" / "1" / "model.onnx").write_bytes(
        onnx_models.mlp(seed=8).SerializeToString()
    )
    onnx_models.write_model(theirs, "extra", onnx_models.mlp(seed=9))
    address = f"ipc://{tmp_path}/door"
    flags = ("--models", str(ours), "--workers", "0", "--worker-bind", address, "--drain-s", "0")
    with running_gateway(*flags, scratch=tmp_path / "gateway") as gateway:
        not_ready = httpx.get(f"{gateway.url}/readyz")
        assert (not_ready.status_code, not_ready.json()["reason"]) == (503, "no_worker")
        assert post(gateway.url, infer_body("mlp", MLP)).verdict == "503 no_worker"
        log = tmp_path / "worker.log"
        join = ["worker", "--connect", address, "--models", "their-models"]
        probes = free_port()
        join += ["--name", "elsewhere", "--cache-mb", "64", "--health-port", str(probes)]
        home = tmp_path / "home"
        home.mkdir()
        # as on a machine where nobody has said anything about ONNX Runtime's telemetry
        settings = environment(PYTHONPATH=str(ROOT), HOME=str(home), TMPDIR=str(home))
        for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI"):
            settings.pop(name, None)
        with log.open("w") as stream:
            worker = subprocess.Popen(
                [sys.executable, "-m", "gateway", *join],
                cwd=tmp_path / "worker",
                env=settings,
                stdout=stream,
                stderr=stream,
            )
        try:
            until(lambda: is_ready(gateway.url), "the worker joins")
            until(lambda: probe(probes, "/readyz") == 200, "the worker has heard so")
            assert (probe(probes, "/startz"), probe(probes, "/livez")) == (200, 200)
            assert post(gateway.url, infer_body("mlp", MLP)).status == 200
            assert state_on(gateway.url, "mlp", "elsewhere") == "resident"
            refused = post(gateway.url, infer_body("lookup", LOOKUP))
            assert refused.verdict == "503 model_unavailable"
            assert refused.json["detail"] == "none of 1 workers can serve lookup"
            assert post(gateway.url, infer_body("extra", MLP)).verdict == "404 not_found"
            told = log.read_text()
            assert "the gateway refuses model lookup: its content hash is " in told
            assert "the two model directories differ" in told
            assert "the gateway refuses model extra: the gateway does not serve this model" in told
            assert "refuses model mlp" not in told

            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=30) == 0
            # it has written into its cache, and nothing anywhere else
            assert [path.relative_to(home) for path in home.iterdir()] == [Path(".cache")]
            assert list((home / ".cache").iterdir()) == [home / ".cache" / "remontoir"]
            until(lambda: not is_ready(gateway.url), "the gateway hears its goodbye")
            assert post(gateway.url, infer_body("mlp", MLP)).verdict == "503 no_worker"
            assert metric(gateway.url, "worker_up", worker="elsewhere") == 0
        finally:
            worker.kill()
            worker.wait()
