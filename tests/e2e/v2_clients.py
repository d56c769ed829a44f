"""Heavy clients of the Open Inference Protocol, unmodified, against a real server: `make e2e-v2`.

KServe's InferenceRESTClient, `mlserver infer` and perf_analyzer, each in an environment of its own
that is made for this and goes with it. Says of each what it saw; one that cannot be installed or
started on this machine is named and left out. Needs an index of packages, and minutes.
"""

import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.tools import LeftOut, environment_with, run
from tests.gateway.running import running_gateway
from tests.gpuworker import onnx_models

# Measured with these; a newer one is welcome to fail here first.
KSERVE = "kserve==0.21.0"
MLSERVER = ("mlserver==1.7.1", "tritonclient[http]")
PERF_ANALYZER = "perf-analyzer==2.60.0"

KSERVE_STORY = """
    import asyncio, sys
    import numpy as np
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    async def main(url):
        client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=10))
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "mlp")
        rows = np.random.default_rng(7).standard_normal((2, 64)).astype(np.float32)
        answers = []
        for is_binary in (True, False):
            tensor = InferInput("x", list(rows.shape), "FP32")
            tensor.set_data_from_numpy(rows, binary_data=is_binary)
            request = InferRequest("mlp", [tensor], request_id="mine")
            reply = await client.infer(url, request, model_name="mlp")
            assert (reply.model_name, reply.id) == ("mlp", "mine")
            answers.append(reply.outputs[0].as_numpy())
        assert np.allclose(*answers, rtol=1e-4)
        tensor = InferInput("x", [1, 63], "FP32")
        tensor.set_data_from_numpy(rows[:1, :63], binary_data=False)
        try:
            await client.infer(url, InferRequest("mlp", [tensor]), model_name="mlp")
        except Exception as error:
            assert "input 'x' has shape [1, 63], model mlp takes [-1, 64]" in str(error), error
        else:
            raise AssertionError("a wrong shape was taken")

    asyncio.run(main(sys.argv[1]))
"""


def main() -> int:
    failed = []
    with tempfile.TemporaryDirectory(prefix="remontoir-v2-") as scratch:
        home = Path(scratch)
        models = home / "models"
        onnx_models.write_model(models, "mlp", onnx_models.mlp())
        flags = ("--models", str(models), "--drain-s", "0")
        with running_gateway(*flags, scratch=home) as gateway:
            clients: dict[str, Callable[[Path, str], None]] = {
                "KServe": kserve,
                "mlserver infer": mlserver,
                "perf_analyzer": perf_analyzer,
            }
            for name, client in clients.items():
                try:
                    client(home / name.partition(" ")[0], gateway.url)
                except LeftOut as why:
                    print(f"e2e-v2: {name}: left out: {why}", flush=True)
                except (AssertionError, subprocess.CalledProcessError) as error:
                    said = getattr(error, "stdout", None) or ""
                    print(f"e2e-v2: {name}: FAILED: {error}\n{said}", flush=True)
                    failed.append(name)
                else:
                    print(f"e2e-v2: {name}: works", flush=True)
    return 1 if failed else 0


def kserve(home: Path, url: str) -> None:
    python = environment_with(home, KSERVE)
    story = home / "story.py"
    story.write_text(textwrap.dedent(KSERVE_STORY))
    run(python, story, url)


def mlserver(home: Path, url: str) -> None:
    python = environment_with(home, *MLSERVER)
    row = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
    asked, told = home / "asked.jsonl", home / "told.jsonl"
    asked.write_text(f"{json.dumps({'inputs': [row]})}\n" * 5)
    address = url.removeprefix("http://")
    files = ("-i", asked, "-o", told)
    run(python.parent / "mlserver", "infer", "-u", address, "-m", "mlp", *files)
    answers = [json.loads(line) for line in told.read_text().splitlines()]
    assert len(answers) == 5, told.read_text()
    assert all(answer["outputs"][0]["shape"] == [1, 10] for answer in answers), answers


def perf_analyzer(home: Path, url: str) -> None:
    python = environment_with(home, PERF_ANALYZER)
    program = python.parent / "perf_analyzer"
    started = subprocess.run(
        [program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if started.returncode:
        raise LeftOut(started.stdout.strip().splitlines()[-1])
    common = ("-m", "mlp", "-u", url.removeprefix("http://"), "-i", "http")
    windows = ("--measurement-interval", "1000", "-s", "80", "--max-trials", "4")
    for more in (
        ("--concurrency-range", "2:2", "-H", "x-slo-ms:200"),
        ("-b", "4", "--input-tensor-format", "json", "--output-tensor-format", "json"),
    ):
        said = run(program, *common, *more, *windows)
        for figure in ("Throughput:", "Execution count:", "compute infer"):
            assert figure in said, said


if __name__ == "__main__":
    sys.exit(main())
