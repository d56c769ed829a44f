"""Model repositories for the benchmarks, in the layout that a user's would have.

Owns the files under the output directory's `models/`, and the calibration of models that must take
a given time on this very core. What is there already is used again, if it still fits.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from loadtest import graphs
from loadtest.reference import measure

# How far a calibrated model's time may be from its target.
TOLERANCE = 0.1
MAX_CALIBRATIONS = 6
CALIBRATION_S = 0.6

NUM_PAGING_MODELS = 12
# Two layers of 2,000 x 2,000 and the edges: 33 MB, two pages of 16 MiB, above the cores' caches.
PAGING_SIZES = (64, 2000, 2000, 2000, 64)


class CalibrationError(Exception):
    """The core is too unsteady for a model of a given time."""


def cnn(root: Path) -> Path:
    """Repository of one ResNet-34."""
    _ensure(root / "resnet34", "cnn", lambda: graphs.resnet((3, 4, 6, 3)))
    return root / "resnet34"


def tiny(root: Path) -> Path:
    """Repository of the 64-64-10 MLP."""
    _ensure(root / "tiny", "mlp", lambda: graphs.mlp(sizes=(64, 64, 10), seed=64))
    return root / "tiny"


def paging(root: Path) -> Path:
    """Repository of twelve equal models with different weights."""
    for index in range(NUM_PAGING_MODELS):
        _ensure(
            root / "paging",
            f"model{index:02d}",
            lambda index=index: graphs.mlp(sizes=PAGING_SIZES, seed=1000 + index),  # type: ignore[misc]
        )
    return root / "paging"


def picture(root: Path) -> Path:
    """Repository of a model that takes a picture as floats and does next to nothing."""
    _ensure(root / "picture", "brightness", graphs.brightness)
    return root / "picture"


def payloads(root: Path, sizes_bytes: Sequence[int]) -> Path:
    """Repository of models that take so many bytes and do next to nothing: `bytes<N>`."""
    for size in sizes_bytes:
        _ensure(
            root / "payloads",
            f"bytes{size}",
            lambda size=size: graphs.largest(num_values=size // 4),  # type: ignore[misc]
        )
    return root / "payloads"


def mixed(root: Path, *, say: Callable[[str], None]) -> tuple[Path, dict[str, float]]:
    """Repository of `fast`, 3 ms, and `slow`, 30 ms at batch 1; and the times they have.

    Raises CalibrationError.
    """
    times = {
        name: _calibrated(root / "mixed", name, target_ms, shape, say)
        for name, target_ms, shape in (
            ("fast", 3.0, {"channels": 32, "size": 28}),
            ("slow", 30.0, {"channels": 64, "size": 28}),
        )
    }
    return root / "mixed", times


def reload(root: Path) -> Path:
    """Repository of `fast`, `slow`, and `changing` in its first version alone; not calibrated."""
    repository = root / "reload"
    shutil.rmtree(repository / "changing", ignore_errors=True)
    for name, layers, channels in (("fast", 12, 32), ("slow", 36, 64), ("changing", 12, 32)):
        path = model_path(repository, name)
        if not path.exists():
            _write(path, graphs.conv_chain(layers=layers, channels=channels, size=28))
    return repository


def two_sizes(root: Path) -> Path:
    """Repository of `fast` and `slow`, one about ten times as long as the other; not calibrated."""
    for name, layers, channels in (("fast", 12, 32), ("slow", 36, 64)):
        _ensure(
            root / "two_sizes",
            name,
            lambda layers=layers, channels=channels: graphs.conv_chain(  # type: ignore[misc]
                layers=layers, channels=channels, size=28
            ),
        )
    return root / "two_sizes"


def model_path(repository: Path, name: str) -> Path:
    return repository / name / "1" / "model.onnx"


def _calibrated(
    repository: Path, name: str, target_ms: float, shape: dict[str, int], say: Callable[[str], None]
) -> float:
    """Make the chain longer or shorter until its batch 1 takes the target; returns its time."""
    path = model_path(repository, name)
    if path.exists():
        found_ms = _time_ms(path)
        if abs(found_ms - target_ms) <= TOLERANCE * target_ms:
            return found_ms
    layers = 16
    for _ in range(MAX_CALIBRATIONS):
        _write(path, graphs.conv_chain(layers=layers, **shape))
        found_ms = _time_ms(path)
        say(f"calibrating {name}: {layers} layers take {found_ms:.2f} ms")
        if abs(found_ms - target_ms) <= TOLERANCE / 2 * target_ms:
            return found_ms
        layers = max(1, round(layers * target_ms / found_ms))
    raise CalibrationError(
        f"{name}: {layers} layers take {found_ms:.2f} ms, not {target_ms} ms "
        f"within {TOLERANCE:.0%}, after {MAX_CALIBRATIONS} tries: the core is too unsteady"
    )


def _time_ms(path: Path) -> float:
    return measure(path, seconds=CALIBRATION_S, batch_sizes=[1])[1].exec_p50_ms


def _ensure(repository: Path, name: str, build: Callable[[], Any]) -> None:
    path = model_path(repository, name)
    if not path.exists():
        _write(path, build())


def _write(path: Path, model: Any) -> None:
    """Whole or not at all: a half-written model would be found again by the next run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    onnx.save(model, str(half))
    half.replace(path)
