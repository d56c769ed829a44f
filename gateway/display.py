"""What the command line shows: tables of models, phases of a request, progress of a download.

Owns layout and rounding. It must never fetch or compute what it shows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from gateway.client import NUMPY_TYPES, Answer, JsonObject
from gateway.fetch import OnProgress
from scheduler.spec import ModelSpec

# The phases of a request, as `timing_ms` names them, and what each is.
PHASES = {
    "queue": "waiting for its turn",
    "load": "waiting for the weights to be paged in",
    "input": "copying the inputs in",
    "exec": "executing",
    "output": "copying the outputs back",
}
SHOWN_VALUES = 12  # of a tensor, counting both ends


def specs_table(specs: Sequence[ModelSpec], *, page_bytes: int) -> Table:
    """What compiling found and measured."""
    table = _models_table()
    for spec in sorted(specs, key=lambda spec: spec.name):
        if spec.unavailable_reason is not None:
            table.add_row(spec.name, _unavailable(spec.unavailable_reason))
            continue
        shapes = [
            (shape.shape_key, {str(rows): ns / 1e6 for rows, ns in shape.exec_ns.items()})
            for shape in spec.profile.shapes
        ]
        table.add_row(
            spec.name,
            "compiled",
            str(spec.num_pages(page_bytes)),
            f"{spec.weights_bytes / 1e6:.1f}",
            _batch_sizes(spec.batch_sizes),
            f"{spec.profile.load_ns / 1e6:.1f}",
            _exec_ms(shapes),
        )
    return table


def models_table(models: Sequence[JsonObject]) -> Table:
    """GET /models: the same, with where the weights are now instead."""
    table = _models_table()
    for model in sorted(models, key=lambda model: str(model["name"])):
        if model["unavailable_reason"] is not None:
            table.add_row(model["name"], _unavailable(model["unavailable_reason"]))
            continue
        profile = model["profile"]
        table.add_row(
            model["name"],
            _weights_states([device["state"] for device in model["devices"]]),
            str(model["pages"]),
            f"{model['weights_bytes'] / 1e6:.1f}",
            _batch_sizes(model["batch_sizes"]),
            f"{profile['load_ms']:.1f}",
            _exec_ms([(shape["shape_key"], shape["exec_ms"]) for shape in profile["shapes"]]),
        )
    return table


def print_answer(console: Console, answer: Answer, *, headline: str | None = None) -> None:
    """One answered request: outputs (or `headline` in their place), phases, the time it took."""
    slo, timing_ms = answer.body["slo"], answer.body["timing_ms"]
    if headline is not None:
        console.print(Text(headline, style="bold"), soft_wrap=True)
    else:
        for output in answer.body["outputs"]:
            console.print(_tensor_text(output), soft_wrap=True)
    phases = _table("phase", "ms", "")
    for phase, meaning in PHASES.items():
        phases.add_row(phase, f"{timing_ms[phase]:.2f}", Text(meaning, style="dim"))
    elsewhere_ms = answer.round_trip_ms - sum(timing_ms[phase] for phase in PHASES)
    phases.add_row(
        "the rest", f"{elsewhere_ms:.2f}", Text("HTTP, and between the processes", style="dim")
    )
    latency = Text.assemble(
        "answered in ",
        (f"{slo['latency_ms']:.1f} ms", "bold"),
        f" of {slo['slo_ms']:g} ms, slack ",
        (f"{slo['slack_ms']:.1f} ms", "bold green"),
        f", predicted {slo['predicted_ms']:.1f} ms",
        ", cold start" if slo["cold_start"] else "",
    )
    console.print("", phases, latency)


def tensor_of(output: JsonObject) -> np.ndarray[Any, Any]:
    """An output of a JSON answer as an array."""
    datatype = NUMPY_TYPES.get(output["datatype"], "O")
    data = [float("nan") if value is None else value for value in output["data"]]
    return np.array(data, dtype=datatype).reshape(output["shape"])


@contextmanager
def download_progress(console: Console) -> Iterator[OnProgress]:
    """A bar per wheel, on `console`; gone where it is no terminal, lines in its place."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=False) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(escape(what), total=total)
            progress.update(tasks[what], completed=done)

        yield on_progress


def _tensor_text(output: JsonObject) -> Text:
    array = tensor_of(output)
    values = np.array2string(
        array,
        threshold=SHOWN_VALUES,
        edgeitems=SHOWN_VALUES // 4,
        precision=5,
        suppress_small=True,
        separator=", ",
    )
    head = f"{output['name']} {output['datatype']} {list(array.shape)}"
    return Text.assemble((head, "bold"), "\n", values)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        is_number = column in ("pages", "MB", "load ms", "ms")
        table.add_column(column, justify="right" if is_number else "left")
    return table


def _models_table() -> Table:
    return _table(
        "model", "weights", "pages", "MB", "batch sizes", "load ms", "exec ms by batch size"
    )


def _unavailable(reason: str) -> Text:
    return Text(f"unavailable: {reason}", style="red")


def _weights_states(states: Sequence[str]) -> str:
    """ "resident" where there is one worker, "resident 3, absent 1" where there are more."""
    if not states:
        return "no worker"
    if len(set(states)) == 1:
        return states[0]
    return ", ".join(f"{state} {count}" for state, count in Counter(states).items())


def _batch_sizes(sizes: Sequence[int]) -> str:
    return " ".join(map(str, sizes))


def _exec_ms(shapes: Sequence[tuple[str, dict[str, float]]]) -> str:
    """A line per measured shape: "3x48x192  1: 0.91  2: 1.8"."""
    return "\n".join(
        "  ".join([*filter(None, [key]), *(f"{rows}: {ms:.3g}" for rows, ms in exec_ms.items())])
        for key, exec_ms in shapes
    )
