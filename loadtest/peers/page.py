"""docs/measurements/peers.md: what each server kept of what was possible, by load and SLO.

Owns the page's words and tables. It reads rows of results and measures nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

from loadtest.analysis.cell import Cell
from loadtest.peers.peer import Peer
from loadtest.peers.plan import DEFAULT, LOADS, OURS, SLO_EXECUTIONS, TUNED, WORKLOADS, point

Key = tuple[str, str, str]  # server, settings, point


def key(cell: Cell) -> Key:
    config = dict(cell.config)
    return config["server"], config["settings"], cell.point


def page(
    cells: Iterable[Cell],
    peers: Sequence[Peer],
    *,
    versions: Mapping[str, str],
    left_out: Mapping[str, str],
    command: str,
) -> str:
    """`left_out`: why a server has no figures, by its name."""
    found = {key(cell): cell for cell in cells}
    if not found:
        return "# Beside other servers\n\nNothing was measured yet.\n"
    first = min(found.values(), key=lambda cell: cell.started_at)
    return "\n".join(
        [
            "# Beside other servers",
            "",
            *_how(found, first, command),
            *_tables(found, peers),
            *_details(found, peers),
            *_settings(peers, versions, left_out),
        ]
    )


def _how(found: Mapping[Key, Cell], first: Cell, command: str) -> list[str]:
    lag_ms = max(cell.driver_error_p99_ms or 0.0 for cell in found.values())
    partial = sum(bool(cell.partial) for cell in found.values())
    said = f" {partial} of {len(found)} cells are partial and marked \\*." if partial else ""
    lines = [
        f"`{command}`, {first.started_at[:10]}, {first.environment.get('machine', 'unknown')}.",
        "",
        "Every server runs the same two ONNX models by the same ONNX Runtime, on one thread and "
        "pinned to one core; one driver asks all of them from another core, by an open Poisson "
        f"load of {first.duration_s:.0f} s a cell with seed {first.seed}. `slow` takes about ten "
        "times as long as `fast`. *One model* is `slow` alone; *mixed* asks each of the two for "
        "half of the core. Load 1 is what a bare ONNX Runtime loop does there, measured anew "
        "before each cell; an SLO is a multiple of one execution of its model.",
        "",
        "A cell says how much was answered rightly and within its SLO, by the client's clock from "
        "the scheduled send, of what was possible: of the load, or of the core above load 1. "
        "*Default* is without batching and limits. *Tuned* is as the server's documentation says "
        "for a latency bound, made anew for each SLO and given measured execution times; Remontoir "
        "is told the SLO by each request and has nothing set.",
        "",
        f"The driver sent within {lag_ms:.2f} ms of the schedule (p99 of the worst cell).{said}",
        "",
    ]
    return lines


def _tables(found: Mapping[Key, Cell], peers: Sequence[Peer]) -> list[str]:
    lines = []
    for workload in WORKLOADS:
        for slo in SLO_EXECUTIONS:
            rows = [
                (name, settings, cells)
                for name, settings in _lines(peers)
                if any(cells := [_at(found, name, settings, workload, load, slo) for load in LOADS])
            ]
            if not rows:
                continue
            lines += [f"## {workload.capitalize()}, SLO of {slo:g} executions", ""]
            lines += ["| server | " + " | ".join(f"load {load:g}" for load in LOADS) + " |"]
            lines += ["|---|" + "--:|" * len(LOADS)]
            best = [
                max((_share(row[index]) for _, _, row in rows), default=0.0)
                for index in range(len(LOADS))
            ]
            for name, settings, cells in rows:
                shown = [_shown(cell, top) for cell, top in zip(cells, best, strict=True)]
                lines.append(f"| {_title(peers, name, settings)} | {' | '.join(shown)} |")
            lines.append("")
    return lines


def _details(found: Mapping[Key, Cell], peers: Sequence[Peer]) -> list[str]:
    """What became of the rest, where it hurts: load 1.5, the middle SLO."""
    lines = ["## What became of the rest: load 1.5, SLO of 5 executions", ""]
    lines += [
        "| server | workload | sent | in time | late | refused | after ms, p50 | "
        "no answer, other | wrong | p99 ms of `slow` | core busy | MB |",
        "|---|---|" + "--:|" * 10,
    ]
    for name, settings in _lines(peers):
        for workload in WORKLOADS:
            cell = _at(found, name, settings, workload, 1.5, 5.0)
            if cell is None:
                continue
            errors = dict(cell.errors)
            wrong = errors.get("wrong output", 0)
            busy = (cell.server_cpu_s or 0.0) / cell.duration_s
            lines.append(
                f"| {_title(peers, name, settings)} | {workload} | {cell.sent} | {cell.good} | "
                f"{cell.late} | {cell.refused} | {_ms(cell.refusal_p50_ms)} | "
                f"{cell.failed - wrong} | {wrong} | {_ms(cell.p99_ms)} | {busy:.0%} | "
                f"{(cell.server_rss_bytes or 0) / 1e6:.0f} |"
            )
    lines += ["", "No answer: within 2 s, then the client hung up.", ""]
    return lines


def _settings(
    peers: Sequence[Peer], versions: Mapping[str, str], left_out: Mapping[str, str]
) -> list[str]:
    lines = ["## Versions and settings", "", "| server | version | tuned |", "|---|---|---|"]
    for peer in peers:
        note = f"not measured: {left_out[peer.name]}" if peer.name in left_out else peer.note
        lines.append(f"| {peer.title} | {versions.get(peer.name, '')} | {note} |")
    lines += [
        "",
        "Versions are locked by hash in loadtest/peers/requirements; loadtest/peers/registry.py "
        "and loadtest/peers/servers say how each is started.",
        "",
    ]
    return lines


def _lines(peers: Sequence[Peer]) -> list[tuple[str, str]]:
    return [(OURS, DEFAULT)] + [
        (peer.name, settings)
        for peer in peers
        for settings in ((DEFAULT, TUNED) if peer.can_be_tuned else (DEFAULT,))
    ]


def _title(peers: Sequence[Peer], name: str, settings: str) -> str:
    if name == OURS:
        return "**Remontoir**"
    title = next(peer.title for peer in peers if peer.name == name)
    return f"{title}, {settings}"


def _at(
    found: Mapping[Key, Cell], name: str, settings: str, workload: str, load: float, slo: float
) -> Cell | None:
    return found.get((name, settings, point(workload, load, slo)))


def _share(cell: Cell | None) -> float:
    return 0.0 if cell is None else float(cell.environment["share_of_possible"])


def _shown(cell: Cell | None, best: float) -> str:
    if cell is None:
        return "-"
    share = _share(cell)
    text = f"{share:.0%}" + ("\\*" if cell.partial else "")
    return f"**{text}**" if share == best and best else text


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
