"""`remontoir infer`: from what a reader has at hand to one request, and its answer on the screen.

Owns the choice of how a file becomes inputs. It must never know the rules of a demo model: those
are in gateway/command/demo.py.
"""

from pathlib import Path

import numpy as np
from rich.console import Console

from gateway.command import client, demo, display
from gateway.command.client import Client, ClientError, JsonObject
from gateway.command.demo import FileType


def infer(
    gateway: Client,
    model: str,
    *,
    file: Path | None,
    json_text: str | None,
    slo_ms: float | None,
    console: Console,
) -> None:
    """Send one request and print the answer. Exactly one of `file` and `json_text` is given.

    Raises ClientError.
    """
    spec = gateway.model(model)
    if spec["unavailable_reason"] is not None:
        raise ClientError(f"{model} is unavailable: {spec['unavailable_reason']}")
    if file is not None and _is_magika(spec):
        _name_file_type(gateway, spec, file, slo_ms=slo_ms, console=console)
        return
    inputs, tensors = _inputs(file, json_text, spec)
    answer = gateway.infer(model, inputs, tensors, slo_ms)
    display.print_answer(console, answer)


def _name_file_type(
    gateway: Client, spec: JsonObject, file: Path, *, slo_ms: float | None, console: Console
) -> None:
    try:
        examined = demo.examine(file)
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from error
    if isinstance(examined, FileType):
        console.print(_sentence(file, examined), markup=False, soft_wrap=True)
        console.print("No request was sent.", style="dim")
        return
    row = {demo.INPUT_NAME: np.array([examined], dtype=np.int32)}
    inputs, tensors = client.binary_inputs(row, spec)
    answer = gateway.infer(spec["name"], inputs, tensors, slo_ms)
    scores = answer.body["outputs"][0]["data"]
    try:
        file_type = demo.interpret(scores)
    except ValueError as error:
        raise ClientError(f"{spec['name']} is not the model of magika 1.0.3: {error}") from error
    display.print_answer(console, answer, headline=_sentence(file, file_type))


def _sentence(file: Path, file_type: FileType) -> str:
    kind = file_type.content_type
    what = ", ".join(filter(None, [kind.description, kind.mime_type]))
    remark = f" ({file_type.remark})" if file_type.remark else ""
    return f"{file}: {file_type.label}, score {file_type.score:.3f}: {what}{remark}"


def _is_magika(spec: JsonObject) -> bool:
    names = [tensor["name"] for tensor in spec["inputs"]]
    return spec["name"] == demo.MODEL_NAME and names == [demo.INPUT_NAME]


def _inputs(
    file: Path | None, json_text: str | None, spec: JsonObject
) -> tuple[list[JsonObject], list[bytes]]:
    if file is None:
        assert json_text is not None  # the command line gives one of the two
        return client.inputs_of_json(json_text, spec), []
    match file.suffix.lower():
        case ".npy" | ".npz":
            return client.inputs_of_array_file(file, spec)
        case ".json":
            try:
                return client.inputs_of_json(file.read_text("utf-8"), spec), []
            except (OSError, UnicodeDecodeError) as error:
                raise ClientError(f"{file}: {error}") from error
        case _:
            raise ClientError(
                f"{file}: {spec['name']} takes .npy, .npz or .json files"
                " (for pictures and sounds, see examples/)"
            )
