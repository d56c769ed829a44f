"""What `serve` prints once it serves: where, what, and three curl lines that work as pasted.

Owns the choice of the model that the lines ask, and its body: made of zeros, inline where it is
short, else in a file below the cache directory. It must never ask for what the model cannot answer.
"""

import ipaddress
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from rich.console import Console

from gateway.command import demo
from gateway.config import KEY_VARIABLE
from scheduler.spec import ModelSpec, TensorSpec

MAX_ELEMENTS = 65_536  # of a body: a quarter of a megabyte of zeros
MAX_NAMES = 12  # of models, in the summary
MAX_INLINE_CHARACTERS = 400  # of a body that is shown in the line itself
# Inputs whose zeros a model could not work with.
VALUES = {"sr": 16_000, "attention_mask": 1, "input_mask": 1}


class Example(NamedTuple):
    model: str
    body: str


def print_started(
    console: Console,
    *,
    url: str,
    specs: Sequence[ModelSpec],
    page_bytes: int,
    bodies_dir: Path,
    took_s: float,
    needs_key: bool = False,
    ca_cert: str | None = None,
    has_page: bool = True,
) -> None:
    """`needs_key`: the lines take an API key from the environment. `ca_cert`: and trust this file,
    which is our own certificate: all that a self-signed one, or one with its chain, needs.
    `has_page`: /ui is there.
    """
    served = [spec for spec in specs if spec.unavailable_reason is None]
    num_pages = sum(spec.num_pages(page_bytes) for spec in served)
    console.print(
        f"\n[bold]Remontoir serves on [green]{url}[/green][/bold] (started in {took_s:.1f} s)"
    )
    names = sorted(spec.name for spec in served)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    console.print(
        f"{_count(len(served), 'model')}, {_count(num_pages, 'page')} of {page_bytes >> 20} MiB: "
        f"{', '.join(names[:MAX_NAMES])}{more}",
        markup=False,
        soft_wrap=True,
    )
    if unavailable := [spec.name for spec in specs if spec.unavailable_reason is not None]:
        console.print(
            f"{len(unavailable)} unavailable, see above: {', '.join(unavailable)}",
            style="red",
            soft_wrap=True,
        )
    console.print(
        "\nTry, in another terminal (-H 'x-slo-ms: ...' says by when the answer is wanted):"
    )
    if needs_key:
        console.print(f"with an API key: export {KEY_VARIABLE}=...", markup=False)
    for line in curl_lines(url, served, bodies_dir, needs_key=needs_key, ca_cert=ca_cert):
        console.print(f"  {line}", style="cyan", markup=False, soft_wrap=True)
    if any(spec.name == demo.MODEL_NAME for spec in served):
        command = f"  {own_command()} infer magika --file /bin/ls --slo-ms 50 --url {url}"
        command += "" if ca_cert is None else f" --ca-cert {quote(ca_cert)}"
        console.print("or, to name the type of any file:")
        console.print(command, style="cyan", markup=False, soft_wrap=True)
    if has_page:
        console.print(f"See what it does: {url}/ui, in a browser", soft_wrap=True)
    console.print("Ctrl-C stops.\n")


def url_of(host: str, port: int, *, scheme: str = "http") -> str:
    """Where to find a server that listens there; "any address" is reached at the local one."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
    return f"{scheme}://{f'[{address}]' if address.version == 6 else address}:{port}"


def own_command() -> str:
    """How this very installation is called from a shell in this directory."""
    script = Path(sys.executable).with_name("remontoir")
    if not script.exists():
        return f"{quote(sys.executable)} -m gateway"
    found = shutil.which("remontoir")
    if found is not None and Path(found).resolve() == script.resolve():
        return "remontoir"
    return quote(os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script))


def curl_lines(
    url: str,
    specs: Sequence[ModelSpec],
    bodies_dir: Path,
    *,
    needs_key: bool = False,
    ca_cert: str | None = None,
) -> list[str]:
    """A list of models, an answer in time, and an honest no; the first alone if no model is small.

    Writes the body into `bodies_dir` where it is too long for a line.
    """
    curl = "curl -sw '\\n'"
    if ca_cert is not None:
        curl += f" --cacert {quote(ca_cert)}"
    if needs_key:
        curl += f' -H "Authorization: Bearer ${KEY_VARIABLE}"'
    lines = [f"{curl} {url}/models"]
    example = example_of(specs)
    if example is None:
        return lines
    data = quote(example.body)
    if len(example.body) > MAX_INLINE_CHARACTERS:
        bodies_dir.mkdir(parents=True, exist_ok=True)
        file = (bodies_dir / f"{example.model}.json").absolute()
        file.write_text(example.body, "utf-8")
        data = "@" + quote(str(file))
    lines.append(f"{curl} -H 'x-slo-ms: 1000' -d {data} {url}/infer")
    lines.append(f"{curl} -H 'x-slo-ms: 0.001' -d {data} {url}/infer   # an honest no")
    return lines


def example_of(specs: Sequence[ModelSpec]) -> Example | None:
    """One row of zeros for the model that answers shortest, among those with small inputs."""
    candidates = [
        (_answer_elements(spec), spec.name, spec, shapes)
        for spec in specs
        if sum(map(math.prod, shapes := input_shapes(spec))) <= MAX_ELEMENTS
        and all(tensor.datatype not in ("BYTES", "FP16", "BF16") for tensor in spec.inputs)
    ]
    if not candidates:
        return None
    _, name, spec, shapes = min(candidates, key=lambda candidate: candidate[:2])
    inputs = [_zeros(tensor, shape) for tensor, shape in zip(spec.inputs, shapes, strict=True)]
    body = json.dumps({"model": name, "inputs": inputs}, separators=(",", ":"))
    return Example(name, body)


def input_shapes(spec: ModelSpec) -> list[tuple[int, ...]]:
    """Shapes of one row that were measured, so that they are known to work."""
    key = spec.profile.shapes[0].shape_key if spec.profile.shapes else ""
    measured = key.split(";") if key else []
    shapes = []
    for index, tensor in enumerate(spec.inputs):
        if index < len(measured):
            row = [int(size) for size in measured[index].split("x") if size]
        else:
            row = [size for axis, size in enumerate(tensor.shape) if axis != tensor.batch_axis]
        if tensor.batch_axis is not None:
            row.insert(tensor.batch_axis, 1)
        shapes.append(tuple(max(size, 1) for size in row))
    return shapes


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _answer_elements(spec: ModelSpec) -> int:
    # A free size that is not the batch's counts as large: nobody knows it.
    return sum(
        math.prod(
            1 if axis == tensor.batch_axis else 1_000 if size < 0 else size
            for axis, size in enumerate(tensor.shape)
        )
        for tensor in spec.outputs
    )


def _zeros(tensor: TensorSpec, shape: tuple[int, ...]) -> dict[str, Any]:
    value: int | bool = VALUES.get(tensor.name, 0)
    if tensor.datatype == "BOOL":
        value = bool(value)
    return {
        "name": tensor.name,
        "shape": list(shape),
        "datatype": tensor.datatype,
        "data": [value] * math.prod(shape),
    }
