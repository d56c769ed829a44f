"""Plays on a server, as rows of results.

Owns the run of a session: the server is started, loaded, and started anew where it is still busy
with what nobody waits for any more. A server that dies gives a partial row, and its next play a new
server.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadtest import servers
from loadtest.analysis.cell import Cell
from loadtest.http1 import Shot
from loadtest.openloop import drive
from loadtest.peers import environments
from loadtest.peers.launch import START_TIMEOUT_S, Running, launched
from loadtest.peers.peer import Peer, Wire, capacity_per_s, tuning
from loadtest.peers.plan import TUNED, WORKLOADS, Play, Session, point
from loadtest.peers.stage import Stage
from loadtest.peers.wires import reader, request
from loadtest.reference import Loop
from loadtest.score import Score, score
from loadtest.servers import ServerError
from loadtest.workloads import Ask, Poisson, open_loop

JOB = "peers"
# Capacity is that of the batch that fits this many executions: of all cells, whatever their SLO.
CAPACITY_EXECUTIONS = 5.0
GIVE_UP_S = 2.0
PACE_S = 0.3
IDLE_EXECUTIONS = 5.0  # an idle server answers `fast` in less, and a slow host has some room
LEAST_IDLE_S = 0.25
FIRST_ANSWER_S, RETRY_S = 30.0, 0.2

Loops = dict[str, dict[int, Loop]]


class Bounds(NamedTuple):
    """`rows` are stored as each play ends."""

    stage: Stage
    cell_s: float
    seed: int
    run_id: str
    environments_root: Path
    out_dir: Path
    environment: dict[str, str]
    rows: Callable[[list[Cell]], None]
    say: Callable[[str], None]
    advance: Callable[[], None]


def run(session: Session, peer: Peer | None, bounds: Bounds, *, loops: Loops) -> None:
    """Raises ServerError where it does not start, MissingPeer where it cannot."""
    plays = list(session.plays)
    while plays:
        with _server(session, peer, bounds, loops) as running:
            _wait_for_models(peer, running, bounds, loops)
            while plays:
                play = plays.pop(0)
                bounds.rows(_played(play, session, peer, running, bounds, loops))
                bounds.advance()
                if plays and not (running.is_alive and _is_idle(peer, running, bounds, loops)):
                    bounds.say(f"{session.title}: still busy after load {play.load:g}, begun anew")
                    break


@contextlib.contextmanager
def _server(session: Session, peer: Peer | None, bounds: Bounds, loops: Loops) -> Iterator[Running]:
    log_dir = bounds.out_dir / "logs"
    if peer is None:
        with servers.remontoir(
            bounds.stage.repository, cache_dir=bounds.out_dir / "compiled", log_dir=log_dir
        ) as server:
            yield Running(server, None)
        return
    tuned = tuning(
        bounds.stage.paths,
        loops,
        slo_executions=session.tuned_for or CAPACITY_EXECUTIONS,
        is_tuned=session.settings == TUNED,
    )
    python = environments.python_of(peer, bounds.environments_root)
    with (
        tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as scratch,
        launched(peer, python, tuned, scratch=Path(scratch), log_dir=log_dir) as running,
    ):
        yield running


def _played(
    play: Play,
    session: Session,
    peer: Peer | None,
    running: Running,
    bounds: Bounds,
    loops: Loops,
) -> list[Cell]:
    shares = WORKLOADS[play.workload]
    names = list(shares)
    # The host under a virtual machine changes its mind: by how much since the session began.
    pace = _single_ms(loops, "slow") / bounds.stage.slow_ms(seconds=PACE_S)
    capacities = {
        name: pace * capacity_per_s(loops[name], CAPACITY_EXECUTIONS * _single_ms(loops, name))
        for name in loops
    }
    rates = {name: play.load * shares[name] * capacities[name] for name in names}
    started_at = datetime.now(UTC)
    cpu_s = running.use().cpu_s
    trouble = ""
    shots: list[Shot] = []
    try:
        shots = _play(play, names, rates, peer, running, bounds, loops)
    except OSError as error:
        trouble = f"nothing could be sent: {error}"
    if not running.is_alive:
        trouble = "the server ended"
    use = running.use()
    cells = []
    for slo in play.slos:
        scores = _scores(shots, names, slo, peer, bounds, loops)
        used = sum(scores[name].goodput_per_s / capacities[name] for name in names)
        environment = {
            **bounds.environment,
            "server": session.server,
            "load": f"{play.load:g}",
            "slo_executions": f"{slo:g}",
            "share_of_possible": f"{used / min(1.0, play.load):.4f}",
            "capacity_per_s": ", ".join(f"{name} {capacities[name]:.1f}" for name in names),
        }
        cell = _cell(play, session, scores, bounds, slo=slo, rates=rates, loops=loops)
        cells.append(
            msgspec.structs.replace(
                cell,
                started_at=started_at.isoformat(timespec="milliseconds"),
                ended_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                server_cpu_s=max(0.0, use.cpu_s - cpu_s),
                server_rss_bytes=use.rss_bytes,
                partial=trouble,
                environment=environment,
            )
        )
    return cells


def _play(
    play: Play,
    names: list[str],
    rates: dict[str, float],
    peer: Peer | None,
    running: Running,
    bounds: Bounds,
    loops: Loops,
) -> list[Shot]:
    entries = [
        Poisson(name=name, models=name, slo_ms=1000.0, rate_per_s=rates[name]) for name in names
    ]
    arrivals = list(open_loop(entries, duration_s=bounds.cell_s, seed=bounds.seed))
    # A server that is told the SLO is told that of this play; there is only one then.
    requests = [_requests(name, peer, running, bounds, loops, slo=play.slos[0]) for name in names]
    return drive(
        port=running.server.port, arrivals=arrivals, requests=requests, give_up_s=GIVE_UP_S
    )


def _requests(
    name: str, peer: Peer | None, running: Running, bounds: Bounds, loops: Loops, *, slo: float
) -> list[bytes]:
    model = bounds.stage.models[name]
    return [
        request(
            Wire.REMONTOIR if peer is None else peer.wire,
            "/infer" if peer is None else peer.path,
            model=name,
            tensor=model.tensor,
            row=row,
            port=running.server.port,
            slo_ms=slo * _single_ms(loops, name),
        )
        for row in model.rows
    ]


def _scores(
    shots: list[Shot],
    names: list[str],
    slo: float,
    peer: Peer | None,
    bounds: Bounds,
    loops: Loops,
) -> dict[str, Score]:
    start_ns = shots[0].at_ns if shots else 0
    return {
        name: score(
            [shot for shot in shots if shot.stream == stream],
            slo_ms=[slo * _single_ms(loops, other) for other in names],
            expected=[bounds.stage.models[other].outputs for other in names],
            read=reader(Wire.REMONTOIR if peer is None else peer.wire),
            duration_s=bounds.cell_s,
            start_ns=start_ns,
        )
        for stream, name in enumerate(names)
    }


def _cell(
    play: Play,
    session: Session,
    scores: dict[str, Score],
    bounds: Bounds,
    *,
    slo: float,
    rates: dict[str, float],
    loops: Loops,
) -> Cell:
    """Of all models of the workload together; latencies and SLO are those of `slow`."""
    every = list(scores.values())
    slow = scores["slow"]
    errors = {
        "expired": sum(found.expired for found in every),
        "no answer": sum(found.no_answer for found in every),
        "other status": sum(found.other for found in every),
        "wrong output": sum(found.wrong for found in every),
    }
    return Cell(
        job=JOB,
        run_id=bounds.run_id,
        repeat=1,
        seed=bounds.seed,
        started_at="",
        model="+".join(scores),
        config=(("server", session.server), ("settings", session.settings)),
        arrivals="poisson",
        rate_per_s=sum(rates.values()),
        slo_ms=slo * _single_ms(loops, "slow"),
        duration_s=max(found.span_s for found in every),
        sent=sum(found.sent for found in every),
        good=sum(found.on_time for found in every),
        late=sum(found.late for found in every),
        refused=sum(found.refused for found in every),
        failed=sum(errors.values()),
        errors=tuple((name, number) for name, number in errors.items() if number),
        p50_ms=slow.p50_ms,
        p99_ms=slow.p99_ms,
        refusal_p50_ms=slow.refusal_p50_ms,
        refusal_p99_ms=slow.refusal_p99_ms,
        driver_error_p99_ms=max(found.send_lag_p99_ms for found in every),
        driver_error_max_ms=max(found.send_lag_max_ms for found in every),
        point=point(play.workload, play.load, slo),
        machine=bounds.environment.get("cpu", ""),
        commit=bounds.environment.get("commit", ""),
    )


def _is_idle(peer: Peer | None, running: Running, bounds: Bounds, loops: Loops) -> bool:
    """It answers at once: nothing is left of the play before."""
    patience_s = max(LEAST_IDLE_S, IDLE_EXECUTIONS * _single_ms(loops, "fast") / 1e3)
    return _answers("fast", peer, running, bounds, loops, patience_s=patience_s)


def _wait_for_models(peer: Peer | None, running: Running, bounds: Bounds, loops: Loops) -> None:
    """Some are ready long before their models are: TorchServe, while its workers start. Raises
    ServerError.
    """
    give_up_s = time.monotonic() + START_TIMEOUT_S
    for name in loops:
        while not _answers(name, peer, running, bounds, loops, patience_s=FIRST_ANSWER_S):
            if not running.is_alive or time.monotonic() > give_up_s:
                server = running.server.name
                raise ServerError(f"{server} is ready, and does not answer a request for {name}")
            time.sleep(RETRY_S)


def _answers(
    name: str,
    peer: Peer | None,
    running: Running,
    bounds: Bounds,
    loops: Loops,
    *,
    patience_s: float,
) -> bool:
    """One request, with a 200 so soon."""
    requests = _requests(name, peer, running, bounds, loops, slo=1000.0)
    ask = Ask(0, name, int(patience_s * 1e9), 0)
    try:
        (shot,) = drive(
            port=running.server.port,
            arrivals=[ask],
            requests=[requests],
            connections=1,
            give_up_s=patience_s,
        )
    except OSError:  # nobody listens there any more
        return False
    return shot.status == 200


def _single_ms(loops: Loops, name: str) -> float:
    return loops[name][1].exec_p50_ms
