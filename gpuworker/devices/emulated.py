"""A device without hardware: durations from a published profile, pages and windows honoured.

It owns a table of models and, for each, which pages it was given. It keeps no weights and computes
nothing: LOAD and EXEC wait until the profile says they would be over, outputs are zeros. It imports
no engine, so dozens of workers fit on a laptop. As on a real device, executing a model whose
weights are not mapped is an error.
"""

import csv
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from gpuworker.backend import EngineError, InvalidInput, Prepared
from scheduler.actions import Infer
from scheduler.spec import (
    MILLISECOND_NS,
    SECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    ShapeProfile,
    TensorSpec,
)
from scheduler.wire import Buffer, RequestTensors, TensorMeta

# What `--emulate NAME` may say → the table in gpuworker/data.
EMULATIONS: Mapping[str, str] = {"clockwork-v100": "clockwork_osdi20_table1_v100.csv"}
BATCH_SIZES = (1, 2, 4, 8, 16)
PLATFORM = "emulated"
_ANY_ROW_BYTES = 2**63


class UnknownEmulation(ValueError):
    """There is no emulation of that name."""


class EmulatedModel(NamedTuple):
    spec: ModelSpec
    max_row_bytes: int
    output_row_bytes: int
    load_ns: int
    exec_ns: Mapping[int, int]


class StagedRows(NamedTuple):
    model: EmulatedModel
    batch_size: int
    rows: tuple[int, ...]


def emulated_specs(
    emulation: str, is_ours: Callable[[str], bool] = lambda _: True
) -> list[ModelSpec]:
    """The catalogue of an emulation. Raises UnknownEmulation."""
    return [model.spec for model in read_models(emulation) if is_ours(model.spec.name)]


def read_models(emulation: str) -> list[EmulatedModel]:
    """The models of an emulation, in the order of its table. Raises UnknownEmulation."""
    if emulation not in EMULATIONS:
        raise UnknownEmulation(f"no emulation {emulation!r}, there is {', '.join(EMULATIONS)}")
    table = resources.files("gpuworker") / "data" / EMULATIONS[emulation]
    lines = table.read_text(encoding="utf-8").splitlines()
    return [_model(row, line) for row, line in zip(csv.DictReader(lines), lines[1:], strict=True)]


