"""`remontoir bench peers`: other inference servers beside ours, by one driver on one core."""

import argparse
import shlex
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.analysis.cell import Cell
from loadtest.driver.results_db import ResultsDatabase, ResultsError
from loadtest.machine import MachineError, describe, load_average, pin_client
from loadtest.peers import check, environments, measure, plan
from loadtest.peers.environments import MissingPeer
from loadtest.peers.launch import launched
from loadtest.peers.page import key, page
from loadtest.peers.peer import Peer, tuning
from loadtest.peers.registry import PEERS
from loadtest.peers.stage import Stage, staged
from loadtest.servers import ServerError

QUICK_LOADS, QUICK_SLOS = (0.9, 3.0), (5.0,)
CALIBRATION_S, QUICK_CALIBRATION_S = 0.5, 0.2  # per batch size, before each server
CHECK_EXECUTIONS = 10_000.0  # while answers are compared nothing may be refused
PAGE = Path(__file__).parent.parent.parent / "docs" / "measurements" / "peers.md"

console = Console(stderr=True, highlight=False)


def main() -> int:
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        peers = _chosen(args.peer)
        return {"run": _run, "install": _install, "check": _check, "list": _list}[args.what](
            args, peers
        )
    except (MachineError, MissingPeer, ResultsError) as error:
        console.print(f"remontoir bench peers: {error}", style="bold red", markup=False)
        return 2


def _list(args: argparse.Namespace, peers: Sequence[Peer]) -> int:
    for peer in peers:
        there = "installed" if environments.is_installed(peer, args.environments) else "-"
        print(f"{peer.name:12} {_version(peer):10} {there:10} {peer.note}")
    return 0


def _install(args: argparse.Namespace, peers: Sequence[Peer]) -> int:
    return 1 if _installed(args, peers) else 0


def _installed(args: argparse.Namespace, peers: Sequence[Peer]) -> dict[str, str]:
    """Why some could not be, by name."""
    left_out = {}
    for peer in peers:
        try:
            with console.status(f"installing {peer.title} into {args.environments / peer.name}"):
                environments.install(peer, args.environments)
            environments.python_of(peer, args.environments)
        except MissingPeer as error:
            console.print(str(error), style="yellow", markup=False)
            left_out[peer.name] = str(error).splitlines()[0]
    return left_out


def _check(args: argparse.Namespace, peers: Sequence[Peer]) -> int:
    left_out = _installed(args, peers)
    pin_client()
    stage = staged(args.out / "models")
    loops = stage.loops(seconds=QUICK_CALIBRATION_S)
    is_well = not left_out
    for peer in peers:
        for is_tuned in (False, True) if peer.can_be_tuned else (False,):
            if peer.name not in left_out:
                is_well &= _checked(args, peer, stage, loops, is_tuned)
    return 0 if is_well else 1


def _checked(
    args: argparse.Namespace, peer: Peer, stage: Stage, loops: measure.Loops, is_tuned: bool
) -> bool:
    title = f"{peer.title}, {plan.TUNED if is_tuned else plan.DEFAULT}"
    tuned = tuning(stage.paths, loops, slo_executions=CHECK_EXECUTIONS, is_tuned=is_tuned)
    python = environments.python_of(peer, args.environments)
    try:
        with (
            console.status(title),
            tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as scratch,
            launched(
                peer, python, tuned, scratch=Path(scratch), log_dir=args.out / "logs"
            ) as running,
        ):
            found = check.check(peer, running, stage)
    except ServerError as error:
        print(f"{title}: {error}", flush=True)
        return False
    print(
        f"{title}: {found.right} of {found.asked} answers are ONNX Runtime's {found.trouble}",
        flush=True,
    )
    return found.is_right


