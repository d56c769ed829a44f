"""`python -m gpuworker.compile_child`: one model compiled in a process of its own.

Owns what is said between it and its parent (compile.py): one order from standard input; lines of
progress and at last one answer to standard output.
"""

import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from gpuworker import linux
from gpuworker.artifact_cache import Artifact
from gpuworker.compile_model import CompileError, compile_model
from gpuworker.device_choice import CPU, ordinal_of
from gpuworker.model_store import RepositoryModel


class CompileOrder(msgspec.Struct, frozen=True):
    """What the parent process wants: `directory` filled, for "cpu" or "cuda:N". `threads` share an
    execution on the CPU.
    """

    model: RepositoryModel
    directory: Path
    page_bytes: int
    parent_pid: int
    device: str = CPU
    timing_cache: Path | None = None
    threads: int = 1

    def to_json(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=str)  # paths are all that JSON does not know

    @staticmethod
    def from_json(content: bytes) -> "CompileOrder":
        return msgspec.json.decode(
            content, type=CompileOrder, dec_hook=lambda _type, text: Path(text)
        )


class CompileProgress(msgspec.Struct, frozen=True, tag="progress"):
    """What it is at, and how far: for whoever waits minutes for it."""

    what: str
    done: int
    of: int


class CompileAnswer(msgspec.Struct, frozen=True, tag="answer"):
    """What came of it: an artifact, or else why there is none."""

    artifact: Artifact | None = None
    error: str = ""


def _main() -> None:
    linux.die_with_parent()
    # The terminal's Ctrl-C reaches this process too, but it is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = CompileOrder.from_json(sys.stdin.buffer.read())
    if os.getppid() != order.parent_pid:
        return
    # Whatever else the engine prints goes to stderr: stdout is the answer alone.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answer_file:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        # Said while the error still holds what failed: to take that down may end the process.
        try:
            _say(answer_file, CompileAnswer(artifact=_carry_out(order, answer_file)))
        except CompileError as error:
            _say(answer_file, CompileAnswer(error=str(error)))
        except Exception as error:  # the border of this process: the parent reports it
            text = " ".join(str(error).split())[:500]
            _say(answer_file, CompileAnswer(error=f"{type(error).__name__}: {text}"))


def _carry_out(order: CompileOrder, answer_file: BinaryIO) -> Artifact:
    """Raises CompileError."""
    ordinal = ordinal_of(order.device)
    if ordinal is None:
        return compile_model(
            order.model, order.directory, page_bytes=order.page_bytes, threads=order.threads
        )
    # Here, not above: it imports what is only there beside a GPU.
    from gpuworker.compile_plan import compile_plan

    return compile_plan(
        order.model,
        order.directory,
        page_bytes=order.page_bytes,
        ordinal=ordinal,
        timing_cache=order.timing_cache,
        progress=lambda what, done, of: _say(answer_file, CompileProgress(what, done, of)),
    )


def _say(answer_file: BinaryIO, message: CompileProgress | CompileAnswer) -> None:
    answer_file.write(msgspec.json.encode(message) + b"\n")
    answer_file.flush()


if __name__ == "__main__":
    _main()
