"""Steps "pages" and "engines": the device's half of the check, in processes of their own."""

import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadtest.gpu_check import models
from loadtest.gpu_check.outcome import EXIT_CANNOT, Document, StepError

# Building plans of two ResNets is minutes on a slow machine; nothing else comes near.
TIMEOUT_S = 1800.0
LINES_KEPT = 5
CANNOT = "cannot run: "  # as gpuworker/gpu_check/__main__.py begins its reason


class DeviceOptions(NamedTuple):
    """`python` is the interpreter that runs the step: another one where TensorRT is at home there.
    It needs numpy, msgspec and cuda-bindings; gpuworker it finds beside us.
    """

    device: str
    out_dir: Path
    is_quick: bool
    page_mb: int
    load_mb: Sequence[int]
    models: Sequence[str]
    python: str
    say: Callable[[str], None]


def run_pages(options: DeviceOptions) -> Document:
    """Raises StepError."""
    sizes = ["--load-mb", *map(str, options.load_mb)] if options.load_mb else []
    return _run("pages", options, sizes)


def run_engines(options: DeviceOptions) -> Document:
    """Raises StepError."""
    names = [name for name in models.MODELS if name in options.models]
    directory = options.out_dir / "references"
    options.say(f"models: {', '.join(names)}, and what ONNX Runtime answers")
    models.write_references(directory, names)
    return _run("engines", options, ["--references", str(directory), "--models", *names])


def _run(step: str, options: DeviceOptions, more: Sequence[str]) -> Document:
    options.out_dir.mkdir(parents=True, exist_ok=True)
    file = options.out_dir / f"{step}.json"
    file.unlink(missing_ok=True)
    command = [
        options.python,
        "-m",
        "gpuworker.gpu_check",
        step,
        "--device",
        options.device,
        "--out",
        str(file),
    ]
    command += ["--page-mb", str(options.page_mb), *["--quick"] * options.is_quick, *more]
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stderr is not None
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        try:
            for line in process.stderr:
                said.append(line.rstrip().removeprefix("gpu-check: "))
                if not said[-1].startswith(CANNOT):  # who asked says that, once
                    options.say(said[-1])
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if code == EXIT_CANNOT:
        reasons = [line.removeprefix(CANNOT) for line in said if line.startswith(CANNOT)]
        raise StepError("; ".join(reasons) or "it cannot run here", is_missing=True)
    try:
        return msgspec.json.decode(file.read_bytes(), type=Document)
    except (OSError, msgspec.MsgspecError) as error:
        ending = f"exit code {code}" if code >= 0 else f"signal {-code}"
        last = " | ".join(said[-LINES_KEPT:])
        raise StepError(f"it ended with {ending}: {last}") from error
