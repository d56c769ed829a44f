"""`python -m gpuworker run|compile|devices`: settings from the command line, then the work.

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from gpuworker import curve_keys, health, linux
from gpuworker.backend import DeviceLost
from gpuworker.backend_choice import backend_of, provider_of, specs_of
from gpuworker.config import (
    CPU_CACHE_BYTES,
    MEBIBYTE,
    ConfigError,
    WorkerConfig,
    check_threads,
    default_cache_dir,
    shards_of,
)
from gpuworker.curve_keys import CurveKeys
from gpuworker.device_choice import AUTO, CPU, WORDS, devices_of
from gpuworker.devices.emulated import (
    EMULATIONS,
    UnknownEmulation,
    emulated_specs,
)
from gpuworker.logs import FORMATS, LogError, start_logging
from gpuworker.model_store import model_directories
from scheduler.shards import Shards

EXIT_DONE, EXIT_BROKEN, EXIT_USAGE = 0, 1, 2
# How long a thread that wants the interpreter waits before it asks the other to yield: a Pong must
# not wait Python's default of 5 ms while a lane copies tensors.
SWITCH_INTERVAL_S = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 broken, 2 unusable settings, 3 refused by the gateway."""
    args = _parser().parse_args(argv)
    try:
        start_logging(args.log_level, args.log_format, worker=getattr(args, "name", None))
        exit_code: int = args.command(args)
        return exit_code
    except (ConfigError, LogError, UnknownEmulation) as error:
        return _refuse(error)


def _refuse(error: Exception) -> int:
    print(f"gpuworker: {error}", file=sys.stderr)
    return EXIT_USAGE


def _run(args: argparse.Namespace) -> int:
    parent_pid: int | None = args.die_with_parent
    _exit_on_signals(parent_pid is not None)
    if parent_pid is not None:
        linux.die_with_parent()
        if os.getppid() != parent_pid:
            return EXIT_DONE  # it died while we were starting, and no signal will tell
    if args.models is not None:
        model_directories(args.models)  # before anything takes time
    devices = (CPU,) if args.emulate is not None else devices_of(args.device)
    if len(devices) > 1:
        return _run_all(args, devices)
    pulse = health.pulse(args.health_board, args.health_port)
    config = WorkerConfig(
        connect=args.connect,
        name=args.name,
        models_dir=args.models,
        cache_dir=args.cache_dir,
        cache_bytes=None if args.cache_mb is None else args.cache_mb * MEBIBYTE,
        page_bytes=args.page_mb * MEBIBYTE,
        emulate=args.emulate,
        cpu=args.cpu,
        device=devices[0],
        intra_op_threads=args.intra_op_threads,
        host_store=args.host_store,
        shards=_shards_of(args),
    )
    config.validate()
    keys = None if args.curve_keys is None else curve_keys.read(args.curve_keys)
    if config.cpu is not None:
        linux.pin_to_cpu(config.cpu)
    if config.device != CPU:
        _end_at_once(_serve_on_gpu(config, parent_pid, keys, pulse))
    return _serve(config, parent_pid, keys, pulse)


def _serve_on_gpu(
    config: WorkerConfig,
    parent_pid: int | None,
    keys: CurveKeys | None,
    pulse: health.Pulse | None,
) -> int:
    """The exit code, whatever it ended by: a device that broke would abort the interpreter's end,
    and with that say more than why.
    """
    # A signal's exception must not pass through TensorRT, which calls Python back.
    _exit_on_signals(parent_pid is not None, lambda: _end_at_once(EXIT_DONE))
    try:
        return _serve(config, parent_pid, keys, pulse)
    except ConfigError as error:
        return _refuse(error)
    except DeviceLost as error:
        print(f"gpuworker: {error}", file=sys.stderr)
        return EXIT_BROKEN
    except Exception:
        logging.getLogger("gpuworker").critical("ended by a fault of its own", exc_info=True)
        return EXIT_BROKEN


