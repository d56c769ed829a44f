"""What TensorRT needs of a driver and of a card, and which of its packages suits both.

Owns the table of its versions. TensorRT itself says nothing that helps: its constructors return no
object where the driver or the card is too old. All of this is known without asking it.
"""

import importlib
import importlib.metadata
import itertools
import re
import shlex
from collections.abc import Mapping
from typing import NamedTuple

# (from this version on, the oldest compute capability), newest first. Before: all that has virtual
# memory, which begins with Volta.
_CARDS = (((10, 5), (7, 5)), ((0, 0), (7, 0)))
OLDEST_CAPABILITY = _CARDS[-1][1]
# What a program of this CUDA runs on: any driver of the same major version or a newer one, since
# CUDA 11. The first driver of each.
_FIRST_DRIVERS = {11: "450", 12: "525", 13: "580"}
# The packages that hold TensorRT's library are named after the CUDA that it is built for.
_PACKAGED_FOR = (13, 12)

Version = tuple[int, int]


class TensorRtPackage(NamedTuple):
    """`cuda_major` is what it is built for; None where that cannot be known."""

    version: str
    cuda_major: int | None


def installed() -> TensorRtPackage:
    """The one that is imported here. Raises what importing it raises."""
    version: str = importlib.import_module("tensorrt").__version__
    return TensorRtPackage(version, _built_for(version))


def unmet(
    package: TensorRtPackage, driver_cuda: Version, capabilities: Mapping[str, Version]
) -> list[str]:
    """What it needs and does not have here, in words. `capabilities` are those of devices by name.

    `driver_cuda` is the newest CUDA that the driver runs.
    """
    found = []
    instead = suitable(driver_cuda, capabilities)
    major = package.cuda_major
    if major is not None and major > driver_cuda[0]:
        first = f" ({_FIRST_DRIVERS[major]} or newer)" if major in _FIRST_DRIVERS else ""
        found.append(
            f"TensorRT {package.version} is built for CUDA {major}, the driver runs"
            f" {_words(driver_cuda)}: {instead}, or a driver for CUDA {major}{first}"
        )
    oldest = _oldest_capability(package.version)
    for device, capability in capabilities.items():
        if OLDEST_CAPABILITY <= capability < oldest:
            found.append(
                f"TensorRT {package.version} needs compute capability {_words(oldest)}, {device}"
                f" has {_words(capability)}: {instead}"
            )
    return found


def suitable(driver_cuda: Version, capabilities: Mapping[str, Version]) -> str:
    """How to get one that runs on this driver and all of these devices, in words."""
    found = requirement(driver_cuda, capabilities)
    if found is None:
        return (
            f"a newer driver first: {_words(driver_cuda)} is older than CUDA {_PACKAGED_FOR[-1]}"
            f" ({_FIRST_DRIVERS[_PACKAGED_FOR[-1]]} or newer)"
        )
    return f"pip install {shlex.quote(found)}"


def requirement(driver_cuda: Version, capabilities: Mapping[str, Version]) -> str | None:
    """What pip is asked for, None where the driver is too old for all of them."""
    major = cuda_packages_for(driver_cuda)
    if major is None:
        return None
    oldest = min(capabilities.values(), default=_CARDS[0][1])
    for (since, needed), (_, before) in itertools.pairwise(_CARDS):
        if before <= oldest < needed:
            # Packages for CUDA 13 are newer than those that left such cards behind.
            return f"tensorrt-cu12<{_words(since)}"
    return f"tensorrt-cu{major}"


def cuda_packages_for(driver_cuda: Version) -> int | None:
    """The newest CUDA, by its major version, that this driver runs and that there is TensorRT for;
    None where it runs none of them.
    """
    return next((major for major in _PACKAGED_FOR if major <= driver_cuda[0]), None)


def _oldest_capability(version: str) -> Version:
    numbers = re.findall(r"\d+", version)
    found = (int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0) if numbers else (0, 0)
    return next(needed for since, needed in _CARDS if found >= since)


def _built_for(version: str) -> int | None:
    """By the name of the package that brought it, or by what that one requires."""
    names = [f"tensorrt-cu{major}{part}" for part in ("", "-libs") for major in range(11, 20)]
    found = [name for name in names if _version_of(name).startswith(version)]
    for name in ("tensorrt", "tensorrt-libs"):
        if _version_of(name).startswith(version):
            found += importlib.metadata.requires(name) or ()
    majors = [int(match[1]) for name in found if (match := re.search(r"[-_]cu(\d\d)\b", name))]
    return min(majors, default=None)  # of several, the one that asks for less


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _words(version: Version) -> str:
    return ".".join(map(str, version))
