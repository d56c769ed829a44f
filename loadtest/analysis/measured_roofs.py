"""Models of results under this machine's roof: found by their files, executed alone.

Owns which files, batch sizes and shapes. Counting and timing are roofline.py's.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import yaml

from loadtest.analysis import ceilings, roofline
from loadtest.analysis.cell import Cell
from loadtest.analysis.graph_cost import GraphError, RowShapes
from loadtest.analysis.report_page import Roofs
from loadtest.machine import QUIET_LOAD, describe, load_average

BATCHES = (1, 2, 4, 8, 16)
# Of one execution: what takes longer is not executed in larger batches as well.
MAX_EXECUTION_S = 0.5

Say = Callable[[str], None]


def roofs_of(
    models: Iterable[tuple[str, Path]],
    *,
    threads: int,
    batches: Sequence[int] = BATCHES,
    shapes: RowShapes | None = None,
    missing: Sequence[str] = (),
    say: Say = lambda _: None,
) -> Roofs:
    """Measure ceilings, and every model by name and file; what cannot be is in `missing`.

    `shapes` go before those of a model's own config.yaml.
    """
    say(f"measuring the ceilings with {threads} thread(s)")
    found = ceilings.measure(threads=threads, device="this machine's CPU", on_step=say)
    points, kinds, times, lacking = [], {}, {}, list(missing)
    if load_average() > QUIET_LOAD:
        lacking.append(
            f"The machine was not quiet (load average {load_average():.1f}): ceilings and "
            "executions are lower than it can do"
        )
    for name, path in models:
        try:
            rows = shapes or row_shapes(path)
            for batch in batches:
                say(f"{name}, batch {batch}")
                try:
                    point, cost, spent = roofline.measure(
                        path, batch=batch, threads=threads, shapes=rows, measure_s=0.4
                    )
                except GraphError as error:
                    if batch == min(batches):
                        raise
                    lacking.append(f"{name}, batch {batch}: {error}")
                    break
                points.append(msgspec.structs.replace(point, model=name))
                if batch == min(batches):
                    kinds[name] = tuple(roofline.by_kind(cost))
                    times[name] = tuple(spent)
                if point.execution_s > MAX_EXECUTION_S:
                    break
        except GraphError as error:
            lacking.append(f"{name}: {error}")
    machine = describe()
    return Roofs(
        ceilings=found,
        points=tuple(points),
        kinds=kinds,
        times=times,
        missing=tuple(lacking),
        machine=f"{machine.cpu}, {machine.num_cpus} CPUs",
    )


def models_of(cells: Iterable[Cell]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Name and file of what results are of, and why others cannot be looked at here."""
    paths: dict[str, str] = {}
    for cell in cells:
        paths[cell.model] = paths.get(cell.model) or cell.model_path
    found, missing = [], []
    for name, text in sorted(paths.items()):
        if not text:
            missing.append(f"{name}: the results do not say where its model.onnx is")
        elif not Path(text).exists():
            missing.append(f"{name}: {text} is not on this machine")
        else:
            found.append((name, Path(text)))
    return found, missing


def row_shapes(path: Path) -> RowShapes:
    """The first `profile_shapes` of the model's config.yaml (DIR/MODEL/VERSION/model.onnx), if
    there is one. Raises GraphError for one that cannot be read.
    """
    file = path.parent.parent / "config.yaml"
    if not file.exists():
        return {}
    try:
        tree = yaml.safe_load(file.read_text("utf-8")) or {}
        shapes = tree.get("profile_shapes") or {}
        return msgspec.convert(
            {name: rows[0] for name, rows in shapes.items()}, dict[str, tuple[int, ...]]
        )
    except (OSError, yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise GraphError(f"{file}: profile_shapes cannot be read: {error}") from error