def _serve(
    config: WorkerConfig,
    parent_pid: int | None,
    keys: CurveKeys | None,
    pulse: health.Pulse | None,
) -> int:
    # Orders and pings are answered at once, whatever computes on this core; ZeroMQ's thread and
    # the lanes start with the same, and the lanes then take longer turns.
    linux.set_time_slice(linux.SHORTEST_SLICE_NS)
    backend = backend_of(config)

    from gpuworker.worker import Worker

    worker = Worker(
        connect=config.connect,
        name=config.name,
        backend=backend,
        parent_pid=parent_pid,
        keys=keys,
        provide=provider_of(config),
        beat=None if pulse is None else pulse.beat,
    )

    def stop(signal_number: int, _frame: FrameType | None) -> None:
        worker.request_stop(signal.Signals(signal_number).name)

    signal.signal(signal.SIGTERM, stop)
    if parent_pid is None:
        signal.signal(signal.SIGINT, stop)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    exit_code = worker.run()
    if pulse is not None:
        pulse.end()
    return exit_code


def _run_all(args: argparse.Namespace, devices: Sequence[str]) -> int:
    """One process for each GPU: pycuda and TensorRT are at their best with one device each."""
    if args.models is None:
        raise ConfigError("--models is needed, except with --emulate")
    if args.cpu is not None:
        raise ConfigError(f"--cpu {args.cpu}: {len(devices)} workers cannot share one CPU")
    check_threads(args.intra_op_threads, device=devices[0])
    from gpuworker.launcher import run_all

    board = None if args.health_port is None else health.serve(len(devices), args.health_port)
    shards = _shards_of(args)
    specs = specs_of(
        args.models,
        args.cache_dir,
        page_bytes=args.page_mb * MEBIBYTE,
        device=devices[0],
        is_ours=lambda model: shards is None or shards.has(model),
    )
    common = ["--connect", args.connect, "--models", str(args.models)]
    common += ["--cache-dir", str(args.cache_dir), "--page-mb", str(args.page_mb)]
    common += ["--log-level", args.log_level, "--log-format", args.log_format]
    if args.curve_keys is not None:
        curve_keys.read(args.curve_keys)  # before anything takes time
        common += [curve_keys.FLAG, str(args.curve_keys)]
    if args.cache_mb is not None:
        common += ["--cache-mb", str(args.cache_mb)]
    if shards is not None:
        common += ["--replica", args.replica, "--replicas", args.replicas]
        common += ["--replica-copies", str(args.replica_copies)]
        common += [text for told in args.together for text in ("--together", told)]
    sizes = {s.name: s.weights_bytes for s in specs if s.unavailable_reason is None}
    return run_all(devices, common, name=args.name, weights_bytes=sizes, board=board)


def _shards_of(args: argparse.Namespace) -> Shards | None:
    return shards_of(args.replica, args.replicas, args.replica_copies, args.together)


