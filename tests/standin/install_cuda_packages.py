"""`make cuda-packages`: cuda-bindings and pycuda, so that the tests of the GPU worker can run.

No GPU, no driver and no CUDA toolkit are needed. pycuda comes as source only and is built against
NVIDIA's headers, which the package index has, and linked with the stand-in for the driver. Run it
with the Python that the packages are for; everything is pinned by hash.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpuworker.gpu_packages import PIP, CannotInstall, check_tools, configure
from tests.standin import driver

ROOT = Path(__file__).parent.parent.parent
LOCK = ROOT / "requirements-cuda-tests.txt"
SOURCE_PACKAGE = "pycuda"


def main() -> int:
    """The exit code: 1 with one line where something is missing."""
    try:
        check_tools()
    except CannotInstall as error:
        print(f"make cuda-packages: {error}", file=sys.stderr)
        return 1
    if _works():
        print("cuda-bindings and pycuda are there already")
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="cuda-packages-") as directory:
            _install(Path(directory))
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"make cuda-packages: failed, as it says above: {command}", file=sys.stderr)
        return 1
    print("cuda-bindings and pycuda are installed")
    return 0


def _install(directory: Path) -> None:
    source, others = _split(LOCK.read_text(encoding="utf-8"))
    (directory / "source.txt").write_text(source, encoding="utf-8")
    (directory / "others.txt").write_text(others, encoding="utf-8")
    _run(*PIP, "install", "--require-hashes", "-r", directory / "others.txt")
    _run(
        *(*PIP, "download", "--no-deps", "--no-build-isolation", "--require-hashes"),
        *("--no-binary", SOURCE_PACKAGE, "-r", directory / "source.txt", "-d", directory),
    )
    [archive] = directory.glob(f"{SOURCE_PACKAGE}-*.tar.gz")
    shutil.unpack_archive(archive, directory)
    [tree] = [path for path in directory.glob(f"{SOURCE_PACKAGE}-*") if path.is_dir()]
    print("building pycuda, two minutes of one core ...", flush=True)
    headers = Path(sysconfig.get_path("purelib"))
    configure(tree, headers=headers, driver=_linkable_standin(directory))
    _run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", directory, tree)
    [wheel] = directory.glob(f"{SOURCE_PACKAGE}-*.whl")
    _run(*PIP, "install", "--no-deps", wheel)


def _split(lock: str) -> tuple[str, str]:
    """The lines of the package that is built here, and all others."""
    blocks = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    source = [block for block in blocks if block.startswith(f"{SOURCE_PACKAGE}==")]
    return "".join(source), "".join(block for block in blocks if block not in source)


def _linkable_standin(directory: Path) -> Path:
    """A folder with a libcuda.so to link with."""
    library = directory / "driver"
    library.mkdir()
    return driver.build(library).parent


def _works() -> bool:
    """Whether they can be found; that they load needs a driver."""
    code = (
        "import importlib.util as u, sys; import cuda.bindings;"
        "sys.exit(any(u.find_spec(n) is None for n in"
        " ('pycuda._driver', 'pytools', 'pynvml', 'tensorrt_bindings')))"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _run(*command: object) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([str(part) for part in command], check=True, env=environment)


if __name__ == "__main__":
    sys.exit(main())
