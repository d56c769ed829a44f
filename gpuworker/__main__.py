"""`python -m gpuworker run|compile`: settings from the command line, then one worker or one build.

It owns the process: signals, the CPU it runs on, its bond to the parent, its exit code. Engines are
imported only when one is needed.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import msgspec

from gpuworker import linux
from gpuworker.backend import Backend
from gpuworker.config import MEBIBYTE, ConfigError, WorkerConfig, default_cache_dir
from gpuworker.devices.emulated import (
    EMULATIONS,
    EmulatedBackend,
    UnknownEmulation,
    emulated_specs,
)

EXIT_USAGE = 2
# How long a thread that wants the interpreter waits before it asks the other to yield: a Pong must
# not wait Python's default of 5 ms while a lane copies tensors.
SWITCH_INTERVAL_S = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 broken, 2 unusable settings, 3 refused by the gateway."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    try:
        exit_code: int = args.command(args)
        return exit_code
    except (ConfigError, UnknownEmulation) as error:
        print(f"gpuworker: {error}", file=sys.stderr)
        return EXIT_USAGE


def _run(args: argparse.Namespace) -> int:
    parent_pid = os.getppid() if args.die_with_parent else None
    _exit_on_signals(parent_pid is not None)
    if parent_pid is not None:
        linux.die_with_parent()
    config = WorkerConfig(
        connect=args.connect,
        name=args.name,
        models_dir=args.models,
        cache_dir=args.cache_dir,
        cache_bytes=args.cache_mb * MEBIBYTE,
        page_bytes=args.page_mb * MEBIBYTE,
        emulate=args.emulate,
        cpu=args.cpu,
    )
    config.validate()
    if config.cpu is not None:
        linux.pin_to_cpu(config.cpu)
    # Orders and pings are answered at once, whatever computes on this core; ZeroMQ's thread and
    # the lanes start with the same, and the lanes then take longer turns.
    linux.set_time_slice(linux.SHORTEST_SLICE_NS)
    backend = _backend(config)

    from gpuworker.worker import Worker

    worker = Worker(
        connect=config.connect,
        name=config.name,
        backend=backend,
        parent_pid=parent_pid,
    )

    def stop(signal_number: int, _frame: FrameType | None) -> None:
        worker.request_stop(signal.Signals(signal_number).name)

    signal.signal(signal.SIGTERM, stop)
    if parent_pid is None:
        signal.signal(signal.SIGINT, stop)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return worker.run()


def _backend(config: WorkerConfig) -> Backend:
    if config.emulate is not None:
        return EmulatedBackend(
            config.emulate, cache_bytes=config.cache_bytes, page_bytes=config.page_bytes
        )
    from gpuworker.compile import compile_repository
    from gpuworker.devices.host import DeviceError
    from gpuworker.engines.onnxruntime import OnnxRuntimeBackend

    assert config.models_dir is not None  # validate() says so
    try:
        specs = compile_repository(
            config.models_dir, config.cache_dir, page_bytes=config.page_bytes, quiet=True
        )
        return OnnxRuntimeBackend(
            specs=specs,
            cache_dir=config.cache_dir,
            cache_bytes=config.cache_bytes,
            page_bytes=config.page_bytes,
        )
    except DeviceError as error:
        raise ConfigError(f"--cache-mb {config.cache_bytes // MEBIBYTE}: {error}") from error


def _compile(args: argparse.Namespace) -> int:
    catalogue: Path = args.catalog_out
    with _names_catalogue(catalogue):  # now, not after minutes of compiling
        catalogue.parent.mkdir(parents=True, exist_ok=True)
    if args.emulate is not None:
        specs = emulated_specs(args.emulate)
    elif args.models is None:
        raise ConfigError("--models is needed, except with --emulate")
    else:
        from gpuworker.compile import compile_repository

        specs = compile_repository(
            args.models, args.cache_dir, page_bytes=args.page_mb * MEBIBYTE, quiet=args.quiet
        )
    with _names_catalogue(catalogue):
        _write_atomically(catalogue, msgspec.json.encode(specs))
    return 0


@contextlib.contextmanager
def _names_catalogue(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ConfigError(f"--catalog-out {path}: {path.parent} is no directory") from error
    except OSError as error:
        raise ConfigError(f"--catalog-out {path}: {error.strerror}") from error


def _write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the whole new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _exit_on_signals(is_bound_to_parent: bool) -> None:
    """Until the worker runs, SIGTERM ends the process at once and cleanly.

    A terminal's Ctrl-C reaches parent and child; a child leaves it to the parent to say when.
    """

    def leave(_signal_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_bound_to_parent else leave)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpuworker",
        description="One device of Remontoir: carries out what its gateway orders.",
    )
    commands = parser.add_subparsers(required=True, metavar="run|compile")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="model repository: DIR/<model>/<version>/model.onnx",
    )
    common.add_argument(
        "--cache-dir",
        type=Path,
        default=default_cache_dir(),
        metavar="DIR",
        help="where compiled models are kept (default: %(default)s)",
    )
    common.add_argument(
        "--page-mb",
        type=_positive,
        default=16,
        metavar="N",
        help="size of a page of the weights cache in MiB (default: %(default)s)",
    )
    common.add_argument(
        "--emulate",
        metavar="NAME",
        help=f"no hardware, durations of a published profile: {', '.join(EMULATIONS)}",
    )

    common.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="what goes to stderr (default: %(default)s)",
    )

    run = commands.add_parser(
        "run", parents=[common], help="serve as one worker of a gateway until stopped"
    )
    run.set_defaults(command=_run)
    run.add_argument(
        "--connect", required=True, metavar="ADDR", help="the gateway, e.g. tcp://127.0.0.1:9000"
    )
    run.add_argument(
        "--name", default=socket.gethostname(), help="shown in metrics (default: %(default)s)"
    )
    run.add_argument(
        "--cache-mb",
        type=_positive,
        default=1024,
        metavar="N",
        help="size of the weights cache in MiB (default: %(default)s)",
    )
    run.add_argument("--cpu", type=int, metavar="N", help="run on this CPU only")
    run.add_argument(
        "--die-with-parent",
        action="store_true",
        help="stop when the parent process dies, and leave Ctrl-C to it",
    )

    compile_ = commands.add_parser(
        "compile",
        parents=[common],
        help="compile and profile what is not cached; write a catalogue",
    )
    compile_.set_defaults(command=_compile)
    compile_.add_argument(
        "--catalog-out", type=Path, required=True, metavar="FILE", help="JSON list of model specs"
    )
    compile_.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


if __name__ == "__main__":
    sys.exit(main())