def _end_at_once(exit_code: int) -> NoReturn:
    """The driver gives back all that a process had; destructors of engines and contexts, in
    whatever order the interpreter ends them, are good for a crash after a clean end.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _devices(args: argparse.Namespace) -> int:
    names = devices_of(args.device)
    with _names_file("--out", args.out):
        _write_atomically(args.out, msgspec.json.encode(names))
    return 0


def _compile(args: argparse.Namespace) -> int:
    catalogue: Path = args.catalog_out
    os.nice(args.nice)  # the process that compiles inherits it
    shards = _shards_of(args)

    def is_ours(model: str) -> bool:
        return shards is None or shards.has(model)

    with _names_file("--catalog-out", catalogue):  # now, not after minutes of compiling
        catalogue.parent.mkdir(parents=True, exist_ok=True)
    if args.emulate is not None:
        check_threads(args.intra_op_threads, device=args.emulate)
        specs = emulated_specs(args.emulate, is_ours)
    elif args.models is None:
        raise ConfigError("--models is needed, except with --emulate")
    else:
        from gpuworker.compile import compile_repository

        model_directories(args.models)  # before anything takes time
        device = devices_of(args.device)[0]
        check_threads(args.intra_op_threads, device=device)
        specs = compile_repository(
            args.models,
            args.cache_dir,
            page_bytes=args.page_mb * MEBIBYTE,
            device=device,
            threads=args.intra_op_threads,
            quiet=args.quiet,
            only=args.model,
            is_ours=is_ours,
        )
    with _names_file("--catalog-out", catalogue):
        _write_atomically(catalogue, msgspec.json.encode(specs))
    return 0


@contextlib.contextmanager
def _names_file(flag: str, path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ConfigError(f"{flag} {path}: {path.parent} is no directory") from error
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from error


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


def _exit_on_signals(is_bound_to_parent: bool, end: Callable[[], NoReturn] = sys.exit) -> None:
    """Until the worker runs, SIGTERM ends the process at once and cleanly.

    A terminal's Ctrl-C reaches parent and child; a child leaves it to the parent to say when.
    """

    def leave(_signal_number: int, _frame: FrameType | None) -> None:
        end()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_bound_to_parent else leave)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpuworker",
        description="One device of Remontoir: carries out what its gateway orders.",
    )
    commands = parser.add_subparsers(required=True, metavar="run|compile|devices")

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
        "--intra-op-threads",
        type=_positive,
        default=1,
        metavar="N",
        help="CPUs that share one execution; each model is measured with as many (default:"
        " %(default)s)",
    )
    common.add_argument(
        "--emulate",
        metavar="NAME",
        help=f"no hardware, durations of a published profile: {', '.join(EMULATIONS)}",
    )
    common.add_argument(
        "--replica", metavar="NAME", help="of several gateways, which one this is for"
    )
    common.add_argument(
        "--replicas", metavar="LIST", help="all of them, as the gateways have it: NAME=URL,..."
    )
    common.add_argument(
        "--replica-copies",
        type=_positive,
        default=2,
        metavar="N",
        help="how many gateways have a model ready (default: %(default)s)",
    )
    common.add_argument(
        "--together",
        action="append",
        default=[],
        metavar="GROUP/MODEL/...",
        help="models that one gateway has together, as a group of its --groups; may be given again",
    )
    _add_device(common)
    _add_log_level(common)

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
        metavar="N",
        help="size of the weights cache in MiB"
        f" (default: {CPU_CACHE_BYTES // MEBIBYTE} on the CPU, all that is free on a GPU)",
    )
    run.add_argument(
        curve_keys.FLAG,
        type=Path,
        metavar="DIR",
        help="this worker's keys for a gateway that asks for them: worker.key_secret, gateway.key",
    )
    run.add_argument(
        health.FLAG,
        type=_port,
        metavar="PORT",
        help="answer probes there: /startz when its models are ready, /livez, /readyz when it has"
        " joined the gateway (default: none)",
    )
    run.add_argument("--health-board", metavar="FD:SLOT:SLOTS", help=argparse.SUPPRESS)
    run.add_argument("--host-store", type=int, metavar="FD", help=argparse.SUPPRESS)
    run.add_argument("--cpu", type=int, metavar="N", help="run on this CPU only")
    run.add_argument(
        "--die-with-parent",
        type=int,
        metavar="PID",
        help="the parent process: stop when it dies, and leave Ctrl-C to it",
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
    compile_.add_argument(
        "--model",
        metavar="NAME",
        help="this one alone, in silence: what is wrong with it is in the catalogue",
    )
    compile_.add_argument(
        "--nice",
        type=int,
        default=0,
        metavar="N",
        help="leave the CPU to others; 19: to all that want it (default: %(default)s)",
    )

    devices = commands.add_parser(
        "devices", help="find what --device stands for here; write a JSON list of names"
    )
    devices.set_defaults(command=_devices)
    _add_device(devices)
    _add_log_level(devices)
    devices.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON list")
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default=AUTO, metavar="NAME", help=f"{WORDS} (default: %(default)s)"
    )


def _add_log_level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="what goes to stderr (default: %(default)s)",
    )
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        default="pretty",
        help="for a person, or one JSON object a line (default: %(default)s)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 to 65535")
    return value


if __name__ == "__main__":
    sys.exit(main())