class EmulatedBackend:
    """A `gpuworker.backend.Backend`."""

    overlaps_io = False
    telemetry = None

    def __init__(
        self,
        emulation: str,
        *,
        cache_bytes: int,
        page_bytes: int,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
        is_ours: Callable[[str], bool] = lambda _: True,
    ) -> None:
        models = read_models(emulation)
        self._models = {model.spec.name: model for model in models if is_ours(model.spec.name)}
        self._clock = clock
        self._sleep = sleep
        # All and only models whose weights are mapped.
        self._mapped: dict[str, tuple[int, ...]] = {}
        self.models: dict[str, ModelSpec] = {n: m.spec for n, m in self._models.items()}
        self.device = DeviceSpec(
            kind=f"emulated {emulation}",
            page_bytes=page_bytes,
            total_pages=cache_bytes // page_bytes,
            shares_exec_core=False,
        )

    def bind_thread(self) -> None:
        """All threads are alike."""

    def prepare(self, spec: ModelSpec) -> Prepared:
        """As the gateway's profile has it: its first shape's durations, for rows of any length."""
        (shape, *_) = spec.profile.shapes
        emulated = EmulatedModel(
            spec,
            max_row_bytes=_ANY_ROW_BYTES,
            output_row_bytes=max(1, spec.outputs[0].shape[-1]),
            load_ns=spec.profile.load_ns,
            exec_ns=shape.exec_ns,
        )
        return Prepared(spec, emulated)

    def add(self, prepared: Prepared) -> None:
        self._models[prepared.spec.name] = prepared.session
        self.models[prepared.spec.name] = prepared.spec

    def remove(self, model: str) -> None:
        self._models.pop(model, None)
        self.models.pop(model, None)

    def load(self, model: str, pages: Sequence[int]) -> int:
        begin_ns = self._clock()
        emulated = self._models[model]
        num_pages = emulated.spec.num_pages(self.device.page_bytes)
        if len(pages) != num_pages:
            raise EngineError(f"{model}: {num_pages} pages needed, {len(pages)} given")
        self._sleep_until(begin_ns + emulated.load_ns)
        self._mapped[model] = tuple(pages)
        return emulated.load_ns

    def evict(self, model: str) -> None:
        del self._mapped[model]

    def release(self, model: str) -> int:
        """Nothing is kept of it."""
        return 0

    def stage(
        self,
        order: Infer,
        tensors: Sequence[RequestTensors],
        views: Sequence[Sequence[memoryview]],
    ) -> StagedRows:
        model = self._models[order.model]
        if order.batch_size not in model.exec_ns:
            raise InvalidInput(
                f"{order.model}: batch size {order.batch_size} is not among {BATCH_SIZES}"
            )
        for rows, request_tensors, request_views in zip(order.rows, tensors, views, strict=True):
            if len(request_tensors) != 1:
                raise InvalidInput(f"{order.model}: {len(request_tensors)} tensors, takes one, x")
            shape = request_tensors[0].shape
            num_bytes = len(request_views[0])
            if len(shape) != 2 or shape[0] != rows or shape[1] * rows != num_bytes:
                raise InvalidInput(
                    f"{order.model}: x of shape {list(shape)} and {num_bytes} bytes is not "
                    f"{rows} rows of bytes"
                )
            if shape[1] > model.max_row_bytes:
                raise InvalidInput(
                    f"{order.model}: a row of {shape[1]} bytes, x takes {model.max_row_bytes}"
                )
        return StagedRows(model, order.batch_size, order.rows)

    def execute(self, staged: StagedRows) -> int:
        begin_ns = self._clock()
        name = staged.model.spec.name
        if name not in self._mapped:
            raise EngineError(f"{name}: executed with no weights mapped")
        duration_ns = staged.model.exec_ns[staged.batch_size]
        self._sleep_until(begin_ns + duration_ns)
        return duration_ns

    def unstage(self, staged: StagedRows) -> tuple[tuple[RequestTensors, ...], list[Buffer]]:
        row_bytes = staged.model.output_row_bytes
        tensors = tuple((TensorMeta((rows, row_bytes), rows * row_bytes),) for rows in staged.rows)
        return tensors, [bytes(rows * row_bytes) for rows in staged.rows]

    def discard(self, staged: StagedRows) -> None:
        """Nothing is held but memory."""

    def close(self) -> None:
        self._mapped.clear()

    def _sleep_until(self, end_ns: int) -> None:
        while (left_ns := end_ns - self._clock()) > 0:
            self._sleep(left_ns / SECOND_NS)


def _model(row: Mapping[str, str], line: str) -> EmulatedModel:
    """One row of the table; `line` is its text, which names its content."""
    max_row_bytes = _kib(row["input_kb"])
    output_row_bytes = _kib(row["output_kb"])
    load_ns = _ms(row["load_ms"])
    exec_ns = {size: _ms(row[f"exec_b{size}_ms"]) for size in BATCH_SIZES}
    spec = ModelSpec(
        name=row["model"],
        version="1",
        content_hash=hashlib.sha256(line.encode()).hexdigest(),
        platform=PLATFORM,
        inputs=(TensorSpec("x", "UINT8", (-1, -1)),),
        outputs=(TensorSpec("y", "UINT8", (-1, output_row_bytes)),),
        batch_sizes=BATCH_SIZES,
        runs_exact_batch=False,
        # The table's megabytes are decimal: 102.2 MB in 8.32 ms are PCIe's 12.3 GB/s.
        weights_bytes=round(float(row["weights_mb"]) * 1_000_000),
        profile=ModelProfile(
            load_ns=load_ns,
            # No elements to scale by: the emulated duration does not depend on the input's length.
            shapes=(ShapeProfile(shape_key="", elements=0, exec_ns=exec_ns),),
        ),
    )
    return EmulatedModel(spec, max_row_bytes, output_row_bytes, load_ns, exec_ns)


def _kib(text: str) -> int:
    return max(1, round(float(text) * 1024))


def _ms(text: str) -> int:
    return round(float(text) * MILLISECOND_NS)
