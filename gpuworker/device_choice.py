"""What `--device` means on this machine: the CPU, one GPU, or a worker for each.

Owns the choice, and the check that a GPU can be served on, before anything of it is imported or
paid for. It asks the driver itself, so that a machine without any CUDA package can say what it has.
Never is the CPU taken where there is a GPU, unless it was asked for.
"""

import ctypes
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gpuworker import tensorrt_package
from gpuworker.config import ConfigError

CPU = "cpu"
ALL = "all"
AUTO = "auto"
WORDS = "cpu, cuda:N, all (a worker for each GPU) or auto (all, or the CPU where there is no GPU)"

_GPU = re.compile(r"cuda:([0-9]{1,4})")
# A GPU that the kernel knows of, whether or not the driver's library is to be found.
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
# (package, its name in the index)
_PACKAGES = (("tensorrt", "tensorrt"), ("pycuda", "pycuda"), ("cuda.bindings", "cuda-bindings"))
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute of the compute capability
_MAX_NAME = 256


class Gpu(NamedTuple):
    """What the driver says of a device."""

    ordinal: int
    name: str
    compute_capability: tuple[int, int]


class Driver(NamedTuple):
    """The driver of this machine: the newest CUDA it runs, as (13, 0), and its devices."""

    cuda_version: tuple[int, int]
    gpus: tuple[Gpu, ...]


class NoDriver(Exception):
    """There is no NVIDIA driver here, or none that works; the message says which."""


def ordinal_of(device: str) -> int | None:
    """3 for "cuda:3", None for the CPU. Raises ConfigError for what is neither."""
    if device == CPU:
        return None
    match = _GPU.fullmatch(device)
    if match is None:
        raise ConfigError(f"--device {device}: expected {WORDS}")
    return int(match[1])


def devices_of(wanted: str, ask: Callable[[], Driver] | None = None) -> tuple[str, ...]:
    """One name, "cpu" or "cuda:N", for each worker that `wanted` stands for.

    Raises ConfigError where it cannot be had, with all that is missing. `ask` is for tests.
    """
    if wanted == CPU:
        return (CPU,)
    ordinal = None if wanted in (ALL, AUTO) else ordinal_of(wanted)
    try:
        driver = (ask or ask_driver)()
    except NoDriver as error:
        if wanted == AUTO and not _KERNEL_MODULE.exists():
            return _cpu_since(str(error))
        if wanted == AUTO:
            raise ConfigError(
                f"this machine has an NVIDIA GPU, but {error}; --device cpu serves without it"
            ) from error
        raise ConfigError(f"--device {wanted}: {error}") from error
    if not driver.gpus:
        if wanted == AUTO:
            return _cpu_since("the NVIDIA driver shows no GPU")
        raise ConfigError(f"--device {wanted}: the driver shows no GPU")
    gpus: Sequence[Gpu] = driver.gpus
    if ordinal is not None:
        gpus = [gpu for gpu in driver.gpus if gpu.ordinal == ordinal]
        if not gpus:
            raise ConfigError(
                f"--device {wanted}: this machine has {len(driver.gpus)} CUDA devices"
            )
    missing = _missing(driver, gpus)
    if missing:
        names = ", ".join(f"{gpu.name} (cuda:{gpu.ordinal})" for gpu in gpus)
        instead = "; --device cpu serves without it" if wanted == AUTO else ""
        raise ConfigError(f"--device {wanted}: {names}: {'; '.join(missing)}{instead}")
    return tuple(f"cuda:{gpu.ordinal}" for gpu in gpus)


def _cpu_since(reason: str) -> tuple[str, ...]:
    print(f"remontoir: {reason}: on the CPU", file=sys.stderr)
    return (CPU,)


def _missing(driver: Driver, gpus: Sequence[Gpu]) -> list[str]:
    """Everything that keeps these GPUs from being served on, so that it is mended in one go."""
    missing = [
        f"compute capability {'.'.join(map(str, gpu.compute_capability))} of cuda:{gpu.ordinal} is"
        f" below {'.'.join(map(str, tensorrt_package.OLDEST_CAPABILITY))}, which TensorRT needs"
        for gpu in gpus
        if gpu.compute_capability < tensorrt_package.OLDEST_CAPABILITY
    ]
    capabilities = {
        f"cuda:{gpu.ordinal}": gpu.compute_capability
        for gpu in gpus
        if gpu.compute_capability >= tensorrt_package.OLDEST_CAPABILITY
    }
    absent = [package for module, package in _PACKAGES if not _is_there(module)]
    if absent:
        others = [package for package in absent if package != "tensorrt"]
        ways = [f"pip install {' '.join(others)}"] if others else []
        if "tensorrt" in absent:
            ways.insert(0, tensorrt_package.suitable(driver.cuda_version, capabilities))
        missing.append(
            f"{' and '.join(absent)} not installed: {'; '.join(ways)} (the driver runs CUDA"
            f" {'.'.join(map(str, driver.cuda_version))}; make gpu-packages in a checkout does it)"
        )
        return missing
    broken = _broken()
    if not broken:
        installed = tensorrt_package.installed()
        missing += tensorrt_package.unmet(installed, driver.cuda_version, capabilities)
    return missing + broken


def _broken() -> list[str]:
    """Packages that are there and cannot be used, with what they say."""
    broken = []
    for module, package in _PACKAGES:
        try:
            importlib.import_module(f"{module}.driver" if module != "tensorrt" else module)
        except Exception as error:  # a library that is not found, of another version, or worse
            text = " ".join(str(error).split())
            broken.append(f"{package} cannot be used: {type(error).__name__}: {text}")
    return broken


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def ask_driver() -> Driver:
    """Raises NoDriver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoDriver("no NVIDIA driver is installed (libcuda.so.1 is not found)") from None

    def call(name: str, *arguments: object) -> None:
        code = getattr(library, name)(*arguments)
        if code:
            raise NoDriver(f"the NVIDIA driver does not work: {name} gives {_word(library, code)}")

    number = ctypes.c_int()
    # "No device", as in a container that was given none, is no fault.
    code = library.cuInit(0)
    if code == _NO_DEVICE:
        return Driver((0, 0), ())
    if code:
        raise NoDriver(f"the NVIDIA driver does not work: cuInit gives {_word(library, code)}")
    call("cuDriverGetVersion", ctypes.byref(number))
    version = number.value // 1000, number.value % 1000 // 10
    call("cuDeviceGetCount", ctypes.byref(number))
    return Driver(version, tuple(_gpu(library, call, index) for index in range(number.value)))


_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def _gpu(library: ctypes.CDLL, call: Callable[..., None], ordinal: int) -> Gpu:
    device, value = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_MAX_NAME)
    call("cuDeviceGet", ctypes.byref(device), ordinal)
    call("cuDeviceGetName", name, _MAX_NAME, device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(ordinal, name.value.decode(errors="replace"), (capability[0], capability[1]))


def _word(library: ctypes.CDLL, code: int) -> str:
    """CUDA's name of an error."""
    text = ctypes.c_char_p()
    if library.cuGetErrorName(code, ctypes.byref(text)) or text.value is None:
        return f"error {code}"
    return text.value.decode()
