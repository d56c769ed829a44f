"""`python -m loadtest.gpu_check`, which is `remontoir gpu-check`: steps, then the table."""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from loadtest.gpu_check.outcome import (
    EXIT_CANNOT,
    Document,
    NotRun,
    StepError,
    exit_code_of,
    outcome_of,
    rows_of,
)
from loadtest.machine import describe
from loadtest.report import Report

STEPS = {
    "pages": "virtual memory and copies alone: needs the driver and cuda-bindings",
    "engines": "TensorRT engines over them: exact, and how steady",
    "product": "many models through a small cache, over HTTP",
}
MODEL_NAMES = ("mlp", "resnet18", "resnet50-fp16", "resnet50")
SERVED_NAMES = ("mlp", "resnet18", "resnet50")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 every bar met, 1 one missed or a step broke, 2 all else was and this
    machine lacks something.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(given)
    signal.signal(signal.SIGTERM, _stop)
    steps = list(STEPS) if args.step == "all" else [args.step]
    command = shlex.join(["remontoir", "gpu-check", *given])
    report = Report(describe(), out_dir=args.out, command=command)
    report.start(f"GPU check on {args.device}: {', '.join(steps)}")
    begin_s = time.monotonic()
    measured: list[Document] = []
    not_run: list[NotRun] = []
    for step in steps:
        try:
            document = _runner(step, args, report)()
        except StepError as error:
            report.say(f"{step}: {error}", style="bold red")
            not_run.append(NotRun(step, str(error), error.is_missing))
            continue
        measured.append(document)
        report.table(
            f"{step} on {', '.join(f'{key} {value}' for key, value in document.device.items())}",
            ("what", "measured", "wanted", "bar"),
            rows_of(document.lines),
        )
    outcome = outcome_of(measured, not_run)
    for document in measured:
        for line in document.lines:
            if line.is_met is False:
                text = f"{document.step}: {line.what}: {line.measured}, wanted {line.wanted}"
                report.verdict(text, is_met=False)
    report.say(
        f"{outcome.num_met} bars met, {outcome.num_missed} missed, {len(not_run)} steps not run;"
        f" took {time.monotonic() - begin_s:.0f} s",
        style="bold",
    )
    report.save("gpu-check", outcome)
    return exit_code_of(outcome)


def _runner(step: str, args: argparse.Namespace, report: Report) -> Callable[[], Document]:
    """Imported when it runs: each step needs other libraries."""
    if step == "product":
        return lambda: _product(args, report)
    if args.device == "cpu":
        return lambda: _refuse(step)
    from loadtest.gpu_check.device_steps import (
        DeviceOptions,
        run_engines,
        run_pages,
    )

    options = DeviceOptions(
        device=args.device,
        out_dir=args.out.absolute(),
        is_quick=args.quick,
        page_mb=args.page_mb,
        load_mb=args.load_mb or (),
        models=args.models,
        python=args.python or sys.executable,
        say=report.say,
    )
    return lambda: run_pages(options) if step == "pages" else run_engines(options)


def _refuse(step: str) -> Document:
    raise StepError(f"there is nothing to check of the CPU in step {step}", is_missing=True)


def _product(args: argparse.Namespace, report: Report) -> Document:
    from loadtest.gpu_check.product import ProductOptions, run_product

    num_names, num_cached = (10, 4) if args.quick else (50, 20)
    seconds = 3.0 if args.quick else 20.0
    options = ProductOptions(
        device=args.device,
        out_dir=args.out.absolute(),
        is_quick=args.quick,
        page_mb=args.page_mb,
        model=args.served,
        num_names=args.names or num_names,
        num_cached=args.cached or num_cached,
        slo_ms=args.slo_ms,
        seconds=args.seconds or seconds,
        seed=args.seed,
        say=report.say,
    )
    return run_product(options)


def _stop(signal_number: int, _: FrameType | None) -> None:
    """Leave by the way that stops what was started."""
    sys.exit(128 + signal_number)


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:8} {text}" for name, text in STEPS.items())
    parser = argparse.ArgumentParser(
        prog="remontoir gpu-check",
        description="Measures this product on one GPU, bar by bar (docs/measurements/README.md).",
        epilog=f"steps:\n{lines}\n\nexit code: 0 all bars met, 1 one missed, {EXIT_CANNOT}"
        " something is missing here",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("step", nargs="?", default="all", choices=[*STEPS, "all"])
    add("--device", default="cuda:0", metavar="cuda:N", help="default: %(default)s")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("bench-results/gpu-check"),
        help="JSON, logs, generated models (default: %(default)s)",
    )
    add("--quick", action="store_true", help="short: does it work at all?")
    add("--page-mb", type=_positive, default=16, metavar="N", help="MiB of a page (16)")
    add("--python", metavar="FILE", help="pages, engines: the interpreter that has TensorRT")
    add(
        "--load-mb", type=_positive, nargs="+", metavar="N", help="pages: MB of LOADs (100 200 400)"
    )
    add(
        "--models",
        nargs="+",
        metavar="NAME",
        default=list(MODEL_NAMES),
        choices=MODEL_NAMES,
        help=f"engines: some of {', '.join(MODEL_NAMES)}",
    )
    add("--served", default="resnet50", choices=SERVED_NAMES, help="product: the model (resnet50)")
    add("--names", type=_positive, metavar="N", help="product: under so many names (50)")
    add("--cached", type=_positive, metavar="N", help="product: of which so many fit (20)")
    add("--slo-ms", type=float, default=25.0, metavar="MS", help="product: the SLO (25)")
    add("--seconds", type=float, metavar="S", help="product: at each rate (20)")
    add("--seed", type=int, default=1, help="product: of the arrivals (1)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


if __name__ == "__main__":
    sys.exit(main())
