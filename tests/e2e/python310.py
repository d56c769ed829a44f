"""scheduler/ and gpuworker/ under Python 3.10: `make e2e-python310`.

Their tests, with all that the stand-in for a GPU needs, in an environment of its own that is made
for this and goes with it. Then a gateway under this Python with one worker under 3.10, which
serves by what TensorRT calls 8.6. Needs Python 3.10 with its headers, an index of packages, a C++
compiler, and ten minutes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gateway.running import ROOT, environment, running_gateway
from tests.gpuworker import onnx_models
from tests.standin import driver
from tests.system.clients import infer_body, post, state_on
from tests.system.stages import until

TENSORRT = "8.6.1"
TESTS = ("tests/scheduler", "tests/scenarios", "tests/gpuworker")
# ONNX Runtime 1.23, the last one for 3.10, writes the constants of branches twice.
LEFT_OUT = "tests/gpuworker/test_compile.py::test_weights_inside_branches_are_counted"
ROWS = [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]


def main() -> int:
    """The exit code: 1 where Python 3.10 is missing or a step fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="an interpreter of Python 3.10")
    given = parser.parse_args().python
    told = _version_of(given)
    if told != "3.10":
        print(
            f"make e2e-python310: {given} is {f'Python {told}' if told else 'not there'}; "
            "name one of 3.10: make e2e-python310 PYTHON310=/path/to/python3.10",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory(prefix="python310-") as directory:
        try:
            python = _environment_of(given, Path(directory))
            _run(
                python,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                *TESTS,
                "--deselect",
                LEFT_OUT,
            )
            _serve(python, Path(directory))
        except subprocess.CalledProcessError as error:
            command = " ".join(map(str, error.cmd))
            print(f"make e2e-python310: {command} ended with {error.returncode}", file=sys.stderr)
            return 1
    return 0


def _version_of(python: str) -> str:
    """Such as 3.10; "" where it cannot be started."""
    if shutil.which(python) is None:
        return ""
    code = "import sys; print(*sys.version_info[:2], sep='.')"
    command = [python, "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def _environment_of(python: str, directory: Path) -> Path:
    """Its interpreter."""
    _run(python, "-m", "venv", directory / "venv")
    made = directory / "venv" / "bin" / "python"
    lock = ROOT / "requirements-python310.txt"
    pip = ("-m", "pip", "--disable-pip-version-check", "-q")
    _run(made, *pip, "install", "--require-hashes", "-r", lock)
    _run(made, ROOT / "tests" / "standin" / "install_cuda_packages.py")
    return made


def _serve(python: Path, directory: Path) -> None:
    """A model on both, the same answer from the CPU here and from the worker there."""
    models = directory / "models"
    onnx_models.write_model(models, "mlp", onnx_models.mlp())
    address = f"ipc://{directory}/door"
    flags = ("--models", str(models), "--drain-s", "0", "--device", "cpu")
    with running_gateway(*flags, scratch=directory / "cpu") as gateway:
        here = post(gateway.url, infer_body("mlp", ROWS)).json
    joining = (*flags, "--workers", "0", "--worker-bind", address)
    standins = driver.environment(directory, tensorrt=TENSORRT)
    with running_gateway(*joining, scratch=directory / "gateway") as gateway:
        command = [python, "-m", "gpuworker", "run", "--connect", address, "--models", models]
        command += ["--device", "cuda:0", "--cache-mb", "64", "--name", "python310"]
        worker = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment(REMONTOIR_CACHE_DIR=str(directory / "cache310"), **standins),
        )
        try:
            until(
                lambda: (
                    worker.poll() is not None
                    or state_on(gateway.url, "mlp", "python310") is not None
                ),
                "the worker joins",
            )
            there = post(gateway.url, infer_body("mlp", ROWS)).json
        finally:
            worker.terminate()
            worker.wait(timeout=60)
    for ours, theirs in zip(here["outputs"], there["outputs"], strict=True):
        pairs = zip(ours["data"], theirs["data"], strict=True)
        assert all(abs(a - b) <= 1e-5 + 1e-4 * abs(a) for a, b in pairs), (ours, theirs)
    print(
        f"a worker under Python 3.10 with TensorRT {TENSORRT} (stand-ins) answered as the CPU did"
    )


def _run(*command: object) -> None:
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=settings)


if __name__ == "__main__":
    sys.exit(main())
