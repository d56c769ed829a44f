"""The stand-in driver, for tests of the CUDA device, and a context on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gpuworker.compiled_plans import Compiled
from tests.standin.driver import StandIn, build, why_not

if TYPE_CHECKING:
    from gpuworker.devices.cuda_context import CudaContext


@pytest.fixture(scope="session")
def _driver(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    return StandIn(build(tmp_path_factory.mktemp("standin")))


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


@pytest.fixture
def compiled(tmp_path: Path, cuda_context: "CudaContext") -> Compiled:
    return Compiled(tmp_path, cuda_context)
