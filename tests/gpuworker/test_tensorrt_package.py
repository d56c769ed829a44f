"""Which TensorRT suits which driver and card, and what is said where it does not."""

import importlib
import sys
from pathlib import Path

import pytest

from gpuworker import tensorrt_package
from gpuworker.tensorrt_package import TensorRtPackage, suitable, unmet

V100, T4, H200 = (7, 0), (7, 5), (9, 0)


def of(*capabilities: tuple[int, int]) -> dict[str, tuple[int, int]]:
    return {f"cuda:{number}": capability for number, capability in enumerate(capabilities)}


@pytest.mark.parametrize(
    ("version", "cuda", "driver", "card"),
    [
        ("8.5.3.1", 11, (11, 8), V100),
        ("8.6.1", 12, (12, 0), V100),
        ("10.4.0", 12, (13, 0), V100),  # an old TensorRT on a new driver
        ("10.5.0", 12, (12, 1), T4),
        ("11.4.0.106", 13, (13, 0), H200),
        ("11.4.0.106", None, (12, 0), H200),  # what cannot be known is not held against it
    ],
)
def test_what_suits_is_not_complained_of(
    version: str, cuda: int | None, driver: tuple[int, int], card: tuple[int, int]
) -> None:
    assert unmet(TensorRtPackage(version, cuda), driver, of(card)) == []


def test_a_driver_that_is_too_old_is_named_with_both_ways_out() -> None:
    assert unmet(TensorRtPackage("10.14.1.48", 13), (12, 4), of(H200)) == [
        "TensorRT 10.14.1.48 is built for CUDA 13, the driver runs 12.4: pip install tensorrt-cu12,"
        " or a driver for CUDA 13 (580 or newer)"
    ]


def test_a_card_that_is_too_old_is_named_and_those_that_are_not_are_not() -> None:
    assert unmet(TensorRtPackage("10.5.0", 12), (12, 4), of(H200, V100, T4)) == [
        "TensorRT 10.5.0 needs compute capability 7.5, cuda:1 has 7.0:"
        " pip install 'tensorrt-cu12<10.5'"
    ]


@pytest.mark.parametrize(
    ("driver", "cards", "way"),
    [
        ((13, 0), (H200,), "pip install tensorrt-cu13"),
        ((12, 9), (H200, T4), "pip install tensorrt-cu12"),
        ((14, 1), (H200,), "pip install tensorrt-cu13"),
        ((13, 0), (H200, V100), "pip install 'tensorrt-cu12<10.5'"),
        ((13, 0), (), "pip install tensorrt-cu13"),
        ((11, 4), (V100,), "a newer driver first: 11.4 is older than CUDA 12 (525 or newer)"),
    ],
)
def test_the_package_for_a_driver_and_all_cards_of_a_machine(
    driver: tuple[int, int], cards: tuple[tuple[int, int], ...], way: str
) -> None:
    assert suitable(driver, of(*cards)) == way


@pytest.mark.parametrize(
    ("distributions", "expected"),
    [
        ({"tensorrt_cu13": ("11.4.0", []), "tensorrt": ("11.4.0", ["tensorrt_cu13==11.4.0"])}, 13),
        ({"tensorrt_cu12_libs": ("11.4.0.post1", [])}, 12),
        ({"tensorrt": ("11.4.0", ["tensorrt-libs"]), "tensorrt_libs": ("11.4.0", ["x-cu11"])}, 11),
        ({"tensorrt_cu13": ("10.9.0", [])}, None),  # of another one, which is not what is imported
        ({}, None),
    ],
    ids=["by name", "the library's", "by what it requires", "another version", "unknown"],
)
def test_what_it_is_built_for_is_told_by_the_packages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    distributions: dict[str, tuple[str, list[str]]],
    expected: int | None,
) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '11.4.0'\n")
    for name, (version, requires) in distributions.items():
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        directory = tmp_path / f"{name}-{version}.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    importlib.invalidate_caches()
    try:
        assert tensorrt_package.installed() == TensorRtPackage("11.4.0", expected)
    finally:
        sys.modules.pop("tensorrt", None)
