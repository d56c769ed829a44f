"""`make gpu-packages`: installs what a worker on the GPUs of this machine needs.

Asks the driver what it runs, and the cards what they are, and takes the packages that suit both.
pycuda comes as source only: it is built here against NVIDIA's headers from the package index, no
newer than the driver, and linked with the driver itself, so that no CUDA toolkit is needed. Run it
with the Python that the packages are for.
"""

import argparse
import ctypes
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpuworker import tensorrt_package
from gpuworker.device_choice import Driver, NoDriver, ask_driver
from gpuworker.tensorrt_package import OLDEST_CAPABILITY, Version

PYCUDA = "pycuda>=2024.1"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


class CannotInstall(Exception):
    """The message says what is missing."""


class Plan(NamedTuple):
    """Requirements for pip: what is installed, and the headers that pycuda is built with."""

    packages: tuple[str, ...]
    headers: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 1 with one line where something is missing."""
    parser = argparse.ArgumentParser(prog="make gpu-packages", description=__doc__)
    parser.add_argument("--print", action="store_true", help="say what it would install, no more")
    args = parser.parse_args(argv)
    try:
        driver = ask_driver()
        plan = plan_for(driver)
        _tell(driver, plan)
        if not args.print:
            check_tools()
            with tempfile.TemporaryDirectory(prefix="gpu-packages-") as directory:
                _install(plan, Path(directory))
            print("installed; remontoir serve finds the GPUs by itself")
    except (NoDriver, CannotInstall) as error:
        print(f"make gpu-packages: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        command = shlex.join(map(str, error.cmd))
        print(f"make gpu-packages: failed, as it says above: {command}", file=sys.stderr)
        return 1
    return 0


def plan_for(driver: Driver) -> Plan:
    """Raises CannotInstall."""
    capabilities = {
        f"cuda:{gpu.ordinal}": gpu.compute_capability
        for gpu in driver.gpus
        if gpu.compute_capability >= OLDEST_CAPABILITY
    }
    if not capabilities:
        names = ", ".join(f"{gpu.name} {_words(gpu.compute_capability)}" for gpu in driver.gpus)
        raise CannotInstall(
            f"no GPU of compute capability {_words(OLDEST_CAPABILITY)} or newer:"
            f" {names or 'the driver shows none'}"
        )
    tensorrt = tensorrt_package.requirement(driver.cuda_version, capabilities)
    major = tensorrt_package.cuda_packages_for(driver.cuda_version)
    if tensorrt is None or major is None:
        raise CannotInstall(tensorrt_package.suitable(driver.cuda_version, capabilities))
    # A minor version is what headers may not be newer by: pycuda would link to what is not there.
    same = driver.cuda_version[0] == major
    upper = f"{major}.{driver.cuda_version[1] + 1}" if same else f"{major + 1}"
    these = f">={major}.0,<{upper}"
    if major >= 13:
        headers = [f"nvidia-cuda-runtime{these}", f"nvidia-cuda-crt{these}"]
    else:
        headers = [f"nvidia-cuda-runtime-cu{major}{these}", f"nvidia-cuda-nvcc-cu{major}{these}"]
    # Two functions that have not changed since: there is none of it for CUDA 12.
    headers.append("nvidia-cuda-profiler-api>=13.0,<14")
    return Plan((tensorrt, f"cuda-bindings=={major}.*", "nvidia-ml-py>=12.560"), tuple(headers))


def _tell(driver: Driver, plan: Plan) -> None:
    cards = ", ".join(f"{gpu.name} (cuda:{gpu.ordinal})" for gpu in driver.gpus)
    print(f"{cards}; the driver runs CUDA {_words(driver.cuda_version)}")
    print(f"for {sys.prefix}: {', '.join(plan.packages)}")
    print(f"{PYCUDA}, built with {', '.join(plan.headers)}", flush=True)


def check_tools() -> None:
    """That pycuda can be built. Raises CannotInstall."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        raise CannotInstall("a C++ compiler is missing (Debian: apt install g++)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise CannotInstall("Python's headers are missing (Debian: apt install python3-dev)")


def _install(plan: Plan, directory: Path) -> None:
    headers = directory / "headers"
    _run(*PIP, "install", "--no-deps", "--target", headers, *plan.headers)
    _run(
        *(*PIP, "download", "--no-deps", "--no-binary", "pycuda", "-d", directory, PYCUDA),
    )
    [archive] = directory.glob("pycuda-*.tar.gz")
    shutil.unpack_archive(archive, directory)
    [tree] = [path for path in directory.glob("pycuda-*") if path.is_dir()]
    configure(tree, headers=headers, driver=_linkable_driver(directory))
    print("building pycuda, two minutes of one core ...", flush=True)
    _run(*PIP, "install", tree)
    print("installing the others, TensorRT is large ...", flush=True)
    _run(*PIP, "install", *plan.packages)


def configure(tree: Path, *, headers: Path, driver: Path) -> None:
    """Tell pycuda's sources where CUDA's headers are, below `headers`, and libcuda.so's folder."""
    includes = sorted({str(found.parent) for found in headers.glob("nvidia/*/include/*.h")})
    settings = {
        "CUDA_ROOT": str(headers),
        "CUDA_INC_DIR": includes,
        "CUDADRV_LIB_DIR": [str(driver)],
        "CUDADRV_LIBNAME": ["cuda"],
        "CUDA_ENABLE_CURAND": False,
    }
    lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
    (tree / "siteconf.py").write_text("".join(lines), encoding="utf-8")


def _linkable_driver(directory: Path) -> Path:
    """A folder with a libcuda.so: drivers are installed without that name, toolkits have it."""
    ctypes.CDLL("libcuda.so.1")  # the driver has been asked already: it is there
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = Path(line.rpartition(" ")[2])
        if path.name.startswith("libcuda.so"):
            folder = directory / "driver"
            folder.mkdir()
            (folder / "libcuda.so").symlink_to(path)
            return folder
    raise CannotInstall("the driver's libcuda.so.1 is loaded from no file")


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def _words(version: Version) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main())
