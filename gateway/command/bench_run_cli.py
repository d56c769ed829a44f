"""`remontoir bench run`, `ceiling` and `models`: what measures, and the models it knows.

Owns their help, and which flags are passed on. The process becomes the program, exit code and all.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gateway.command import bench_flags
from gateway.programs import given_flags, program

app = typer.Typer()
models_app = typer.Typer(
    name="models",
    help="The registry of models that jobs know by name: it lies beside the results.",
    no_args_is_help=True,
)
app.add_typer(models_app)

DRIVER = "loadtest.driver"

Place = Annotated[
    str | None,
    typer.Option(
        "--results",
        metavar="RESULTS",
        help="A folder, a .sqlite file, or a URL as postgresql://USER@HOST/NAME.",
        show_default="bench-results",
    ),
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="As jobs call it.")]
Family = Annotated[str | None, typer.Option(help="Of architectures, as resnet.")]
Task = Annotated[str | None, typer.Option(help="What it is for, as 'image classification'.")]
Dataset = Annotated[str | None, typer.Option(help="What it was trained or judged on.")]
Input = Annotated[str | None, typer.Option("--input", help="In words, as '224 x 224 RGB'.")]
Accuracy = Annotated[str | None, typer.Option(help="As '76.1 % top-1'.")]
Notes = Annotated[str | None, typer.Option(help="Anything else; search finds its words.")]
Source = Annotated[str | None, typer.Option(help="Where it comes from.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[WORD...]", help="All must be there.")]


@app.command()
def run(
    job: bench_flags.JobFile,
    results: Place = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Write this run's page afterwards."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the last run of this very file."),
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say how many seconds it takes, and run nothing.")
    ] = False,
    ceiling: Annotated[
        float | None,
        typer.Option(
            "--ceiling",
            metavar="PER_S",
            help="Refuse rates beyond this.",
            show_default="measured once on this machine",
        ),
    ] = None,
) -> None:
    """Measure servers as a job says, and keep a row of results after each measurement.

    A job is a few lines of YAML: models, a server, a workload, SLOs
    (docs/benchmarks.md; loadtest/jobs/example.yaml explains every key). Requests
    leave by schedule, whatever became of the others, and latency counts from the
    schedule. Ctrl-C keeps what was measured, and marks the last row as partial.

    The exit code is 0 if all was measured, 3 if a part was, 1 if nothing, 2 for a
    job that is none.

    \b
    Examples:
      remontoir bench run loadtest/jobs/example.yaml --report report.html
      remontoir bench run my.yaml --results postgresql://bench@db/results --resume
    """
    more = [*["--resume"] * resume, *["--estimate"] * estimate]
    given = given_flags(results=results, report=report, ceiling=ceiling)
    _become("run", [str(job)], given, more)


@app.command()
def ceiling(
    bytes_: Annotated[
        int | None, typer.Option("--bytes", help="Of a request's body.", show_default="1024")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", help="That send.", show_default="1")
    ] = None,
    server_cpus: Annotated[
        str | None,
        typer.Option("--server-cpus", help="Not the driver's, as 0-3.", show_default="0"),
    ] = None,
) -> None:
    """Measure how many requests a second this driver sends by schedule on this machine.

    Against a server that does nothing, for rates that double: the highest at
    which 99 of 100 requests leave within a millisecond of their schedule. `bench
    run` refuses rates beyond it, with this number.

    \b
    Examples:
      remontoir bench ceiling
      remontoir bench ceiling --bytes 150000 --processes 2
    """
    _become("ceiling", given_flags(bytes=bytes_, processes=processes, server_cpus=server_cpus))


@models_app.command()
def register(
    name: ModelName,
    path: Annotated[Path, typer.Option(metavar="FILE.onnx", help="Where it is, and stays.")],
    family: Family = None,
    task: Task = None,
    dataset: Dataset = None,
    input_: Input = None,
    accuracy: Accuracy = None,
    notes: Notes = None,
    source: Source = None,
    shape: bench_flags.Shapes = None,
    results: Place = None,
) -> None:
    """Give a model file a name. Jobs refuse a file that has changed since.

    \b
    Example:
      remontoir bench models register ocr-cls --path demo-models/ppocr_cls/1/model.onnx \\
        --task 'text direction' --accuracy '98.9 % top-1' --shape x=3,48,192
    """
    given = given_flags(
        path=path, family=family, task=task, dataset=dataset, input=input_, accuracy=accuracy,
        notes=notes, source=source, results=results,
    )  # fmt: skip
    _become("models", ["register", name], given, _shapes(shape))


@models_app.command()
def update(
    name: ModelName,
    path: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="Another file, or the same anew.")
    ] = None,
    family: Family = None,
    task: Task = None,
    dataset: Dataset = None,
    input_: Input = None,
    accuracy: Accuracy = None,
    notes: Notes = None,
    source: Source = None,
    shape: bench_flags.Shapes = None,
    results: Place = None,
) -> None:
    """Change what is given, and leave the rest.

    \b
    Example:
      remontoir bench models update ocr-cls --notes 'since May with 48 x 192 pictures'
    """
    given = given_flags(
        path=path, family=family, task=task, dataset=dataset, input=input_, accuracy=accuracy,
        notes=notes, source=source, results=results,
    )  # fmt: skip
    _become("models", ["update", name], given, _shapes(shape))


@models_app.command()
def search(words: Words = None, results: Place = None) -> None:
    """List models that have all of these words, in any of their texts.

    \b
    Example:
      remontoir bench models search text direction
    """
    _become("models", ["search"], given_flags(results=results), ["--", *(words or [])])


@models_app.command("list")
def list_(results: Place = None) -> None:
    """List all models.

    \b
    Example:
      remontoir bench models list --results bench-results
    """
    _become("models", ["list"], given_flags(results=results))


@models_app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME...")], results: Place = None
) -> None:
    """Forget models. Their files, and results that were measured with them, stay.

    \b
    Example:
      remontoir bench models delete ocr-cls
    """
    _become("models", ["delete"], given_flags(results=results), ["--", *names])


def _shapes(given: list[str] | None) -> list[str]:
    return [text for value in given or () for text in ("--shape", value)]


def _become(command: str, *parts: Sequence[str]) -> None:
    """This process becomes the program."""
    words = [*program(DRIVER), command]
    for part in parts:
        words += part
    os.execv(sys.executable, words)
