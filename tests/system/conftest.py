"""Servers that several tests of this folder share: starting one costs seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.running import RunningGateway, running_gateway
from tests.system.stages import Stage, open_stage
from tests.system.zoo import CACHE_MB, write_zoo

# A tenth of the real one, so that the test of a slow body takes a second and not ten.
STAGE_SETTINGS = "body_timeout_ms: 1000\n"


@pytest.fixture(scope="session")
def zoo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of tests/system/zoo.py, and beside it `cache`, shared by who compiles it."""
    directory = tmp_path_factory.mktemp("zoo")
    write_zoo(directory / "models")
    return directory


@pytest.fixture(scope="session")
def zoo(zoo_dir: Path) -> Iterator[RunningGateway]:
    """Serves the zoo with one real worker, through a weights cache that is too small for it."""
    flags = ("--models", str(zoo_dir / "models"), "--cache-mb", str(CACHE_MB))
    with running_gateway(*flags, "--drain-s", "0", scratch=zoo_dir) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway that waits for puppets."""
    scratch = tmp_path_factory.mktemp("stage")
    flags = ("--drain-s", "0", "--log-level", "error")
    with open_stage(scratch, *flags, settings=STAGE_SETTINGS) as running:
        yield running
