"""What the command line shows: tables of models, phases of a request, progress of a download.

Owns layout and rounding. It must never fetch or compute what it shows.
"""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from gateway.command.client import NUMPY_TYPES, Answer, JsonObject
from gateway.command.fetch import OnProgress
from scheduler.policies import POLICIES
from scheduler.spec import MILLISECOND_NS, ModelSpec

# The phases of a request, as `timing_ms` names them, and what each is.
PHASES = {
    "queue": "waiting for its turn",
    "load": "waiting for the weights to be paged in",
    "input": "copying the inputs in",
    "exec": "executing",
    "output": "copying the outputs back",
}
# Where an answer came from that was not executed for this request.
_SHARED = {"hit": ", from the cache", "shared": ", from an identical request's execution"}
SHOWN_VALUES = 12  # of a tensor, counting both ends


class _Row(NamedTuple):
    """A model's line: what is known of it before it is served, and `state`, where its weights are.

    `exec_ms` are (shape class, batch size → ms); `unavailable` is why it has none of this.
    """

    name: str
    state: str
    num_pages: int
    weights_bytes: int
    load_ms: float
    exec_ms: list[tuple[str, dict[int, float]]]
    unavailable: str | None


def print_specs(console: Console, specs: Sequence[ModelSpec], *, page_bytes: int) -> None:
    """What compiling found and measured."""
    _print_rows(
        console,
        [
            _Row(
                spec.name,
                "",
                spec.num_pages(page_bytes),
                spec.weights_bytes,
                spec.profile.load_ns / MILLISECOND_NS,
                [
                    (shape.shape_key, {n: ns / MILLISECOND_NS for n, ns in shape.exec_ns.items()})
                    for shape in spec.profile.shapes
                ],
                spec.unavailable_reason,
            )
            for spec in specs
        ],
    )


def print_models(console: Console, models: Sequence[JsonObject]) -> None:
    """GET /models."""
    _print_rows(
        console,
        [
            _Row(
                model["name"],
                _weights_states([device["state"] for device in model["devices"]]),
                model["pages"],
                model["weights_bytes"],
                model["profile"]["load_ms"] if model["profile"] else 0.0,
                [
                    (shape["shape_key"], {int(n): ms for n, ms in shape["exec_ms"].items()})
                    for shape in (model["profile"]["shapes"] if model["profile"] else ())
                ],
                model["unavailable_reason"],
            )
            for model in models
        ],
    )
    for model in models:
        if model["problem"] is not None:
            console.print(f"{model['name']}: {model['problem']}", style="yellow", markup=False)


def print_policies(console: Console) -> None:
    """What `serve --policy` and a scenario's `policies` may name."""
    table = _table("policy", "what it does", "options, with their defaults")
    for name, kind in POLICIES.items():
        fields = msgspec.structs.fields(cast(type[msgspec.Struct], kind))
        options = [f"{field.name}={_said(field.default)}" for field in fields]
        about = inspect.getdoc(inspect.getmodule(kind)) or ""
        table.add_row(name, escape(about.partition("\n")[0]), escape("\n".join(options)))
    console.print(table)


def _said(default: object) -> str:
    """As it would be written after the option's name."""
    if default is None:
        return "(its own)"
    return str(default).lower() if isinstance(default, bool) else str(default)


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
        f", by {answer.body['variant']}" if "variant" in answer.body else "",
        _SHARED.get(answer.body.get("cache", ""), ""),
    )
    console.print("", phases, latency)


