"""The written HTTP contract against a real server: `make e2e-http`.

Lints openapi.yaml with spectral, asks the live server with schemathesis whether it keeps what the
file promises, all checks on, and has a client that openapi-python-client generates from the file
run an inference. Each tool lives in a directory that is made for this and goes with it; one that
cannot be installed on this machine is named and left out. Needs an index of packages, and a few
minutes.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.tools import LeftOut, environment_with, run
from tests.gateway.running import ROOT, RunningGateway, doubling_model, running_gateway, write_model
from tests.system.clients import metric
from tests.system.stages import open_files_of

# Measured with these; a newer one is welcome to fail here first.
SPECTRAL = "@stoplight/spectral-cli@6.16.3"
SCHEMATHESIS = "schemathesis==4.32.5"
CLIENT_GENERATOR = "openapi-python-client==0.29.1"

CONTRACT = ROOT / "openapi" / "openapi.yaml"
# All phases get their share of it.
SCHEMATHESIS_S = 60

CLIENT_STORY = """
    import sys
    from remontoir_client import Client
    from remontoir_client.api.inference import infer
    from remontoir_client.api.open_inference_protocol import v_2_infer
    from remontoir_client.models import (
        Datatype, Error, InferReply, InferRequest, InputTensor, V2InferRequest,
    )

    client = Client(base_url=sys.argv[1])
    row = InputTensor(name="x", shape=[1, 4], datatype=Datatype.FP32, data=[1, 2, 3, 4.5])
    reply = infer.sync(client=client, body=InferRequest(model="mlp", inputs=[row], slo_ms=5000))
    assert isinstance(reply, InferReply), reply
    assert reply.outputs[0].data == [2, 4, 6, 9], reply
    assert 0 < reply.slo.latency_ms <= 5000, reply

    reply = v_2_infer.sync("mlp", client=client, body=V2InferRequest(inputs=[row], id="42"))
    assert isinstance(reply, InferReply), reply
    assert (reply.id, reply.outputs[0].data) == ("42", [2, 4, 6, 9]), reply

    error = infer.sync(client=client, body=InferRequest(model="mpl", inputs=[row]))
    assert isinstance(error, Error), error
    assert error.detail == "no model 'mpl' is served here", error
"""


def main() -> int:
    failed = []
    with tempfile.TemporaryDirectory(prefix="remontoir-http-") as scratch:
        home = Path(scratch)
        models = home / "models"
        for name in ("mlp", "spare"):  # what the examples send is an inference
            write_model(models / name, doubling_model())
        flags = ("--models", str(models), "--drain-s", "0")
        with running_gateway(*flags, scratch=home) as gateway:
            checks: dict[str, Callable[[Path, RunningGateway], str]] = {
                "spectral": spectral,
                "a generated client": generated_client,
                "schemathesis": schemathesis,
            }
            for name, check in checks.items():
                try:
                    said = check(home / name.replace(" ", "-"), gateway)
                except LeftOut as why:
                    print(f"e2e-http: {name}: left out: {why}", flush=True)
                except (AssertionError, subprocess.CalledProcessError) as error:
                    output = getattr(error, "stdout", None) or ""
                    print(f"e2e-http: {name}: FAILED: {error}\n{output}", flush=True)
                    failed.append(name)
                else:
                    print(f"e2e-http: {name}: {said}", flush=True)
    return 1 if failed else 0


def spectral(home: Path, gateway: RunningGateway) -> str:
    if shutil.which("npm") is None:
        raise LeftOut("there is no npm")
    home.mkdir()
    try:
        run("npm", "install", "--prefix", home, "--no-audit", "--no-fund", SPECTRAL)
    except subprocess.CalledProcessError as error:
        last = error.stdout.strip().splitlines()[-1]
        raise LeftOut(f"{SPECTRAL} cannot be installed: {last}") from error
    rules = ROOT / "openapi" / "spectral.yaml"
    program = home / "node_modules" / ".bin" / "spectral"
    run(program, "lint", CONTRACT, "--ruleset", rules, "--fail-severity", "hint")
    return "nothing to say"


def generated_client(home: Path, gateway: RunningGateway) -> str:
    python = environment_with(home, CLIENT_GENERATOR)
    client = home / "remontoir_client"
    generate = ("generate", "--path", CONTRACT, "--meta", "none", "--output-path", client)
    said = run(python.parent / "openapi-python-client", *generate, on_path=python.parent)
    assert "Unable to process" not in said, said
    story = home / "story.py"
    story.write_text(textwrap.dedent(CLIENT_STORY))
    run(python, story, gateway.url)
    return "runs inferences, and reads a refusal"


def schemathesis(home: Path, gateway: RunningGateway) -> str:
    python = environment_with(home, SCHEMATHESIS)
    pid = gateway.process.pid
    num_files = open_files_of(pid)
    config = ("--config-file", ROOT / "tests" / "e2e" / "schemathesis.toml")
    checks = ("--checks", "all", "--max-time", SCHEMATHESIS_S, "--continue-on-failure")
    said = run(
        python.parent / "schemathesis",
        *(*config, "run", CONTRACT, "--url", gateway.url),
        *(*checks, "--request-timeout", 30, "--no-color", "--report-dir", home / "report"),
    )
    assert metric(gateway.url, "http_requests_open") == 0
    assert open_files_of(pid) <= num_files + 1, open_files_of(pid)
    found = re.search(r"\d+ generated", said)
    assert found, said
    return f"{found[0]}, no failure"


if __name__ == "__main__":
    sys.exit(main())