def _run(args: argparse.Namespace, peers: Sequence[Peer]) -> int:
    left_out = _installed(args, peers)
    pin_client()
    out: Path = args.out
    stage = staged(out / "models")
    results = ResultsDatabase(args.results or out)
    results.check_room()
    cell_s = args.cell_s or (plan.QUICK_CELL_S if args.quick else plan.CELL_S)
    run_id = _run_id(args, cell_s, results)
    loads = QUICK_LOADS if args.quick else plan.LOADS
    slos = QUICK_SLOS if args.quick else plan.SLO_EXECUTIONS
    there = [peer for peer in peers if peer.name not in left_out]
    done = {key(cell) for cell in results.cells(run_id=run_id) if not cell.partial}
    todo = [
        plan.left_to_do(session, done)
        for session in plan.sessions(there, with_ours=not args.peer, loads=loads, slos=slos)
    ]
    num_plays = sum(len(session.plays) for session in todo)
    machine = describe()
    console.print(
        f"{num_plays} plays of {cell_s:g} s, about "
        f"{plan.estimated_s(todo, cell_s) / 60:.0f} minutes; {len(done)} cells are in "
        f"{results.name} already. Load average {load_average():.1f}."
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("", total=num_plays)
        bounds = measure.Bounds(
            stage=stage,
            cell_s=cell_s,
            seed=args.seed,
            run_id=run_id,
            environments_root=args.environments,
            out_dir=out,
            environment={"machine": machine.line(), "cpu": machine.cpu, "commit": machine.commit},
            rows=results.add,
            say=lambda text: console.print(text, style="dim", markup=False),
            advance=lambda: progress.advance(bar),
        )
        for session in todo:
            if not session.plays or session.server in left_out:
                continue
            progress.update(bar, description=session.title)
            peer = next((peer for peer in there if peer.name == session.server), None)
            loops = stage.loops(seconds=QUICK_CALIBRATION_S if args.quick else CALIBRATION_S)
            try:
                measure.run(session, peer, bounds, loops=loops)
            except ServerError as error:
                console.print(str(error), style="yellow", markup=False)
                left_out[session.server] = str(error).splitlines()[0]
    cells = list(results.cells(run_id=run_id))
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text(_page(cells, peers, left_out))
    print(f"{args.page}: {len(cells)} cells; rows in {results.name}")
    return 1 if left_out else 0


def _page(cells: Sequence[Cell], peers: Sequence[Peer], left_out: dict[str, str]) -> str:
    return page(
        cells,
        peers,
        versions={peer.name: _version(peer) for peer in peers},
        left_out=left_out,
        command=shlex.join(["remontoir", "bench", "peers", *sys.argv[1:]]),
    )


def _run_id(args: argparse.Namespace, cell_s: float, results: ResultsDatabase) -> str:
    """The same for a run that goes on: of the same cells with the same seed."""
    prefix = f"peers-{cell_s:g}s-seed{args.seed}"
    before = [
        cell for cell in results.cells(job=measure.JOB) if cell.run_id.startswith(prefix + "-")
    ]
    if before and not args.fresh:
        return max(before, key=lambda cell: cell.started_at).run_id
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def _version(peer: Peer) -> str:
    """As its lock file has it."""
    for line in peer.requirements.read_text().splitlines():
        name, _, version = line.partition("==")
        if name.partition("[")[0] == peer.package:
            return version.split()[0].rstrip("\\")
    return "unknown"


def _chosen(names: Sequence[str] | None) -> list[Peer]:
    known = {peer.name: peer for peer in PEERS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise MissingPeer(f"no peer {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(PEERS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remontoir bench peers",
        description="Measure other inference servers beside ours: the same models, one core, one "
        "driver. Each is installed from PyPI into an environment of its own.",
        epilog="examples:\n"
        "  remontoir bench peers                   all of it, in an hour; writes the page\n"
        "  remontoir bench peers --quick           does it work: minutes\n"
        "  remontoir bench peers run --peer triton --peer mosec\n"
        "  remontoir bench peers check             does each start and answer rightly?\n\n"
        "A run that was stopped goes on where it was: finished cells are in the results.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="?",
        default="run",
        choices=["run", "check", "install", "list"],
        help="run measures (and installs what is missing); check compares answers with ONNX "
        "Runtime's; install only installs; list shows versions (default: run)",
    )
    parser.add_argument(
        "--peer",
        action="append",
        metavar="NAME",
        help="only this one, without ours; may be given again: "
        + ", ".join(peer.name for peer in PEERS),
    )
    parser.add_argument("--quick", action="store_true", help="short cells, two loads, one SLO")
    parser.add_argument("--cell-s", type=float, metavar="S", help=f"default: {plan.CELL_S:g}")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default: 1)")
    parser.add_argument("--fresh", action="store_true", help="measure finished cells again")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("bench-results/peers"),
        help="models, logs, results.sqlite (default: bench-results/peers)",
    )
    parser.add_argument(
        "--results", metavar="PLACE", help="another folder or database URL for the rows"
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=PAGE,
        metavar="FILE",
        help="what is written (default: docs/measurements/peers.md)",
    )
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="DIR",
        default=environments.default_root(),
        help="where the peers are installed (default: ~/.cache/remontoir/peers)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