def print_quote(console: Console, told: JsonObject) -> None:
    """What would become of the requests asked about: yes or no, and the figures there are."""
    what = "it" if told["count"] == 1 else f"{told['num_met']} of {told['count']}"
    refusal = told["refusal"]
    if refusal is None:
        verdict = Text.assemble(("yes", "bold green"), f": {what} would be met")
    else:
        verdict = Text.assemble(
            ("no", "bold red"),
            "" if told["count"] == 1 else f": {what} would be met, then",
            f": {refusal['status']} {refusal['reason']}, {refusal['detail']}",
        )
    console.print(verdict, soft_wrap=True)
    figures = _table("", "", "")
    figures.show_header = False
    for name, key, meaning in (
        ("SLO", "slo_ms", "asked for, or the model's own"),
        ("predicted", "predicted_ms", "until the first one's execution ends"),
        ("slack", "slack_ms", "what is left of the SLO then"),
        ("least SLO now", "min_slo_now_ms", "the shortest that would be admitted at this load"),
        ("least SLO ever", "min_slo_ever_ms", "the shortest on an idle device with the weights"),
    ):
        if told[key] is not None:
            figures.add_row(name, f"{told[key]:.2f} ms", Text(meaning, style="dim"))
    where = told["device"] or "no device"
    cold = ", weights absent" if told["cold"] else ""
    figures.add_row("where", where, Text(f"{told['queue_ahead']} queued ahead{cold}", style="dim"))
    console.print(figures)


def tensor_of(output: JsonObject) -> np.ndarray[Any, Any]:
    """An output of a JSON answer as an array."""
    datatype = NUMPY_TYPES.get(output["datatype"], "O")
    data = [float("nan") if value is None else value for value in output["data"]]
    return np.array(data, dtype=datatype).reshape(output["shape"])


@contextmanager
def download_progress(console: Console) -> Iterator[OnProgress]:
    """A bar per wheel on `console`, from the first step on."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    progress = Progress(*columns, console=console)
    tasks: dict[str, TaskID] = {}

    def on_progress(what: str, done: int, total: int) -> None:
        if not tasks:
            progress.start()
        if what not in tasks:
            tasks[what] = progress.add_task(escape(what), total=total)
        progress.update(tasks[what], completed=done)

    try:
        yield on_progress
    finally:
        if tasks:
            progress.stop()


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
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        is_number = column in ("pages", "MB", "load ms", "ms") or column.isdigit()
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    return table


def _print_rows(console: Console, rows: Sequence[_Row]) -> None:
    """A line per model and measured shape; the columns on the right are the batch sizes."""
    served = sorted(row for row in rows if row.unavailable is None)
    sizes = sorted({size for row in served for _, exec_ms in row.exec_ms for size in exec_ms})
    if served:
        console.print(Text("execution in ms by batch size on the right", style="dim"))
        states = ["weights"] if any(row.state for row in served) else []
        table = _table("model", *states, "pages", "MB", "load ms", "shape", *map(str, sizes))
        for row in served:
            facts = [row.name, *([row.state] if states else []), str(row.num_pages)]
            facts += [f"{row.weights_bytes / 1e6:.1f}", _ms(row.load_ms)]
            for shape_key, exec_ms in row.exec_ms or [("", {})]:
                cells = [_ms(exec_ms[size]) if size in exec_ms else "" for size in sizes]
                table.add_row(*facts, _shape(shape_key), *cells)
                facts = [""] * len(facts)
        console.print(table)
    for row in rows:
        if row.unavailable is not None:
            line = Text(f"{row.name} is unavailable: {row.unavailable}", style="red")
            console.print(line, soft_wrap=True)


def _weights_states(states: Sequence[str]) -> str:
    """ "resident" where there is one worker, "resident 3, absent 1" where there are more."""
    if not states:
        return "no worker"
    if len(set(states)) == 1:
        return states[0]
    return ", ".join(f"{state} {count}" for state, count in Counter(states).items())


def _ms(value: float) -> str:
    """Four characters, whatever the size: 0.07, 4.41, 16.7, 349."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _shape(shape_key: str) -> str:
    """ "32;32;32" is 32: inputs of one shape are the rule where there are several."""
    shapes = shape_key.split(";")
    return shapes[0] if len(set(shapes)) == 1 else shape_key.rstrip(";")
