"""Models for the simulator: how long they execute and load, and how large their weights are.

Owns the ways to say it: a row of the Clockwork paper's V100 table, a straight line, or a catalogue
that `remontoir compile` measured. Times between the measured batch sizes are the scheduler's own
matter (scheduler/profile.py). It holds no model and runs nothing.
"""

import csv
import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

from scheduler.spec import MILLISECOND_NS, ModelProfile, ModelSpec, ShapeProfile, TensorSpec

# A copy of gpuworker/data's, as loadtest knows no gpuworker; a test holds them equal.
V100_TABLE = "clockwork_osdi20_table1_v100.csv"
V100_BATCH_SIZES = (1, 2, 4, 8, 16)
MEGABYTE = 1_000_000  # the table's are decimal: 102.2 MB in 8.32 ms are PCIe's 12.3 GB/s


class ProfileError(ValueError):
    """A profile that is not there, or that no model can have."""


class ModelMaker(msgspec.Struct, frozen=True):
    """Makes any number of models, equal but for the name."""

    spec: ModelSpec

    def __call__(self, name: str, *, is_pinned: bool = False) -> ModelSpec:
        # Another model is other content, even with the same profile.
        text = f"{name}/{self.spec.content_hash}"
        return msgspec.structs.replace(
            self.spec,
            name=name,
            content_hash=hashlib.sha256(text.encode()).hexdigest(),
            is_pinned=is_pinned,
        )


def v100(row_name: str, *, max_batch: int = 16, runs_exact_batch: bool = False) -> ModelMaker:
    """A row of the Clockwork paper's table (OSDI 2020, appendix A), Tesla V100 and TVM 0.7.

    `max_batch` is one of 1, 2, 4, 8, 16. Raises ProfileError for a row or size that it lacks.
    """
    row = _v100_rows().get(row_name)
    if row is None:
        near = get_close_matches(row_name, _v100_rows())
        raise ProfileError(
            f"v100/{row_name} is not one of the table's {len(_v100_rows())} models"
            + (f"; near it: {', '.join(near)}" if near else "")
        )
    if max_batch not in V100_BATCH_SIZES:
        sizes = ", ".join(map(str, V100_BATCH_SIZES))
        raise ProfileError(f"v100/{row_name}: max_batch {max_batch} is not one of {sizes}")
    sizes_used = V100_BATCH_SIZES[: V100_BATCH_SIZES.index(max_batch) + 1]
    return _maker(
        f"v100/{row_name}",
        load_ms=float(row["load_ms"]),
        exec_ms={size: float(row[f"exec_b{size}_ms"]) for size in sizes_used},
        weights_mb=float(row["weights_mb"]),
        runs_exact_batch=runs_exact_batch,
    )


def v100_names() -> list[str]:
    """All models of the table, in its order."""
    return list(_v100_rows())


def linear(
    *,
    first_ms: float,
    each_ms: float,
    load_ms: float,
    weights_mb: float,
    max_batch: int = 16,
    runs_exact_batch: bool = False,
) -> ModelMaker:
    """A batch of n takes first_ms + (n - 1) * each_ms; sizes are the powers of two and max_batch.

    Megabytes are decimal. Raises ProfileError for a figure that no model can have.
    """
    for field, value in (("first_ms", first_ms), ("load_ms", load_ms), ("max_batch", max_batch)):
        if not value > 0:
            raise ProfileError(f"linear profile: {field} {value} is not positive")
    for field, value in (("each_ms", each_ms), ("weights_mb", weights_mb)):
        if not value >= 0:
            raise ProfileError(f"linear profile: {field} {value} is negative")
    sizes = [1 << power for power in range((max_batch - 1).bit_length())] + [max_batch]
    return _maker(
        f"linear/{first_ms}+{each_ms}",
        load_ms=load_ms,
        exec_ms={size: first_ms + (size - 1) * each_ms for size in sizes},
        weights_mb=weights_mb,
        runs_exact_batch=runs_exact_batch,
    )


def catalogue(file: str | Path, model: str) -> ModelMaker:
    """A model of a catalogue that `remontoir compile` wrote, with what it measured.

    Raises ProfileError if the file is no catalogue, or the model is not in it or cannot be served.
    """
    specs = _read_catalogue(Path(file))
    spec = specs.get(model)
    if spec is None:
        raise ProfileError(f"catalogue {file}: no model {model!r}, there is {', '.join(specs)}")
    if spec.unavailable_reason is not None:
        raise ProfileError(f"catalogue {file}: {model} is unavailable: {spec.unavailable_reason}")
    return ModelMaker(spec)


def catalogue_names(file: str | Path) -> list[str]:
    """The models of a catalogue that can be served. Raises ProfileError."""
    specs = _read_catalogue(Path(file))
    return [name for name, spec in specs.items() if spec.unavailable_reason is None]


def _maker(
    source: str,
    *,
    load_ms: float,
    exec_ms: Mapping[int, float],
    weights_mb: float,
    runs_exact_batch: bool,
) -> ModelMaker:
    exec_ns = {size: _ns(time_ms) for size, time_ms in exec_ms.items()}
    spec = ModelSpec(
        name=source,
        version="1",
        content_hash=f"{source} {exec_ns} {load_ms} {weights_mb} {runs_exact_batch}",
        platform="simulated",
        inputs=(TensorSpec("x", "UINT8", (-1, -1)),),
        outputs=(TensorSpec("y", "UINT8", (-1, -1)),),
        batch_sizes=tuple(exec_ns),
        runs_exact_batch=runs_exact_batch,
        weights_bytes=round(weights_mb * MEGABYTE),
        # No elements to scale by: the durations do not depend on the input's length.
        profile=ModelProfile(_ns(load_ms), (ShapeProfile("", 0, exec_ns),)),
    )
    return ModelMaker(spec)


@cache
def _v100_rows() -> Mapping[str, Mapping[str, str]]:
    table = resources.files("loadtest").joinpath("data", V100_TABLE)
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {row["model"]: row for row in rows}


def _read_catalogue(path: Path) -> dict[str, ModelSpec]:
    try:
        specs = msgspec.json.decode(path.read_bytes(), type=list[ModelSpec])
    except OSError as error:
        raise ProfileError(f"catalogue {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ProfileError(f"catalogue {path}: {error}") from error
    return {spec.name: spec for spec in specs}


def _ns(time_ms: float) -> int:
    return round(time_ms * MILLISECOND_NS)
