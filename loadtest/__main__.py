"""`python -m loadtest`: the benchmarks of the README, all or one."""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from loadtest.bench import Bench
from loadtest.machine import MachineError, describe, pin_client
from loadtest.report import Report


def _overload(bench: Bench) -> None:
    from loadtest import overload

    overload.run(bench)


def _mixed(bench: Bench) -> None:
    from loadtest import mixed

    mixed.run(bench)


def _gateway(bench: Bench) -> None:
    from loadtest import gateway_cost

    gateway_cost.run(bench)


def _door(bench: Bench) -> None:
    from loadtest import door

    door.run(bench)


def _observed(bench: Bench) -> None:
    from loadtest import observed

    observed.run(bench)


def _hops(bench: Bench) -> None:
    from loadtest import hops

    hops.run(bench)


def _tritonclient(bench: Bench) -> None:
    from loadtest import triton_clients

    triton_clients.run(bench)


def _cache(bench: Bench) -> None:
    from loadtest import sharing

    sharing.run(bench)


def _paging(bench: Bench) -> None:
    from loadtest import paging

    paging.run(bench)


def _reload(bench: Bench) -> None:
    from loadtest import reload

    reload.run(bench)


def _replicas(bench: Bench) -> None:
    from loadtest import replica_hop

    replica_hop.run(bench)


def _scheduler(bench: Bench) -> None:
    from loadtest import scheduler_cost

    scheduler_cost.run(bench)


# Imported when they run: the scheduler's cost needs no HTTP client, and --help nothing at all.
PARTS: dict[str, tuple[str, Callable[[Bench], None]]] = {
    "overload": ("one CNN at 0.5, 0.9, 1.5 and 3 times capacity", _overload),
    "mixed": ("short and long requests, tight and loose SLOs, 120 % of a core", _mixed),
    "gateway": ("requests/s of a tiny model against a bare ASGI echo (needs wrk)", _gateway),
    "tritonclient": (
        "a picture as FP32 through the real tritonclient, against plain FastAPI",
        _tritonclient,
    ),
    "cache": ("microseconds that a hit and a miss of the prediction cache cost", _cache),
    "door": ("microseconds that metrics, stories, keys, quotas and traces add", _door),
    "observed": ("requests/s with stories and traces, off and on (needs wrk)", _observed),
    "hops": ("microseconds per MB of a large request, hop by hop", _hops),
    "paging": ("twelve models through a cache for three; LOAD against memmove", _paging),
    "reload": ("a new version of one model at 0.7 of capacity: what others lose", _reload),
    "replicas": ("a request whose model is another gateway's, against its owner's", _replicas),
    "scheduler": ("cost of one event at up to 4,000 models x 32 devices, simulated", _scheduler),
}


def main() -> int:
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, _stop)
    names = list(PARTS) if args.part == "all" else [args.part]
    command = shlex.join(["python", "-m", "loadtest", *sys.argv[1:]])
    report = Report(describe(), out_dir=args.out, command=command)
    bench = Bench(report, args.out, args.quick, args.seed)
    failed: list[str] = []
    begin_s = time.monotonic()
    usable_cpus = os.sched_getaffinity(0)
    for name in names:
        try:
            os.sched_setaffinity(0, usable_cpus)  # the part before has pinned itself
            pin_client()
            PARTS[name][1](bench)
        except _expected_errors() as error:
            report.say(f"{name}: {error}", style="bold red")
            failed.append(name)
    report.say(f"took {time.monotonic() - begin_s:.0f} s")
    if failed:
        report.say(f"not measured: {', '.join(failed)}", style="bold red")
    return 1 if failed else 0


def _stop(signal_number: int, _: FrameType | None) -> None:
    """Leave by the way that stops the servers."""
    sys.exit(128 + signal_number)


def _expected_errors() -> tuple[type[Exception], ...]:
    """What may go wrong for reasons outside of the benchmark: said in a line, others go on."""
    from loadtest.repositories import CalibrationError
    from loadtest.servers import ServerError
    from loadtest.wrk import WrkError

    return (MachineError, ServerError, CalibrationError, WrkError)


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:12} {text}" for name, (text, _) in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Measures Remontoir: servers on one core, the client on the other.",
        epilog=f"parts:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--quick", action="store_true", help="short cells: does it work at all?")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("bench-results"),
        help="figures as JSON, servers' logs, generated models (default: bench-results)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
