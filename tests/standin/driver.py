"""The stand-in for NVIDIA's driver library: built from libcuda.c, and told what to do by tests."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SOURCE = Path(__file__).parent / "libcuda.c"

OUT_OF_MEMORY = 2
ECC_UNCORRECTABLE = 214
NOT_READY = 600
ILLEGAL_ADDRESS = 700
LAUNCH_FAILED = 719


def compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


def why_not() -> str | None:
    """What is missing for tests with the stand-in, or None."""
    if compiler() is None:
        return "needs a C compiler"
    missing = [name for name in ("cuda.bindings", "pycuda") if not _is_there(name)]
    return f"needs {' and '.join(missing)}: make cuda-packages" if missing else None


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def environment(directory: Path, *, num_gpus: int = 1, tensorrt: str = "10.13.3") -> dict[str, str]:
    """What a process needs to find `num_gpus` stand-ins and such a TensorRT; made in `directory`.

    Raises CalledProcessError.
    """
    library = build(directory)
    packages = directory / "packages"
    packages.mkdir()
    (packages / "tensorrt.py").write_text(
        "import sys\n"
        "from tests.standin.tensorrt import module\n"
        f"sys.modules[__name__] = module({tensorrt!r})\n"
    )
    buses = ", ".join(f"b{number + 1:02x}=Card()" for number in range(num_gpus))
    (packages / "pynvml.py").write_text(
        "import sys\n"
        "from tests.standin.pynvml import Card, Nvml\n"
        f"sys.modules[__name__] = Nvml({buses})\n"
    )
    return {
        "LD_LIBRARY_PATH": str(library.parent),
        "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)]),
        "STANDIN_DEVICES": str(num_gpus),
        "STANDIN_DEATH": str(death_of(directory)),
    }


def death_of(directory: Path) -> Path:
    """A file that breaks a GPU: of the next process that makes the call that is written there, or
    any where it is empty. It is gone then.
    """
    return directory / "death"


def build(directory: Path) -> Path:
    """libcuda.so.1, and libcuda.so for a linker. Raises CalledProcessError."""
    library = directory / "libcuda.so.1"
    command = [compiler() or "cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared"]
    command += ["-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    (directory / "libcuda.so").symlink_to(library.name)
    return library


class StandIn:
    """In this process, in the place of the real one, for whoever loads the driver after it."""

    def __init__(self, library: Path) -> None:
        # By its soname it is then found in place of any libcuda.so.1 that the machine has.
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._library.standin_calls.restype = ctypes.c_long

    def fail(self, name: str, code: int, *, skip: int = 0, times: int = 1) -> None:
        """After `skip` more calls of this name the next `times` answer `code`."""
        self._library.standin_fail(name.encode(), code, skip, times)

    def calls(self, name: str) -> int:
        """Since the library was loaded."""
        return int(self._library.standin_calls(name.encode()))

    def corrupt(self, *, skip: int = 0) -> None:
        """After `skip` more copies of streams into pages one arrives with a wrong byte."""
        self._library.standin_corrupt(ctypes.c_long(skip))

    def die(self, code: int = ECC_UNCORRECTABLE) -> None:
        """The device breaks: from now on every call answers so."""
        self._library.standin_die(code)

    def heal(self) -> None:
        self._library.standin_heal()


if __name__ == "__main__":
    import sys

    print(build(Path(sys.argv[1])))
