"""`python -m gpuworker.gpu_check pages|engines`: one step on one GPU, as JSON and as lines."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gpuworker.config import MEBIBYTE, ConfigError
from gpuworker.gpu_check.lines import Document, Line
from gpuworker.gpu_check.needs import ordinal_for

if TYPE_CHECKING:
    from gpuworker.devices.cuda_context import CudaContext

EXIT_MISSED, EXIT_USAGE = 1, 2
CANNOT = "cannot run: "  # begins the one line that says what is missing


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all that was wanted, 1 something missed, 2 it cannot run here."""
    args = _parser().parse_args(argv)
    try:
        ordinal = ordinal_for(args.device, with_tensorrt=args.step == "engines")
        document = _measured(args, ordinal)
    except ConfigError as error:
        print(f"gpu-check: {CANNOT}{error}", file=sys.stderr)
        return EXIT_USAGE
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    for line in document.lines:
        print(_text_of(line))
    return EXIT_MISSED if any(line.is_met is False for line in document.lines) else 0


def _measured(args: argparse.Namespace, ordinal: int) -> Document:
    from gpuworker.gpu_check.bindings_only import stand_in_for_pycuda

    without_pycuda = stand_in_for_pycuda()

    from gpuworker.devices.cuda_context import CudaContext

    context = CudaContext(ordinal)
    device = {
        "device": args.device,
        "name": context.name,
        "compute capability": context.kind.compute_capability,
        "memory": f"{context.total_bytes() // MEBIBYTE} MiB",
        **_versions(),
    }
    if without_pycuda:
        device["pycuda"] = "missing: its part is done by cuda-bindings"
    try:
        figures, lines = _pages(args, context) if args.step == "pages" else _engines(args, context)
    finally:
        context.close()
    return Document(
        step=args.step,
        device=device,
        is_quick=args.quick,
        figures=msgspec.to_builtins(figures),
        lines=lines,
    )


def _pages(args: argparse.Namespace, context: "CudaContext") -> tuple[msgspec.Struct, list[Line]]:
    from gpuworker.gpu_check import pages

    lengths = pages.QUICK if args.quick else pages.FULL
    figures = pages.measure_pages(
        context,
        lengths,
        page_bytes=args.page_mb * MEBIBYTE,
        sizes_mb=args.load_mb or pages.SIZES_MB,
        say=_say,
    )
    return figures, pages.lines_of(figures, lengths)


def _engines(args: argparse.Namespace, context: "CudaContext") -> tuple[msgspec.Struct, list[Line]]:
    from gpuworker.engines.tensorrt_api import TensorRt
    from gpuworker.gpu_check import engines
    from gpuworker.gpu_check.engine import read_references

    lengths = engines.QUICK if args.quick else engines.FULL
    figures = engines.measure_engines(
        context,
        TensorRt(),
        read_references(args.references, args.models),
        lengths,
        page_bytes=args.page_mb * MEBIBYTE,
        timing_cache=args.out.with_name("timing-cache"),
        say=_say,
    )
    return figures, engines.lines_of(figures)


def _versions() -> dict[str, str]:
    from gpuworker.device_choice import ask_driver

    return {
        "driver's CUDA": ".".join(map(str, ask_driver().cuda_version)),
        "python": sys.version.split()[0],
    }


def _say(text: str) -> None:
    """How far it is."""
    print(f"gpu-check: {text}", file=sys.stderr, flush=True)


def _text_of(line: Line) -> str:
    mark = {None: "      ", True: "met   ", False: "MISSED"}[line.is_met]
    return f"{mark} {line.what}: {line.measured}" + (f" ({line.wanted})" if line.wanted else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpuworker.gpu_check", description=__doc__)
    parser.add_argument("step", choices=("pages", "engines"))
    parser.add_argument("--device", default="cuda:0", metavar="cuda:N")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    parser.add_argument("--quick", action="store_true", help="short: does it work at all?")
    parser.add_argument("--page-mb", type=int, default=16, metavar="N", help="MiB of a page")
    parser.add_argument(
        "--load-mb", type=int, nargs="+", metavar="N", help="pages: sizes of LOADs in MB"
    )
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="engines: NAME.onnx and NAME.npz"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="engines: the largest last")
    return parser


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # As a worker ends: destructors of engines and contexts, in whatever order, may crash.
    os._exit(exit_code)
