"""The stand-in driver, for tests of the CUDA device, and a context on it."""

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.standin.driver import StandIn, build, compiler

if TYPE_CHECKING:
    from gpuworker.devices.cuda_context import CudaContext


@pytest.fixture(scope="session")
def _driver(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    if compiler() is None:
        pytest.skip("needs a C compiler")
    missing = [name for name in ("cuda.bindings", "pycuda") if not _is_there(name)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: make cuda-packages")
    return StandIn(build(tmp_path_factory.mktemp("standin")))


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture
def standin(_driver: StandIn) -> Iterator[StandIn]:
    """Whole again after each test."""
    yield _driver
    _driver.heal()


@pytest.fixture(scope="session")
def _context(_driver: StandIn) -> Iterator["CudaContext"]:
    from gpuworker.devices.cuda_context import CudaContext

    context = CudaContext(0)
    yield context
    context.close()


@pytest.fixture
def cuda_context(_context: "CudaContext", standin: StandIn) -> "CudaContext":
    """One for all tests, as in a worker: the device's primary context."""
    return _context
