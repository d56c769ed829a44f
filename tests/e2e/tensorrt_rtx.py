"""The builder of plans against a real TensorRT builder: `make e2e-tensorrt-rtx`.

TensorRT-RTX builds without a GPU. Its library comes in a package for ONNX Runtime, its Python
classes in one of their own, 150 MB together; both are installed into a directory that goes with
this. Needs an index of packages, and two minutes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The pair that belongs together; the classes look for a library of just this version.
BINDINGS = "tensorrt-rtx-cu13-bindings==1.7.1.116"
LIBRARIES = "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"
TESTS = "tests/gpuworker/test_tensorrt_rtx.py"


def main() -> int:
    """The exit code: pytest's, or 1 where a package cannot be had."""
    with tempfile.TemporaryDirectory(prefix="tensorrt-rtx-") as directory:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        command = [*pip, "--no-deps", "--target", directory, BINDINGS, LIBRARIES]
        if subprocess.run(command, check=False).returncode:
            print(f"make e2e-tensorrt-rtx: {BINDINGS} cannot be installed here", file=sys.stderr)
            return 1
        libraries = Path(directory) / "onnxruntime_ep_nv_tensorrt_rtx"
        for library in libraries.glob("libtensorrt*.so.*"):
            soname = library.name.split(".so.")[0] + ".so." + library.name.split(".so.")[1][0]
            (libraries / soname).symlink_to(library.name)
        settings = {
            **os.environ,
            "LD_LIBRARY_PATH": str(libraries),
            "PYTHONPATH": os.pathsep.join([directory, str(ROOT)]),
        }
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", TESTS]
        return subprocess.run(pytest, check=False, cwd=ROOT, env=settings).returncode


if __name__ == "__main__":
    sys.exit(main())
