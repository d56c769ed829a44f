"""What a step of the check needs of this machine, and one line that says what is missing.

It asks the driver itself (device_choice.py), before anything of CUDA is imported.
"""

import importlib.util
from collections.abc import Callable

from gpuworker.config import ConfigError
from gpuworker.device_choice import Driver, NoDriver, ask_driver, ordinal_of
from gpuworker.tensorrt_package import OLDEST_CAPABILITY

# Page sizes, access flags and graphs of this CUDA are what the devices are written for.
OLDEST_CUDA = (11, 3)


def ordinal_for(device: str, *, with_tensorrt: bool, ask: Callable[[], Driver] = ask_driver) -> int:
    """The number of "cuda:N". Raises ConfigError with all that is missing, in one line.

    `ask` is for tests.
    """
    ordinal = ordinal_of(device)
    if ordinal is None:
        raise ConfigError(f"--device {device}: this step is about a GPU, cuda:0 for example")
    missing: list[str] = []
    try:
        missing += _missing_of(ask(), ordinal)
    except NoDriver as error:
        missing.append(str(error))
    if not _is_there("cuda.bindings"):
        missing.append("cuda-bindings is not installed: pip install cuda-bindings")
    if with_tensorrt:
        missing += _missing_tensorrt()
    if missing:
        raise ConfigError(f"--device {device}: {'; '.join(missing)}")
    return ordinal


def _missing_of(driver: Driver, ordinal: int) -> list[str]:
    gpus = [gpu for gpu in driver.gpus if gpu.ordinal == ordinal]
    if not gpus:
        return [f"the driver shows {len(driver.gpus)} GPUs, and none of this number"]
    missing = []
    if driver.cuda_version < OLDEST_CUDA:
        missing.append(
            f"the driver runs CUDA {_dotted(driver.cuda_version)},"
            f" {_dotted(OLDEST_CUDA)} or newer is needed"
        )
    if gpus[0].compute_capability < OLDEST_CAPABILITY:
        missing.append(
            f"{gpus[0].name} has compute capability {_dotted(gpus[0].compute_capability)},"
            f" {_dotted(OLDEST_CAPABILITY)} or newer is needed"
        )
    return missing


def _missing_tensorrt() -> list[str]:
    """By the product's own words: which version, and why it cannot be imported."""
    from gpuworker.engines.tensorrt_api import TensorRt

    try:
        TensorRt()
    except ConfigError as error:
        return [str(error)]
    except Exception as error:  # a library that is not found, or of another driver
        return [f"TensorRT cannot be used: {type(error).__name__}: {' '.join(str(error).split())}"]
    return []


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
